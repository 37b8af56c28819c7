/* HuggingFaceTokenizer: a tokenizer.json of a byte-level BPE model, and the files beside it that name the
 * special tokens. What is not known to give the same ids is refused by name. */
#include "core/base/json.h"
#include "core/base/mem.h"
#include "core/data/tokenizer_parts.h"
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

struct reader {
    struct tokenizer *t;
    const char *name; /* of the file, for messages */
    bool byte_level;
    int stages; /* split stages so far */
    struct err *err;
};

static bool is_set(const struct json_node *n) {
    return n && n->kind != JSON_NULL;
}
static bool is_true(const struct json_node *n) {
    return n && n->kind == JSON_BOOL && n->boolean;
}
static const char *type_of(const struct json_node *n) {
    const struct json_node *type = json_get(n, "type");
    return type && type->kind == JSON_STRING ? type->string : "(none)";
}
static bool is_text(const struct json_node *n) {
    return n && n->kind == JSON_STRING;
}

/* ---- model ---- */

static int read_vocab(struct reader *r, const struct json_node *vocab) {
    if (!vocab || vocab->kind != JSON_OBJECT) return err_set(r->err, "%s: model.vocab is no object", r->name);
    for (size_t i = 0; i < vocab->count; i++) {
        const struct json_node *id = &vocab->items[i];
        if (id->kind != JSON_NUMBER || !id->is_integer)
            return err_set(r->err, "%s: model.vocab: the id of '%s' is no integer", r->name, vocab->keys[i]);
        if (bpe_add_token(r->t->bpe, id->integer, vocab->keys[i], strlen(vocab->keys[i]), r->name, r->err))
            return -1;
    }
    return 0;
}

/* ["a b", ...] or [["a", "b"], ...] */
static int read_merge(struct reader *r, const struct json_node *m, uint32_t rank) {
    char where[4200];
    snprintf(where, sizeof(where), "%s: model.merges[%u]", r->name, rank);
    if (m->kind == JSON_ARRAY && m->count == 2 && is_text(&m->items[0]) && is_text(&m->items[1]))
        return bpe_add_merge(r->t->bpe, m->items[0].string, m->items[0].count, m->items[1].string,
                             m->items[1].count, rank, where, r->err);
    const char *space = is_text(m) ? memchr(m->string, ' ', m->count) : NULL;
    if (!space) return err_set(r->err, "%s: expected two parts", where);
    size_t left = (size_t)(space - m->string);
    return bpe_add_merge(r->t->bpe, m->string, left, space + 1, m->count - left - 1, rank, where, r->err);
}

static int refuse_model(struct reader *r, const struct json_node *model) {
    static const char *const texts[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    const char *type = type_of(model);
    if (!model || (strcmp(type, "BPE") && json_get(model, "type")) || !json_get(model, "merges"))
        return err_set(r->err, "%s: model.type is %s; only byte-level BPE is supported", r->name, type);
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++) {
        const struct json_node *n = json_get(model, texts[i]);
        if (is_set(n) && !(is_text(n) && !n->count))
            return err_set(r->err, "%s: model.%s is set, which is not supported", r->name, texts[i]);
    }
    const struct json_node *dropout = json_get(model, "dropout");
    if (is_set(dropout) && dropout->number != 0)
        return err_set(r->err, "%s: model.dropout is set; random merges are not supported", r->name);
    if (is_true(json_get(model, "byte_fallback")))
        return err_set(r->err,
                       "%s: model.byte_fallback is set (a SentencePiece model); only byte-level BPE is "
                       "supported",
                       r->name);
    return 0;
}

static int read_model(struct reader *r, const struct json_node *model) {
    if (refuse_model(r, model)) return -1;
    const struct json_node *merges = json_get(model, "merges");
    r->t->bpe = bpe_open(is_true(json_get(model, "ignore_merges")));
    if (read_vocab(r, json_get(model, "vocab"))) return -1;
    if (merges->kind != JSON_ARRAY) return err_set(r->err, "%s: model.merges is no array", r->name);
    for (size_t i = 0; i < merges->count; i++)
        if (read_merge(r, &merges->items[i], (uint32_t)i)) return -1;
    return 0;
}

/* ---- added tokens ---- */

