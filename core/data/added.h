#pragma once
/* Added tokens of a tokenizer ("<|endoftext|>" and its kind): found in the text before anything else, the
 * leftmost first and of those the longest. Build with added_add, finish with added_sort, then read-only. */
#include "core/base/check.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct added_token {
    char *text;
    size_t length;
    int32_t id;
    bool lstrip, rstrip; /* the token swallows white space on that side */
};

struct added {
    struct added_token *tokens; /* [count], sorted by text */
    size_t count, capacity;
    bool first[256]; /* bytes that a token starts with */
};

void added_add(struct added *added, const char *text, size_t length, int32_t id, bool lstrip, bool rstrip);
void added_sort(struct added *added);
void added_free(struct added *added);

struct added_match {
    size_t begin, end;
    const struct added_token *token; /* NULL: none left */
};
/* First match at or after `from`; white space before `from` is not swallowed. */
struct added_match added_find(const struct added *added, const char *text, size_t length, size_t from);
