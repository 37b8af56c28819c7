#pragma once
/* Element-wise work.
 *
 * activation: x[rows, in] -> y[rows, cols]; in = 2 * cols for the gated kinds (first half is gated, second
 * half multiplies: y = f(x[:, :cols]) * x[:, cols:]), else in = cols. GELU_ERF  0.5 x (1 + erf(x / sqrt 2))
 * GELU_TANH  0.5 x (1 + tanh(0.79788456 x (1 + 0.044715 x^2))) SQUARED_RELU  max(x, 0)^2    SWIGLU  f = x
 * sigmoid(x)    GEGLU_QUICK  f = x sigmoid(1.702 x)    GEGLU  f = GELU_ERF Backward reads x and dy. dx may
 * not alias dy for the gated kinds.
 *
 * dropout: y = keep ? x / (1 - p) : 0; element i is kept when the Philox word of (key, first_element + i) is
 * not below rng_drop_threshold(p). Serves forward and backward (the same function of dy). y may alias x.
 *
 * residual_forward: y = residual + dropout(x). p = 0: no random numbers. y may alias residual or x.
 * residual_backward: dx = dropout(dy); dresidual (+)= dy. dx == dy and dresidual == dy are allowed when that
 * output is a plain copy (p == 0 for dx; no accumulate for dresidual); an output that is NULL is skipped.
 *
 * cast: dst[n] = (dst_dtype) src[n].   add: y[n] = a[n] + b[n] (y may alias).   fill: y[n] = value.
 *
 * copy_blocks: dst[i * dst_stride0 + j * dst_stride1 + k] = src[i * src_stride0 + j * src_stride1 + k] for
 * i < n0, j < n1, k < n2: rows of n2 elements from one order to another. dst must not overlap src, and no two
 * (i, j) may write the same element. [a, s, d] to [s, a, d]: n0 = a, n1 = s, n2 = d, src_stride0 = s * d,
 * src_stride1 = d, dst_stride0 = d, dst_stride1 = a * d. */
#include "core/base/rng.h"
#include "core/tensor/dtype.h"
#include <stdbool.h>

enum activation {
    ACTIVATION_GELU_TANH,
    ACTIVATION_GELU_ERF,
    ACTIVATION_SQUARED_RELU,
    ACTIVATION_SWIGLU,
    ACTIVATION_GEGLU_QUICK,
    ACTIVATION_GEGLU,
    ACTIVATION_COUNT
};

static inline bool activation_is_gated(enum activation kind) {
    return kind >= ACTIVATION_SWIGLU;
}

struct activation_forward_args {
    void *y;       /* [rows, cols] */
    const void *x; /* [rows, cols or 2 * cols] */
    int64_t rows, cols;
    enum activation kind;
    enum dtype dtype;
};

struct activation_backward_args {
    void *dx;       /* [rows, cols or 2 * cols] */
    const void *dy; /* [rows, cols] */
    const void *x;
    int64_t rows, cols;
    enum activation kind;
    enum dtype dtype;
};

struct dropout_args {
    void *y;
    const void *x;
    int64_t n;
    uint64_t first_element;
    float p;
    struct rng_key key;
    enum dtype dtype;
};

struct residual_forward_args {
    void *y;
    const void *residual, *x;
    int64_t n;
    uint64_t first_element;
    float p;
    struct rng_key key;
    enum dtype dtype;
};

struct residual_backward_args {
    void *dx, *dresidual;
    const void *dy;
    int64_t n;
    uint64_t first_element;
    float p;
    struct rng_key key;
    bool accumulate_dx, accumulate_dresidual;
    enum dtype dtype;
};

struct cast_args {
    void *dst;
    const void *src;
    int64_t n;
    enum dtype dst_dtype, src_dtype;
};

struct add_args {
    void *y;
    const void *a, *b;
    int64_t n;
    enum dtype dtype;
};

struct copy_blocks_args {
    void *dst;
    const void *src;
    int64_t n0, n1, n2;
    int64_t dst_stride0, dst_stride1, src_stride0, src_stride1; /* in elements */
    enum dtype dtype;                                           /* any */
};

struct fill_args {
    void *y;
    int64_t n;
    float value;
    enum dtype dtype;
};
