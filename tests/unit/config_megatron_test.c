/* Every flag of Megatron-LM is known here: taken, or refused by name. Those that are taken have Megatron-LM's
 * field name, kind, default and values, but for the exceptions listed below. */
#include "core/config/flag_table.h"
#include "tests/golden/megatron_flags.h"
#include "tests/test.h"

static const struct config_module modules[] = {
    {"core_attn", true, NULL}, {"mlp", true, NULL}, {"layernorm", true, NULL}};

/* The next name of a list separated by spaces; "" at the end. */
static const char *next_name(const char **at_p, char *buffer, size_t capacity) {
    *at_p += strspn(*at_p, " ");
    size_t length = strcspn(*at_p, " ");
    if (length >= capacity) length = capacity - 1;
    memcpy(buffer, *at_p, length);
    buffer[length] = 0;
    *at_p += length;
    return buffer;
}

static int find_row(const char *name) {
    for (int flag = 0; flag < CONFIG_FLAG_COUNT; flag++) {
        if (flag_has_name(&flag_rows[flag], name)) return flag;
    }
    return -1;
}

/* A command line of one flag, with a value that the kind takes. */
static int parse_one(const char *name, const char *value, struct config *cfg, struct err *err) {
    const char *argv[] = {"pretrain_gpt", name, value};
    return config_parse(value ? 3 : 2, argv, cfg, err);
}

static const char *sample_value(const struct flag_row *row) {
    if (!flag_takes_value(row)) return NULL;
    switch (row->kind) {
    case FLAG_CHOICE:
        return row->choices[0].word;
    case FLAG_FLOAT:
        return strncmp(row->limits, "[1,", 3) ? "0.5" : "1.5";
    case FLAG_INT:
    case FLAG_INTS:
        return !strcmp(row->limits, "[0,0]") ? "0" : !strncmp(row->limits, "[2,", 3) ? "2" : "1";
    default:
        return "a";
    }
}

TEST(every_megatron_flag_is_taken_or_refused_by_name) {
    int taken = 0, refused = 0;
    for (size_t i = 0; i < ARRAY_COUNT(megatron_flags); i++) {
        const char *at = megatron_flags[i].names;
        char name[128];
        while (*next_name(&at, name, sizeof(name))) {
            struct config cfg;
            struct err err = {""};
            int flag = find_row(name);
            const char *value = flag >= 0 ? sample_value(&flag_rows[flag]) : NULL;
            bool mapped = !strcmp(name, "--encoder-num-layers") || !strcmp(name, "--encoder-seq-length") ||
                          !strcmp(name, "--checkpoint-activations");
            if (flag == CONFIG_FLAG_yaml_cfg || flag == CONFIG_FLAG_rampup_batch_size)
                continue; /* own tests */
            if (!parse_one(name, value, &cfg, &err)) {
                taken++;
                EXPECT(flag >= 0 || mapped, "%s is taken without a row", name);
                config_free(&cfg);
                continue;
            }
            if (!mapped) EXPECT(flag < 0, "%s has a row and is refused: %s", name, err.text);
            EXPECT_CONTAINS(err.text, name);
            EXPECT(mapped || strstr(err.text, "does not have yet") || strstr(err.text, "no longer a flag"),
                   "%s", err.text);
            EXPECT(!strstr(err.text, "is not a flag"), "%s", err.text);
            refused++;
        }
    }
    EXPECT(taken > 200 && refused > 500, "%d taken, %d refused", taken, refused);
}

