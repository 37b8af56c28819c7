/* The order of samples is Megatron-LM's: every expected value comes from tests/golden/make_dataset_golden.py,
 * which restates the rules with NumPy's own generators. */
#include "core/base/mem.h"
#include "core/data/blend.h"
#include "core/data/gpt_index.h"
#include "core/data/mock.h"
#include "core/data/mt19937.h"
#include "core/data/split.h"
#include "tests/golden/dataset_golden.h"
#include "tests/test.h"

enum { ORDER_CASES = sizeof(golden_index) / sizeof(golden_index[0]) };

static uint64_t fnv_add(uint64_t h, int64_t value) {
    for (int i = 0; i < 8; i++) h = (h ^ ((uint64_t)value >> 8 * i & 255)) * 0x100000001B3u;
    return h;
}
static const uint64_t fnv_start = 0xCBF29CE484222325u;

static uint64_t fnv_u32(const uint32_t *v, int64_t n) {
    uint64_t h = fnv_start;
    for (int64_t i = 0; i < n; i++) h = fnv_add(h, v[i]);
    return h;
}

TEST(generator_gives_numpy_words_and_doubles) {
    struct mt19937 rng;
    mt19937_seed(&rng, 1234);
    for (size_t i = 0; i < ARRAY_COUNT(golden_u32); i++) EXPECT_EQ(mt19937_u32(&rng), golden_u32[i]);
    mt19937_seed(&rng, 5);
    for (size_t i = 0; i < ARRAY_COUNT(golden_double); i++)
        EXPECT_NEAR(mt19937_double(&rng), golden_double[i], 0);
}

TEST(shuffle_is_numpy_legacy_shuffle) {
    for (size_t c = 0; c < ARRAY_COUNT(golden_shuffle); c++) {
        struct mt19937 rng;
        uint32_t five[5] = {0, 1, 2, 3, 4},
                 *a = mem_new_array(uint32_t, (size_t)golden_shuffle[c].count, "test");
        for (int64_t i = 0; i < golden_shuffle[c].count; i++) a[i] = (uint32_t)i;
        mt19937_seed(&rng, golden_shuffle[c].seed);
        mt19937_shuffle_u32(&rng, a, golden_shuffle[c].count);
        EXPECT(fnv_u32(a, golden_shuffle[c].count) == golden_shuffle[c].first, "case %zu", c);
        mt19937_shuffle_u32(&rng, five, 5);
        EXPECT(fnv_u32(five, 5) == golden_shuffle[c].second, "state after case %zu", c);
        mem_free(a);
    }
}

TEST(wide_intervals_take_two_words_high_first) {
    struct mt19937 a, b;
    mt19937_seed(&a, 3);
    mt19937_seed(&b, 3);
    uint64_t want;
    do {
        want = (uint64_t)mt19937_u32(&b) << 32;
        want = (want | mt19937_u32(&b)) & 0x1FFFFFFFFFu;
    } while (want > 0x1234567890u);
    EXPECT(mt19937_interval(&a, 0x1234567890u) == want, "two words");
}

static int32_t *make_lengths(int64_t count, int64_t longest, uint64_t x) {
    int32_t *v = mem_new_array(int32_t, (size_t)count, "test lengths");
    for (int64_t i = 0; i < count; i++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        v[i] = (int32_t)(1 + (int64_t)(x >> 33) % longest);
    }
    return v;
}

static int build_case(int c, struct gpt_index *index) {
    struct err err;
    int32_t *made = golden_index[c].lengths
                        ? NULL
                        : make_lengths(golden_index[c].count, golden_index[c].longest, golden_index[c].seed);
    struct gpt_index_request r = {
        .name = "golden",
        .split = "train",
        .lengths = made ? made : golden_index[c].lengths,
        .first = golden_index[c].first,
        .end = golden_index[c].end,
        .seq_length = golden_index[c].seq,
        .num_samples = golden_index[c].wanted,
        .seed = golden_index[c].seed,
    };
    int status = gpt_index_build(&r, index, &err);
    EXPECT(status == 0, "case %d: %s", c, err.text);
    mem_free(made);
    return status;
}

