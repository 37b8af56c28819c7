#include "core/base/json.h"
#include "core/base/mem.h"
#include "tests/test.h"
#include <time.h>
#include <unistd.h>

static struct err err;

static struct json *parse(const char *text) {
    err.text[0] = 0;
    return json_parse(text, strlen(text), "t", &err);
}

/* "" when the text is accepted, else the message. */
static const char *fault(const char *text) {
    struct json *json = parse(text);
    if (json) err.text[0] = 0;
    json_free(json);
    return err.text;
}

TEST(valid_texts_of_every_kind_are_accepted) {
    static const char *const texts[] = {"null",
                                        "true",
                                        "false",
                                        "0",
                                        "-0",
                                        "-1",
                                        "10",
                                        "1.5",
                                        "1e5",
                                        "1E+5",
                                        "1e-5",
                                        "-0.0e0",
                                        "\"\"",
                                        "[]",
                                        "{}",
                                        " [ 1 , 2 ] ",
                                        "\t\r\n{ \"a\" : [ { } , [ ] ] }\n",
                                        "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\"",
                                        "\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\"",
                                        "\"\\uD83D\\uDE00\"",
                                        "\"\x7F\"",
                                        "\xEF\xBB\xBF[1]",
                                        "[[[[[[[[[[1]]]]]]]]]]",
                                        "\"\\u0000\"",
                                        "9223372036854775807",
                                        "123456789012345678901234567890"};
    for (size_t i = 0; i < ARRAY_COUNT(texts); i++)
        EXPECT(!fault(texts[i])[0], "'%s' is refused: %s", texts[i], err.text);
}

TEST(invalid_texts_are_refused_with_line_and_column) {
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "t: line 1, column 1: expected a value, found the end of the text"},
        {"  ", "line 1, column 3"},
        {"[1,]", "line 1, column 4: expected a value, found ']'"},
        {"{\"a\":1,}", "line 1, column 8: expected a member name in double quotes, found '}'"},
        {"{a:1}", "column 2: expected a member name"},
        {"{\"a\" 1}", "line 1, column 6: expected ':', found '1'"},
        {"[1 2]", "line 1, column 4: expected ',' or ']', found '2'"},
        {"{\"a\":1 \"b\":2}", "expected ',' or '}'"},
        {"[1", "expected ',' or ']', found the end"},
        {"{\"a\":\n\n  nul}", "line 3, column 3: expected a value, found 'n'"},
        {"1 2", "line 1, column 3: expected the end of the text, found '2'"},
        {"[1]]", "column 4: expected the end"},
        {"01", "line 1, column 1: a number with a leading zero"},
        {"-", "expected a digit"},
        {"+1", "expected a value, found '+'"},
        {"1.", "expected a digit after the decimal point"},
        {".5", "expected a value, found '.'"},
        {"1e", "expected a digit in the exponent"},
        {"1e+", "expected a digit in the exponent"},
        {"0x10", "expected the end of the text, found 'x'"},
        {"1e999", "a number too large"},
        {"NaN", "expected a value"},
        {"Infinity", "expected a value"},
        {"tru", "expected a value"},
        {"'a'", "expected a value"},
        {"\"a", "line 1, column 1: a string without its closing quote"},
        {"\"a\\\"", "a string without its closing quote"},
        {"\"a\nb\"", "line 1, column 3: a control character"},
        {"\"\\x\"", "line 1, column 3: expected one of"},
        {"\"\\u12\"", "four hexadecimal digits"},
        {"\"\\u12g4\"", "column 6: expected four hexadecimal digits after \\u, found 'g'"},
        {"\"\\uD83D\"", "a high surrogate without a low one"},
        {"\"\\uD83D\\n\"", "a high surrogate without a low one"},
        {"\"\\uD83D\\u0041\"", "a high surrogate without a low one"},
        {"\"\\uDE00\"", "a low surrogate without a high one"},
        {"\"\xC3\"", "column 2: invalid UTF-8"},
        {"\"\xC0\x80\"", "invalid UTF-8"},
        {"\"\xE0\x80\x80\"", "invalid UTF-8"},
        {"\"\xED\xA0\x80\"", "invalid UTF-8"},
        {"\"\xF4\x90\x80\x80\"", "invalid UTF-8"},
        {"\"\xFF\"", "invalid UTF-8"},
        {"\"\xC3\xA9\xC3\xA9\" x", "line 1, column 6"}, /* columns count characters, not bytes */
        {"/* c */ 1", "expected a value, found '/'"},
        {"[1]\x01", "byte 0x01"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        EXPECT(fault(cases[i].text)[0], "'%s' is accepted", cases[i].text);
        EXPECT_CONTAINS(err.text, cases[i].message);
    }
}

TEST(a_cut_text_is_refused_at_every_length) {
    static const char text[] = "{\"a\": [1, -2.5e3, \"x\\u00e9\\n\", true, null], \"b\": {\"c\": false}}";
    for (size_t n = 0; n < sizeof(text) - 1; n++) {
        char *copy = mem_alloc(n + 1, "cut"); /* its own block, so that a sanitizer sees over-reads */
        memcpy(copy, text, n);
        struct json *json = json_parse(copy, n, "t", &err);
        EXPECT(!json, "%zu bytes are accepted", n);
        json_free(json);
        mem_free(copy);
    }
    EXPECT(!fault(text)[0], "%s", err.text);
}

