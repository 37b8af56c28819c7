/* The tokenizers without files, and the vocabulary facts that training takes from a tokenizer. */
#include "core/base/mem.h"
#include "core/data/tokenizer.h"
#include "tests/test.h"

static struct tokenizer *must_open(const struct tokenizer_options *o) {
    struct err err;
    struct tokenizer *t = tokenizer_open(o, &err);
    EXPECT(t != NULL, "%s", err.text);
    return t;
}

TEST(bytes_are_their_own_ids) {
    struct tokenizer *t = must_open(&(struct tokenizer_options){.type = "ByteTokenizer"});
    struct tokenizer_worker *w = tokenizer_worker_open(t);
    struct token_list ids = {0};
    struct str back = {0};
    struct err err;
    char all[256];
    for (int i = 0; i < 256; i++) all[i] = (char)i;
    EXPECT(tokenizer_vocab_size(t) == 257 && tokenizer_eod(t) == 256 && tokenizer_pad(t) == -1, "vocabulary");
    EXPECT_EQ(tokenizer_encode(w, all, 256, &ids, &err), 0);
    for (int i = 0; i < 256; i++) EXPECT_EQ(ids.data[i], i);
    EXPECT_EQ(tokenizer_decode(t, ids.data, ids.count, &back, &err), 0);
    EXPECT(back.length == 256 && !memcmp(back.data, all, 256), "the bytes come back");
    EXPECT_EQ(tokenizer_encode(w, "x", 1, &ids, &err), 0);
    EXPECT(ids.count == 257 && ids.data[256] == 'x', "ids are appended");
    str_free(&back);
    token_list_free(&ids);
    tokenizer_worker_close(w);
    tokenizer_close(t);
}

TEST(null_tokenizer_reads_integers) {
    struct tokenizer *t = must_open(&(struct tokenizer_options){
        .type = "NullTokenizer", .vocab_size = 100, .null_eod_id = -1, .null_pad_id = -1});
    struct tokenizer_worker *w = tokenizer_worker_open(t);
    struct token_list ids = {0};
    struct str back = {0};
    struct err err;
    EXPECT(tokenizer_vocab_size(t) == 100 && tokenizer_eod(t) == 99 && tokenizer_pad(t) == -1, "vocabulary");
    EXPECT_EQ(tokenizer_encode(w, " 5 17  99\n0", 11, &ids, &err), 0);
    EXPECT(ids.count == 4 && ids.data[0] == 5 && ids.data[2] == 99 && ids.data[3] == 0, "%zu ids", ids.count);
    EXPECT_EQ(tokenizer_decode(t, ids.data, ids.count, &back, &err), 0);
    EXPECT_STR(back.data, "5 17 99 0");
    static const char *const bad[][2] = {{"1 x 2", "byte 2: 'x 2' is no id"},
                                         {"1 100", "byte 2: id 100 is outside the vocabulary of 100"},
                                         {"-1", "no id"},
                                         {"1.5", "no id"},
                                         {"99999999999999999999999", "outside the vocabulary"}};
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        EXPECT_EQ(tokenizer_encode(w, bad[i][0], strlen(bad[i][0]), &ids, &err), -1);
        EXPECT_CONTAINS(err.text, bad[i][1]);
    }
    str_free(&back);
    token_list_free(&ids);
    tokenizer_worker_close(w);
    tokenizer_close(t);
    t = must_open(&(struct tokenizer_options){
        .type = "NullTokenizer", .vocab_size = 100, .null_eod_id = 3, .null_pad_id = 4});
    EXPECT(tokenizer_eod(t) == 3 && tokenizer_pad(t) == 4, "chosen ids");
    tokenizer_close(t);
    t = must_open(&(struct tokenizer_options){
        .type = "NullTokenizer", .vocab_size = 100, .null_eod_id = 3, .null_pad_id = 3});
    EXPECT(tokenizer_pad(t) == -1, "padding that is also the end of document is none");
    tokenizer_close(t);
}

TEST(impossible_choices_are_refused) {
    static const struct {
        struct tokenizer_options o;
        const char *part;
    } bad[] = {
        {{.type = "NullTokenizer"}, "--vocab-size"},
        {{.type = "NullTokenizer", .vocab_size = 10, .null_eod_id = 10}, "--null-tokenizer-eod-id 10"},
        {{.type = "NullTokenizer", .vocab_size = 10, .null_eod_id = 1, .null_pad_id = 12},
         "--null-tokenizer-pad-id 12"},
        {{.type = "SentencePieceTokenizer"}, "--tokenizer-type SentencePieceTokenizer is not supported"}};
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct err err = {{0}};
        EXPECT(!tokenizer_open(&bad[i].o, &err), "accepted");
        EXPECT_CONTAINS(err.text, bad[i].part);
    }
}

TEST(hash_tells_tokenizers_apart) {
    struct tokenizer *a = must_open(&(struct tokenizer_options){.type = "ByteTokenizer"});
    struct tokenizer *b = must_open(&(struct tokenizer_options){
        .type = "NullTokenizer", .vocab_size = 257, .null_eod_id = 5, .null_pad_id = -1});
    struct tokenizer *c = must_open(&(struct tokenizer_options){
        .type = "NullTokenizer", .vocab_size = 258, .null_eod_id = 5, .null_pad_id = -1});
    struct tokenizer *d = must_open(&(struct tokenizer_options){.type = "ByteTokenizer"});
    EXPECT(tokenizer_hash(a) != tokenizer_hash(b) && tokenizer_hash(b) != tokenizer_hash(c), "different");
    EXPECT(tokenizer_hash(a) == tokenizer_hash(d), "equal");
    tokenizer_close(a), tokenizer_close(b), tokenizer_close(c), tokenizer_close(d);
    EXPECT_EQ(mem_stats().live_blocks, 0);
}

RUN_TESTS(CASE(bytes_are_their_own_ids), CASE(null_tokenizer_reads_integers),
          CASE(impossible_choices_are_refused), CASE(hash_tells_tokenizers_apart))
