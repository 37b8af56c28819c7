/* Checkpoints of a training run: which tensors, which numbers, when to load what. */
#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/train/trainer.h"
#include <stdio.h>
#include <string.h>

static void describe_latents(const struct config *cfg, const struct model *m, struct checkpoint_model *out) {
    out->kv_channels = m->head_dim;
    out->num_query_groups = m->groups;
    out->kv_lora_rank = m->kv_rank;
    out->q_lora_rank = m->q_rank;
    out->qk_head_dim = m->plain_dim;
    out->qk_pos_emb_head_dim = m->rotary_dim;
    out->v_head_dim = m->value_dim;
    if (m->yarn_factor <= 1) return; /* plain frequencies */
    out->rope_scaling_factor = m->yarn_factor;
    out->mscale = cfg->mscale;
    out->mscale_all_dim = cfg->mscale_all_dim;
}

static void describe_experts(const struct config *cfg, const struct model *m, struct checkpoint_model *out) {
    int64_t dense = 0, layer = 0;
    while (!model_layer_is_moe(m, dense)) dense++;
    for (layer = dense; layer < m->layers && model_layer_is_moe(m, layer);) layer++;
    if (layer < m->layers)
        snprintf(out->unlike_hf, sizeof(out->unlike_hf),
                 "--moe-layer-freq with dense layers among the others");
    out->num_experts = m->moe.experts;
    out->moe_dense_layers = dense;
    out->moe_ffn_hidden_size = m->moe.ffn;
    if (!dense && layer == m->layers) out->ffn_hidden_size = m->moe.ffn; /* nothing has the other */
    out->moe_shared_ffn_size = m->moe.shared_ffn;
    out->moe_shared_gate = m->moe.shared_gate;
    out->moe_topk = m->moe.topk;
    out->moe_num_groups = m->moe.group_count;
    out->moe_group_topk = m->moe.group_topk;
    out->moe_scaling =
        config_is_set(cfg, moe_router_topk_scaling_factor) ? cfg->moe_router_topk_scaling_factor : 1;
    out->moe_score = m->moe.score == ROUTER_SOFTMAX   ? CHECKPOINT_SOFTMAX
                     : m->moe.score == ROUTER_SIGMOID ? CHECKPOINT_SIGMOID
                                                      : CHECKPOINT_SQRTSOFTPLUS;
    out->moe_expert_bias = m->moe.expert_bias;
    out->moe_pre_softmax = m->moe.pre_softmax;
}

static struct checkpoint_model model_of(const struct trainer *t) {
    const struct config *cfg = t->cfg;
    static const enum checkpoint_activation activations[] = {
        [ACTIVATION_GELU_TANH] = CHECKPOINT_GELU_TANH,       [ACTIVATION_GELU_ERF] = CHECKPOINT_GELU,
        [ACTIVATION_SQUARED_RELU] = CHECKPOINT_SQUARED_RELU, [ACTIVATION_SWIGLU] = CHECKPOINT_SILU,
        [ACTIVATION_GEGLU_QUICK] = CHECKPOINT_QUICK_GELU,    [ACTIVATION_GEGLU] = CHECKPOINT_GELU,
    };
    const struct model *m = &t->setup.plan.request.model;
    struct checkpoint_model out = {
        .num_layers = cfg->num_layers,
        .hidden_size = cfg->hidden_size,
        .ffn_hidden_size = cfg->ffn_hidden_size,
        .num_attention_heads = cfg->num_attention_heads,
        .num_query_groups = cfg->num_query_groups,
        .kv_channels = cfg->kv_channels,
        .vocab_size = t->setup.vocab_size,
        .padded_vocab_size = t->setup.padded_vocab_size,
        .max_position_embeddings = cfg->max_position_embeddings,
        .position = m->learned_positions ? CHECKPOINT_POSITION_LEARNED
                    : m->rotary_dim      ? CHECKPOINT_POSITION_ROPE
                                         : CHECKPOINT_POSITION_NONE,
        .activation = activations[m->activation],
        .gated = activation_is_gated(m->activation),
        .linear_bias = m->linear_bias,
        .qkv_bias = m->qkv_bias,
        .qk_norm = m->qk_norm,
        .rms_norm = m->rms,
        .zero_centered_norm = m->zero_centered,
        .tied = m->tied,
        .rotary_interleaved = m->rotary_interleaved,
        .rotary_base = m->rotary_base,
        .rotary_percent = cfg->rotary_percent,
        .rope_scaling_factor = m->rope_scaling_factor,
        .norm_epsilon = cfg->layernorm_epsilon,
        .mtp_layers = m->mtp_layers,
        .hidden_dropout = cfg->hidden_dropout,
        .attention_dropout = cfg->attention_dropout,
    };
    if (model_has_latents(m)) describe_latents(cfg, m, &out);
    if (m->moe.experts) describe_experts(cfg, m, &out);
    if (m->rotary_interpolation > 1)
        snprintf(out.unlike_hf, sizeof(out.unlike_hf), "--rotary-seq-len-interpolation-factor");
    return out;
}

