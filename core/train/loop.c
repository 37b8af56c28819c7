/* The training loop: iterations, evaluation, saving, and the ways to stop. */
#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/train/signals.h"
#include "core/train/trainer.h"
#include <math.h>
#include <stdio.h>

/* What a part of the loop returns. Data that cannot be used is the user's to mend, like a bad flag. */
enum { GO_ON = 0, STOP = 1, FAILED = -1, BAD_INPUT = -2 };

/* ---- reports ---- */

static struct metrics_memory memory_of(const struct trainer *t) {
    const struct plan *plan = &t->setup.plan;
    size_t fixed = plan->activations - plan->fixed_bytes[CATEGORY_ACTIVATIONS];
    return (struct metrics_memory){.allocated = plan->activations,
                                   .peak_allocated = t->executor.high_water,
                                   .reserved = t->arena.bytes,
                                   .peak_reserved = t->arena.bytes,
                                   .peak_activation = t->executor.high_water - fixed,
                                   .blocks = 1};
}

static bool report_iteration(struct trainer *t, const struct step_result *r, int64_t batch_size,
                             double seconds) {
    const struct plan *plan = &t->setup.plan;
    double share = (double)r->micro_batches / plan->request.micro_batches;
    struct metrics_record record = {.iteration = t->state.iteration,
                                    .consumed_samples = t->state.consumed_samples,
                                    .skipped_samples = t->state.skipped_samples,
                                    .global_batch_size = batch_size,
                                    .tokens = r->tokens,
                                    .seconds = seconds,
                                    .learning_rate = r->learning_rate,
                                    .lm_loss = r->lm_loss,
                                    .skipped = r->skipped,
                                    .loss_scale = t->state.loss_scale.scale,
                                    .grad_norm = r->grad_norm,
                                    .params_norm = r->params_norm,
                                    .num_zeros = r->num_zeros,
                                    .model_flops = flops_of_batch(&t->flops, (double)batch_size),
                                    .hardware_flops = plan->step_gemm_flops * share,
                                    .recompute_seconds = t->executor.phase_seconds[PHASE_RECOMPUTE],
                                    .max_attention_logit = -1,
                                    .memory = memory_of(t),
                                    .has_params_hash = t->cfg->log_params_hash};
    if (record.has_params_hash) record.params_hash = update_params_hash(&t->executor);
    bool printed = metrics_iteration(t->metrics, &record);
    bool first_reports =
        t->state.iteration <= t->start_iteration + 1 ||
        (config_is_set(t->cfg, log_memory_interval) && t->state.iteration % t->cfg->log_memory_interval == 0);
    if (printed && first_reports) metrics_memory_report(stdout, 0, t->state.iteration, &record.memory);
    if (printed) timers_report(t->timers, (double)t->cfg->log_interval, stdout);
    return printed;
}

/* ---- evaluation ---- */

static int evaluate(struct trainer *t, struct loader *loader, const char *where, struct err *err) {
    const struct config *cfg = t->cfg;
    double loss_sum = 0, tokens = 0;
    uint64_t begin = clock_now_ns();
    for (int64_t i = 0; i < cfg->eval_iters; i++) {
        if (step_evaluate(t, loader, cfg->eval_global_batch_size, &loss_sum, &tokens, err)) return BAD_INPUT;
        if (loader == t->valid_loader) t->state.consumed_valid_samples += cfg->eval_global_batch_size;
        if (signals_received()) break;
    }
    timers_add_seconds(t->timers, t->timer_eval, clock_seconds_since(begin));
    struct metrics_evaluation evaluation = {.iteration = t->state.iteration,
                                            .consumed_samples = t->state.consumed_samples,
                                            .where = where,
                                            .lm_loss = loss_sum / fmax(tokens, 1)};
    metrics_evaluation(t->metrics, &evaluation);
    return 0;
}

/* ---- saving and stopping ---- */

static int save(struct trainer *t) {
    struct err err;
    uint64_t begin = clock_now_ns();
    if (!t->cfg->save || t->last_saved_iteration == t->state.iteration) return 0;
    if (state_save(t, &err)) {
        log_error("saving iteration %lld failed: %s; the last good checkpoint is untouched",
                  (long long)t->state.iteration, err.text);
        return -1;
    }
    double seconds = clock_seconds_since(begin);
    timers_add_seconds(t->timers, t->timer_save, seconds);
    log_info("saved iteration %lld to %s in %.2f s", (long long)t->state.iteration, t->cfg->save, seconds);
    return 0;
}

/* Why the run should stop after this iteration, or NULL. */
static const char *stop_reason(const struct trainer *t) {
    const struct config *cfg = t->cfg;
    if (signals_received()) return "signal";
    if (config_is_set(cfg, exit_duration_in_mins) &&
        clock_minutes_passed(t->start_ns, fmax((double)cfg->exit_duration_in_mins, 1e-9)))
        return "--exit-duration-in-mins";
    if (config_is_set(cfg, exit_interval) && t->state.iteration % cfg->exit_interval == 0)
        return "--exit-interval";
    return NULL;
}

