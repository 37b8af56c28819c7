#pragma once
/* JSON: a writer into a struct str, and a parser into one immutable tree.
 *
 * The parser takes UTF-8 text of any size, checks it fully (RFC 8259: no trailing commas, no comments,
 * escapes and surrogate pairs decoded, invalid UTF-8 refused, at most 64 levels deep) and says line and
 * column of the first fault. The tree is owned by struct json and freed as a whole; node pointers live as
 * long as it does. Member and element order is kept. Object look-up is a hash look-up on large objects (a
 * tokenizer's vocabulary has 128,000 members). */
#include "core/base/check.h"
#include "core/base/str.h"
#include <stdbool.h>
#include <stdint.h>

enum json_kind { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

struct json_node {
    enum json_kind kind;
    bool boolean;
    bool is_integer; /* the number is a whole number that fits int64_t, then `integer` holds it */
    int64_t integer;
    double number;
    const char *string;            /* JSON_STRING: decoded bytes, NUL-terminated, may hold NUL inside */
    size_t count;                  /* string length in bytes, or number of elements or members */
    const struct json_node *items; /* elements, or member values */
    const char *const *keys;       /* member names, for objects */
    const void *index;             /* private: hash index of a large object */
};

struct json;
/* `name` is used in messages ("vocab.json: line 3, column 7: expected ':'"). NULL on error, with err set. */
struct json *json_parse(const char *text, size_t length, const char *name, struct err *err);
struct json *json_parse_file(const char *path, struct err *err);
void json_free(struct json *json); /* NULL is fine */
const struct json_node *json_root(const struct json *json);
/* The member's value, or NULL when node is NULL, no object, or has no such member (the last one wins if
 * repeated). */
const struct json_node *json_get(const struct json_node *node, const char *key);
/* Bytes of a member's name, which may hold NUL inside. */
size_t json_key_length(const struct json_node *object, size_t member);

/* Writer: appends text; the caller places commas through these helpers, which do it by looking at the last
 * byte. */
void json_begin_object(struct str *out);
void json_end_object(struct str *out);
void json_begin_array(struct str *out);
void json_end_array(struct str *out);
void json_key(struct str *out, const char *key);
void json_string(struct str *out, const char *value); /* NULL writes null */
void json_string_bytes(struct str *out, const char *value, size_t length);
void json_integer(struct str *out, int64_t value);
void json_unsigned(struct str *out, uint64_t value);
void json_float(struct str *out, double value);  /* 9 significant digits; null when not finite */
void json_double(struct str *out, double value); /* 17 significant digits; null when not finite */
void json_bool(struct str *out, bool value);
void json_null(struct str *out);
