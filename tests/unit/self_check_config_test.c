/* The small copy of a configuration must be legal, keep every switch, and hold the whole model. The oracle
 * for "legal" is config_validate itself: the small sizes are given as flags behind the user's, and must pass.
 */
#include "core/base/mem.h"
#include "core/base/str.h"
#include "core/train/self_check.h"
#include "tests/test.h"

#define ROPE   " --position-embedding-type rope"
#define GROUPS " --group-query-attention --num-query-groups "
#define FULL   " --recompute-granularity full --recompute-method "
#define TP     " --tensor-model-parallel-size "
#define PP     " --pipeline-model-parallel-size "
#define CP     " --context-parallel-size "
#define VPP    " --num-virtual-stages-per-pipeline-rank "
#define MOE    " --disable-bias-linear --num-experts "

/* ranks, and what is added to `common` */
static const struct {
    int ranks;
    const char *flags;
} settings[] = {
    {1, " --bf16"},
    {1, " --fp16 --loss-scale 128 --rampup-batch-size 32 32 1000"},
    {1, FULL "uniform --recompute-num-layers 5"},
    {1, " --recompute-granularity full --recompute-layer-ids 0 7 8 31"},
    {2, TP "2 --sequence-parallel"},
    {2, TP "2" ROPE " --rotary-percent 0.1 --kv-channels 24"},
    {3, " --micro-batch-size 1 --global-batch-size 3"},
    {4, TP "4" GROUPS "2" ROPE " --swiglu"},
    {4, TP "4" GROUPS "1"},
    {8, TP "2" CP "2 --cp-comm-type a2a" GROUPS "8"},
    {8, TP "8 --sequence-parallel" GROUPS "16 --no-pad-vocab-size --vocab-size 32000"},
    {8, TP "4" FULL "block --recompute-num-layers 8 --distribute-saved-activations"},
    {8, CP "4 --use-megatron-fsdp"},
    {8,
     " --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather --ddp-bucket-size 1000000"},
    {8, PP "4 --decoder-first-pipeline-num-layers 6 --decoder-last-pipeline-num-layers 6"},
    {8, PP "4 --decoder-last-pipeline-num-layers 8"},
    {2, PP "2 --decoder-first-pipeline-num-layers 12"},
    {4, PP "2" VPP "4" FULL "uniform --recompute-num-layers 2"},
    {8, PP "8" VPP "4 --microbatch-group-size-per-virtual-pipeline-stage 32"},
    {8, PP "4" VPP "2 --num-layers 30 --account-for-embedding-in-pipeline-split"
           " --account-for-loss-in-pipeline-split"},
    {4, PP "2 --pipeline-schedule zero-bubble" FULL "block --recompute-num-layers-per-stage 3 0"},
    {4, PP
     "2 --pipeline-model-parallel-layout E(t|)*3t*29L --recompute-granularity full --recompute-layer-ids 2 "
     "30"},
    {16, TP "2" PP "2" CP "2 --use-tp-pp-dp-mapping --use-distributed-optimizer"},
    {4, TP "4 --multi-latent-attention --q-lora-rank 64 --kv-lora-rank 128" ROPE},
    {2, PP "2 --multi-latent-attention" ROPE},
    {2, MOE "64 --moe-ffn-hidden-size 100 --swiglu"},
    {2, MOE "8 --moe-router-topk 8 --moe-layer-freq 3 --use-megatron-fsdp"},
    {4, PP "2" MOE "256 --moe-layer-freq [0]*3+[1]*29 --moe-router-num-groups 8 --moe-router-group-topk 4"
           " --moe-router-topk 8 --moe-router-score-function sigmoid"
           " --moe-shared-expert-intermediate-size 300 --use-distributed-optimizer"},
    {8, TP "2 --sequence-parallel" MOE "64 --expert-model-parallel-size 4 --moe-ffn-hidden-size 96"
           " --moe-shared-expert-intermediate-size 300"},
    {32, TP "4 --sequence-parallel" PP "2" MOE "96 --expert-model-parallel-size 8"
            " --expert-tensor-parallel-size 2 --moe-ffn-hidden-size 96 --moe-router-num-groups 12"
            " --moe-router-group-topk 4 --moe-router-topk 8 --use-distributed-optimizer"},
    {16, MOE "16 --expert-model-parallel-size 16 --use-megatron-fsdp --moe-expert-capacity-factor 1.5"
             " --moe-pad-expert-input-to-capacity"},
    {2,
     TP "2 --sequence-parallel" MOE "16 --moe-expert-capacity-factor 1.5 --moe-pad-expert-input-to-capacity"},
    {1, MOE "6 --moe-router-num-groups 3 --moe-router-group-topk 2 --moe-router-topk 4"
            " --moe-layer-freq [0]*31+[1]"},
    {64, TP "8" PP "4" CP "2 --sequence-parallel" GROUPS "8" ROPE},
    {80, TP "16 --hidden-size 4096 --num-attention-heads 64" GROUPS "8 --micro-batch-size 1"
            " --global-batch-size 40"},
};
enum { CASES = sizeof(settings) / sizeof(settings[0]) };
static const char common[] =
    "pretrain_gpt --num-layers 32 --hidden-size 512 --num-attention-heads 32 --seq-length 1024 "
    "--max-position-embeddings 2048 --micro-batch-size 4 --global-batch-size 256 --train-iters 10 --lr 1e-4 "
    "--mock-data --vocab-size 50257 --cpu-threads 1 --dry-run";

