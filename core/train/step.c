/* One iteration: walk this rank's list of actions over the micro-batches, put gradients, loss and token
 * counts of all ranks together, then update the weights. */
#include "core/train/trainer.h"
#include "core/train/memory_timeline.h"
#include "core/train/routers.h"
#include "core/train/sync.h"
#include <math.h>
#include <string.h>

/* Of the labels `depth` places on. */
static double tokens_that_count(const struct batch *b, int64_t depth) {
    double n = 0;
    for (int64_t i = 0; i < b->micro_batch_size * b->seq_length; i++)
        if (i % b->seq_length >= depth) n += (double)b->loss_mask[i];
    return n;
}

/* Megatron-LM: the loss of a micro-batch is the sum over its tokens divided by their number, and the step's
 * loss is the mean over micro-batches of all data-parallel ranks; with --calculate-per-token-loss the sum is
 * divided once, by all tokens of the step. */
static float loss_grad_scale(const struct trainer *t, double tokens, int micro_batches) {
    double scale = t->state.loss_scale.scale;
    if (t->cfg->calculate_per_token_loss) return (float)scale;
    return (float)(scale / (fmax(tokens, 1) * micro_batches * (double)t->cfg->data_parallel_size));
}

/* The routers' losses are means over a micro-batch, and the step's are means over micro-batches. */
static float aux_grad_scale(const struct trainer *t, int micro_batches) {
    double scale = t->state.loss_scale.scale;
    if (t->cfg->calculate_per_token_loss)
        return (float)(scale * (double)(t->cfg->micro_batch_size * t->cfg->seq_length));
    return (float)(scale / (micro_batches * (double)t->cfg->data_parallel_size));
}

static int data_rank(const struct trainer *t) {
    return t->ranks ? t->ranks->mesh.dp : 0;
}

/* Whether this rank reports the tokens of its micro-batches: one of those that see the same sequences. */
static bool counts_tokens(const struct trainer *t) {
    const struct model *m = &t->setup.plan.request.model;
    return m->tp_rank == 0 && m->cp_rank == 0;
}

/* The losses of multi-token prediction: each depth's mean over its own tokens, times the factor over the
 * number of depths, beside the mean of the next token. */
static void set_mtp_scales(const struct trainer *t, const struct batch *b, double tokens,
                           struct micro_batch *out) {
    int64_t depths = t->setup.plan.request.model.mtp_layers;
    double factor = depths ? t->cfg->mtp_loss_scaling_factor / (double)depths : 0;
    for (int64_t k = 0; k < depths; k++)
        out->mtp_grad_scale[k] = (float)((double)out->loss_grad_scale * factor * fmax(tokens, 1) /
                                         fmax(tokens_that_count(b, k + 1), 1));
}

/* The micro-batch of a forward action. Stages in the middle read no data; the index names the random numbers
 * and is that of the micro-batch in the global batch, whatever the layout. */
static int next_micro_batch(struct trainer *t, struct loader *loader, const struct action *a, bool training,
                            int micro_batches, struct micro_batch *out, double *tokens_p, struct err *err) {
    const struct plan_chunk *chunk = &t->setup.plan.chunks[a->chunk];
    *out = (struct micro_batch){.index = a->micro_batch * (int)t->cfg->data_parallel_size + data_rank(t),
                                .loss_grad_scale = 1,
                                .training = training};
    if (training) out->aux_grad_scale = aux_grad_scale(t, micro_batches);
    if (!chunk->embedding && !chunk->head) return 0;
    struct batch batch;
    timers_start(t->timers, t->timer_data);
    if (loader_next(loader, &batch, err)) return -1;
    timers_stop(t->timers, t->timer_data);
    double tokens = tokens_that_count(&batch, 0);
    int64_t depths = t->setup.plan.request.model.mtp_layers;
    if (chunk->head && counts_tokens(t)) {
        *tokens_p += tokens;
        for (int64_t k = 0; k < depths; k++) t->mtp_tokens[k] += tokens_that_count(&batch, k + 1);
    }
    out->tokens = batch.tokens;
    out->labels = batch.labels;
    out->positions = batch.position_ids;
    out->loss_mask = batch.loss_mask;
    if (!training) return 0;
    out->loss_grad_scale = loss_grad_scale(t, tokens, micro_batches);
    set_mtp_scales(t, &batch, tokens, out);
    return 0;
}

