#pragma once
/* LayerNorm and RMSNorm over the last dimension.
 *
 *   LayerNorm: y = (x - mean) * r * w + b,  r = 1 / sqrt(mean((x - mean)^2) + epsilon)      (Ba et al. 2016)
 *   RMSNorm:   y = x * r * w,               r = 1 / sqrt(mean(x^2) + epsilon)               (Zhang & Sennrich
 * 2019) zero_centered: w stands for 1 + weight (--apply-layernorm-1p).
 *
 * Nothing but x is needed by backward: mean and r are computed again from the row while it is in cache, in
 * the same order, so they have the same bits. y may alias x. dx may alias dy. dweight and dbias are fp32. */
#include "core/tensor/dtype.h"
#include <stdbool.h>

struct norm_forward_args {
    void *y;            /* [rows, cols] dtype */
    const void *x;      /* [rows, cols] dtype */
    const void *weight; /* [cols] dtype */
    const void *bias;   /* [cols] dtype; NULL for RMSNorm */
    int64_t rows, cols;
    float epsilon;
    bool rms, zero_centered;
    enum dtype dtype;
};

struct norm_backward_args {
    void *dx;           /* [rows, cols] dtype */
    float *dweight;     /* [cols] */
    float *dbias;       /* [cols]; NULL for RMSNorm */
    const void *dy;     /* [rows, cols] dtype */
    const void *x;      /* [rows, cols] dtype */
    const void *weight; /* [cols] dtype */
    int64_t rows, cols;
    float epsilon;
    bool rms, zero_centered;
    bool accumulate_dx;     /* dx += */
    bool accumulate_params; /* dweight, dbias += */
    enum dtype dtype;
};