TEST(flags_that_are_taken_have_megatrons_field_kind_and_default) {
    /* field: why it differs */
    static const char *const other_default[] = {
        "rerun_mode",             /* nothing is run twice here, so the default says so */
        "use_cpu_initialization", /* None is false */
        "no_save_optim",
        "no_save_rng",
        "no_load_optim",
        "no_load_rng",
    };
    int compared = 0;
    for (size_t i = 0; i < ARRAY_COUNT(megatron_flags); i++) {
        const struct megatron_flag *m = &megatron_flags[i];
        const char *at = m->names;
        char name[128];
        int flag = find_row(next_name(&at, name, sizeof(name)));
        if (flag < 0) continue;
        const struct flag_row *row = &flag_rows[flag];
        bool skip = false;
        for (size_t j = 0; j < ARRAY_COUNT(other_default); j++)
            skip = skip || !strcmp(row->field, other_default[j]);
        EXPECT_STR(row->field, m->dest);
        const char *kind = m->kind;
        bool same_kind =
            (!strcmp(kind, "int") && row->kind == FLAG_INT) ||
            (!strcmp(kind, "float") && row->kind == FLAG_FLOAT) ||
            (!strcmp(kind, "switch->True") && row->kind == FLAG_ON) ||
            (!strcmp(kind, "switch->False") && row->kind == FLAG_OFF) ||
            (!strcmp(kind, "str") && (row->kind == FLAG_TEXT || row->kind == FLAG_CHOICE)) ||
            (!strcmp(kind, "enum name") && row->kind == FLAG_CHOICE) ||
            (!strncmp(kind, "str list", 8) && row->kind == FLAG_TEXTS) ||
            /* lists of which one word is taken; a number or an expression */
            (!strcmp(kind, "str list (1+)") && row->kind == FLAG_CHOICE) ||
            (!strcmp(kind, "float list (1+)") && row->kind == FLAG_FLOAT) ||
            (!strcmp(kind, "int or list-expr") && row->kind == FLAG_TEXT) ||
            ((!strncmp(kind, "int list", 8) || !strcmp(kind, "int x3")) && row->kind == FLAG_INTS);
        EXPECT(same_kind, "%s: kind %s", name, kind);
        if (skip) continue;
        char list[80]; /* of one word, in Python's spelling */
        snprintf(list, sizeof(list), "['%s']", row->default_text);
        bool number = row->kind == FLAG_FLOAT && strcmp(m->def, "None");
        bool same_default = number
                                ? strtod(m->def, NULL) == strtod(row->default_text, NULL)
                                : !strcmp(m->def, row->kind == FLAG_TEXTS && strcmp(row->default_text, "None")
                                                      ? list
                                                      : row->default_text);
        EXPECT(same_default, "%s: default %s, in Megatron-LM %s", name, row->default_text, m->def);
        compared++;
    }
    EXPECT(compared > 200, "only %d", compared);
}

TEST(every_spelling_and_every_choice_of_a_taken_flag_is_known) {
    for (size_t i = 0; i < ARRAY_COUNT(megatron_flags); i++) {
        const struct megatron_flag *m = &megatron_flags[i];
        const char *at = m->names;
        char name[128], word[64];
        int flag = find_row(next_name(&at, name, sizeof(name)));
        if (flag < 0) continue;
        while (*next_name(&at, name, sizeof(name))) EXPECT(find_row(name) == flag, "%s", name);
        if (flag_rows[flag].kind != FLAG_CHOICE) continue;
        for (const char *c = m->choices; *c; c += strspn(c, ",")) {
            size_t length = strcspn(c, ",");
            memcpy(word, c, length);
            word[length] = 0;
            c += length;
            struct err err;
            struct config cfg;
            bool known = false;
            for (const struct flag_choice *k = flag_rows[flag].choices; k->word; k++)
                known = known || !strcmp(k->word, word);
            EXPECT(known, "%s %s", flag_rows[flag].names, word);
            if (!parse_one(flag_rows[flag].names, word, &cfg, &err))
                config_free(&cfg);
            else
                EXPECT_CONTAINS(err.text, word);
        }
    }
}

/* Words of a command line, split at blanks; a quoted part keeps its quotes, as an unquoted shell array would.
 */
static int split_words(char *text, const char **argv, int capacity) {
    int argc = 0;
    argv[argc++] = "pretrain_gpt";
    for (char *at = text; *at && argc < capacity;) {
        at += strspn(at, " ");
        if (!*at) break;
        argv[argc++] = at;
        at += strcspn(at, " ");
        if (*at) *at++ = 0;
    }
    return argc;
}

static const char gpt3[] =
    "--num-layers 96 --hidden-size 12288 --num-attention-heads 96 --seq-length 2048 "
    "--max-position-embeddings 2048 "
    "--attention-backend auto --micro-batch-size 1 --global-batch-size 1536 --rampup-batch-size 16 16 "
    "5859375 "
    "--train-iters 500000 --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.95 --init-method-std 0.006 "
    "--clip-grad 1.0 "
    "--fp16 --lr 6.0e-5 --lr-decay-style cosine --min-lr 6.0e-6 --lr-warmup-fraction .001 --lr-decay-iters "
    "430000 "
    "--data-path text_document --vocab-file v.json --merge-file m.txt --split 949,50,1 --log-interval 100 "
    "--save-interval 10000 --eval-interval 1000 --save out --load out --eval-iters 10 --tensorboard-dir tb";

