/* The command line means what it means to Megatron-LM, and what it cannot mean is said with a remedy. */
#include "core/config/config.h"
#include "core/base/mem.h"
#include "tests/test.h"

#define PARSE(cfg, err, ...)                                                                                 \
    config_parse((int)ARRAY_COUNT(((const char *[]){"pretrain_gpt", __VA_ARGS__})),                          \
                 (const char *[]){"pretrain_gpt", __VA_ARGS__}, (cfg), (err))

static struct config cfg;
static struct err err;

#define REFUSES(part, ...)                                                                                   \
    do {                                                                                                     \
        if (!PARSE(&cfg, &err, __VA_ARGS__)) {                                                               \
            EXPECT(false, "taken, but should say: %s", part);                                                \
            config_free(&cfg);                                                                               \
        } else {                                                                                             \
            EXPECT_CONTAINS(err.text, part);                                                                 \
            EXPECT(!strchr(err.text, '\n'), "not one line: %s", err.text);                                   \
        }                                                                                                    \
    } while (0)

TEST(nothing_given_is_every_default) {
    EXPECT(!PARSE(&cfg, &err, "--bf16"), "%s", err.text);
    EXPECT_EQ(config_is_set(&cfg, num_layers), false);
    EXPECT_EQ(cfg.num_layers, CONFIG_UNSET_INT);
    EXPECT_EQ(config_is_set(&cfg, lr), false);
    EXPECT(isnan(cfg.lr), "lr is %g", cfg.lr);
    EXPECT_EQ(cfg.recompute_granularity, CONFIG_UNSET_CHOICE);
    EXPECT_EQ(cfg.recompute_modules.count, -1);
    EXPECT_EQ(cfg.iterations_to_skip.count, 0);
    EXPECT_EQ(config_is_set(&cfg, iterations_to_skip), true);
    EXPECT_EQ(cfg.add_bias_linear, true);
    EXPECT_EQ(cfg.bf16, true);
    EXPECT_EQ(cfg.fp16, false);
    EXPECT_NEAR(cfg.adam_beta2, 0.999, 0);
    EXPECT(!cfg.save, "save is set");
    EXPECT_STR(cfg.profile_trace_file, "trace.json");
    EXPECT_EQ(config_is_given(&cfg, bf16), true);
    EXPECT_EQ(config_is_given(&cfg, fp16), false);
    config_free(&cfg);
}

TEST(every_kind_is_read) {
    EXPECT(!PARSE(&cfg, &err, "--num-layers", "12", "--lr=6.0e-5", "--disable-bias-linear", "--swiglu",
                  "--save", "a b", "--recompute-granularity", "full", "--recompute-modules", "core_attn",
                  "mlp", "--device-memory-limit", "1.5GiB", "--profile-ranks", "0", "3", "--norm-epsilon",
                  ".00001", "--null-tokenizer-pad-id", "-1"),
           "%s", err.text);
    EXPECT_EQ(cfg.num_layers, 12);
    EXPECT_NEAR(cfg.lr, 6e-5, 0);
    EXPECT_EQ(cfg.add_bias_linear, false);
    EXPECT_EQ(cfg.swiglu, true);
    EXPECT_STR(cfg.save, "a b");
    EXPECT_EQ(cfg.recompute_granularity, RECOMPUTE_GRANULARITY_FULL);
    EXPECT_EQ(cfg.recompute_modules.count, 2);
    EXPECT_STR(cfg.recompute_modules.items[0], "core_attn");
    EXPECT_STR(cfg.recompute_modules.items[1], "mlp");
    EXPECT_EQ(cfg.device_memory_limit, 3LL << 29);
    EXPECT_EQ(cfg.profile_ranks.count, 2);
    EXPECT_EQ(cfg.profile_ranks.items[1], 3);
    EXPECT_NEAR(cfg.layernorm_epsilon, 1e-5, 0);
    EXPECT_EQ(cfg.null_tokenizer_pad_id, -1);
    config_free(&cfg);
}

