#pragma once
/* Runs of elements to and from float32, in vector code on every instruction set. Private to the gemm files.
 */
#include "core/tensor/dtype.h"
#if CPU_ISA_avx2 || CPU_ISA_avx512 || CPU_ISA_amx
#include <immintrin.h>
#endif

static inline void rows_load(float *restrict dst, const void *restrict src, enum dtype dtype, int64_t n) {
    if (dtype == DTYPE_F32) {
        memcpy(dst, src, (size_t)n * sizeof(float));
    } else if (dtype == DTYPE_BF16) {
        const uint16_t *restrict h = src;
#pragma omp simd
        for (int64_t i = 0; i < n; i++) dst[i] = bf16_to_f32(h[i]);
    } else {
        const uint16_t *restrict h = src;
        int64_t i = 0;
#if CPU_ISA_avx2 || CPU_ISA_avx512 || CPU_ISA_amx
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(h + i))));
#endif
        for (; i < n; i++) dst[i] = f16_to_f32(h[i]);
    }
}

/* f32_to_bf16 without a branch. */
static inline uint16_t rows_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint32_t rounded = bits + 0x7FFFu + (bits >> 16 & 1u), quiet = bits | 0x400000u;
    return (uint16_t)((f != f ? quiet : rounded) >> 16);
}

static inline void rows_store(void *restrict dst, const float *restrict src, enum dtype dtype, int64_t n) {
    if (dtype == DTYPE_F32) {
        memcpy(dst, src, (size_t)n * sizeof(float));
    } else if (dtype == DTYPE_BF16) {
        uint16_t *restrict h = dst;
#pragma omp simd
        for (int64_t i = 0; i < n; i++) h[i] = rows_bf16(src[i]);
    } else {
        uint16_t *restrict h = dst;
        int64_t i = 0;
#if CPU_ISA_avx2 || CPU_ISA_avx512 || CPU_ISA_amx
        for (; i + 8 <= n; i += 8)
            _mm_storeu_si128((__m128i *)(h + i),
                             _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
#endif
        for (; i < n; i++) h[i] = f32_to_f16(src[i]);
    }
}
