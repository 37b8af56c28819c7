/* Optimizer arithmetic: one pass over memory. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include <math.h>

enum {
    CHUNK = 32768,         /* elements that one thread takes at a time */
    SUM_BLOCKS = 4096,     /* most partial sums */
    SUM_BLOCK_MIN = 32768, /* fewest elements of a partial sum */
};

/* ---- adamw ---- */
SIMD_INLINE void adamw_range(const struct adamw_args *args, int64_t begin, int64_t end, bool has_model,
                             enum dtype t) {
    const struct adamw_args a = *args;
    float *master = a.master, *m = a.m, *v = a.v;
    const float *grad = a.grad;
    void *model = a.model;
    float other1 = 1.0f - a.beta1, other2 = 1.0f - a.beta2;
    float inverse1 = 1.0f / a.bias_correction1, inverse2 = 1.0f / a.bias_correction2;
    SIMD_LOOP for (int64_t i = begin; i < end; i++) {
        float g = grad[i] * a.grad_scale, w = master[i];
        float mi = MATH_FMA(a.beta1, m[i], other1 * g);
        float vi = MATH_FMA(a.beta2, v[i], other2 * g * g);
        float update = mi * inverse1 / (sqrtf(vi * inverse2) + a.epsilon);
        update = MATH_FMA(a.weight_decay, w, update);
        w = MATH_FMA(-a.learning_rate, update, w);
        m[i] = mi;
        v[i] = vi;
        master[i] = w;
        if (has_model) simd_store(model, t, i, w);
    }
}

static void adamw_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct adamw_args *a = context;
    (void)thread;
    if (!a->model)
        adamw_range(a, begin, end, false, DTYPE_F32);
    else if (a->model_dtype == DTYPE_BF16)
        adamw_range(a, begin, end, true, DTYPE_BF16);
    else
        adamw_range(a, begin, end, true, DTYPE_F16);
}

void CPU(adamw)(const struct stream *stream, const struct adamw_args *args) {
    struct adamw_args a = *args;
    threads_for(stream->threads, a.n, CHUNK, adamw_body, &a);
}

/* ---- sum_squares ---- */
struct partial {
    double sum;
    int64_t bad;
};

struct sum_squares {
    struct sum_squares_args args;
    int64_t block;
    struct partial *partial; /* one per block */
};

static int64_t sum_block(int64_t n) {
    int64_t block = (n + SUM_BLOCKS - 1) / SUM_BLOCKS;
    return block < SUM_BLOCK_MIN ? SUM_BLOCK_MIN : block;
}

static int64_t sum_blocks(int64_t n) {
    return (n + sum_block(n) - 1) / sum_block(n);
}

size_t CPU(sum_squares_workspace)(const struct stream *stream, const struct sum_squares_args *args) {
    (void)stream;
    return (size_t)sum_blocks(args->n) * sizeof(struct partial);
}

/* The square of a float is exact in double, and a sum of squares of finite floats cannot overflow: the sum
 * is finite exactly when every element is. So elements are looked at one by one only in a bad block. */
SIMD_INLINE void sum_squares_block(const struct sum_squares *s, int64_t begin, int64_t end, enum dtype t) {
    double lanes[SIMD_LANES] = {0};
    const void *x = s->args.x;
    int64_t i = begin, bad = 0;
    for (; i + SIMD_LANES <= end; i += SIMD_LANES) SIMD_LOOP for (int l = 0; l < SIMD_LANES; l++) {
            double v = simd_load(x, t, i + l);
            lanes[l] += v * v;
        }
    for (int l = 0; i + l < end; l++) {
        double v = simd_load(x, t, i + l);
        lanes[l] += v * v;
    }
    for (int half = SIMD_LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
    if (!isfinite(lanes[0]))
        for (i = begin; i < end; i++) bad += !isfinite(simd_load(x, t, i));
    s->partial[begin / s->block] = (struct partial){lanes[0], bad};
}

static void sum_squares_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct sum_squares *s = context;
    (void)thread;
    SIMD_BY_DTYPE(s->args.dtype, sum_squares_block, s, begin, end)
}

void CPU(sum_squares)(const struct stream *stream, const struct sum_squares_args *args) {
    struct sum_squares s = {*args, sum_block(args->n), stream->workspace};
    struct partial total = {0, 0};
    threads_for(stream->threads, args->n, s.block, sum_squares_body, &s);
    for (int64_t i = 0; i < sum_blocks(args->n); i++) {
        total.sum += s.partial[i].sum;
        total.bad += s.partial[i].bad;
    }
    *args->out = (args->accumulate ? *args->out : 0) + total.sum;
    if (args->bad) *args->bad = (args->accumulate ? *args->bad : 0) + total.bad;
}

/* ---- normal_init ---- */
#if CPU_ISA_generic /* one copy for all instruction sets, so that initial weights never depend on the        \
                       machine */
static void normal_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct normal_init_args *a = context;
    (void)thread;
    uint64_t first = a->first_element + (uint64_t)begin, last = a->first_element + (uint64_t)end;
    for (uint64_t block = first / 4; 4 * block < last; block++) {
        struct rng_words words = rng_philox(a->key, block);
        float x[4];
        rng_normal_pair(words.w[0], words.w[1], &x[0], &x[1]);
        rng_normal_pair(words.w[2], words.w[3], &x[2], &x[3]);
        for (uint64_t i = 0; i < 4; i++) {
            uint64_t e = 4 * block + i;
            if (e >= first && e < last) a->x[e - a->first_element] = x[i] * a->std;
        }
    }
}

void CPU(normal_init)(const struct stream *stream, const struct normal_init_args *args) {
    struct normal_init_args a = *args;
    threads_for(stream->threads, a.n, CHUNK, normal_body, &a);
}
#endif
