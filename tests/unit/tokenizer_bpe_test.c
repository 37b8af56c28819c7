/* Byte pair encoding gives the ids that Hugging Face's tokenizers package gives: the oracle is
 * tests/golden/tokenizers/cases.json, made by tests/golden/make_tokenizer_golden.py. */
#include "core/base/json.h"
#include "core/base/mem.h"
#include "core/data/bpe.h"
#include "core/data/tokenizer.h"
#include "core/data/utf8.h"
#include "tests/test.h"
#include "tests/unit/data_files.h"
#include <time.h>

#define GOLDEN "tests/golden/tokenizers/"

#ifdef WITH_PCRE2
static struct json *golden;

static struct tokenizer *open_json(const char *name) {
    char path[256];
    struct err err;
    snprintf(path, sizeof(path), GOLDEN "%s.json", name);
    struct tokenizer *t =
        tokenizer_open(&(struct tokenizer_options){.type = "HuggingFaceTokenizer", .model = path}, &err);
    if (!t) {
        printf("# %s\n", err.text);
        exit(1);
    }
    return t;
}

static struct tokenizer *open_gpt2(void) {
    struct err err;
    struct tokenizer *t = tokenizer_open(&(struct tokenizer_options){.vocab_file = GOLDEN "gpt2.vocab.json",
                                                                     .merge_file = GOLDEN "gpt2.merges.txt"},
                                         &err);
    EXPECT(t != NULL, "%s", err.text);
    return t;
}

static void expect_ids(struct tokenizer_worker *w, const char *name, size_t k) {
    const struct json_node *text = &json_get(json_root(golden), "texts")->items[k];
    const struct json_node *want = &json_get(json_get(json_root(golden), "ids"), name)->items[k];
    struct token_list ids = {0};
    struct err err;
    EXPECT(tokenizer_encode(w, text->string, text->count, &ids, &err) == 0, "%s, text %zu: %s", name, k,
           err.text);
    bool same = ids.count == want->count;
    for (size_t i = 0; same && i < ids.count; i++) same = ids.data[i] == want->items[i].integer;
    EXPECT(same, "%s, text %zu '%s': %zu ids, wanted %zu", name, k, text->string, ids.count, want->count);
    token_list_free(&ids);
}

static void expect_all(const struct tokenizer *t, const char *name) {
    struct tokenizer_worker *w = tokenizer_worker_open(t);
    size_t count = json_get(json_get(json_root(golden), "ids"), name)->count;
    EXPECT(count >= 24, "%zu texts", count);
    for (int round = 0; round < 2; round++) /* the second time through the cache */
        for (size_t k = 0; k < count; k++) expect_ids(w, name, k);
    tokenizer_worker_close(w);
}

TEST(ids_are_those_of_hugging_face) {
    static const char *const names[] = {"gpt2",        "llama3",       "qwen",       "o200k",
                                        "starcoder",   "prefix",       "hand_whole", "hand_merged",
                                        "hand_digits", "hand_digit",   "hand_gpt2",  "hand_removed",
                                        "hand_kept",   "hand_literal", "hand_empty"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        struct tokenizer *t = open_json(names[i]);
        expect_all(t, names[i]);
        tokenizer_close(t);
    }
}

TEST(gpt2_files_give_the_same_ids) {
    struct tokenizer *t = open_gpt2();
    expect_all(t, "gpt2");
    EXPECT_EQ(tokenizer_eod(t), 700);
    EXPECT_EQ(tokenizer_vocab_size(t), 701);
    EXPECT_EQ(tokenizer_pad(t), -1);
    tokenizer_close(t);
}

TEST(decoding_gives_the_text_back) {
    struct tokenizer *t = open_json("o200k"); /* no normaliser, no BOS */
    struct tokenizer_worker *w = tokenizer_worker_open(t);
    const struct json_node *texts = json_get(json_root(golden), "texts");
    for (size_t k = 0; k < texts->count; k++) {
        struct token_list ids = {0};
        struct str back = {0};
        struct err err;
        EXPECT_EQ(tokenizer_encode(w, texts->items[k].string, texts->items[k].count, &ids, &err), 0);
        EXPECT_EQ(tokenizer_decode(t, ids.data, ids.count, &back, &err), 0);
        EXPECT(back.length == texts->items[k].count &&
                   !memcmp(back.length ? back.data : "", texts->items[k].string, back.length),
               "text %zu", k);
        token_list_free(&ids);
        str_free(&back);
    }
    struct str back = {0};
    struct err err;
    int32_t bad = (int32_t)tokenizer_vocab_size(t);
    EXPECT_EQ(tokenizer_decode(t, &bad, 1, &back, &err), -1);
    EXPECT_CONTAINS(err.text, "outside the vocabulary");
    tokenizer_worker_close(w);
    tokenizer_close(t);
}