/* Which rows of the whole tensor the parameter's rows are. */
static void set_rows(struct checkpoint_tensor *c, const struct plan_param *p) {
    const struct param_shard *s = &p->shard;
    int64_t of_group = s->full_groups ? s->full[0] / s->full_groups : 0;
    for (int i = 0; i < s->num_runs; i++)
        c->rows[i] = (struct checkpoint_row_run){s->runs[i].first, s->runs[i].count};
    if (!s->num_runs) { /* whole groups follow one another */
        c->rows[0] = (struct checkpoint_row_run){s->first_group * of_group, p->dims[0]};
    } else if (s->full_groups) {
        c->num_groups = p->groups;
        c->first_group = s->first_group;
        c->group_rows = of_group;
    }
}

/* The held elements of one parameter, from the first on: those that this rank saves, then replicas of others.
 */
static void list_part(struct trainer *t, const struct plan_param *p, int64_t first, int64_t count,
                      bool writes, bool with_optimizer) {
    struct checkpoint_tensor c = {.name = p->name,
                                  .num_dims = p->num_dims,
                                  .dims = {p->shard.full[0], p->shard.full[1]},
                                  .first_col = p->shard.first_col,
                                  .num_cols = p->dims[1],
                                  .begin = p->held_begin + first,
                                  .end = p->held_begin + first + count,
                                  .writes = writes};
    size_t skip = (size_t)first * sizeof(float);
    set_rows(&c, p);
    c.master = executor_at(&t->executor, p->master + skip);
    if (with_optimizer) {
        c.exp_avg = executor_at(&t->executor, p->exp_avg + skip);
        c.exp_avg_sq = executor_at(&t->executor, p->exp_avg_sq + skip);
    }
    if (count > 0) t->tensors[t->num_tensors++] = c;
}

/* The expert bias: every rank of the stage has all of it. */
static void list_router(struct trainer *t, int router) {
    const struct plan_router *r = &t->setup.plan.routers[router];
    float *bias = t->executor.routers[router].bias;
    struct checkpoint_tensor c = {
        .name = r->name, .num_dims = 1, .dims = {r->experts, 1}, .master = bias, .is_state = true};
    checkpoint_tensor_set_whole(&c);
    c.writes = r->writes;
    if (bias) t->tensors[t->num_tensors++] = c;
}

static int list_tensors(struct trainer *t, bool with_optimizer) {
    const struct plan *plan = &t->setup.plan;
    t->num_tensors = 0;
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        list_part(t, p, 0, p->counted, true, with_optimizer);
        list_part(t, p, p->counted, p->held_count - p->counted, false, with_optimizer);
    }
    for (int i = 0; i < plan->num_routers; i++) list_router(t, i);
    return t->num_tensors;
}

static struct checkpoint_group group_of(const struct trainer *t) {
    bool alone = !t->ranks || t->ranks->size == 1;
    return (struct checkpoint_group){alone ? NULL : t->ranks->comms.world, t->shapes, t->num_shapes};
}

void state_open(struct trainer *t) {
    const struct plan *plan = &t->setup.plan;
    struct plan_tensor *all;
    t->tensors =
        mem_new_array(struct checkpoint_tensor, 2 * (size_t)plan->num_params + (size_t)plan->num_routers,
                      "checkpoint tensors");
    t->num_shapes = plan_all_tensors(&plan->request.model, &all);
    t->shapes = mem_new_array(struct checkpoint_shape, (size_t)t->num_shapes, "checkpoint shapes");
    for (int i = 0; i < t->num_shapes; i++)
        t->shapes[i] = (struct checkpoint_shape){
            all[i].name, all[i].num_dims, {all[i].dims[0], all[i].dims[1]}, all[i].is_state};
    mem_free(all);
    if (!t->cfg->async_save || !t->cfg->save) return;
    int count = list_tensors(t, !t->cfg->no_save_optim && !t->cfg->skip_train);
    t->async = checkpoint_async_open(checkpoint_async_bytes(t->tensors, count));
}

void state_close(struct trainer *t) {
    checkpoint_async_close(t->async);
    for (int i = 0; i < t->num_shapes; i++) mem_free((void *)(uintptr_t)t->shapes[i].name);
    mem_free(t->shapes);
    mem_free(t->tensors);
}

static void from_checkpoint(struct trainer *t, const struct checkpoint_state *c) {
    struct train_state *s = &t->state;
    s->iteration = c->iteration;
    s->consumed_samples = c->consumed_train_samples;
    s->consumed_valid_samples = c->consumed_valid_samples;
    s->skipped_iterations = c->skipped_iterations;
    s->optimizer_steps = c->optimizer_steps;
    s->skipped_samples = (int64_t)checkpoint_get_extra(c, "skipped_samples", 0);
    s->nan_iterations = (int64_t)checkpoint_get_extra(c, "nan_iterations", 0);
    s->scheduled_samples =
        (int64_t)checkpoint_get_extra(c, "scheduled_samples", (double)c->consumed_train_samples);
    if (s->loss_scale.dynamic && c->loss_scale > 0) {
        s->loss_scale.scale = c->loss_scale;
        s->loss_scale.growth_counter = c->loss_scale_growth;
        s->loss_scale.hysteresis_counter = c->loss_scale_hysteresis;
    }
}

