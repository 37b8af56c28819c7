/* A YAML file gives the same flags as the command line, which wins over it; what it cannot mean is refused
 * with the line. */
#include "core/config/config.h"
#include "core/base/mem.h"
#include "tests/temp_dir.h"
#include "tests/test.h"

static struct config cfg;
static struct err err;

/* Parses `--yaml-cfg FILE` with this text, then the words. */
static int parse(const char *text, const char *word1, const char *word2) {
    struct temp_dir dir;
    temp_dir_make(&dir);
    char path[600];
    snprintf(path, sizeof(path), "%s", temp_dir_file(&dir, "flags.yaml"));
    FILE *file = fopen(path, "wb");
    EXPECT(file, "cannot write %s", path);
    fputs(text, file);
    fclose(file);
    const char *argv[] = {"pretrain_gpt", "--yaml-cfg", path, word1, word2};
    err.text[0] = 0;
    int status = config_parse(!word1 ? 3 : !word2 ? 4 : 5, argv, &cfg, &err);
    temp_dir_remove(&dir);
    return status;
}

#define NEEDS_YAML()                                                                                         \
    do {                                                                                                     \
        if (!have_yaml()) SKIP("built without YAML");                                                        \
    } while (0)

static bool have_yaml(void) {
    if (!parse("", NULL, NULL)) {
        config_free(&cfg);
        return true;
    }
    return !strstr(err.text, "built without YAML");
}

TEST(without_libyaml_the_error_says_what_to_install) {
    if (have_yaml()) SKIP("built with YAML");
    EXPECT(parse("bf16: true\n", NULL, NULL), "taken");
    EXPECT_CONTAINS(err.text, "install libyaml-dev");
}

TEST(every_kind_of_value_is_read_from_yaml) {
    NEEDS_YAML();
    EXPECT(!parse("# a comment\n"
                  "language_model:\n"
                  "  num_layers: 12\n"
                  "  norm-epsilon: 1.0e-6\n"
                  "  add_bias_linear: false\n"
                  "  activation:\n"
                  "    swiglu: True\n"
                  "model_parallel: {bf16: yes, tensor_model_parallel_size: 1}\n"
                  "--lr: 6e-5\n"
                  "recompute_modules: [core_attn, mlp]\n"
                  "data_path:\n  - 0.3\n  - a\n  - 0.7\n  - 'b c'\n"
                  "profile_ranks: [0, 2]\n"
                  "device_memory_limit: 1.5GiB\n"
                  "split: 949,50,1\n"
                  "no-rope-fusion: true\n"
                  "save: null\n"
                  "recompute_granularity: None\n"
                  "tokenizer_model: ~\n"
                  "use_mcore_models: true\n",
                  NULL, NULL),
           "%s", err.text);
    EXPECT_EQ(cfg.num_layers, 12);
    EXPECT_NEAR(cfg.layernorm_epsilon, 1e-6, 0);
    EXPECT_EQ(cfg.add_bias_linear, false);
    EXPECT_EQ(cfg.swiglu && cfg.bf16, true);
    EXPECT_NEAR(cfg.lr, 6e-5, 0);
    EXPECT_EQ(cfg.recompute_modules.count, 2);
    EXPECT_EQ(cfg.data_path.count, 4);
    EXPECT_STR(cfg.data_path.items[3], "b c");
    EXPECT_EQ(cfg.profile_ranks.items[1], 2);
    EXPECT_EQ(cfg.device_memory_limit, 3LL << 29);
    EXPECT_STR(cfg.split, "949,50,1");
    EXPECT_EQ(cfg.apply_rope_fusion, false);
    EXPECT(!cfg.save && !cfg.tokenizer_model, "null is set");
    EXPECT_EQ(cfg.recompute_granularity, CONFIG_UNSET_CHOICE);
    EXPECT_EQ(cfg.origin[CONFIG_FLAG_num_layers], CONFIG_YAML);
    EXPECT_CONTAINS(cfg.notes.data, "--use-mcore-models:");
    config_free(&cfg);
}

