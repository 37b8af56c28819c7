#include "core/base/json.h"
#include "core/base/mem.h"
#include "core/base/utf8.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_DEPTH = 64, INDEX_FROM = 12, CHUNK_BYTES = 64 << 10 };

/* Everything the tree holds lies in a chain of chunks, freed together. Strings stand behind their length
 * (size_t, unaligned), so that a member name with a NUL inside is compared whole. */
struct chunk {
    struct chunk *next;
    size_t used, capacity;
    char bytes[];
};

struct json {
    struct json_node root;
    struct chunk *chunks; /* the one being filled first */
};

/* Open addressing; a slot holds 1 + member number, 0 is empty. */
struct index {
    size_t mask;
    uint32_t slots[];
};

struct parser {
    const char *text, *p, *end, *name;
    struct err *err;
    struct json *json;
    int depth;
    /* values and names of the arrays and objects still open; copied into the tree when one closes */
    struct json_node *nodes;
    size_t num_nodes, cap_nodes;
    const char **keys;
    size_t num_keys, cap_keys;
};

/* Room for `bytes` at the end of the first chunk; chunk->used is moved by the caller. */
static char *reserve(struct json *json, size_t bytes, size_t align) {
    struct chunk *c = json->chunks;
    if (c) c->used = (c->used + align - 1) / align * align;
    if (!c || c->used > c->capacity || c->capacity - c->used < bytes) {
        size_t capacity = c ? c->capacity * 2 : CHUNK_BYTES;
        if (capacity > (size_t)16 << 20) capacity = (size_t)16 << 20;
        if (capacity < bytes) capacity = bytes;
        struct chunk *fresh = mem_alloc(sizeof(*fresh) + capacity, "json tree");
        *fresh = (struct chunk){.next = c, .used = 0, .capacity = capacity};
        _Static_assert(sizeof(struct chunk) % 8 == 0, "chunk bytes must be aligned for nodes");
        json->chunks = c = fresh;
    }
    return c->bytes + c->used;
}

static void *take(struct json *json, size_t bytes) {
    void *p = reserve(json, bytes, 8);
    json->chunks->used += bytes;
    return p;
}

static size_t stored_length(const char *s) {
    size_t n;
    memcpy(&n, s - sizeof(n), sizeof(n));
    return n;
}

static uint64_t hash_key(const char *s, size_t length) {
    uint64_t h = 0x9E3779B97F4A7C15u ^ length;
    for (; length >= 8; s += 8, length -= 8) {
        uint64_t w;
        memcpy(&w, s, 8);
        h = (h ^ w) * 0xFF51AFD7ED558CCDu, h ^= h >> 32;
    }
    uint64_t w = 0;
    memcpy(&w, s, length);
    h = (h ^ w) * 0xFF51AFD7ED558CCDu;
    return h ^ h >> 32;
}

/* ---- errors ---- */

static int fail_at(struct parser *ps, const char *at, const char *what) {
    size_t line = 1, column = 1;
    for (const char *p = ps->text; p < at; p++) {
        if (*p == '\n')
            line++, column = 1;
        else if ((*p & 0xC0) != 0x80)
            column++;
    }
    return err_set(ps->err, "%s: line %zu, column %zu: %s", ps->name, line, column, what);
}

static int fail_expected(struct parser *ps, const char *what) {
    char text[96], found[24];
    unsigned char c = ps->p < ps->end ? (unsigned char)*ps->p : 0;
    if (ps->p >= ps->end)
        snprintf(found, sizeof(found), "the end of the text");
    else if (c > 0x20 && c < 0x7F)
        snprintf(found, sizeof(found), "'%c'", c);
    else
        snprintf(found, sizeof(found), "byte 0x%02x", c);
    snprintf(text, sizeof(text), "expected %s, found %s", what, found);
    return fail_at(ps, ps->p, text);
}

/* ---- strings ---- */

static int parse_hex4(struct parser *ps, uint32_t *value_p) {
    uint32_t v = 0;
    for (int i = 0; i < 4; i++, ps->p++) {
        int c = ps->p < ps->end ? (unsigned char)*ps->p : 0;
        if (c >= '0' && c <= '9')
            v = v << 4 | (uint32_t)(c - '0');
        else if ((c | 32) >= 'a' && (c | 32) <= 'f')
            v = v << 4 | (uint32_t)((c | 32) - 'a' + 10);
        else
            return fail_expected(ps, "four hexadecimal digits after \\u");
    }
    *value_p = v;
    return 0;
}

