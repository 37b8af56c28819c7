/* A resolved config can be read by people and machines, and read back. */
#include "core/config/flag_table.h"
#include "core/base/json.h"
#include "core/base/mem.h"
#include "tests/test.h"

static struct config cfg;
static struct err err;

#define PARSE(cfg, err, ...)                                                                                 \
    config_parse((int)ARRAY_COUNT(((const char *[]){"pretrain_gpt", __VA_ARGS__})),                          \
                 (const char *[]){"pretrain_gpt", __VA_ARGS__}, (cfg), (err))
#define SMALL                                                                                                \
    "--num-layers", "4", "--hidden-size", "256", "--num-attention-heads", "8", "--seq-length", "256",        \
        "--max-position-embeddings", "256", "--micro-batch-size", "4", "--train-iters", "20", "--lr",        \
        "1e-3", "--mock-data", "--vocab-size", "1024"

static char *printed(void (*print)(FILE *out, const struct config *cfg)) {
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    print(out, &cfg);
    fclose(out);
    return text;
}

static void print_help(FILE *out, const struct config *unused) {
    (void)unused;
    config_help(out);
}

static void print_markdown(FILE *out, const struct config *unused) {
    (void)unused;
    config_write_flags_markdown(out);
}

TEST(the_table_of_arguments_shows_each_value_and_its_origin) {
    EXPECT(!PARSE(&cfg, &err, SMALL, "--data-path", "None", "--iterations-to-skip", "3", "4", "--adam-eps",
                  "1e-8"),
           "%s", err.text);
    EXPECT(!config_validate(&cfg, NULL, 0, &err), "%s", err.text);
    char *text = printed(config_print_resolved);
    EXPECT_CONTAINS(text, "------------------------ arguments ------------------------\n");
    EXPECT_CONTAINS(text, "  num_layers ...................................... 4  (command line)\n");
    EXPECT_CONTAINS(
        text, "  ffn_hidden_size ................................. 1024  (derived from --hidden-size)\n");
    EXPECT_CONTAINS(text, "  adam_beta2 ...................................... 0.999  (default)\n");
    EXPECT_CONTAINS(text, "  adam_eps ........................................ 1e-08  (command line)\n");
    EXPECT_CONTAINS(text, "  initial_loss_scale .............................. 4294967296.0  (default)\n");
    EXPECT_CONTAINS(text, "  iterations_to_skip .............................. [3, 4]  (command line)\n");
    EXPECT_CONTAINS(text, "  lr_decay_style .................................. linear  (default)\n");
    EXPECT_CONTAINS(text, "  save ............................................ None  (default)\n");
    EXPECT_CONTAINS(text, "-------------------- end of arguments ---------------------\n");
    int lines = 0;
    for (const char *at = text; *at; at++) lines += *at == '\n';
    EXPECT_EQ(lines, CONFIG_FLAG_COUNT + 2);
    free(text);
    config_free(&cfg);
}

TEST(json_reads_back_as_the_same_model) {
    EXPECT(!PARSE(&cfg, &err, SMALL, "--swiglu", "--disable-bias-linear", "--norm-epsilon", "1e-6",
                  "--normalization", "RMSNorm", "--position-embedding-type", "rope", "--rotary-base",
                  "500000", "--init-method-std", "0.013", "--untie-embeddings-and-output-weights"),
           "%s", err.text);
    EXPECT(!config_validate(&cfg, NULL, 0, &err), "%s", err.text);
    struct str json = {0}, again = {0};
    config_write_json(&json, &cfg);
    uint64_t hash = config_hash(&cfg);
    config_free(&cfg);

    EXPECT(!PARSE(&cfg, &err, "--load", "x", "--use-checkpoint-args", "--micro-batch-size", "4",
                  "--train-iters", "20", "--lr", "1e-3", "--mock-data"),
           "%s", err.text);
    EXPECT(!config_load_json(&cfg, json.data, json.length, "config.json", &err), "%s", err.text);
    EXPECT(!config_validate(&cfg, NULL, 0, &err), "%s", err.text);
    EXPECT_EQ(cfg.num_layers, 4);
    EXPECT_EQ(cfg.swiglu, true);
    EXPECT_EQ(cfg.add_bias_linear, false);
    EXPECT_EQ(cfg.normalization, NORMALIZATION_RMSNORM);
    EXPECT_NEAR(cfg.layernorm_epsilon, 1e-6, 0);
    EXPECT_NEAR(cfg.init_method_std, 0.013, 0);
    EXPECT_EQ(cfg.vocab_size, 1024);
    EXPECT_EQ(cfg.origin[CONFIG_FLAG_num_layers], CONFIG_CHECKPOINT);
    EXPECT_EQ(config_is_given(&cfg, num_layers), true);
    EXPECT_EQ(config_hash(&cfg), hash);
    config_write_json(&again, &cfg);
    EXPECT_CONTAINS(again.data, "\"num_layers\":{\"value\":4,\"origin\":\"checkpoint\"}");
    config_free(&cfg);
    str_free(&json), str_free(&again);
}

