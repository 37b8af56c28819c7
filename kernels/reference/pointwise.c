/* Element-wise kernels in plain loops and double precision. */
#include "kernels/reference/reference.h"
#include <math.h>

/* ---- activations ---- */
static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

static double gelu_erf(double x) {
    return 0.5 * x * (1 + erf(x * 0.70710678118654752));
}

static double gelu_erf_slope(double x) {
    double density = 0.39894228040143268 * exp(-0.5 * x * x);
    return 0.5 * (1 + erf(x * 0.70710678118654752)) + x * density;
}

static const double gelu_scale = 0.79788456080286536; /* sqrt(2 / pi) */

static double gelu_tanh(double x) {
    return 0.5 * x * (1 + tanh(gelu_scale * x * (1 + 0.044715 * x * x)));
}

static double gelu_tanh_slope(double x) {
    double t = tanh(gelu_scale * x * (1 + 0.044715 * x * x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * gelu_scale * (1 + 3 * 0.044715 * x * x);
}

static double activate(enum activation kind, double x) {
    switch (kind) {
    case ACTIVATION_GELU_TANH:
        return gelu_tanh(x);
    case ACTIVATION_GELU_ERF:
    case ACTIVATION_GEGLU:
        return gelu_erf(x);
    case ACTIVATION_SQUARED_RELU:
        return x < 0 ? 0 : x * x;
    case ACTIVATION_SWIGLU:
        return x * sigmoid(x);
    case ACTIVATION_GEGLU_QUICK:
        return x * sigmoid(1.702 * x);
    default:
        return NAN;
    }
}

static double activation_slope(enum activation kind, double x) {
    double beta = kind == ACTIVATION_GEGLU_QUICK ? 1.702 : 1, s = sigmoid(beta * x);
    switch (kind) {
    case ACTIVATION_GELU_TANH:
        return gelu_tanh_slope(x);
    case ACTIVATION_GELU_ERF:
    case ACTIVATION_GEGLU:
        return gelu_erf_slope(x);
    case ACTIVATION_SQUARED_RELU:
        return x < 0 ? 0 : 2 * x;
    case ACTIVATION_SWIGLU:
    case ACTIVATION_GEGLU_QUICK:
        return s + beta * x * s * (1 - s);
    default:
        return NAN;
    }
}

void reference_activation_forward(const struct stream *stream, const struct activation_forward_args *args) {
    (void)stream;
    const struct activation_forward_args a = *args;
    bool gated = activation_is_gated(a.kind);
    int64_t in = gated ? 2 * a.cols : a.cols;
    for (int64_t i = 0; i < a.rows; i++)
        for (int64_t j = 0; j < a.cols; j++) {
            double y = activate(a.kind, load_f32(a.x, a.dtype, i * in + j));
            if (gated) y *= load_f32(a.x, a.dtype, i * in + a.cols + j);
            store_f32(a.y, a.dtype, i * a.cols + j, (float)y);
        }
}

void reference_activation_backward(const struct stream *stream, const struct activation_backward_args *args) {
    (void)stream;
    const struct activation_backward_args a = *args;
    bool gated = activation_is_gated(a.kind);
    int64_t in = gated ? 2 * a.cols : a.cols;
    for (int64_t i = 0; i < a.rows; i++)
        for (int64_t j = 0; j < a.cols; j++) {
            double x = load_f32(a.x, a.dtype, i * in + j);
            double up = gated ? load_f32(a.x, a.dtype, i * in + a.cols + j) : 1;
            double dy = load_f32(a.dy, a.dtype, i * a.cols + j);
            store_f32(a.dx, a.dtype, i * in + j, (float)(dy * up * activation_slope(a.kind, x)));
            if (gated) store_f32(a.dx, a.dtype, i * in + a.cols + j, (float)(dy * activate(a.kind, x)));
        }
}

void reference_scaled_activation_forward(const struct stream *stream,
                                         const struct scaled_activation_forward_args *args) {
    (void)stream;
    const struct scaled_activation_forward_args a = *args;
    bool gated = activation_is_gated(a.kind);
    int64_t in = gated ? 2 * a.cols : a.cols;
    for (int64_t i = 0; i < a.rows; i++)
        for (int64_t j = 0; j < a.cols; j++) {
            double y = activate(a.kind, load_f32(a.x, a.dtype, i * in + j));
            if (gated) y *= (double)load_f32(a.x, a.dtype, i * in + a.cols + j);
            y = a.index[i] < 0 ? 0 : y * (double)a.scales[a.index[i]];
            store_f32(a.y, a.dtype, i * a.cols + j, (float)y);
        }
}

void reference_scaled_activation_backward(const struct stream *stream,
                                          const struct scaled_activation_backward_args *args) {
    (void)stream;
    const struct scaled_activation_backward_args a = *args;
    bool gated = activation_is_gated(a.kind);
    int64_t in = gated ? 2 * a.cols : a.cols;
    for (int64_t i = 0; i < a.rows; i++) {
        double scale = a.index[i] < 0 ? 0 : (double)a.scales[a.index[i]], sum = 0;
        for (int64_t j = 0; j < a.cols; j++) {
            double x = load_f32(a.x, a.dtype, i * in + j);
            double up = gated ? (double)load_f32(a.x, a.dtype, i * in + a.cols + j) : 1;
            double dy = load_f32(a.dy, a.dtype, i * a.cols + j), value = activate(a.kind, x);
            if (a.index[i] < 0) dy = x = up = value = 0;
            sum += dy * value * up;
            store_f32(a.dx, a.dtype, i * in + j, (float)(scale * dy * up * activation_slope(a.kind, x)));
            if (gated) store_f32(a.dx, a.dtype, i * in + a.cols + j, (float)(scale * dy * value));
        }
        if (a.index[i] >= 0) a.dscales[a.index[i]] = (float)sum;
    }
}

/* ---- dropout and residual ---- */
static double drop(double x, float p, struct rng_key key, uint64_t element) {
    if (p == 0) return x;
    uint32_t word = rng_philox(key, element / 4).w[element % 4];
    return word >= rng_drop_threshold(p) ? x / (1 - (double)p) : 0;
}

void reference_dropout(const struct stream *stream, const struct dropout_args *args) {
    (void)stream;
    const struct dropout_args a = *args;
    for (int64_t i = 0; i < a.n; i++) {
        double x = load_f32(a.x, a.dtype, i);
        store_f32(a.y, a.dtype, i, (float)drop(x, a.p, a.key, a.first_element + (uint64_t)i));
    }
}

void reference_residual_forward(const struct stream *stream, const struct residual_forward_args *args) {
    (void)stream;
    const struct residual_forward_args a = *args;
    for (int64_t i = 0; i < a.n; i++) {
        double x = drop(load_f32(a.x, a.dtype, i), a.p, a.key, a.first_element + (uint64_t)i);
        store_f32(a.y, a.dtype, i, (float)(load_f32(a.residual, a.dtype, i) + x));
    }
}

void reference_residual_backward(const struct stream *stream, const struct residual_backward_args *args) {
    (void)stream;
    const struct residual_backward_args a = *args;
    for (int64_t i = 0; i < a.n; i++) {
        double dy = load_f32(a.dy, a.dtype, i);
        if (a.dx) {
            double old = a.accumulate_dx ? load_f32(a.dx, a.dtype, i) : 0;
            double dx = drop(dy, a.p, a.key, a.first_element + (uint64_t)i);
            store_f32(a.dx, a.dtype, i, (float)(old + dx));
        }
        if (a.dresidual) {
            double old = a.accumulate_dresidual ? load_f32(a.dresidual, a.dtype, i) : 0;
            store_f32(a.dresidual, a.dtype, i, (float)(old + dy));
        }
    }
}

/* ---- cast, add, fill ---- */
void reference_cast(const struct stream *stream, const struct cast_args *args) {
    (void)stream;
    const struct cast_args a = *args;
    for (int64_t i = 0; i < a.n; i++) store_f32(a.dst, a.dst_dtype, i, load_f32(a.src, a.src_dtype, i));
}

void reference_add(const struct stream *stream, const struct add_args *args) {
    (void)stream;
    const struct add_args a = *args;
    for (int64_t i = 0; i < a.n; i++) {
        double sum = (double)load_f32(a.a, a.dtype, i) + load_f32(a.b, a.dtype, i);
        store_f32(a.y, a.dtype, i, (float)sum);
    }
}

void reference_fill(const struct stream *stream, const struct fill_args *args) {
    (void)stream;
    for (int64_t i = 0; i < args->n; i++) store_f32(args->y, args->dtype, i, args->value);
}

void reference_copy_blocks(const struct stream *stream, const struct copy_blocks_args *args) {
    (void)stream;
    const struct copy_blocks_args a = *args;
    for (int64_t i = 0; i < a.n0; i++)
        for (int64_t j = 0; j < a.n1; j++) {
            memcpy(dtype_at(a.dst, a.dtype, i * a.dst_stride0 + j * a.dst_stride1),
                   dtype_at(a.src, a.dtype, i * a.src_stride0 + j * a.src_stride1),
                   (size_t)a.n2 * dtype_bytes(a.dtype));
        }
}
