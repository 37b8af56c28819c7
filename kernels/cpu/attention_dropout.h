#pragma once
/* Dropout masks of blocks of scores, 16 random counters at a time. The element index of query i and key j is
 * first + i * s + j, four neighbouring keys share a counter, and lanes are queries: so one round of 16
 * counters gives four rows of 16 lanes. When s is no multiple of 4 a lane may start in the middle of a
 * counter; its rows are then put together from two. */
#include "kernels/cpu/philox.h"

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

/* Bit l of mask[w]: word w of the counter of lane l, block[] + add, keeps its element. */
#if CPU_ISA_avx512 || CPU_ISA_amx
SIMD_INLINE struct philox_lanes dropout_counters(const struct dropout *drop, const uint64_t *block,
                                                 uint64_t add) {
    __m512i counter = _mm512_add_epi64(_mm512_loadu_si512(block), _mm512_set1_epi64((int64_t)add));
    return (struct philox_lanes){counter, _mm512_srli_epi64(counter, 32),
                                 _mm512_set1_epi64(drop->key.micro_batch),
                                 _mm512_set1_epi64((uint32_t)drop->key.layer << 16 | drop->key.op)};
}

SIMD_INLINE uint16_t dropout_compare(__m512i even, __m512i odd, __m512i threshold) {
    __m512i words = (__m512i)_mm512_mask_moveldup_ps((__m512)even, 0xAAAA, (__m512)odd);
    return _mm512_cmpge_epu32_mask(words, threshold);
}

SIMD_INLINE void dropout_words(const struct dropout *drop, const uint64_t *block, uint64_t add,
                               uint16_t *mask) {
    struct philox_lanes even = dropout_counters(drop, block, add),
                        odd = dropout_counters(drop, block + 8, add);
    uint32_t k0 = drop->key.seed, k1 = drop->key.iteration;
    for (int round = 0; round < 10; round++) {
        __m512i v0 = _mm512_set1_epi64(k0), v1 = _mm512_set1_epi64(k1);
        even = philox_round(even, v0, v1), odd = philox_round(odd, v0, v1);
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    const __m512i threshold = _mm512_set1_epi32((int)drop->threshold);
    mask[0] = dropout_compare(even.c0, odd.c0, threshold),
    mask[1] = dropout_compare(even.c1, odd.c1, threshold);
    mask[2] = dropout_compare(even.c2, odd.c2, threshold),
    mask[3] = dropout_compare(even.c3, odd.c3, threshold);
}
#else
static inline void dropout_words(const struct dropout *drop, const uint64_t *block, uint64_t add,
                                 uint16_t *mask) {
    uint32_t c[4][DROPOUT_LANES], k0 = drop->key.seed, k1 = drop->key.iteration;
    for (int i = 0; i < DROPOUT_LANES; i++) {
        c[0][i] = (uint32_t)(block[i] + add), c[1][i] = (uint32_t)((block[i] + add) >> 32);
        c[2][i] = drop->key.micro_batch, c[3][i] = (uint32_t)drop->key.layer << 16 | drop->key.op;
    }
    for (int round = 0; round < 10; round++) {
        SIMD_LOOP for (int i = 0; i < DROPOUT_LANES; i++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * c[0][i], p1 = (uint64_t)0xCD9E8D57u * c[2][i];
            c[0][i] = (uint32_t)(p1 >> 32) ^ c[1][i] ^ k0, c[2][i] = (uint32_t)(p0 >> 32) ^ c[3][i] ^ k1;
            c[1][i] = (uint32_t)p1, c[3][i] = (uint32_t)p0;
        }
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    for (int w = 0; w < 4; w++) {
        mask[w] = 0;
        for (int i = 0; i < DROPOUT_LANES; i++) {
            mask[w] = (uint16_t)(mask[w] | (c[w][i] >= drop->threshold) << dropout_lane(i));
        }
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