TEST(special_tokens_around_the_text_can_be_switched_off) {
    struct err err;
    struct tokenizer_options o = {
        .type = "HuggingFaceTokenizer", .model = GOLDEN "llama3.json", .no_special_tokens = true};
    struct tokenizer *t = tokenizer_open(&o, &err), *with = open_json("llama3");
    struct tokenizer_worker *w = tokenizer_worker_open(t), *w2 = tokenizer_worker_open(with);
    struct token_list a = {0}, b = {0};
    EXPECT_EQ(tokenizer_encode(w, "Hello", 5, &a, &err), 0);
    EXPECT_EQ(tokenizer_encode(w2, "Hello", 5, &b, &err), 0);
    EXPECT(b.count == a.count + 1 && !memcmp(b.data + 1, a.data, a.count * 4), "BOS alone differs");
    EXPECT(tokenizer_hash(t) == tokenizer_hash(with), "the vocabulary is the same");
    token_list_free(&a);
    token_list_free(&b);
    tokenizer_worker_close(w);
    tokenizer_worker_close(w2);
    tokenizer_close(t);
    tokenizer_close(with);
}

/* Scans and heap must agree with each other: the definition, written as the plain quadratic loop. */
static void encode_plain(const struct tokenizer *t, struct bpe *bpe, const char *word, size_t n,
                         struct token_list *out) {
    (void)t;
    struct {
        size_t at, length;
    } part[4096];
    size_t parts = n;
    for (size_t i = 0; i < n; i++) part[i].at = i, part[i].length = 1;
    for (;;) { /* lowest id of a sum is the lowest rank, because the trainer numbers tokens as it merges */
        int32_t best = INT32_MAX;
        size_t where = 0;
        for (size_t i = 0; i + 1 < parts; i++) {
            int32_t id = bpe_find(bpe, word + part[i].at, part[i].length + part[i + 1].length);
            if (id >= 256 && id < best) best = id, where = i;
        }
        if (best == INT32_MAX) break;
        part[where].length += part[where + 1].length;
        memmove(&part[where + 1], &part[where + 2], (parts - where - 2) * sizeof(part[0]));
        parts--;
    }
    for (size_t i = 0; i < parts; i++) {
        token_list_reserve(out, 1);
        out->data[out->count++] = bpe_find(bpe, word + part[i].at, part[i].length);
    }
}

/* A vocabulary where every pair of tokens whose sum is a token merges: a a -> aa, aa aa -> aaaa, ab, abab ...
 */
static struct bpe *small_bpe(void) {
    static const char *const merges[][2] = {{"a", "b"}, {"a", "a"},   {"ab", "ab"},
                                            {"b", "a"}, {"aa", "aa"}, {"abab", "a"}};
    struct bpe *bpe = bpe_open(false);
    struct err err;
    int32_t id = 0;
    for (int c = 'a'; c <= 'c'; c++) {
        char text[2] = {(char)c, 0};
        EXPECT_EQ(bpe_add_token(bpe, id++, text, 1, "test", &err), 0);
    }
    id = 256;
    for (size_t i = 0; i < ARRAY_COUNT(merges); i++) {
        char sum[16];
        snprintf(sum, sizeof(sum), "%s%s", merges[i][0], merges[i][1]);
        EXPECT_EQ(bpe_add_token(bpe, id++, sum, strlen(sum), "test", &err), 0);
    }
    for (size_t i = 0; i < ARRAY_COUNT(merges); i++)
        EXPECT_EQ(bpe_add_merge(bpe, merges[i][0], strlen(merges[i][0]), merges[i][1], strlen(merges[i][1]),
                                (uint32_t)i, "test", &err),
                  0);
    return bpe;
}