static int read_added(struct reader *r, const struct json_node *list) {
    if (!is_set(list)) return 0;
    if (list->kind != JSON_ARRAY) return err_set(r->err, "%s: added_tokens is no array", r->name);
    for (size_t i = 0; i < list->count; i++) {
        const struct json_node *n = &list->items[i], *text = json_get(n, "content"), *id = json_get(n, "id");
        if (!is_text(text) || !text->count || !id || id->kind != JSON_NUMBER || !id->is_integer)
            return err_set(r->err, "%s: added_tokens[%zu] needs a content and an id", r->name, i);
        if (is_true(json_get(n, "single_word")))
            return err_set(r->err, "%s: added token '%s' has single_word, which is not supported", r->name,
                           text->string);
        if (bpe_add_plain(r->t->bpe, id->integer, text->string, text->count, r->name, r->err)) return -1;
        added_add(is_true(json_get(n, "normalized")) ? &r->t->added_normalized : &r->t->added_raw,
                  text->string, text->count, (int32_t)id->integer, is_true(json_get(n, "lstrip")),
                  is_true(json_get(n, "rstrip")));
    }
    added_sort(&r->t->added_raw);
    added_sort(&r->t->added_normalized);
    return 0;
}

/* ---- normalizer, pre_tokenizer, post_processor: each one node or a Sequence of nodes ---- */

typedef int (*part_fn)(struct reader *r, const struct json_node *part);

static int each_part(struct reader *r, const struct json_node *node, const char *list, part_fn fn,
                     int depth) {
    if (!is_set(node)) return 0;
    if (strcmp(type_of(node), "Sequence")) return fn(r, node);
    const struct json_node *parts = json_get(node, list);
    if (depth > 4 || !parts || parts->kind != JSON_ARRAY)
        return err_set(r->err, "%s: a Sequence needs its %s", r->name, list);
    for (size_t i = 0; i < parts->count; i++)
        if (each_part(r, &parts->items[i], list, fn, depth + 1)) return -1;
    return 0;
}

static int read_normalizer(struct reader *r, const struct json_node *part) {
    if (strcmp(type_of(part), "NFC"))
        return err_set(r->err, "%s: normalizer %s is not supported; only NFC is", r->name, type_of(part));
    r->t->nfc = true;
    return 0;
}

static int add_stage(struct reader *r, const char *pattern, size_t length, struct presplit_rule rule) {
    r->stages++;
    return presplit_add(r->t->split, pattern, length, &rule, r->name, r->err);
}

static int read_split(struct reader *r, const struct json_node *part) {
    const struct json_node *pattern = json_get(part, "pattern"), *behavior = json_get(part, "behavior");
    const struct json_node *regex = json_get(pattern, "Regex"), *literal = json_get(pattern, "String");
    const struct json_node *text = regex ? regex : literal;
    bool removed = is_text(behavior) && !strcmp(behavior->string, "Removed");
    if (!is_text(text))
        return err_set(r->err, "%s: a Split pre-tokenizer needs a Regex or a String", r->name);
    if (!removed && (!is_text(behavior) || strcmp(behavior->string, "Isolated")))
        return err_set(r->err, "%s: Split behavior %s is not supported; Isolated and Removed are", r->name,
                       is_text(behavior) ? behavior->string : "(none)");
    struct presplit_rule rule = {
        .literal = !regex, .removed = removed, .invert = is_true(json_get(part, "invert"))};
    return add_stage(r, text->string, text->count, rule);
}

static int read_byte_level(struct reader *r, const struct json_node *part) {
    const struct json_node *regex = json_get(part, "use_regex");
    bool space = is_true(json_get(part, "add_prefix_space"));
    if (space && r->stages) /* then every piece would get a space, not the text alone */
        return err_set(r->err,
                       "%s: ByteLevel with add_prefix_space after another pre-tokenizer is not supported",
                       r->name);
    r->t->prefix_space = space;
    r->byte_level = true;
    if (regex && !is_true(regex)) return 0;
    return add_stage(r, presplit_gpt2_pattern, strlen(presplit_gpt2_pattern), (struct presplit_rule){0});
}

