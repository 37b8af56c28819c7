#include "core/checkpoint/checksum.h"
#include <string.h>

/* The finaliser is David Stafford's thirteenth variant of MurmurHash3's (a bijection of 64 bits,
 * zimbry.blogspot.com 2011). Numbers step by 2^64 over the golden ratio, whose multiples stay far apart: two
 * elements get the same input only when they are some 2^32 apart. */
uint64_t checkpoint_checksum(const float *data, int64_t first, int64_t count) {
    static const uint64_t step = 0x9E3779B97F4A7C15u;
    uint64_t sum = 0, number = (uint64_t)first * step;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &data[i], sizeof(bits));
        uint64_t x = number + (uint64_t)i * step + bits;
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
        x = (x ^ x >> 27) * 0x94D049BB133111EBu;
        sum += x ^ x >> 31;
    }
    return sum;
}
