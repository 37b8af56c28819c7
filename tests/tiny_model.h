#pragma once
/* A tiny model trained without flags or data files: what the invariant tests run. One step = forward and
 * backward of a few micro-batches of made-up tokens; the gradients, the loss and the bytes can then be
 * compared. */
#include "core/base/mem.h"
#include "core/train/executor.h"
#include "core/train/update.h"
#include "tests/test.h"

struct tiny {
    struct plan plan;
    struct arena arena;
    struct executor executor;
    struct threads *threads;
};

static inline struct model tiny_gpt(void) {
    return (struct model){.layers = 3,
                          .hidden = 32,
                          .heads = 4,
                          .groups = 4,
                          .head_dim = 8,
                          .ffn = 96,
                          .seq = 12,
                          .micro_batch = 2,
                          .vocab = 64,
                          .max_positions = 16,
                          .dtype = DTYPE_F32,
                          .norm_epsilon = 1e-5f,
                          .learned_positions = true,
                          .flash = true,
                          .rotary_interpolation = 1,
                          .linear_bias = true,
                          .qkv_bias = true,
                          .tied = true,
                          .activation = ACTIVATION_GELU_TANH,
                          .init_std = 0.1f,
                          .output_init_std = 0.05f,
                          .embedding_init_std = 0.1f,
                          .hidden_dropout = 0.1f,
                          .attention_dropout = 0.1f,
                          .loss_chunk = 10};
}

static inline struct model tiny_llama(void) {
    struct model m = tiny_gpt();
    m.groups = 2;
    m.rms = m.qk_norm = true;
    m.learned_positions = m.linear_bias = m.qkv_bias = m.tied = false;
    m.rotary_dim = 8;
    m.rotary_base = 10000;
    m.activation = ACTIVATION_SWIGLU;
    m.fused_loss = true;
    return m;
}

/* One dense layer, then experts: shared experts with a gate, softmax over the chosen, both router losses. */
static inline struct model tiny_moe(void) {
    struct model m = tiny_llama();
    m.moe.experts = 6;
    m.moe.topk = 2;
    m.moe.ffn = 40;
    m.moe.shared_ffn = 24;
    m.moe.shared_gate = true;
    m.moe.pattern = "011111111";
    m.moe.balance_coeff = 0.05f;
    m.moe.z_coeff = 0.02f;
    return m;
}

/* As DeepSeek's: sigmoid scores, groups, scaling, the balance of each sequence, no gate. */
static inline struct model tiny_moe_sigmoid(void) {
    struct model m = tiny_moe();
    m.moe.experts = 8;
    m.moe.topk = 4;
    m.moe.group_count = 4;
    m.moe.group_topk = 2;
    m.moe.score = ROUTER_SIGMOID;
    m.moe.scaling = 2.5f;
    m.moe.balance_by_sequence = true;
    m.moe.shared_gate = false;
    m.moe.z_coeff = 0;
    return m;
}

/* Everything that the router can do beside: choices by score and bias, a capacity that drops some of them,
 * jitter, the balance of the whole batch. */
static inline struct model tiny_moe_limited(void) {
    struct model m = tiny_moe();
    m.moe.score = ROUTER_SQRTSOFTPLUS;
    m.moe.expert_bias = true;
    m.moe.capacity_factor = 0.8;
    m.moe.jitter = 0.2f;
    m.moe.balance_globally = true;
    return m;
}

/* The same with rows that stand for nothing, drops by position and random choices. */
static inline struct model tiny_moe_padded(void) {
    struct model m = tiny_moe_sigmoid();
    m.moe.expert_bias = true;
    m.moe.capacity_factor = 1.3;
    m.moe.drops_by_position = m.moe.pads_to_capacity = true;
    m.moe.random_logits = true;
    return m;
}

/* Multi-latent attention with YaRN, whose three ranges of frequencies (kept, blended, stretched) all occur.
 */
static inline struct model tiny_mla(void) {
    struct model m = tiny_llama();
    m.groups = m.heads;
    m.plain_dim = 6, m.rotary_dim = 8, m.head_dim = 14, m.value_dim = 10;
    m.kv_rank = 12, m.q_rank = 20;
    m.yarn_factor = 40, m.yarn_mscale = 1, m.yarn_mscale_all_dim = 0.5;
    return m;
}

