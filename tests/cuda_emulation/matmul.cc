/* The stand-in for cuBLASLt: the formula of kernels/cuda/matmul.h in plain loops, summed in double. */
#define _Noreturn [[noreturn]]
extern "C" {
#include "core/base/check.h"
#include "kernels/cuda/matmul.h"
}
#include <cstdlib>

size_t matmul_workspace_bytes(void) {
    return 256;
}

/* [count, k], each row what one element of the product is a sum over. */
static double *rows_of(const void *x, enum dtype dtype, int64_t count, int64_t k, int64_t ld,
                       bool k_is_near) {
    double *rows = static_cast<double *>(malloc((size_t)(count * k) * sizeof(double)));
    if (!rows) die(STATUS_OUT_OF_MEMORY, "no memory for the emulated cuBLASLt");
    for (int64_t i = 0; i < count; i++)
        for (int64_t l = 0; l < k; l++)
            rows[i * k + l] = (double)load_f32(x, dtype, k_is_near ? i * ld + l : l * ld + i);
    return rows;
}

void matmul_launch(const struct stream *, const struct matmul *product) {
    const struct matmul &p = *product;
    double *a = rows_of(p.a, p.dtype, p.m, p.k, p.lda, p.trans_a);
    double *b = rows_of(p.b, p.dtype, p.n, p.k, p.ldb, !p.trans_b);
    for (int64_t j = 0; j < p.n; j++)
        for (int64_t i = 0; i < p.m; i++) {
            double sum = 0;
            for (int64_t l = 0; l < p.k; l++) sum += a[i * p.k + l] * b[j * p.k + l];
            sum *= (double)p.alpha;
            if (p.bias) sum += (double)load_f32(p.bias, p.d_dtype, i);
            if (p.accumulate) sum += (double)load_f32(p.d, p.d_dtype, j * p.ldd + i);
            store_f32(p.d, p.d_dtype, j * p.ldd + i, (float)sum);
        }
    free(a);
    free(b);
}
