/* Entry points of gemm: bf16 runs on tile registers where the processor has them, all else on vectors. */
#include "kernels/cpu/gemm.h"

#if CPU_ISA_amx
/* An empty sum has nothing to multiply: the vector engine writes its bias or zero. */
static bool on_tiles(const struct gemm_args *args) {
    return args->dtype == DTYPE_BF16 && args->k > 0;
}
#endif

void CPU(gemm)(const struct stream *stream, const struct gemm_args *args) {
#if CPU_ISA_amx
    if (on_tiles(args)) {
        CPU(gemm_tiles)(stream, args);
        return;
    }
#endif
    CPU(gemm_simd)(stream, args);
}

size_t CPU(gemm_workspace)(const struct stream *stream, const struct gemm_args *args) {
#if CPU_ISA_amx
    if (on_tiles(args)) return CPU(gemm_tiles_workspace)(stream, args);
#endif
    (void)stream;
    return CPU(gemm_simd_workspace)(args);
}

size_t CPU(gemm_packed_bytes)(enum dtype dtype, int64_t k, int64_t n) {
#if CPU_ISA_amx
    if (dtype == DTYPE_BF16) return CPU(gemm_tiles_packed_bytes)(k, n);
#endif
    (void)dtype, (void)k, (void)n;
    return 0;
}
