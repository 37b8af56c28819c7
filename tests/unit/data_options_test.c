/* Flags to data options: the numbers of samples that Megatron-LM would ask for, the vocabulary, the sources.
 */
#include "core/base/mem.h"
#include "core/config/config.h"
#include "core/data/options.h"
#include "tests/test.h"

#define MODEL                                                                                                \
    "pretrain_gpt", "--num-layers", "2", "--hidden-size", "64", "--num-attention-heads", "4",                \
        "--seq-length", "32", "--max-position-embeddings", "32", "--micro-batch-size", "2", "--lr", "1e-3",  \
        "--device", "cpu"

static int parse(struct config *cfg, int argc, const char *const *argv) {
    struct err err;
    if (config_parse(argc, argv, cfg, &err) || config_validate(cfg, NULL, 0, &err)) {
        EXPECT(false, "%s", err.text);
        return -1;
    }
    return 0;
}

static int options_of(struct config *cfg, struct data_options *o, int64_t *vocab_p, int argc,
                      const char *const *argv) {
    struct err err;
    struct tokenizer *t;
    if (parse(cfg, argc, argv)) return -1;
    EXPECT(tokenizer_open_from_config(cfg, &t, &err) == 0, "%s", err.text);
    EXPECT(data_options_from_config(cfg, t, o, &err) == 0, "%s", err.text);
    *vocab_p = tokenizer_vocab_size(t);
    tokenizer_close(t);
    return 0;
}
#define OPTIONS(cfg, o, vocab, ...)                                                                          \
    options_of(cfg, o, vocab, (int)ARRAY_COUNT(((const char *[]){MODEL, __VA_ARGS__})),                      \
               (const char *[]){MODEL, __VA_ARGS__})

TEST(iterations_decide_the_samples) {
    struct config cfg;
    struct data_options o;
    int64_t vocab;
    if (OPTIONS(&cfg, &o, &vocab, "--mock-data", "--vocab-size", "1000", "--train-iters", "25",
                "--global-batch-size", "8", "--eval-iters", "3", "--eval-interval", "10"))
        return;
    EXPECT_EQ(o.num_samples[DATA_TRAIN], 200);
    EXPECT_EQ(o.num_samples[DATA_VALID], (25 / 10 + 1) * 3 * 8);
    EXPECT_EQ(o.num_samples[DATA_TEST], 3 * 8);
    EXPECT(o.mock && !o.split && o.vocab_size == 1000 && o.mock_vocab_size == 1000 && o.eod_id == 999 &&
               o.pad_id == -1,
           "mock data");
    EXPECT(o.seed == 1234 && o.seq_length == 32, "seed and length");
    config_free(&cfg);
}

TEST(samples_are_taken_as_given_also_under_a_ramp) {
    struct config cfg;
    struct data_options o;
    int64_t vocab;
    if (OPTIONS(&cfg, &o, &vocab, "--mock-data", "--vocab-size", "1000", "--train-samples", "1003",
                "--lr-decay-samples", "1003", "--global-batch-size", "8", "--rampup-batch-size", "4", "2",
                "100", "--eval-iters", "0"))
        return;
    EXPECT_EQ(o.num_samples[DATA_TRAIN], 1003);
    EXPECT(o.num_samples[DATA_VALID] == 0 && o.num_samples[DATA_TEST] == 0, "no evaluation");
    config_free(&cfg);
}

TEST(files_splits_and_flags_arrive) {
    struct config cfg;
    struct data_options o;
    int64_t vocab;
    if (OPTIONS(&cfg, &o, &vocab, "--data-path", "0.3", "a", "0.7", "b", "--split", "90,10,0",
                "--tokenizer-type", "ByteTokenizer", "--train-iters", "5", "--global-batch-size", "2",
                "--eval-iters", "1", "--eval-interval", "2", "--start-eval-at-iter", "3",
                "--reset-position-ids", "--eod-mask-loss", "--seed", "7"))
        return;
    EXPECT(!o.mock && o.data_path.count == 4 && o.seed == 7, "data path");
    EXPECT_STR(o.data_path.words[1], "a");
    EXPECT_STR(o.split, "90,10,0");
    EXPECT(o.vocab_size == 257 && vocab == 257 && o.eod_id == 256, "byte vocabulary");
    EXPECT(o.reset_position_ids && o.eod_mask_loss, "masks");
    EXPECT_EQ(o.num_samples[DATA_VALID], (2 - 1 + 1) * 2); /* at iteration 4, and at the end */
    config_free(&cfg);
    if (OPTIONS(&cfg, &o, &vocab, "--mock-data", "--split", "8,1,1", "--vocab-size", "50", "--train-iters",
                "5", "--global-batch-size", "2", "--eval-iters", "0"))
        return;
    EXPECT_STR(o.split, "8,1,1");
    config_free(&cfg);
}

TEST(memory_is_given_back) {
    EXPECT_EQ(mem_stats().live_blocks, 0);
}

RUN_TESTS(CASE(iterations_decide_the_samples), CASE(samples_are_taken_as_given_also_under_a_ramp),
          CASE(files_splits_and_flags_arrive), CASE(memory_is_given_back))