static int read_pre_tokenizer(struct reader *r, const struct json_node *part) {
    const char *type = type_of(part);
    if (r->byte_level)
        return err_set(r->err, "%s: pre-tokenizer %s after ByteLevel is not supported", r->name, type);
    if (!strcmp(type, "ByteLevel")) return read_byte_level(r, part);
    if (!strcmp(type, "Split")) return read_split(r, part);
    if (!strcmp(type, "Digits")) {
        const char *pattern = is_true(json_get(part, "individual_digits")) ? "\\p{N}" : "\\p{N}+";
        return add_stage(r, pattern, strlen(pattern), (struct presplit_rule){0});
    }
    return err_set(r->err, "%s: pre-tokenizer %s is not supported; ByteLevel, Split and Digits are", r->name,
                   type);
}

static int push_fixed(struct reader *r, bool after, const struct json_node *ids) {
    struct tokenizer *t = r->t;
    if (!ids || ids->kind != JSON_ARRAY)
        return err_set(r->err, "%s: post_processor: a special token has no ids", r->name);
    for (size_t i = 0; i < ids->count; i++) {
        int *count = after ? &t->num_after : &t->num_before;
        int64_t id =
            ids->items[i].kind == JSON_NUMBER && ids->items[i].is_integer ? ids->items[i].integer : -1;
        if (*count == TOKENIZER_MOST_FIXED || id < 0 || id >= bpe_vocab_size(t->bpe))
            return err_set(
                r->err, "%s: post_processor: special tokens are too many or outside the vocabulary", r->name);
        (after ? t->after : t->before)[(*count)++] = (int32_t)id;
    }
    return 0;
}

/* TemplateProcessing: "single" lists special tokens around the text A. */
static int read_template(struct reader *r, const struct json_node *part) {
    const struct json_node *single = json_get(part, "single"), *tokens = json_get(part, "special_tokens");
    int texts = 0;
    if (!single || single->kind != JSON_ARRAY)
        return err_set(r->err, "%s: post_processor: 'single' is no list", r->name);
    for (size_t i = 0; i < single->count; i++) {
        const struct json_node *special = json_get(&single->items[i], "SpecialToken"),
                               *id = json_get(special, "id");
        texts += json_get(&single->items[i], "Sequence") != NULL;
        if (!special) continue;
        const struct json_node *token = is_text(id) ? json_get(tokens, id->string) : NULL;
        if (push_fixed(r, texts > 0, json_get(token, "ids"))) return -1;
    }
    return texts == 1 ? 0 : err_set(r->err, "%s: post_processor: 'single' must hold the text once", r->name);
}

/* RobertaProcessing and BertProcessing: "cls": [text, id], "sep": [text, id] */
static int read_pair(struct reader *r, const struct json_node *part, const char *key, bool after) {
    const struct json_node *pair = json_get(part, key);
    if (!pair || pair->kind != JSON_ARRAY || pair->count != 2)
        return err_set(r->err, "%s: post_processor: '%s' is no pair", r->name, key);
    struct json_node ids = {.kind = JSON_ARRAY, .count = 1, .items = &pair->items[1]};
    return push_fixed(r, after, &ids);
}

static int read_post_processor(struct reader *r, const struct json_node *part) {
    const char *type = type_of(part);
    if (!strcmp(type, "ByteLevel")) return 0; /* offsets only */
    if (!strcmp(type, "TemplateProcessing")) return read_template(r, part);
    if (!strcmp(type, "RobertaProcessing") || !strcmp(type, "BertProcessing"))
        return read_pair(r, part, "cls", false) || read_pair(r, part, "sep", true) ? -1 : 0;
    return err_set(r->err, "%s: post-processor %s is not supported", r->name, type);
}

static int read_parts(struct reader *r, const struct json_node *root, bool special_tokens) {
    if (root->kind != JSON_OBJECT) return err_set(r->err, "%s: expected an object", r->name);
    if (read_model(r, json_get(root, "model"))) return -1;
    if (read_added(r, json_get(root, "added_tokens"))) return -1;
    if (each_part(r, json_get(root, "normalizer"), "normalizers", read_normalizer, 0)) return -1;
    if (each_part(r, json_get(root, "pre_tokenizer"), "pretokenizers", read_pre_tokenizer, 0)) return -1;
    if (!r->byte_level)
        return err_set(r->err, "%s: the pre_tokenizer has no ByteLevel; only byte-level BPE is supported",
                       r->name);
    if (special_tokens &&
        each_part(r, json_get(root, "post_processor"), "processors", read_post_processor, 0))
        return -1;
    r->t->vocab_size = bpe_vocab_size(r->t->bpe);
    return 0;
}