static void parse(const char *text, struct config *cfg) {
    const char *argv[256];
    struct err err = {""};
    char *copy = mem_strdup(text, "flags"), *at = copy;
    int argc = 0;
    for (char *word; (word = strsep(&at, " "));)
        if (*word) argv[argc++] = word;
    EXPECT(!config_parse(argc, argv, cfg, &err) && !config_validate(cfg, NULL, 0, &err), "%s\n#   %s",
           err.text, text);
    mem_free(copy);
}

struct setting {
    struct str text;
    struct config cfg;
    struct self_check_configs small;
};

static void open_case(struct setting *s, int i) {
    *s = (struct setting){.text = {0}};
    str_printf(&s->text, "%s --world-size %d%s", common, settings[i].ranks, settings[i].flags);
    parse(s->text.data, &s->cfg);
    self_check_shrink(&s->cfg, &s->small);
}

static void close_case(struct setting *s) {
    self_check_free_configs(&s->small);
    config_free(&s->cfg);
    str_free(&s->text);
}

static void put(struct str *text, const char *flag, int64_t value) {
    str_printf(text, " --%s %lld", flag, (long long)value);
}

static void put_all(struct str *text, const char *flag, const struct config_ints *list) {
    if (list->count <= 0) return;
    str_printf(text, " --%s", flag);
    for (int64_t i = 0; i < list->count; i++) str_printf(text, " %lld", (long long)list->items[i]);
}

static void put_experts(struct str *text, const struct config *c) {
    put(text, "num-experts", c->num_experts);
    put(text, "moe-ffn-hidden-size", c->moe_ffn_hidden_size);
    put(text, "moe-router-topk", c->moe_router_topk);
    if (config_is_set(c, moe_shared_expert_intermediate_size))
        put(text, "moe-shared-expert-intermediate-size", c->moe_shared_expert_intermediate_size);
    str_puts(text, " --moe-layer-freq ");
    for (int64_t i = 0; i < c->num_layers; i++)
        str_printf(text, "%c%c", i ? ',' : '[', c->moe_layer_pattern[i]);
    str_puts(text, "]");
}

