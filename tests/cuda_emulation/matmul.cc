/* The stand-in for cuBLASLt: the formula of kernels/cuda/matmul.h in plain loops, summed in double. */
#define _Noreturn [[noreturn]]
extern "C" {
#include "kernels/cuda/matmul.h"
}

size_t matmul_workspace_bytes(void) {
    return 256;
}

void matmul_launch(const struct stream *, const struct matmul *product) {
    const struct matmul &p = *product;
    for (int64_t j = 0; j < p.n; j++)
        for (int64_t i = 0; i < p.m; i++) {
            double sum = 0;
            for (int64_t l = 0; l < p.k; l++) {
                const int64_t a = p.trans_a ? i * p.lda + l : l * p.lda + i;
                const int64_t b = p.trans_b ? l * p.ldb + j : j * p.ldb + l;
                sum += (double)load_f32(p.a, p.dtype, a) * (double)load_f32(p.b, p.dtype, b);
            }
            sum *= (double)p.alpha;
            if (p.bias) sum += (double)load_f32(p.bias, p.d_dtype, i);
            if (p.accumulate) sum += (double)load_f32(p.d, p.d_dtype, j * p.ldd + i);
            store_f32(p.d, p.d_dtype, j * p.ldd + i, (float)sum);
        }
}
