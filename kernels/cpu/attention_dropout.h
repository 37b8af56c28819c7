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
    uint64_t round_keys[10][2];
};

static inline struct dropout dropout_make(struct rng_key key, float p) {
    struct dropout drop = {
        .key = key, .threshold = p > 0 ? rng_drop_threshold(p) : 0, .keep_scale = 1.0f / (1.0f - p)};
    uint32_t k0 = key.seed, k1 = key.iteration;
    for (int round = 0; round < 10; round++) {
        drop.round_keys[round][0] = k0, drop.round_keys[round][1] = k1;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return drop;
}

/* 32 queries side by side: the counter of each, and where in its counter each starts: at[o] has the lanes
 * that start at word o. dropout_words gives masks of which bit l says that word w of counter `add` of lane l
 * keeps its element. */
#if CPU_ISA_avx512 || CPU_ISA_amx
enum {
    DROPOUT_CHAINS = 4
}; /* even and odd lanes of both halves: independent work that hides the latency of a round */

struct dropout_lanes {
    __m512i counter[DROPOUT_CHAINS];
    uint32_t at[4];
};

static inline void dropout_lanes(struct dropout_lanes *x, uint64_t first, uint64_t lane_step) {
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 8, 10, 12, 14), three = _mm512_set1_epi64(3);
    const __m512i lanes = _mm512_mullo_epi64(_mm512_set1_epi64((int64_t)lane_step), order);
    uint32_t starts[DROPOUT_CHAINS][4];
    for (int i = 0; i < DROPOUT_CHAINS; i++) {
        uint64_t start = first + (uint64_t)(i / 2 * 16 + i % 2) * lane_step;
        __m512i element = _mm512_add_epi64(lanes, _mm512_set1_epi64((int64_t)start));
        x->counter[i] = _mm512_srli_epi64(element, 2);
        for (int o = 0; o < 4; o++) {
            starts[i][o] = _mm512_cmpeq_epi64_mask(_mm512_and_si512(element, three), _mm512_set1_epi64(o));
        }
    }
    for (int o = 0; o < 4; o++) {
        x->at[o] = _pdep_u32(starts[0][o] | starts[2][o] << 8, 0x55555555) |
                   _pdep_u32(starts[1][o] | starts[3][o] << 8, 0xAAAAAAAA);
    }
}

/* Words of the four chains: which of 32 are not below the threshold. */
SIMD_INLINE uint32_t dropout_compare(__m512i even0, __m512i odd0, __m512i even1, __m512i odd1,
                                     __m512i threshold) {
    __m512i low = (__m512i)_mm512_mask_moveldup_ps((__m512)even0, 0xAAAA, (__m512)odd0);
    __m512i high = (__m512i)_mm512_mask_moveldup_ps((__m512)even1, 0xAAAA, (__m512)odd1);
    return _mm512_kunpackw(_mm512_cmpge_epu32_mask(high, threshold), _mm512_cmpge_epu32_mask(low, threshold));
}

static inline void dropout_words(const struct dropout *drop, const struct dropout_lanes *x, int64_t add,
                                 uint32_t mask[4]) {
    const __m512i more = _mm512_set1_epi64(add), threshold = _mm512_set1_epi32((int)drop->threshold);
    struct philox_lanes c[DROPOUT_CHAINS];
    for (int i = 0; i < DROPOUT_CHAINS; i++) {
        __m512i counter = _mm512_add_epi64(x->counter[i], more);
        c[i] = (struct philox_lanes){counter, _mm512_srli_epi64(counter, 32),
                                     _mm512_set1_epi64(drop->key.micro_batch),
                                     _mm512_set1_epi64((uint32_t)drop->key.layer << 16 | drop->key.op)};
    }
#pragma GCC unroll 1
    for (int round = 0; round < 10; round++) {
        __m512i k0 = _mm512_set1_epi64((int64_t)drop->round_keys[round][0]);
        __m512i k1 = _mm512_set1_epi64((int64_t)drop->round_keys[round][1]);
        for (int i = 0; i < DROPOUT_CHAINS; i++) c[i] = philox_round(c[i], k0, k1);
    }
    mask[0] = dropout_compare(c[0].c0, c[1].c0, c[2].c0, c[3].c0, threshold);
    mask[1] = dropout_compare(c[0].c1, c[1].c1, c[2].c1, c[3].c1, threshold);
    mask[2] = dropout_compare(c[0].c2, c[1].c2, c[2].c2, c[3].c2, threshold);
    mask[3] = dropout_compare(c[0].c3, c[1].c3, c[2].c3, c[3].c3, threshold);
}
#else
enum { DROPOUT_LANES = 32 };

