#include "core/data/bpe.h"
#include "core/base/mem.h"
#include "core/data/bpe_table.h"
#include <string.h>

enum {
    SCAN_LONGEST = 32,     /* words up to this many bytes are merged by scanning */
    CACHE_WORDS = 1 << 15, /* a power of two */
    CACHE_KEY = 30,
    CACHE_IDS = 8
};

struct cached { /* one cache line */
    unsigned char length, count;
    char key[CACHE_KEY];
    int32_t ids[CACHE_IDS];
};

struct node { /* a symbol of a long word; dead ones have id -1 */
    int32_t id, next, before;
    uint32_t rank;  /* of the merge with the next symbol; BPE_NO_RANK: none */
    int32_t merged; /* what that merge makes */
};

struct entry { /* heap entry: a possible merge; stale when the node's rank has changed */
    uint32_t rank;
    int32_t at;
};

struct bpe_worker {
    const struct bpe *bpe;
    struct cached *cache; /* [CACHE_WORDS] */
    struct node *nodes;   /* [capacity] */
    struct entry *heap;   /* [3 * capacity] */
    size_t capacity;
};

struct bpe_worker *bpe_worker_open(const struct bpe *bpe) {
    struct bpe_worker *w = mem_zalloc(sizeof(*w), "BPE worker");
    w->bpe = bpe;
    w->cache = mem_new_array(struct cached, CACHE_WORDS, "BPE word cache");
    return w;
}

void bpe_worker_close(struct bpe_worker *w) {
    if (!w) return;
    mem_free(w->cache);
    mem_free(w->nodes);
    mem_free(w->heap);
    mem_free(w);
}

static int missing_byte(unsigned char byte, struct err *err) {
    return err_set(
        err,
        "the vocabulary has no token for byte 0x%02x, which the text holds; this is not a complete "
        "byte-level vocabulary",
        byte);
}

/* ---- short words: look for the lowest rank again after each merge ---- */

static int encode_scan(const struct bpe *bpe, const unsigned char *word, size_t length,
                       struct token_list *ids, struct err *err) {
    int32_t symbol[SCAN_LONGEST], merged[SCAN_LONGEST];
    uint32_t rank[SCAN_LONGEST];
    size_t n = length;
    for (size_t i = 0; i < n; i++)
        if ((symbol[i] = bpe->byte_id[word[i]]) < 0) return missing_byte(word[i], err);
    for (size_t i = 0; i + 1 < n; i++) rank[i] = bpe_find_merge(bpe, symbol[i], symbol[i + 1], &merged[i]);
    while (n > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < n; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == BPE_NO_RANK) break;
        symbol[best] = merged[best];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            symbol[i] = symbol[i + 1];
            rank[i - 1] = rank[i];
            merged[i - 1] = merged[i];
        }
        if (best) rank[best - 1] = bpe_find_merge(bpe, symbol[best - 1], symbol[best], &merged[best - 1]);
        if (best + 1 < n) rank[best] = bpe_find_merge(bpe, symbol[best], symbol[best + 1], &merged[best]);
    }
    token_list_reserve(ids, n);
    memcpy(ids->data + ids->count, symbol, n * sizeof(*symbol));
    ids->count += n;
    return 0;
}

/* ---- long words: heap of possible merges over a linked list ---- */

static bool before(struct entry a, struct entry b) {
    return a.rank != b.rank ? a.rank < b.rank : a.at < b.at;
}

static void heap_push(struct entry *heap, size_t *count, struct entry e) {
    size_t i = (*count)++;
    for (; i && before(e, heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = e;
}

static struct entry heap_pop(struct entry *heap, size_t *count) {
    struct entry top = heap[0], last = heap[--*count];
    size_t i = 0, n = *count;
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], last)) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

