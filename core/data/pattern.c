#include "core/data/pattern.h"
#include <stdbool.h>
#include <string.h>

/* Unicode White_Space. PCRE2's own \s also takes U+180E. */
static const char spaces[] =
    "\\t-\\r\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}"
    "\\x{205F}\\x{3000}";

struct scan {
    const char *p, *end, *where;
    struct str *out;
    bool in_class, class_start;
};

static int refuse(const struct scan *s, const char *what, struct err *err) {
    return err_set(err, "%s: the split pattern holds '%.*s': %s; this tokenizer is not supported", s->where,
                   (int)(s->end - s->p < 8 ? s->end - s->p : 8), s->p, what);
}

static int translate_escape(struct scan *s, struct err *err) {
    char c = s->end - s->p > 1 ? s->p[1] : 0;
    if (c == 's' && s->in_class) {
        str_puts(s->out, spaces);
    } else if (c == 's' || (c == 'S' && !s->in_class)) {
        str_printf(s->out, "[%s%s]", c == 'S' ? "^" : "", spaces);
    } else if (c == 'p' || c == 'P') { /* \p{L} */
        const char *close =
            s->end - s->p > 2 && s->p[2] == '{' ? memchr(s->p, '}', (size_t)(s->end - s->p)) : NULL;
        if (!close) return refuse(s, "a property needs braces", err);
        str_append(s->out, s->p, (size_t)(close + 1 - s->p));
        s->p = close + 1;
        return 0;
    } else if (c == 'x') {
        if (s->end - s->p < 4 || s->p[2] == '{')
            return refuse(s, "only \\xHH is known to mean the same", err);
        str_append(s->out, s->p, 4);
        s->p += 4;
        return 0;
    } else if (c && strchr("rntfvd", c)) {
        str_append(s->out, s->p, 2);
    } else if (c && !strchr("0123456789", c) && (c < 'A' || c > 'z' || (c > 'Z' && c < 'a')) && c > 0) {
        str_append(s->out, s->p, 2); /* escaped punctuation */
    } else {
        return refuse(s, "this escape may differ between regex engines", err);
    }
    s->p += 2;
    return 0;
}

static int translate_in_class(struct scan *s, struct err *err) {
    char c = *s->p;
    if (c == '[') return refuse(s, "nested classes are not known here", err);
    if (c == '&' && s->end - s->p > 1 && s->p[1] == '&')
        return refuse(s, "class intersections are not known here", err);
    if (c == ']' && s->class_start) return refuse(s, "']' as the first of a class is ambiguous", err);
    if (c == ']') s->in_class = false;
    s->class_start = false;
    str_append(s->out, s->p++, 1);
    return 0;
}

static int translate_group(struct scan *s, struct err *err) {
    static const char *const known[] = {"(?:", "(?i:", "(?!", "(?=", "(?<!", "(?<=", "(?>"};
    size_t left = (size_t)(s->end - s->p);
    if (left < 2 || s->p[1] != '?') {
        if (left > 1 && s->p[1] == '*') return refuse(s, "this group is not known here", err);
        str_append(s->out, s->p++, 1);
        return 0;
    }
    for (size_t i = 0; i < ARRAY_COUNT(known); i++) {
        size_t n = strlen(known[i]);
        if (left < n || memcmp(s->p, known[i], n)) continue;
        str_append(s->out, s->p, n);
        s->p += n;
        return 0;
    }
    return refuse(s, "this group is not known here", err);
}

int pattern_translate(const char *pattern, size_t length, const char *where, struct str *out,
                      struct err *err) {
    struct scan s = {.p = pattern, .end = pattern + length, .where = where, .out = out};
    while (s.p < s.end) {
        char c = *s.p;
        int status = 0;
        if (!c) return err_set(err, "%s: the split pattern holds a NUL", where);
        if (c == '\\') {
            s.class_start = false;
            status = translate_escape(&s, err);
        } else if (s.in_class) {
            status = translate_in_class(&s, err);
        } else if (c == '(') {
            status = translate_group(&s, err);
        } else if (c == '[') {
            bool negated = s.end - s.p > 1 && s.p[1] == '^';
            str_puts(out, negated ? "[^" : "[");
            s.p += 1 + negated;
            s.in_class = s.class_start = true;
        } else if (c == '}' && s.end - s.p > 1 && s.p[1] == '+') {
            status = refuse(&s, "repeats a count in one engine and makes it possessive in the other", err);
        } else {
            str_append(out, s.p++, 1);
        }
        if (status) return status;
    }
    return s.in_class ? err_set(err, "%s: the split pattern has a '[' without its ']'", where) : 0;
}
