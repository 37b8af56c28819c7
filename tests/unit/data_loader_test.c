/* From files to micro-batches: the tokens are Megatron-LM's (golden), errors name their place, any starting
 * point gives the same stream. */
#include "core/base/mem.h"
#include "core/data/indexed_writer.h"
#include "core/data/loader.h"
#include "tests/golden/dataset_golden.h"
#include "tests/test.h"
#include "tests/unit/data_files.h"

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

static uint64_t fnv_add(uint64_t h, int64_t value) {
    for (int i = 0; i < 8; i++) h = (h ^ ((uint64_t)value >> 8 * i & 255)) * 0x100000001B3u;
    return h;
}

/* The corpora of emit_pipeline in make_dataset_golden.py. */
static void write_corpus(const char *name, int64_t count, int64_t longest, uint64_t x, int64_t factor) {
    struct indexed_writer *w;
    struct err err;
    static int32_t tokens[4096];
    EXPECT_EQ(indexed_writer_open(at(name), INDEXED_U16, &w, &err), 0);
    for (int64_t d = 0; d < count; d++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        int64_t n = 1 + (int64_t)(x >> 33) % longest;
        for (int64_t t = 0; t < n; t++) tokens[t] = (int32_t)((factor * 7919 + d * 131 + t) % 50000);
        EXPECT_EQ(indexed_writer_document(w, tokens, n, &err), 0);
    }
    EXPECT_EQ(indexed_writer_finish(w, &err), 0);
    indexed_writer_close(w);
}

static struct data_options small_options(void) {
    return (struct data_options){.seq_length = 64,
                                 .seed = 1234,
                                 .split = "90,10,0",
                                 .num_samples = {300, 40, 10},
                                 .mid_level_surplus = 0.005,
                                 .vocab_size = 50000,
                                 .eod_id = -1,
                                 .pad_id = -1};
}

static uint64_t hash_dataset(const struct dataset *d, int64_t count) {
    uint64_t h = 0xCBF29CE484222325u;
    int32_t text[257];
    struct err err;
    for (int64_t k = 0; k < count; k++) {
        EXPECT(dataset_sample(d, k, text, &err) == 0, "%s", err.text);
        for (int64_t i = 0; i <= dataset_options(d)->seq_length; i++) h = fnv_add(h, text[i]);
    }
    return h;
}

TEST(blended_samples_are_megatrons) {
    struct err err;
    struct datasets *sets;
    struct data_options o = small_options();
    const char *weighted[] = {"0.3", at("a"), "0.7", at("b")}, *plain[] = {at("a"), at("b")};
    for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
        o.no_mmap = no_mmap;
        o.data_path = (struct data_words){weighted, 4};
        EXPECT(datasets_open(&o, &sets, &err) == 0, "%s", err.text);
        EXPECT(sets->split[DATA_TEST] == NULL, "--split gives nothing to test");
        for (int s = 0; s < 2; s++) {
            EXPECT_EQ(dataset_length(sets->split[s]), golden_pipeline[s].length);
            EXPECT(hash_dataset(sets->split[s], golden_pipeline[s].length) == golden_pipeline[s].tokens,
                   "tokens of %s", data_split_name(s));
        }
        datasets_close(sets);
    }
    o.data_path = (struct data_words){plain, 2};
    for (int c = 2; c < 4; c++) {
        o.num_samples[DATA_TRAIN] = c == 2 ? 100 : 1000000;
        EXPECT(datasets_open(&o, &sets, &err) == 0, "%s", err.text);
        EXPECT_EQ(dataset_length(sets->split[0]), golden_pipeline[c].length);
        EXPECT(hash_dataset(sets->split[0], golden_pipeline[c].length) == golden_pipeline[c].tokens,
               "no weights");
        datasets_close(sets);
    }
}

static struct data_options mock_options(void) {
    struct data_options o = small_options();
    o.mock = true, o.split = NULL, o.seq_length = 256, o.vocab_size = 1024, o.eod_id = 1023;
    for (int s = 0; s < DATA_SPLITS; s++) o.num_samples[s] = 100;
    return o;
}

