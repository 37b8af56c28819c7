/* preprocess_data: the same output with any number of threads, every input policy, and nothing half-written.
 */
#include "core/base/str.h"
#include "core/data/indexed.h"
#include "core/data/preprocess_flags.h"
#include "core/data/provenance.h"
#include "core/data/utf8.h"
#include "tests/test.h"
#include "tests/unit/data_files.h"
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

static char folder[256];

/* A path in the folder; the same name gives the same pointer. */
static const char *at(const char *name) {
    static struct { char name[64], path[600]; } made[64];
    int i = 0;
    while (made[i].name[0] && strcmp(made[i].name, name)) i++;
    snprintf(made[i].name, sizeof(made[i].name), "%s", name);
    snprintf(made[i].path, sizeof(made[i].path), "%s/%s", folder, name);
    return made[i].path;
}

static void write_text(const char *name, const char *text) {
    files_write(at(name), text, strlen(text));
}

static struct preprocess_options byte_options(const char *const *inputs, int count) {
    return (struct preprocess_options){.tokenizer = {.type = "ByteTokenizer"},
                                       .inputs = inputs,
                                       .num_inputs = count,
                                       .output_prefix = at("out"),
                                       .append_eod = true,
                                       .workers = 2};
}

static void remove_output(void) {
    static const char *const names[] = {
        "out_text_document.bin",    "out_text_document.idx",       "out_a_document.bin",
        "out_a_document.idx",       "out_text_document.info.json", "out_a_document.info.json",
        "out_b_document.info.json", "out_b_document.bin",          "out_b_document.idx"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) unlink(at(names[i]));
}

static bool exists(const char *name) {
    return !access(at(name), F_OK);
}

/* Opens the output of a key and expects these documents, sequences joined, written as text with $ for the
 * end. */
static void expect_documents(const char *key, const char *const *want, int count) {
    struct indexed *d;
    struct err err = {{0}};
    char prefix[600];
    snprintf(prefix, sizeof(prefix), "%s_%s_document", at("out"), key);
    EXPECT(indexed_open(prefix, true, &d, &err) == 0, "%s", err.text);
    if (err.text[0]) return;
    EXPECT_EQ(d->documents, count);
    for (int i = 0; i < count && i < d->documents; i++) {
        struct str text = {0};
        for (int64_t s = indexed_document(d, i); s < indexed_document(d, i + 1); s++) {
            int32_t tokens[1000];
            EXPECT_EQ(indexed_read(d, s, 0, indexed_length(d, s), tokens, &err), 0);
            for (int64_t t = 0; t < indexed_length(d, s); t++) {
                char c = tokens[t] == 256 ? '$' : (char)tokens[t];
                str_append(&text, &c, 1);
            }
        }
        EXPECT_STR(text.data ? text.data : "", want[i]);
        str_free(&text);
    }
    indexed_close(d);
}

static void expect_run(const struct preprocess_options *o, struct preprocess_counts *counts) {
    struct err err;
    remove_output();
    EXPECT(preprocess_run(o, counts, &err) == 0, "%s", err.text);
}

static void expect_error(const struct preprocess_options *o, const char *part) {
    struct preprocess_counts counts;
    struct err err = {{0}};
    remove_output();
    EXPECT(preprocess_run(o, &counts, &err) == -1, "accepted: %s", part);
    EXPECT_CONTAINS(err.text, part);
    EXPECT(!strchr(err.text, '\n'), "one line");
    EXPECT(!exists("out_text_document.bin") && !exists("out_text_document.idx"),
           "output under its final name");
    EXPECT(!exists("out_text_document.bin.tmp") && !exists("out_text_document.idx.tmp"),
           "temporary output is left");
}

