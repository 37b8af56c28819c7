#pragma once
/* Matrix products.
 *
 * gemm: C[m,n] = op(A)[m,k] * op(B)[k,n] (+ bias[n]) (+ C when accumulate).
 *   op(A) is A[m,k] with row stride lda, or the transpose of A[k,m] when trans_a.
 *   op(B) is B[k,n] with row stride ldb, or the transpose of B[n,k] when trans_b, or, when b_packed, the
 * output of gemm_pack for the same k, n and dtype (ldb and trans_b are then ignored). A, B and bias share
 * `dtype` (fp32, bf16, fp16); C is c_dtype (the same, or fp32). Products are accumulated in fp32. A 16-bit
 * dtype rounds its inputs no further. C must not overlap A or B. `alpha` 0 means 1. The three uses of a
 * linear layer with weight W[out,in], x[t,in], y[t,out]: forward           y  = x W^T       gemm(c=y,  a=x,
 * b=W, trans_b)            or b_packed from gemm_pack(W, trans) input gradient    dx = dy W        gemm(c=dx,
 * a=dy, b=W)                     or b_packed from gemm_pack(W) weight gradient   dW += dy^T x     gemm(c=dW
 * fp32, a=dy, trans_a, b=x, accumulate)
 *
 * gemm_pack: writes op(B)[k,n] in this backend's own layout, once per optimizer step. src is src_dtype (fp32
 * masters or `dtype`), row stride `ld`, transposed when `trans`; dst holds kernels->gemm_packed_bytes(dtype,
 * k, n) bytes, 64-byte aligned. A backend whose gemm_packed_bytes is 0 is never called.
 *
 * bias_backward: db[n] (fp32) = sum over rows of dy[rows,n] (+ db when accumulate). */
#include "core/tensor/dtype.h"
#include <stdbool.h>

struct gemm_args {
    void *c;          /* [m, n], row stride ldc */
    const void *a;    /* [m, k] or [k, m] */
    const void *b;    /* [k, n] or [n, k] or packed */
    const void *bias; /* [n] or NULL */
    int64_t m, n, k;
    int64_t lda, ldb, ldc; /* in elements; 0 means dense */
    bool trans_a, trans_b, b_packed, accumulate;
    enum dtype dtype, c_dtype;
    float alpha;
};

struct gemm_pack_args {
    void *dst;
    const void *src;
    int64_t k, n, ld; /* ld 0 means dense */
    bool trans;       /* src is [n, k] */
    enum dtype dtype, src_dtype;
};

struct bias_backward_args {
    float *dbias;   /* [cols] */
    const void *dy; /* [rows, cols] */
    int64_t rows, cols;
    enum dtype dtype;
    bool accumulate;
};
