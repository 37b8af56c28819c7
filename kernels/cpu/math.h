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

/* a * b + c, rounded once where the instruction set has it. */
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define MATH_FMA(a, b, c) __builtin_fmaf((a), (b), (c))
#else
#define MATH_FMA(a, b, c) ((a) * (b) + (c))
#endif

/* 2^n for an integer n in [-126, 127]. */
static inline float math_power_of_two(float n) {
    return math_from_bits((int32_t)((uint32_t)((int32_t)n + 127) << 23));
}

/* e^x, at most 2 units in the last place for x <= 88; below -87.33 gives 0 (no subnormals), above 88 infinity
 * (softmax and logistic functions never need that last step), NaN stays NaN.
 * x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a degree-6 polynomial; 2^n by adding to the exponent. */
static inline float math_exp(float x) {
    float clamped = x > 88.0f ? 88.0f : x < -87.33654f ? -87.33654f : x;
    float n = __builtin_rintf(clamped * 1.44269504f);
    float r = MATH_FMA(n, -0.693359375f, clamped);
    r = MATH_FMA(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = MATH_FMA(p, r, 1.3981999507e-3f);
    p = MATH_FMA(p, r, 8.3334519073e-3f);
    p = MATH_FMA(p, r, 4.1665795894e-2f);
    p = MATH_FMA(p, r, 1.6666665459e-1f);
    p = MATH_FMA(p, r, 5.0000001201e-1f);
    p = MATH_FMA(p * r, r, r) + 1.0f;
    float y = p * math_power_of_two(n);
    y = x < -87.33654f ? 0.0f : y;
    y = x > 88.0f ? __builtin_inff() : y;
    return x != x ? x : y;
}

/* e^x for x <= 0 (any x below 88 is fine), the shorter form for softmax: relative error at most
 * (2 + |x| / 2) * 2^-23, e^0 = 1 exactly, below -87.33 gives 0, NaN stays NaN.
 * 2^t with t = x log2 e = n + f, |f| <= 1/2: degree-5 minimax polynomial, then n is added to the exponent. */
static inline float math_exp_softmax(float x) {
    float clamped = x < -87.33654f ? -87.33654f : x;
    float n = __builtin_rintf(clamped * 1.44269504f);
    float f = MATH_FMA(clamped, 1.44269504f, -n);
    float p = 1.326472731e-3f;
    p = MATH_FMA(p, f, 9.671512991e-3f);
    p = MATH_FMA(p, f, 5.550733581e-2f);
    p = MATH_FMA(p, f, 2.402224243e-1f);
    p = MATH_FMA(p, f, 6.931470037e-1f);
    p = MATH_FMA(p, f, 1.0f);
    uint32_t bits = (uint32_t)math_to_bits(p) + ((uint32_t)(int32_t)n << 23);
    return x < -87.33654f ? 0.0f : math_from_bits((int32_t)bits);
}

/* 1 / (1 + e^-x). */
static inline float math_sigmoid(float x) {
    return 1.0f / (1.0f + math_exp(-x));
}

/* tanh x = 1 - 2 / (e^2x + 1); absolute error below 2e-7, exact limits at both ends. */
static inline float math_tanh(float x) {
    return 1.0f - 2.0f / (math_exp(2.0f * x) + 1.0f);
}

/* Normal distribution function 0.5 (1 + erf(x / sqrt 2)), relative error about 1e-6 for x > -5 (it grows with
 * x^2 in the far tail), and *density_p = e^(-x^2/2) / sqrt(2 pi). With z = |x| / sqrt 2:
 * erfc(z) = e^(-z^2) t P(t), t = 1 / (1 + 0.3 z), P a degree-8 minimax fit on z <= 10. NaN stays NaN. */
static inline float math_normal_cdf(float x, float *density_p) {
    float z = __builtin_fabsf(x) * 0.707106781f, t = 1.0f / MATH_FMA(z, 0.3f, 1.0f);
    float e = math_exp(-0.5f * x * x);
    float p = -1.295227706e-1f;
    p = MATH_FMA(p, t, 4.855625629e-1f);
    p = MATH_FMA(p, t, -5.122767687e-1f);
    p = MATH_FMA(p, t, 5.477185249e-1f);
    p = MATH_FMA(p, t, -9.464971721e-2f);
    p = MATH_FMA(p, t, 2.149256319e-1f);
    p = MATH_FMA(p, t, 1.483392715e-1f);
    p = MATH_FMA(p, t, 1.707152128e-1f);
    p = MATH_FMA(p, t, 1.691880077e-1f);
    float half = 0.5f * e * t * p;
    *density_p = 0.398942280f * e;
    return x > 0.0f ? 1.0f - half : half;
}