TEST(json_lines_become_documents) {
    struct preprocess_counts c;
    const char *inputs[] = {at("a.jsonl")};
    struct preprocess_options o = byte_options(inputs, 1);
    write_text("a.jsonl", "\xEF\xBB\xBF{\"text\": \"one\"}\r\n\n  {\"id\": 7, \"text\": \"t\\u0077o\\n\"}  "
                          "\n{\"text\":\"\"}\n{\"text\":[\"a\",\"\",\"b\"]}");
    expect_run(&o, &c);
    expect_documents("text", (const char *[]){"one$", "two\n$", "", "ab$"}, 4);
    EXPECT(c.documents == 4 && c.empty == 1 && c.tokens == 4 + 5 + 3, "%llu tokens",
           (unsigned long long)c.tokens);
    EXPECT_EQ(c.bytes, c.bytes_total);
    o.append_eod = false;
    expect_run(&o, &c);
    expect_documents("text", (const char *[]){"one", "two\n", "", "ab"}, 4);
}

TEST(a_dataset_says_which_tokenizer_made_it) {
    struct preprocess_counts c;
    struct provenance p;
    struct err err;
    const char *inputs[] = {at("a.jsonl")};
    struct preprocess_options o = byte_options(inputs, 1);
    struct tokenizer *t = tokenizer_open(&o.tokenizer, &err);
    write_text("a.jsonl", "{\"text\": \"one\"}\n");
    expect_run(&o, &c);
    EXPECT(provenance_read(at("out_text_document"), &p), "no file");
    EXPECT_STR(p.tokenizer_type, "ByteTokenizer");
    EXPECT(p.vocab_size == 257 && p.append_eod && p.tokenizer_hash == tokenizer_hash(t), "values");
    tokenizer_close(t);
    static const char *const bad[] = {"", "{", "[]", "{\"tokenizer_type\": 5}"};
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        write_text("out_text_document.info.json", bad[i]);
        EXPECT(!provenance_read(at("out_text_document"), &p), "'%s' was read", bad[i]);
    }
    EXPECT(!provenance_read(at("absent"), &p), "an absent file was read");
}

TEST(several_keys_give_several_datasets) {
    struct preprocess_counts c;
    const char *inputs[] = {at("a.jsonl")};
    struct preprocess_options o = byte_options(inputs, 1);
    o.json_keys = (const char *[]){"a", "b"}, o.num_keys = 2;
    write_text("a.jsonl", "{\"a\":\"x\",\"b\":\"yy\"}\n{\"b\":\"zz\",\"a\":\"w\"}\n");
    expect_run(&o, &c);
    expect_documents("a", (const char *[]){"x$", "w$"}, 2);
    expect_documents("b", (const char *[]){"yy$", "zz$"}, 2);
    EXPECT(c.documents == 4 && c.tokens == 2 + 3 + 2 + 3, "counts");
    /* a line that lacks one key is left out for all of them */
    write_text("a.jsonl", "{\"a\":\"x\",\"b\":\"yy\"}\n{\"a\":\"lost\"}\n{\"b\":\"zz\",\"a\":\"w\"}\n");
    o.skip_bad_lines = true;
    expect_run(&o, &c);
    expect_documents("a", (const char *[]){"x$", "w$"}, 2);
    expect_documents("b", (const char *[]){"yy$", "zz$"}, 2);
    EXPECT(c.documents == 4 && c.tokens == 2 + 3 + 2 + 3 && c.skipped_lines == 1, "counts");
}

TEST(bad_json_stops_with_file_and_line_or_is_left_out) {
    static const struct {
        const char *line, *part;
    } bad[] = {{"{\"text\": }", "a.jsonl: line 3: JSON: line 1, column 10"},
               {"{\"txt\": \"x\"}", "a.jsonl: line 3: has no key 'text'"},
               {"{\"text\": 5}", "a.jsonl: line 3: key 'text': the value is neither"},
               {"{\"text\": [\"x\", 5]}", "a.jsonl: line 3: key 'text': the list holds"},
               {"plain words", "a.jsonl: line 3"}};
    const char *inputs[] = {at("a.jsonl")};
    struct preprocess_options o = byte_options(inputs, 1);
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct preprocess_counts c;
        char text[256];
        snprintf(text, sizeof(text), "{\"text\":\"one\"}\n\n%s\n{\"text\":\"two\"}\n", bad[i].line);
        write_text("a.jsonl", text);
        o.skip_bad_lines = false;
        expect_error(&o, bad[i].part);
        o.skip_bad_lines = true;
        expect_run(&o, &c);
        expect_documents("text", (const char *[]){"one$", "two$"}, 2);
        EXPECT(c.skipped_lines == 1 && c.documents == 2, "counts");
    }
}

