/* Dispatch: rows gathered and combined, the shared experts' gate, the router's gradients. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/gemm_rows.h"
#include "kernels/cpu/simd.h"

enum { CHUNK = 16384, STRIP = 256, TOKENS = 64 };

/* ---- rows ---- */

static void gather_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct gather_rows_args *a = context;
    size_t bytes = (size_t)a->cols * dtype_bytes(a->dtype);
    (void)thread;
    for (int64_t i = begin; i < end; i++) {
        char *y = (char *)a->y + (size_t)i * bytes;
        if (a->index[i] < 0)
            memset(y, 0, bytes);
        else
            memcpy(y, (const char *)a->x + (size_t)(a->index[i] / a->divisor) * bytes, bytes);
    }
}

void CPU(gather_rows)(const struct stream *stream, const struct gather_rows_args *args) {
    threads_for(stream->threads, args->rows, simd_rows_per_chunk(CHUNK, args->cols), gather_body,
                (void *)(uintptr_t)args);
}

/* One strip of one row: the sum stays in float32 until it is stored. */
SIMD_INLINE void combine_strip(const struct combine_rows_args *a, int64_t row, int64_t j0, int64_t n,
                               enum dtype t) {
    float sums[STRIP];
    int64_t y0 = row * a->cols + j0;
    const int32_t *index = a->index + row * a->fan;
    if (a->accumulate) {
        SIMD_LOOP for (int64_t j = 0; j < n; j++) sums[j] = simd_load(a->y, t, y0 + j);
    } else {
        SIMD_LOOP for (int64_t j = 0; j < n; j++) sums[j] = 0;
    }
    for (int64_t k = 0; k < a->fan; k++) {
        if (index[k] < 0) continue;
        int64_t x0 = index[k] * a->cols + j0;
        SIMD_LOOP for (int64_t j = 0; j < n; j++) sums[j] += simd_load(a->x, t, x0 + j);
    }
    SIMD_LOOP for (int64_t j = 0; j < n; j++) simd_store(a->y, t, y0 + j, sums[j]);
}

SIMD_INLINE void combine_range(const struct combine_rows_args *a, int64_t begin, int64_t end, enum dtype t) {
    for (int64_t i = begin; i < end; i++)
        for (int64_t j = 0; j < a->cols; j += STRIP)
            combine_strip(a, i, j, a->cols - j < STRIP ? a->cols - j : STRIP, t);
}

static void combine_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct combine_rows_args *a = context;
    (void)thread;
    SIMD_BY_DTYPE(a->dtype, combine_range, a, begin, end)
}

void CPU(combine_rows)(const struct stream *stream, const struct combine_rows_args *args) {
    threads_for(stream->threads, args->rows, simd_rows_per_chunk(CHUNK, args->cols), combine_body,
                (void *)(uintptr_t)args);
}

/* ---- gate ---- */

SIMD_INLINE void gate_range(const struct gate_forward_args *a, int64_t begin, int64_t end, enum dtype t) {
    for (int64_t i = begin; i < end; i++) {
        float open = math_sigmoid(simd_load(a->g, t, i));
        SIMD_LOOP for (int64_t j = i * a->cols; j < (i + 1) * a->cols; j++)
            simd_store(a->y, t, j, open * simd_load(a->x, t, j));
    }
}

static void gate_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct gate_forward_args *a = context;
    (void)thread;
    SIMD_BY_DTYPE(a->dtype, gate_range, a, begin, end)
}

void CPU(gate_forward)(const struct stream *stream, const struct gate_forward_args *args) {
    threads_for(stream->threads, args->rows, simd_rows_per_chunk(CHUNK, args->cols), gate_body,
                (void *)(uintptr_t)args);
}

SIMD_INLINE void gate_run(float *lanes, const struct gate_backward_args *a, float open, int64_t j0, int64_t n,
                          enum dtype t) {
    SIMD_LOOP for (int64_t j = 0; j < n; j++) {
        float dy = simd_load(a->dy, t, j0 + j);
        lanes[j] += dy * simd_load(a->x, t, j0 + j);
        simd_store(a->dx, t, j0 + j, open * dy);
    }
}