/* ps->p stands on the backslash. */
static int parse_escape(struct parser *ps, char **out_p) {
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    const char *start = ps->p++, *hit;
    if (ps->p < ps->end && *ps->p == 'u') {
        uint32_t c = 0, low = 0;
        ps->p++;
        if (parse_hex4(ps, &c)) return -1;
        if (c >= 0xDC00 && c <= 0xDFFF) return fail_at(ps, start, "a low surrogate without a high one");
        if (c >= 0xD800 && c <= 0xDBFF) {
            if (ps->end - ps->p < 2 || ps->p[0] != '\\' || ps->p[1] != 'u')
                return fail_at(ps, start, "a high surrogate without a low one");
            ps->p += 2;
            if (parse_hex4(ps, &low)) return -1;
            if (low < 0xDC00 || low > 0xDFFF) return fail_at(ps, start, "a high surrogate without a low one");
            c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
        }
        *out_p = utf8_put(*out_p, c);
        return 0;
    }
    if (ps->p >= ps->end || !*ps->p || !(hit = strchr(from, *ps->p)))
        return fail_expected(ps, "one of \"\\/bfnrtu after a backslash");
    *(*out_p)++ = to[hit - from];
    ps->p++;
    return 0;
}

static bool is_plain(unsigned char c) {
    return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
}

/* ps->p stands on the opening quote. The decoded text is never longer than the written one. */
static int parse_string(struct parser *ps, const char **string_p, size_t *length_p) {
    const char *open = ps->p++, *close = ps->p;
    while (close < ps->end && *close != '"') close += *close == '\\' && close + 1 < ps->end ? 2 : 1;
    if (close >= ps->end) return fail_at(ps, open, "a string without its closing quote");
    size_t head = sizeof(size_t);
    char *start = reserve(ps->json, head + (size_t)(close - open), 1), *out = start + head;
    while (ps->p < close) {
        const char *run = ps->p;
        while (is_plain((unsigned char)*run)) run++; /* stops at the closing quote at the latest */
        memcpy(out, ps->p, (size_t)(run - ps->p));
        out += run - ps->p, ps->p = run;
        if (run >= close) break;
        if (*run == '\\') {
            if (parse_escape(ps, &out)) return -1;
        } else if ((unsigned char)*run < 0x20) {
            return fail_at(ps, run, "a control character in a string (write it as an escape)");
        } else {
            size_t n = utf8_length(run, close);
            if (!n) return fail_at(ps, run, "invalid UTF-8 in a string");
            memcpy(out, run, n);
            out += n, ps->p += n;
        }
    }
    ps->p = close + 1;
    size_t length = (size_t)(out - start) - head;
    memcpy(start, &length, sizeof(length));
    *out++ = 0;
    ps->json->chunks->used += (size_t)(out - start);
    *string_p = start + head, *length_p = length;
    return 0;
}

/* ---- numbers ---- */

static bool is_digit(const struct parser *ps) {
    return ps->p < ps->end && *ps->p >= '0' && *ps->p <= '9';
}

static int parse_digits(struct parser *ps, const char *what) {
    if (!is_digit(ps)) return fail_expected(ps, what);
    while (is_digit(ps)) ps->p++;
    return 0;
}

static double to_double(const char *start, size_t length) {
    char small[64], *text = length < sizeof(small) ? small : mem_alloc(length + 1, "json number");
    memcpy(text, start, length);
    text[length] = 0;
    double value = strtod(text, NULL);
    if (text != small) mem_free(text);
    return value;
}

static int parse_number(struct parser *ps, struct json_node *node) {
    const char *start = ps->p;
    bool negative = *ps->p == '-', whole = true, fits = true;
    ps->p += negative;
    const char *first = ps->p;
    if (parse_digits(ps, "a digit")) return -1;
    if (*first == '0' && ps->p - first > 1) return fail_at(ps, first, "a number with a leading zero");
    uint64_t magnitude = 0;
    for (const char *d = first; d < ps->p; d++)
        fits = fits && !__builtin_mul_overflow(magnitude, (uint64_t)10, &magnitude) &&
               !__builtin_add_overflow(magnitude, (uint64_t)(*d - '0'), &magnitude);
    if (ps->p < ps->end && *ps->p == '.') {
        ps->p++, whole = false;
        if (parse_digits(ps, "a digit after the decimal point")) return -1;
    }
    if (ps->p < ps->end && (*ps->p | 32) == 'e') {
        ps->p++, whole = false;
        if (ps->p < ps->end && (*ps->p == '+' || *ps->p == '-')) ps->p++;
        if (parse_digits(ps, "a digit in the exponent")) return -1;
    }
    node->kind = JSON_NUMBER;
    bool exact = whole && fits && magnitude < (uint64_t)1 << 53;
    node->number = exact ? (negative ? -(double)magnitude : (double)magnitude)
                         : to_double(start, (size_t)(ps->p - start));
    if (!isfinite(node->number)) return fail_at(ps, start, "a number too large for a double");
    if (whole) {
        node->is_integer = fits && magnitude <= (uint64_t)INT64_MAX + negative;
        if (node->is_integer) node->integer = negative ? (int64_t)(0 - magnitude) : (int64_t)magnitude;
    } else if (fabs(node->number) <= 0x1p53 && node->number == floor(node->number)) {
        node->is_integer = true, node->integer = (int64_t)node->number;
    }
    return 0;
}

