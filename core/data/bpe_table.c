#include "core/data/bpe_table.h"
#include "core/base/mem.h"
#include "core/data/utf8.h"

/* ---- the byte alphabet: 188 printable bytes stand for themselves, the others follow from U+0100 on ---- */

static bool printable(int byte) {
    return (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
}

/* Byte that a character of the alphabet stands for, -1 for any other character. */
static int alphabet_byte(uint32_t c) {
    if (c < 256) return printable((int)c) ? (int)c : -1;
    int rank = (int)c - 256;
    if (rank < 33) return rank;            /* 0 .. 32 */
    if (rank < 67) return rank - 33 + 127; /* 127 .. 160 */
    return rank == 67 ? 173 : -1;
}

/* Turns text in the alphabet into bytes; false when it holds another character (or is not UTF-8). */
static bool to_bytes(const char *text, size_t length, struct str *out) {
    const char *p = text, *end = text + length;
    str_clear(out);
    if (utf8_check(text, length) != length) return false;
    while (p < end) {
        int byte = alphabet_byte(utf8_next(&p));
        if (byte < 0) return false;
        char c = (char)byte;
        str_append(out, &c, 1);
    }
    return true;
}

/* ---- tokens ---- */

struct bpe *bpe_open(bool ignore_merges) {
    struct bpe *b = mem_zalloc(sizeof(*b), "BPE tables");
    b->ignore_merges = ignore_merges;
    for (int i = 0; i < 256; i++) b->byte_id[i] = -1;
    return b;
}

void bpe_close(struct bpe *b) {
    if (!b) return;
    str_free(&b->bytes);
    mem_free(b->texts);
    mem_free(b->by_bytes);
    mem_free(b->merges);
    mem_free(b);
}

int64_t bpe_vocab_size(const struct bpe *b) {
    return b->ids;
}

const char *bpe_bytes(const struct bpe *b, int64_t id, size_t *length_p) {
    if (id < 0 || id >= b->ids || b->texts[id].length == UINT32_MAX) return NULL;
    *length_p = b->texts[id].length;
    return b->texts[id].length ? b->bytes.data + b->texts[id].at : "";
}

static bool same_text(const struct bpe *b, int32_t id, const char *bytes, size_t length) {
    const struct bpe_text *t = &b->texts[id];
    return t->length == length && (!length || !memcmp(b->bytes.data + t->at, bytes, length));
}

int32_t bpe_find(const struct bpe *b, const char *bytes, size_t length) {
    if (!b->by_bytes_slots) return -1;
    for (size_t i = (size_t)bpe_hash(bytes, length) & (b->by_bytes_slots - 1);;
         i = (i + 1) & (b->by_bytes_slots - 1)) {
        int32_t id = b->by_bytes[i];
        if (id < 0) return -1;
        if (same_text(b, id, bytes, length)) return id;
    }
}

static void insert_id(struct bpe *b, int32_t id) {
    const struct bpe_text *t = &b->texts[id];
    size_t i = (size_t)bpe_hash(b->bytes.data + t->at, t->length) & (b->by_bytes_slots - 1);
    while (b->by_bytes[i] >= 0) i = (i + 1) & (b->by_bytes_slots - 1);
    b->by_bytes[i] = id;
    b->by_bytes_used++;
}

static void index_id(struct bpe *b, int32_t id) {
    if (2 * (b->by_bytes_used + 1) > b->by_bytes_slots) {
        int32_t *old = b->by_bytes;
        size_t old_slots = b->by_bytes_slots;
        b->by_bytes_slots = old_slots ? 2 * old_slots : 1024;
        b->by_bytes_used = 0;
        b->by_bytes = mem_alloc(mem_array_bytes(b->by_bytes_slots, 4), "BPE vocabulary index");
        memset(b->by_bytes, 0xFF, 4 * b->by_bytes_slots);
        for (size_t i = 0; i < old_slots; i++)
            if (old[i] >= 0) insert_id(b, old[i]);
        mem_free(old);
    }
    insert_id(b, id);
}

static int take_id(struct bpe *b, int64_t id, const char *where, struct err *err) {
    if (id < 0 || id >= BPE_MOST_IDS)
        return err_set(err, "%s: id %lld is outside 0 to %d", where, (long long)id, BPE_MOST_IDS - 1);
    if (id >= b->ids_capacity) {
        int64_t capacity = b->ids_capacity ? 2 * b->ids_capacity : 1024;
        if (capacity <= id) capacity = id + 1;
        b->texts = mem_realloc(b->texts, mem_array_bytes((size_t)capacity, sizeof(*b->texts)), "BPE tokens");
        for (int64_t i = b->ids_capacity; i < capacity; i++)
            b->texts[i] = (struct bpe_text){.length = UINT32_MAX};
        b->ids_capacity = capacity;
    }
    if (id >= b->ids) b->ids = id + 1;
    return 0;
}

static void put_text(struct bpe *b, int64_t id, const char *bytes, size_t length, bool plain) {
    b->texts[id] = (struct bpe_text){.at = b->bytes.length, .length = (uint32_t)length, .plain = plain};
    str_append(&b->bytes, bytes, length);
}

int bpe_add_plain(struct bpe *b, int64_t id, const char *text, size_t length, const char *where,
                  struct err *err) {
    if (take_id(b, id, where, err)) return -1;
    if (b->texts[id].length != UINT32_MAX && !b->texts[id].plain) {
        struct str bytes = {0}; /* the vocabulary may hold it too, written in the alphabet */
        bool same = same_text(b, (int32_t)id, text, length) ||
                    (to_bytes(text, length, &bytes) && same_text(b, (int32_t)id, bytes.data, bytes.length));
        str_free(&bytes);
        if (same) return 0;
        return err_set(err, "%s: token '%.*s' has id %lld, which another token has", where,
                       (int)(length < 80 ? length : 80), text, (long long)id);
    }
    put_text(b, id, text, length, true);
    return 0;
}

int bpe_add_token(struct bpe *b, int64_t id, const char *text, size_t length, const char *where,
                  struct err *err) {
    struct str bytes = {0};
    bool mapped = length && length < (1 << 20) && to_bytes(text, length, &bytes);
    int status = take_id(b, id, where, err);
    if (!status && b->texts[id].length != UINT32_MAX)
        status = err_set(err, "%s: id %lld is given twice, the second time to '%.*s'", where, (long long)id,
                         (int)(length < 80 ? length : 80), text);
    if (!status && mapped && bpe_find(b, bytes.data, bytes.length) >= 0)
        status =
            err_set(err, "%s: token '%.*s' is given twice", where, (int)(length < 80 ? length : 80), text);
    if (!status && !mapped) put_text(b, id, text, length, true);
    if (!status && mapped) {
        put_text(b, id, bytes.data, bytes.length, false);
        index_id(b, (int32_t)id);
        if (bytes.length == 1) b->byte_id[(unsigned char)bytes.data[0]] = (int32_t)id;
    }
    str_free(&bytes);
    return status;
}

/* ---- merges ---- */

static void insert_merge(struct bpe *b, struct bpe_merge m) {
    size_t i = bpe_merge_slot(b, m.left, m.right);
    while (b->merges[i].rank != BPE_NO_RANK) {
        if (b->merges[i].left == m.left && b->merges[i].right == m.right) {
            b->merges[i] = m;
            return;
        }
        i = (i + 1) & (b->merge_slots - 1);
    }
    b->merges[i] = m;
    b->merge_used++;
}

static void reserve_merge(struct bpe *b) {
    if (2 * (b->merge_used + 1) <= b->merge_slots) return;
    struct bpe_merge *old = b->merges;
    size_t old_slots = b->merge_slots;
    b->merge_slots = old_slots ? 2 * old_slots : 1024;
    b->merge_used = 0;
    b->merges = mem_alloc(mem_array_bytes(b->merge_slots, sizeof(*b->merges)), "BPE merges");
    memset(b->merges, 0xFF, b->merge_slots * sizeof(*b->merges));
    for (size_t i = 0; i < old_slots; i++)
        if (old[i].rank != BPE_NO_RANK) insert_merge(b, old[i]);
    mem_free(old);
}

int bpe_add_merge(struct bpe *b, const char *left, size_t left_length, const char *right, size_t right_length,
                  uint32_t rank, const char *where, struct err *err) {
    struct str l = {0}, r = {0};
    int status = 0;
    int32_t left_id = -1, right_id = -1, merged = -1;
    if (to_bytes(left, left_length, &l) && l.length) left_id = bpe_find(b, l.data, l.length);
    if (to_bytes(right, right_length, &r) && r.length) right_id = bpe_find(b, r.data, r.length);
    if (left_id >= 0 && right_id >= 0) {
        str_append(&l, r.data, r.length);
        merged = bpe_find(b, l.data, l.length);
    }
    if (merged < 0) {
        const char *what = left_id < 0 ? "left part" : right_id < 0 ? "right part" : "sum";
        status = err_set(err, "%s: merge '%.*s %.*s': its %s is not in the vocabulary", where,
                         (int)(left_length < 80 ? left_length : 80), left,
                         (int)(right_length < 80 ? right_length : 80), right, what);
    } else {
        reserve_merge(b);
        insert_merge(b, (struct bpe_merge){left_id, right_id, rank, merged});
    }
    str_free(&l);
    str_free(&r);
    return status;
}