TEST(every_value_of_the_json_is_the_value_of_the_field) {
    EXPECT(!PARSE(&cfg, &err, SMALL, "--recompute-activations", "--profile", "--profile-ranks", "0",
                  "--device-memory-limit", "1GiB"),
           "%s", err.text);
    static const struct config_module core_attn = {"core_attn", true, NULL};
    EXPECT(!config_validate(&cfg, &core_attn, 1, &err), "%s", err.text);
    struct str text = {0};
    config_write_json(&text, &cfg);
    struct json *json = json_parse(text.data, text.length, "config", &err);
    EXPECT(json, "%s", err.text);
    const struct json_node *root = json_root(json);
    EXPECT_EQ(root->count, CONFIG_FLAG_COUNT);
    EXPECT_EQ(json_get(json_get(root, "hidden_size"), "value")->integer, 256);
    EXPECT_NEAR(json_get(json_get(root, "lr"), "value")->number, 1e-3, 0);
    EXPECT_EQ(json_get(json_get(root, "save"), "value")->kind, JSON_NULL);
    EXPECT_EQ(json_get(json_get(root, "mock_data"), "value")->boolean, true);
    EXPECT_STR(json_get(json_get(root, "recompute_granularity"), "value")->string, "selective");
    EXPECT_STR(json_get(json_get(root, "recompute_granularity"), "origin")->string,
               "derived from --recompute-activations");
    EXPECT_STR(json_get(json_get(root, "recompute_modules"), "value")->items[0].string, "core_attn");
    EXPECT_EQ(json_get(json_get(root, "profile_ranks"), "value")->items[0].integer, 0);
    EXPECT_EQ(json_get(json_get(root, "device_memory_limit"), "value")->integer, 1 << 30);
    json_free(json);
    str_free(&text);
    config_free(&cfg);
}

TEST(the_command_line_wins_over_the_checkpoint) {
    static const char json[] =
        "{\"num_layers\": {\"value\": 8, \"origin\": \"default\"}, \"seq_length\": {\"value\": 64}, "
        "\"lr\": {\"value\": 9}, \"swiglu\": {\"value\": true}, \"unknown\": 3}";
    EXPECT(!PARSE(&cfg, &err, "--num-layers", "2"), "%s", err.text);
    EXPECT(!config_load_json(&cfg, json, sizeof(json) - 1, "config.json", &err), "%s", err.text);
    EXPECT_EQ(cfg.num_layers, 2);
    EXPECT_EQ(cfg.seq_length, 64);
    EXPECT_EQ(cfg.swiglu, true);
    EXPECT_EQ(config_is_set(&cfg, lr), false); /* not a flag of the model */
    config_free(&cfg);
}

