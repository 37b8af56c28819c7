/* Entry points of gemm. */
#include "kernels/cpu/gemm.h"

void CPU(gemm)(const struct stream *stream, const struct gemm_args *args) {
    CPU(gemm_simd)(stream, args);
}

size_t CPU(gemm_workspace)(const struct stream *stream, const struct gemm_args *args) {
    (void)stream;
    return CPU(gemm_simd_workspace)(args);
}

size_t CPU(gemm_packed_bytes)(enum dtype dtype, int64_t k, int64_t n) {
    (void)dtype, (void)k, (void)n;
    return 0;
}