TEST(indices_are_megatrons) {
    for (int c = 0; c < ORDER_CASES; c++) {
        struct gpt_index x;
        if (build_case(c, &x)) continue;
        uint64_t rows = fnv_start;
        for (int64_t i = 0; i <= x.samples; i++)
            rows = fnv_add(fnv_add(rows, x.start_position[i]), x.start_offset[i]);
        EXPECT(x.epochs == golden_index[c].epochs && x.separate_last_epoch == golden_index[c].separate,
               "case %d: %lld epochs", c, (long long)x.epochs);
        EXPECT(x.positions == golden_index[c].positions && x.samples == golden_index[c].samples, "case %d",
               c);
        EXPECT(fnv_u32(x.documents, x.positions) == golden_index[c].documents, "document index of case %d",
               c);
        EXPECT(rows == golden_index[c].rows, "sample index of case %d", c);
        EXPECT(fnv_u32(x.shuffle, x.samples) == golden_index[c].shuffle, "shuffle index of case %d", c);
        gpt_index_free(&x);
    }
}

TEST(indices_of_a_small_case_in_full) {
    struct gpt_index x;
    if (build_case(1, &x)) return;
    for (int64_t i = 0; i < x.positions; i++) EXPECT_EQ(x.documents[i], golden_documents_full[i]);
    for (int64_t i = 0; i <= x.samples; i++) {
        EXPECT_EQ(x.start_position[i], golden_rows_full[2 * i]);
        EXPECT_EQ(x.start_offset[i], golden_rows_full[2 * i + 1]);
    }
    for (int64_t i = 0; i < x.samples; i++) EXPECT_EQ(x.shuffle[i], golden_shuffle_full[i]);
    gpt_index_free(&x);
}

TEST(index_without_sequences_or_tokens_is_a_clear_error) {
    static const int32_t none[4] = {0, 0, 0, 0};
    struct err err;
    struct gpt_index x;
    struct gpt_index_request r = {
        .name = "corpus", .split = "valid", .lengths = none, .seq_length = 4, .num_samples = 3};
    EXPECT_EQ(gpt_index_build(&r, &x, &err), -1);
    EXPECT_CONTAINS(err.text, "corpus: the valid split has no sequences");
    r.end = 4;
    EXPECT_EQ(gpt_index_build(&r, &x, &err), -1);
    EXPECT_CONTAINS(err.text, "hold no tokens");
    static const int32_t one[1] = {1};
    r.lengths = one, r.end = 1, r.num_samples = INT64_C(1) << 60;
    EXPECT_EQ(gpt_index_build(&r, &x, &err), -1);
    r.num_samples = INT64_C(1) << 40;
    EXPECT_EQ(gpt_index_build(&r, &x, &err), -1);
    EXPECT_CONTAINS(err.text, "exceed 2^32");
    r.seq_length = 1000, r.num_samples = 5000000; /* few samples, but too many epochs */
    EXPECT_EQ(gpt_index_build(&r, &x, &err), -1);
    EXPECT_CONTAINS(err.text, "exceed 2^32");
}

TEST(splits_round_as_python_does) {
    for (size_t i = 0; i < ARRAY_COUNT(golden_split); i++) {
        struct split_range ranges[DATA_SPLITS];
        struct err err;
        EXPECT(split_parse(golden_split[i].text, ranges, &err) == 0, "%s", err.text);
        for (int s = 0; s < DATA_SPLITS; s++) {
            int64_t first, end;
            split_cut(ranges[s], golden_split[i].sequences, &first, &end);
            EXPECT(first == golden_split[i].at[2 * s] && end == golden_split[i].at[2 * s + 1],
                   "--split %s of %lld: %s", golden_split[i].text, (long long)golden_split[i].sequences,
                   data_split_name(s));
        }
    }
}

TEST(malformed_splits_are_refused) {
    static const char *const bad[] = {"", "0,0,0", "1,2,3,4", "1.2.3", "a,b", "1e3"};
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct split_range ranges[DATA_SPLITS];
        struct err err;
        EXPECT(split_parse(bad[i], ranges, &err) == -1, "--split '%s' was accepted", bad[i]);
        EXPECT_CONTAINS(err.text, "--split");
    }
}

