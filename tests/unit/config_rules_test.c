/* No flag is silently changed or ignored: each rule between flags refuses with the flags' names and a remedy,
 * and each derived value follows from what its origin says. */
#include "core/config/config.h"
#include "tests/temp_dir.h"
#include "tests/test.h"

static const struct config_module modules[] = {{"core_attn", true, NULL},
                                               {"mlp", true, NULL},
                                               {"layernorm", true, NULL},
                                               {"moe", false, "this model has no experts; drop it"}};

/* Split at blanks; */
static int words(char *text, const char **argv, int capacity) {
    int argc = 0;
    for (char *at = text; *at && argc < capacity;) {
        at += strspn(at, " ");
        if (!*at) break;
        argv[argc++] = at;
        at += strcspn(at, " ");
        if (*at) *at++ = 0;
    }
    return argc;
}

#define MODEL                                                                                                \
    "pretrain_gpt --num-layers 4 --hidden-size 256 --num-attention-heads 8 --seq-length 256 "                \
    "--max-position-embeddings 256 --micro-batch-size 4 "
#define LENGTH "--train-iters 20 --lr 1e-3 "
#define DATA   "--mock-data --vocab-size 1024 "

static struct config cfg;
static struct err err;

/* 0 and a config to free, or -1 and err. */
static int validate(const char *head, const char *tail) {
    static char text[4096];
    const char *argv[256];
    snprintf(text, sizeof(text), "%s %s", head, tail);
    int argc = words(text, argv, 256);
    err.text[0] = 0;
    if (config_parse(argc, argv, &cfg, &err)) return -1;
    if (!config_validate(&cfg, modules, ARRAY_COUNT(modules), &err)) return 0;
    config_free(&cfg);
    return -1;
}

#define ALL           MODEL LENGTH DATA
#define ACCEPTS(tail) EXPECT(!validate(ALL, tail), "%s: %s", tail, err.text)

struct refusal {
    const char *head, *tail, *says;
};

static void walk(const struct refusal *rows, size_t count) {
    static const char *const remedies[] = {"give", "add",  "drop", "use",  "raise", "lower",        "change",
                                           "keep", "make", "must", "need", "once",  "did you mean", "takes"};
    for (size_t i = 0; i < count; i++) {
        const struct refusal *r = &rows[i];
        if (!validate(r->head, r->tail)) {
            EXPECT(false, "'%s' is taken", r->tail);
            config_free(&cfg);
            continue;
        }
        EXPECT_CONTAINS(err.text, r->says);
        EXPECT(!strchr(err.text, '\n'), "not one line: %s", err.text);
        bool remedy = false;
        for (size_t k = 0; k < ARRAY_COUNT(remedies); k++) remedy = remedy || strstr(err.text, remedies[k]);
        EXPECT(remedy, "no remedy: %s", err.text);
    }
}

TEST(what_is_required_is_asked_for_by_name) {
    static const struct refusal rows[] = {
        {"pretrain_gpt", "", "--num-layers is required"},
        {"pretrain_gpt --num-layers 1", "", "--hidden-size is required"},
        {"pretrain_gpt --num-layers 1 --hidden-size 8", "", "--num-attention-heads is required"},
        {"pretrain_gpt --num-layers 1 --hidden-size 8 --num-attention-heads 1", "",
         "--seq-length is required"},
        {"pretrain_gpt --num-layers 1 --hidden-size 8 --num-attention-heads 1 --seq-length 8", "",
         "--max-position-embeddings is required"},
        {"pretrain_gpt --num-layers 1 --hidden-size 8 --num-attention-heads 1 --seq-length 8 "
         "--max-position-embeddings 8",
         "", "--micro-batch-size is required"},
        {MODEL DATA "--lr 1", "", "give --train-iters or --train-samples"},
        {MODEL DATA "--train-iters 3", "", "--lr is required"},
        {MODEL LENGTH "--vocab-size 9", "", "no data: give --data-path PREFIX"},
        {MODEL LENGTH "--data-path x", "", "the vocabulary is unknown"},
    };
    walk(rows, ARRAY_COUNT(rows));
}

