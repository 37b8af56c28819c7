#pragma once
/* Every PTX instruction that the kernels use, as a function; the emulation has a twin of each in
 * tests/cuda_emulation/ptx.h.
 *
 * mma_16816<T>: c[16, 8] += a[16, 16] b[16, 8] by one warp, T bf16 or f16, float32 sums. With r = lane / 4
 * and q = 2 (lane % 4), a lane holds c: (r, q) (r, q + 1) (r + 8, q) (r + 8, q + 1) a: (r, q..) (r + 8, q..)
 * (r, q + 8..) (r + 8, q + 8..), each a pair of neighbours in a row b: (q.., r) (q + 8.., r), each a pair of
 * neighbours in a column
 *
 * ldmatrix<false>(x, p): four 8 x 8 matrices of 16-bit elements from shared memory; lane 8 m + i says where
 * row i of matrix m begins (16-byte aligned), and gets in x[m] the pair (lane / 4, 2 (lane % 4)..).
 * ldmatrix<true>: of the transposed matrices, so that the pair are neighbours in a column. */
#include "kernels/cuda/cuda.cuh"

#ifdef CUDA_EMULATION
#include CUDA_EMULATION_PTX
#else
template <typename T>
static __device__ __forceinline__ void mma_16816(float (&c)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma_16816<bf16>(float (&c)[4], const uint32_t (&a)[4],
                                                const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
__device__ __forceinline__ void mma_16816<f16>(float (&c)[4], const uint32_t (&a)[4],
                                               const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <bool TRANSPOSED>
static __device__ __forceinline__ void ldmatrix(uint32_t (&x)[4], const void *row) {
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    if (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(at)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                     : "r"(at)
                     : "memory");
}
#endif
