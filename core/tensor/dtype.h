#pragma once
/* Element types, their sizes and the exact conversions between them (round to nearest even; NaN stays NaN).
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_F16, DTYPE_I32, DTYPE_COUNT };

static inline size_t dtype_bytes(enum dtype dtype) {
    static const unsigned char bytes[DTYPE_COUNT] = {4, 2, 2, 4};
    return bytes[dtype];
}

static inline const char *dtype_name(enum dtype dtype) {
    static const char *const names[DTYPE_COUNT] = {"fp32", "bf16", "fp16", "int32"};
    return names[dtype];
}

static inline int dtype_is_float(enum dtype dtype) {
    return dtype == DTYPE_F32 || dtype == DTYPE_BF16 || dtype == DTYPE_F16;
}

static inline float bf16_to_f32(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint16_t f32_to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return (uint16_t)(bits >> 16 | 0x40u); /* quiet the NaN */
    return (uint16_t)((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

static inline float f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 31u, mantissa = h & 0x3FFu, bits;
    float f;
    if (exponent == 31) {
        bits = sign | 0x7F800000u | mantissa << 13;
    } else if (exponent) {
        bits = sign | (exponent + 112) << 23 | mantissa << 13;
    } else { /* zero or subnormal: mantissa * 2^-24 */
        float value = (float)mantissa * 0x1p-24f;
        memcpy(&bits, &value, 4);
        bits |= sign;
    }
    memcpy(&f, &bits, 4);
    return f;
}

static inline uint16_t f32_to_f16(float f) {
    uint32_t bits, sign;
    memcpy(&bits, &f, 4);
    sign = bits >> 16 & 0x8000u;
    bits &= 0x7FFFFFFFu;
    if (bits > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);
    if (bits >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* 65520 and above round to infinity */
    if (bits < 0x38800000u) {                                   /* below 2^-14: subnormal */
        float magic, value;
        uint32_t out;
        memcpy(&value, &bits, 4);
        magic = value + 0.5f; /* the sum rounds at 2^-24, which is the last place of a subnormal */
        memcpy(&out, &magic, 4);
        return (uint16_t)(sign | (out - 0x3F000000u));
    }
    bits += 0xFFFu + (bits >> 13 & 1u);
    return (uint16_t)(sign | ((bits - 0x38000000u) >> 13));
}

static inline float load_f32(const void *p, enum dtype dtype, int64_t i) {
    switch (dtype) {
    case DTYPE_BF16:
        return bf16_to_f32(((const uint16_t *)p)[i]);
    case DTYPE_F16:
        return f16_to_f32(((const uint16_t *)p)[i]);
    case DTYPE_I32:
        return (float)((const int32_t *)p)[i];
    default:
        return ((const float *)p)[i];
    }
}

static inline void store_f32(void *p, enum dtype dtype, int64_t i, float value) {
    switch (dtype) {
    case DTYPE_BF16:
        ((uint16_t *)p)[i] = f32_to_bf16(value);
        break;
    case DTYPE_F16:
        ((uint16_t *)p)[i] = f32_to_f16(value);
        break;
    case DTYPE_I32:
        ((int32_t *)p)[i] = (int32_t)value;
        break;
    default:
        ((float *)p)[i] = value;
        break;
    }
}

/* Address of element i. */
static inline void *dtype_at(const void *p, enum dtype dtype, int64_t i) {
    return (char *)(uintptr_t)p + (size_t)i * dtype_bytes(dtype);
}
