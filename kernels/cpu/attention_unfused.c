/* The matrix products of the unfused chain in float32 arithmetic, for every dtype (in the amx copy
 * bf16 goes to attention_tiles_unfused.c). A task is one batch row
 * and one key/value group, its query heads in order; a head is walked in strips of 32 queries, whose scores
 * (or their gradients) are unpacked to float32. Four products do it all, with X a strip [32, keys]:
 *
 *     scores, dprobs: X = left right^T    context, dq: out = X right    dv, dk: sums += X^T left */
#include "kernels/cpu/attention_blocks.h"
#include "kernels/cpu/attention_tiles.h"

enum { STRIP = BLOCK_LANES };

struct problem {
    struct attention_shape z;
    int64_t d, s; /* padded to multiples of 32 */
    bool causal;
    enum dtype dtype;
};

static struct problem make_problem(struct attention_shape z, bool causal, enum dtype dtype) {
    return (struct problem){z, round_up(z.d, BLOCK_LANES), round_up(z.s, STRIP), causal, dtype};
}

struct buffers {
    float *right;      /* [s, d], or its transpose [d, s] */
    float *sums;       /* [s, d] */
    float *strip;      /* [STRIP, s] */
    float *left, *out; /* [STRIP, d] */
};

static int64_t buffer_floats(const struct problem *p) {
    return 2 * p->s * p->d + STRIP * p->s + 2 * STRIP * p->d;
}

static size_t workspace_bytes(const struct stream *stream, const struct problem *p) {
    return (size_t)threads_count(stream->threads) * (size_t)buffer_floats(p) * sizeof(float);
}

static struct buffers carve(const struct problem *p, float *workspace, int thread) {
    float *at = workspace + thread * buffer_floats(p);
    struct buffers f = {.right = at, .sums = at + p->s * p->d, .strip = at + 2 * p->s * p->d};
    f.left = f.strip + STRIP * p->s, f.out = f.left + STRIP * p->d;
    return f;
}

/* ---- unpacking ---- */

static void load_right(const struct problem *p, struct buffers *f, const void *src, int64_t kv) {
    const struct attention_shape *z = &p->z;
    pack_rows(f->right, p->s, p->d, dtype_at(src, p->dtype, kv * z->s * z->d), z->d, z->s, z->d, p->dtype);
}

/* right = the transpose [d, s], by way of `sums`, which is free until the first strip. */
static void load_right_transposed(const struct problem *p, struct buffers *f, const void *src, int64_t kv) {
    const struct attention_shape *z = &p->z;
    pack_rows(f->sums, p->s, p->d, dtype_at(src, p->dtype, kv * z->s * z->d), z->d, z->s, z->d, p->dtype);
    for (int64_t row = 0; row < p->s; row += STRIP) {
        for (int64_t n = 0; n < p->d; n++) {
            for (int i = 0; i < STRIP; i++) f->right[n * p->s + row + i] = f->sums[(row + i) * p->d + n];
        }
    }
}

static int64_t strip_rows(const struct problem *p, int64_t query) {
    return min_i64(STRIP, p->z.s - query);
}

/* A strip's queries from [b, a, s, d] or [s, b, a * d]. */
static void load_left(const struct problem *p, struct buffers *f, const void *src, int64_t head,
                      int64_t query, bool hidden) {
    const struct attention_shape *z = &p->z;
    int64_t step = hidden ? z->b * z->a * z->d : z->d;
    int64_t first = hidden ? query * step + head * z->d : (head * z->s + query) * z->d;
    pack_rows(f->left, STRIP, p->d, dtype_at(src, p->dtype, first), step, strip_rows(p, query), z->d,
              p->dtype);
}

static void store_out(const struct problem *p, const struct buffers *f, void *dst, int64_t head,
                      int64_t query, bool hidden) {
    const struct attention_shape *z = &p->z;
    int64_t step = hidden ? z->b * z->a * z->d : z->d;
    int64_t first = hidden ? query * step + head * z->d : (head * z->s + query) * z->d;
    for (int64_t i = 0; i < strip_rows(p, query); i++) {
        row_from_f32(dtype_at(dst, p->dtype, first + i * step), f->out + i * p->d, p->dtype, z->d);
    }
}

