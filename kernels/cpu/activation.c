/* Activations, forward and backward, with one exponential and one division per element. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

enum { CHUNK = 16384 }; /* output elements that one thread takes at a time */

struct value_slope {
    float value, slope;
};

/* x sigmoid(u) where u is a function of x with derivative du: the three logistic kinds. */
SIMD_INLINE struct value_slope logistic(float x, float u, float du) {
    float s = math_sigmoid(u);
    struct value_slope r = {x * s, MATH_FMA(x * du, s * (1.0f - s), s)};
    return r;
}

/* f(x) and f'(x). 0.5 (1 + tanh u) = sigmoid(2 u), so GELU_TANH is a logistic kind too. */
SIMD_INLINE struct value_slope activate(enum activation kind, float x) {
    if (kind == ACTIVATION_GELU_TANH) {
        float square = x * x, u = 1.59576912f * x * MATH_FMA(0.044715f, square, 1.0f);
        return logistic(x, u, 1.59576912f * MATH_FMA(0.134145f, square, 1.0f));
    }
    if (kind == ACTIVATION_SWIGLU) return logistic(x, x, 1.0f);
    if (kind == ACTIVATION_GEGLU_QUICK) return logistic(x, 1.702f * x, 1.702f);
    if (kind == ACTIVATION_SQUARED_RELU) {
        float positive = x < 0.0f ? 0.0f : x;
        return (struct value_slope){positive * positive, 2.0f * positive};
    }
    float density, cdf = math_normal_cdf(x, &density);
    return (struct value_slope){x * cdf, MATH_FMA(x, density, cdf)};
}

SIMD_INLINE void forward_row(void *y, const void *x, int64_t y0, int64_t x0, int64_t n, enum activation kind,
                             enum dtype t) {
    if (activation_is_gated(kind)) {
        SIMD_LOOP for (int64_t j = 0; j < n; j++) {
            float value = activate(kind, simd_load(x, t, x0 + j)).value;
            simd_store(y, t, y0 + j, value * simd_load(x, t, x0 + n + j));
        }
    } else {
        SIMD_LOOP for (int64_t j = 0; j < n; j++)
            simd_store(y, t, y0 + j, activate(kind, simd_load(x, t, x0 + j)).value);
    }
}

SIMD_INLINE void backward_row(void *dx, const void *dy, const void *x, int64_t y0, int64_t x0, int64_t n,
                              enum activation kind, enum dtype t) {
    if (activation_is_gated(kind)) {
        SIMD_LOOP for (int64_t j = 0; j < n; j++) {
            struct value_slope f = activate(kind, simd_load(x, t, x0 + j));
            float d = simd_load(dy, t, y0 + j), up = simd_load(x, t, x0 + n + j);
            simd_store(dx, t, x0 + j, d * up * f.slope);
            simd_store(dx, t, x0 + n + j, d * f.value);
        }
    } else {
        SIMD_LOOP for (int64_t j = 0; j < n; j++) {
            float slope = activate(kind, simd_load(x, t, x0 + j)).slope;
            simd_store(dx, t, x0 + j, simd_load(dy, t, y0 + j) * slope);
        }
    }
}

/* Calls fn with the kind as a constant. */
#define BY_KIND(kind, fn, ...)                                                                               \
    switch (kind) {                                                                                          \
    case ACTIVATION_GELU_TANH:                                                                               \
        fn(__VA_ARGS__, ACTIVATION_GELU_TANH, t);                                                            \
        break;                                                                                               \
    case ACTIVATION_GELU_ERF:                                                                                \
        fn(__VA_ARGS__, ACTIVATION_GELU_ERF, t);                                                             \
        break;                                                                                               \
    case ACTIVATION_SQUARED_RELU:                                                                            \
        fn(__VA_ARGS__, ACTIVATION_SQUARED_RELU, t);                                                         \
        break;                                                                                               \
    case ACTIVATION_SWIGLU:                                                                                  \
        fn(__VA_ARGS__, ACTIVATION_SWIGLU, t);                                                               \
        break;                                                                                               \
    case ACTIVATION_GEGLU_QUICK:                                                                             \
        fn(__VA_ARGS__, ACTIVATION_GEGLU_QUICK, t);                                                          \
        break;                                                                                               \
    default:                                                                                                 \
        fn(__VA_ARGS__, ACTIVATION_GEGLU, t);                                                                \
        break;                                                                                               \
    }

/* Rows [begin, end) of a gated kind; elements [begin, end) of the others, whose rows have no meaning. */
SIMD_INLINE void forward_rows(const struct activation_forward_args *a, int64_t begin, int64_t end,
                              enum dtype t) {
    if (!activation_is_gated(a->kind)) {
        BY_KIND(a->kind, forward_row, a->y, a->x, begin, begin, end - begin)
        return;
    }
    for (int64_t i = begin; i < end; i++) {
        BY_KIND(a->kind, forward_row, a->y, a->x, i * a->cols, i * 2 * a->cols, a->cols)
    }
}

static void forward_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct activation_forward_args *a = context;
    (void)thread;
    SIMD_BY_DTYPE(a->dtype, forward_rows, a, begin, end)
}

void CPU(activation_forward)(const struct stream *stream, const struct activation_forward_args *args) {
    struct activation_forward_args a = *args;
    if (!activation_is_gated(a.kind)) a.rows *= a.cols, a.cols = 1;
    threads_for(stream->threads, a.rows, simd_rows_per_chunk(CHUNK, a.cols), forward_body, &a);
}