TEST(the_last_one_wins) {
    EXPECT(!PARSE(&cfg, &err, "--lr", "1", "--lr=2", "--data-path", "a", "b", "--data-path", "c", "--seed",
                  "1", "--seed", "2"),
           "%s", err.text);
    EXPECT_NEAR(cfg.lr, 2, 0);
    EXPECT_EQ(cfg.seed, 2);
    EXPECT_EQ(cfg.data_path.count, 1);
    EXPECT_STR(cfg.data_path.items[0], "c");
    config_free(&cfg);
}

TEST(none_unsets_what_can_be_unset) {
    EXPECT(!PARSE(&cfg, &err, "--recompute-granularity", "full", "--recompute-granularity", "None", "--lr",
                  "None", "--save", "None", "--num-layers", "None", "--recompute-modules", "None",
                  "--device-memory-limit=None"),
           "%s", err.text);
    EXPECT_EQ(cfg.recompute_granularity, CONFIG_UNSET_CHOICE);
    EXPECT(isnan(cfg.lr) && !cfg.save, "lr or save is set");
    EXPECT_EQ(cfg.num_layers, CONFIG_UNSET_INT);
    EXPECT_EQ(cfg.recompute_modules.count, -1);
    config_free(&cfg);
    REFUSES("--seed None: takes a whole number", "--seed", "None");
    REFUSES("--lr-decay-style None: takes constant, linear", "--lr-decay-style", "None");
}

TEST(a_multi_valued_flag_takes_words_until_the_next_flag) {
    EXPECT(!PARSE(&cfg, &err, "--data-path", "0.3", "a", "-1", "b", "--bf16", "--train-data-path", "--fp16"),
           "%s", err.text);
    EXPECT_EQ(cfg.data_path.count, 4);
    EXPECT_STR(cfg.data_path.items[2], "-1");
    EXPECT_EQ(cfg.train_data_path.count, 0);
    EXPECT_EQ(cfg.bf16 && cfg.fp16, true);
    config_free(&cfg);
    REFUSES("--recompute-modules: takes one or more words, 0 given", "--recompute-modules");
    REFUSES("--rampup-batch-size: takes 3 whole numbers", "--rampup-batch-size", "16", "16");
    REFUSES("--rampup-batch-size x: takes 3 whole numbers", "--rampup-batch-size", "16", "16", "x");
}

TEST(a_bad_value_names_flag_value_and_what_is_allowed) {
    REFUSES("--num-layers 0: takes a whole number from 1 to 65535", "--num-layers", "0");
    REFUSES("--num-layers 1e3: takes a whole number", "--num-layers", "1e3");
    REFUSES("--num-layers 1_000: takes a whole number", "--num-layers", "1_000");
    REFUSES("--num-layers 99999999999999999999: takes", "--num-layers", "99999999999999999999");
    REFUSES("--num-layers -3: takes", "--num-layers", "-3");
    REFUSES("--num-layers '': takes", "--num-layers=");
    REFUSES("--lr nan: takes a number of at least 0", "--lr", "nan");
    REFUSES("--lr inf: takes", "--lr", "inf");
    REFUSES("--lr 0x1p3: takes", "--lr", "0x1p3");
    REFUSES("--hidden-dropout 1: takes a number from 0 to 1 (excluded)", "--hidden-dropout", "1");
    REFUSES("--rotary-percent 0: takes a number from 0 (excluded) to 1", "--rotary-percent", "0");
    REFUSES("--normalization layernorm: takes LayerNorm or RMSNorm", "--normalization", "layernorm");
    REFUSES("--optimizer sgd: only adam is built; use adam", "--optimizer", "sgd");
    REFUSES("--exit-signal SIGKILL: no program can catch it", "--exit-signal", "SIGKILL");
    REFUSES("--device-memory-limit 2: takes a size with its unit", "--device-memory-limit", "2");
    REFUSES("--device-memory-limit 0GiB: takes a size", "--device-memory-limit", "0GiB");
    REFUSES("--device-memory-limit nanGiB: takes a size", "--device-memory-limit", "nanGiB");
}

