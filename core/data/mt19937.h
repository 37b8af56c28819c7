#pragma once
/* MT19937 as numpy.random.RandomState(seed) uses it (Matsumoto and Nishimura, "Mersenne Twister", ACM TOMACS
 * 8(1), 1998, with init_genrand seeding), and NumPy's legacy shuffle on top of it, bit for bit: the sample
 * order of Megatron-LM's datasets hangs on both. Plain data, nothing can fail.
 *
 *     struct mt19937 rng;
 *     mt19937_seed(&rng, 1234);
 *     mt19937_shuffle_u32(&rng, order, n);     // RandomState(1234).shuffle(order) */
#include <stdint.h>

struct mt19937 {
    uint32_t state[624];
    int next; /* index of the next word; 624: the block is used up */
};

void mt19937_seed(struct mt19937 *rng, uint32_t seed);
uint32_t mt19937_u32(struct mt19937 *rng);
/* Uniform in [0, 1) with 53 bits: RandomState.random_sample. */
double mt19937_double(struct mt19937 *rng);
/* Uniform in [0, max] by masked rejection; max 0 draws nothing. */
uint64_t mt19937_interval(struct mt19937 *rng, uint64_t max);
/* RandomState.shuffle of a one-dimensional array. */
void mt19937_shuffle_u32(struct mt19937 *rng, uint32_t *values, int64_t count);