TEST(the_gpt3_example_runs_as_it_is_on_one_rank) {
    static char text[4096];
    const char *argv[256];
    struct config cfg;
    struct err err;
    snprintf(text, sizeof(text), "%s", gpt3);
    int argc = split_words(text, argv, 256);
    EXPECT(!config_parse(argc, argv, &cfg, &err), "%s", err.text);
    EXPECT(!config_validate(&cfg, modules, 3, &err), "%s", err.text);
    EXPECT_EQ(cfg.tokenizer_type, TOKENIZER_TYPE_GPT2_BPE);
    EXPECT_EQ(cfg.mlp_activation, MLP_ACTIVATION_GELU_TANH);
    EXPECT_EQ(cfg.params_dtype, PARAMS_DTYPE_FP16);
    EXPECT_EQ(cfg.dynamic_loss_scale, true);
    EXPECT_EQ(cfg.ffn_hidden_size, 49152);
    EXPECT_EQ(cfg.kv_channels, 128);
    EXPECT_EQ(cfg.lr_decay_steps, 430000LL * 1536);
    EXPECT_NEAR(cfg.lr_warmup_steps, 660480.0, 1e-6);
    EXPECT_EQ(cfg.batch_stage_count, 96);
    EXPECT_EQ(config_batch_size_at(&cfg, 0), 16);
    EXPECT_EQ(config_batch_size_at(&cfg, 61677), 16); /* 5859375 samples / 95 steps = 61677.6 */
    EXPECT_EQ(config_batch_size_at(&cfg, 61678), 32);
    EXPECT_EQ(config_batch_size_at(&cfg, 5859375), 1536);
    EXPECT_NEAR(cfg.split_weights[0], 0.949, 1e-12);
    config_free(&cfg);
}

TEST(the_gpt3_example_takes_its_parallel_sizes_and_says_how_many_ranks_they_need) {
    static char text[4096], copy[4096];
    const char *argv[256];
    struct config cfg;
    struct err err;
    snprintf(text, sizeof(text),
             "%s --tensor-model-parallel-size 8 --pipeline-model-parallel-size 16 --world-size 1024", gpt3);
    snprintf(copy, sizeof(copy), "%s", text);
    EXPECT(!config_parse(split_words(text, argv, 256), argv, &cfg, &err), "%s", err.text);
    cfg.running_ranks = 1024;
    /* 1024 / (8 * 16) = 8 data-parallel ranks of which a ramp-up from 16 in steps of 16 fills each twice */
    EXPECT(!config_validate(&cfg, modules, 3, &err), "%s", err.text);
    EXPECT_EQ(cfg.data_parallel_size, 8);
    EXPECT_EQ(cfg.virtual_stages, 1);
    EXPECT_EQ(cfg.pipeline_schedule, PIPELINE_SCHEDULE_1F1B);
    config_free(&cfg);
    EXPECT(!config_parse(split_words(copy, argv, 256), argv, &cfg, &err), "%s", err.text);
    cfg.running_ranks = 1;
    EXPECT(config_validate(&cfg, modules, 3, &err), "not refused");
    EXPECT_CONTAINS(err.text, "--world-size 1024, but 1 rank runs: start 1024 with mpirun -np 1024");
    config_free(&cfg);
}

