#include "core/data/presplit.h"
#include "core/base/mem.h"
#include "core/base/str.h"
#include "core/data/pattern.h"
#include "core/data/utf8.h"
#include <string.h>

const char presplit_gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

#ifdef WITH_PCRE2
#include <pcre2.h>

struct stage {
    pcre2_code *code;
    bool removed, invert;
};

struct presplit {
    pcre2_general_context *memory;
    int count;
    struct stage stages[PRESPLIT_MOST_STAGES];
};

struct presplit_worker {
    const struct presplit *split;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    pcre2_match_data *match[PRESPLIT_MOST_STAGES];
    presplit_fn on_piece;
    void *piece_context;
};

static void *take(size_t bytes, void *unused) {
    (void)unused;
    return mem_alloc(bytes ? bytes : 1, "regular expressions");
}
static void give(void *p, void *unused) {
    (void)unused;
    mem_free(p);
}

struct presplit *presplit_open(void) {
    struct presplit *s = mem_zalloc(sizeof(*s), "word splitter");
    s->memory = pcre2_general_context_create(take, give, NULL);
    CHECK(s->memory, "PCRE2 gives no context");
    return s;
}

void presplit_close(struct presplit *s) {
    if (!s) return;
    for (int i = 0; i < s->count; i++) pcre2_code_free(s->stages[i].code);
    pcre2_general_context_free(s->memory);
    mem_free(s);
}

static pcre2_code *compile(struct presplit *s, const char *pattern, size_t length, bool literal,
                           const char *where, struct err *err) {
    /* in Oniguruma's Ruby syntax ^ and $ are line anchors, and a line ends at \n */
    uint32_t options = literal ? PCRE2_UTF | PCRE2_LITERAL : PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE;
    pcre2_compile_context *context = pcre2_compile_context_create(s->memory);
    PCRE2_SIZE at;
    int code;
    CHECK(context, "PCRE2 gives no compile context");
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    pcre2_set_max_pattern_length(context, 100000);
    pcre2_code *compiled = pcre2_compile((PCRE2_SPTR)pattern, length, options, &code, &at, context);
    pcre2_compile_context_free(context);
    if (!compiled) {
        PCRE2_UCHAR text[128];
        pcre2_get_error_message(code, text, sizeof(text));
        err_set(err, "%s: split pattern, character %zu: %s", where, (size_t)at, (const char *)text);
        return NULL;
    }
    pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE); /* without JIT the interpreter does it */
    return compiled;
}

int presplit_add(struct presplit *s, const char *pattern, size_t length, const struct presplit_rule *rule,
                 const char *where, struct err *err) {
    struct str translated = {0};
    pcre2_code *code = NULL;
    if (s->count == PRESPLIT_MOST_STAGES)
        return err_set(err, "%s: more than %d pre-tokenizers", where, PRESPLIT_MOST_STAGES);
    if (!length) return err_set(err, "%s: an empty split pattern", where);
    if (rule->literal)
        code = compile(s, pattern, length, true, where, err);
    else if (!pattern_translate(pattern, length, where, &translated, err))
        code = compile(s, translated.data, translated.length, false, where, err);
    str_free(&translated);
    if (!code) return -1;
    s->stages[s->count++] = (struct stage){code, rule->removed, rule->invert};
    return 0;
}

struct presplit_worker *presplit_worker_open(const struct presplit *s) {
    struct presplit_worker *w = mem_zalloc(sizeof(*w), "word splitter worker");
    w->split = s;
    w->context = pcre2_match_context_create(s->memory);
    w->stack = pcre2_jit_stack_create(32 << 10, 8 << 20, s->memory);
    CHECK(w->context && w->stack, "PCRE2 gives no match context");
    pcre2_jit_stack_assign(w->context, NULL, w->stack);
    for (int i = 0; i < s->count; i++) {
        w->match[i] = pcre2_match_data_create_from_pattern(s->stages[i].code, s->memory);
        CHECK(w->match[i], "PCRE2 gives no match data");
    }
    return w;
}

void presplit_worker_close(struct presplit_worker *w) {
    if (!w) return;
    for (int i = 0; i < w->split->count; i++) pcre2_match_data_free(w->match[i]);
    pcre2_match_context_free(w->context);
    pcre2_jit_stack_free(w->stack);
    mem_free(w);
}

static int match_failed(int code, struct err *err) {
    PCRE2_UCHAR text[128];
    pcre2_get_error_message(code, text, sizeof(text));
    return err_set(err, "splitting the text into words: %s; the text or the pattern is unusual",
                   (const char *)text);
}

/* Depth is at most the number of stages. */
static int run_stage(struct presplit_worker *w, int stage, const char *text, size_t length, struct err *err) {
    if (!length) return 0;
    if (stage == w->split->count) return w->on_piece(w->piece_context, text, length, err);
    const struct stage *s = &w->split->stages[stage];
    bool keep_match = !s->removed || s->invert, keep_gap = !s->removed || !s->invert;
    size_t done = 0, from = 0;
    while (from <= length) {
        int n = pcre2_match(s->code, (PCRE2_SPTR)text, length, from, PCRE2_NO_UTF_CHECK, w->match[stage],
                            w->context);
        if (n == PCRE2_ERROR_NOMATCH) break;
        if (n < 0) return match_failed(n, err);
        const PCRE2_SIZE *v = pcre2_get_ovector_pointer(w->match[stage]);
        size_t begin = v[0], end = v[1];
        if (keep_gap && run_stage(w, stage + 1, text + done, begin - done, err)) return -1;
        if (keep_match && run_stage(w, stage + 1, text + begin, end - begin, err)) return -1;
        done = from = end;
        if (begin == end) { /* an empty match cuts here; look on behind the next character */
            const char *p = text + end;
            if (end == length) break;
            utf8_next(&p);
            from = (size_t)(p - text);
        }
    }
    return keep_gap ? run_stage(w, stage + 1, text + done, length - done, err) : 0;
}

int presplit_run(struct presplit_worker *w, const char *text, size_t length, presplit_fn on_piece,
                 void *context, struct err *err) {
    w->on_piece = on_piece;
    w->piece_context = context;
    return run_stage(w, 0, text, length, err);
}

#else /* without PCRE2 nothing can be added, so nothing is ever run */

struct presplit *presplit_open(void) {
    return NULL;
}
void presplit_close(struct presplit *s) {
    (void)s;
}
int presplit_add(struct presplit *s, const char *pattern, size_t length, const struct presplit_rule *rule,
                 const char *where, struct err *err) {
    (void)s, (void)pattern, (void)length, (void)rule;
    return err_set(
        err,
        "%s: this build has no PCRE2, which byte pair tokenizers need; install libpcre2-dev and build "
        "again, or use --tokenizer-type ByteTokenizer",
        where);
}
struct presplit_worker *presplit_worker_open(const struct presplit *s) {
    (void)s;
    return NULL;
}
void presplit_worker_close(struct presplit_worker *w) {
    (void)w;
}
int presplit_run(struct presplit_worker *w, const char *text, size_t length, presplit_fn on_piece,
                 void *context, struct err *err) {
    (void)w;
    return length ? on_piece(context, text, length, err) : 0;
}
#endif
