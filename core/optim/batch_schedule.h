#pragma once
/* Global batch size as a pure function of consumed samples: constant, --rampup-batch-size (Megatron-LM's
 * classic linear ramp) or --step-batch-size-schedule. Plain data, no memory owned.
 *
 *   ramp-up   START INCREMENT SAMPLES: (global - START) / INCREMENT increments, each after SAMPLES /
 *             increments samples: n <= SAMPLES: START + floor(n / that) * INCREMENT; n > SAMPLES: global.
 *   steps     "0:768 250B:1536": thresholds in tokens, divided (rounding down) by the sequence length;
 *             suffixes K M B T = 1e3 1e6 1e9 1e12; separators blanks or commas; the first threshold is 0.
 *
 * One micro-batch row is micro_batch_size * data_parallel_size samples. A batch size that is no multiple of
 * it is refused, or with `decrease_if_needed` rounded down to one (`running`), while schedules go on counting
 * in `global`. Megatron-LM's current snapshot accepts --rampup-batch-size and ignores it; here it works.
 *
 *     struct batch_schedule b = {.kind = BATCH_CONSTANT, .global_batch_size = 8, .row_samples = 4};
 *     if (batch_schedule_check(&b, err)) return -1;
 *     struct batch_size now = batch_schedule_at(&b, consumed_samples); */
#include "core/base/check.h"
#include <stdbool.h>
#include <stdint.h>

enum batch_schedule_kind { BATCH_CONSTANT, BATCH_RAMPUP, BATCH_STEPS };
enum { BATCH_MAX_STEPS = 64 };

struct batch_step {
    int64_t threshold_samples; /* from this many consumed samples on */
    int64_t batch_size;
};

struct batch_schedule {
    enum batch_schedule_kind kind;
    int64_t global_batch_size; /* the final one; filled in by batch_schedule_parse_steps */
    int64_t row_samples;       /* micro_batch_size * data_parallel_size */
    bool decrease_if_needed;
    int64_t rampup_start, rampup_increment, rampup_samples; /* BATCH_RAMPUP */
    int num_steps;                                          /* BATCH_STEPS */
    struct batch_step steps[BATCH_MAX_STEPS];
};

struct batch_size {
    int64_t global;        /* what the schedule says */
    int64_t running;       /* what is trained: global, or rounded down with decrease_if_needed */
    int64_t micro_batches; /* running / row_samples: gradient accumulation steps */
};

/* Fills kind, global_batch_size (the last step's) and steps from the flag's text; row_samples is the
 * caller's. */
int batch_schedule_parse_steps(struct batch_schedule *s, const char *text, int64_t seq_length,
                               struct err *err);
/* Every size that the schedule can take is checked here, so that batch_schedule_at cannot fail. */
int batch_schedule_check(const struct batch_schedule *s, struct err *err);
struct batch_size batch_schedule_at(const struct batch_schedule *s, int64_t consumed_samples);

/* Samples consumed by the first `iterations` iterations, and the number of whole iterations in `samples`. */
int64_t batch_schedule_samples(const struct batch_schedule *s, int64_t iterations);
int64_t batch_schedule_iterations(const struct batch_schedule *s, int64_t samples);