/* Two depths of multi-token prediction, whose layers are of the kind of the last one. */
static inline struct model tiny_mtp(void) {
    struct model m = tiny_llama();
    m.mtp_layers = 2;
    return m;
}
static inline struct model tiny_moe_mtp(void) {
    struct model m = tiny_moe();
    m.mtp_layers = 2;
    return m;
}

static inline struct plan_request tiny_request(struct model m, struct recompute_policy policy) {
    return (struct plan_request){
        .model = m, .recompute = policy, .micro_batches = 3, .kernels = kernels_cpu()};
}

static inline void tiny_open(struct tiny *t, const struct plan_request *request) {
    struct err err;
    *t = (struct tiny){0};
    plan_build(request, &t->plan);
    CHECK(arena_open(&t->arena, t->plan.arena_bytes, &err) == 0, "%s", err.text);
    executor_open(&t->executor, &t->plan, &t->arena, request->threads, 1234, NULL);
    update_initialize(&t->executor);
    update_compute_copies(&t->executor);
    for (int i = 0; i < t->plan.num_routers; i++)
        for (int64_t e = 0; t->executor.routers[i].bias && e < t->plan.routers[i].experts; e++)
            t->executor.routers[i].bias[e] = 0.02f * (float)((e * 7 + i) % 5);
}

static inline void tiny_close(struct tiny *t) {
    executor_close(&t->executor);
    arena_close(&t->arena);
    plan_free(&t->plan);
}

/* Made-up tokens of micro-batch `index`: a function of the position alone. One row's loss is masked out. */
static inline void tiny_fill(const struct model *m, int index, int32_t *tokens, int32_t *labels,
                             int32_t *positions, float *mask) {
    for (int64_t i = 0; i < m->seq * m->micro_batch; i++) {
        uint32_t x = (uint32_t)(i * 2654435761u + (uint32_t)index * 40503u + 12345u);
        tokens[i] = (int32_t)((x >> 7) % (uint32_t)m->vocab);
        labels[i] = (int32_t)((x >> 13) % (uint32_t)m->vocab);
        positions[i] = (int32_t)(i % m->seq);
        mask[i] = i % 7 == 3 ? 0.0f : 1.0f;
    }
}

/* One step without update; returns the loss sum. Gradients are in the arena. */
static inline double tiny_step(struct tiny *t, int64_t iteration) {
    const struct model *m = &t->plan.request.model;
    size_t n = (size_t)(m->seq * m->micro_batch);
    int32_t *tokens = mem_new_array(int32_t, 3 * n, "tiny"), *labels = tokens + n, *positions = labels + n;
    float *mask = mem_new_array(float, n, "tiny");
    struct micro_batch micro = {tokens, labels, positions, mask, 0.01f, 0, true, 0.5f, {0.004f, 0.003f}};
    executor_begin_step(&t->executor, iteration);
    const struct schedule_list *list = plan_actions(&t->plan, t->plan.request.micro_batches);
    for (int i = 0; i < list->count; i++) {
        micro.index = list->actions[i].micro_batch;
        tiny_fill(m, micro.index, tokens, labels, positions, mask);
        executor_run(&t->executor, &list->actions[i], &micro);
    }
    mem_free(tokens);
    mem_free(mask);
    return t->executor.loss_sum;
}

/* What the gradients of tiny_step are the gradients of. */
static inline double tiny_objective(const struct tiny *t, double loss_sum) {
    const struct model *m = &t->plan.request.model;
    const struct router_losses *l = &t->executor.router_losses;
    double mtp = 0.004 * t->executor.mtp_loss_sum[0] + 0.003 * t->executor.mtp_loss_sum[1];
    return 0.01 * loss_sum + mtp +
           0.5 * ((double)m->moe.balance_coeff * l->balance + (double)m->moe.z_coeff * l->z);
}

/* All gradients, one after the other. Owned by the caller. */
static inline float *tiny_grads(const struct tiny *t) {
    float *all = mem_new_array(float, (size_t)t->plan.num_parameters, "tiny gradients"), *at = all;
    for (int i = 0; i < t->plan.num_params; i++) {
        const struct plan_param *p = &t->plan.params[i];
        memcpy(at, t->arena.base + p->grad, (size_t)p->count * sizeof(float));
        at += p->count;
    }
    return all;
}

static inline bool tiny_all_finite(const float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}
