/* Embedding lookup and its gradient. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

enum {
    CHUNK = 16384, /* elements of one forward chunk */
    COLUMNS = 64,  /* columns of the gradient that one thread owns at a time */
    AHEAD = 8,     /* rows fetched ahead: gradient rows are scattered, so the hardware cannot guess them */
};

SIMD_INLINE void forward_rows(const struct embedding_forward_args *a, int64_t begin, int64_t end,
                              enum dtype t) {
    int64_t h = a->h;
    void *y = a->y;
    const void *weight = a->weight, *position_weight = a->position_weight;
    for (int64_t r = begin; r < end; r++) {
        int64_t at = r % a->b * a->s + r / a->b, token = a->tokens[at];
        if (!position_weight) {
            memcpy(dtype_at(y, t, r * h), dtype_at(weight, t, token * h), (size_t)h * dtype_bytes(t));
            continue;
        }
        int64_t position = a->positions[at];
        SIMD_LOOP for (int64_t c = 0; c < h; c++) {
            float sum = simd_load(weight, t, token * h + c) + simd_load(position_weight, t, position * h + c);
            simd_store(y, t, r * h + c, sum);
        }
    }
}

static void forward_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct embedding_forward_args *a = context;
    (void)thread;
    SIMD_BY_DTYPE(a->dtype, forward_rows, a, begin, end)
}

void CPU(embedding_forward)(const struct stream *stream, const struct embedding_forward_args *args) {
    struct embedding_forward_args a = *args;
    threads_for(stream->threads, a.s * a.b, simd_rows_per_chunk(CHUNK, a.h), forward_body, &a);
}

/* Adds columns [begin, end) of every row of dy, in rising order of rows: no two threads share a column, so
 * the order of additions is the same with any number of threads. */
SIMD_INLINE void add_columns(const struct embedding_backward_args *a, float *table, const int32_t *ids,
                             int64_t begin, int64_t end, enum dtype t) {
    int64_t rows = a->s * a->b, h = a->h, s = a->s, b = a->b;
    const void *dy = a->dy;
    for (int64_t r = 0; r < rows; r++) {
        if (r + AHEAD < rows) {
            int64_t next = r + AHEAD;
            const float *row = table + ids[next % b * s + next / b] * h;
            for (int64_t c = begin; c < end; c += 16) {
                __builtin_prefetch(row + c, 1);
                __builtin_prefetch(dtype_at(dy, t, next * h + c), 0);
            }
        }
        float *row = table + ids[r % b * s + r / b] * h;
        SIMD_LOOP for (int64_t c = begin; c < end; c++) row[c] += simd_load(dy, t, r * h + c);
    }
}

static void backward_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct embedding_backward_args *a = context;
    (void)thread;
    if (a->dweight) {
        SIMD_BY_DTYPE(a->dtype, add_columns, a, a->dweight, a->tokens, begin, end)
    }
    if (a->dposition_weight) {
        SIMD_BY_DTYPE(a->dtype, add_columns, a, a->dposition_weight, a->positions, begin, end)
    }
}

void CPU(embedding_backward)(const struct stream *stream, const struct embedding_backward_args *args) {
    struct embedding_backward_args a = *args;
    threads_for(stream->threads, a.h, COLUMNS, backward_body, &a);
}