/* The small sizes as flags. */
static void put_sizes(struct str *text, const struct config *c) {
    put(text, "num-layers", c->num_layers);
    put(text, "hidden-size", c->hidden_size);
    put(text, "ffn-hidden-size", c->ffn_hidden_size);
    put(text, "num-attention-heads", c->num_attention_heads);
    if (!c->multi_latent_attention) put(text, "kv-channels", c->kv_channels);
    put(text, "seq-length", c->seq_length);
    put(text, "max-position-embeddings", c->max_position_embeddings);
    put(text, "micro-batch-size", c->micro_batch_size);
    put(text, "global-batch-size", c->global_batch_size);
    put(text, "vocab-size", c->vocab_size);
    if (c->group_query_attention) put(text, "num-query-groups", c->num_query_groups);
    if (c->virtual_stages > 1)
        put(text, "microbatch-group-size-per-virtual-pipeline-stage", c->microbatch_group_size_per_vp_stage);
    if (config_is_set(c, decoder_first_pipeline_num_layers))
        put(text, "decoder-first-pipeline-num-layers", c->decoder_first_pipeline_num_layers);
    if (config_is_set(c, decoder_last_pipeline_num_layers))
        put(text, "decoder-last-pipeline-num-layers", c->decoder_last_pipeline_num_layers);
    if (config_is_set(c, recompute_num_layers)) put(text, "recompute-num-layers", c->recompute_num_layers);
    put_all(text, "recompute-layer-ids", &c->recompute_layer_ids);
    put_all(text, "recompute-num-layers-per-stage", &c->recompute_num_layers_per_stage);
    if (config_is_set(c, num_experts)) put_experts(text, c);
    if (config_is_set(c, rampup_batch_size)) str_puts(text, " --rampup-batch-size 2 2 10");
    if (c->multi_latent_attention) {
        if (config_is_set(c, q_lora_rank)) put(text, "q-lora-rank", c->q_lora_rank);
        put(text, "kv-lora-rank", c->kv_lora_rank);
        put(text, "qk-head-dim", c->qk_head_dim);
        put(text, "qk-pos-emb-head-dim", c->qk_pos_emb_head_dim);
        put(text, "v-head-dim", c->v_head_dim);
    } else if (c->rotary_dim)
        str_printf(text, " --rotary-percent %g", (double)c->rotary_dim / (double)c->kv_channels);
}

TEST(the_small_sizes_pass_every_rule) {
    for (int i = 0; i < CASES; i++) {
        struct setting s;
        struct config small;
        open_case(&s, i);
        put_sizes(&s.text, &s.small.layout);
        parse(s.text.data, &small);
        /* and what the rules derive from them is what the copy holds */
        EXPECT_EQ(small.virtual_stages, s.small.layout.virtual_stages);
        EXPECT_EQ(small.data_parallel_size, s.small.layout.data_parallel_size);
        EXPECT_EQ(small.num_query_groups, s.small.layout.num_query_groups);
        EXPECT_EQ(small.rotary_dim, s.small.layout.rotary_dim);
        EXPECT_EQ(small.pipeline_schedule, s.small.layout.pipeline_schedule);
        EXPECT_EQ(small.sharding, s.small.layout.sharding);
        config_free(&small);
        close_case(&s);
    }
}

TEST(the_copy_is_small) {
    for (int i = 0; i < CASES; i++) {
        struct setting s;
        open_case(&s, i);
        const struct config *c = &s.small.layout;
        int64_t tp = c->tensor_model_parallel_size, cp = c->context_parallel_size;
        int64_t chunks = c->pipeline_model_parallel_size * c->virtual_stages;
        EXPECT(c->num_layers <= (chunks > 1 ? 2 * chunks : 3) || c->pipeline_model_parallel_layout,
               "%lld layers", (long long)c->num_layers);
        EXPECT(c->seq_length <= 36 + 2 * tp * cp, "%lld tokens", (long long)c->seq_length);
        EXPECT(c->ffn_hidden_size <= 96 + tp && c->hidden_size == 64, "wide");
        EXPECT(c->params_dtype == PARAMS_DTYPE_FP32 && !c->bf16 && !c->fp16, "not fp32");
        close_case(&s);
    }
}

/* As many experts are chosen, of more, in as many groups; some layers have experts, and some do not where the
 * user's do not; each rank that splits them has some, and more than one where the user's has. */
static void expect_experts_of_a_kind(const struct config *u, const struct config *c) {
    int64_t ep = u->expert_model_parallel_size;
    EXPECT_EQ(u->moe_router_topk, c->moe_router_topk);
    EXPECT_EQ(u->num_experts > u->moe_router_topk, c->num_experts > c->moe_router_topk);
    EXPECT_EQ(u->num_experts > ep, c->num_experts > ep);
    EXPECT_EQ(c->num_experts % ep, 0);
    EXPECT_EQ(config_is_set(c, moe_expert_capacity_factor),
              config_is_set(u, moe_expert_capacity_factor) && !u->sequence_parallel);
    EXPECT(!c->moe_pad_expert_input_to_capacity || config_is_set(c, moe_expert_capacity_factor),
           "no capacity");
    EXPECT(c->num_experts <= u->num_experts && c->num_experts <= 2 * ep + 32, "%lld experts",
           (long long)c->num_experts);
    EXPECT_EQ(strlen(c->moe_layer_pattern), (size_t)c->num_layers);
    EXPECT(strchr(c->moe_layer_pattern, '1') != NULL, "no layer has experts");
    EXPECT_EQ(strchr(u->moe_layer_pattern, '0') != NULL, strchr(c->moe_layer_pattern, '0') != NULL);
    if (!config_is_set(u, moe_router_num_groups)) return;
    int64_t groups = u->moe_router_num_groups, chosen = u->moe_router_topk / u->moe_router_group_topk;
    EXPECT_EQ(groups, c->moe_router_num_groups);
    EXPECT_EQ(u->num_experts / groups > chosen, c->num_experts / groups > chosen);
}