struct dropout_lanes {
    uint64_t counter[DROPOUT_LANES];
    uint32_t at[4];
};

static inline void dropout_lanes(struct dropout_lanes *x, uint64_t first, uint64_t lane_step) {
    memset(x->at, 0, sizeof(x->at));
    for (int i = 0; i < DROPOUT_LANES; i++) {
        uint64_t element = first + (uint64_t)i * lane_step;
        x->counter[i] = element / 4;
        x->at[element % 4] |= 1u << i;
    }
}

static inline void dropout_words(const struct dropout *drop, const struct dropout_lanes *x, int64_t add,
                                 uint32_t mask[4]) {
    uint32_t c[4][DROPOUT_LANES];
    for (int i = 0; i < DROPOUT_LANES; i++) {
        uint64_t counter = x->counter[i] + (uint64_t)add;
        c[0][i] = (uint32_t)counter, c[1][i] = (uint32_t)(counter >> 32);
        c[2][i] = drop->key.micro_batch, c[3][i] = (uint32_t)drop->key.layer << 16 | drop->key.op;
    }
    for (int round = 0; round < 10; round++) {
        uint32_t k0 = (uint32_t)drop->round_keys[round][0], k1 = (uint32_t)drop->round_keys[round][1];
        SIMD_LOOP for (int i = 0; i < DROPOUT_LANES; i++) {
            uint64_t p0 = (uint64_t)0xD2511F53u * c[0][i], p1 = (uint64_t)0xCD9E8D57u * c[2][i];
            c[0][i] = (uint32_t)(p1 >> 32) ^ c[1][i] ^ k0, c[2][i] = (uint32_t)(p0 >> 32) ^ c[3][i] ^ k1;
            c[1][i] = (uint32_t)p1, c[3][i] = (uint32_t)p0;
        }
    }
    for (int w = 0; w < 4; w++) {
        mask[w] = 0;
        for (int i = 0; i < DROPOUT_LANES; i++) mask[w] |= (uint32_t)(c[w][i] >= drop->threshold) << i;
    }
}
#endif

/* Bit l of keep[j] says whether element first + l * lane_step + j is kept. rows is a multiple of 4. */
static inline void dropout_mask(const struct dropout *drop, uint64_t first, uint64_t lane_step, int64_t rows,
                                uint32_t *keep) {
    struct dropout_lanes lanes;
    uint32_t words[8];
    const uint32_t *at = lanes.at;
    dropout_lanes(&lanes, first, lane_step);
    if (at[0] == UINT32_MAX) {
        for (int64_t row = 0; row < rows; row += 4) dropout_words(drop, &lanes, row / 4, keep + row);
        return;
    }
    dropout_words(drop, &lanes, 0, words + 4);
    for (int64_t row = 0; row < rows; row += 4) {
        memcpy(words, words + 4, sizeof(words) / 2);
        dropout_words(drop, &lanes, row / 4 + 1, words + 4);
        for (int t = 0; t < 4; t++) {
            keep[row + t] =
                (words[t] & at[0]) | (words[t + 1] & at[1]) | (words[t + 2] & at[2]) | (words[t + 3] & at[3]);
        }
    }
}

/* factors[32]: 1 / (1 - p) where the bit is set, 0 elsewhere. */
static inline void dropout_factors(const struct dropout *drop, uint32_t keep, float *factors) {
#if CPU_ISA_avx512 || CPU_ISA_amx
    const __m512 scale = _mm512_set1_ps(drop->keep_scale);
    _mm512_storeu_ps(factors, _mm512_maskz_mov_ps((__mmask16)keep, scale));
    _mm512_storeu_ps(factors + 16, _mm512_maskz_mov_ps((__mmask16)(keep >> 16), scale));
#else
    SIMD_LOOP for (int i = 0; i < 32; i++) factors[i] = (float)(keep >> i & 1) * drop->keep_scale;
#endif
}