TEST(a_word_that_is_no_flag_is_answered_with_the_nearest_one) {
    REFUSES("--num-layer is not a flag; did you mean --num-layers?", "--num-layer", "4");
    REFUSES("--recompute-granularty is not a flag; did you mean --recompute-granularity?",
            "--recompute-granularty", "full");
    REFUSES("--num_layers is not a flag; it is spelt --num-layers, with dashes", "--num_layers", "4");
    REFUSES("-num-layers is not a flag: flags start with --; did you mean --num-layers?", "-num-layers", "4");
    REFUSES("--quite-unknown-thing is not a flag; --help lists all of them", "--quite-unknown-thing");
    REFUSES("'4' is not a flag: flags start with --", "4");
    REFUSES("'true' after --bf16: --bf16 is a switch and takes no value; drop 'true'", "--bf16", "true");
    REFUSES("'5' after --lr: --lr takes one value", "--lr", "4", "5");
    REFUSES("--bf16=1: it is a switch and takes no value", "--bf16=1");
    REFUSES("--lr: needs a value: a number of at least 0; the next word is --bf16", "--lr", "--bf16");
    REFUSES("--lr: needs a value", "--lr");
    REFUSES("'--' is not a flag", "--");
    REFUSES("'' is not a flag", "");
    /* no abbreviations: a prefix of one flag only is refused too */
    REFUSES("--tensorboard-d", "--tensorboard-d", "x");
}

TEST(older_spellings_are_taken_with_a_line_or_refused_with_the_new_one) {
    EXPECT(!PARSE(&cfg, &err, "--checkpoint-activations", "--encoder-num-layers", "3", "--encoder-seq-length",
                  "8", "--persistent-save-interval", "7", "--override-opt_param-scheduler"),
           "%s", err.text);
    EXPECT_EQ(cfg.recompute_activations, true);
    EXPECT_EQ(cfg.num_layers, 3);
    EXPECT_EQ(cfg.seq_length, 8);
    EXPECT_EQ(cfg.save_interval, 7);
    EXPECT_EQ(cfg.override_opt_param_scheduler, true);
    EXPECT_CONTAINS(cfg.notes.data, "--checkpoint-activations: taken as --recompute-activations");
    EXPECT_CONTAINS(cfg.notes.data, "--encoder-num-layers: taken as --num-layers");
    config_free(&cfg);
    REFUSES("--batch-size is no longer a flag of Megatron-LM: it was replaced: give --micro-batch-size",
            "--batch-size", "4");
    REFUSES("give --lr-warmup-fraction", "--warmup", "4");
    REFUSES("--fp8-hybrid is no longer a flag", "--fp8-hybrid");
    REFUSES("--moe-layer-recompute is a Megatron-LM flag that this program does not have yet",
            "--moe-layer-recompute");
}

TEST(an_implementation_choice_is_taken_with_one_line_that_says_so) {
    EXPECT(
        !PARSE(&cfg, &err, "--transformer-impl", "local", "--use-flash-attn", "--transformer-impl", "local"),
        "%s", err.text);
    EXPECT_CONTAINS(cfg.notes.data, "--transformer-impl local: there is one implementation");
    EXPECT_CONTAINS(cfg.notes.data, "--use-flash-attn: ");
    const char *second = strstr(strstr(cfg.notes.data, "--transformer-impl") + 1, "--transformer-impl");
    EXPECT(!second, "said twice: %s", cfg.notes.data);
    config_free(&cfg);
    REFUSES("--transformer-impl inference_optimized: ", "--transformer-impl", "inference_optimized");
}

TEST(a_config_gives_back_all_its_memory) {
    uint64_t before = mem_stats().live_blocks;
    EXPECT(!PARSE(&cfg, &err, "--data-path", "a", "b", "c", "--use-mcore-models", "--save", "x"), "%s",
           err.text);
    config_free(&cfg);
    REFUSES("--lr", "--data-path", "a", "--save", "x", "--lr", "y");
    EXPECT_EQ(mem_stats().live_blocks, before);
}

RUN_TESTS(CASE(nothing_given_is_every_default), CASE(every_kind_is_read), CASE(the_last_one_wins),
          CASE(none_unsets_what_can_be_unset), CASE(a_multi_valued_flag_takes_words_until_the_next_flag),
          CASE(a_bad_value_names_flag_value_and_what_is_allowed),
          CASE(a_word_that_is_no_flag_is_answered_with_the_nearest_one),
          CASE(older_spellings_are_taken_with_a_line_or_refused_with_the_new_one),
          CASE(an_implementation_choice_is_taken_with_one_line_that_says_so),
          CASE(a_config_gives_back_all_its_memory))