/* Scores of query i: as many as count. */
static int64_t row_keys(const struct problem *p, int64_t i) {
    return p->causal ? i + 1 : p->z.s;
}

static int64_t strip_keys(const struct problem *p, int64_t query) {
    return p->causal ? query + strip_rows(p, query) : p->z.s;
}

static void load_strip(const struct problem *p, struct buffers *f, const void *src, int64_t head,
                       int64_t query) {
    int64_t s = p->z.s, padded = round_up(strip_keys(p, query), STRIP);
    for (int64_t i = 0; i < STRIP; i++) {
        float *row = f->strip + i * p->s;
        int64_t used = query + i < s ? row_keys(p, query + i) : 0;
        if (used) row_to_f32(row, dtype_at(src, p->dtype, (head * s + query + i) * s), p->dtype, used);
        memset(row + used, 0, (size_t)(padded - used) * sizeof(float));
    }
}

static void store_strip(const struct problem *p, const struct buffers *f, void *dst, int64_t head,
                        int64_t query, bool zeros_above) {
    int64_t s = p->z.s;
    for (int64_t i = query; i < query + strip_rows(p, query); i++) {
        int64_t used = row_keys(p, i);
        char *row = dtype_at(dst, p->dtype, (head * s + i) * s);
        row_from_f32(row, f->strip + (i - query) * p->s, p->dtype, used);
        if (zeros_above) memset(dtype_at(row, p->dtype, used), 0, (size_t)(s - used) * dtype_bytes(p->dtype));
    }
}