TEST(mock_samples_are_megatrons) {
    struct err err;
    struct datasets *sets;
    struct data_options o = mock_options();
    EXPECT(datasets_open(&o, &sets, &err) == 0, "%s", err.text);
    for (int s = 0; s < DATA_SPLITS; s++) {
        EXPECT_EQ(dataset_length(sets->split[s]), golden_mock[s].length);
        EXPECT(hash_dataset(sets->split[s], 100) == golden_mock[s].tokens, "%s", data_split_name(s));
    }
    struct str text = {0};
    datasets_describe(sets, &text);
    EXPECT_CONTAINS(text.data, "sequences 33333 to 66667, 68159742 tokens");
    str_free(&text);
    datasets_close(sets);
}

TEST(a_path_per_split_uses_the_whole_file) {
    struct err err;
    struct datasets *sets;
    struct data_options o = small_options();
    const char *train[] = {at("a")}, *valid[] = {"2", at("b")};
    o.split_path[DATA_TRAIN] = (struct data_words){train, 1};
    o.split_path[DATA_VALID] = (struct data_words){valid, 2};
    EXPECT(datasets_open(&o, &sets, &err) == 0, "%s", err.text);
    struct str text = {0};
    datasets_describe(sets, &text);
    EXPECT_CONTAINS(text.data, "a: sequences 0 to 200");
    EXPECT_CONTAINS(text.data, "b: sequences 0 to 500");
    EXPECT_CONTAINS(text.data, "test: no data");
    str_free(&text);
    datasets_close(sets);
    o.split_path[DATA_TRAIN].count = 0;
    EXPECT_EQ(datasets_open(&o, &sets, &err), -1);
    EXPECT_CONTAINS(err.text, "--train-data-path");
}

static void write_text(const char *name, const char *text) {
    files_write(at(name), text, strlen(text));
}

TEST(data_paths_may_come_from_files) {
    struct err err;
    struct datasets *sets;
    struct data_options o = small_options();
    char text[2000];
    snprintf(text, sizeof(text), "0.3 %s\n\t0.7  %s \n", at("a"), at("b"));
    write_text("blend.txt", text);
    o.path_file = at("blend.txt");
    EXPECT(datasets_open(&o, &sets, &err) == 0, "%s", err.text);
    EXPECT(hash_dataset(sets->split[0], golden_pipeline[0].length) == golden_pipeline[0].tokens, "tokens");
    datasets_close(sets);
    o.path_file = NULL;
    o.split_path_file = at("blend.json");
    snprintf(text, sizeof(text),
             "{\"train\": [0.25, \"%s\", \"0.75\", \"%s\"], \"valid\": \"%s\", \"test\": null}", at("a"),
             at("b"), at("b"));
    write_text("blend.json", text);
    EXPECT(datasets_open(&o, &sets, &err) == 0, "%s", err.text);
    struct str shown = {0};
    datasets_describe(sets, &shown);
    EXPECT_CONTAINS(shown.data, "from 2 datasets\n  0.25 ");
    EXPECT_CONTAINS(shown.data, "test: no data");
    str_free(&shown);
    datasets_close(sets);
}

static void expect_open_error(const struct data_options *o, const char *part, const char *other) {
    struct datasets *sets;
    struct err err = {{0}};
    EXPECT(datasets_open(o, &sets, &err) == -1, "accepted: %s", part);
    EXPECT_CONTAINS(err.text, part);
    EXPECT_CONTAINS(err.text, other);
    EXPECT(!strchr(err.text, '\n'), "one line");
}

TEST(an_empty_split_names_file_and_split) {
    struct data_options o = small_options();
    const char *one[] = {at("single")}, *blend[] = {"1", at("a"), "1", at("single")},
               *tiny[] = {at("tiny"), at("a"), at("b")};
    write_corpus("single", 3, 200, 1, 1);
    write_corpus("tiny", 20, 1, 1, 1);
    o.data_path = (struct data_words){one, 1};
    o.split = NULL; /* 969, 30, 1 */
    o.num_samples[DATA_TEST] = 0;
    expect_open_error(&o, "single: the valid split has no sequences", "--split");
    o.data_path = (struct data_words){blend, 4};
    expect_open_error(&o, "single: the valid split has no sequences", "--split");
    o.data_path = (struct data_words){tiny, 3};
    o.split = "50,50,0";
    expect_open_error(&o, "tiny: the train split has 10 tokens, fewer than one sample of 64 + 1",
                      "--seq-length");
    o.split = "0,1,0";
    expect_open_error(&o, "--split 0,1,0 gives nothing to training", "above 0");
}