SIMD_INLINE void backward_rows(const struct activation_backward_args *a, int64_t begin, int64_t end,
                               enum dtype t) {
    if (!activation_is_gated(a->kind)) {
        BY_KIND(a->kind, backward_row, a->dx, a->dy, a->x, begin, begin, end - begin)
        return;
    }
    for (int64_t i = begin; i < end; i++) {
        BY_KIND(a->kind, backward_row, a->dx, a->dy, a->x, i * a->cols, i * 2 * a->cols, a->cols)
    }
}

static void backward_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct activation_backward_args *a = context;
    (void)thread;
    SIMD_BY_DTYPE(a->dtype, backward_rows, a, begin, end)
}

void CPU(activation_backward)(const struct stream *stream, const struct activation_backward_args *args) {
    struct activation_backward_args a = *args;
    if (!activation_is_gated(a.kind)) a.rows *= a.cols, a.cols = 1;
    threads_for(stream->threads, a.rows, simd_rows_per_chunk(CHUNK, a.cols), backward_body, &a);
}

/* ---- with a factor for each row ---- */

SIMD_INLINE void scaled_forward_row(void *y, const void *x, int64_t y0, int64_t x0, int64_t n, float scale,
                                    enum activation kind, enum dtype t) {
    bool gated = activation_is_gated(kind);
    SIMD_LOOP for (int64_t j = 0; j < n; j++) {
        float value = activate(kind, simd_load(x, t, x0 + j)).value;
        if (gated) value *= simd_load(x, t, x0 + n + j);
        simd_store(y, t, y0 + j, value * scale);
    }
}

/* Elements [j0, j0 + n) of a row; adds activation * dy to lanes. */
SIMD_INLINE void scaled_backward_run(float *lanes, void *dx, const void *dy, const void *x, int64_t y0,
                                     int64_t x0, int64_t cols, int64_t n, float scale, enum activation kind,
                                     enum dtype t) {
    bool gated = activation_is_gated(kind);
    SIMD_LOOP for (int64_t j = 0; j < n; j++) {
        struct value_slope f = activate(kind, simd_load(x, t, x0 + j));
        float d = simd_load(dy, t, y0 + j), up = gated ? simd_load(x, t, x0 + cols + j) : 1.0f;
        lanes[j] += d * f.value * up;
        simd_store(dx, t, x0 + j, scale * d * up * f.slope);
        if (gated) simd_store(dx, t, x0 + cols + j, scale * d * f.value);
    }
}

SIMD_INLINE void scaled_backward_row(float *sum_p, void *dx, const void *dy, const void *x, int64_t y0,
                                     int64_t x0, int64_t cols, float scale, enum activation kind,
                                     enum dtype t) {
    float lanes[SIMD_LANES] = {0};
    int64_t j = 0;
    for (; j + SIMD_LANES <= cols; j += SIMD_LANES)
        scaled_backward_run(lanes, dx, dy, x, y0 + j, x0 + j, cols, SIMD_LANES, scale, kind, t);
    scaled_backward_run(lanes, dx, dy, x, y0 + j, x0 + j, cols, cols - j, scale, kind, t);
    *sum_p = simd_sum(lanes);
}

SIMD_INLINE void scaled_forward_rows(const struct scaled_activation_forward_args *a, int64_t begin,
                                     int64_t end, enum dtype t) {
    int64_t in = activation_is_gated(a->kind) ? 2 * a->cols : a->cols;
    for (int64_t i = begin; i < end; i++) {
        if (a->index[i] < 0) {
            memset(dtype_at(a->y, t, i * a->cols), 0, (size_t)a->cols * dtype_bytes(t));
            continue;
        }
        float scale = a->scales[a->index[i]];
        BY_KIND(a->kind, scaled_forward_row, a->y, a->x, i * a->cols, i * in, a->cols, scale)
    }
}

static void scaled_forward_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct scaled_activation_forward_args *a = context;
    (void)thread;
    SIMD_BY_DTYPE(a->dtype, scaled_forward_rows, a, begin, end)
}

void CPU(scaled_activation_forward)(const struct stream *stream,
                                    const struct scaled_activation_forward_args *args) {
    threads_for(stream->threads, args->rows, simd_rows_per_chunk(CHUNK, args->cols), scaled_forward_body,
                (void *)(uintptr_t)args);
}

SIMD_INLINE void scaled_backward_rows(const struct scaled_activation_backward_args *a, int64_t begin,
                                      int64_t end, enum dtype t) {
    int64_t in = activation_is_gated(a->kind) ? 2 * a->cols : a->cols;
    for (int64_t i = begin; i < end; i++) {
        if (a->index[i] < 0) {
            memset(dtype_at(a->dx, t, i * in), 0, (size_t)in * dtype_bytes(t));
            continue;
        }
        float scale = a->scales[a->index[i]], sum;
        BY_KIND(a->kind, scaled_backward_row, &sum, a->dx, a->dy, a->x, i * a->cols, i * in, a->cols, scale)
        a->dscales[a->index[i]] = sum;
    }
}

static void scaled_backward_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct scaled_activation_backward_args *a = context;
    (void)thread;
    SIMD_BY_DTYPE(a->dtype, scaled_backward_rows, a, begin, end)
}

void CPU(scaled_activation_backward)(const struct stream *stream,
                                     const struct scaled_activation_backward_args *args) {
    threads_for(stream->threads, args->rows, simd_rows_per_chunk(CHUNK, args->cols), scaled_backward_body,
                (void *)(uintptr_t)args);
}
