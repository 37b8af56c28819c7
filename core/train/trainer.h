#pragma once
/* One rank's training run: the plan, the arena, the executor, the data, and what a checkpoint has to hold.
 * trainer_open does everything up to the first iteration; trainer_run is the loop. Nothing is allocated
 * between the end of the first iteration and the end of the run, except while a checkpoint is written.
 *
 *     struct trainer t;
 *     if (trainer_open(&t, &cfg, err)) return -1;      // plan, out-of-memory check, arena, data, checkpoint
 *     int status = trainer_run(&t);                    // exit status of the program
 *     trainer_close(&t); */
#include "core/checkpoint/checkpoint.h"
#include "core/config/config.h"
#include "core/data/loader.h"
#include "core/data/options.h"
#include "core/optim/loss_scale.h"
#include "core/optim/lr_schedule.h"
#include "core/optim/wd_schedule.h"
#include "core/plan.h"
#include "core/plan_hardware.h"
#include "core/train/executor.h"
#include "core/train/flops.h"
#include "core/train/metrics.h"
#include "core/train/ranks.h"
#include "core/train/update.h"

/* What the flags mean for the plan of one rank: tokenizer (for the vocabulary), model, recompute policy,
 * kernels, its part of the layers and of the schedule. Any rank can be planned, running or not. */
struct setup {
    struct tokenizer *tokenizer; /* NULL for mock data without tokenizer flags */
    int64_t vocab_size, padded_vocab_size;
    struct threads *threads;
    struct pipeline_chunk *split; /* layers of every (chunk, stage) */
    int *counts;                  /* of micro-batches, for the plan */
    struct hardware hardware;     /* of --hardware, or the default that --recompute-granularity auto takes */
    struct plan_request request;  /* what is the same for all ranks */
    struct recompute_group *planned; /* --recompute-granularity auto: of all layers */
    int num_planned;
    struct str planned_report; /* what was chosen */
    struct plan plan;
};
/* --print-schedule: what each stage does when, and how much of the time it stands idle. */
void setup_print_schedule(const struct setup *s, FILE *out);
/* `threads` is their number where --cpu-threads does not say; 0: one per processor. Errors are the user's:
 * unreadable tokenizer, vocabulary, unusable --kernels. */
int setup_open(struct setup *s, const struct config *cfg, int rank, int threads, struct err *err);
/* The plan of another rank of the same flags, instead of the one that `s` has. */
int setup_reopen(struct setup *s, const struct config *cfg, int rank, struct err *err);
/* What the plan of a rank of each pipeline stage is made from, before recompute is chosen by auto. */
int setup_requests(struct setup *s, const struct config *cfg, struct plan_request *requests, struct err *err);
void setup_close(struct setup *s);
/* The kernels of --kernels; NULL with a message when this processor does not have them. */
const struct kernels *setup_kernels(const struct config *cfg, struct err *err);
/* FLOPs that a batch of this model needs. */
struct flops_shape setup_flops_shape(const struct model *m);

/* What training carries from iteration to iteration, and a checkpoint to the next run. */
struct train_state {
    int64_t iteration; /* finished iterations */
    int64_t consumed_samples, consumed_valid_samples;
    int64_t skipped_samples; /* of --iterations-to-skip */
    int64_t skipped_iterations, nan_iterations;
    int64_t optimizer_steps;
    int64_t scheduled_samples; /* samples of successful steps: what the schedules see */
    struct loss_scale loss_scale;
};

struct step_result {
    double lm_loss;                /* mean over the tokens that count */
    double grad_norm;              /* before clipping; -1 when not computed */
    double num_zeros, params_norm; /* -1 when not asked for */
    int64_t tokens;                /* of the step */
    int micro_batches;
    bool skipped, not_finite;
    double learning_rate; /* of the next step, as Megatron-LM logs it */
};

struct trainer {
    const struct config *cfg;
    const struct ranks *ranks;
    struct setup setup;
    struct arena arena;
    struct executor executor;
    struct datasets *data;
    struct loader *train_loader, *valid_loader, *test_loader;
    struct train_state state;
    struct lr_schedule lr, decoupled_lr;
    struct wd_schedule wd;
    bool has_decoupled_lr;
    double mtp_tokens[MODEL_MAX_MTP_LAYERS]; /* of the last step, that count at each depth */
    double mtp_loss[MODEL_MAX_MTP_LAYERS];   /* means over them */
    struct flops_shape flops;
    struct metrics *metrics; /* on rank 0 */
    struct tensorboard *tensorboard;
    struct trace *trace;
    struct memory_recording *recording; /* --memory-timeline */
    struct timers *timers;
    double *rank_reports;               /* RANK_REPORT_WORDS of each rank */
    double *busy_sorted;                /* one per rank */
    struct router_losses *layer_losses; /* --moe-per-layer-logging: means of this step, per layer; or NULL */
    int64_t num_layer_losses;
    char *hosts;             /* RANK_HOST_BYTES of each rank */
    double world_gemm_flops; /* of a full step, all ranks */
    int timer_step, timer_optimizer, timer_data, timer_eval, timer_save;
    int64_t start_iteration, last_saved_iteration;
    uint64_t start_ns;
    struct checkpoint_tensor *tensors; /* what this rank holds */
    int num_tensors;
    struct checkpoint_async *async;  /* --async-save, else NULL */
    bool saving;                     /* a save runs in the background; the same on all ranks */
    struct checkpoint_shape *shapes; /* every tensor of the model */
    int num_shapes;
    struct str config_json;
};

/* `ranks` has its groups open and outlives the trainer; NULL: one rank. */
int trainer_open(struct trainer *t, const struct config *cfg, const struct ranks *ranks, struct err *err);
void trainer_close(struct trainer *t);
int trainer_run(struct trainer *t);

/* ---- parts (each a file) ---- */

/* step.c: forward, backward and update of one iteration. Returns -1 with a message when the data fails. */
int step_run(struct trainer *t, int64_t batch_size, struct step_result *out, struct err *err);
/* Runs the forward of --eval-global-batch-size samples of a loader and adds to the sums, of all ranks. */
int step_evaluate(struct trainer *t, struct loader *loader, double *loss_sum_p, double *tokens_p,
                  struct err *err);
/* "lm loss is not finite" and the first bad tensor, found by repeating the micro-batches of the last step. */
void step_diagnose(struct trainer *t, int64_t batch_size, struct str *out);

/* report.c: what the ranks tell rank 0 after each iteration, and the lines made from it. */
enum { RANK_REPORT_WORDS = 7, RANK_HOST_BYTES = 64 };
bool report_iteration(struct trainer *t, const struct step_result *r, int64_t batch_size, double seconds);
/* At start, collective: which rank's plan is the largest; printed where `out` is not NULL. */
void report_peaks(struct trainer *t, FILE *out);
/* At start: layer -> (stage, chunk, recomputed or kept). */
void report_layers(const struct trainer *t, FILE *out);

/* state.c: checkpoints. All collective. */
void state_open(struct trainer *t);
void state_close(struct trainer *t);
int state_load(struct trainer *t, struct err *err);
/* With --async-save the save goes on in the background: state_poll puts it in force once all ranks have
 * written, state_finish waits for that. A save that is still running is finished first. */
int state_save(struct trainer *t, struct err *err);
int state_poll(struct trainer *t, struct err *err);
int state_finish(struct trainer *t, struct err *err);
