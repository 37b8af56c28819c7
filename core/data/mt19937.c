#include "core/data/mt19937.h"

enum { WORDS = 624, MIDDLE = 397 };

void mt19937_seed(struct mt19937 *rng, uint32_t seed) {
    rng->state[0] = seed;
    for (uint32_t i = 1; i < WORDS; i++) {
        uint32_t before = rng->state[i - 1];
        rng->state[i] = 1812433253u * (before ^ before >> 30) + i;
    }
    rng->next = WORDS;
}

static uint32_t twist(uint32_t high, uint32_t low) {
    uint32_t y = (high & 0x80000000u) | (low & 0x7FFFFFFFu);
    return y >> 1 ^ (low & 1u ? 0x9908B0DFu : 0u);
}

static void refill(struct mt19937 *rng) {
    uint32_t *s = rng->state;
    int i = 0;
    for (; i < WORDS - MIDDLE; i++) s[i] = s[i + MIDDLE] ^ twist(s[i], s[i + 1]);
    for (; i < WORDS - 1; i++) s[i] = s[i + MIDDLE - WORDS] ^ twist(s[i], s[i + 1]);
    s[WORDS - 1] = s[MIDDLE - 1] ^ twist(s[WORDS - 1], s[0]);
    rng->next = 0;
}

uint32_t mt19937_u32(struct mt19937 *rng) {
    if (rng->next == WORDS) refill(rng);
    uint32_t y = rng->state[rng->next++];
    y ^= y >> 11;
    y ^= y << 7 & 0x9D2C5680u;
    y ^= y << 15 & 0xEFC60000u;
    return y ^ y >> 18;
}

double mt19937_double(struct mt19937 *rng) {
    uint32_t a = mt19937_u32(rng) >> 5, b = mt19937_u32(rng) >> 6;
    return ((double)a * 67108864.0 + (double)b) / 9007199254740992.0;
}

uint64_t mt19937_interval(struct mt19937 *rng, uint64_t max) {
    if (!max) return 0;
    uint64_t mask = ~(uint64_t)0 >> __builtin_clzll(max), value;
    do {
        value = mt19937_u32(rng);
        if (max > 0xFFFFFFFFu) value = value << 32 | mt19937_u32(rng);
        value &= mask;
    } while (value > max);
    return value;
}

void mt19937_shuffle_u32(struct mt19937 *rng, uint32_t *values, int64_t count) {
    for (int64_t i = count - 1; i > 0; i--) {
        uint64_t j = mt19937_interval(rng, (uint64_t)i);
        uint32_t swap = values[i];
        values[i] = values[j];
        values[j] = swap;
    }
}