TEST(contradictory_options_are_refused) {
    struct data_options o = small_options();
    const char *one[] = {at("a")}, *weighted[] = {"0.3", at("a"), "0.7", at("b")};
    expect_open_error(&o, "no data", "--mock-data");
    o.data_path = (struct data_words){one, 1};
    o.mock = true;
    expect_open_error(&o, "exclude each other", "--mock-data");
    o.mock = false;
    o.seed = -1;
    expect_open_error(&o, "--seed -1", "4294967295");
    o.seed = 1, o.seq_length = 0;
    expect_open_error(&o, "--seq-length 0", "at least 1");
    o.seq_length = 8;
    o.data_path = (struct data_words){weighted, 4};
    o.num_samples[DATA_VALID] = -1;
    expect_open_error(&o, "valid", "weights");
    o.data_path = (struct data_words){(const char *[]){at("absent")}, 1};
    expect_open_error(&o, "absent.idx", "No such file");
    o = mock_options();
    o.eod_id = -1;
    expect_open_error(&o, "--mock-data needs", "--vocab-size");
    o = small_options();
    o.path_file = at("absent.txt");
    expect_open_error(&o, "--data-args-path", "absent.txt: cannot open");
    write_text("blend.txt", " \n");
    o.path_file = at("blend.txt");
    expect_open_error(&o, "holds no data paths", "blend.txt");
    o.data_path = (struct data_words){one, 1};
    expect_open_error(&o, "--data-path and --data-args-path exclude", "one of them");
    static const char *const bad[] = {
        "{}", "[]", "{\"train\": 5}", "{\"train\": [true]}", "{\"train\": [\"\"]}", "{"};
    o = small_options();
    o.split_path_file = at("blend.json");
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        write_text("blend.json", bad[i]);
        expect_open_error(&o, "blend.json", "blend.json");
    }
}

TEST(too_small_a_surplus_is_a_clear_error) {
    struct data_options o = small_options();
    /* 301 draws of the only dataset when 300 were demanded cannot be forced from outside, so shrink the
     * surplus below zero: the blend then wants more than was built */
    const char *weighted[] = {"1", at("a"), "1", at("b")};
    o.data_path = (struct data_words){weighted, 4};
    o.mid_level_surplus = -0.5;
    expect_open_error(&o, "raise --mid-level-dataset-surplus", "the train blend draws");
}

TEST(an_id_outside_the_vocabulary_names_file_document_and_token) {
    struct err err;
    struct datasets *sets;
    struct data_options o = small_options();
    struct indexed_writer *w;
    int32_t good[100] = {0}, bad[100] = {0};
    bad[17] = 700;
    EXPECT_EQ(indexed_writer_open(at("vocab"), INDEXED_U16, &w, &err), 0);
    for (int i = 0; i < 10; i++) EXPECT_EQ(indexed_writer_document(w, i == 6 ? bad : good, 100, &err), 0);
    EXPECT_EQ(indexed_writer_finish(w, &err), 0);
    indexed_writer_close(w);
    o.data_path = (struct data_words){(const char *[]){at("vocab")}, 1};
    o.split = "1,0,0", o.vocab_size = 700, o.num_samples[DATA_TRAIN] = 15;
    for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
        o.no_mmap = no_mmap;
        EXPECT(datasets_open(&o, &sets, &err) == 0, "%s", err.text);
        int failures = 0;
        int32_t text[65];
        for (int64_t k = 0; k < dataset_length(sets->split[0]); k++)
            if (dataset_sample(sets->split[0], k, text, &err)) {
                failures++;
                EXPECT_CONTAINS(err.text, "vocab.bin: byte 1234: document 6, token 17: id 700 is outside the "
                                          "vocabulary of 700 ids");
            }
        EXPECT(failures >= 1 && failures <= 2, "%d samples failed", failures);
        /* the loader passes it on, keeps failing, and a seek to good samples heals it */
        struct loader *loader;
        struct batch b;
        EXPECT_EQ(loader_open(sets->split[0], 1, 0, 1, 0, &loader, &err), 0);
        int64_t good_batches = 0;
        while (!loader_next(loader, &b, &err)) good_batches++;
        EXPECT(good_batches < dataset_length(sets->split[0]), "no error came");
        EXPECT_CONTAINS(err.text, "document 6");
        EXPECT_EQ(loader_next(loader, &b, &err), -1);
        if (good_batches) {
            loader_seek(loader, 0);
            EXPECT(loader_next(loader, &b, &err) == 0 && b.first_sample == 0, "after a seek");
        }
        loader_close(loader);
        datasets_close(sets);
    }
}

