/* One iteration: walk the schedule's actions over the micro-batches, then update the weights. */
#include "core/train/trainer.h"
#include <math.h>

static double tokens_that_count(const struct batch *b) {
    double n = 0;
    for (int64_t i = 0; i < b->micro_batch_size * b->seq_length; i++) n += (double)b->loss_mask[i];
    return n;
}

/* Megatron-LM: the loss of a micro-batch is the sum over its tokens divided by their number, and the step's
 * loss is the mean over micro-batches; with --calculate-per-token-loss the sum is divided once, by all tokens
 * of the step. */
static float loss_grad_scale(const struct trainer *t, double tokens, int micro_batches) {
    double scale = t->state.loss_scale.scale;
    if (t->cfg->calculate_per_token_loss) return (float)scale;
    return (float)(scale / (fmax(tokens, 1) * micro_batches));
}

static struct micro_batch micro_of(const struct batch *b, int index, float grad_scale, bool training) {
    return (struct micro_batch){.tokens = b->tokens,
                                .labels = b->labels,
                                .positions = b->position_ids,
                                .loss_mask = b->loss_mask,
                                .loss_grad_scale = grad_scale,
                                .index = index,
                                .training = training};
}

/* Forward and backward of all micro-batches. The loader's view is copied into the arena by the forward, so
 * backward needs only the micro-batch's number and scale. */
static int run_micro_batches(struct trainer *t, int micro_batches, double *tokens_p, struct err *err) {
    struct executor *e = &t->executor;
    struct schedule_shape shape = {1, 0, 1, micro_batches};
    const struct action *actions =
        t->setup.plan.actions; /* of the largest step; a shorter one is its beginning */
    struct micro_batch current = {0};
    *tokens_p = 0;
    for (int i = 0; i < schedule_num_actions(&shape); i++) {
        if (actions[i].kind == ACTION_FORWARD) {
            struct batch batch;
            timers_start(t->timers, t->timer_data);
            if (loader_next(t->train_loader, &batch, err)) return -1;
            timers_stop(t->timers, t->timer_data);
            double tokens = tokens_that_count(&batch);
            *tokens_p += tokens;
            current =
                micro_of(&batch, actions[i].micro_batch, loss_grad_scale(t, tokens, micro_batches), true);
        }
        executor_run(e, &actions[i], &current);
    }
    return 0;
}

/* With a dynamic loss scale, overflowing gradients are part of the method and only skip the update. */
static bool is_broken(const struct trainer *t, const struct step_result *r, int64_t bad_grads) {
    if (!t->cfg->check_for_nan_in_loss_and_grad || t->cfg->dynamic_loss_scale) return false;
    return !isfinite(r->lm_loss) || bad_grads != 0 || !isfinite(r->grad_norm);
}

static void update_weights(struct trainer *t, double inverse_scale, struct step_result *out) {
    const struct config *cfg = t->cfg;
    double clip = 1, samples = (double)t->state.scheduled_samples;
    if (cfg->clip_grad > 0) clip = cfg->clip_grad / (out->grad_norm + 1e-6);
    if (clip > 1) clip = 1;
    double rate = lr_schedule_at(&t->lr, samples);
    struct update_options options = {
        .step = ++t->state.optimizer_steps,
        .learning_rate = rate,
        .embedding_learning_rate = t->has_decoupled_lr ? lr_schedule_at(&t->decoupled_lr, samples) : rate,
        .weight_decay = wd_schedule_at(&t->wd, samples),
        .beta1 = cfg->adam_beta1,
        .beta2 = cfg->adam_beta2,
        .epsilon = cfg->adam_eps,
        .grad_scale = (float)(clip * inverse_scale),
        .decay_qk_norm = cfg->apply_wd_to_qk_layernorm,
    };
    update_apply(&t->executor, &options);
}

static void trace_phase(const struct trainer *t, const char *name, uint64_t begin_ns) {
    if (t->executor.trace)
        trace_span(t->executor.trace, &(struct trace_event){.name = name,
                                                            .category = "optimizer",
                                                            .begin_ns = begin_ns,
                                                            .end_ns = clock_now_ns()});
}

