#pragma once
/* Dropout masks of blocks of scores, 16 random counters at a time. The element index of query i and key j is
 * first + i * s + j, four neighbouring keys share a counter, and lanes are queries: so one round of 16
 * counters gives four rows of 16 lanes. When s is no multiple of 4 a lane may start in the middle of a
 * counter; its rows are then put together from two. */
#include "core/base/rng.h"
#include "kernels/cpu/cpu.h"
#if CPU_ISA_avx512 || CPU_ISA_amx
#include <immintrin.h>
#endif

struct dropout {
    struct rng_key key;
    uint32_t threshold; /* 0: no dropout */
    float keep_scale;   /* 1 / (1 - p) */
};

static inline struct dropout dropout_make(struct rng_key key, float p) {
    return (struct dropout){key, p > 0 ? rng_drop_threshold(p) : 0, 1.0f / (1.0f - p)};
}

enum { DROPOUT_LANES = 16 };

/* Counters are stored even lanes first, then odd lanes. */
static inline int dropout_lane(int n) {
    return n < 8 ? 2 * n : 2 * n - 15;
}

#if CPU_ISA_avx512 || CPU_ISA_amx
/* Ten rounds over 8 counters in the low halves of 64-bit lanes; the high halves hold rubbish. */
static inline __attribute__((always_inline)) void philox_rounds(struct rng_key key, __m512i block,
                                                                __m512i c[4]) {
    const __m512i m0 = _mm512_set1_epi64(0xD2511F53u), m1 = _mm512_set1_epi64(0xCD9E8D57u);
    uint32_t k0 = key.seed, k1 = key.iteration;
    c[0] = block, c[1] = _mm512_srli_epi64(block, 32), c[2] = _mm512_set1_epi64(key.micro_batch);
    c[3] = _mm512_set1_epi64((uint32_t)key.layer << 16 | key.op);
    for (int round = 0; round < 10; round++) {
        __m512i p0 = _mm512_mul_epu32(m0, c[0]), p1 = _mm512_mul_epu32(m1, c[2]);
        c[0] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p1, 32), c[1], _mm512_set1_epi64(k0), 0x96);
        c[2] = _mm512_ternarylogic_epi64(_mm512_srli_epi64(p0, 32), c[3], _mm512_set1_epi64(k1), 0x96);
        c[1] = p1, c[3] = p0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
}

/* Bit l of mask[w]: word w of the counter of lane l keeps its element. */
static inline void dropout_words(const struct dropout *drop, const uint64_t *block, uint64_t add,
                                 uint16_t *mask) {
    const __m512i threshold = _mm512_set1_epi32((int)drop->threshold), more = _mm512_set1_epi64((int64_t)add);
    __m512i even[4], odd[4];
    philox_rounds(drop->key, _mm512_add_epi64(_mm512_loadu_si512(block), more), even);
    philox_rounds(drop->key, _mm512_add_epi64(_mm512_loadu_si512(block + 8), more), odd);
    for (int w = 0; w < 4; w++) {
        __m512i words = (__m512i)_mm512_mask_moveldup_ps((__m512)even[w], 0xAAAA, (__m512)odd[w]);
        mask[w] = _mm512_cmpge_epu32_mask(words, threshold);
    }
}
#else
static inline void dropout_words(const struct dropout *drop, const uint64_t *block, uint64_t add,
                                 uint16_t *mask) {
    uint32_t c0[DROPOUT_LANES], c1[DROPOUT_LANES], c2[DROPOUT_LANES], c3[DROPOUT_LANES];
    uint32_t k0 = drop->key.seed, k1 = drop->key.iteration;
    for (int i = 0; i < DROPOUT_LANES; i++) {
        c0[i] = (uint32_t)(block[i] + add), c1[i] = (uint32_t)((block[i] + add) >> 32);
        c2[i] = drop->key.micro_batch, c3[i] = (uint32_t)drop->key.layer << 16 | drop->key.op;
    }
    for (int round = 0; round < 10; round++) {
#pragma omp simd
        for (int i = 0; i < DROPOUT_LANES; i++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * c0[i], p1 = (uint64_t)0xCD9E8D57u * c2[i];
            c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ k0, c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ k1;
            c1[i] = (uint32_t)p1, c3[i] = (uint32_t)p0;
        }
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    mask[0] = mask[1] = mask[2] = mask[3] = 0;
    for (int i = 0; i < DROPOUT_LANES; i++) {
        int lane = dropout_lane(i);
        mask[0] = (uint16_t)(mask[0] | (c0[i] >= drop->threshold) << lane);
        mask[1] = (uint16_t)(mask[1] | (c1[i] >= drop->threshold) << lane);
        mask[2] = (uint16_t)(mask[2] | (c2[i] >= drop->threshold) << lane);
        mask[3] = (uint16_t)(mask[3] | (c3[i] >= drop->threshold) << lane);
    }
}
#endif

/* keep[rows][2]: bit l of keep[j][h] says whether element first + (16 h + l) * lane_step + j is kept. */
static inline void dropout_mask(const struct dropout *drop, uint64_t first, uint64_t lane_step, int64_t rows,
                                uint16_t *keep) {
    for (int h = 0; h < 2; h++) {
        uint64_t block[DROPOUT_LANES];
        uint16_t words[8] = {0}, at[4] = {0}; /* at[o]: the lanes that start at word o of their counter */
        for (int i = 0; i < DROPOUT_LANES; i++) {
            uint64_t element = first + (uint64_t)(16 * h + dropout_lane(i)) * lane_step;
            block[i] = element / 4;
            at[element % 4] = (uint16_t)(at[element % 4] | 1u << dropout_lane(i));
        }
        dropout_words(drop, block, 0, words);
        for (int64_t row = 0; row < rows; row += 4) {
            if (row + 4 < rows || at[0] != 0xFFFF)
                dropout_words(drop, block, (uint64_t)row / 4 + 1, words + 4);
            for (int t = 0; t < 4 && row + t < rows; t++) {
                keep[2 * (row + t) + h] = (uint16_t)((words[t] & at[0]) | (words[t + 1] & at[1]) |
                                                     (words[t + 2] & at[2]) | (words[t + 3] & at[3]));
            }
            for (int t = 0; t < 4; t++) words[t] = words[t + 4];
        }
    }
}