TEST(every_rule_of_the_model_refuses_with_a_remedy) {
    static const struct refusal rows[] = {
        {ALL, "--seq-length 512", "--seq-length 512 is longer than --max-position-embeddings 256"},
        {ALL, "--num-attention-heads 7", "--hidden-size 256 is not a multiple of --num-attention-heads 7"},
        {ALL, "--num-query-groups 2", "--num-query-groups 2 has no effect without --group-query-attention"},
        {ALL, "--num-query-groups 1", "--num-query-groups 1 has no effect without --group-query-attention"},
        {ALL, "--group-query-attention --num-query-groups 3", "--num-query-groups 3 does not divide"},
        {ALL, "--group-query-attention --num-query-groups 16", "--num-query-groups 16 does not divide"},
        {ALL, "--use-rotary-position-embeddings --position-embedding-type learned_absolute", "contradict"},
        {ALL, "--no-position-embedding", "--position-embedding-type rope"},
        {ALL, "--rotary-base 500000", "--rotary-base has no effect without rotary positions"},
        {ALL, "--rotary-percent 0.5", "--rotary-percent has no effect"},
        {ALL, "--rotary-interleaved", "--rotary-interleaved has no effect"},
        {ALL, "--rotary-seq-len-interpolation-factor 2",
         "--rotary-seq-len-interpolation-factor has no effect"},
        {ALL, "--use-rope-scaling", "--use-rope-scaling has no effect"},
        {ALL, "--position-embedding-type rope --rope-scaling-factor 8", "without --use-rope-scaling"},
        {ALL, "--position-embedding-type rope --rotary-percent 0.04", "rotated dimensions"},
        {ALL, "--position-embedding-type yarn", "YaRN comes with multi-latent attention only; use rope"},
        {ALL, "--rope-type yarn", "--rope-type has no effect without rotary positions"},
        {ALL, "--position-embedding-type rope --rope-type yarn", "comes with --multi-latent-attention only"},
        {ALL, "--swiglu --squared-relu", "exclude each other"},
        {ALL, "--swiglu --openai-gelu", "exclude each other"},
        {ALL, "--hidden-size 8 --swiglu", "give --ffn-hidden-size"},
        {ALL, "--use-flash-attn --attention-backend unfused", "contradict"},
        {ALL, "--apply-query-key-layer-scaling --fp16 --attention-backend unfused",
         "use --attention-backend flash"},
        {ALL, "--padded-vocab-size 2000 --no-pad-vocab-size", "contradict"},
        {ALL, "--apply-wd-to-qk-layernorm", "without --qk-layernorm"},
    };
    walk(rows, ARRAY_COUNT(rows));
}

#define MLA    ALL " --multi-latent-attention"
#define ROTARY MLA " --position-embedding-type rope"

TEST(every_rule_of_latent_attention_refuses_with_a_remedy) {
    static const struct refusal rows[] = {
        {ALL, "--q-lora-rank 8", "--q-lora-rank has no effect without --multi-latent-attention"},
        {ALL, "--kv-lora-rank 8", "--kv-lora-rank has no effect without"},
        {ALL, "--qk-head-dim 8", "--qk-head-dim has no effect without"},
        {ALL, "--qk-pos-emb-head-dim 8", "--qk-pos-emb-head-dim has no effect without"},
        {ALL, "--v-head-dim 8", "--v-head-dim has no effect without"},
        {ALL, "--rotary-scaling-factor 2", "--rotary-scaling-factor has no effect without"},
        {ALL, "--mscale 0.7", "--mscale has no effect without"},
        {ALL, "--mscale-all-dim 0.7", "--mscale-all-dim has no effect without"},
        {MLA, "--num-layers 4", "add --position-embedding-type rope"},
        {MLA, "--position-embedding-type none", "add --position-embedding-type rope"},
        {ROTARY, "--group-query-attention --num-query-groups 4", "drop --group-query-attention"},
        {ROTARY, "--rotary-interleaved", "drop --rotary-interleaved"},
        {ROTARY, "--rotary-percent 0.5", "give --qk-pos-emb-head-dim"},
        {ROTARY, "--rotary-seq-len-interpolation-factor 2", "use --rotary-scaling-factor"},
        {ROTARY, "--use-rope-scaling", "use --rotary-scaling-factor"},
        {ROTARY, "--add-qkv-bias", "--add-qkv-bias has no effect with --multi-latent-attention"},
        {ROTARY, "--qk-pos-emb-head-dim 7", "make it even"},
        {ROTARY, "--rotary-base 1", "raise it"},
        {ROTARY, "--rope-type rope --rotary-scaling-factor 4", "--rotary-scaling-factor belongs to YaRN"},
        {ROTARY, "--rope-type rope --mscale 2", "--mscale belongs to YaRN"},
        {ROTARY, "--rope-type rope --mscale-all-dim 1", "--mscale-all-dim belongs to YaRN"},
        {ROTARY, "--cache-mla-latents", "for inference only"},
        {ROTARY, "--mla-down-proj-fusion", "the down projections are two matrices"},
    };
    walk(rows, ARRAY_COUNT(rows));
}

