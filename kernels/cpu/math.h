#pragma once
/* Inline float32 functions that compilers turn into vector code, the same formula on every instruction set,
 * and the conversions used inside vector loops. Errors are stated against the correctly rounded value. */
#include "core/tensor/dtype.h"
#include <stdint.h>
#include <string.h>

#define MATH_INLINE static inline __attribute__((always_inline)) /* a call would keep a loop scalar */

MATH_INLINE float math_from_bits(int32_t i) {
    float f;
    memcpy(&f, &i, 4);
    return f;
}

MATH_INLINE int32_t math_to_bits(float f) {
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

/* Adding this number to a float t of modest size rounds t to an integer n and leaves n + 127 in the low bits:
 * shifted into the exponent they are 2^n, n in [-126, 127]. No conversion, no branch. */
#define MATH_ROUND_SHIFT 12583039.0f /* 1.5 * 2^23 + 127 */

MATH_INLINE float math_power_of_two(float shifted) {
    return math_from_bits((int32_t)((uint32_t)math_to_bits(shifted) << 23));
}

/* e^x, at most 2 units in the last place for x <= 88; below -87.33 gives 0 (no subnormals), above 88 infinity
 * (softmax and logistic functions never need that last step), NaN stays NaN.
 * x = n ln 2 + r with |r| <= ln 2 / 2; e^r by a degree-6 polynomial, times 2^n. */
MATH_INLINE float math_exp(float x) {
    float shifted = MATH_FMA(x, 1.44269504f, MATH_ROUND_SHIFT), n = shifted - MATH_ROUND_SHIFT;
    float r = MATH_FMA(n, -0.693359375f, x);
    r = MATH_FMA(n, 2.12194440e-4f, r);
    float p = 1.9875691500e-4f;
    p = MATH_FMA(p, r, 1.3981999507e-3f);
    p = MATH_FMA(p, r, 8.3334519073e-3f);
    p = MATH_FMA(p, r, 4.1665795894e-2f);
    p = MATH_FMA(p, r, 1.6666665459e-1f);
    p = MATH_FMA(p, r, 5.0000001201e-1f);
    p = MATH_FMA(p * r, r, r) + 1.0f;
    float y = p * math_power_of_two(shifted);
    y = x < -87.33654f ? 0.0f : y;
    return x > 88.0f ? __builtin_inff() : y;
}

/* e^x for |x| <= 87, garbage outside: relative error at most (2 + |x|) * 2^-23, e^0 = 1 exactly, NaN stays
 * NaN. 2^t with t = x log2 e = n + f, |f| <= 1/2: degree-5 minimax polynomial in f, times 2^n. */
MATH_INLINE float math_exp_unchecked(float x) {
    float shifted = MATH_FMA(x, 1.44269504f, MATH_ROUND_SHIFT), n = shifted - MATH_ROUND_SHIFT;
    float f = MATH_FMA(x, 1.44269504f, -n);
    float p = 1.326472731e-3f;
    p = MATH_FMA(p, f, 9.671512991e-3f);
    p = MATH_FMA(p, f, 5.550733581e-2f);
    p = MATH_FMA(p, f, 2.402224243e-1f);
    p = MATH_FMA(p, f, 6.931470037e-1f);
    p = MATH_FMA(p, f, 1.0f);
    return p * math_power_of_two(shifted);
}

/* The same for x <= 0 down to -infinity (any x up to 87 is fine), for softmax: below -87 gives 0. */
MATH_INLINE float math_exp_softmax(float x) {
    float y = math_exp_unchecked(x);
    return x < -87.0f ? 0.0f : y;
}

/* 1 / (1 + e^-x), relative error at most (3 + |x|) * 2^-23 for x >= -87, below that 0. */
MATH_INLINE float math_sigmoid(float x) {
    float e = math_exp_unchecked(-x);
    e = x > 87.0f ? 0.0f : e;
    e = x < -87.0f ? __builtin_inff() : e;
    return 1.0f / (1.0f + e);
}

/* tanh x = 1 - 2 / (e^2x + 1); absolute error below 2e-7, exact limits at both ends. */
MATH_INLINE float math_tanh(float x) {
    return 1.0f - 2.0f / (math_exp(2.0f * x) + 1.0f);
}

/* Normal distribution function 0.5 (1 + erf(x / sqrt 2)), relative error at most (4 + x^2) * 2^-23 for
 * x > -13, and *density_p = e^(-x^2/2) / sqrt(2 pi). With z = |x| / sqrt 2:
 * erfc(z) = e^(-z^2) t P(t), t = 1 / (1 + 0.3 z), P a degree-8 minimax fit on z <= 10. A NaN gives NaN (its
 * density is not). */
MATH_INLINE float math_normal_cdf(float x, float *density_p) {
    float z = __builtin_fabsf(x) * 0.707106781f, t = 1.0f / MATH_FMA(z, 0.3f, 1.0f);
    int32_t limit = math_to_bits(87.0f), square = math_to_bits(0.5f * x * x); /* compared as integers: */
    float e = math_exp_unchecked(-math_from_bits(square < limit ? square : limit)); /* a minimum, no branch */
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
    float sign = __builtin_copysignf(1.0f, x); /* x > 0 ? 1 - half : half, without a branch */
    return MATH_FMA(-sign, half, MATH_FMA(0.5f, sign, 0.5f));
}