TEST(a_truncated_bin_stops_the_loader_and_does_not_crash_it) {
    struct err err;
    struct datasets *sets;
    struct data_options o = small_options();
    int32_t text[65];
    write_corpus("torn", 100, 60, 5, 3);
    o.data_path = (struct data_words){(const char *[]){at("torn")}, 1};
    EXPECT_EQ(datasets_open(&o, &sets, &err), 0);
    EXPECT_EQ(truncate(at("torn.bin"), 100), 0);
    EXPECT_EQ(dataset_sample(sets->split[0], 0, text, &err), -1);
    EXPECT_CONTAINS(err.text, "torn.bin: was truncated");
    datasets_close(sets);
}

TEST(rows_are_shifted_masked_and_numbered_as_megatron_does) {
    struct data_options o = small_options();
    /* tokens 5 9 7 9 3, labels 9 7 9 3 4; 9 ends a document */
    static const int32_t text[] = {5, 9, 7, 9, 3, 4};
    int32_t t[5], l[5], p[5];
    float m[5];
    o.seq_length = 5, o.eod_id = 9;
    batch_fill_row(&o, text, t, l, p, m);
    for (int i = 0; i < 5; i++)
        EXPECT(t[i] == text[i] && l[i] == text[i + 1] && p[i] == i && m[i] == 1, "plain, %d", i);
    o.reset_position_ids = o.eod_mask_loss = true;
    batch_fill_row(&o, text, t, l, p, m);
    static const int32_t positions[] = {0, 1, 0, 1, 0};
    static const float mask[] = {1, 0, 1, 0, 1};
    for (int i = 0; i < 5; i++) EXPECT(p[i] == positions[i] && m[i] == mask[i], "reset, %d", i);
    o.reset_position_ids = o.eod_mask_loss = false;
    o.pad_id = 7;
    batch_fill_row(&o, text, t, l, p, m);
    static const float pad_mask[] = {1, 0, 1, 1, 1};
    for (int i = 0; i < 5; i++)
        EXPECT(t[i] == (text[i] == 7 ? 0 : text[i]) && l[i] == (text[i + 1] == 7 ? 0 : text[i + 1]) &&
                   m[i] == pad_mask[i],
               "padding, %d", i);
}

/* Row r of micro-batch m is compared with the dataset itself. */
static void expect_batch(const struct dataset *d, const struct batch *b, int64_t first) {
    int32_t text[257];
    struct err err;
    EXPECT_EQ(b->first_sample, first);
    for (int64_t row = 0; row < b->micro_batch_size; row++) {
        EXPECT_EQ(dataset_sample(d, first + row, text, &err), 0);
        size_t bytes = (size_t)b->seq_length * 4;
        EXPECT(!memcmp(b->tokens + row * b->seq_length, text, bytes), "tokens of sample %lld",
               (long long)(first + row));
        EXPECT(!memcmp(b->labels + row * b->seq_length, text + 1, bytes), "labels");
    }
}