TEST(every_rule_of_recompute_refuses_with_a_remedy) {
    static const struct refusal rows[] = {
        {ALL, "--recompute-granularity full", "needs --recompute-method: uniform, block or sqrt"},
        {ALL, "--recompute-granularity full --recompute-method uniform",
         "needs --recompute-num-layers: 1 to"},
        {ALL, "--recompute-granularity full --recompute-method sqrt --recompute-num-layers 2",
         "--recompute-num-layers has no effect with --recompute-method sqrt"},
        {ALL, "--recompute-granularity full --recompute-method sqrt --recompute-num-layers-per-stage 2",
         "--recompute-num-layers-per-stage has no effect with --recompute-method sqrt"},
        {ALL, "--recompute-granularity selective --recompute-method sqrt",
         "selective takes --recompute-modules; drop"},
        {ALL, "--recompute-granularity full --recompute-method uniform --recompute-num-layers 0",
         "--recompute-num-layers 0: must be from 1 to --num-layers 4"},
        {ALL, "--recompute-granularity full --recompute-method block --recompute-num-layers -1",
         "must be from 1"},
        {ALL, "--recompute-granularity full --recompute-method block --recompute-num-layers 5",
         "must be from 1"},
        {ALL, "--recompute-granularity selective --recompute-method uniform",
         "selective takes --recompute-modules; drop"},
        {ALL, "--recompute-granularity selective --recompute-num-layers 1",
         "selective takes --recompute-modules; drop"},
        {ALL, "--recompute-activations --recompute-method block",
         "selective takes --recompute-modules; drop"},
        {ALL,
         "--recompute-activations --recompute-granularity full --recompute-method uniform "
         "--recompute-num-layers 1",
         "--recompute-activations means --recompute-granularity selective and contradicts "
         "--recompute-granularity full"},
        {ALL, "--recompute-method uniform",
         "--recompute-method has no effect without --recompute-granularity full"},
        {ALL, "--recompute-num-layers 1", "--recompute-num-layers has no effect"},
        {ALL, "--recompute-modules mlp", "--recompute-modules has no effect without"},
        {ALL,
         "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1 "
         "--recompute-modules mlp",
         "--recompute-modules has no effect with --recompute-granularity full"},
        {ALL,
         "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1 "
         "--recompute-modules foo",
         "--recompute-modules foo: no such module"},
        {ALL, "--recompute-modules foo", "--recompute-modules foo: no such module"},
        {ALL, "--recompute-activations --recompute-modules core_atn", "did you mean core_attn?"},
        {ALL, "--recompute-activations --recompute-modules mlp moe",
         "--recompute-modules moe: this model has no experts"},
        {ALL, "--recompute-activations --recompute-modules mhc", "use core_attn, mlp, layernorm"},
        {ALL, "--recompute-granularity op --recompute-save-ops gemm,norm",
         "--recompute-save-ops norm: no such"},
        {ALL, "--recompute-granularity op --recompute-save-ops ,", "names no class"},
        {ALL, "--recompute-granularity op --recompute-modules mlp", "op takes --recompute-save-ops; drop it"},
        {ALL, "--recompute-granularity op --recompute-num-layers 1", "op takes --recompute-save-ops; drop"},
        {ALL, "--recompute-save-ops gemm", "--recompute-save-ops has no effect without"},
        {ALL, "--recompute-activations --recompute-granularity op", "contradicts --recompute-granularity op"},
        {ALL, "--distribute-saved-activations", "needs --tensor-model-parallel-size"},
    };
    walk(rows, ARRAY_COUNT(rows));
}