static void note_action(struct trainer *t, const struct action *a) {
    static const char *const names[ACTION_KIND_COUNT] = {"forward",
                                                         "backward",
                                                         "weight gradients",
                                                         "receive before forward",
                                                         "receive before backward",
                                                         "send after forward",
                                                         "send after backward",
                                                         "wait for a send after forward",
                                                         "wait for a send after backward"};
    if (t->ranks)
        comm_world_note(t->ranks->world, "iteration %lld, %s of micro-batch %d",
                        (long long)t->state.iteration + 1, names[a->kind], a->micro_batch);
}

static int run_actions(struct trainer *t, struct loader *loader, const struct schedule_list *list,
                       bool training, int micro_batches, double *tokens_p, struct err *err) {
    for (int i = 0; i < list->count; i++) {
        const struct action *a = &list->actions[i];
        struct micro_batch micro;
        note_action(t, a);
        if (a->kind == ACTION_FORWARD &&
            next_micro_batch(t, loader, a, training, micro_batches, &micro, tokens_p, err))
            return -1;
        executor_run(&t->executor, a, &micro);
    }
    return 0;
}

/* The masked loss sum and the number of tokens, over all ranks. Ranks of one tensor-parallel group have the
 * same sum: the first one tells it. */
static void sum_losses(const struct trainer *t, double *loss_sum_p, double *tokens_p) {
    double sums[2] = {t->setup.plan.request.model.tp_rank == 0 ? *loss_sum_p : 0, *tokens_p};
    if (t->ranks) comm_all_reduce(t->ranks->comms.world, sums, 2, COMM_F64, COMM_SUM);
    *loss_sum_p = sums[0];
    *tokens_p = sums[1];
}

/* Means over the tokens that count, of each depth. */
static void sum_mtp_losses(struct trainer *t) {
    int depths = (int)t->setup.plan.request.model.mtp_layers;
    for (int k = 0; k < depths; k++) {
        sum_losses(t, &t->executor.mtp_loss_sum[k], &t->mtp_tokens[k]);
        t->mtp_loss[k] = t->executor.mtp_loss_sum[k] / fmax(t->mtp_tokens[k], 1);
    }
}

/* Of all layers and micro-batches on all ranks: means per layer and micro-batch. */
static void sum_router_losses(struct trainer *t, int micro_batches) {
    struct router_losses *l = &t->executor.router_losses;
    double sums[2] = {l->balance, l->z};
    double layers = (double)model_num_moe_layers(&t->setup.plan.request.model);
    double count = layers * micro_batches * (double)t->cfg->data_parallel_size;
    if (layers == 0) return;
    if (t->ranks) comm_all_reduce(t->ranks->comms.world, sums, 2, COMM_F64, COMM_SUM);
    l->balance = sums[0] / count;
    l->z = sums[1] / count;
    if (!t->layer_losses) return;
    routers_sum_layers(&t->executor, t->layer_losses, t->num_layer_losses);
    for (int64_t i = 0; i < t->num_layer_losses; i++) {
        t->layer_losses[i].balance *= layers / count;
        t->layer_losses[i].z *= layers / count;
    }
}

