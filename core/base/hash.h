#pragma once
/* A fast 64-bit hash for checksums and for comparing parameters and plans (not for adversaries). The value
 * depends on the bytes and their order only, never on how they were cut into calls of hash_update. */
#include <stddef.h>
#include <stdint.h>

struct hash {
    uint64_t lane[4];
    uint64_t length;
    unsigned char tail[32];
};

void hash_init(struct hash *h);
void hash_update(struct hash *h, const void *data, size_t bytes);
uint64_t hash_final(const struct hash *h);
uint64_t hash_bytes(const void *data, size_t bytes);