TEST(short_and_long_words_follow_the_definition) {
    struct bpe *bpe = small_bpe();
    struct bpe_worker *w = bpe_worker_open(bpe);
    uint64_t x = 1;
    for (int round = 0; round < 400; round++) {
        char word[300];
        size_t n = 1 + (size_t)round * 3 / 4;
        for (size_t i = 0; i < n; i++) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            word[i] = (char)("aaabbbc"[(x >> 33) % 7]);
        }
        struct token_list got = {0}, want = {0};
        struct err err;
        EXPECT_EQ(bpe_encode(w, word, n, &got, &err), 0);
        encode_plain(NULL, bpe, word, n, &want);
        EXPECT(got.count == want.count && !memcmp(got.data, want.data, got.count * 4), "word of %zu bytes",
               n);
        token_list_free(&got);
        token_list_free(&want);
    }
    struct token_list ids = {0};
    struct err err;
    EXPECT_EQ(bpe_encode(w, "abz", 3, &ids, &err), -1);
    EXPECT_CONTAINS(err.text, "no token for byte 0x7a");
    token_list_free(&ids);
    bpe_worker_close(w);
    bpe_close(bpe);
}

TEST(the_word_cache_never_gives_another_word) {
    struct tokenizer *t = open_json("llama3");
    struct tokenizer_worker *w = tokenizer_worker_open(t);
    for (int round = 0; round < 2; round++) {
        struct token_list ids = {0};
        struct str text = {0}, back = {0};
        struct err err;
        for (int i = 0; i < 300000; i++) str_printf(&text, "%c%d", " -x"[i % 3], i * 7 % 99991);
        EXPECT_EQ(tokenizer_encode(w, text.data, text.length, &ids, &err), 0);
        EXPECT_EQ(tokenizer_decode(t, ids.data + 1, ids.count - 1, &back, &err), 0); /* without BOS */
        EXPECT(back.length == text.length && !memcmp(back.data, text.data, back.length), "round %d", round);
        token_list_free(&ids);
        str_free(&text);
        str_free(&back);
    }
    tokenizer_worker_close(w);
    tokenizer_close(t);
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

TEST(a_word_of_megabytes_takes_no_quadratic_time) {
    struct tokenizer *t = open_json("llama3");
    struct tokenizer_worker *w = tokenizer_worker_open(t);
    const size_t n = 4 << 20;
    char *text = mem_alloc(n, "test text");
    static const char *const units[] = {"a", "ab", " ", "\n ", "abcdefghijklmnopqrstuvwxyz", "<"};
    for (size_t u = 0; u < ARRAY_COUNT(units); u++) {
        size_t unit = strlen(units[u]);
        struct token_list ids = {0};
        struct err err;
        for (size_t i = 0; i < n; i++) text[i] = units[u][i % unit];
        double start = seconds();
        EXPECT(tokenizer_encode(w, text, n, &ids, &err) == 0, "%s", err.text);
        EXPECT(seconds() - start < 30, "4 MiB of '%s' took %.1f s", units[u], seconds() - start);
        token_list_free(&ids);
    }
    mem_free(text);
    tokenizer_worker_close(w);
    tokenizer_close(t);
}

TEST(encoding_again_allocates_nothing) {
    struct tokenizer *t = open_json("gpt2");
    struct tokenizer_worker *w = tokenizer_worker_open(t);
    static const char text[] = "The quick brown fox, 12345 times; said \"it's <|endoftext|> done\".";
    struct token_list ids = {0};
    struct err err;
    EXPECT_EQ(tokenizer_encode(w, text, strlen(text), &ids, &err), 0);
    ids.count = 0;
    uint64_t before = mem_stats().allocations;
    EXPECT_EQ(tokenizer_encode(w, text, strlen(text), &ids, &err), 0);
    EXPECT_EQ(mem_stats().allocations, before);
    token_list_free(&ids);
    tokenizer_worker_close(w);
    tokenizer_close(t);
}

TEST(text_that_is_not_utf8_is_refused_with_its_place) {
    struct tokenizer *t = open_json("gpt2");
    struct tokenizer_worker *w = tokenizer_worker_open(t);
    struct token_list ids = {0};
    struct err err;
    EXPECT_EQ(tokenizer_encode(w, "ab\xFFz", 4, &ids, &err), -1);
    EXPECT_CONTAINS(err.text, "byte 2");
    token_list_free(&ids);
    tokenizer_worker_close(w);
    tokenizer_close(t);
}

/* ---- files ---- */

static char folder[256];

static void write_text(const char *name, const char *text) {
    char path[512];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    files_write(path, text, strlen(text));
}

TEST(a_folder_tells_end_of_document_and_padding) {
    char *json = files_read(GOLDEN "qwen.json", NULL);
    struct tokenizer_options o = {.type = "HuggingFaceTokenizer", .model = folder};
    struct err err;
    write_text("tokenizer.json", json);
    struct tokenizer *t = tokenizer_open(&o, &err); /* by its well-known name */
    EXPECT(t && tokenizer_eod(t) == 700 && tokenizer_pad(t) == -1, "%s", t ? "eod" : err.text);
    tokenizer_close(t);
    write_text("tokenizer_config.json",
               "{\"eos_token\": {\"content\": \"<|im_end|>\"}, \"pad_token\": \"<|endoftext|>\"}");
    t = tokenizer_open(&o, &err);
    EXPECT(t && tokenizer_eod(t) == 702 && tokenizer_pad(t) == 700, "%s", t ? "eod" : err.text);
    tokenizer_close(t);
    write_text("tokenizer_config.json", "{\"eos_token\": \"<|im_end|>\", \"pad_token\": \"<|im_end|>\"}");
    t = tokenizer_open(&o, &err); /* the same token for both is no padding */
    EXPECT(t && tokenizer_eod(t) == 702 && tokenizer_pad(t) == -1, "%s", t ? "eod" : err.text);
    tokenizer_close(t);
    o.ambiguous_pad = true;
    t = tokenizer_open(&o, &err);
    EXPECT(t && tokenizer_pad(t) == 702, "%s", t ? "pad" : err.text);
    tokenizer_close(t);
    write_text("tokenizer_config.json", "{\"eos_token\": \"<absent>\"}");
    EXPECT(tokenizer_open(&o, &err) == NULL, "accepted");
    EXPECT_CONTAINS(err.text, "eos_token '<absent>' is not in tokenizer.json");
    write_text("tokenizer_config.json", "{}");
    mem_free(json);
}

#define MODEL(more)                                                                                          \
    "{\"model\":{\"type\":\"BPE\"" more ",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"
#define BYTES ",\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}"
static const struct {
    const char *json, *part;
} bad_files[] = {
    {"", "tokenizer.json"},
    {"[]", "expected an object"},
    {"{}", "only byte-level BPE"},
    {"{\"model\":{\"type\":\"Unigram\"}}", "model.type is Unigram"},
    {MODEL(",\"byte_fallback\":true") BYTES "}", "byte_fallback"},
    {MODEL(",\"dropout\":0.1") BYTES "}", "dropout"},
    {MODEL(",\"end_of_word_suffix\":\"</w>\"") BYTES "}", "end_of_word_suffix"},
    {MODEL("") "}", "no ByteLevel"},
    {MODEL("") ",\"pre_tokenizer\":{\"type\":\"Metaspace\"}}", "pre-tokenizer Metaspace"},
    {MODEL("") ",\"normalizer\":{\"type\":\"NFKC\"}" BYTES "}", "normalizer NFKC"},
    {MODEL("") ",\"post_processor\":{\"type\":\"Odd\"}" BYTES "}", "post-processor Odd"},
    {MODEL("") ",\"added_tokens\":[{\"content\":\"x\"}]" BYTES "}", "added_tokens[0]"},
    {MODEL("") ",\"added_tokens\":[{\"content\":\"x\",\"id\":1}]" BYTES "}",
     "has id 1, which another token has"},
    {MODEL("") ",\"added_tokens\":[{\"content\":\"x\",\"id\":99999999999}]" BYTES "}", "outside 0 to"},
    {MODEL("") ",\"added_tokens\":[{\"content\":\"x\",\"id\":3,\"single_word\":true}]" BYTES "}",
     "single_word"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]}" BYTES "}",
     "its sum is not in the vocabulary"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\",\"b\"]]}" BYTES "}",
     "model.merges[0]: merge 'a b': its right part"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"ab\"]}" BYTES "}", "expected two parts"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}" BYTES "}",
     "id 0 is given twice"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}" BYTES "}", "id -1 is outside"},
    {"{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0.5},\"merges\":[]}" BYTES "}", "no integer"},
    {MODEL("") ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},\"behavior\":"
               "\"Isolated\"}}",
     "split pattern, character 1"},
    {MODEL("") ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"\\\\w+\"},\"behavior\":"
               "\"Isolated\"}}",
     "'\\w+'"},
    {MODEL("") ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a{1,2}+\"},\"behavior\":"
               "\"Isolated\"}}",
     "possessive"},
    {MODEL("") ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a&&b]\"},\"behavior\":"
               "\"Isolated\"}}",
     "intersections"},
    {MODEL("") ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?m:.)\"},\"behavior\":"
               "\"Isolated\"}}",
     "group"},
    {MODEL("") ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\"},\"behavior\":"
               "\"MergedWithNext\"}}",
     "behavior MergedWithNext"},
};

