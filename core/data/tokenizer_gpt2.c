/* GPT2BPETokenizer: vocab.json ({"token": id}) and merges.txt (a version line, then two parts per line). */
#include "core/base/json.h"
#include "core/data/tokenizer_parts.h"
#include <stdio.h>
#include <string.h>

static int read_vocab(struct tokenizer *t, const char *path, struct err *err) {
    struct str text = {0};
    if (tokenizer_read_file(t, path, &text, err)) {
        str_free(&text);
        return -1;
    }
    struct json *json = json_parse(text.data ? text.data : "", text.length, path, err);
    str_free(&text);
    if (!json) return -1;
    const struct json_node *root = json_root(json);
    int status = 0;
    if (root->kind != JSON_OBJECT) status = err_set(err, "%s: expected an object of tokens and ids", path);
    for (size_t i = 0; !status && i < root->count; i++) {
        const struct json_node *id = &root->items[i];
        if (!id->is_integer || id->kind != JSON_NUMBER)
            status = err_set(err, "%s: the id of '%s' is no integer", path, root->keys[i]);
        else
            status = bpe_add_token(t->bpe, id->integer, root->keys[i], strlen(root->keys[i]), path, err);
    }
    json_free(json);
    return status;
}

static int read_merge_line(struct tokenizer *t, const char *line, size_t n, uint32_t rank, const char *where,
                           struct err *err) {
    const char *space = memchr(line, ' ', n);
    if (!space || space == line || space == line + n - 1 ||
        memchr(space + 1, ' ', (size_t)(line + n - space - 1)))
        return err_set(err, "%s: expected two parts with a space between", where);
    return bpe_add_merge(t->bpe, line, (size_t)(space - line), space + 1, (size_t)(line + n - space - 1),
                         rank, where, err);
}

static int read_merges(struct tokenizer *t, const char *path, struct err *err) {
    struct str text = {0};
    int status = tokenizer_read_file(t, path, &text, err);
    uint32_t rank = 0;
    size_t line = 1;
    for (size_t at = 0; !status && at < text.length; line++) {
        char where[4200];
        const char *p = text.data + at, *newline = memchr(p, '\n', text.length - at);
        size_t n = newline ? (size_t)(newline - p) : text.length - at;
        at += n + 1;
        if (n && p[n - 1] == '\r') n--;
        if (!n || (line == 1 && n >= 8 && !memcmp(p, "#version", 8))) continue;
        snprintf(where, sizeof(where), "%s: line %zu", path, line);
        status = read_merge_line(t, p, n, rank++, where, err);
    }
    str_free(&text);
    return status;
}

int tokenizer_read_gpt2(struct tokenizer *t, const struct tokenizer_options *o, struct err *err) {
    static const char eod[] = "<|endoftext|>";
    if (!o->vocab_file || !o->merge_file)
        return err_set(err,
                       "--tokenizer-type GPT2BPETokenizer needs --vocab-file vocab.json and --merge-file "
                       "merges.txt");
    t->kind = TOKENIZER_BPE;
    t->bpe = bpe_open(false);
    t->split = presplit_open();
    if (presplit_add(t->split, presplit_gpt2_pattern, strlen(presplit_gpt2_pattern),
                     &(struct presplit_rule){0}, "--tokenizer-type GPT2BPETokenizer", err))
        return -1;
    if (read_vocab(t, o->vocab_file, err) || read_merges(t, o->merge_file, err)) return -1;
    t->vocab_size = bpe_vocab_size(t->bpe);
    t->eod = bpe_find(t->bpe, eod, strlen(eod));
    if (t->eod < 0)
        return err_set(err, "%s: has no '%s', which ends a document in GPT-2's vocabulary", o->vocab_file,
                       eod);
    added_add(&t->added_raw, eod, strlen(eod), (int32_t)t->eod, false, false);
    added_sort(&t->added_raw);
    return 0;
}
