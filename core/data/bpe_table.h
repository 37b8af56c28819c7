#pragma once
/* The tables of a byte pair encoding, shared by bpe_table.c (which fills them) and bpe.c (which encodes).
 * Users include core/data/bpe.h. */
#include "core/data/bpe.h"
#include <string.h>

#define BPE_NO_RANK UINT32_MAX

struct bpe_merge { /* one slot of an open-addressing table; rank BPE_NO_RANK: free */
    int32_t left, right;
    uint32_t rank;
    int32_t merged;
};

struct bpe_text { /* where the bytes of an id lie; length UINT32_MAX: id not in use */
    uint64_t at;
    uint32_t length;
    bool plain; /* not reachable by merges */
};

struct bpe {
    bool ignore_merges;
    int32_t byte_id[256];   /* -1: no token */
    struct str bytes;       /* all token bytes */
    struct bpe_text *texts; /* [ids_capacity] */
    int64_t ids, ids_capacity;
    int32_t *by_bytes; /* [by_bytes_slots], ids; -1: free */
    size_t by_bytes_slots, by_bytes_used;
    struct bpe_merge *merges; /* [merge_slots] */
    size_t merge_slots, merge_used;
};

static inline uint64_t bpe_mix(uint64_t h) {
    h ^= h >> 32;
    h *= 0x9E3779B97F4A7C15u;
    return h ^ h >> 29;
}

static inline uint64_t bpe_hash(const char *bytes, size_t length) {
    uint64_t h = length * 0xD6E8FEB86659FD93u, word;
    for (; length >= 8; bytes += 8, length -= 8) {
        memcpy(&word, bytes, 8);
        h = bpe_mix(h ^ word) * 0xD6E8FEB86659FD93u;
    }
    word = 0;
    for (size_t i = 0; i < length; i++) word = word << 8 | (unsigned char)bytes[i];
    return bpe_mix(h ^ word);
}

static inline size_t bpe_merge_slot(const struct bpe *bpe, int32_t left, int32_t right) {
    uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
    return (size_t)bpe_mix(pair * 0xD6E8FEB86659FD93u) & (bpe->merge_slots - 1);
}

static inline uint32_t bpe_find_merge(const struct bpe *bpe, int32_t left, int32_t right, int32_t *merged_p) {
    if (!bpe->merge_slots) return BPE_NO_RANK;
    for (size_t i = bpe_merge_slot(bpe, left, right);; i = (i + 1) & (bpe->merge_slots - 1)) {
        const struct bpe_merge *m = &bpe->merges[i];
        if (m->rank == BPE_NO_RANK) return BPE_NO_RANK;
        if (m->left == left && m->right == right) {
            *merged_p = m->merged;
            return m->rank;
        }
    }
}