TEST(unsupported_or_corrupt_tokenizers_are_refused_by_name) {
    struct tokenizer_options o = {.type = "HuggingFaceTokenizer", .model = folder};
    for (size_t i = 0; i < ARRAY_COUNT(bad_files); i++) {
        struct err err = {{0}};
        write_text("tokenizer.json", bad_files[i].json);
        struct tokenizer *t = tokenizer_open(&o, &err);
        EXPECT(!t, "accepted: %s", bad_files[i].json);
        EXPECT_CONTAINS(err.text, bad_files[i].part);
        EXPECT_CONTAINS(err.text, "tokenizer.json");
        tokenizer_close(t);
    }
    struct err err;
    write_text("vocab.json", "{\"a\":0,\"b\":1,\"ab\":2,\"<|endoftext|>\":3}");
    write_text("merges.txt", "#version: 0.2\na b\na  b\n");
    char vocab[300], merges[300];
    snprintf(vocab, sizeof(vocab), "%s/vocab.json", folder);
    snprintf(merges, sizeof(merges), "%s/merges.txt", folder);
    o = (struct tokenizer_options){.vocab_file = vocab, .merge_file = merges};
    EXPECT(!tokenizer_open(&o, &err), "accepted");
    EXPECT_CONTAINS(err.text, "merges.txt: line 3");
    o.merge_file = NULL;
    EXPECT(!tokenizer_open(&o, &err), "accepted");
    EXPECT_CONTAINS(err.text, "--merge-file");
    o.type = "HuggingFaceTokenizer";
    EXPECT(!tokenizer_open(&o, &err), "accepted");
    EXPECT_CONTAINS(err.text, "--tokenizer-model");
    o.model = "/nonexistent/tokenizer.json";
    EXPECT(!tokenizer_open(&o, &err), "accepted");
    EXPECT_CONTAINS(err.text, "/nonexistent/tokenizer.json: cannot open");
}