/* ---- arrays and objects ---- */

static void skip_space(struct parser *ps) {
    while (ps->p < ps->end && (*ps->p == ' ' || *ps->p == '\n' || *ps->p == '\r' || *ps->p == '\t')) ps->p++;
}

static bool next_is(struct parser *ps, char c) {
    skip_space(ps);
    return ps->p < ps->end && *ps->p == c;
}

static void push_node(struct parser *ps, struct json_node node) {
    if (ps->num_nodes == ps->cap_nodes) {
        ps->cap_nodes = ps->cap_nodes ? ps->cap_nodes * 2 : 64;
        ps->nodes = mem_realloc(ps->nodes, mem_array_bytes(ps->cap_nodes, sizeof(*ps->nodes)), "json stack");
    }
    ps->nodes[ps->num_nodes++] = node;
}

static void push_key(struct parser *ps, const char *key) {
    if (ps->num_keys == ps->cap_keys) {
        ps->cap_keys = ps->cap_keys ? ps->cap_keys * 2 : 64;
        ps->keys = mem_realloc(ps->keys, mem_array_bytes(ps->cap_keys, sizeof(*ps->keys)), "json stack");
    }
    ps->keys[ps->num_keys++] = key;
}

/* Moves the values above `base` from the stack into the tree. */
static void close_values(struct parser *ps, size_t base, struct json_node *node) {
    node->count = ps->num_nodes - base;
    if (node->count) {
        struct json_node *items = take(ps->json, node->count * sizeof(*items));
        memcpy(items, ps->nodes + base, node->count * sizeof(*items));
        node->items = items;
    }
    ps->num_nodes = base;
}

static void index_members(struct json *json, struct json_node *node) {
    if (node->count < INDEX_FROM || node->count >= UINT32_MAX / 4) return;
    size_t size = 16;
    while (size < node->count * 2) size *= 2;
    struct index *index = take(json, sizeof(*index) + size * sizeof(index->slots[0]));
    memset(index->slots, 0, size * sizeof(index->slots[0]));
    index->mask = size - 1;
    for (size_t i = 0; i < node->count; i++) {
        size_t length = stored_length(node->keys[i]);
        size_t s = hash_key(node->keys[i], length) & index->mask;
        while (index->slots[s]) { /* a repeated name takes the slot over: the last one wins */
            const char *other = node->keys[index->slots[s] - 1];
            if (stored_length(other) == length && !memcmp(other, node->keys[i], length)) break;
            s = (s + 1) & index->mask;
        }
        index->slots[s] = (uint32_t)i + 1;
    }
    node->index = index;
}

static int parse_value(struct parser *ps, struct json_node *node);

static int parse_array(struct parser *ps, struct json_node *node) {
    size_t base = ps->num_nodes;
    node->kind = JSON_ARRAY;
    ps->p++;
    if (!next_is(ps, ']')) {
        for (;;) {
            struct json_node item;
            if (parse_value(ps, &item)) return -1;
            push_node(ps, item);
            if (!next_is(ps, ',')) break;
            ps->p++;
        }
        if (!next_is(ps, ']')) return fail_expected(ps, "',' or ']'");
    }
    ps->p++;
    close_values(ps, base, node);
    return 0;
}

static int parse_object(struct parser *ps, struct json_node *node) {
    size_t base = ps->num_nodes, base_keys = ps->num_keys;
    node->kind = JSON_OBJECT;
    ps->p++;
    if (!next_is(ps, '}')) {
        for (;;) {
            struct json_node item;
            const char *key;
            size_t length;
            if (!next_is(ps, '"')) return fail_expected(ps, "a member name in double quotes");
            if (parse_string(ps, &key, &length)) return -1;
            push_key(ps, key);
            if (!next_is(ps, ':')) return fail_expected(ps, "':'");
            ps->p++;
            if (parse_value(ps, &item)) return -1;
            push_node(ps, item);
            if (!next_is(ps, ',')) break;
            ps->p++;
        }
        if (!next_is(ps, '}')) return fail_expected(ps, "',' or '}'");
    }
    ps->p++;
    close_values(ps, base, node);
    if (node->count) {
        const char **keys = take(ps->json, node->count * sizeof(*keys));
        memcpy(keys, ps->keys + base_keys, node->count * sizeof(*keys));
        node->keys = keys;
    }
    ps->num_keys = base_keys;
    index_members(ps->json, node);
    return 0;
}

