#pragma once
/* Many Philox words at once, bit for bit those of rng_philox. A 64-bit lane holds one 32-bit counter word;
 * the 32 x 32 -> 64 bit multiply reads the low half only, so the high halves may hold anything, and a shuffle
 * brings the high half of a product down: a shift would queue at the port of the multiplier. */
#include "core/base/rng.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"

#if CPU_ISA_avx512 || CPU_ISA_amx
#include <immintrin.h>
enum { PHILOX_GROUP = 16 }; /* blocks made together */

struct philox_lanes {
    __m512i c0, c1, c2, c3;
};

/* One round of eight counters: n0 = high(M1 c2) ^ c1 ^ k0, n2 = high(M0 c0) ^ c3 ^ k1. */
SIMD_INLINE struct philox_lanes philox_round(struct philox_lanes c, __m512i k0, __m512i k1) {
    __m512i p0 = _mm512_mul_epu32(c.c0, _mm512_set1_epi64(0xD2511F53));
    __m512i p1 = _mm512_mul_epu32(c.c2, _mm512_set1_epi64(0xCD9E8D57));
    struct philox_lanes next = {
        .c0 = _mm512_ternarylogic_epi64(_mm512_shuffle_epi32(p1, 0xF5), c.c1, k0, 0x96),
        .c1 = p1,
        .c2 = _mm512_ternarylogic_epi64(_mm512_shuffle_epi32(p0, 0xF5), c.c3, k1, 0x96),
        .c3 = p0,
    };
    return next;
}

/* Lane 2q + j counts block 4j + q, so that an interleave inside 128-bit lanes gives words in order. */
SIMD_INLINE struct philox_lanes philox_start(struct rng_key key, uint64_t block) {
    __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
    __m512i counter = _mm512_add_epi64(_mm512_set1_epi64((int64_t)block), order);
    uint32_t op = (uint32_t)key.layer << 16 | key.op;
    struct philox_lanes c = {counter, _mm512_srli_epi64(counter, 32), _mm512_set1_epi64(key.micro_batch),
                             _mm512_set1_epi64(op)};
    return c;
}

SIMD_INLINE void philox_finish(struct philox_lanes c, uint32_t words[32]) {
    __m512i w01 = _mm512_mask_blend_epi32(0xAAAA, c.c0, _mm512_slli_epi64(c.c1, 32));
    __m512i w23 = _mm512_mask_blend_epi32(0xAAAA, c.c2, _mm512_slli_epi64(c.c3, 32));
    _mm512_storeu_si512(words, _mm512_unpacklo_epi64(w01, w23));
    _mm512_storeu_si512(words + 16, _mm512_unpackhi_epi64(w01, w23));
}

SIMD_INLINE void philox_group(struct rng_key key, uint64_t block, uint32_t words[4 * PHILOX_GROUP]) {
    struct philox_lanes a = philox_start(key, block), b = philox_start(key, block + 8);
    uint32_t k0 = key.seed, k1 = key.iteration;
    for (int round = 0; round < 10; round++) {
        __m512i v0 = _mm512_set1_epi64(k0), v1 = _mm512_set1_epi64(k1);
        a = philox_round(a, v0, v1);
        b = philox_round(b, v0, v1);
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    philox_finish(a, words);
    philox_finish(b, words + 32);
}

#elif CPU_ISA_avx2
#include <immintrin.h>
enum { PHILOX_GROUP = 8 };

struct philox_lanes {
    __m256i c0, c1, c2, c3;
};

SIMD_INLINE struct philox_lanes philox_round(struct philox_lanes c, __m256i k0, __m256i k1) {
    __m256i p0 = _mm256_mul_epu32(c.c0, _mm256_set1_epi64x(0xD2511F53));
    __m256i p1 = _mm256_mul_epu32(c.c2, _mm256_set1_epi64x(0xCD9E8D57));
    struct philox_lanes next = {
        .c0 = _mm256_xor_si256(_mm256_xor_si256(_mm256_shuffle_epi32(p1, 0xF5), c.c1), k0),
        .c1 = p1,
        .c2 = _mm256_xor_si256(_mm256_xor_si256(_mm256_shuffle_epi32(p0, 0xF5), c.c3), k1),
        .c3 = p0,
    };
    return next;
}

/* Lane 2q + j counts block 2j + q, so that an interleave inside 128-bit lanes gives words in order. */
SIMD_INLINE struct philox_lanes philox_start(struct rng_key key, uint64_t block) {
    __m256i counter = _mm256_add_epi64(_mm256_set1_epi64x((int64_t)block), _mm256_set_epi64x(3, 1, 2, 0));
    uint32_t op = (uint32_t)key.layer << 16 | key.op;
    struct philox_lanes c = {counter, _mm256_srli_epi64(counter, 32), _mm256_set1_epi64x(key.micro_batch),
                             _mm256_set1_epi64x(op)};
    return c;
}

SIMD_INLINE void philox_finish(struct philox_lanes c, uint32_t words[16]) {
    __m256i w01 = _mm256_blend_epi32(c.c0, _mm256_slli_epi64(c.c1, 32), 0xAA);
    __m256i w23 = _mm256_blend_epi32(c.c2, _mm256_slli_epi64(c.c3, 32), 0xAA);
    _mm256_storeu_si256((__m256i *)(void *)words, _mm256_unpacklo_epi64(w01, w23));
    _mm256_storeu_si256((__m256i *)(void *)(words + 8), _mm256_unpackhi_epi64(w01, w23));
}

SIMD_INLINE void philox_group(struct rng_key key, uint64_t block, uint32_t words[4 * PHILOX_GROUP]) {
    struct philox_lanes a = philox_start(key, block), b = philox_start(key, block + 4);
    uint32_t k0 = key.seed, k1 = key.iteration;
    for (int round = 0; round < 10; round++) {
        __m256i v0 = _mm256_set1_epi64x(k0), v1 = _mm256_set1_epi64x(k1);
        a = philox_round(a, v0, v1);
        b = philox_round(b, v0, v1);
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    philox_finish(a, words);
    philox_finish(b, words + 16);
}

#else
enum { PHILOX_GROUP = 1 };

SIMD_INLINE void philox_group(struct rng_key key, uint64_t block, uint32_t words[4]) {
    struct rng_words w = rng_philox(key, block);
    for (int i = 0; i < 4; i++) words[i] = w.w[i];
}
#endif

/* The words of up to PHILOX_SPAN elements from element `first` on; returns where in `buffer` they start. */
enum { PHILOX_SPAN = 512, PHILOX_BUFFER = PHILOX_SPAN + 4 + 4 * PHILOX_GROUP };

SIMD_INLINE const uint32_t *philox_words(struct rng_key key, uint64_t first, int64_t count,
                                         uint32_t buffer[PHILOX_BUFFER]) {
    int64_t offset = (int64_t)(first % 4), blocks = (offset + count + 3) / 4;
    for (int64_t done = 0; done < blocks; done += PHILOX_GROUP)
        philox_group(key, first / 4 + (uint64_t)done, buffer + 4 * done);
    return buffer + offset;
}
