#pragma once
/* The seam to cuBLASLt: one matrix product in its column-major terms,
 *     d[m, n] = alpha op(a)[m, k] op(b)[k, n] (+ d) (+ bias[m] for every column)
 * by cuBLASLt (matmul_cublaslt.cu), or by plain loops in the emulation (tests/cuda_emulation/matmul.cc). m, n
 * and k are at least 1; bias has the dtype of d. */
#include "kernels/kernels.h"

struct matmul {
    void *d;
    const void *a, *b, *bias; /* bias NULL: none */
    int64_t m, n, k, lda, ldb, ldd;
    bool trans_a, trans_b, accumulate;
    enum dtype dtype, d_dtype;
    float alpha;
};

size_t matmul_workspace_bytes(void);
void matmul_launch(const struct stream *stream, const struct matmul *product);