TEST(blends_are_megatrons) {
    for (size_t c = 0; c < ARRAY_COUNT(golden_blend); c++) {
        double w[300];
        int n = golden_blend[c].count;
        static uint16_t part[2000];
        static uint32_t sample[2000];
        int64_t drawn[300], sum = 0;
        memcpy(w, golden_blend[c].weights, sizeof(w));
        blend_normalize(w, n);
        EXPECT(w[0] == golden_blend[c].first && w[n - 1] == golden_blend[c].last, "normalising, case %zu", c);
        blend_order(w, n, golden_blend[c].size, part, sample, drawn);
        uint64_t h = fnv_start;
        for (int64_t i = 0; i < golden_blend[c].size; i++) h = fnv_add(fnv_add(h, part[i]), sample[i]);
        EXPECT(h == golden_blend[c].order, "order of case %zu", c);
        for (int d = 0; d < n; d++) sum += drawn[d];
        EXPECT_EQ(sum, golden_blend[c].size);
    }
    static const int64_t lengths[] = {7, 1, 300, 41};
    static uint16_t part[349];
    static uint32_t sample[349];
    blend_order_exhaustive(lengths, 4, part, sample);
    uint64_t h = fnv_start;
    for (int i = 0; i < 349; i++) h = fnv_add(fnv_add(h, part[i]), sample[i]);
    EXPECT(h == golden_exhaustive, "exhaustive blend");
    for (size_t i = 0; i < ARRAY_COUNT(golden_share); i++)
        EXPECT_EQ(blend_share(golden_share[i].size, golden_share[i].weight, golden_share[i].surplus),
                  golden_share[i].share);
}

TEST(blend_lists_are_parsed_or_refused) {
    struct blend b;
    struct err err;
    EXPECT_EQ(blend_parse((const char *[]){"0.3", " a ", "70", "b"}, 4, "--data-path", &b, &err), 0);
    EXPECT(b.count == 2 && b.weights && b.weights[1] == 70, "weights");
    EXPECT_STR(b.prefixes[0], "a");
    blend_free(&b);
    EXPECT_EQ(blend_parse((const char *[]){"x", "y"}, 2, "--data-path", &b, &err), 0);
    EXPECT(b.count == 2 && !b.weights, "two paths without weights");
    blend_free(&b);
    EXPECT_EQ(blend_parse((const char *[]){"1", "y", "z"}, 3, "--data-path", &b, &err), 0);
    EXPECT(b.count == 3 && !b.weights, "an odd list has no weights");
    blend_free(&b);
    EXPECT_EQ(blend_parse((const char *[]){"0.3", "a", "b", "c"}, 4, "--data-path", &b, &err), -1);
    EXPECT_CONTAINS(err.text, "'b' stands where a weight is expected");
    EXPECT_EQ(blend_parse((const char *[]){"0", "a", "1", "c"}, 4, "--data-path", &b, &err), -1);
    EXPECT_CONTAINS(err.text, "above 0");
    EXPECT_EQ(blend_parse((const char *[]){"-1", "a", "1", "c"}, 4, "--valid-data-path", &b, &err), -1);
    EXPECT_CONTAINS(err.text, "--valid-data-path");
}

TEST(mock_lengths_are_numpy_default_rng) {
    int32_t *v = mem_new_array(int32_t, MOCK_DOCUMENTS, "test lengths");
    mock_lengths(v);
    uint64_t h = fnv_start;
    for (int i = 0; i < MOCK_DOCUMENTS; i++) h = fnv_add(h, v[i]);
    EXPECT(h == golden_mock_lengths, "first %d %d %d", v[0], v[1], v[2]);
    mem_free(v);
}

RUN_TESTS(CASE(generator_gives_numpy_words_and_doubles), CASE(shuffle_is_numpy_legacy_shuffle),
          CASE(wide_intervals_take_two_words_high_first), CASE(indices_are_megatrons),
          CASE(indices_of_a_small_case_in_full), CASE(index_without_sequences_or_tokens_is_a_clear_error),
          CASE(splits_round_as_python_does), CASE(malformed_splits_are_refused), CASE(blends_are_megatrons),
          CASE(blend_lists_are_parsed_or_refused), CASE(mock_lengths_are_numpy_default_rng))