TEST(every_rule_of_precision_data_and_tokenizer_refuses_with_a_remedy) {
    static const struct refusal rows[] = {
        {ALL, "--bf16 --fp16", "--bf16 and --fp16 contradict"},
        {ALL, "--bf16 --loss-scale 8", "--loss-scale is for --fp16"},
        {ALL, "--fp16 --initial-loss-scale 1 --min-loss-scale 2", "--min-loss-scale 2 is above"},
        {ALL, "--grad-reduce-in-bf16", "needs --bf16"},
        {ALL, "--bf16 --grad-reduce-in-bf16 --accumulate-allreduce-grads-in-fp32", "contradict"},
        {ALL, "--on-nan skip --no-check-for-nan-in-loss-and-grad", "--on-nan has no effect"},
        {ALL, "--data-path", "--data-path names no data"},
        {ALL, "--data-path x", "exclude each other: keep one source"},
        {MODEL LENGTH "--vocab-size 9", "--data-path x --train-data-path y", "keep one source"},
        {MODEL LENGTH "--vocab-size 9", "--data-path x --data-args-path y", "exclude each other"},
        {MODEL LENGTH "--vocab-size 9", "--train-data-path x --per-split-data-args-path y", "exclude"},
        {MODEL LENGTH "--vocab-size 9", "--train-data-path x --split 1,0,0", "--split divides --data-path"},
        {ALL, "--split a,b", "give three numbers"},
        {ALL, "--split 1,2,3,4", "at most three numbers"},
        {ALL, "--split 0,0,0", "above 0"},
        {ALL, "--split 1..2,1,1", "is not a number"},
        {ALL, "--split -1,1,1", "give three numbers"},
        {ALL, "--dataloader-type cyclic", "use single"},
        {ALL, "--tokenizer-type GPT2BPETokenizer --vocab-file v", "needs --vocab-file and --merge-file"},
        {ALL, "--tokenizer-type HuggingFaceTokenizer", "needs --tokenizer-model"},
        {ALL, "--vocab-size None --tokenizer-type NullTokenizer", "needs --vocab-size"},
        {ALL, "--tokenizer-type NullTokenizer --vocab-file v --merge-file m",
         "belong to --tokenizer-type GPT2BPETokenizer"},
        {ALL, "--tokenizer-type NullTokenizer --tokenizer-model t",
         "belongs to --tokenizer-type HuggingFaceTokenizer"},
        {ALL, "--tokenizer-type ByteTokenizer --null-tokenizer-eod-id 1",
         "belong to --tokenizer-type NullTokenizer"},
        {ALL, "--null-tokenizer-eod-id 1024", "outside --vocab-size 1024"},
        {ALL, "--tokenizer-type Llama2Tokenizer", "use HuggingFaceTokenizer"},
    };
    walk(rows, ARRAY_COUNT(rows));
}

TEST(every_rule_of_batches_and_schedules_refuses_with_a_remedy) {
    static const struct refusal rows[] = {
        {ALL, "--global-batch-size 6", "is not a multiple of --micro-batch-size 4"},
        {ALL, "--global-batch-size 2", "is less than --micro-batch-size 4"},
        {ALL, "--global-batch-size 2 --decrease-batch-size-if-needed", "is less than --micro-batch-size 4"},
        {ALL, "--rampup-batch-size 4 4 100", "needs --global-batch-size"},
        {ALL, "--rampup-batch-size 16 4 100 --global-batch-size 8", "starts at 16, above"},
        {ALL, "--rampup-batch-size 4 5 100 --global-batch-size 16", "does not meet --global-batch-size 16"},
        {ALL, "--rampup-batch-size 4 2 100 --global-batch-size 16",
         "is not a multiple of --micro-batch-size 4"},
        {ALL, "--micro-batch-size 1 --rampup-batch-size 1 1 100 --global-batch-size 1000001", "too many"},
        {ALL, "--step-batch-size-schedule 0:8 --global-batch-size 8", "exclude each other"},
        {ALL, "--step-batch-size-schedule 0:8 --rampup-batch-size 4 4 4", "exclude each other"},
        {ALL, "--step-batch-size-schedule 0:8 --decrease-batch-size-if-needed", "exclude each other"},
        {ALL, "--step-batch-size-schedule 1K:8", "must start at 0 tokens"},
        {ALL, "--step-batch-size-schedule 0:8,1:16", "start at the same sequence"},
        {ALL, "--step-batch-size-schedule 0:8,1X:16", "'1X:16' is not TOKENS:BATCH"},
        {ALL, "--step-batch-size-schedule 0-8", "'0-8' is not TOKENS:BATCH"},
        {ALL, "--step-batch-size-schedule=", "is empty"},
        {ALL, "--step-batch-size-schedule 0:6", "is not a multiple of --micro-batch-size 4"},
        {ALL, "--train-samples 100", "--train-iters and --train-samples exclude each other"},
        {ALL, "--lr-decay-samples 100", "--lr-decay-samples does not go with --train-iters"},
        {ALL, "--lr-warmup-samples 100", "--lr-warmup-samples does not go with --train-iters"},
        {MODEL DATA "--lr 1 --train-samples 100", "--lr-decay-iters 4",
         "--lr-decay-iters does not go with --train-samples"},
        {MODEL DATA "--lr 1 --train-samples 100", "--lr-warmup-iters 4",
         "--lr-warmup-iters does not go with"},
        {MODEL DATA "--lr 1 --train-samples 3", "", "--train-samples 3 is less than one batch of 4"},
        {ALL, "--lr-warmup-fraction 0.1 --lr-warmup-iters 3",
         "--lr-warmup-fraction and --lr-warmup-iters exclude"},
        {ALL, "--lr-warmup-iters 20", "is not shorter than the decay"},
        {ALL, "--min-lr 1", "--min-lr 1 is above --lr 0.001"},
        {ALL, "--lr-warmup-init 1", "--lr-warmup-init 1 is above"},
        {ALL, "--decoupled-lr 1e-3 --decoupled-min-lr 1", "--decoupled-min-lr 1 is above"},
        {ALL, "--decoupled-min-lr 1", "without --decoupled-lr"},
        {ALL, "--lr-decay-style WSD", "needs --lr-wsd-decay-iters"},
        {ALL, "--lr-decay-style WSD --lr-wsd-decay-iters 21", "longer than the whole decay"},
        {ALL, "--lr-wsd-decay-iters 2", "has no effect without --lr-decay-style WSD"},
        {ALL, "--lr-wsd-decay-style cosine", "has no effect without --lr-decay-style WSD"},
        {ALL, "--start-weight-decay 0.1", "need --weight-decay-incr-style linear or cosine"},
        {ALL, "--weight-decay-incr-style linear", "needs --start-weight-decay and --end-weight-decay"},
        {ALL, "--weight-decay-incr-style linear --start-weight-decay 1 --end-weight-decay 0",
         "is above --end-weight-decay"},
        {ALL, "--weight-decay-incr-style linear --start-weight-decay 0 --end-weight-decay 1 --weight-decay 1",
         "--weight-decay has no effect"},
        {ALL, "--train-iters 1000000000000 --micro-batch-size 1000000 --global-batch-size 1000000000",
         "times --global-batch-size"},
        {ALL, "--eval-micro-batch-size 2", "--eval-micro-batch-size 2 differs from --micro-batch-size 4"},
        {ALL, "--eval-global-batch-size 6",
         "--eval-global-batch-size 6 is not a multiple of --eval-micro-batch-size 4"},
        {ALL, "--skip-train --eval-iters 0", "does nothing"},
        {ALL, "--start-eval-at-iter 3", "without --eval-interval"},
        {ALL, "--exit-signal SIGUSR1", "without --exit-signal-handler"},
    };
    walk(rows, ARRAY_COUNT(rows));
}