TEST(begin) {
    struct err err;
    golden = json_parse_file(GOLDEN "cases.json", &err);
    if (!golden) {
        printf("# %s (run from the repository root)\n", err.text);
        exit(1);
    }
    files_make_folder(folder, sizeof(folder));
}
TEST(end_frees_its_memory) {
    json_free(golden);
    files_remove_folder(folder);
    EXPECT_EQ(mem_stats().live_blocks, 0);
}

RUN_TESTS(CASE(begin), CASE(ids_are_those_of_hugging_face), CASE(gpt2_files_give_the_same_ids),
          CASE(decoding_gives_the_text_back), CASE(special_tokens_around_the_text_can_be_switched_off),
          CASE(short_and_long_words_follow_the_definition), CASE(the_word_cache_never_gives_another_word),
          CASE(a_word_of_megabytes_takes_no_quadratic_time), CASE(encoding_again_allocates_nothing),
          CASE(text_that_is_not_utf8_is_refused_with_its_place),
          CASE(a_folder_tells_end_of_document_and_padding),
          CASE(unsupported_or_corrupt_tokenizers_are_refused_by_name), CASE(end_frees_its_memory))
#else
TEST(without_pcre2_the_error_says_what_to_install) {
    struct err err;
    EXPECT(
        !tokenizer_open(
            &(struct tokenizer_options){.type = "HuggingFaceTokenizer", .model = GOLDEN "gpt2.json"}, &err),
        "opened");
    EXPECT_CONTAINS(err.text, "libpcre2-dev");
}
RUN_TESTS(CASE(without_pcre2_the_error_says_what_to_install))
#endif
