#include "core/base/hash.h"
#include <string.h>

/* Four independent multiply-rotate lanes over 32-byte stripes, merged at the end (the shape of XXH64). */
static const uint64_t P1 = 0x9E3779B185EBCA87ull, P2 = 0xC2B2AE3D27D4EB4Full, P3 = 0x165667B19E3779F9ull;

static uint64_t rotate(uint64_t x, int r) {
    return x << r | x >> (64 - r);
}

static uint64_t mix(uint64_t lane, uint64_t word) {
    return rotate(lane + word * P2, 31) * P1;
}

static void stripe(struct hash *h, const unsigned char *p) {
    for (int i = 0; i < 4; i++) {
        uint64_t word;
        memcpy(&word, p + 8 * i, 8);
        h->lane[i] = mix(h->lane[i], word);
    }
}

void hash_init(struct hash *h) {
    *h = (struct hash){{P1 + P2, P2, 0, 0 - P1}, 0, {0}};
}

void hash_update(struct hash *h, const void *data, size_t bytes) {
    const unsigned char *p = data;
    size_t used = h->length % 32;
    h->length += bytes;
    if (used) {
        size_t take = 32 - used < bytes ? 32 - used : bytes;
        memcpy(h->tail + used, p, take);
        p += take, bytes -= take;
        if (used + take < 32) return;
        stripe(h, h->tail);
    }
    for (; bytes >= 32; p += 32, bytes -= 32) stripe(h, p);
    if (bytes) memcpy(h->tail, p, bytes);
}

uint64_t hash_final(const struct hash *h) {
    uint64_t x = h->length * P3;
    for (int i = 0; i < 4; i++) x = (x ^ mix(0, h->lane[i])) * P1 + P3;
    for (size_t i = 0; i < h->length % 32; i++) x = rotate(x ^ h->tail[i] * P3, 11) * P1;
    x = (x ^ x >> 33) * P2;
    x = (x ^ x >> 29) * P3;
    return x ^ x >> 32;
}

uint64_t hash_bytes(const void *data, size_t bytes) {
    struct hash h;
    hash_init(&h);
    hash_update(&h, data, bytes);
    return hash_final(&h);
}
