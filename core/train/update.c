/* Weights: their start, their update, and the copies that the kernels read. */
#include "core/base/hash.h"
#include "core/train/update.h"
#include <math.h>
#include <string.h>

enum { INIT_ITERATION = -1 };

/* Initial weights are a function of the seed and the parameter's name, so no layout can change them. */
static struct rng_key init_key(const struct executor *e, const char *name) {
    return (struct rng_key){.seed = e->seed,
                            .iteration = (uint32_t)INIT_ITERATION,
                            .micro_batch = (uint32_t)hash_bytes(name, strlen(name))};
}

void update_initialize(struct executor *e) {
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

/* The layouts that matrix products read, made from the master once per step. */
static void pack(struct executor *e, const struct plan_param *p) {
    enum dtype dtype = e->plan->request.model.dtype;
    const float *master = executor_at(e, p->master);
    if (p->packed_forward != SIZE_MAX)
        KERNEL_CALL(gemm_pack, &e->stream, .dst = executor_at(e, p->packed_forward), .src = master,
                    .k = p->dims[1], .n = p->dims[0], .trans = true, .dtype = dtype, .src_dtype = DTYPE_F32);
    if (p->packed_backward != SIZE_MAX)
        KERNEL_CALL(gemm_pack, &e->stream, .dst = executor_at(e, p->packed_backward), .src = master,
                    .k = p->dims[0], .n = p->dims[1], .dtype = dtype, .src_dtype = DTYPE_F32);
}

void update_compute_copies(struct executor *e) {
    const struct plan *plan = e->plan;
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        if (p->plain != SIZE_MAX)
            KERNEL_CALL(cast, &e->stream, .dst = executor_at(e, p->plain), .src = executor_at(e, p->master),
                        .n = p->count, .dst_dtype = plan->request.model.dtype, .src_dtype = DTYPE_F32);
        pack(e, p);
    }
}

/* sqrt of the sum of squares over all parameters, of gradients or masters; one kernel per parameter, summed
 * in order. */
static double norm_over(struct executor *e, bool of_grads, int64_t *bad_p) {
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

double update_grad_norm(struct executor *e, int64_t *bad_p) {
    return norm_over(e, true, bad_p);
}

double update_params_norm(struct executor *e) {
    int64_t bad;
    return norm_over(e, false, &bad);
}

double update_count_zeros(const struct executor *e) {
    const struct plan *plan = e->plan;
    int64_t zeros = 0;
    for (int i = 0; i < plan->num_params; i++) {
        const float *grad = executor_at(e, plan->params[i].grad);
        for (int64_t k = 0; k < plan->params[i].count; k++) zeros += grad[k] == 0;
    }
    return (double)zeros;
}

void update_apply(struct executor *e, const struct update_options *o) {
    const struct plan *plan = e->plan;
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        bool decays = p->decays || (p->is_qk_norm && o->decay_qk_norm);
        KERNEL_CALL(adamw, &e->stream, .master = executor_at(e, p->master), .m = executor_at(e, p->exp_avg),
                    .v = executor_at(e, p->exp_avg_sq), .grad = executor_at(e, p->grad),
                    .model = p->plain != SIZE_MAX ? executor_at(e, p->plain) : NULL, .n = p->count,
                    .learning_rate = (float)(p->is_embedding ? o->embedding_learning_rate : o->learning_rate),
                    .beta1 = (float)o->beta1, .beta2 = (float)o->beta2, .epsilon = (float)o->epsilon,
                    .weight_decay = decays ? (float)o->weight_decay : 0,
                    .bias_correction1 = (float)(1 - pow(o->beta1, (double)o->step)),
                    .bias_correction2 = (float)(1 - pow(o->beta2, (double)o->step)),
                    .grad_scale = o->grad_scale, .model_dtype = plan->request.model.dtype);
        pack(e, p);
    }
}

uint64_t update_params_hash(const struct executor *e) {
    const struct plan *plan = e->plan;
    struct hash h;
    hash_init(&h);
    for (int i = 0; i < plan->num_params; i++) {
        hash_update(&h, plan->params[i].name, strlen(plan->params[i].name));
        hash_update(&h, executor_at(e, plan->params[i].master), (size_t)plan->params[i].count * 4);
    }
    return hash_final(&h);
}