TEST(the_command_line_wins_over_yaml_and_yaml_over_defaults) {
    NEEDS_YAML();
    EXPECT(!parse("lr: 0.5\nseed: 7\nbf16: true\n", "--lr", "0.25"), "%s", err.text);
    EXPECT_NEAR(cfg.lr, 0.25, 0);
    EXPECT_EQ(cfg.seed, 7);
    EXPECT_EQ(cfg.origin[CONFIG_FLAG_lr], CONFIG_COMMAND_LINE);
    EXPECT_EQ(cfg.origin[CONFIG_FLAG_seed], CONFIG_YAML);
    EXPECT_EQ(cfg.origin[CONFIG_FLAG_clip_grad], CONFIG_DEFAULT);
    config_free(&cfg);
    EXPECT(!parse("save: x\n", "--save", "None"), "%s", err.text);
    EXPECT(!cfg.save, "save is %s", cfg.save);
    config_free(&cfg);
}

TEST(activation_checkpointing_is_full_or_op_recompute) {
    NEEDS_YAML();
    static const char *const asks[] = {"true", "True", "yes", "full", "'full'"};
    static const char *const nothing[] = {"false", "null", "~", "off"};
    char text[128];
    for (size_t i = 0; i < ARRAY_COUNT(asks); i++) {
        snprintf(text, sizeof(text), "distributed:\n  activation_checkpointing: %s\n", asks[i]);
        EXPECT(!parse(text, NULL, NULL), "%s", err.text);
        EXPECT_EQ(cfg.recompute_granularity, RECOMPUTE_GRANULARITY_FULL);
        EXPECT_EQ(cfg.recompute_method, RECOMPUTE_METHOD_UNIFORM);
        EXPECT_EQ(cfg.recompute_num_layers, 1);
        config_free(&cfg);
    }
    EXPECT(!parse("activation_checkpointing: selective\n", NULL, NULL), "%s", err.text);
    EXPECT_EQ(cfg.recompute_granularity, RECOMPUTE_GRANULARITY_OP);
    EXPECT(!config_is_set(&cfg, recompute_method), "selective takes no method");
    config_free(&cfg);
    for (size_t i = 0; i < ARRAY_COUNT(nothing); i++) {
        snprintf(text, sizeof(text), "activation_checkpointing: %s\n", nothing[i]);
        EXPECT(!parse(text, NULL, NULL), "%s", err.text);
        EXPECT_EQ(cfg.recompute_granularity, CONFIG_UNSET_CHOICE);
        config_free(&cfg);
    }
}

TEST(the_command_line_wins_over_activation_checkpointing) {
    NEEDS_YAML();
    static const char *const values[] = {"full", "selective"};
    char text[128];
    for (size_t i = 0; i < ARRAY_COUNT(values); i++) {
        snprintf(text, sizeof(text), "activation_checkpointing: %s\n", values[i]);
        EXPECT(!parse(text, "--recompute-activations", NULL), "%s", err.text);
        EXPECT(cfg.recompute_activations && cfg.recompute_granularity == CONFIG_UNSET_CHOICE, "full is set");
        config_free(&cfg);
    }
    EXPECT(!parse("activation_checkpointing: full\n", "--recompute-method", "sqrt"), "%s", err.text);
    EXPECT_EQ(cfg.recompute_granularity, RECOMPUTE_GRANULARITY_FULL);
    EXPECT_EQ(cfg.recompute_method, RECOMPUTE_METHOD_SQRT);
    EXPECT(!config_is_set(&cfg, recompute_num_layers), "a number that the method does not take");
    config_free(&cfg);
}