TEST(numbers_keep_their_value) {
    static const struct {
        const char *text;
        double number;
        bool is_integer;
        int64_t integer;
    } cases[] = {
        {"0", 0, true, 0},
        {"-7", -7, true, -7},
        {"9007199254740993", 9007199254740992.0, true, 9007199254740993},
        {"9223372036854775807", 9223372036854775807.0, true, INT64_MAX},
        {"-9223372036854775808", -9223372036854775808.0, true, INT64_MIN},
        {"9223372036854775808", 9223372036854775808.0, false, 0},
        {"-9223372036854775809", -9223372036854775808.0, false, 0},
        {"1e3", 1000, true, 1000},
        {"2.50", 2.5, false, 0},
        {"100000.0", 1e5, true, 100000},
        {"1e300", 1e300, false, 0},
        {"0.1", 0.1, false, 0},
        {"2.2250738585072014e-308", 2.2250738585072014e-308, false, 0},
        {"5e-324", 5e-324, false, 0},
        {"1e-999", 0, true, 0},
        {"0.000000000000000000000000000000000000000000000000000000000000000000001", 1e-69, false, 0},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct json *json = parse(cases[i].text);
        EXPECT(json, "%s: %s", cases[i].text, err.text);
        if (!json) continue;
        const struct json_node *n = json_root(json);
        EXPECT(n->number == cases[i].number, "%s: %.17g", cases[i].text, n->number);
        EXPECT(n->is_integer == cases[i].is_integer, "%s: integer %d", cases[i].text, n->is_integer);
        EXPECT(!n->is_integer || n->integer == cases[i].integer, "%s: %lld", cases[i].text,
               (long long)n->integer);
        json_free(json);
    }
    struct json *json = parse("-0.0");
    EXPECT(json && signbit(json_root(json)->number), "-0.0 lost its sign");
    json_free(json);
}

TEST(strings_are_decoded) {
    struct json *json =
        parse("\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0041\\u00e9\\u20AC\\uD83D\\uDE00|\xC3\xA9|a\\u0000b\"");
    static const char want[] = "\"\\/\b\f\n\r\tA\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80|\xC3\xA9|a\0b";
    EXPECT(json, "%s", err.text);
    if (!json) return;
    const struct json_node *n = json_root(json);
    EXPECT_EQ(n->count, sizeof(want) - 1);
    EXPECT(n->count == sizeof(want) - 1 && !memcmp(n->string, want, sizeof(want)), "'%s'", n->string);
    json_free(json);
}

TEST(members_are_found_in_order_and_the_last_repeated_one_wins) {
    struct json *json = parse("{\"a\":1,\"b\":[10,20,{\"c\":3}],\"\":4,\"a\":5,\"x\\u0000y\":6}");
    EXPECT(json, "%s", err.text);
    if (!json) return;
    const struct json_node *root = json_root(json), *b = json_get(root, "b");
    EXPECT_EQ(root->count, 5);
    EXPECT_STR(root->keys[1], "b");
    EXPECT_EQ(json_get(root, "a")->integer, 5);
    EXPECT_EQ(json_get(root, "")->integer, 4);
    EXPECT(!json_get(root, "x"), "a name with a NUL inside was cut");
    EXPECT_EQ(json_key_length(root, 4), 3);
    EXPECT(b && b->kind == JSON_ARRAY && b->count == 3, "b");
    EXPECT_EQ(json_get(&b->items[2], "c")->integer, 3);
    EXPECT(!json_get(root, "none") && !json_get(b, "a") && !json_get(NULL, "a"), "found what is not there");
    json_free(json);
}

TEST(depth_is_limited_to_64_levels) {
    char text[200];
    for (int depth = 60; depth < 70; depth++) {
        int n = 0;
        for (int i = 0; i < depth; i++) text[n++] = '[';
        for (int i = 0; i < depth; i++) text[n++] = ']';
        text[n] = 0;
        EXPECT(!fault(text)[0] == (depth <= 64), "%d levels: %s", depth, err.text);
    }
    EXPECT_CONTAINS(err.text, "column 65: more than 64 levels");
}

TEST(large_objects_find_every_member) {
    enum { N = 20000 };
    struct str s = {0};
    char key[32];
    json_begin_object(&s);
    for (int i = 0; i < N; i++) {
        snprintf(key, sizeof(key), "token %d\xC3\xA9", i * 7919);
        json_key(&s, key);
        json_integer(&s, i);
    }
    json_key(&s, "token 0\xC3\xA9");
    json_integer(&s, -1);
    json_end_object(&s);
    struct json *json = json_parse(s.data, s.length, "t", &err);
    EXPECT(json, "%s", err.text);
    for (int i = 0; json && i < N; i++) {
        snprintf(key, sizeof(key), "token %d\xC3\xA9", i * 7919);
        const struct json_node *v = json_get(json_root(json), key);
        EXPECT(v && v->integer == (i ? i : -1), "%s", key);
    }
    EXPECT(!json || !json_get(json_root(json), "token"), "found what is not there");
    json_free(json);
    str_free(&s);
}