TEST(text_files_are_one_document_each_in_sorted_order) {
    struct preprocess_counts c;
    mkdir(at("tree"), 0777);
    mkdir(at("tree/sub"), 0777);
    write_text("tree/b.txt", "second\r\nline\rend");
    write_text("tree/a.md", "\xEF\xBB\xBF"
                            "first");
    write_text("tree/sub/c", "third");
    write_text("tree/.hidden", "no");
    write_text("tree/empty", "");
    write_text("tree/packed.gz", "\x1F\x8B\x08zzz");
    files_write(at("tree/zero.o"), "x\0y", 3);
    const char *inputs[] = {at("tree"), at("tree/sub/c"), at("tree/*.md")};
    struct preprocess_options o = byte_options(inputs, 3);
    expect_run(&o, &c);
    expect_documents("text",
                     (const char *[]){"first$", "second\nline\nend$", "", "third$", "third$", "first$"}, 6);
    EXPECT(c.skipped_files == 2 && c.empty == 1, "%llu files left out", (unsigned long long)c.skipped_files);
    inputs[0] = at("tree/packed.gz");
    expect_error(&o, "packed.gz: is compressed; decompress it first");
    inputs[0] = at("tree/zero.o");
    expect_error(&o, "zero.o: is not text");
    inputs[0] = at("absent*");
    expect_error(&o, "absent*: no such file");
    unlink(at("tree/b.txt")), unlink(at("tree/a.md")), unlink(at("tree/sub/c")), unlink(at("tree/.hidden"));
    unlink(at("tree/empty")), unlink(at("tree/packed.gz")), unlink(at("tree/zero.o")), rmdir(at("tree/sub"));
    inputs[0] = at("tree");
    o.num_inputs = 1;
    expect_error(&o, "no file in the given folders");
    rmdir(at("tree"));
}

TEST(bytes_that_are_not_utf8_are_replaced_and_counted) {
    struct preprocess_counts c;
    const char *inputs[] = {at("a.txt"), at("a.jsonl")};
    struct preprocess_options o = byte_options(inputs, 2);
    write_text("a.txt", "a\xFF"
                        "b\xE2\x82"
                        "c");
    write_text("a.jsonl", "{\"text\":\"x\xC3\"}\n");
    expect_run(&o, &c);
    expect_documents("text",
                     (const char *[]){"a\xEF\xBF\xBD"
                                      "b\xEF\xBF\xBD"
                                      "c$",
                                      "x\xEF\xBF\xBD$"},
                     2);
    EXPECT_EQ(c.repaired, 3);
}

TEST(repair_replaces_maximal_subparts_as_python_does) {
    static const struct {
        const char *bad;
        size_t replacements;
        const char *good; /* '?' stands for U+FFFD */
    } t[] = {{"ok \xC3\xA9", 0, "ok \xC3\xA9"},
             {"\x80", 1, "?"},
             {"\xC0\xAF", 2, "??"},
             {"\xE0\x80\x80", 3, "???"},
             {"\xED\xA0\x80", 3, "???"},
             {"\xF0\x9F\x98z", 1, "?z"},
             {"\xF4\x90\x80\x80", 4, "????"},
             {"\xE2\x82\xE2\x82\xAC", 1, "?\xE2\x82\xAC"},
             {"\xF0\x9F", 1, "?"},
             {"abcdefgh\xFFijklmnop", 1, "abcdefgh?ijklmnop"},
             {"\xC3\xC3\xA9", 1, "?\xC3\xA9"}};
    for (size_t i = 0; i < ARRAY_COUNT(t); i++) {
        struct str out = {0}, want = {0};
        size_t n = utf8_repair(t[i].bad, strlen(t[i].bad), &out);
        for (const char *p = t[i].good; *p; p++)
            str_append(&want, *p == '?' ? "\xEF\xBF\xBD" : p, *p == '?' ? 3 : 1);
        EXPECT(n == t[i].replacements, "case %zu: %zu replacements", i, n);
        EXPECT_STR(out.data, want.data);
        str_free(&out);
        str_free(&want);
    }
}