TEST(a_damaged_checkpoint_config_is_refused_by_name) {
    static const struct {
        const char *json, *says;
    } rows[] = {
        {"[]", "config.json: not a resolved config"},
        {"{", "config.json"},
        {"{\"num_layers\": {\"value\": \"x\"}}", "config.json: num_layers x: takes a whole number"},
        {"{\"num_layers\": {\"value\": [1]}}", "config.json: num_layers: takes one value, not a list"},
        {"{\"num_layers\": {\"value\": {}}}", "config.json: num_layers: a single value is expected"},
        {"{\"swiglu\": {\"value\": null}}", "config.json: swiglu None: takes true or false"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        EXPECT(!PARSE(&cfg, &err, "--bf16"), "%s", err.text);
        EXPECT(config_load_json(&cfg, rows[i].json, strlen(rows[i].json), "config.json", &err), "taken: %s",
               rows[i].json);
        EXPECT_CONTAINS(err.text, rows[i].says);
        config_free(&cfg);
    }
}

TEST(the_hash_changes_with_what_shapes_the_result_and_with_nothing_else) {
    EXPECT(!PARSE(&cfg, &err, SMALL), "%s", err.text);
    uint64_t plain = config_hash(&cfg);
    config_free(&cfg);
    EXPECT(!PARSE(&cfg, &err, SMALL, "--recompute-activations", "--log-interval", "7", "--save", "x"), "%s",
           err.text);
    EXPECT(config_hash(&cfg) == plain, "recompute and logging change the hash");
    config_free(&cfg);
    EXPECT(!PARSE(&cfg, &err, SMALL, "--seed", "3"), "%s", err.text);
    EXPECT(config_hash(&cfg) != plain, "the seed does not change the hash");
    config_free(&cfg);
}

TEST(help_names_every_flag_with_its_default) {
    char *text = printed(print_help);
    for (int flag = 0; flag < CONFIG_FLAG_COUNT; flag++) {
        for (const char *n = flag_rows[flag].names; *n; n += strlen(n) + 1) EXPECT_CONTAINS(text, n);
    }
    EXPECT_CONTAINS(text, "\nActivation recompute:\n");
    EXPECT_CONTAINS(text, "--recompute-granularity {full,selective,auto,op}");
    EXPECT_CONTAINS(text, "(default 0.999)");
    free(text);
}

TEST(no_two_flags_share_a_spelling_and_none_is_also_refused) {
    for (int a = 0; a < CONFIG_FLAG_COUNT; a++) {
        for (const char *n = flag_rows[a].names; *n; n += strlen(n) + 1) {
            EXPECT(!flag_is_missing(n), "%s is taken and refused", n);
            for (int b = 0; b < CONFIG_FLAG_COUNT; b++) {
                EXPECT(a == b || !flag_has_name(&flag_rows[b], n), "%s spells two flags", n);
            }
        }
        EXPECT(flag_rows[a].help[0], "%s has no help", flag_rows[a].names);
    }
}

TEST(docs_flags_md_is_up_to_date) {
    FILE *file = fopen("docs/flags.md", "rb");
    EXPECT(file, "docs/flags.md is missing; run this test from the root of the repository");
    if (!file) return;
    char *made = printed(print_markdown), *kept = mem_zalloc(1 << 20, "test");
    size_t length = fread(kept, 1, (1 << 20) - 1, file);
    fclose(file);
    size_t same = 0;
    while (made[same] && made[same] == kept[same]) same++;
    EXPECT(same == strlen(made) && same == length,
           "it differs at byte %zu ('%.40s'); run scripts/make_flags_doc.sh", same, made + same);
    free(made);
    mem_free(kept);
}

static void print_recompute_help(FILE *out, const struct config *unused) {
    (void)unused;
    config_help_recompute(out);
}

/* Adds the words of a line to argv; true when the line goes on with a backslash. */
static bool take_line(char *line, const char **argv, int *argc_p) {
    bool more = false;
    for (char *at = line; *(at += strspn(at, " "));) {
        size_t length = strcspn(at, " ");
        bool end = !at[length];
        at[length] = 0;
        if (!strcmp(at, "\\"))
            more = true;
        else
            argv[(*argc_p)++] = at;
        at += length + !end;
    }
    return more;
}

TEST(every_example_of_help_recompute_is_taken) {
    static const struct config_module modules[] = {
        {"core_attn", true, NULL}, {"layernorm", true, NULL}, {"mlp", true, NULL}};
    const char *argv[64] = {"pretrain_gpt", SMALL, "--num-layers", "32", "--global-batch-size", "64"};
    int first = 0, argc, examples = 0;
    while (argv[first]) first++;
    argc = first;
    char *text = printed(print_recompute_help);
    for (char *line = text, *next; *line; line = next) {
        next = line + strcspn(line, "\n");
        if (*next) *next++ = 0;
        if (strncmp(line, "         --", 11)) continue;
        if (take_line(line, argv, &argc)) continue;
        EXPECT(!config_parse(argc, argv, &cfg, &err), "%s", err.text);
        cfg.running_ranks = cfg.tensor_model_parallel_size * cfg.pipeline_model_parallel_size;
        EXPECT(!config_validate(&cfg, modules, ARRAY_COUNT(modules), &err), "%s: %s", argv[first], err.text);
        EXPECT(cfg.recompute_granularity != CONFIG_UNSET_CHOICE, "%s recomputes nothing", argv[first]);
        config_free(&cfg);
        examples++;
        argc = first;
    }
    EXPECT_EQ(examples, 15);
    free(text);
}

RUN_TESTS(CASE(the_table_of_arguments_shows_each_value_and_its_origin),
          CASE(json_reads_back_as_the_same_model), CASE(every_value_of_the_json_is_the_value_of_the_field),
          CASE(the_command_line_wins_over_the_checkpoint),
          CASE(a_damaged_checkpoint_config_is_refused_by_name),
          CASE(the_hash_changes_with_what_shapes_the_result_and_with_nothing_else),
          CASE(help_names_every_flag_with_its_default),
          CASE(no_two_flags_share_a_spelling_and_none_is_also_refused), CASE(docs_flags_md_is_up_to_date),
          CASE(every_example_of_help_recompute_is_taken))