TEST(every_rule_of_output_and_layout_refuses_with_a_remedy) {
    static const struct refusal rows[] = {
        {ALL, "--save x", "--save needs --save-interval"},
        {ALL, "--save-interval 3", "without --save"},
        {ALL, "--save x --save-interval 3 --save-retain-interval 4",
         "is not a multiple of --save-interval 3"},
        {ALL, "--save-retain-interval 4", "without --save"},
        {ALL, "--no-save-optim", "without --save"},
        {ALL, "--no-save-rng", "without --save"},
        {ALL, "--ckpt-step 4", "without --load"},
        {ALL, "--exit-on-missing-checkpoint", "without --load"},
        {ALL, "--finetune", "without a checkpoint"},
        {ALL, "--no-load-optim", "without a checkpoint"},
        {ALL, "--no-load-rng", "without a checkpoint"},
        {ALL, "--use-checkpoint-args", "without a checkpoint"},
        {ALL, "--profile --profile-ranks 1", "--profile-ranks 1: there is no such rank"},
        {ALL, "--ckpt-format torch", "use torch_dist"},
        {ALL, "--tensorboard-log-interval 2", "without --tensorboard-dir"},
        {ALL, "--log-timers-to-tensorboard", "without --tensorboard-dir"},
        {ALL, "--log-validation-ppl-to-tensorboard", "without --tensorboard-dir"},
        {ALL, "--log-memory-to-tensorboard", "without --tensorboard-dir"},
        {ALL, "--log-world-size-to-tensorboard", "without --tensorboard-dir"},
        {ALL, "--log-memory-interval 3 --log-interval 2", "is not a multiple of --log-interval 2"},
        {ALL, "--log-params-hash", "without --metrics-file"},
        {ALL, "--profile-step-start 2", "without --profile"},
        {ALL, "--profile-step-end 20", "without --profile"},
        {ALL, "--profile-ranks 0", "without --profile"},
        {ALL, "--profile-trace-file x", "without --profile"},
        {ALL, "--use-pytorch-profiler", "without --profile"},
        {ALL, "--profile --profile-step-start 5 --profile-step-end 5", "is not after --profile-step-start 5"},
        {ALL, "--cross-entropy-fusion-impl linear", "without --cross-entropy-loss-fusion"},
        {ALL, "--device cuda --kernels avx2", "--kernels chooses among the CPU's"},
        {ALL, "--local-rank 1", "--local-rank 1: takes a whole number: only 0"},
    };
    walk(rows, ARRAY_COUNT(rows));
}

