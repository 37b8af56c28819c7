#pragma once
/* The random words of core/base/rng.h on the device, bit for bit. */
#include "kernels/cuda/cuda.cuh"

struct philox_words {
    uint32_t w[4];
};

static __device__ __forceinline__ philox_words philox(const struct rng_key key, uint64_t block) {
    uint32_t k0 = key.seed, k1 = key.iteration;
    uint32_t c0 = (uint32_t)block, c1 = (uint32_t)(block >> 32), c2 = key.micro_batch;
    uint32_t c3 = (uint32_t)key.layer << 16 | key.op;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint32_t n0 = __umulhi(0xCD9E8D57u, c2) ^ c1 ^ k0, n2 = __umulhi(0xD2511F53u, c0) ^ c3 ^ k1;
        c1 = 0xCD9E8D57u * c2, c3 = 0xD2511F53u * c0, c0 = n0, c2 = n2;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    philox_words out = {{c0, c1, c2, c3}};
    return out;
}

/* Word of one element, from the words of its block. */
static __device__ __forceinline__ uint32_t philox_pick(const philox_words &words, uint64_t element) {
    const uint32_t low = element & 1 ? words.w[1] : words.w[0], high = element & 1 ? words.w[3] : words.w[2];
    return element & 2 ? high : low;
}

/* Words of elements first .. first + GROUP. */
static __device__ __forceinline__ void philox_group(uint32_t (&out)[GROUP], const struct rng_key key,
                                                    uint64_t first) {
    philox_words words = philox(key, first / 4);
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
        if (j && (first + (uint64_t)j) % 4 == 0) words = philox(key, (first + (uint64_t)j) / 4);
        out[j] = philox_pick(words, first + (uint64_t)j);
    }
}

/* Dropout as a function: multiplies by 1 / (1 - p) what is kept. Made on the host. */
struct dropper {
    struct rng_key key;
    uint64_t first_element;
    uint32_t threshold;
    float scale;
    bool on;
};

static inline dropper dropper_of(float p, struct rng_key key, uint64_t first_element) {
    dropper d = {key, first_element, p > 0 ? rng_drop_threshold(p) : 0, 1.0f / (1.0f - p), p > 0};
    return d;
}

static __device__ __forceinline__ void drop_group(float (&x)[GROUP], const dropper &d, int64_t i) {
    if (!d.on) return;
    uint32_t words[GROUP];
    philox_group(words, d.key, d.first_element + (uint64_t)i);
#pragma unroll
    for (int j = 0; j < GROUP; j++) x[j] = words[j] >= d.threshold ? x[j] * d.scale : 0.0f;
}