static bool is_skipped_iteration(const struct trainer *t) {
    for (int64_t i = 0; i < t->cfg->iterations_to_skip.count; i++)
        if (t->cfg->iterations_to_skip.items[i] == t->state.iteration + 1) return true;
    return false;
}

static bool eval_is_due(const struct trainer *t) {
    const struct config *cfg = t->cfg;
    return t->valid_loader && cfg->eval_iters > 0 && config_is_set(cfg, eval_interval) &&
           t->state.iteration % cfg->eval_interval == 0 &&
           (!config_is_set(cfg, start_eval_at_iter) || t->state.iteration >= cfg->start_eval_at_iter);
}

static void abort_on_nan(struct trainer *t, const struct step_result *r, int64_t batch_size) {
    struct str where = {0};
    step_diagnose(t, batch_size, &where);
    die(STATUS_FAILED,
        "iteration %lld: lm loss %g, gradient norm %g: not finite%s. The weights and the last checkpoint are "
        "unchanged; "
        "resume with a lower --lr, or with --on-nan skip",
        (long long)t->state.iteration + 1, r->lm_loss, r->grad_norm, where.data ? where.data : "");
}

/* ---- tracing ---- */

static int trace_switch(struct trainer *t, struct err *err) {
    const struct config *cfg = t->cfg;
    if (!cfg->profile) return 0;
    if (t->state.iteration == cfg->profile_step_start && !t->trace) {
        t->trace = trace_open(cfg->profile_trace_file, 0, 1u << 22, err);
        if (!t->trace) return -1;
        trace_name_track(t->trace, 0, "compute");
    }
    if (t->state.iteration == cfg->profile_step_end && t->trace) {
        trace_close(t->trace);
        t->trace = NULL;
        log_info("wrote the trace of iterations %lld to %lld to %s", (long long)cfg->profile_step_start,
                 (long long)cfg->profile_step_end - 1, cfg->profile_trace_file);
    }
    t->executor.trace = t->trace;
    return 0;
}

/* ---- the loop ---- */

static int skip_iteration(struct trainer *t, int64_t batch_size) { /* data is consumed, nothing is trained */
    struct train_state *s = &t->state;
    s->iteration++;
    s->consumed_samples += batch_size;
    s->skipped_samples += batch_size;
    loader_seek(t->train_loader, s->consumed_samples);
    return 0;
}

static int train_iteration(struct trainer *t, int64_t batch_size, struct err *err) {
    struct train_state *s = &t->state;
    struct step_result r;
    uint64_t begin = clock_now_ns();
    if (step_run(t, batch_size, &r, err)) return BAD_INPUT;
    if (r.not_finite && t->cfg->on_nan == ON_NAN_ABORT) abort_on_nan(t, &r, batch_size);
    s->iteration++;
    s->consumed_samples += batch_size;
    s->skipped_iterations += r.skipped;
    s->nan_iterations += r.not_finite;
    report_iteration(t, &r, batch_size, clock_seconds_since(begin));
    return 0;
}

static int train(struct trainer *t, struct err *err) {
    const struct config *cfg = t->cfg;
    while (t->state.iteration < cfg->train_iters) {
        int64_t batch_size = config_batch_size_at(cfg, t->state.consumed_samples);
        if (trace_switch(t, err)) return FAILED;
        int status =
            is_skipped_iteration(t) ? skip_iteration(t, batch_size) : train_iteration(t, batch_size, err);
        if (status == GO_ON && eval_is_due(t)) status = evaluate(t, t->valid_loader, NULL, err);
        if (status != GO_ON) return status;
        const char *stop = stop_reason(t);
        bool save_due = config_is_set(cfg, save_interval) && t->state.iteration % cfg->save_interval == 0;
        if ((save_due || stop) && save(t)) return FAILED;
        if (stop) {
            log_info("stopped after iteration %lld: %s", (long long)t->state.iteration, stop);
            return STOP;
        }
    }
    return GO_ON;
}

static int final_evaluations(struct trainer *t, struct err *err) {
    int status = GO_ON;
    if (t->cfg->eval_iters <= 0) return GO_ON;
    if (t->valid_loader) status = evaluate(t, t->valid_loader, "validation set", err);
    if (status == GO_ON && t->test_loader) status = evaluate(t, t->test_loader, "test set", err);
    return status;
}

int trainer_run(struct trainer *t) {
    struct err err = {{0}};
    int status = t->cfg->skip_train ? GO_ON : train(t, &err);
    if (status == GO_ON && !t->cfg->skip_train && save(t)) status = FAILED;
    if (status == GO_ON) status = final_evaluations(t, &err);
    if (err.text[0]) log_error("%s", err.text);
    return status == BAD_INPUT ? STATUS_USAGE : status == FAILED ? STATUS_FAILED : STATUS_OK;
}
