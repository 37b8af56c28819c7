/* Embedding lookup and its gradient. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

enum {
    CHUNK = 16384, /* elements of one forward chunk */
    COLUMNS = 64,  /* columns of the gradient that one thread owns at a time */
    AHEAD = 8,     /* rows fetched ahead: gradient rows are scattered, so the hardware cannot guess them */
};

/* Where row r of y finds its ids: `stride` is filled in. */
static inline int64_t id_index(int64_t r, int64_t b, int64_t stride, int64_t first_column) {
    return r % b * stride + first_column + r / b;
}

/* y = what `accumulate` and the two tables add up to; a NULL table gives nothing. */
SIMD_INLINE void add_tables(const struct embedding_forward_args *a, int64_t r, const void *word,
                            const void *position, enum dtype t) {
    int64_t h = a->h;
    void *y = dtype_at(a->y, t, r * h);
    if (!word && !position) {
        if (!a->accumulate) memset(y, 0, (size_t)h * dtype_bytes(t));
    } else if (!word || !position) {
        const void *x = word ? word : position;
        if (!a->accumulate) {
            memcpy(y, x, (size_t)h * dtype_bytes(t));
        } else {
            SIMD_LOOP for (int64_t c = 0; c < h; c++)
                simd_store(y, t, c, simd_load(y, t, c) + simd_load(x, t, c));
        }
    } else if (!a->accumulate) {
        SIMD_LOOP for (int64_t c = 0; c < h; c++)
            simd_store(y, t, c, simd_load(word, t, c) + simd_load(position, t, c));
    } else {
        SIMD_LOOP for (int64_t c = 0; c < h; c++) {
            float sum = simd_load(word, t, c) + simd_load(position, t, c);
            simd_store(y, t, c, simd_load(y, t, c) + sum);
        }
    }
}

SIMD_INLINE void forward_rows(const struct embedding_forward_args *a, int64_t begin, int64_t end,
                              enum dtype t) {
    int64_t h = a->h;
    for (int64_t r = begin; r < end; r++) {
        int64_t at = id_index(r, a->b, a->stride, a->first_column);
        const void *word = NULL, *position = NULL;
        if (a->tokens) {
            int64_t token = a->tokens[at] - a->first_token_id;
            if (token >= 0 && token < a->vocab) word = dtype_at(a->weight, t, token * h);
        }
        if (a->position_weight) position = dtype_at(a->position_weight, t, a->positions[at] * h);
        add_tables(a, r, word, position, t);
    }
}

static void forward_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct embedding_forward_args *a = context;
    (void)thread;
    SIMD_BY_DTYPE(a->dtype, forward_rows, a, begin, end)
}

void CPU(embedding_forward)(const struct stream *stream, const struct embedding_forward_args *args) {
    struct embedding_forward_args a = *args;
    if (!a.stride) a.stride = a.s;
    threads_for(stream->threads, a.s * a.b, simd_rows_per_chunk(CHUNK, a.h), forward_body, &a);
}

/* The gradient of one table: it holds the ids first .. first + rows - 1. */
struct table {
    float *grad;
    const int32_t *ids;
    int64_t first, rows;
};

/* The row that row r of dy is added to; NULL when the table does not hold it. */
static inline float *row_of(const struct embedding_backward_args *a, const struct table *t, int64_t r) {
    int64_t id = t->ids[id_index(r, a->b, a->stride, a->first_column)] - t->first;
    return id >= 0 && id < t->rows ? t->grad + id * a->h : NULL;
}

/* Adds columns [begin, end) of every row of dy, in rising order of rows: no two threads share a column, so
 * the order of additions is the same with any number of threads. */
SIMD_INLINE void add_columns(const struct embedding_backward_args *a, const struct table *table,
                             int64_t begin, int64_t end, enum dtype t) {
    int64_t rows = a->s * a->b, h = a->h;
    const void *dy = a->dy;
    for (int64_t r = 0; r < rows; r++) {
        const float *next = r + AHEAD < rows ? row_of(a, table, r + AHEAD) : NULL;
        for (int64_t c = begin; next && c < end; c += 16) {
            __builtin_prefetch(next + c, 1);
            __builtin_prefetch(dtype_at(dy, t, (r + AHEAD) * h + c), 0);
        }
        float *row = row_of(a, table, r);
        if (!row) continue;
        SIMD_LOOP for (int64_t c = begin; c < end; c++) row[c] += simd_load(dy, t, r * h + c);
    }
}

static void backward_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct embedding_backward_args *a = context;
    const struct table words = {a->dweight, a->tokens, a->first_token_id, a->vocab};
    const struct table positions = {a->dposition_weight, a->positions, 0, a->max_positions};
    (void)thread;
    if (words.grad && words.ids) {
        SIMD_BY_DTYPE(a->dtype, add_columns, a, &words, begin, end)
    }
    if (positions.grad) {
        SIMD_BY_DTYPE(a->dtype, add_columns, a, &positions, begin, end)
    }
}

void CPU(embedding_backward)(const struct stream *stream, const struct embedding_backward_args *args) {
    struct embedding_backward_args a = *args;
    if (!a.stride) a.stride = a.s;
    threads_for(stream->threads, a.h, COLUMNS, backward_body, &a);
}
