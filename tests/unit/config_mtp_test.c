/* Flags of multi-token prediction: what does not go together is refused with the names and a remedy, and what
 * the flags say reaches the model, its parameters' names and the count of its layers. */
#include "core/base/mem.h"
#include "core/config/config.h"
#include "core/plan.h"
#include "tests/test.h"
#include <stdio.h>
#include <string.h>

#define BASE                                                                                                 \
    "pretrain_gpt --num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 16 "                  \
    "--max-position-embeddings 16 --micro-batch-size 1 --train-iters 2 --lr 1e-3 --mock-data --vocab-size "  \
    "64 --disable-bias-linear --normalization RMSNorm --swiglu --ffn-hidden-size 48 "
#define ROPE BASE "--position-embedding-type rope "

static struct config cfg;
static struct err err;

static int validate(const char *head, const char *tail) {
    static char text[2048];
    const char *argv[128];
    int argc = 0;
    snprintf(text, sizeof(text), "%s %s", head, tail);
    for (char *at = text; *at && argc < 128;) {
        at += strspn(at, " ");
        if (!*at) break;
        argv[argc++] = at;
        at += strcspn(at, " ");
        if (*at) *at++ = 0;
    }
    err.text[0] = 0;
    if (config_parse(argc, argv, &cfg, &err)) return -1;
    if (!config_validate(&cfg, NULL, 0, &err)) return 0;
    config_free(&cfg);
    return -1;
}

static void refuses(const char *head, const char *tail, const char *says, const char *remedy) {
    bool taken = !validate(head, tail);
    EXPECT(!taken, "'%s' is taken", tail);
    if (taken) {
        config_free(&cfg);
        return;
    }
    EXPECT_CONTAINS(err.text, says);
    EXPECT_CONTAINS(err.text, remedy);
    EXPECT(!strchr(err.text, '\n'), "'%s' is more than one line", err.text);
}

TEST(what_does_not_go_together_is_refused_with_a_remedy) {
    refuses(BASE, "--mtp-num-layers 1", "--mtp-num-layers rolls the tokens",
            "--position-embedding-type rope or none");
    refuses(ROPE, "--mtp-loss-scaling-factor 0.2", "--mtp-loss-scaling-factor has no effect",
            "add --mtp-num-layers");
    refuses(ROPE, "--mtp-num-layers 0 --mtp-loss-scaling-factor 0.2",
            "--mtp-loss-scaling-factor has no effect", "add --mtp-num-layers");
    refuses(ROPE, "--mtp-num-layers 9", "--mtp-num-layers", "8");
    refuses(ROPE "--seq-length 4 ", "--mtp-num-layers 4", "--mtp-num-layers 4 leaves the last depth no token",
            "lower it");
    refuses(ROPE, "--mtp-num-layers 1 --mtp-loss-scaling-factor -1", "--mtp-loss-scaling-factor", "0");
    refuses(ROPE, "--mtp-num-layers 2 --mtp-use-repeated-layer", "--mtp-use-repeated-layer", "drop it");
    refuses(ROPE, "--mtp-num-layers 2 --recompute-granularity full --recompute-layer-ids 4",
            "--recompute-layer-ids 4", "the layers are 0 to 3");
    refuses(ROPE, "--recompute-granularity full --recompute-layer-ids 2", "--recompute-layer-ids 2",
            "the layers are 0 to 1");
}

static void expect_model(const char *head, const char *tail, int depths, double factor, int moe_layers) {
    struct model m;
    if (validate(head, tail)) {
        EXPECT(false, "'%s': %s", tail, err.text);
        return;
    }
    model_from_config(&cfg, 64, &m);
    EXPECT_EQ(m.mtp_layers, depths);
    EXPECT_NEAR(cfg.mtp_loss_scaling_factor, factor, 1e-12);
    EXPECT_EQ(model_num_moe_layers(&m), moe_layers);
    config_free(&cfg);
}