TEST(the_writer_places_commas_and_escapes) {
    struct str s = {0};
    json_begin_object(&s);
    json_key(&s, "a\"\\\n\x01");
    json_begin_array(&s);
    json_integer(&s, -1);
    json_unsigned(&s, UINT64_MAX);
    json_begin_array(&s);
    json_end_array(&s);
    json_begin_object(&s);
    json_end_object(&s);
    json_string(&s, NULL);
    json_string(&s, "[");
    json_bool(&s, true);
    json_end_array(&s);
    json_key(&s, "b");
    json_null(&s);
    json_key(&s, "c");
    json_string_bytes(&s, "\xC3\xA9\xFF\0z", 5);
    json_end_object(&s);
    EXPECT_STR(s.data, "{\"a\\\"\\\\\\n\\u0001\":[-1,18446744073709551615,[],{},null,\"[\",true],\"b\":null,"
                       "\"c\":\"\xC3\xA9\xEF\xBF\xBD\\u0000z\"}");
    EXPECT(!fault(s.data)[0], "%s", err.text);
    str_puts(&s, "\n");
    json_begin_object(&s);
    json_end_object(&s);
    EXPECT_STR(s.data + s.length - 3, "\n{}");
    str_free(&s);
}

TEST(numbers_written_are_read_back_to_the_last_bit) {
    uint64_t x = 88172645463325252u;
    struct str s = {0};
    for (int i = 0; i < 20000; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        double d;
        float f;
        uint32_t low = (uint32_t)x;
        memcpy(&d, &x, 8);
        memcpy(&f, &low, 4);
        str_clear(&s);
        json_begin_array(&s);
        json_double(&s, d);
        json_float(&s, f);
        json_integer(&s, (int64_t)x);
        json_end_array(&s);
        struct json *json = json_parse(s.data, s.length, "t", &err);
        EXPECT(json, "%s: %s", s.data, err.text);
        if (!json) continue;
        const struct json_node *v = json_root(json)->items;
        EXPECT(isfinite(d) ? v[0].number == d : v[0].kind == JSON_NULL, "%s", s.data);
        EXPECT(isfinite(f) ? (float)v[1].number == f : v[1].kind == JSON_NULL, "%s", s.data);
        EXPECT(v[2].is_integer && v[2].integer == (int64_t)x, "%s", s.data);
        json_free(json);
    }
    str_free(&s);
}

TEST(files_are_read_and_faults_name_them) {
    char path[] = "/tmp/json_test_XXXXXX";
    int fd = mkstemp(path);
    static const char text[] = "{\"a\":\n1]";
    EXPECT(fd >= 0 && write(fd, text, sizeof(text) - 1) == sizeof(text) - 1, "cannot write %s", path);
    close(fd);
    EXPECT(!json_parse_file(path, &err), "accepted");
    EXPECT_CONTAINS(err.text, path);
    EXPECT_CONTAINS(err.text, "line 2, column 2");
    unlink(path);
    EXPECT(!json_parse_file(path, &err), "accepted");
    EXPECT_CONTAINS(err.text, "cannot open");
    EXPECT(!json_parse_file("/tmp", &err), "accepted");
    EXPECT_CONTAINS(err.text, "not a regular file");
}

TEST(nothing_is_leaked_and_repeated_openings_cost_linear_time) {
    struct mem_stats before = mem_stats();
    struct str s = {0};
    fault("{\"a\":[1,2,{\"b\":\"x\"}");
    fault("[\"abc\\q\"]");
    json_free(NULL);
    for (int i = 0; i < 200000; i++) str_puts(&s, i ? ",{\"k\":[[]]}" : "[{}");
    str_puts(&s, "]");
    struct json *json = json_parse(s.data, s.length, "t", &err);
    EXPECT(json && json_root(json)->count == 200000, "%s", err.text);
    json_free(json);
    str_free(&s);
    EXPECT_EQ(mem_stats().live_blocks, before.live_blocks);
    EXPECT_EQ(mem_stats().live_bytes, before.live_bytes);
}

RUN_TESTS(CASE(valid_texts_of_every_kind_are_accepted), CASE(invalid_texts_are_refused_with_line_and_column),
          CASE(a_cut_text_is_refused_at_every_length), CASE(numbers_keep_their_value),
          CASE(strings_are_decoded), CASE(members_are_found_in_order_and_the_last_repeated_one_wins),
          CASE(depth_is_limited_to_64_levels), CASE(large_objects_find_every_member),
          CASE(the_writer_places_commas_and_escapes), CASE(numbers_written_are_read_back_to_the_last_bit),
          CASE(files_are_read_and_faults_name_them),
          CASE(nothing_is_leaked_and_repeated_openings_cost_linear_time))