static void scale_floats(float *x, int64_t n, float factor) {
    for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

/* ---- the products ---- */

/* strip = left right^T. */
static void product_strip(const struct problem *p, struct buffers *f, int64_t query) {
    struct left left = {f->left, p->d, 1};
    block_product(f->strip, p->s, left, f->right, p->s, STRIP, round_up(strip_keys(p, query), STRIP), p->d,
                  false);
}

/* out = strip right. */
static void product_out(const struct problem *p, struct buffers *f, int64_t query) {
    struct left strip = {f->strip, p->s, 1};
    block_product(f->out, p->d, strip, f->right, p->d, STRIP, p->d, strip_keys(p, query), false);
}

/* sums += strip^T left. */
static void product_sums(const struct problem *p, struct buffers *f, int64_t query) {
    struct left strip = {f->strip, 1, p->s};
    int64_t rows = round_up(strip_keys(p, query), BLOCK_ROWS);
    block_product(f->sums, p->d, strip, f->left, p->d, rows, p->d, STRIP, true);
}

static void clear_sums(const struct problem *p, struct buffers *f) {
    memset(f->sums, 0, (size_t)(p->s * p->d) * sizeof(float));
}

static void store_sums(const struct problem *p, const struct buffers *f, void *dst, int64_t kv) {
    const struct attention_shape *z = &p->z;
    for (int64_t j = 0; j < z->s; j++) {
        row_from_f32(dtype_at(dst, p->dtype, (kv * z->s + j) * z->d), f->sums + j * p->d, p->dtype, z->d);
    }
}

/* ---- the kernels: a task is a key/value group, `kv` = batch * g + group; its heads are head .. last - 1
 * ---- */
struct job {
    struct problem p;
    const void *args;
    float *workspace;
};

static void run(const struct stream *stream, struct problem p, const void *args, threads_fn task) {
    struct job job = {p, args, stream->workspace};
    threads_for(stream->threads, p.z.b * p.z.g, 1, task, &job);
}

static void scores_forward_task(void *context, int64_t begin, int64_t end, int thread) {
    const struct job *job = context;
    const struct attention_scores_forward_args *args = job->args;
    const struct problem *p = &job->p;
    struct buffers f = carve(p, job->workspace, thread);
    int64_t per_group = p->z.a / p->z.g;
    for (int64_t kv = begin; kv < end; kv++) {
        load_right_transposed(p, &f, args->k, kv);
        for (int64_t head = kv * per_group; head < (kv + 1) * per_group; head++) {
            for (int64_t query = 0; query < p->z.s; query += STRIP) {
                load_left(p, &f, args->q, head, query, false);
                scale_floats(f.left, STRIP * p->d, args->scale);
                product_strip(p, &f, query);
                store_strip(p, &f, args->scores, head, query, false);
            }
        }
    }
}

static void scores_backward_task(void *context, int64_t begin, int64_t end, int thread) {
    const struct job *job = context;
    const struct attention_scores_backward_args *args = job->args;
    const struct problem *p = &job->p;
    struct buffers f = carve(p, job->workspace, thread);
    int64_t per_group = p->z.a / p->z.g;
    for (int64_t kv = begin; kv < end; kv++) {
        load_right(p, &f, args->k, kv);
        clear_sums(p, &f);
        for (int64_t head = kv * per_group; head < (kv + 1) * per_group; head++) {
            for (int64_t query = 0; query < p->z.s; query += STRIP) {
                load_strip(p, &f, args->dscores, head, query);
                load_left(p, &f, args->q, head, query, false);
                product_out(p, &f, query);
                scale_floats(f.out, STRIP * p->d, args->scale);
                store_out(p, &f, args->dq, head, query, false);
                product_sums(p, &f, query);
            }
        }
        scale_floats(f.sums, p->s * p->d, args->scale);
        store_sums(p, &f, args->dk, kv);
    }
}

static void context_forward_task(void *context, int64_t begin, int64_t end, int thread) {
    const struct job *job = context;
    const struct attention_context_forward_args *args = job->args;
    const struct problem *p = &job->p;
    struct buffers f = carve(p, job->workspace, thread);
    int64_t per_group = p->z.a / p->z.g;
    for (int64_t kv = begin; kv < end; kv++) {
        load_right(p, &f, args->v, kv);
        for (int64_t head = kv * per_group; head < (kv + 1) * per_group; head++) {
            for (int64_t query = 0; query < p->z.s; query += STRIP) {
                load_strip(p, &f, args->probs, head, query);
                product_out(p, &f, query);
                store_out(p, &f, args->o, head, query, true);
            }
        }
    }
}

static void context_backward_task(void *context, int64_t begin, int64_t end, int thread) {
    const struct job *job = context;
    const struct attention_context_backward_args *args = job->args;
    const struct problem *p = &job->p;
    struct buffers f = carve(p, job->workspace, thread);
    int64_t per_group = p->z.a / p->z.g;
    for (int64_t kv = begin; kv < end; kv++) {
        load_right_transposed(p, &f, args->v, kv);
        clear_sums(p, &f);
        for (int64_t head = kv * per_group; head < (kv + 1) * per_group; head++) {
            for (int64_t query = 0; query < p->z.s; query += STRIP) {
                load_left(p, &f, args->d_o, head, query, true);
                load_strip(p, &f, args->probs, head, query);
                product_sums(p, &f, query);
                product_strip(p, &f, query);
                store_strip(p, &f, args->dprobs, head, query, true);
            }
        }
        store_sums(p, &f, args->dv, kv);
    }
}

#define UNFUSED(name, task)                                                                                  \
    size_t CPU(name##_workspace)(const struct stream *stream, const struct name##_args *args) {              \
        struct problem p = make_problem(args->shape, args->causal, args->dtype);                             \
        if (CPU_ISA_amx && args->dtype == DTYPE_BF16) return CPU(name##_tiles_workspace)(stream, args);      \
        return workspace_bytes(stream, &p);                                                                  \
    }                                                                                                        \
    void CPU(name)(const struct stream *stream, const struct name##_args *args) {                            \
        struct problem p = make_problem(args->shape, args->causal, args->dtype);                             \
        if (CPU_ISA_amx && args->dtype == DTYPE_BF16)                                                        \
            CPU(name##_tiles)(stream, args);                                                                 \
        else                                                                                                 \
            run(stream, p, args, task);                                                                      \
    }
UNFUSED(attention_scores_forward, scores_forward_task)
UNFUSED(attention_scores_backward, scores_backward_task)
UNFUSED(attention_context_forward, context_forward_task)
UNFUSED(attention_context_backward, context_backward_task)