TEST(gelu_is_the_form_that_megatron_computes) {
    static const struct {
        const char *flags;
        int activation;
    } rows[] = {
        {"", MLP_ACTIVATION_GELU_TANH},
        {"--no-bias-gelu-fusion", MLP_ACTIVATION_GELU_ERF},
        {"--disable-bias-linear", MLP_ACTIVATION_GELU_ERF},
        {"--disable-bias-linear --openai-gelu", MLP_ACTIVATION_GELU_TANH},
        {"--swiglu", MLP_ACTIVATION_SWIGLU},
        {"--squared-relu", MLP_ACTIVATION_SQUARED_RELU},
        {"--quick-geglu --no-bias-gelu-fusion", MLP_ACTIVATION_QUICK_GEGLU},
    };
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        ACCEPTS(rows[i].flags);
        EXPECT_EQ(cfg.mlp_activation, rows[i].activation);
        config_free(&cfg);
    }
}

TEST(model_values_follow_from_others) {
    ACCEPTS("--swiglu --hidden-size 4096 --num-attention-heads 32 --disable-bias-linear");
    EXPECT_EQ(cfg.ffn_hidden_size, 10880); /* 4096 * 8 / 3 = 10922, down to a multiple of 64 */
    EXPECT_EQ(cfg.kv_channels, 128);
    EXPECT_EQ(cfg.num_query_groups, 32);
    EXPECT_EQ(cfg.qkv_bias, false);
    EXPECT_EQ(cfg.rotary_dim, 0);
    EXPECT_EQ(cfg.attention_backend, ATTENTION_BACKEND_FLASH);
    EXPECT_NEAR(cfg.output_init_std, 0.02 / sqrt(8.0), 1e-15);
    EXPECT_NEAR(cfg.embedding_init_method_std, 0.02, 0);
    EXPECT_EQ(cfg.params_dtype, PARAMS_DTYPE_FP32);
    EXPECT_EQ(cfg.origin[CONFIG_FLAG_ffn_hidden_size], CONFIG_DERIVED);
    EXPECT_EQ(config_is_given(&cfg, ffn_hidden_size), false);
    config_free(&cfg);
    ACCEPTS("--use-rotary-position-embeddings --no-position-embedding --rotary-percent 0.5 --add-qkv-bias "
            "--group-query-attention --num-query-groups 2 --attention-backend unfused");
    EXPECT_EQ(cfg.position_embedding_type, POSITION_EMBEDDING_TYPE_ROPE);
    EXPECT_EQ(cfg.rotary_dim, 16);
    EXPECT_EQ(cfg.num_query_groups, 2);
    EXPECT_EQ(cfg.attention_blockwise, false);
    config_free(&cfg);
    ACCEPTS("--group-query-attention"); /* one group: multi-query attention */
    EXPECT_EQ(cfg.num_query_groups, 1);
    config_free(&cfg);
}

TEST(latent_attention_rotates_its_own_part_with_yarn) {
    ACCEPTS("--multi-latent-attention --position-embedding-type rope --kv-channels 128 --qk-layernorm");
    EXPECT_EQ(cfg.rotary_dim, 64); /* --qk-pos-emb-head-dim, not a share of --kv-channels */
    EXPECT_EQ(cfg.rope_type, ROPE_TYPE_YARN);
    EXPECT_EQ(cfg.origin[CONFIG_FLAG_rope_type], CONFIG_DERIVED);
    EXPECT_EQ(cfg.kv_lora_rank, 32);
    EXPECT_EQ(config_is_set(&cfg, q_lora_rank), false);
    EXPECT_CONTAINS(cfg.notes.data, "--kv-channels: without effect with --multi-latent-attention");
    config_free(&cfg);
    ACCEPTS("--multi-latent-attention --use-rotary-position-embeddings --rope-type rope");
    EXPECT_EQ(cfg.rope_type, ROPE_TYPE_ROPE);
    config_free(&cfg);
}

TEST(recompute_settings_are_what_they_stand_for) {
    ACCEPTS("--recompute-activations");
    EXPECT_EQ(cfg.recompute_granularity, RECOMPUTE_GRANULARITY_SELECTIVE);
    EXPECT_EQ(cfg.recompute_modules.count, 1);
    EXPECT_STR(cfg.recompute_modules.items[0], "core_attn");
    config_free(&cfg);
    ACCEPTS("--recompute-activations --recompute-granularity selective --recompute-modules mlp layernorm");
    EXPECT_EQ(cfg.recompute_modules.count, 2);
    config_free(&cfg);
    ACCEPTS("--recompute-granularity full --recompute-method uniform --recompute-num-layers 3");
    EXPECT_EQ(cfg.recompute_num_layers, 3);
    config_free(&cfg);
    ACCEPTS("--recompute-granularity full --recompute-granularity None");
    EXPECT_EQ(cfg.recompute_granularity, CONFIG_UNSET_CHOICE);
    config_free(&cfg);
}