TEST(flags_reach_the_model) {
    expect_model(ROPE, "", 0, 0.1, 0);
    expect_model(ROPE, "--mtp-num-layers 2", 2, 0.1, 0);
    expect_model(BASE, "--mtp-num-layers 0", 0, 0.1, 0);
    expect_model(BASE, "--position-embedding-type none --mtp-num-layers 8 --mtp-loss-scaling-factor 0", 8, 0,
                 0);
    expect_model(ROPE, "--mtp-num-layers 3 --num-experts 4 --moe-layer-freq [0,1]", 3, 0.1, 4);
    expect_model(ROPE, "--mtp-num-layers 3 --num-experts 4 --moe-layer-freq [1,0]", 3, 0.1, 1);
    expect_model(ROPE, "--mtp-num-layers 2 --recompute-granularity full --recompute-layer-ids 0 3", 2, 0.1,
                 0);
}

TEST(parameters_have_the_names_of_megatron_lm) {
    static const char *const names[] = {"enorm.weight",
                                        "hnorm.weight",
                                        "eh_proj.weight",
                                        "transformer_layer.input_layernorm.weight",
                                        "transformer_layer.self_attention.linear_qkv.weight",
                                        "transformer_layer.self_attention.linear_proj.weight",
                                        "transformer_layer.pre_mlp_layernorm.weight",
                                        "transformer_layer.mlp.linear_fc1.weight",
                                        "transformer_layer.mlp.linear_fc2.weight",
                                        "final_layernorm.weight"};
    struct model with, without;
    struct plan_tensor *all;
    EXPECT(!validate(ROPE, "--mtp-num-layers 2"), "%s", err.text);
    model_from_config(&cfg, 64, &with);
    config_free(&cfg);
    without = with;
    without.mtp_layers = 0;
    int before = plan_all_tensors(&without, &all);
    for (int i = 0; i < before; i++) mem_free(all[i].name);
    mem_free(all);
    int count = plan_all_tensors(&with, &all), per_depth = (int)ARRAY_COUNT(names);
    EXPECT_EQ(count, before + 2 * per_depth);
    for (int i = before; i < count && i < before + 2 * per_depth; i++) {
        char name[128];
        snprintf(name, sizeof(name), "mtp.layers.%d.%s", (i - before) / per_depth,
                 names[(i - before) % per_depth]);
        EXPECT_STR(all[i].name, name);
        if (!strcmp(names[(i - before) % per_depth], "eh_proj.weight"))
            EXPECT(all[i].dims[0] == 32 && all[i].dims[1] == 64, "[%lld, %lld]", (long long)all[i].dims[0],
                   (long long)all[i].dims[1]);
    }
    for (int i = 0; i < count; i++) mem_free(all[i].name);
    mem_free(all);
}

TEST(a_depths_router_has_a_bias_of_its_own_name) {
    struct model m;
    struct plan_tensor *all;
    int found = 0, equal = 0;
    EXPECT(!validate(ROPE, "--mtp-num-layers 2 --num-experts 4 --disable-bias-linear "
                           "--moe-router-score-function sigmoid --moe-router-enable-expert-bias"),
           "%s", err.text);
    model_from_config(&cfg, 64, &m);
    int count = plan_all_tensors(&m, &all);
    for (int i = 0; i < count; i++) {
        found += !strcmp(all[i].name, "mtp.layers.1.transformer_layer.mlp.router.expert_bias");
        for (int k = 0; k < i; k++) equal += !strcmp(all[i].name, all[k].name);
    }
    EXPECT_EQ(found, 1);
    EXPECT_EQ(equal, 0);
    for (int i = 0; i < count; i++) mem_free(all[i].name);
    mem_free(all);
    config_free(&cfg);
}

RUN_TESTS(CASE(a_depths_router_has_a_bias_of_its_own_name),
          CASE(what_does_not_go_together_is_refused_with_a_remedy), CASE(flags_reach_the_model),
          CASE(parameters_have_the_names_of_megatron_lm))
