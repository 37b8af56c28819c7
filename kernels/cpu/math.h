#pragma once
/* Inline float32 functions that compilers turn into vector code, the same formula on every instruction set,
 * and the conversions used inside vector loops. Errors are stated against the correctly rounded value. */
#include "core/tensor/dtype.h"
#include <stdint.h>
#include <string.h>

static inline float math_from_bits(int32_t i) {
    float f;
    memcpy(&f, &i, 4);
    return f;
}

static inline int32_t math_to_bits(float f) {
    int32_t i;
    memcpy(&i, &f, 4);
    return i;
}

/* e^x, at most 2 units in the last place for x <= 88; below -87.33 gives 0 (no subnormals), above 88 infinity
 * (softmax and logistic functions never need that last step), NaN stays NaN.
 * x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a degree-6 polynomial; 2^n by adding to the exponent. */
static inline float math_exp(float x) {
    float clamped = x > 88.0f ? 88.0f : x < -87.33654f ? -87.33654f : x;
    float n = __builtin_rintf(clamped * 1.44269504f);
    float r = clamped - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    float y = p * math_from_bits(((int32_t)n + 127) << 23);
    y = x < -87.33654f ? 0.0f : y;
    y = x > 88.0f ? __builtin_inff() : y;
    return x != x ? x : y;
}

/* 1 / (1 + e^-x). */
static inline float math_sigmoid(float x) {
    return 1.0f / (1.0f + math_exp(-x));
}

/* tanh x = 1 - 2 / (e^2x + 1); absolute error below 2e-7, exact limits at both ends. */
static inline float math_tanh(float x) {
    return 1.0f - 2.0f / (math_exp(2.0f * x) + 1.0f);
}