static const char llama3[] =
    "--use-mcore-models --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 --num-attention-heads 32 "
    "--group-query-attention --num-query-groups 8 --kv-channels 128 --seq-length 8192 "
    "--max-position-embeddings 8192 "
    "--position-embedding-type rope --rotary-base 1000000 --rotary-percent 1.0 --attention-dropout 0.0 "
    "--hidden-dropout 0.0 "
    "--swiglu --init-method-std 0.0134 --attention-backend fused --apply-layernorm-1p "
    "--untie-embeddings-and-output-weights --disable-bias-linear --micro-batch-size 1 --global-batch-size "
    "128 "
    "--train-samples 1953125000 --lr-decay-samples 1949218748 --lr-warmup-samples 3906252 --lr 0.00015 "
    "--min-lr 0.00001 "
    "--decoupled-lr 5.0e-4 --decoupled-min-lr 4.5e-5 --lr-decay-style cosine --clip-grad 1.0 --weight-decay "
    "0.1 "
    "--adam-beta1 0.9 --adam-beta2 0.95 --bf16 --grad-reduce-in-bf16 --cross-entropy-loss-fusion "
    "--calculate-per-token-loss "
    "--manual-gc --empty-unused-memory-level 1 --exit-duration-in-mins 235 --use-distributed-optimizer "
    "--overlap-grad-reduce --overlap-param-gather --tensor-model-parallel-size 1 --context-parallel-size 1 "
    "--sequence-parallel --mock-data --tokenizer-type NullTokenizer --vocab-size 128256 --data-cache-path "
    "cache "
    "--tiktoken-pattern v2 --split '99,1,0' --no-create-attention-mask-in-dataloader --no-mmap-bin-files "
    "--num-workers 1 "
    "--log-interval 1 --eval-iters 32 --eval-interval 100 --save-interval 1000 --log-throughput --profile "
    "--profile-step-start 4 --profile-step-end 6 --ckpt-format torch_dist --distributed-timeout-minutes 60 "
    "--save out "
    "--load out --tensorboard-dir tb";

TEST(the_llama_example_in_bf16_runs_as_it_is_and_says_what_its_choices_mean) {
    static char text[4096];
    const char *argv[256];
    struct config cfg;
    struct err err;
    snprintf(text, sizeof(text), "%s", llama3);
    int argc = split_words(text, argv, 256);
    EXPECT(!config_parse(argc, argv, &cfg, &err), "%s", err.text);
    EXPECT(!config_validate(&cfg, modules, 3, &err), "%s", err.text);
    EXPECT_EQ(cfg.train_iters, 15258789);
    EXPECT_EQ(cfg.mlp_activation, MLP_ACTIVATION_SWIGLU);
    EXPECT_EQ(cfg.num_query_groups, 8);
    EXPECT_EQ(cfg.rotary_dim, 128);
    EXPECT_EQ(cfg.attention_blockwise, true);
    EXPECT_NEAR(cfg.split_weights[0], 0.99, 1e-12);
    EXPECT_EQ(cfg.lr_decay_steps, 1949218748);
    EXPECT_EQ(cfg.distributed_timeout_minutes, 60);
    static const char *const said[] = {"--use-mcore-models:",
                                       "--sequence-parallel:",
                                       "--use-distributed-optimizer:",
                                       "--overlap-grad-reduce:",
                                       "--overlap-param-gather:",
                                       "--manual-gc:",
                                       "--empty-unused-memory-level 1:",
                                       "--tiktoken-pattern v2:",
                                       "--num-workers 1:",
                                       "--no-mmap-bin-files:",
                                       "--ckpt-format torch_dist:",
                                       "--grad-reduce-in-bf16:",
                                       "--attention-backend fused:",
                                       "--no-create-attention-mask-in-dataloader:"};
    for (size_t i = 0; i < ARRAY_COUNT(said); i++) EXPECT_CONTAINS(cfg.notes.data, said[i]);
    config_free(&cfg);
}

TEST(the_llama_example_in_fp8_is_refused_by_the_name_of_its_fp8_flag) {
    static char text[4096];
    const char *argv[256];
    struct config cfg;
    struct err err;
    snprintf(text, sizeof(text), "%s --fp8-format hybrid --fp8-amax-history-len 1024 --fp8-param-gather",
             llama3);
    int argc = split_words(text, argv, 256);
    EXPECT(config_parse(argc, argv, &cfg, &err), "taken");
    EXPECT_CONTAINS(err.text, "--fp8-format is a Megatron-LM flag that this program does not have yet");
    EXPECT_CONTAINS(err.text, "--bf16");
}

RUN_TESTS(CASE(every_megatron_flag_is_taken_or_refused_by_name),
          CASE(flags_that_are_taken_have_megatrons_field_kind_and_default),
          CASE(every_spelling_and_every_choice_of_a_taken_flag_is_known),
          CASE(the_gpt3_example_runs_as_it_is_on_one_rank),
          CASE(the_gpt3_example_takes_its_parallel_sizes_and_says_how_many_ranks_they_need),
          CASE(the_llama_example_in_bf16_runs_as_it_is_and_says_what_its_choices_mean),
          CASE(the_llama_example_in_fp8_is_refused_by_the_name_of_its_fp8_flag))
