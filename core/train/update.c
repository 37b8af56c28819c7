/* Weights: their start, their update, and sums over all of them. Each rank works on the elements that it
 * holds; sums over the model take each element once, from the rank that counts it. */
#include "core/train/update.h"
#include "core/base/hash.h"
#include "core/train/routers.h"
#include "core/train/sync.h"
#include <math.h>
#include <string.h>

enum { INIT_ITERATION = -1 };

/* Initial weights are a function of the seed, the parameter's name and the element's place in the whole
 * tensor, so no layout can change them. */
static struct rng_key init_key(const struct executor *e, const char *name) {
    return (struct rng_key){.seed = e->seed,
                            .iteration = (uint32_t)INIT_ITERATION,
                            .micro_batch = (uint32_t)hash_bytes(name, strlen(name))};
}

int64_t update_global_element(const struct plan_param *p, int64_t element, int64_t *count_p) {
    int64_t cols = p->dims[1], col = element % cols, rows;
    int64_t row = plan_global_row(p, element / cols, &rows);
    *count_p = cols == p->shard.full[1] ? rows * cols - col : cols - col;
    return row * p->shard.full[1] + p->shard.first_col + col;
}

static void fill_normal(struct executor *e, const struct plan_param *p) {
    float *master = executor_at(e, p->master);
    for (int64_t done = 0, count; done < p->held_count; done += count) {
        int64_t global = update_global_element(p, p->held_begin + done, &count);
        if (count > p->held_count - done) count = p->held_count - done;
        KERNEL_CALL(normal_init, &e->stream, .x = master + done, .n = count,
                    .first_element = (uint64_t)global, .std = p->init_std, .key = init_key(e, p->name));
    }
}

void update_initialize(struct executor *e) {
    const struct plan *plan = e->plan;
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        if (!p->held_count) continue;
        if (p->init == PARAM_INIT_NORMAL)
            fill_normal(e, p);
        else
            KERNEL_CALL(fill, &e->stream, .y = executor_at(e, p->master), .n = p->held_count,
                        .value = p->init == PARAM_INIT_ONE ? 1 : 0, .dtype = DTYPE_F32);
    }
    /* optimizer state: the arena's pages are zero already, and reading them would only make them resident
     * sooner */
}

void update_compute_copies(struct executor *e) {
    sync_weights_changed(e);
}

/* Of the elements that this rank counts, those of real tokens: rows that only pad the vocabulary are the last
 * of a shard, and are left out of what is reported, because their number depends on the layout. */
static int64_t count_used(const struct executor *e, const struct plan_param *p) {
    int64_t rows = e->plan->request.model.vocab_used, used;
    if (!p->is_vocabulary || !rows) return p->counted;
    for (int i = 0; i < p->shard.num_runs; i++) rows -= p->shard.runs[i].first; /* one run at most */
    used = rows * p->dims[1] - p->held_begin;
    return used < 0 ? 0 : used < p->counted ? used : p->counted;
}

static void sum_over_world(struct executor *e, double *values, int count) {
    if (e->comms.world) comm_all_reduce(e->comms.world, values, count, COMM_F64, COMM_SUM);
}

/* sqrt of the sum of squares over all parameters, of gradients or masters; one kernel per parameter, summed
 * in order. */
static double norm_over(struct executor *e, bool of_grads, int64_t *bad_p) {
    const struct plan *plan = e->plan;
    double *sums = executor_at(e, plan->reductions), total[2] = {0, 0};
    int64_t *bad = (int64_t *)(void *)(sums + plan->num_params);
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        int64_t count = count_used(e, p);
        if (!count) continue;
        KERNEL_CALL(sum_squares, &e->stream, .out = &sums[i], .bad = &bad[i],
                    .x = executor_at(e, of_grads ? p->held_grad : p->master), .n = count, .dtype = DTYPE_F32);
        total[0] += sums[i];
        total[1] += (double)bad[i];
    }
    sum_over_world(e, total, 2);
    *bad_p = (int64_t)total[1];
    return sqrt(total[0]);
}

double update_grad_norm(struct executor *e, int64_t *bad_p) {
    return norm_over(e, true, bad_p);
}

double update_params_norm(struct executor *e) {
    int64_t bad;
    return norm_over(e, false, &bad);
}

double update_count_zeros(struct executor *e) {
    const struct plan *plan = e->plan;
    double zeros = 0;
    for (int i = 0; i < plan->num_params; i++) {
        const float *grad = executor_at(e, plan->params[i].held_grad);
        int64_t count = count_used(e, &plan->params[i]);
        for (int64_t k = 0; k < count; k++) zeros += grad[k] == 0;
    }
    sum_over_world(e, &zeros, 1);
    return zeros;
}

void update_apply(struct executor *e, const struct update_options *o) {
    const struct plan *plan = e->plan;
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        bool decays = p->decays || (p->is_qk_norm && o->decay_qk_norm);
        bool is_local = sync_is_local(e, i);
        if (!p->held_count) continue;
        KERNEL_CALL(adamw, &e->stream, .master = executor_at(e, p->master), .m = executor_at(e, p->exp_avg),
                    .v = executor_at(e, p->exp_avg_sq), .grad = executor_at(e, p->held_grad),
                    .model = is_local && p->plain != SIZE_MAX ? executor_at(e, p->plain) : NULL,
                    .n = p->held_count,
                    .learning_rate = (float)(p->is_embedding ? o->embedding_learning_rate : o->learning_rate),
                    .beta1 = (float)o->beta1, .beta2 = (float)o->beta2, .epsilon = (float)o->epsilon,
                    .weight_decay = decays ? (float)o->weight_decay : 0,
                    .bias_correction1 = (float)(1 - pow(o->beta1, (double)o->step)),
                    .bias_correction2 = (float)(1 - pow(o->beta2, (double)o->step)),
                    .grad_scale = o->grad_scale, .model_dtype = plan->request.model.dtype);
        if (is_local) sync_pack_local(e, i); /* while the master is in cache */
    }
    sync_shards_changed(e);
}

/* One term per element, of its name, place and bits; their sum does not depend on who holds what. */
uint64_t update_hash_stretch(const float *x, int64_t count, uint64_t name, uint64_t first) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof(bits));
        uint64_t h = (name ^ (first + (uint64_t)i) * 0x9E3779B97F4A7C15u) + bits;
        h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u;
        h = (h ^ h >> 29) * 0xFF51AFD7ED558CCDu;
        sum += h ^ h >> 32;
    }
    return sum;
}

static uint64_t hash_param(const struct executor *e, const struct plan_param *p) {
    const float *master = executor_at(e, p->master);
    int64_t used = count_used(e, p);
    uint64_t sum = 0, name = hash_bytes(p->name, strlen(p->name));
    for (int64_t done = 0, count; done < used; done += count) {
        int64_t global = update_global_element(p, p->held_begin + done, &count);
        if (count > used - done) count = used - done;
        sum += update_hash_stretch(master + done, count, name, (uint64_t)global);
    }
    return sum;
}

uint64_t update_params_hash(struct executor *e) {
    uint64_t sum = routers_hash(e);
    for (int i = 0; i < e->plan->num_params; i++) sum += hash_param(e, &e->plan->params[i]);
    int64_t total = (int64_t)sum;
    if (e->comms.world) comm_all_reduce(e->comms.world, &total, 1, COMM_I64, COMM_SUM);
    return (uint64_t)total;
}