TEST(any_consumed_count_and_layout_gives_the_same_stream) {
    struct err err;
    struct datasets *sets;
    struct data_options o = mock_options();
    EXPECT_EQ(datasets_open(&o, &sets, &err), 0);
    const struct dataset *d = sets->split[DATA_TRAIN];
    for (int64_t consumed = 0; consumed < 30; consumed += 3)
        for (int dp = 1; dp <= 3; dp++)
            for (int rank = 0; rank < dp; rank++)
                for (int64_t micro = 1; micro <= 4; micro *= 2) {
                    struct loader *loader;
                    struct batch b;
                    EXPECT_EQ(loader_open(d, micro, rank, dp, consumed, &loader, &err), 0);
                    for (int64_t m = 0; m < 7; m++) {
                        EXPECT(loader_next(loader, &b, &err) == 0, "%s", err.text);
                        expect_batch(d, &b, consumed + (m * dp + rank) * micro);
                    }
                    loader_seek(loader, consumed + 5);
                    for (int64_t m = 0; m < 3; m++) {
                        EXPECT_EQ(loader_next(loader, &b, &err), 0);
                        expect_batch(d, &b, consumed + 5 + (m * dp + rank) * micro);
                    }
                    loader_close(loader);
                }
    datasets_close(sets);
}

TEST(the_end_of_the_data_is_an_error_and_a_tail_is_dropped) {
    struct err err;
    struct datasets *sets;
    struct data_options o = small_options();
    o.data_path = (struct data_words){(const char *[]){at("a")}, 1};
    o.num_samples[DATA_TRAIN] = -1;
    EXPECT_EQ(datasets_open(&o, &sets, &err), 0);
    int64_t length = dataset_length(sets->split[0]);
    for (int64_t consumed = 0; consumed < 4; consumed++) {
        struct loader *loader;
        struct batch b;
        int64_t count = 0;
        EXPECT_EQ(loader_open(sets->split[0], 2, 0, 2, consumed, &loader, &err), 0);
        while (!loader_next(loader, &b, &err)) count++;
        EXPECT_EQ(count, (length - consumed) / 4);
        EXPECT_CONTAINS(err.text, "the data ends at sample");
        loader_close(loader);
    }
    datasets_close(sets);
}

TEST(loading_allocates_nothing) {
    struct err err;
    struct datasets *sets;
    struct data_options o = small_options();
    const char *weighted[] = {"0.3", at("a"), "0.7", at("b")};
    o.data_path = (struct data_words){weighted, 4};
    EXPECT_EQ(datasets_open(&o, &sets, &err), 0);
    struct loader *loader;
    struct batch b;
    EXPECT_EQ(loader_open(sets->split[0], 4, 0, 1, 0, &loader, &err), 0);
    uint64_t before = mem_stats().allocations;
    for (int i = 0; i < 70; i++) EXPECT_EQ(loader_next(loader, &b, &err), 0);
    EXPECT_EQ(mem_stats().allocations, before);
    loader_close(loader);
    datasets_close(sets);
}

TEST(begin) {
    files_make_folder(folder, sizeof(folder));
    write_corpus("a", 200, 90, 11, 1);
    write_corpus("b", 500, 40, 12, 2);
}
TEST(end_removes_its_files_and_frees_its_memory) {
    files_remove_folder(folder);
    EXPECT_EQ(mem_stats().live_blocks, 0);
}

RUN_TESTS(CASE(begin), CASE(blended_samples_are_megatrons), CASE(mock_samples_are_megatrons),
          CASE(a_path_per_split_uses_the_whole_file), CASE(data_paths_may_come_from_files),
          CASE(an_empty_split_names_file_and_split), CASE(contradictory_options_are_refused),
          CASE(too_small_a_surplus_is_a_clear_error),
          CASE(an_id_outside_the_vocabulary_names_file_document_and_token),
          CASE(a_truncated_bin_stops_the_loader_and_does_not_crash_it),
          CASE(rows_are_shifted_masked_and_numbered_as_megatron_does),
          CASE(any_consumed_count_and_layout_gives_the_same_stream),
          CASE(the_end_of_the_data_is_an_error_and_a_tail_is_dropped), CASE(loading_allocates_nothing),
          CASE(end_removes_its_files_and_frees_its_memory))