static void pair_changed(struct bpe_worker *w, int32_t at, size_t *heap_count) {
    struct node *a = &w->nodes[at];
    a->rank = a->next < 0 ? BPE_NO_RANK : bpe_find_merge(w->bpe, a->id, w->nodes[a->next].id, &a->merged);
    if (a->rank != BPE_NO_RANK) heap_push(w->heap, heap_count, (struct entry){a->rank, at});
}

static void reserve_nodes(struct bpe_worker *w, size_t length) {
    if (length <= w->capacity) return;
    w->capacity = length < 2 * w->capacity ? 2 * w->capacity : length;
    mem_free(w->nodes);
    mem_free(w->heap);
    w->nodes = mem_alloc(mem_array_bytes(w->capacity, sizeof(*w->nodes)), "BPE symbols");
    /* n pairs at the start, and each of the n - 1 merges makes at most two */
    w->heap = mem_alloc(mem_array_bytes(3 * w->capacity, sizeof(*w->heap)), "BPE heap");
}

static int encode_heap(struct bpe_worker *w, const unsigned char *word, size_t length, struct token_list *ids,
                       struct err *err) {
    size_t heap_count = 0, left = length;
    if (length > INT32_MAX / 4) return err_set(err, "a word of %zu bytes is too long to encode", length);
    reserve_nodes(w, length);
    struct node *v = w->nodes;
    int32_t n = (int32_t)length;
    for (int32_t i = 0; i < n; i++) {
        v[i] = (struct node){.id = w->bpe->byte_id[word[i]], .next = i + 1 < n ? i + 1 : -1, .before = i - 1};
        if (v[i].id < 0) return missing_byte(word[i], err);
    }
    for (int32_t i = 0; i < n; i++) pair_changed(w, i, &heap_count);
    while (heap_count) {
        struct entry e = heap_pop(w->heap, &heap_count);
        struct node *a = &v[e.at];
        if (a->id < 0 || a->rank != e.rank) continue;
        struct node *b = &v[a->next];
        a->id = a->merged;
        b->id = -1;
        a->next = b->next;
        if (a->next >= 0) v[a->next].before = e.at;
        left--;
        pair_changed(w, e.at, &heap_count);
        if (a->before >= 0) pair_changed(w, a->before, &heap_count);
    }
    token_list_reserve(ids, left);
    for (int32_t i = 0; i >= 0; i = v[i].next) ids->data[ids->count++] = v[i].id;
    return 0;
}

/* ---- the cache ---- */

static struct cached *cache_slot(struct bpe_worker *w, const char *word, size_t length) {
    return &w->cache[bpe_hash(word, length) & (CACHE_WORDS - 1)];
}

int bpe_encode(struct bpe_worker *w, const char *word, size_t length, struct token_list *ids,
               struct err *err) {
    if (!length) return 0;
    struct cached *slot = length <= CACHE_KEY ? cache_slot(w, word, length) : NULL;
    if (slot && slot->length == length && !memcmp(slot->key, word, length)) {
        token_list_reserve(ids, CACHE_IDS);
        memcpy(ids->data + ids->count, slot->ids, sizeof(slot->ids));
        ids->count += slot->count;
        return 0;
    }
    size_t first = ids->count;
    int32_t whole = w->bpe->ignore_merges ? bpe_find(w->bpe, word, length) : -1;
    if (whole >= 0) {
        token_list_reserve(ids, 1);
        ids->data[ids->count++] = whole;
    } else if (length <= SCAN_LONGEST) {
        if (encode_scan(w->bpe, (const unsigned char *)word, length, ids, err)) return -1;
    } else if (encode_heap(w, (const unsigned char *)word, length, ids, err)) {
        return -1;
    }
    size_t count = ids->count - first;
    if (slot && count <= CACHE_IDS) {
        slot->length = (unsigned char)length;
        slot->count = (unsigned char)count;
        memcpy(slot->key, word, length);
        memcpy(slot->ids, ids->data + first, count * sizeof(int32_t));
    }
    return 0;
}