int tokenizer_read_json_text(struct tokenizer *t, const char *text, size_t length, const char *name,
                             bool special_tokens, struct err *err) {
    struct reader r = {.t = t, .name = name, .err = err};
    struct json *json = json_parse(text, length, name, err);
    if (!json) return -1;
    t->kind = TOKENIZER_BPE;
    t->split = presplit_open();
    int status = read_parts(&r, json_root(json), special_tokens);
    json_free(json);
    return status;
}

/* ---- the files beside it ---- */

/* A token is "text" or {"content": "text"}. */
static const struct json_node *token_text(const struct json_node *root, const char *key) {
    const struct json_node *n = json_get(root, key);
    if (n && n->kind == JSON_OBJECT) n = json_get(n, "content");
    return is_text(n) ? n : NULL;
}

static int use_token(struct tokenizer *t, const struct json_node *root, const char *key, const char *path,
                     int64_t *id_p, struct err *err) {
    const struct json_node *text = token_text(root, key);
    if (!text || *id_p >= 0) return 0;
    *id_p = tokenizer_find(t, text->string, text->count);
    if (*id_p < 0)
        return err_set(err, "%s: %s '%s' is not in tokenizer.json beside it", path, key, text->string);
    return 0;
}

/* tokenizer_config.json or special_tokens_map.json; neither need exist. */
static int read_special(struct tokenizer *t, const char *folder, const char *file, struct err *err) {
    struct str path = {0}, text = {0};
    struct stat status;
    int failed = 0;
    str_printf(&path, "%s/%s", folder, file);
    if (!stat(path.data, &status)) {
        failed = tokenizer_read_file(t, path.data, &text, err);
        struct json *json =
            failed ? NULL : json_parse(text.data ? text.data : "", text.length, path.data, err);
        if (!json) failed = -1;
        if (json) {
            const struct json_node *root = json_root(json);
            failed = use_token(t, root, "eos_token", path.data, &t->eod, err) ||
                     use_token(t, root, "sep_token", path.data, &t->eod, err) ||
                     use_token(t, root, "pad_token", path.data, &t->pad, err);
        }
        json_free(json);
    }
    str_free(&text);
    str_free(&path);
    return failed ? -1 : 0;
}

/* Without a file that says it, the end of document is the first of these that exists. */
static void guess_eod(struct tokenizer *t) {
    static const char *const names[] = {"<|endoftext|>", "<|end_of_text|>", "</s>", "<|im_end|>"};
    for (size_t i = 0; t->eod < 0 && i < ARRAY_COUNT(names); i++)
        t->eod = tokenizer_find(t, names[i], strlen(names[i]));
}

int tokenizer_read_json(struct tokenizer *t, const struct tokenizer_options *o, struct err *err) {
    struct str folder = {0}, file = {0}, text = {0};
    struct stat status;
    if (!o->model)
        return err_set(err, "--tokenizer-type HuggingFaceTokenizer needs --tokenizer-model: a folder with a "
                            "tokenizer.json, or that file");
    str_puts(&folder, o->model);
    str_puts(&file, o->model);
    if (!stat(o->model, &status) && S_ISDIR(status.st_mode)) {
        str_puts(&file, "/tokenizer.json");
    } else {
        char *slash = strrchr(folder.data, '/');
        str_clear(&folder);
        if (slash)
            str_append(&folder, o->model, (size_t)(strrchr(o->model, '/') - o->model));
        else
            str_puts(&folder, ".");
    }
    int failed = tokenizer_read_file(t, file.data, &text, err) ||
                 tokenizer_read_json_text(t, text.data ? text.data : "", text.length, file.data,
                                          !o->no_special_tokens, err) ||
                 read_special(t, folder.data, "tokenizer_config.json", err) ||
                 read_special(t, folder.data, "special_tokens_map.json", err);
    if (!failed) guess_eod(t);
    str_free(&text);
    str_free(&file);
    str_free(&folder);
    return failed ? -1 : 0;
}