int step_run(struct trainer *t, int64_t batch_size, struct step_result *out, struct err *err) {
    const struct config *cfg = t->cfg;
    struct train_state *state = &t->state;
    double tokens, scale = state->loss_scale.scale;
    int64_t bad;
    *out = (struct step_result){.micro_batches = (int)(batch_size / cfg->micro_batch_size),
                                .tokens = batch_size * cfg->seq_length,
                                .num_zeros = -1,
                                .params_norm = -1};
    executor_begin_step(&t->executor, state->iteration);
    timers_start(t->timers, t->timer_step);
    if (run_micro_batches(t, out->micro_batches, &tokens, err)) return -1;
    timers_stop(t->timers, t->timer_step);
    timers_start(t->timers, t->timer_optimizer);
    double inverse_scale = 1 / scale / (cfg->calculate_per_token_loss ? fmax(tokens, 1) : 1);
    out->lm_loss = t->executor.loss_sum / fmax(tokens, 1);
    uint64_t begin = clock_now_ns();
    out->grad_norm = update_grad_norm(&t->executor, &bad) * inverse_scale;
    trace_phase(t, "gradient_norm", begin);
    if (cfg->log_num_zeros_in_grad) out->num_zeros = update_count_zeros(&t->executor);
    out->not_finite = is_broken(t, out, bad);
    bool found_inf = bad != 0 || !isfinite(out->grad_norm);
    out->skipped = loss_scale_update(&state->loss_scale, found_inf) || out->not_finite;
    if (!out->skipped) {
        begin = clock_now_ns();
        update_weights(t, inverse_scale, out);
        trace_phase(t, "adamw_and_packing", begin);
        state->scheduled_samples += batch_size;
    }
    if (cfg->log_params_norm) out->params_norm = update_params_norm(&t->executor);
    out->learning_rate = lr_schedule_at(&t->lr, (double)state->scheduled_samples);
    timers_stop(t->timers, t->timer_optimizer);
    return 0;
}

int step_evaluate(struct trainer *t, struct loader *loader, int64_t batch_size, double *loss_sum_p,
                  double *tokens_p, struct err *err) {
    struct executor *e = &t->executor;
    executor_begin_step(e, t->state.iteration);
    for (int64_t m = 0; m < batch_size / t->cfg->micro_batch_size; m++) {
        struct batch batch;
        struct action forward = {ACTION_FORWARD, 0, (int)m, 0};
        if (loader_next(loader, &batch, err)) return -1;
        *tokens_p += tokens_that_count(&batch);
        struct micro_batch micro = micro_of(&batch, (int)m, 1, false);
        executor_run(e, &forward, &micro);
    }
    *loss_sum_p += e->loss_sum;
    return 0;
}

void step_diagnose(struct trainer *t, int64_t batch_size, struct str *out) {
    struct executor *e = &t->executor;
    struct err err;
    double tokens;
    static const char *const phases[PHASE_COUNT] = {"forward", "recompute", "backward"};
    loader_seek(t->train_loader, t->state.consumed_samples);
    executor_begin_step(e, t->state.iteration);
    e->check_finite = true;
    if (run_micro_batches(t, (int)(batch_size / t->cfg->micro_batch_size), &tokens, &err))
        str_printf(out, "; repeating the step to find the tensor failed: %s", err.text);
    else if (!e->bad.found)
        str_puts(out, "; every activation and activation gradient is finite: a weight gradient overflowed");
    else if (e->bad.layer >= 0)
        str_printf(out, "; the first bad tensor is %s%s of op %s in layer %d, micro-batch %d, in %s",
                   e->bad.is_gradient ? "the gradient of " : "", e->bad.tensor, e->bad.op, e->bad.layer,
                   e->bad.micro_batch, phases[e->bad.phase]);
    else
        str_printf(out, "; the first bad tensor is %s%s of op %s, micro-batch %d, in %s",
                   e->bad.is_gradient ? "the gradient of " : "", e->bad.tensor, e->bad.op, e->bad.micro_batch,
                   phases[e->bad.phase]);
    e->check_finite = false;
}