static int load_from(struct trainer *t, const char *dir, bool weights_only, struct err *err) {
    const struct config *cfg = t->cfg;
    struct checkpoint_state state = {0};
    struct checkpoint_model model = model_of(t);
    bool no_optimizer = weights_only || cfg->no_load_optim || cfg->skip_train;
    struct checkpoint_load_options options = {.group = group_of(t),
                                              .step = config_is_set(cfg, ckpt_step) ? cfg->ckpt_step : 0,
                                              .no_optimizer = no_optimizer,
                                              .finetune = weights_only};
    int count = list_tensors(t, !no_optimizer);
    if (checkpoint_load(dir, &options, &model, t->tensors, count, &state, err)) return -1;
    if (weights_only) return 0;
    if (!cfg->no_load_rng && state.iteration > 0 && state.seed != (uint64_t)cfg->seed)
        return err_set(
            err,
            "--seed %lld: the checkpoint in %s was trained with --seed %llu; data order and dropout would "
            "change. Use that seed, or --no-load-rng",
            (long long)cfg->seed, dir, (unsigned long long)state.seed);
    from_checkpoint(t, &state);
    return 0;
}

int state_load(struct trainer *t, struct err *err) {
    const struct config *cfg = t->cfg;
    struct checkpoint_info info = {0};
    int status = 0;
    if (cfg->load && checkpoint_find_together(group_of(t).world, cfg->load,
                                              config_is_set(cfg, ckpt_step) ? cfg->ckpt_step : 0, &info, err))
        return -1;
    if (info.found) {
        status = load_from(t, cfg->load, cfg->finetune, err);
        if (!status)
            log_info("loaded a checkpoint of %s at iteration %lld", cfg->load, (long long)t->state.iteration);
    } else if (cfg->load && cfg->exit_on_missing_checkpoint) {
        status =
            err_set(err, "--load %s: there is no checkpoint there, and --exit-on-missing-checkpoint is given",
                    cfg->load);
    } else if (cfg->pretrained_checkpoint) {
        status = load_from(t, cfg->pretrained_checkpoint, true, err);
        if (!status) log_info("loaded weights from %s", cfg->pretrained_checkpoint);
    } else if (cfg->load) {
        log_info("--load %s: no checkpoint there yet, starting from initial weights", cfg->load);
    }
    checkpoint_info_free(&info);
    return status;
}

int state_save(struct trainer *t, struct err *err) {
    const struct config *cfg = t->cfg;
    const struct train_state *s = &t->state;
    struct checkpoint_model model = model_of(t);
    struct checkpoint_state state = {.iteration = s->iteration,
                                     .consumed_train_samples = s->consumed_samples,
                                     .consumed_valid_samples = s->consumed_valid_samples,
                                     .skipped_iterations = s->skipped_iterations,
                                     .optimizer_steps = s->optimizer_steps,
                                     .seed = cfg->no_save_rng ? 0 : (uint64_t)cfg->seed,
                                     .loss_scale = s->loss_scale.scale,
                                     .loss_scale_growth = s->loss_scale.growth_counter,
                                     .loss_scale_hysteresis = s->loss_scale.hysteresis_counter};
    struct checkpoint_save_options options = {
        .group = group_of(t),
        .no_optimizer = cfg->no_save_optim,
        .retain_interval = config_is_set(cfg, save_retain_interval) ? cfg->save_retain_interval : 0};
    checkpoint_set_extra(&state, "skipped_samples", (double)s->skipped_samples);
    checkpoint_set_extra(&state, "nan_iterations", (double)s->nan_iterations);
    checkpoint_set_extra(&state, "scheduled_samples", (double)s->scheduled_samples);
    if (t->setup.tokenizer) checkpoint_set_extra(&state, "eod_id", (double)tokenizer_eod(t->setup.tokenizer));
    if (state_finish(t, err)) return -1;
    int count = list_tensors(t, !cfg->no_save_optim);
    int status = t->async ? checkpoint_async_begin(t->async, cfg->save, &options, &model, t->tensors, count,
                                                   &state, t->config_json.data, err)
                          : checkpoint_save(cfg->save, &options, &model, t->tensors, count, &state,
                                            t->config_json.data, err);
    if (status) return -1;
    t->saving = t->async != NULL;
    t->last_saved_iteration = s->iteration;
    return 0;
}

int state_finish(struct trainer *t, struct err *err) {
    if (!t->saving) return 0;
    t->saving = false;
    int64_t iteration = checkpoint_async_iteration(t->async);
    if (checkpoint_async_finish(t->async, err)) {
        t->last_saved_iteration = -1;
        return -1;
    }
    log_info("the checkpoint of iteration %lld is complete", (long long)iteration);
    return 0;
}

int state_poll(struct trainer *t, struct err *err) {
    if (!t->saving) return 0;
    bool writing = checkpoint_async_poll(t->async) == CHECKPOINT_WRITING;
    return ranks_max(t->ranks, writing) > 0 ? 0 : state_finish(t, err);
}
