/* Any bytes: refused with a message, or a tree that is written out and read back as the same tree. */
#include "core/base/json.h"
#include "core/base/mem.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void write_node(struct str *out, const struct json_node *n) {
    switch (n->kind) {
    case JSON_NULL:
        json_null(out);
        break;
    case JSON_BOOL:
        json_bool(out, n->boolean);
        break;
    case JSON_NUMBER:
        if (n->is_integer)
            json_integer(out, n->integer);
        else
            json_double(out, n->number);
        break;
    case JSON_STRING:
        json_string_bytes(out, n->string, n->count);
        break;
    case JSON_ARRAY:
        json_begin_array(out);
        for (size_t i = 0; i < n->count; i++) write_node(out, &n->items[i]);
        json_end_array(out);
        break;
    case JSON_OBJECT:
        json_begin_object(out);
        for (size_t i = 0; i < n->count; i++) {
            json_string_bytes(out, n->keys[i], json_key_length(n, i));
            str_puts(out, ":");
            write_node(out, &n->items[i]);
        }
        json_end_object(out);
        break;
    }
}

static void check_same(const struct json_node *a, const struct json_node *b) {
    CHECK(a->kind == b->kind && a->count == b->count && a->boolean == b->boolean, "kind or count");
    if (a->kind == JSON_NUMBER) CHECK(a->number == b->number, "%.17g is not %.17g", a->number, b->number);
    if (a->kind == JSON_STRING) CHECK(!memcmp(a->string, b->string, a->count + 1), "string");
    for (size_t i = 0; i < a->count && (a->kind == JSON_ARRAY || a->kind == JSON_OBJECT); i++) {
        check_same(&a->items[i], &b->items[i]);
        if (a->kind == JSON_ARRAY) continue;
        size_t length = json_key_length(a, i);
        CHECK(length == json_key_length(b, i) && !memcmp(a->keys[i], b->keys[i], length + 1), "name");
        if (strlen(a->keys[i]) == length) CHECK(json_get(a, a->keys[i]) >= &a->items[i], "look-up");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err err = {""};
    uint64_t blocks = mem_stats().live_blocks;
    struct json *json = json_parse((const char *)data, size, "fuzz", &err);
    if (json) {
        struct str text = {0};
        write_node(&text, json_root(json));
        struct json *again = json_parse(text.data, text.length, "again", &err);
        CHECK(again, "written text is refused: %s", err.text);
        check_same(json_root(json), json_root(again));
        json_free(again);
        str_free(&text);
    } else {
        CHECK(strstr(err.text, "fuzz: line "), "no position: %s", err.text);
    }
    json_free(json);
    CHECK(mem_stats().live_blocks == blocks, "memory is leaked");
    return 0;
}
