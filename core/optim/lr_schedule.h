#pragma once
/* Learning rate as a pure function of consumed samples, with Megatron-LM's styles and definitions.
 *
 * With n = samples consumed by successful optimizer steps, w = warmup, d = decay length:
 *
 *     w > 0 and n <= w         init + (max - init) * n / w             so the first update has the rate
 * `init` constant                 max, for ever n > d                    min inverse-square-root max(min, max
 * * sqrt(max(w, 1)) / sqrt(max(n, 1))) otherwise                min + c * (max - min), with r = (n - w) / (d
 * - w): linear                c = 1 - r cosine                c = (1 + cos(pi r)) / 2 WSD                   c
 * = 1 until d - wsd; then, with q = (n - (d - wsd)) / wsd: linear 1 - q,  cosine (1 + cos(pi q)) / 2,
 * exponential 2 * 0.5^q - 1,  minus_sqrt 1 - sqrt(q)
 *
 * Lengths are in samples; flags in iterations are multiplied by the global batch size (the final one, when
 * the batch size varies). Skipped steps do not advance n. The logged rate is that of the next step.
 *
 *     struct lr_schedule lr;
 *     if (lr_schedule_init(&lr, &options, err)) return -1;
 *     float rate = lr_schedule_at(&lr, samples_of_successful_steps); */
#include "core/base/check.h"
#include <stdbool.h>
#include <stdint.h>

enum lr_decay_style { LR_CONSTANT, LR_LINEAR, LR_COSINE, LR_INVERSE_SQUARE_ROOT, LR_WSD };
enum lr_wsd_style { LR_WSD_EXPONENTIAL, LR_WSD_LINEAR, LR_WSD_COSINE, LR_WSD_MINUS_SQRT };

struct lr_schedule_options { /* the flags, unset = 0 unless said otherwise */
    double lr, min_lr, warmup_init;
    enum lr_decay_style decay_style;
    enum lr_wsd_style wsd_style;
    int64_t train_iters, train_samples; /* one of the two is set, and chooses iterations or samples */
    int64_t global_batch_size;          /* needed with train_iters */
    int64_t decay_iters, decay_samples; /* unset: train_iters or train_samples */
    int64_t wsd_decay_iters, wsd_decay_samples;
    int64_t warmup_iters, warmup_samples;
    double warmup_fraction; /* of the decay length; negative = unset */
};

struct lr_schedule {
    double max_lr, min_lr, init_lr;
    double warmup_samples, decay_samples, wsd_samples;
    enum lr_decay_style decay_style;
    enum lr_wsd_style wsd_style;
};

/* Refuses what Megatron-LM refuses: rates out of order, warmup not shorter than decay, WSD without its
 * length. */
int lr_schedule_init(struct lr_schedule *s, const struct lr_schedule_options *options, struct err *err);
double lr_schedule_at(const struct lr_schedule *s, double consumed_samples);

/* "cosine" -> LR_COSINE ..., -1 when there is no such style. */
int lr_decay_style_parse(const char *name);
int lr_wsd_style_parse(const char *name);
