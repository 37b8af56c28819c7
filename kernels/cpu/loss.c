/* Cross entropy: the row is walked in blocks that stay in the first-level cache; the running maximum is
 * raised block by block and the running sum scaled to match (online softmax: Milakov & Gimelshein 2018). */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include <math.h>

enum {
    BLOCK = 4096,  /* logits; each block's float sum goes into a double */
    CHUNK = 65536, /* logits that one thread takes at a time, at least one row */
};

SIMD_INLINE float block_max(const void *x, int64_t begin, int64_t n, enum dtype t) {
    float lanes[SIMD_LANES];
    for (int l = 0; l < SIMD_LANES; l++) lanes[l] = -INFINITY;
    int64_t j = 0;
    for (; j + SIMD_LANES <= n; j += SIMD_LANES) SIMD_LOOP for (int l = 0; l < SIMD_LANES; l++) {
            float v = simd_load(x, t, begin + j + l);
            lanes[l] = v > lanes[l] ? v : lanes[l];
        }
    for (int l = 0; j + l < n; l++) {
        float v = simd_load(x, t, begin + j + l);
        lanes[l] = v > lanes[l] ? v : lanes[l];
    }
    float max = lanes[0];
    for (int l = 1; l < SIMD_LANES; l++) max = lanes[l] > max ? lanes[l] : max;
    return max;
}

/* Fetches the next block while it computes on this one, so that memory and arithmetic overlap. */
SIMD_INLINE float block_sum_exp(const void *x, int64_t begin, int64_t n, float max, enum dtype t) {
    float lanes[SIMD_LANES] = {0};
    int64_t j = 0;
    for (; j + SIMD_LANES <= n; j += SIMD_LANES) {
        simd_fetch(x, t, begin + j + BLOCK);
        SIMD_LOOP for (int l = 0; l < SIMD_LANES; l++) lanes[l] +=
            math_exp_softmax(simd_load(x, t, begin + j + l) - max);
    }
    for (int l = 0; j + l < n; l++) lanes[l] += math_exp_softmax(simd_load(x, t, begin + j + l) - max);
    return simd_sum(lanes);
}

/* Columns that count. */
static inline int64_t num_columns(int64_t vocab, int64_t columns) {
    return columns < 0 ? 0 : columns > 0 ? columns : vocab;
}

/* A NaN passes by the maximum and enters the sum. While all logits are -infinity the sum stays 0. */
SIMD_INLINE double row_lse(const void *logits, int64_t begin, int64_t columns, enum dtype t) {
    float max = -INFINITY;
    double sum = 0;
    for (int64_t v = 0; v < columns; v += BLOCK) {
        int64_t n = columns - v < BLOCK ? columns - v : BLOCK;
        float raised = block_max(logits, begin + v, n, t);
        if (raised > max) {
            if (sum != 0) sum *= exp((double)max - raised);
            max = raised;
        }
        sum += block_sum_exp(logits, begin + v, n, max == -INFINITY ? 0 : max, t);
    }
    return (max == -INFINITY ? 0 : max) + log(sum);
}

SIMD_INLINE void forward_rows(const struct cross_entropy_forward_args *a, int64_t begin, int64_t end,
                              enum dtype t) {
    int64_t columns = num_columns(a->vocab, a->columns);
    for (int64_t r = begin; r < end; r++) {
        double lse = row_lse(a->logits, r * a->vocab, columns, t);
        float picked = 0;
        if (a->mask[r] != 0) {
            int64_t label = a->labels[r] - a->first_label;
            if (label >= 0 && label < columns) picked = simd_load(a->logits, t, r * a->vocab + label);
        }
        a->lse[r] = (float)lse;
        if (a->picked) a->picked[r] = picked;
        if (a->loss) a->loss[r] = a->mask[r] != 0 ? (float)(a->mask[r] * (lse - picked)) : 0;
    }
}

static void forward_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct cross_entropy_forward_args *a = context;
    (void)thread;
    SIMD_BY_DTYPE(a->dtype, forward_rows, a, begin, end)
}

void CPU(cross_entropy_forward)(const struct stream *stream, const struct cross_entropy_forward_args *args) {
    struct cross_entropy_forward_args a = *args;
    threads_for(stream->threads, a.rows, simd_rows_per_chunk(CHUNK, a.vocab), forward_body, &a);
}

/* ---- the whole of the shards ---- */
static void combine_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct cross_entropy_combine_args *a = context;
    (void)thread;
    for (int64_t r = begin; r < end; r++) {
        const float *lses = a->lse_parts + r, *picks = a->picked_parts + r;
        double max = -INFINITY, sum = 0, picked = 0;
        for (int64_t p = 0; p < a->parts; p++) {
            double lse = (double)lses[p * a->part_stride];
            max = lse > max ? lse : max; /* a NaN passes by and enters the sum */
        }
        double base = max == -INFINITY ? 0 : max;
        for (int64_t p = 0; p < a->parts; p++) {
            sum += exp((double)lses[p * a->part_stride] - base), picked += (double)picks[p * a->part_stride];
        }
        double lse = base + log(sum);
        a->lse[r] = (float)lse;
        a->loss[r] = a->mask[r] != 0 ? (float)(a->mask[r] * (lse - picked)) : 0;
    }
}

void CPU(cross_entropy_combine)(const struct stream *stream, const struct cross_entropy_combine_args *args) {
    struct cross_entropy_combine_args a = *args;
    if (!a.part_stride) a.part_stride = a.rows;
    threads_for(stream->threads, a.rows, simd_rows_per_chunk(1024, a.parts), combine_body, &a);
}

/* ---- backward ---- */
SIMD_INLINE void backward_rows(const struct cross_entropy_backward_args *a, int64_t begin, int64_t end,
                               enum dtype t) {
    int64_t vocab = a->vocab, columns = num_columns(vocab, a->columns);
    const void *x = a->logits;
    void *dx = a->dlogits;
    for (int64_t r = begin; r < end; r++) {
        int64_t first = r * vocab, count = a->mask[r] == 0 ? 0 : columns;
        memset(dtype_at(dx, t, first + count), 0, (size_t)(vocab - count) * dtype_bytes(t));
        if (!count) continue;
        float lse = a->lse[r], scale = a->mask[r] * a->grad_scale, at_label = 0;
        int64_t label = a->labels[r] - a->first_label;
        bool here = label >= 0 && label < columns;
        if (here) /* before x is lost */
            at_label = (math_exp_softmax(simd_load(x, t, first + label) - lse) - 1.0f) * scale;
        SIMD_LOOP for (int64_t v = 0; v < count; v++)
            simd_store(dx, t, first + v, math_exp_softmax(simd_load(x, t, first + v) - lse) * scale);
        if (here) simd_store(dx, t, first + label, at_label);
    }
}

static void backward_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct cross_entropy_backward_args *a = context;
    (void)thread;
    SIMD_BY_DTYPE(a->dtype, backward_rows, a, begin, end)
}

void CPU(cross_entropy_backward)(const struct stream *stream,
                                 const struct cross_entropy_backward_args *args) {
    struct cross_entropy_backward_args a = *args;
    threads_for(stream->threads, a.rows, simd_rows_per_chunk(CHUNK, a.vocab), backward_body, &a);
}
