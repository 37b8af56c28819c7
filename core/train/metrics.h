#pragma once
/* Everything that a run reports about itself: Megatron-LM's iteration line and validation block on `out`, one
 * JSON object per iteration in the metrics file, and TensorBoard scalars. The training loop fills one
 * metrics_record per iteration, on the one rank that reports, and hands it over; averages over the log
 * interval are kept here. Nothing is allocated after metrics_open.
 *
 * Iteration line: every log_interval iterations, and once more after the first iteration of the run (that
 * line does not reset the averages). Losses are sums over the non-skipped iterations of the interval divided
 * by their count; times are sums over all its iterations. Its pieces are Megatron-LM's, in its order; this
 * program's own follow after them, so that parsers of the former keep working:
 *
 *  [2026-01-31 12:00:00.123456] iteration       20/      20 | consumed samples:          160 | elapsed time
 *   per iteration (ms): 812.3 | throughput per GPU (TFLOP/s/GPU): 0.9 | learning rate: 1.000000E-03 | global
 *   batch size:     8 | lm loss: 6.912345E+00 | loss scale: 1.0 | grad norm: 1.234 | number of skipped
 *   iterations:   0 | number of nan iterations:   0 | mem 0.12 GiB |
 *
 * `mem` is the peak allocated, the maximum over ranks; with more than one rank it ends in "GiB (rank 3) |".
 * With log_throughput, " tokens per second: 2521.0 | hardware TFLOP/s/GPU: 1.1 | MFU: 41.3% |" follow.
 * Two traps of Megatron-LM are mended: an iteration whose loss is not finite counts as a nan iteration also
 * when it was not skipped, and a loss that is NaN is printed, not left out.
 *
 * JSON lines: the keys iteration consumed_samples lm_loss grad_norm learning_rate elapsed_ms
 * tokens_per_second model_tflops hardware_tflops mfu recompute_ms peak_allocated_bytes peak_reserved_bytes
 * peak_activation_bytes, with several ranks peak_allocated_bytes_by_rank (a list) and
 * exposed_communication_ms (of the rank that waited longest), the further losses by their names with
 * underscores (z_loss, mtp_1_loss), and params_hash (16 hexadecimal digits) when
 * given; values of that iteration alone, floats with 9 significant digits, null for what is unknown or not
 * finite. TFLOP/s are per rank; tokens are of the whole job. Each line is one write, so that readers see
 * whole lines. A resumed run keeps the lines up to the iteration it starts from and drops later ones; a fresh
 * run empties the file. A file that is not such a file is refused rather than emptied.
 *
 * When the metrics file cannot be written any more (full disk), the reason is logged once and training goes
 * on. */
#include "core/base/check.h"
#include "core/train/tensorboard.h"
#include "core/train/timers.h"
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { METRICS_MAX_EXTRA = 16 };

struct metrics_value {
    const char *name; /* must outlive the metrics object: a literal */
    double value;
};

struct metrics_memory { /* of one rank, or the maximum over ranks for the peaks; bytes */
    uint64_t allocated, peak_allocated, reserved, peak_reserved, peak_activation;
    uint64_t blocks;      /* live allocations */
    uint64_t device_used; /* as the system sees it; 0 = unknown */
    int peak_rank;        /* whose peak_allocated it is */
};

struct metrics_record {
    int64_t iteration;        /* 1 is the first of the training, also after a resume */
    int64_t consumed_samples; /* after this iteration */
    int64_t skipped_samples;  /* dropped on purpose (--iterations-to-skip), so far */
    int64_t global_batch_size;
    int64_t tokens; /* of this iteration, all ranks */
    double seconds; /* wall time of this iteration */
    double learning_rate;
    double lm_loss;
    int num_extra; /* further losses, in order: "z_loss", "mtp_1 loss", ...; names not in "loss" print %.2f */
    struct metrics_value extra[METRICS_MAX_EXTRA];
    bool skipped;      /* the optimizer step was not taken (Inf or NaN gradients) */
    double loss_scale; /* 1 without fp16 */
    double grad_norm;  /* negative = not computed, as in the next two */
    double params_norm;
    double num_zeros;
    double model_flops;         /* of this iteration, all ranks, recompute not counted */
    double hardware_flops;      /* the same as really run, recompute counted; negative = unknown */
    double recompute_seconds;   /* negative = not measured */
    double max_attention_logit; /* negative = not computed */
    struct metrics_memory memory;
    const double *rank_peaks; /* peak allocated of each rank, `stride` apart; NULL with one rank */
    int rank_peaks_stride;
    double
        exposed_communication_seconds; /* that the rank which waited longest stood still; with rank_peaks */
    bool has_params_hash;
    uint64_t params_hash;
};

struct metrics_options {
    FILE *out;                       /* iteration lines and blocks; NULL prints none; not closed */
    const char *metrics_file;        /* NULL: none */
    struct tensorboard *tensorboard; /* NULL: none; not closed */
    int64_t train_iters;
    int64_t start_iteration;                        /* iterations already done: 0 for a fresh run */
    int64_t log_interval, tensorboard_log_interval; /* at least 1 */
    int world_size;
    double peak_flops_per_rank; /* for MFU, FLOP/s; 0 = unknown */
    bool log_throughput;
    bool log_loss_scale_to_tensorboard; /* Megatron-LM's default is on */
    bool log_world_size_to_tensorboard, log_memory_to_tensorboard, log_validation_ppl_to_tensorboard;
    bool log_timers_to_tensorboard; /* iteration-time; throughput with log_throughput */
};

struct metrics_evaluation {
    int64_t iteration, consumed_samples;
    const char *set;   /* several validation sets: "1" or a name, printed as "validation-1"; else NULL */
    const char *where; /* final ones: "validation set" or "test set", printed as "iteration N on ..." */
    double lm_loss;
    int num_extra;
    struct metrics_value extra[METRICS_MAX_EXTRA];
};

struct metrics;
struct metrics *metrics_open(const struct metrics_options *options, struct err *err); /* NULL on error */
void metrics_close(struct metrics *m);                                                /* NULL is fine */
/* True when the iteration line was printed: the loop then prints memory and timer reports. */
bool metrics_iteration(struct metrics *m, const struct metrics_record *record);
void metrics_evaluation(struct metrics *m, const struct metrics_evaluation *evaluation);
/* "Evaluating on N samples" (k = 0) and "Evaluating iter k/n" of a verbose evaluation. */
void metrics_evaluation_progress(struct metrics *m, int64_t k, int64_t n, int64_t samples);
/* Megatron-LM's memory line: "[Rank 0] (after 2 iterations) memory (MB) | allocated: ... ". */
void metrics_memory_report(FILE *out, int rank, int64_t iteration, const struct metrics_memory *memory);
/* <timer>-time scalars of one report: what timers_take gave, the maximum over ranks. */
void metrics_timers(struct metrics *m, int64_t iteration, const struct timers *timers,
                    const double *milliseconds);
