/* Weights: their start, their update, and the copies that the kernels read. */
#include "core/base/hash.h"
#include "core/train/trainer.h"
#include <math.h>
#include <string.h>

enum { INIT_ITERATION = -1 };

/* Initial weights are a function of the seed and the parameter's name, so no layout can change them. */
static struct rng_key init_key(const struct executor *e, const char *name) {
    return (struct rng_key){.seed = e->seed,
                            .iteration = (uint32_t)INIT_ITERATION,
                            .micro_batch = (uint32_t)hash_bytes(name, strlen(name))};
}

void update_initialize(struct trainer *t) {
    struct executor *e = &t->executor;
    const struct plan *plan = e->plan;
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        float *master = executor_at(e, p->master);
        if (p->init == PARAM_INIT_NORMAL)
            KERNEL_CALL(normal_init, &e->stream, .x = master, .n = p->count, .std = p->init_std,
                        .key = init_key(e, p->name));
        else
            KERNEL_CALL(fill, &e->stream, .y = master, .n = p->count,
                        .value = p->init == PARAM_INIT_ONE ? 1 : 0, .dtype = DTYPE_F32);
    }
    /* optimizer state: the arena's pages are zero already, and reading them would only make them resident
     * sooner */
}

void update_compute_copies(struct trainer *t) {
    struct executor *e = &t->executor;
    const struct plan *plan = e->plan;
    enum dtype dtype = plan->request.model.dtype;
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        const float *master = executor_at(e, p->master);
        if (p->plain != SIZE_MAX)
            KERNEL_CALL(cast, &e->stream, .dst = executor_at(e, p->plain), .src = master, .n = p->count,
                        .dst_dtype = dtype, .src_dtype = DTYPE_F32);
        if (p->packed_forward != SIZE_MAX)
            KERNEL_CALL(gemm_pack, &e->stream, .dst = executor_at(e, p->packed_forward), .src = master,
                        .k = p->dims[1], .n = p->dims[0], .trans = true, .dtype = dtype,
                        .src_dtype = DTYPE_F32);
        if (p->packed_backward != SIZE_MAX)
            KERNEL_CALL(gemm_pack, &e->stream, .dst = executor_at(e, p->packed_backward), .src = master,
                        .k = p->dims[0], .n = p->dims[1], .dtype = dtype, .src_dtype = DTYPE_F32);
    }
}

/* sqrt of the sum of squares over all parameters, of gradients or masters; one kernel per parameter, summed
 * in order. */
static double norm_over(struct trainer *t, bool of_grads, int64_t *bad_p) {
    struct executor *e = &t->executor;
    const struct plan *plan = e->plan;
    double *sums = executor_at(e, plan->reductions), total = 0;
    int64_t *bad = (int64_t *)(void *)(sums + plan->num_params);
    *bad_p = 0;
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        KERNEL_CALL(sum_squares, &e->stream, .out = &sums[i], .bad = &bad[i],
                    .x = executor_at(e, of_grads ? p->grad : p->master), .n = p->count, .dtype = DTYPE_F32);
        total += sums[i];
        *bad_p += bad[i];
    }
    return sqrt(total);
}

double update_grad_norm(struct trainer *t, int64_t *bad_p) {
    return norm_over(t, true, bad_p);
}

double update_params_norm(struct trainer *t) {
    int64_t bad;
    return norm_over(t, false, &bad);
}

double update_count_zeros(const struct trainer *t) {
    const struct plan *plan = t->executor.plan;
    int64_t zeros = 0;
    for (int i = 0; i < plan->num_params; i++) {
        const float *grad = executor_at(&t->executor, plan->params[i].grad);
        for (int64_t k = 0; k < plan->params[i].count; k++) zeros += grad[k] == 0;
    }
    return (double)zeros;
}

void update_apply(struct trainer *t, double learning_rate, double decoupled_rate, double weight_decay,
                  float grad_scale) {
    struct executor *e = &t->executor;
    const struct plan *plan = e->plan;
    const struct config *cfg = t->cfg;
    double steps = (double)t->state.optimizer_steps;
    enum dtype dtype = plan->request.model.dtype;
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        bool decays = p->decays || (p->is_qk_norm && cfg->apply_wd_to_qk_layernorm);
        bool decoupled = t->has_decoupled_lr && p->is_embedding;
        KERNEL_CALL(adamw, &e->stream, .master = executor_at(e, p->master), .m = executor_at(e, p->exp_avg),
                    .v = executor_at(e, p->exp_avg_sq), .grad = executor_at(e, p->grad),
                    .model = p->plain != SIZE_MAX ? executor_at(e, p->plain) : NULL, .n = p->count,
                    .learning_rate = (float)(decoupled ? decoupled_rate : learning_rate),
                    .beta1 = (float)cfg->adam_beta1, .beta2 = (float)cfg->adam_beta2,
                    .epsilon = (float)cfg->adam_eps, .weight_decay = decays ? (float)weight_decay : 0,
                    .bias_correction1 = (float)(1 - pow(cfg->adam_beta1, steps)),
                    .bias_correction2 = (float)(1 - pow(cfg->adam_beta2, steps)), .grad_scale = grad_scale,
                    .model_dtype = dtype);
        const float *master = executor_at(e, p->master);
        if (p->packed_forward != SIZE_MAX)
            KERNEL_CALL(gemm_pack, &e->stream, .dst = executor_at(e, p->packed_forward), .src = master,
                        .k = p->dims[1], .n = p->dims[0], .trans = true, .dtype = dtype,
                        .src_dtype = DTYPE_F32);
        if (p->packed_backward != SIZE_MAX)
            KERNEL_CALL(gemm_pack, &e->stream, .dst = executor_at(e, p->packed_backward), .src = master,
                        .k = p->dims[0], .n = p->dims[1], .dtype = dtype, .src_dtype = DTYPE_F32);
    }
}

uint64_t update_params_hash(const struct trainer *t) {
    const struct plan *plan = t->executor.plan;
    struct hash h;
    hash_init(&h);
    for (int i = 0; i < plan->num_params; i++) {
        hash_update(&h, plan->params[i].name, strlen(plan->params[i].name));
        hash_update(&h, executor_at(&t->executor, plan->params[i].master), (size_t)plan->params[i].count * 4);
    }
    return hash_final(&h);
}
