#pragma once
/* Randomness is a function, not a state: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as
 * 1, 2, 3", SC 2011) of (seed, iteration, micro-batch, layer, op, global element index). The same element
 * gets the same number whatever the layout, the thread or the number of times it is asked for; so recompute
 * replays a dropout mask by asking again. One counter gives four 32-bit words: element e uses word e % 4 of
 * counter e / 4. */
#include <math.h>
#include <stdint.h>

/* Names one random tensor. Zero is a valid value of every field. */
struct rng_key {
    uint32_t seed;
    uint32_t iteration;
    uint32_t micro_batch; /* index of the micro-batch in the global batch, not in this rank's share */
    uint16_t layer;       /* global layer index */
    uint16_t op;          /* which random op of the layer, or of the initialisation */
};

struct rng_words {
    uint32_t w[4];
};

static inline struct rng_words rng_philox(struct rng_key key, uint64_t block) {
    uint32_t k0 = key.seed, k1 = key.iteration;
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32), c2 = key.micro_batch;
    uint32_t c3 = (uint32_t)key.layer << 16 | key.op;
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1, c3 = (uint32_t)p0, c0 = n0, c2 = n2;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return (struct rng_words){{c0, c1, c2, c3}};
}

/* Uniform in [0, 1): the top 24 bits. */
static inline float rng_uniform(uint32_t word) {
    return (float)(word >> 8) * 0x1p-24f;
}

/* Dropout keeps an element when rng_uniform(word) >= p. The threshold form compares integers only. */
static inline uint32_t rng_drop_threshold(float p) {
    double t = ceil((double)p * 0x1p24);
    return t >= 0x1p24 ? 0xFFFFFFFFu : (uint32_t)t << 8; /* keep when word >= threshold */
}

/* Two standard normals from two words (Box-Muller in double, so every build rounds to the same floats). */
static inline void rng_normal_pair(uint32_t a, uint32_t b, float *x_p, float *y_p) {
    double u = ((double)a + 1.0) * 0x1p-32, v = (double)b * 0x1p-32;
    double radius = sqrt(-2.0 * log(u)), angle = 6.283185307179586 * v;
    *x_p = (float)(radius * cos(angle));
    *y_p = (float)(radius * sin(angle));
}