TEST(output_does_not_depend_on_the_number_of_threads) {
    const char *inputs[] = {at("big.jsonl"), at("big.txt"), at("big2.jsonl")};
    struct preprocess_options o = byte_options(inputs, 3);
    struct str text = {0};
    uint64_t x = 1;
    for (int i = 0; i < 6000; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        str_printf(&text, "{\"text\":\"document %d", i);
        for (uint64_t k = 0; k < (x >> 33) % 60; k++)
            str_printf(&text, " word%llu", (unsigned long long)(x >> k & 255));
        str_puts(&text, i % 3 ? "\"}\n" : "\"}\r\n");
    }
    files_write(at("big.jsonl"), text.data, text.length);
    files_write(at("big2.jsonl"), text.data, text.length - 1); /* no newline at the end */
    write_text("big.txt", "between");
    unsigned char *first[2] = {NULL, NULL};
    size_t bytes[2] = {0, 0};
    for (int workers = 1; workers <= 7; workers += 2) {
        struct preprocess_counts c;
        o.workers = workers;
        expect_run(&o, &c);
        EXPECT_EQ(c.documents, 12001);
        for (int f = 0; f < 2; f++) {
            size_t n;
            unsigned char *data = files_read(at(f ? "out_text_document.idx" : "out_text_document.bin"), &n);
            if (workers == 1) {
                first[f] = data, bytes[f] = n;
                continue;
            }
            EXPECT(n == bytes[f] && !memcmp(data, first[f], n), "%d threads", workers);
            mem_free(data);
        }
    }
    mem_free(first[0]);
    mem_free(first[1]);
    /* the first bad line decides the message, whichever thread is faster */
    text.data[text.length / 2 - 20] = '\x01';
    size_t half = 1;
    for (size_t i = 0; i < text.length / 2 - 20; i++) half += text.data[i] == '\n';
    memcpy(text.data + text.length - 20, "\x01\x01\x01", 3);
    files_write(at("big.jsonl"), text.data, text.length);
    char where[64];
    snprintf(where, sizeof(where), "big.jsonl: line %zu:", half);
    for (int workers = 1; workers <= 8; workers *= 2) {
        o.workers = workers;
        expect_error(&o, where);
    }
    str_free(&text);
}

TEST(lines_longer_than_a_batch_are_whole) {
    struct preprocess_counts c;
    const char *inputs[] = {at("long.jsonl")};
    struct preprocess_options o = byte_options(inputs, 1);
    struct str text = {0};
    for (int doc = 0; doc < 3; doc++) {
        str_puts(&text, "{\"text\":\"");
        for (int i = 0; i < 700000; i++) str_append(&text, &"abc"[doc], 1);
        str_puts(&text, "\"}\n");
    }
    files_write(at("long.jsonl"), text.data, text.length);
    str_free(&text);
    expect_run(&o, &c);
    EXPECT(c.documents == 3 && c.tokens == 3 * 700001, "%llu tokens", (unsigned long long)c.tokens);
}

TEST(nothing_is_written_without_tokens_or_space) {
    const char *inputs[] = {at("a.jsonl")};
    struct preprocess_options o = byte_options(inputs, 1);
    write_text("a.jsonl", "{\"text\":\"\"}\n");
    expect_error(&o, "no token in them");
    write_text("a.jsonl", "");
    expect_error(&o, "0 documents");
    o.output_prefix = at("absent/out");
    expect_error(&o, "absent/out_text_document.bin.tmp: cannot create");
    o = byte_options(inputs, 1);
    struct str text = {0};
    for (int i = 0; i < 40000; i++)
        str_puts(&text, "{\"text\":\"some words that fill the disk, again and again\"}\n");
    files_write(at("a.jsonl"), text.data, text.length);
    str_free(&text);
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = old, small.rlim_cur = 1 << 20;
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small); /* as a full disk */
    expect_error(&o, "cannot write");
    setrlimit(RLIMIT_FSIZE, &old);
}

