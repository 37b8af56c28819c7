#include "core/data/added.h"
#include "core/base/mem.h"
#include "core/data/utf8.h"
#include <stdlib.h>
#include <string.h>

void added_add(struct added *a, const char *text, size_t length, int32_t id, bool lstrip, bool rstrip) {
    if (a->count == a->capacity) {
        a->capacity = a->capacity ? 2 * a->capacity : 16;
        a->tokens = mem_realloc(a->tokens, mem_array_bytes(a->capacity, sizeof(*a->tokens)), "added tokens");
    }
    char *copy = mem_zalloc(length + 1, "added token");
    memcpy(copy, text, length);
    a->tokens[a->count++] = (struct added_token){copy, length, id, lstrip, rstrip};
    a->first[(unsigned char)copy[0]] = true;
}

static int compare(const void *x, const void *y) {
    const struct added_token *a = x, *b = y;
    size_t n = a->length < b->length ? a->length : b->length;
    int order = memcmp(a->text, b->text, n);
    return order ? order : (a->length > b->length) - (a->length < b->length);
}

void added_sort(struct added *a) {
    if (a->count) qsort(a->tokens, a->count, sizeof(*a->tokens), compare);
}

void added_free(struct added *a) {
    for (size_t i = 0; i < a->count; i++) mem_free(a->tokens[i].text);
    mem_free(a->tokens);
    *a = (struct added){0};
}

/* Longest token that starts at p: narrows the sorted list byte by byte. */
static const struct added_token *longest_at(const struct added *a, const char *p, size_t left) {
    const struct added_token *best = NULL;
    size_t low = 0, high = a->count;
    for (size_t depth = 0; low < high; depth++) {
        if (a->tokens[low].length == depth)
            best = &a->tokens[low++]; /* the shortest of the range comes first */
        if (depth == left) break;
        unsigned char c = (unsigned char)p[depth];
        size_t from = low, to = high;
        while (from < to) { /* first token whose byte is not below c */
            size_t middle = (from + to) / 2;
            if ((unsigned char)a->tokens[middle].text[depth] < c)
                from = middle + 1;
            else
                to = middle;
        }
        low = from;
        to = high;
        while (from < to) { /* first token whose byte is above c */
            size_t middle = (from + to) / 2;
            if ((unsigned char)a->tokens[middle].text[depth] <= c)
                from = middle + 1;
            else
                to = middle;
        }
        high = from;
    }
    return best;
}

struct added_match added_find(const struct added *a, const char *text, size_t length, size_t from) {
    for (size_t i = from; a->count && i < length; i++) {
        if (!a->first[(unsigned char)text[i]]) continue;
        const struct added_token *t = longest_at(a, text + i, length - i);
        if (!t) continue;
        struct added_match m = {i, i + t->length, t};
        while (t->lstrip && m.begin > from) {
            const char *p = text + m.begin - 1;
            while (p > text + from && ((unsigned char)*p & 0xC0) == 0x80) p--;
            const char *q = p;
            if (!utf8_is_space(utf8_next(&q))) break;
            m.begin = (size_t)(p - text);
        }
        while (t->rstrip && m.end < length) {
            const char *q = text + m.end;
            if (!utf8_is_space(utf8_next(&q))) break;
            m.end = (size_t)(q - text);
        }
        return m;
    }
    return (struct added_match){length, length, NULL};
}