TEST(batches_iterations_and_schedules_follow_from_others) {
    ACCEPTS("--global-batch-size 12 --lr-warmup-fraction 0.25 --eval-interval 5");
    EXPECT_EQ(cfg.batch_stage_count, 1);
    EXPECT_EQ(config_batch_size_at(&cfg, 1000), 12);
    EXPECT_EQ(cfg.lr_decay_iters, 20);
    EXPECT_EQ(cfg.lr_decay_steps, 240);
    EXPECT_EQ(cfg.wd_incr_steps, 240);
    EXPECT_NEAR(cfg.lr_warmup_steps, 60, 0);
    EXPECT_NEAR(cfg.end_weight_decay, 0.01, 0);
    EXPECT_EQ(cfg.eval_global_batch_size, 12);
    config_free(&cfg);
    ACCEPTS("--global-batch-size 14 --decrease-batch-size-if-needed");
    EXPECT_EQ(config_batch_size_at(&cfg, 0), 12);
    EXPECT_CONTAINS(cfg.notes.data, "a batch of 14 runs as 12");
    config_free(&cfg);
    /* 2,560 tokens are 10 sequences of 256; the batch is 4 before, 8 after */
    ACCEPTS("--step-batch-size-schedule 2.56K:8,0:4");
    EXPECT_EQ(cfg.global_batch_size, 8);
    EXPECT_EQ(config_batch_size_at(&cfg, 9), 4);
    EXPECT_EQ(config_batch_size_at(&cfg, 10), 8);
    config_free(&cfg);
    EXPECT(!validate(MODEL DATA "--lr 1 --train-samples 100",
                     "--step-batch-size-schedule 0:4,2.56K:8 --lr-warmup-samples 7"),
           "%s", err.text);
    EXPECT_EQ(cfg.train_iters, 14); /* 3 steps of 4 reach 12 samples, 11 of 8 reach 100 */
    EXPECT_EQ(cfg.lr_decay_steps, 100);
    EXPECT_NEAR(cfg.lr_warmup_steps, 7, 0);
    config_free(&cfg);
}

TEST(a_ramp_up_counts_as_the_plain_loop_does) {
    EXPECT(!validate(MODEL DATA "--lr 1 --train-samples 5000",
                     "--rampup-batch-size 8 4 700 --global-batch-size 32"),
           "%s", err.text);
    double per_step = 700.0 / 6;
    int64_t consumed = 0, iterations = 0;
    for (;;) {
        int64_t batch = consumed > 700 ? 32 : 8 + 4 * (int64_t)((double)consumed / per_step);
        EXPECT_EQ(config_batch_size_at(&cfg, consumed), batch);
        if (consumed + batch > 5000) break;
        consumed += batch;
        iterations++;
    }
    EXPECT_EQ(cfg.train_iters, iterations);
    config_free(&cfg);
}

TEST(the_vocabulary_is_padded_as_megatron_pads_it) {
    ACCEPTS("");
    EXPECT_EQ(config_padded_vocab_size(&cfg, 50257, &err), 50304);
    EXPECT_EQ(config_padded_vocab_size(&cfg, 128, &err), 128);
    config_free(&cfg);
    ACCEPTS("--no-pad-vocab-size");
    EXPECT_EQ(config_padded_vocab_size(&cfg, 50257, &err), 50257);
    config_free(&cfg);
    ACCEPTS("--padded-vocab-size 60000 --make-vocab-size-divisible-by 1000");
    EXPECT_EQ(config_padded_vocab_size(&cfg, 50257, &err), 60000);
    EXPECT_EQ(config_padded_vocab_size(&cfg, 60001, &err), -1);
    EXPECT_CONTAINS(err.text, "--padded-vocab-size 60000 is smaller");
    config_free(&cfg);
}