static int parse_word(struct parser *ps, const char *word) {
    size_t n = strlen(word);
    if ((size_t)(ps->end - ps->p) < n || memcmp(ps->p, word, n)) return fail_expected(ps, "a value");
    ps->p += n;
    return 0;
}

/* Recursion is bounded by MAX_DEPTH. */
static int parse_value(struct parser *ps, struct json_node *node) {
    *node = (struct json_node){.kind = JSON_NULL};
    skip_space(ps);
    if (ps->p >= ps->end) return fail_expected(ps, "a value");
    char c = *ps->p;
    if (c == '{' || c == '[') {
        if (ps->depth == MAX_DEPTH) return fail_at(ps, ps->p, "more than 64 levels of arrays and objects");
        ps->depth++;
        int status = c == '{' ? parse_object(ps, node) : parse_array(ps, node);
        ps->depth--;
        return status;
    }
    if (c == '"') {
        node->kind = JSON_STRING;
        return parse_string(ps, &node->string, &node->count);
    }
    if (c == '-' || (c >= '0' && c <= '9')) return parse_number(ps, node);
    if (c == 'n') return parse_word(ps, "null");
    node->kind = JSON_BOOL, node->boolean = c == 't';
    return parse_word(ps, c == 't' ? "true" : "false");
}

struct json *json_parse(const char *text, size_t length, const char *name, struct err *err) {
    struct json *json = mem_zalloc(sizeof(*json), "json");
    struct parser ps = {
        .text = text, .p = text, .end = text + length, .name = name, .err = err, .json = json};
    if (length >= 3 && !memcmp(text, "\xEF\xBB\xBF", 3)) ps.p += 3; /* a byte order mark is let pass */
    int status = parse_value(&ps, &json->root);
    if (!status) {
        skip_space(&ps);
        if (ps.p < ps.end) status = fail_expected(&ps, "the end of the text");
    }
    mem_free(ps.nodes);
    mem_free(ps.keys);
    if (status) {
        json_free(json);
        return NULL;
    }
    return json;
}

static int read_all(int fd, const char *path, char **text_p, size_t *length_p, struct err *err) {
    struct stat st;
    if (fstat(fd, &st)) return err_set(err, "%s: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return err_set(err, "%s: not a regular file", path);
    size_t size = (size_t)st.st_size, done = 0;
    char *text = mem_alloc(size + 1, "json text");
    while (done < size) {
        ssize_t n = read(fd, text + done, size - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            mem_free(text);
            return err_set(err, "%s: cannot read: %s", path, strerror(errno));
        }
        if (!n) break;
        done += (size_t)n;
    }
    *text_p = text, *length_p = done;
    return 0;
}

struct json *json_parse_file(const char *path, struct err *err) {
    char *text = NULL;
    size_t length = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        err_set(err, "%s: cannot open: %s", path, strerror(errno));
        return NULL;
    }
    int status = read_all(fd, path, &text, &length, err);
    close(fd);
    if (status) return NULL;
    struct json *json = json_parse(text, length, path, err);
    mem_free(text);
    return json;
}

void json_free(struct json *json) {
    if (!json) return;
    for (struct chunk *c = json->chunks, *next; c; c = next) {
        next = c->next;
        mem_free(c);
    }
    mem_free(json);
}

const struct json_node *json_root(const struct json *json) {
    return &json->root;
}

size_t json_key_length(const struct json_node *object, size_t member) {
    return stored_length(object->keys[member]);
}

const struct json_node *json_get(const struct json_node *node, const char *key) {
    if (!node || node->kind != JSON_OBJECT) return NULL;
    size_t length = strlen(key);
    const struct index *index = node->index;
    if (index) {
        for (size_t s = hash_key(key, length) & index->mask; index->slots[s]; s = (s + 1) & index->mask) {
            const char *other = node->keys[index->slots[s] - 1];
            if (stored_length(other) == length && !memcmp(other, key, length))
                return &node->items[index->slots[s] - 1];
        }
        return NULL;
    }
    for (size_t i = node->count; i-- > 0;)
        if (stored_length(node->keys[i]) == length && !memcmp(node->keys[i], key, length))
            return &node->items[i];
    return NULL;
}
