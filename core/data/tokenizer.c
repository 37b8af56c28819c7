#include "core/data/tokenizer.h"
#include "core/base/mem.h"
#include "core/data/tokenizer_parts.h"
#include "core/data/utf8.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

void token_list_reserve(struct token_list *list, size_t extra) {
    size_t need = list->count + extra;
    if (need <= list->capacity) return;
    size_t capacity = list->capacity ? 2 * list->capacity : 256;
    if (capacity < need) capacity = need;
    list->data = mem_realloc(list->data, mem_array_bytes(capacity, sizeof(*list->data)), "token list");
    list->capacity = capacity;
}

void token_list_free(struct token_list *list) {
    mem_free(list->data);
    *list = (struct token_list){0};
}

/* ---- opening ---- */

static int open_null(struct tokenizer *t, const struct tokenizer_options *o, struct err *err) {
    if (o->vocab_size < 1)
        return err_set(err, "--tokenizer-type NullTokenizer needs --vocab-size (the number of ids)");
    t->kind = TOKENIZER_NULL;
    t->vocab_size = o->vocab_size;
    t->eod = o->null_eod_id >= 0 ? o->null_eod_id : o->vocab_size - 1;
    t->pad = o->null_pad_id;
    if (t->eod >= t->vocab_size || t->pad >= t->vocab_size)
        return err_set(err, "--null-tokenizer-%s-id %lld: must be below --vocab-size %lld",
                       t->eod >= t->vocab_size ? "eod" : "pad",
                       (long long)(t->eod >= t->vocab_size ? t->eod : t->pad), (long long)t->vocab_size);
    hash_update(&t->hash, &t->vocab_size, sizeof(t->vocab_size));
    hash_update(&t->hash, &t->eod, sizeof(t->eod));
    return 0;
}

static int open_byte(struct tokenizer *t, const struct tokenizer_options *o, struct err *err) {
    (void)o, (void)err;
    t->kind = TOKENIZER_BYTE;
    t->vocab_size = 257;
    t->eod = 256;
    return 0;
}

static const struct {
    const char *type;
    int (*open)(struct tokenizer *, const struct tokenizer_options *, struct err *);
} types[] = {
    {"ByteTokenizer", open_byte},
    {"GPT2BPETokenizer", tokenizer_read_gpt2},
    {"HuggingFaceTokenizer", tokenizer_read_json},
    {"NullTokenizer", open_null},
};

static int open_type(struct tokenizer *t, const struct tokenizer_options *o, struct err *err) {
    const char *type = o->type ? o->type : "GPT2BPETokenizer";
    for (size_t i = 0; i < ARRAY_COUNT(types); i++) {
        if (strcmp(type, types[i].type)) continue;
        t->type = types[i].type;
        hash_update(&t->hash, type, strlen(type) + 1);
        return types[i].open(t, o, err);
    }
    return err_set(err,
                   "--tokenizer-type %s is not supported; choose ByteTokenizer, GPT2BPETokenizer, "
                   "HuggingFaceTokenizer or NullTokenizer",
                   type);
}

struct tokenizer *tokenizer_open(const struct tokenizer_options *options, struct err *err) {
    struct tokenizer *t = mem_zalloc(sizeof(*t), "tokenizer");
    t->eod = t->pad = -1;
    hash_init(&t->hash);
    if (open_type(t, options, err)) {
        tokenizer_close(t);
        return NULL;
    }
    if (t->pad >= 0 && t->pad == t->eod && !options->ambiguous_pad) t->pad = -1;
    return t;
}

void tokenizer_close(struct tokenizer *t) {
    if (!t) return;
    bpe_close(t->bpe);
    presplit_close(t->split);
    added_free(&t->added_raw);
    added_free(&t->added_normalized);
    mem_free(t);
}

const char *tokenizer_type(const struct tokenizer *t) {
    return t->type;
}
int64_t tokenizer_vocab_size(const struct tokenizer *t) {
    return t->vocab_size;
}
int64_t tokenizer_eod(const struct tokenizer *t) {
    return t->eod;
}
int64_t tokenizer_pad(const struct tokenizer *t) {
    return t->pad;
}
uint64_t tokenizer_hash(const struct tokenizer *t) {
    return hash_final(&t->hash);
}

int tokenizer_read_file(struct tokenizer *t, const char *path, struct str *text, struct err *err) {
    enum { PIECE = 1 << 16, MOST = 256 << 20 };
    FILE *f = fopen(path, "rb");
    if (!f) return err_set(err, "%s: cannot open: %s", path, strerror(errno));
    char *piece = mem_alloc(PIECE, "file piece");
    size_t n;
    while ((n = fread(piece, 1, PIECE, f)) > 0 && text->length <= MOST) str_append(text, piece, n);
    int status = 0;
    if (ferror(f)) status = err_set(err, "%s: cannot read: %s", path, strerror(errno));
    if (text->length > MOST)
        status = err_set(err, "%s: larger than 256 MiB; this is no tokenizer file", path);
    fclose(f);
    mem_free(piece);
    if (!status && text->length) hash_update(&t->hash, text->data, text->length);
    return status;
}

static int64_t find_added(const struct added *a, const char *text, size_t length) {
    for (size_t i = 0; i < a->count; i++)
        if (a->tokens[i].length == length && !memcmp(a->tokens[i].text, text, length)) return a->tokens[i].id;
    return -1;
}

int64_t tokenizer_find(const struct tokenizer *t, const char *text, size_t length) {
    int64_t id = find_added(&t->added_raw, text, length);
    if (id < 0) id = find_added(&t->added_normalized, text, length);
    return id < 0 ? bpe_find(t->bpe, text, length) : id;
}

int tokenizer_decode(const struct tokenizer *t, const int32_t *ids, size_t count, struct str *text,
                     struct err *err) {
    for (size_t i = 0; i < count; i++) {
        size_t n = 0;
        if (ids[i] < 0 || ids[i] >= t->vocab_size)
            return err_set(err, "id %d at place %zu is outside the vocabulary of %lld ids", ids[i], i,
                           (long long)t->vocab_size);
        if (t->kind == TOKENIZER_NULL) {
            str_printf(text, "%s%d", i ? " " : "", ids[i]);
        } else if (t->kind == TOKENIZER_BYTE) {
            char byte = (char)ids[i];
            if (ids[i] < 256) str_append(text, &byte, 1);
        } else {
            const char *bytes = bpe_bytes(t->bpe, ids[i], &n);
            if (bytes) str_append(text, bytes, n);
        }
    }
    return 0;
}