TEST(an_older_dataset_survives_a_failed_run) {
    struct preprocess_counts c;
    struct err err;
    const char *inputs[] = {at("a.jsonl")};
    struct preprocess_options o = byte_options(inputs, 1);
    write_text("a.jsonl", "{\"text\":\"old\"}\n");
    expect_run(&o, &c);
    write_text("a.jsonl", "{\"text\":\"new\"}\nbad\n");
    EXPECT_EQ(preprocess_run(&o, &c, &err), -1);
    expect_documents("text", (const char *[]){"old$"}, 1);
}

static int parse(struct preprocess_flags *f, struct err *err, int argc, char **argv) {
    return preprocess_flags_parse(argc, argv, f, err);
}
#define PARSE(f, err, ...)                                                                                   \
    parse(f, err, (int)ARRAY_COUNT(((char *[]){"preprocess_data", __VA_ARGS__})),                            \
          (char *[]){"preprocess_data", __VA_ARGS__})

TEST(flags_are_megatrons) {
    struct preprocess_flags f;
    struct err err;
    EXPECT(PARSE(&f, &err, "--input", "a", "b", "--output-prefix=out", "--json-keys", "x", "y", "--workers",
                 "3", "--append-eod", "--tokenizer-type", "NullTokenizer", "--vocab-size", "100",
                 "--input-format", "text", "--log-interval", "5") == 0,
           "%s", err.text);
    EXPECT(f.options.num_inputs == 2 && f.options.num_keys == 2 && f.options.workers == 3 &&
               f.options.append_eod,
           "values");
    EXPECT(f.options.tokenizer.vocab_size == 100 && f.options.tokenizer.null_eod_id == -1 &&
               f.log_interval == 5,
           "numbers");
    EXPECT_STR(f.options.inputs[1], "b");
    EXPECT_STR(f.options.output_prefix, "out");
    EXPECT_EQ(f.options.format, TEXT_FORMAT_TEXT);
    preprocess_flags_free(&f);
    static char *const bad[][4] = {{"--output-prefix", "x", NULL, "--input is missing"},
                                   {"--input", "x", NULL, "--output-prefix is missing"},
                                   {"--input", NULL, NULL, "--input needs at least one value"},
                                   {"--workers", "x", NULL, "--workers x: must be a whole number"},
                                   {"--append-eos", NULL, NULL, "did you mean --append-eod?"},
                                   {"--split-sentences", NULL, NULL, "--split-sentences: sentence splitting"},
                                   {"--input-format", "xml", NULL, "--input-format xml"},
                                   {"--append-eod=1", NULL, NULL, "takes no value"},
                                   {"--tokenizer-type", NULL, NULL, "needs a value"}};
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        char *argv[3] = {(char[]){"preprocess_data"}, bad[i][0], bad[i][1]};
        EXPECT(preprocess_flags_parse(bad[i][1] ? 3 : 2, argv, &f, &err) == -1, "accepted %s", bad[i][0]);
        EXPECT_CONTAINS(err.text, bad[i][3]);
    }
}

TEST(begin) {
    files_make_folder(folder, sizeof(folder));
}
TEST(end_removes_its_files_and_frees_its_memory) {
    files_remove_folder(folder);
    EXPECT_EQ(mem_stats().live_blocks, 0);
}

RUN_TESTS(CASE(begin), CASE(json_lines_become_documents), CASE(a_dataset_says_which_tokenizer_made_it),
          CASE(several_keys_give_several_datasets), CASE(bad_json_stops_with_file_and_line_or_is_left_out),
          CASE(text_files_are_one_document_each_in_sorted_order),
          CASE(bytes_that_are_not_utf8_are_replaced_and_counted),
          CASE(repair_replaces_maximal_subparts_as_python_does),
          CASE(output_does_not_depend_on_the_number_of_threads), CASE(lines_longer_than_a_batch_are_whole),
          CASE(nothing_is_written_without_tokens_or_space), CASE(an_older_dataset_survives_a_failed_run),
          CASE(flags_are_megatrons), CASE(end_removes_its_files_and_frees_its_memory))