/* A ratio of query heads to key/value heads, fewer key/value heads than ranks, a partly recomputed chunk and
 * padding stay what they are in kind. */
TEST(the_kinds_stay) {
    for (int i = 0; i < CASES; i++) {
        struct setting s;
        open_case(&s, i);
        const struct config *u = &s.cfg, *c = &s.small.layout;
        int64_t tp = u->tensor_model_parallel_size;
        EXPECT((u->num_query_groups < u->num_attention_heads) ==
                   (c->num_query_groups < c->num_attention_heads),
               "case %d: %lld groups of %lld heads", i, (long long)c->num_query_groups,
               (long long)c->num_attention_heads);
        if (u->num_query_groups < tp) EXPECT_EQ(c->num_query_groups, u->num_query_groups);
        if (config_is_set(u, recompute_num_layers)) {
            int64_t chunk = u->num_layers / u->pipeline_model_parallel_size / u->virtual_stages;
            int64_t small = c->num_layers / u->pipeline_model_parallel_size / u->virtual_stages;
            EXPECT((u->recompute_num_layers < chunk && u->recompute_method == RECOMPUTE_METHOD_BLOCK) ==
                       (c->recompute_num_layers < small),
                   "case %d: %lld of %lld layers", i, (long long)c->recompute_num_layers, (long long)small);
        }
        if (u->pad_vocab_size) EXPECT(c->vocab_size % (8 * tp) != 0, "nothing is padded");
        if (config_is_set(u, num_experts)) expect_experts_of_a_kind(u, c);
        EXPECT_EQ(u->cp_comm, c->cp_comm);
        EXPECT_EQ(u->overlap_grad_reduce, c->overlap_grad_reduce);
        EXPECT_EQ(u->distribute_saved_activations, c->distribute_saved_activations);
        EXPECT_EQ(u->recompute_granularity, c->recompute_granularity);
        EXPECT_EQ(u->mlp_activation, c->mlp_activation);
        EXPECT(u->hidden_dropout == c->hidden_dropout && u->clip_grad == c->clip_grad, "switches changed");
        close_case(&s);
    }
}

/* Every rank of the small copy can be planned, and together they count each element of the reference's model
 * once (rows that pad the vocabulary apart). */
TEST(all_ranks_together_hold_the_reference) {
    for (int i = 0; i < CASES; i++) {
        struct setting s;
        struct setup setup, reference;
        struct err err = {""};
        int64_t counted = 0, padding = 0;
        open_case(&s, i);
        EXPECT(!setup_open(&reference, &s.small.reference, 0, 1, &err), "case %d: %s", i, err.text);
        for (int rank = 0; rank < settings[i].ranks; rank++) {
            EXPECT(!setup_open(&setup, &s.small.layout, rank, 1, &err), "case %d: %s", i, err.text);
            for (int k = 0; k < setup.plan.num_params; k++) counted += setup.plan.params[k].counted;
            int64_t tables = setup.plan.request.model.tied ? 1 : 2;
            padding = (setup.padded_vocab_size - setup.vocab_size) * tables * s.small.layout.hidden_size;
            setup_close(&setup);
        }
        EXPECT_EQ(counted - padding, reference.plan.num_parameters);
        EXPECT_EQ(reference.padded_vocab_size, s.small.layout.vocab_size);
        setup_close(&reference);
        close_case(&s);
    }
}

RUN_TESTS(CASE(the_small_sizes_pass_every_rule), CASE(the_copy_is_small), CASE(the_kinds_stay),
          CASE(all_ranks_together_hold_the_reference))
