#include "core/data/mock.h"

/* NumPy's PCG64 (O'Neill, HMC-CS-2014-0905: 128-bit LCG, XSL-RR output) in the state that SeedSequence(0)
 * gives it. */
struct pcg64 {
    unsigned __int128 state, increment;
    uint64_t word;
    int halves; /* 32-bit halves of `word` still unused */
};

static unsigned __int128 join(uint64_t high, uint64_t low) {
    return (unsigned __int128)high << 64 | low;
}

static uint32_t pcg64_u32(struct pcg64 *rng) {
    if (!rng->halves) {
        rng->state = rng->state * join(0x2360ED051FC65DA4u, 0x4385DF649FCCF645u) + rng->increment;
        uint64_t folded = (uint64_t)(rng->state >> 64) ^ (uint64_t)rng->state;
        unsigned turn = (unsigned)(rng->state >> 122);
        rng->word = folded >> turn | folded << (-turn & 63);
        rng->halves = 2;
    }
    uint32_t half = rng->halves == 2 ? (uint32_t)rng->word : (uint32_t)(rng->word >> 32);
    rng->halves--;
    return half;
}

void mock_lengths(int32_t *lengths) {
    struct pcg64 rng = {.state = join(0x1AA1B5345996452Du, 0x09585EB7A69561E3u),
                        .increment = join(0x418DDADB3AF71A82u, 0x588133BC447873A9u)};
    const uint32_t range = MOCK_LONGEST, threshold = (0xFFFFFFFFu - (range - 1)) % range;
    for (int i = 0; i < MOCK_DOCUMENTS; i++) {
        uint64_t product; /* Lemire, "Fast random integer generation in an interval", 2019 */
        do product = (uint64_t)pcg64_u32(&rng) * range;
        while ((uint32_t)product < threshold);
        lengths[i] = 1 + (int32_t)(product >> 32);
    }
}

void mock_read(int64_t length, int64_t first, int64_t count, int64_t vocab_size, int64_t eod,
               int32_t *tokens) {
    for (int64_t i = 0; i < count; i++) {
        int64_t at = first + i;
        tokens[i] = (int32_t)(at == length - 1 ? eod : (at + 1) % vocab_size);
    }
}