SIMD_INLINE void gate_back_range(const struct gate_backward_args *a, int64_t begin, int64_t end,
                                 enum dtype t) {
    for (int64_t i = begin; i < end; i++) {
        float open = math_sigmoid(simd_load(a->g, t, i)), lanes[SIMD_LANES] = {0};
        int64_t j = i * a->cols, last = (i + 1) * a->cols;
        for (; j + SIMD_LANES <= last; j += SIMD_LANES) gate_run(lanes, a, open, j, SIMD_LANES, t);
        gate_run(lanes, a, open, j, last - j, t);
        simd_store(a->dg, t, i, simd_sum(lanes) * open * (1.0f - open));
    }
}

static void gate_back_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct gate_backward_args *a = context;
    (void)thread;
    SIMD_BY_DTYPE(a->dtype, gate_back_range, a, begin, end)
}

void CPU(gate_backward)(const struct stream *stream, const struct gate_backward_args *args) {
    threads_for(stream->threads, args->rows, simd_rows_per_chunk(CHUNK, args->cols), gate_back_body,
                (void *)(uintptr_t)args);
}

/* ---- the router's gradients: few experts, so each strip of the other operand is read once ---- */

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

enum { DX_TOKENS = 4 }; /* that share the conversion of a strip of weights */

/* A strip of dx of `count` tokens. */
static void router_dx_strip(const struct router_backward_args *a, int64_t t0, int64_t count, int64_t j,
                            int64_t n) {
    float sums[DX_TOKENS][STRIP], row[STRIP];
    for (int64_t i = 0; i < count; i++) {
        memset(sums[i], 0, sizeof(sums[i]));
        if (a->accumulate_dx)
            rows_load(sums[i], dtype_at(a->dx, a->dtype, (t0 + i) * a->hidden + j), a->dtype, n);
    }
    for (int64_t e = 0; e < a->experts; e++) {
        rows_load(row, dtype_at(a->weight, a->dtype, e * a->hidden + j), a->dtype, n);
        for (int64_t i = 0; i < count; i++) {
            float factor = a->dlogits[(t0 + i) * a->experts + e];
            SIMD_LOOP for (int64_t x = 0; x < n; x++) sums[i][x] = MATH_FMA(factor, row[x], sums[i][x]);
        }
    }
    for (int64_t i = 0; i < count; i++)
        rows_store(dtype_at(a->dx, a->dtype, (t0 + i) * a->hidden + j), sums[i], a->dtype, n);
}

static void router_dx_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct router_backward_args *a = context;
    (void)thread;
    for (int64_t j = 0; j < a->hidden; j += STRIP)
        for (int64_t t = begin; t < end; t += DX_TOKENS)
            router_dx_strip(a, t, least(DX_TOKENS, end - t), j, least(STRIP, a->hidden - j));
}

/* A strip of columns of every expert; tokens in order. Each token's strip is loaded once per 16 experts. */
enum { DW_STRIP = 64, DW_EXPERTS = 16 };

static void router_dweight_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct router_backward_args *a = context;
    float sums[DW_EXPERTS][DW_STRIP], row[DW_STRIP];
    int64_t strips = (a->hidden + DW_STRIP - 1) / DW_STRIP;
    (void)thread;
    for (int64_t task = begin; task < end; task++) {
        int64_t j = task % strips * DW_STRIP, e0 = task / strips * DW_EXPERTS;
        int64_t n = least(DW_STRIP, a->hidden - j), count = least(DW_EXPERTS, a->experts - e0);
        memset(sums, 0, sizeof(sums));
        for (int64_t t = 0; t < a->tokens; t++) {
            const float *factors = a->dlogits + t * a->experts + e0;
            rows_load(row, dtype_at(a->x, a->dtype, t * a->hidden + j), a->dtype, n);
            for (int64_t e = 0; e < count; e++) {
                SIMD_LOOP for (int64_t x = 0; x < n; x++) sums[e][x] =
                    MATH_FMA(factors[e], row[x], sums[e][x]);
            }
        }
        for (int64_t e = 0; e < count; e++) {
            float *dw = a->dweight + (e0 + e) * a->hidden + j;
            for (int64_t x = 0; x < n; x++) dw[x] = (a->accumulate_dweight ? dw[x] : 0) + sums[e][x];
        }
    }
}

void CPU(router_backward)(const struct stream *stream, const struct router_backward_args *args) {
    int64_t strips = (args->hidden + DW_STRIP - 1) / DW_STRIP;
    int64_t parts = (args->experts + DW_EXPERTS - 1) / DW_EXPERTS;
    threads_for(stream->threads, args->tokens, TOKENS, router_dx_body, (void *)(uintptr_t)args);
    threads_for(stream->threads, strips * parts, 1, router_dweight_body, (void *)(uintptr_t)args);
}
