/* LayerNorm and RMSNorm. A row is read from memory once and from cache after that. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include <math.h>

enum {
    CHUNK = 16384,       /* elements of one forward chunk */
    PARAM_BLOCKS = 64,   /* most row blocks with partial dweight and dbias of their own */
    PARAM_BLOCK_MIN = 8, /* fewest rows in a block */
    PARAM_COLUMNS = 256, /* columns combined at a time */
    FETCH_MIN = 1024,    /* elements fetched ahead, or a row if that is more */
};

struct row_stats {
    float mean, r;
};

SIMD_INLINE float row_sum(const void *x, int64_t begin, int64_t cols, enum dtype t) {
    float lanes[SIMD_LANES] = {0};
    int64_t j = 0, ahead = cols > FETCH_MIN ? cols : FETCH_MIN;
    for (; j + SIMD_LANES <= cols; j += SIMD_LANES) {
        simd_fetch(x, t, begin + j + ahead);
        SIMD_LOOP for (int l = 0; l < SIMD_LANES; l++) lanes[l] += simd_load(x, t, begin + j + l);
    }
    for (int l = 0; j + l < cols; l++) lanes[l] += simd_load(x, t, begin + j + l);
    return simd_sum(lanes);
}

/* The first pass over a row (`fetch`) fetches the next row, which then arrives while this one is worked on.
 */
SIMD_INLINE float row_sum_squares(const void *x, int64_t begin, int64_t cols, float mean, bool fetch,
                                  enum dtype t) {
    float lanes[SIMD_LANES] = {0};
    int64_t j = 0, ahead = cols > FETCH_MIN ? cols : FETCH_MIN;
    for (; j + SIMD_LANES <= cols; j += SIMD_LANES) {
        if (fetch) simd_fetch(x, t, begin + j + ahead);
        SIMD_LOOP for (int l = 0; l < SIMD_LANES; l++) {
            float d = simd_load(x, t, begin + j + l) - mean;
            lanes[l] = MATH_FMA(d, d, lanes[l]);
        }
    }
    for (int l = 0; j + l < cols; l++) {
        float d = simd_load(x, t, begin + j + l) - mean;
        lanes[l] = MATH_FMA(d, d, lanes[l]);
    }
    return simd_sum(lanes);
}

/* Forward and backward call this on the same row and get the same bits. */
SIMD_INLINE struct row_stats row_stats(const void *x, int64_t row, int64_t cols, bool rms, float epsilon,
                                       enum dtype t) {
    float mean = 0, sum;
    if (rms) {
        sum = row_sum_squares(x, row * cols, cols, 0, true, t);
    } else {
        mean = row_sum(x, row * cols, cols, t) / (float)cols;
        sum = row_sum_squares(x, row * cols, cols, mean, false, t);
    }
    float variance = sum / (float)cols;
    return (struct row_stats){mean, 1.0f / sqrtf(variance + epsilon)};
}

/* ---- forward ---- */
SIMD_INLINE void forward_rows(const struct norm_forward_args *args, int64_t begin, int64_t end,
                              enum dtype t) {
    const struct norm_forward_args a = *args;
    float one = a.zero_centered ? 1 : 0;
    for (int64_t i = begin; i < end; i++) {
        struct row_stats s = row_stats(a.x, i, a.cols, a.rms, a.epsilon, t);
        if (a.bias) {
            SIMD_LOOP for (int64_t j = 0; j < a.cols; j++) {
                float hat = (simd_load(a.x, t, i * a.cols + j) - s.mean) * s.r;
                float w = one + simd_load(a.weight, t, j);
                simd_store(a.y, t, i * a.cols + j, MATH_FMA(hat, w, simd_load(a.bias, t, j)));
            }
        } else {
            SIMD_LOOP for (int64_t j = 0; j < a.cols; j++) {
                float hat = (simd_load(a.x, t, i * a.cols + j) - s.mean) * s.r;
                simd_store(a.y, t, i * a.cols + j, hat * (one + simd_load(a.weight, t, j)));
            }
        }
    }
}

static void forward_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct norm_forward_args *a = context;
    (void)thread;
    SIMD_BY_DTYPE(a->dtype, forward_rows, a, begin, end)
}

void CPU(norm_forward)(const struct stream *stream, const struct norm_forward_args *args) {
    struct norm_forward_args a = *args;
    threads_for(stream->threads, a.rows, simd_rows_per_chunk(CHUNK, a.cols), forward_body, &a);
}

/* ---- backward ---- */
struct backward {
    struct norm_backward_args args;
    int64_t block, blocks; /* rows per block, number of blocks */
    float *partial;        /* [blocks, dweight then dbias (LayerNorm), cols] */
};

static int64_t param_block(int64_t rows) {
    int64_t block = (rows + PARAM_BLOCKS - 1) / PARAM_BLOCKS;
    return block < PARAM_BLOCK_MIN ? PARAM_BLOCK_MIN : block;
}

static int64_t param_blocks(int64_t rows) {
    return (rows + param_block(rows) - 1) / param_block(rows);
}

size_t CPU(norm_backward_workspace)(const struct stream *stream, const struct norm_backward_args *args) {
    (void)stream;
    int64_t vectors = param_blocks(args->rows) * (args->rms ? 1 : 2);
    return (size_t)(vectors * args->cols) * sizeof(float);
}