/* Forward and backward of all micro-batches, and the reduction of the gradients. */
static int run_micro_batches(struct trainer *t, int micro_batches, double *tokens_p, struct err *err) {
    *tokens_p = 0;
    memset(t->mtp_tokens, 0, sizeof(t->mtp_tokens));
    if (run_actions(t, t->train_loader, plan_actions(&t->setup.plan, micro_batches), true, micro_batches,
                    tokens_p, err))
        return -1;
    sync_finish_grads(&t->executor);
    sum_losses(t, &t->executor.loss_sum, tokens_p);
    sum_mtp_losses(t);
    sum_router_losses(t, micro_batches);
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
    *out = (struct step_result){.micro_batches =
                                    (int)(batch_size / cfg->micro_batch_size / cfg->data_parallel_size),
                                .tokens = batch_size * cfg->seq_length,
                                .num_zeros = -1,
                                .params_norm = -1};
    executor_begin_step(&t->executor, state->iteration);
    timers_start(t->timers, t->timer_step);
    memory_timeline_begin(t, out->micro_batches);
    if (run_micro_batches(t, out->micro_batches, &tokens, err)) return -1;
    memory_timeline_end(t);
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
    if (!out->not_finite) routers_update_biases(&t->executor, (float)cfg->moe_router_bias_update_rate);
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

int step_evaluate(struct trainer *t, struct loader *loader, double *loss_sum_p, double *tokens_p,
                  struct err *err) {
    struct executor *e = &t->executor;
    double tokens = 0;
    executor_begin_step(e, t->state.iteration);
    if (run_actions(t, loader, plan_eval_actions(&t->setup.plan), false, 0, &tokens, err)) return -1;
    sum_losses(t, &e->loss_sum, &tokens);
    *loss_sum_p += e->loss_sum;
    *tokens_p += tokens;
    return 0;
}

static void describe_bad_tensor(const struct bad_tensor *bad, int layers, struct str *out) {
    static const char *const phases[PHASE_COUNT] = {"forward", "recompute", "backward"};
    str_printf(out, "; the first bad tensor is %s%s of op %s", bad->is_gradient ? "the gradient of " : "",
               bad->tensor, bad->op);
    if (bad->layer >= layers)
        str_printf(out, " of multi-token prediction %d", bad->layer - layers + 1);
    else if (bad->layer >= 0)
        str_printf(out, " in layer %d", bad->layer);
    str_printf(out, ", micro-batch %d, in %s", bad->micro_batch, phases[bad->phase]);
}

/* The rank that met its bad tensor first: forward goes up the stages, backward down. -1 when none has one. */
static int first_bad_rank(const struct trainer *t) {
    const struct bad_tensor *bad = &t->executor.bad;
    int stages = t->ranks ? t->ranks->mesh.shape.pipeline : 1, stage = t->ranks ? t->ranks->mesh.pp : 0;
    int rank = t->ranks ? t->ranks->rank : 0, size = t->ranks ? t->ranks->size : 1;
    int order = bad->phase == PHASE_FORWARD ? stage : 2 * stages - stage;
    int64_t key = bad->found ? (int64_t)order * size + rank : INT64_MAX;
    if (t->ranks) comm_all_reduce(t->ranks->comms.world, &key, 1, COMM_I64, COMM_MIN);
    return key == INT64_MAX ? -1 : (int)(key % size);
}

void step_diagnose(struct trainer *t, int64_t batch_size, struct str *out) {
    struct executor *e = &t->executor;
    struct err err;
    double tokens;
    loader_seek(t->train_loader, t->state.consumed_samples);
    executor_begin_step(e, t->state.iteration);
    e->check_finite = true;
    int count = (int)(batch_size / t->cfg->micro_batch_size / t->cfg->data_parallel_size);
    if (run_micro_batches(t, count, &tokens, &err))
        die(STATUS_FAILED, "repeating the step to find the tensor failed: %s", err.text);
    e->check_finite = false;
    int rank = first_bad_rank(t);
    if (rank < 0) {
        str_puts(out, "; every activation and activation gradient is finite: a weight gradient overflowed");
        return;
    }
    struct err text = {{0}};
    struct str here = {0};
    if (e->bad.found) describe_bad_tensor(&e->bad, (int)t->setup.plan.request.model.layers, &here);
    if (here.data) err_set(&text, "%s", here.data);
    if (t->ranks) comm_broadcast(t->ranks->comms.world, text.text, sizeof(text.text), COMM_U8, rank);
    str_puts(out, text.text);
    if (t->ranks && t->ranks->size > 1) str_printf(out, " on rank %d", rank);
    str_free(&here);
}