TEST(what_yaml_cannot_mean_is_refused_with_the_line) {
    NEEDS_YAML();
    static const struct {
        const char *text, *says;
    } rows[] = {
        {"lr: 1\nnum_layer: 3\n", "flags.yaml, line 2: num_layer is not a flag; did you mean --num-layers?"},
        {"a:\n  moe-latent-size: 8\n",
         "line 2: moe-latent-size is a Megatron-LM flag that this program does not have yet"},
        {"activation_checkpointing: some\n", "takes true, full, selective or false"},
        {"activation_checkpointing: [full, full]\n", "takes true, full, selective or false"},
        {"activation_checkpointing: full\nactivation_checkpointing: true\n", "given twice"},
        {"activation_checkpointing: full\nrecompute_granularity: full\n", "given twice"},
        {"recompute_granularity: full\nactivation_checkpointing: full\n", "given twice"},
        {"lr: x\n", "line 1: lr x: takes a number of at least 0"},
        {"lr: [1, 2]\n", "line 1: lr: takes one value, not a list"},
        {"num_layers: -1\n", "num_layers -1: takes a whole number"},
        {"bf16: maybe\n", "bf16 maybe: takes true or false"},
        {"lr: 1\na:\n  lr: 2\n", "line 3: lr: given twice in this file"},
        {"recompute_modules: []\n", "takes one or more words, 0 given"},
        {"data_path: [[a]]\n", "a list holds plain values only"},
        {"data_path: [{a: b}]\n", "a list holds plain values only"},
        {"a: &x 1\nlr: *x\n", "anchors"},
        {"lr: *x\n", "aliases"},
        {"lr: !!float 1\n", "tags"},
        {"[1, 2]\n", "the file must hold 'flag: value' lines"},
        {"just words\n", "the file must hold 'flag: value' lines"},
        {"lr: 1\n---\nlr: 2\n", "only one document"},
        {"lr: [1\n", "this is not YAML"},
        {"lr: \"1\n", "this is not YAML"},
        {"[a, b]: 1\n", "a key must be the name of a flag"},
        {"? [a]\n: 1\n", "a key must be the name of a flag"},
        {"a: {b: {c: {d: {e: {f: {g: {h: {i: 1}}}}}}}}\n", "nested too deeply"},
        {"yaml_cfg: other.yaml\n", "cannot name another"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        if (!parse(rows[i].text, NULL, NULL)) {
            EXPECT(false, "taken: %s", rows[i].text);
            config_free(&cfg);
            continue;
        }
        EXPECT_CONTAINS(err.text, rows[i].says);
        EXPECT(!strchr(err.text, '\n'), "not one line: %s", err.text);
    }
}

TEST(a_feature_that_is_off_in_yaml_asks_for_nothing) {
    NEEDS_YAML();
    EXPECT(!parse("num_experts: null\nmulti_latent_attention: false\nseed: null\n", NULL, NULL), "%s",
           err.text);
    EXPECT_EQ(cfg.seed, 1234);
    config_free(&cfg);
}

TEST(a_yaml_file_that_cannot_be_read_is_named) {
    NEEDS_YAML();
    const char *missing[] = {"pretrain_gpt", "--yaml-cfg", "/nonexistent/x.yaml"};
    EXPECT(config_parse(3, missing, &cfg, &err), "taken");
    EXPECT_CONTAINS(err.text, "--yaml-cfg /nonexistent/x.yaml: No such file");
    const char *folder[] = {"pretrain_gpt", "--yaml-cfg", "/tmp"};
    EXPECT(config_parse(3, folder, &cfg, &err), "taken");
    EXPECT_CONTAINS(err.text, "--yaml-cfg /tmp: cannot be read");
    char *large = mem_alloc((1 << 20) + 2, "test");
    memset(large, '#', (1 << 20) + 1);
    large[(1 << 20) + 1] = 0;
    EXPECT(parse(large, NULL, NULL), "taken");
    EXPECT_CONTAINS(err.text, "more than 1048576 bytes");
    mem_free(large);
}

RUN_TESTS(CASE(without_libyaml_the_error_says_what_to_install), CASE(every_kind_of_value_is_read_from_yaml),
          CASE(the_command_line_wins_over_yaml_and_yaml_over_defaults),
          CASE(activation_checkpointing_is_full_or_op_recompute),
          CASE(the_command_line_wins_over_activation_checkpointing),
          CASE(what_yaml_cannot_mean_is_refused_with_the_line),
          CASE(a_feature_that_is_off_in_yaml_asks_for_nothing),
          CASE(a_yaml_file_that_cannot_be_read_is_named))
