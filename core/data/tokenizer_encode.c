#include "core/base/mem.h"
#include "core/data/tokenizer_parts.h"
#include "core/data/utf8.h"
#include <string.h>

struct tokenizer_worker {
    const struct tokenizer *tokenizer;
    struct bpe_worker *bpe;
    struct presplit_worker *split;
    struct str normal, prefixed;
    struct token_list *ids; /* of the text being encoded */
};

struct tokenizer_worker *tokenizer_worker_open(const struct tokenizer *t) {
    struct tokenizer_worker *w = mem_zalloc(sizeof(*w), "tokenizer worker");
    w->tokenizer = t;
    if (t->kind == TOKENIZER_BPE) {
        w->bpe = bpe_worker_open(t->bpe);
        w->split = presplit_worker_open(t->split);
    }
    return w;
}

void tokenizer_worker_close(struct tokenizer_worker *w) {
    if (!w) return;
    bpe_worker_close(w->bpe);
    presplit_worker_close(w->split);
    str_free(&w->normal);
    str_free(&w->prefixed);
    mem_free(w);
}

static void push(struct token_list *ids, int32_t id) {
    token_list_reserve(ids, 1);
    ids->data[ids->count++] = id;
}

static void encode_bytes(const char *text, size_t length, struct token_list *ids) {
    token_list_reserve(ids, length);
    for (size_t i = 0; i < length; i++) ids->data[ids->count + i] = (unsigned char)text[i];
    ids->count += length;
}

/* Integers with white space between. */
static int encode_integers(const struct tokenizer *t, const char *text, size_t length, struct token_list *ids,
                           struct err *err) {
    static const char blanks[] = " \t\r\n";
    for (size_t i = 0; i < length;) {
        if (memchr(blanks, text[i], 4)) {
            i++;
            continue;
        }
        size_t begin = i;
        int64_t value = 0;
        for (; i < length && text[i] >= '0' && text[i] <= '9'; i++)
            if (value <= INT32_MAX) value = 10 * value + (text[i] - '0');
        if (i == begin || (i < length && !memchr(blanks, text[i], 4)))
            return err_set(err, "byte %zu: '%.*s' is no id; NullTokenizer reads integers with spaces between",
                           begin, (int)(length - begin < 12 ? length - begin : 12), text + begin);
        if (value >= t->vocab_size)
            return err_set(err, "byte %zu: id %.*s is outside the vocabulary of %lld ids; raise --vocab-size",
                           begin, (int)(i - begin < 20 ? i - begin : 20), text + begin,
                           (long long)t->vocab_size);
        push(ids, (int32_t)value);
    }
    return 0;
}

/* ---- byte pair encoding: added tokens, normalisation, added tokens again, words, merges ---- */

static int on_word(void *context, const char *word, size_t length, struct err *err) {
    struct tokenizer_worker *w = context;
    return bpe_encode(w->bpe, word, length, w->ids, err);
}

static int encode_words(struct tokenizer_worker *w, const char *text, size_t length, struct err *err) {
    if (w->tokenizer->prefix_space && length && text[0] != ' ') {
        str_clear(&w->prefixed);
        str_append(&w->prefixed, " ", 1);
        str_append(&w->prefixed, text, length);
        text = w->prefixed.data;
        length = w->prefixed.length;
    }
    return presplit_run(w->split, text, length, on_word, w, err);
}

typedef int (*segment_fn)(struct tokenizer_worker *w, const char *text, size_t length, struct err *err);

/* Calls fn for the text between added tokens and appends the ids of those. */
static int each_segment(struct tokenizer_worker *w, const struct added *added, const char *text,
                        size_t length, segment_fn fn, struct err *err) {
    for (size_t at = 0;;) {
        struct added_match m = added_find(added, text, length, at);
        if (m.begin > at && fn(w, text + at, m.begin - at, err)) return -1;
        if (!m.token) return 0;
        push(w->ids, m.token->id);
        at = m.end;
    }
}

static int encode_normal(struct tokenizer_worker *w, const char *text, size_t length, struct err *err) {
    if (w->tokenizer->nfc && !utf8_is_nfc(text, length)) {
        str_clear(&w->normal);
        utf8_to_nfc(text, length, &w->normal);
        text = w->normal.data;
        length = w->normal.length;
    }
    return each_segment(w, &w->tokenizer->added_normalized, text, length, encode_words, err);
}

static int encode_bpe(struct tokenizer_worker *w, const char *text, size_t length, struct err *err) {
    const struct tokenizer *t = w->tokenizer;
    size_t good = utf8_check(text, length);
    if (good != length) return err_set(err, "byte %zu of the text is not UTF-8; repair it first", good);
    for (int i = 0; i < t->num_before; i++) push(w->ids, t->before[i]);
    if (each_segment(w, &t->added_raw, text, length, encode_normal, err)) return -1;
    for (int i = 0; i < t->num_after; i++) push(w->ids, t->after[i]);
    return 0;
}

int tokenizer_encode(struct tokenizer_worker *w, const char *text, size_t length, struct token_list *ids,
                     struct err *err) {
    switch (w->tokenizer->kind) {
    case TOKENIZER_BYTE:
        encode_bytes(text, length, ids);
        return 0;
    case TOKENIZER_NULL:
        return encode_integers(w->tokenizer, text, length, ids, err);
    default:
        w->ids = ids;
        return encode_bpe(w, text, length, err);
    }
}
