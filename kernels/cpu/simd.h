#pragma once
/* What the element-wise kernels share: loops that the compiler turns into vector code for each dtype.
 *
 * A loop body is written once as a SIMD_INLINE function that takes the dtype as an argument; SIMD_BY_DTYPE
 * calls it with a constant, so that simd_load and simd_store fold to one conversion without branches:
 *
 *     SIMD_INLINE void scale_range(const struct scale_args *a, int64_t begin, int64_t end, enum dtype t) {
 *         SIMD_LOOP for (int64_t i = begin; i < end; i++) simd_store(a->y, t, i, 2 * simd_load(a->x, t, i));
 *     }
 *     SIMD_BY_DTYPE(a->dtype, scale_range, a, begin, end)
 *
 * SIMD_LOOP promises that iterations are independent; reading and writing the same element is allowed, so
 * outputs may alias inputs exactly. Sums go into SIMD_LANES fixed lanes, combined by simd_sum in one order,
 * so the result depends on the length only, never on alignment or on the compiler's choice of width. */
#include "kernels/cpu/math.h"

enum { SIMD_LANES = 32 };
#define SIMD_INLINE static inline __attribute__((always_inline))
#define SIMD_LOOP   _Pragma("omp simd")
#ifdef __clang__ /* a sanitizer or -O1 keeps loops scalar; that is no reason to fail the build */
#pragma clang diagnostic ignored "-Wpass-failed"
#endif

#define SIMD_BY_DTYPE(dtype, fn, ...)                                                                        \
    switch (dtype) {                                                                                         \
    case DTYPE_BF16:                                                                                         \
        fn(__VA_ARGS__, DTYPE_BF16);                                                                         \
        break;                                                                                               \
    case DTYPE_F16:                                                                                          \
        fn(__VA_ARGS__, DTYPE_F16);                                                                          \
        break;                                                                                               \
    default:                                                                                                 \
        fn(__VA_ARGS__, DTYPE_F32);                                                                          \
        break;                                                                                               \
    }

/* The conversions of core/tensor/dtype.h without branches: the same bits for every input. */
SIMD_INLINE float simd_from_f16(uint16_t h) {
    uint32_t magnitude = h & 0x7FFFu, sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t bits = (magnitude << 13) + (magnitude < 0x7C00u ? 0x38000000u : 0x70000000u);
    uint32_t subnormal = (uint32_t)math_to_bits((float)(int32_t)magnitude * 0x1p-24f);
    return math_from_bits((int32_t)((magnitude < 0x0400u ? subnormal : bits) | sign));
}

SIMD_INLINE uint16_t simd_to_f16(float f) {
    uint32_t bits = (uint32_t)math_to_bits(f), sign = bits >> 16 & 0x8000u;
    bits &= 0x7FFFFFFFu;
    uint32_t subnormal = (uint32_t)math_to_bits(math_from_bits((int32_t)bits) + 0.5f) - 0x3F000000u;
    uint32_t h = (bits + 0xFFFu + (bits >> 13 & 1u) - 0x38000000u) >> 13;
    h = bits < 0x38800000u ? subnormal : h;
    h = bits >= 0x477FF000u ? 0x7C00u : h;
    h = bits > 0x7F800000u ? 0x7E00u : h;
    return (uint16_t)(h | sign);
}

SIMD_INLINE uint16_t simd_to_bf16(float f) {
    uint32_t bits = (uint32_t)math_to_bits(f), rounded = bits + 0x7FFFu + (bits >> 16 & 1u);
    rounded = f != f ? bits | 0x400000u : rounded;
    return (uint16_t)(rounded >> 16);
}

SIMD_INLINE float simd_load(const void *p, enum dtype dtype, int64_t i) {
    if (dtype == DTYPE_BF16) return math_from_bits((int32_t)((uint32_t)((const uint16_t *)p)[i] << 16));
    if (dtype == DTYPE_F16) return simd_from_f16(((const uint16_t *)p)[i]);
    return ((const float *)p)[i];
}

SIMD_INLINE void simd_store(void *p, enum dtype dtype, int64_t i, float value) {
    if (dtype == DTYPE_BF16)
        ((uint16_t *)p)[i] = simd_to_bf16(value);
    else if (dtype == DTYPE_F16)
        ((uint16_t *)p)[i] = simd_to_f16(value);
    else
        ((float *)p)[i] = value;
}

/* Fetches the SIMD_LANES elements from i on, which may lie beyond the tensor. */
SIMD_INLINE void simd_fetch(const void *p, enum dtype dtype, int64_t i) {
    const char *at = (const char *)p + i * (int64_t)dtype_bytes(dtype);
    __builtin_prefetch(at);
    if (dtype == DTYPE_F32) __builtin_prefetch(at + 64);
}

/* Lanes combined by halves: 32 to 16 to 8 to 4 to 2 to 1. */
SIMD_INLINE float simd_sum(const float lanes[SIMD_LANES]) {
    float a[16], b[8], c[4];
    for (int i = 0; i < 16; i++) a[i] = lanes[i] + lanes[i + 16];
    for (int i = 0; i < 8; i++) b[i] = a[i] + a[i + 8];
    for (int i = 0; i < 4; i++) c[i] = b[i] + b[i + 4];
    return (c[0] + c[2]) + (c[1] + c[3]);
}

/* Chunk of rows so that one chunk has about `elements` elements, at least one row. */
SIMD_INLINE int64_t simd_rows_per_chunk(int64_t elements, int64_t cols) {
    return cols >= elements ? 1 : elements / cols;
}