/* Adds the row to dweight and dbias and returns mean(g) and mean(g hat), g = dy w. */
SIMD_INLINE struct row_stats row_means(const struct norm_backward_args *a, int64_t row, struct row_stats s,
                                       float *dweight, float *dbias, enum dtype t) {
    float lanes_g[SIMD_LANES] = {0}, lanes_g_hat[SIMD_LANES] = {0}, one = a->zero_centered ? 1 : 0;
    int64_t cols = a->cols, x0 = row * cols, full = cols / SIMD_LANES * SIMD_LANES;
    const void *x = a->x, *dy = a->dy, *weight = a->weight;
#define STEP(l, j)                                                                                           \
    float hat = (simd_load(x, t, x0 + (j)) - s.mean) * s.r, d = simd_load(dy, t, x0 + (j));                  \
    float g = d * (one + simd_load(weight, t, (j)));                                                         \
    lanes_g_hat[l] = MATH_FMA(g, hat, lanes_g_hat[l]);                                                       \
    dweight[j] = MATH_FMA(d, hat, dweight[j]);                                                               \
    if (dbias) {                                                                                             \
        lanes_g[l] += g;                                                                                     \
        dbias[j] += d;                                                                                       \
    }
    for (int64_t j = 0; j < full; j += SIMD_LANES) {
        simd_fetch(dy, t, x0 + j + (cols > FETCH_MIN ? cols : FETCH_MIN));
        SIMD_LOOP for (int l = 0; l < SIMD_LANES; l++) {
            STEP(l, j + l)
        }
    }
    for (int64_t j = full; j < cols; j++) {
        STEP(j - full, j)
    }
#undef STEP
    return (struct row_stats){simd_sum(lanes_g) / (float)cols, simd_sum(lanes_g_hat) / (float)cols};
}

/* dx (+)= r * (g - mean(g) - hat * mean(g hat)); for RMSNorm mean(g) is left out. */
SIMD_INLINE void row_dx(const struct norm_backward_args *a, int64_t row, struct row_stats s,
                        struct row_stats means, bool accumulate, enum dtype t) {
    float one = a->zero_centered ? 1 : 0, mean_g = a->rms ? 0 : means.mean, mean_g_hat = means.r;
    int64_t cols = a->cols, x0 = row * cols;
    const void *x = a->x, *dy = a->dy, *weight = a->weight;
    void *dx = a->dx;
    SIMD_LOOP for (int64_t j = 0; j < cols; j++) {
        float hat = (simd_load(x, t, x0 + j) - s.mean) * s.r;
        float g = simd_load(dy, t, x0 + j) * (one + simd_load(weight, t, j));
        float d = s.r * (g - MATH_FMA(hat, mean_g_hat, mean_g));
        simd_store(dx, t, x0 + j, accumulate ? simd_load(dx, t, x0 + j) + d : d);
    }
}

SIMD_INLINE void backward_rows(const struct backward *b, int64_t begin, int64_t end, enum dtype t) {
    const struct norm_backward_args a = b->args;
    float *dweight = b->partial + begin / b->block * (a.rms ? 1 : 2) * a.cols;
    float *dbias = a.rms ? NULL : dweight + a.cols;
    memset(dweight, 0, (size_t)((a.rms ? 1 : 2) * a.cols) * sizeof(float));
    for (int64_t i = begin; i < end; i++) {
        struct row_stats s = row_stats(a.x, i, a.cols, a.rms, a.epsilon, t), means;
        means = dbias ? row_means(&a, i, s, dweight, dbias, t) : row_means(&a, i, s, dweight, NULL, t);
        if (a.accumulate_dx)
            row_dx(&a, i, s, means, true, t);
        else
            row_dx(&a, i, s, means, false, t);
    }
}

static void backward_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct backward *b = context;
    (void)thread;
    SIMD_BY_DTYPE(b->args.dtype, backward_rows, b, begin, end)
}

/* out (+)= the partials of its kind (0 dweight, 1 dbias), block by block. */
static void combine(const struct backward *b, float *out, int64_t kind, int64_t begin, int64_t end) {
    float sum[PARAM_COLUMNS] = {0};
    int64_t cols = b->args.cols, kinds = b->args.rms ? 1 : 2, n = end - begin;
    for (int64_t i = 0; i < b->blocks; i++) {
        const float *partial = b->partial + (i * kinds + kind) * cols + begin;
        SIMD_LOOP for (int64_t j = 0; j < n; j++) sum[j] += partial[j];
    }
    for (int64_t j = 0; j < n; j++)
        out[begin + j] = b->args.accumulate_params ? out[begin + j] + sum[j] : sum[j];
}

static void combine_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct backward *b = context;
    (void)thread;
    combine(b, b->args.dweight, 0, begin, end);
    if (b->args.dbias) combine(b, b->args.dbias, 1, begin, end);
}

void CPU(norm_backward)(const struct stream *stream, const struct norm_backward_args *args) {
    struct backward b = {*args, param_block(args->rows), param_blocks(args->rows), stream->workspace};
    threads_for(stream->threads, args->rows, b.block, backward_body, &b);
    threads_for(stream->threads, args->cols, PARAM_COLUMNS, combine_body, &b);
}