TEST(a_tokenizer_is_chosen_from_what_is_given) {
    ACCEPTS("");
    EXPECT_EQ(cfg.tokenizer_type, TOKENIZER_TYPE_NULL);
    config_free(&cfg);
    ACCEPTS("--vocab-size None");
    EXPECT_EQ(cfg.tokenizer_type, TOKENIZER_TYPE_BYTE);
    config_free(&cfg);
    ACCEPTS("--vocab-file v --merge-file m");
    EXPECT_EQ(cfg.tokenizer_type, TOKENIZER_TYPE_GPT2_BPE);
    config_free(&cfg);
    ACCEPTS("--tokenizer-model m");
    EXPECT_EQ(cfg.tokenizer_type, TOKENIZER_TYPE_HUGGING_FACE);
    config_free(&cfg);
}

/* Writes the text to a file and validates with `flag FILE`. */
static int validate_file(const char *flag, const char *text, const char *more) {
    struct temp_dir dir;
    char tail[1024];
    temp_dir_make(&dir);
    const char *path = temp_dir_file(&dir, "data");
    FILE *file = fopen(path, "wb");
    EXPECT(file, "cannot write %s", path);
    fputs(text, file);
    fclose(file);
    snprintf(tail, sizeof(tail), "%s %s %s", flag, path, more);
    int status = validate(MODEL LENGTH "--vocab-size 9", tail);
    temp_dir_remove(&dir);
    return status;
}

TEST(data_paths_are_read_from_files) {
    EXPECT(!validate_file("--data-args-path", "0.3 a\n0.7  b/c\n", ""), "%s", err.text);
    EXPECT_EQ(cfg.data_path.count, 4);
    EXPECT_STR(cfg.data_path.items[3], "b/c");
    EXPECT_EQ(cfg.origin[CONFIG_FLAG_data_path], CONFIG_DERIVED);
    config_free(&cfg);
    EXPECT(!validate_file("--per-split-data-args-path",
                          "{\"train\": [0.5, \"a\", \"1\", \"b\"], \"valid\": \"c\", \"test\": null}", ""),
           "%s", err.text);
    EXPECT_EQ(cfg.train_data_path.count, 4);
    EXPECT_STR(cfg.train_data_path.items[0], "0.5");
    EXPECT_STR(cfg.valid_data_path.items[0], "c");
    EXPECT_EQ(cfg.test_data_path.count, -1);
    config_free(&cfg);
    static const struct {
        const char *flag, *text, *says;
    } rows[] = {
        {"--data-args-path", " \n", "names no data"},
        {"--per-split-data-args-path", "[1]", "must be an object"},
        {"--per-split-data-args-path", "{\"trian\": [\"a\"]}", "'trian' is no split"},
        {"--per-split-data-args-path", "{\"train\": []}", "'train' is empty"},
        {"--per-split-data-args-path", "{\"train\": [[1]]}", "must hold prefixes and weights"},
        {"--per-split-data-args-path", "{", "line 1"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        EXPECT(validate_file(rows[i].flag, rows[i].text, ""), "taken: %s", rows[i].text);
        EXPECT_CONTAINS(err.text, rows[i].says);
    }
    EXPECT(validate(MODEL LENGTH "--vocab-size 9", "--data-args-path /nonexistent"), "taken");
    EXPECT_CONTAINS(err.text, "--data-args-path /nonexistent: No such file");
}

TEST(a_dry_run_needs_neither_data_nor_a_schedule) {
    EXPECT(!validate(MODEL "--vocab-size 1000", "--dry-run-json x"), "%s", err.text);
    EXPECT_EQ(cfg.dry_run, true);
    config_free(&cfg);
    EXPECT(!validate(MODEL "--vocab-size 1000", "--estimate-memory-only"), "%s", err.text);
    config_free(&cfg);
}

RUN_TESTS(CASE(what_is_required_is_asked_for_by_name), CASE(every_rule_of_the_model_refuses_with_a_remedy),
          CASE(every_rule_of_latent_attention_refuses_with_a_remedy),
          CASE(every_rule_of_recompute_refuses_with_a_remedy),
          CASE(every_rule_of_precision_data_and_tokenizer_refuses_with_a_remedy),
          CASE(every_rule_of_batches_and_schedules_refuses_with_a_remedy),
          CASE(every_rule_of_output_and_layout_refuses_with_a_remedy),
          CASE(gelu_is_the_form_that_megatron_computes), CASE(model_values_follow_from_others),
          CASE(latent_attention_rotates_its_own_part_with_yarn),
          CASE(recompute_settings_are_what_they_stand_for),
          CASE(batches_iterations_and_schedules_follow_from_others),
          CASE(a_ramp_up_counts_as_the_plain_loop_does), CASE(the_vocabulary_is_padded_as_megatron_pads_it),
          CASE(a_tokenizer_is_chosen_from_what_is_given), CASE(a_dry_run_needs_neither_data_nor_a_schedule),
          CASE(data_paths_are_read_from_files))
