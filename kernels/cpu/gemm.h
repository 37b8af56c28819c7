#pragma once
/* Private to the gemm files. Two engines share the entry points of gemm.c:
 *  - gemm_simd.c: every dtype on every instruction set, converted to float32 while it is packed;
 *  - gemm_amx.c: bf16 on tile registers.
 * gemm_view is gemm_args with the defaults filled in. */
#include "kernels/cpu/cpu.h"

struct gemm_view {
    const struct gemm_args *args;
    int64_t m, n, k, ldc;
    int64_t a_row, a_col; /* strides of op(A)[row, col] in elements */
    int64_t b_row, b_col;
    float alpha;
};

static inline struct gemm_view gemm_view(const struct gemm_args *args) {
    bool trans_b = args->trans_b && !args->b_packed;
    int64_t lda = args->lda ? args->lda : args->trans_a ? args->m : args->k;
    int64_t ldb = args->ldb && !args->b_packed ? args->ldb : trans_b ? args->k : args->n;
    return (struct gemm_view){
        .args = args,
        .m = args->m,
        .n = args->n,
        .k = args->k,
        .ldc = args->ldc ? args->ldc : args->n,
        .a_row = args->trans_a ? 1 : lda,
        .a_col = args->trans_a ? lda : 1,
        .b_row = trans_b ? 1 : ldb,
        .b_col = trans_b ? ldb : 1,
        .alpha = args->alpha != 0 ? args->alpha : 1,
    };
}

static inline int64_t gemm_min(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static inline int64_t gemm_blocks(int64_t size, int64_t block) {
    return (size + block - 1) / block;
}

void CPU(gemm_simd)(const struct stream *stream, const struct gemm_args *args);
size_t CPU(gemm_simd_workspace)(const struct gemm_args *args);
#if CPU_ISA_amx
void CPU(gemm_tiles)(const struct stream *stream, const struct gemm_args *args);
size_t CPU(gemm_tiles_workspace)(const struct stream *stream, const struct gemm_args *args);
size_t CPU(gemm_tiles_packed_bytes)(int64_t k, int64_t n);
/* A product with packed B in pieces: how many areas it is cut into for so many threads, and one of them, by
 * the calling thread, in scratch of its own of at least the bound. */
int64_t CPU(gemm_tiles_areas)(const struct gemm_args *args, int64_t threads);
void CPU(gemm_tiles_run)(const struct gemm_args *args, int64_t threads, int64_t area, unsigned char *space);
/* No product with at most this m and k, and exactly this n, takes more: scratch of a thread, packed B. */
size_t CPU(gemm_tiles_thread_bound)(const struct gemm_args *args);
size_t CPU(gemm_tiles_pack_bound)(const struct gemm_args *args);
#endif
