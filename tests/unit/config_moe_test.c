/* Flags of mixtures of experts: each contradiction is refused with the names and a remedy, patterns of layers
 * are Python's, and what the flags say reaches the model. */
#include "core/config/config.h"
#include "core/model/model.h"
#include "tests/test.h"

#define DENSE                                                                                                \
    "pretrain_gpt --num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 "                  \
    "--max-position-embeddings 32 --micro-batch-size 1 --train-iters 2 --lr 1e-3 --mock-data --vocab-size "  \
    "64 "                                                                                                    \
    "--disable-bias-linear --swiglu --ffn-hidden-size 96 "
#define MOE DENSE "--num-experts 8 "

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
}

TEST(contradictions_are_refused_with_a_remedy) {
    refuses(DENSE, "--moe-router-topk 2", "--moe-router-topk has no effect without --num-experts",
            "add --num-experts");
    refuses(DENSE, "--num-experts 0 --moe-grouped-gemm", "--moe-grouped-gemm has no effect",
            "drop --moe-grouped-gemm");
    refuses(MOE, "--moe-router-topk 9", "--moe-router-topk 9 is more than --num-experts 8", "lower it");
    refuses(MOE, "--moe-router-topk 1", "--moe-router-topk 1", "add --moe-router-pre-softmax");
    refuses(MOE, "--moe-router-pre-softmax --moe-router-score-function sigmoid", "--moe-router-pre-softmax",
            "drop");
    refuses(MOE, "--moe-router-group-topk 2", "--moe-router-group-topk", "--moe-router-num-groups");
    refuses(MOE, "--moe-router-num-groups 2", "--moe-router-num-groups", "--moe-router-group-topk");
    refuses(MOE, "--moe-router-num-groups 3 --moe-router-group-topk 1", "--num-experts 8", "change one");
    refuses(MOE, "--moe-router-num-groups 2 --moe-router-group-topk 4", "--moe-router-group-topk 4",
            "change one");
    refuses(MOE, "--moe-router-topk 6 --moe-router-num-groups 4 --moe-router-group-topk 2", "takes 3 experts",
            "change one");
    refuses(MOE, "--moe-shared-expert-gate", "--moe-shared-expert-gate",
            "--moe-shared-expert-intermediate-size");
    refuses(MOE, "--moe-router-load-balancing-type none --moe-aux-loss-coeff 0.1", "--moe-aux-loss-coeff",
            "drop");
    refuses(MOE, "--moe-router-load-balancing-type sinkhorn", "sinkhorn", "aux_loss");
    refuses(MOE, "--moe-router-load-balancing-type aux_loss global_aux_loss",
            "--moe-router-load-balancing-type", "one");
    refuses(MOE, "--moe-router-enable-expert-bias", "--moe-router-enable-expert-bias needs", "sigmoid");
    refuses(MOE, "--moe-router-bias-update-rate 0.01", "--moe-router-bias-update-rate has no effect",
            "--moe-router-enable-expert-bias");
    refuses(MOE, "--moe-token-drop-policy probs", "--moe-token-drop-policy has no effect",
            "--moe-expert-capacity-factor");
    refuses(MOE, "--moe-pad-expert-input-to-capacity", "--moe-pad-expert-input-to-capacity needs",
            "--moe-expert-capacity-factor");
    refuses(MOE, "--moe-expert-capacity-factor -1 --moe-pad-expert-input-to-capacity",
            "--moe-pad-expert-input-to-capacity needs", "--moe-expert-capacity-factor");
    refuses(MOE, "--moe-expert-capacity-factor 0", "--moe-expert-capacity-factor 0", "-1 for no limit");
    refuses(MOE, "--moe-per-layer-logging", "--moe-per-layer-logging writes to TensorBoard",
            "--tensorboard-dir");
    refuses(MOE, "--moe-per-layer-logging --tensorboard-dir x", "nothing to log", "--moe-z-loss-coeff");
    refuses(MOE, "--moe-input-jitter-eps 1", "--moe-input-jitter-eps", "from 0 to 1");
    refuses(DENSE, "--moe-input-jitter-eps 0.1", "--moe-input-jitter-eps has no effect", "add --num-experts");
    refuses(MOE, "--moe-apply-probs-on-input", "--moe-apply-probs-on-input", "drop it");
    refuses(MOE, "--tensor-model-parallel-size 2 --world-size 2", "--tensor-model-parallel-size 2",
            "add it, so that each rank routes tokens of its own");
    refuses(MOE, "--expert-model-parallel-size 3 --world-size 3", "--num-experts 8 is not a multiple",
            "change one of them");
    refuses(MOE, "--expert-tensor-parallel-size 5 --world-size 5",
            "--moe-ffn-hidden-size 96 is not a multiple of --expert-tensor-parallel-size 5:",
            "change one of them");
    refuses(MOE, "--tensor-model-parallel-size 4 --sequence-parallel --world-size 4 --moe-ffn-hidden-size 50",
            "--expert-tensor-parallel-size 4 (from --tensor-model-parallel-size)", "change one of them");
    refuses(MOE,
            "--tensor-model-parallel-size 2 --sequence-parallel --world-size 2 "
            "--moe-shared-expert-intermediate-size 33",
            "--moe-shared-expert-intermediate-size 33", "change one of them");
    refuses(MOE, "--moe-token-dispatcher-type flex", "--moe-token-dispatcher-type flex", "use alltoall");
    refuses(MOE, "--moe-expert-rank-capacity-factor 0", "--moe-expert-rank-capacity-factor",
            "greater than 0");
    refuses(DENSE, "--expert-model-parallel-size 2 --world-size 2", "has no effect without --num-experts",
            "add --num-experts");
    refuses("pretrain_gpt --num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 "
            "--max-position-embeddings 32 --micro-batch-size 1 --train-iters 2 --lr 1e-3 --mock-data "
            "--vocab-size 64",
            "--num-experts 4", "experts with biases", "add --disable-bias-linear");
}

static void expect_pattern(const char *freq, const char *pattern) {
    char tail[256];
    snprintf(tail, sizeof(tail), "--moe-layer-freq %s", freq);
    if (validate(MOE, tail)) {
        EXPECT(false, "%s: %s", freq, err.text);
        return;
    }
    EXPECT_STR(cfg.moe_layer_pattern, pattern);
    config_free(&cfg);
}

TEST(patterns_of_layers_are_pythons) {
    expect_pattern("1", "1111");
    expect_pattern("2", "1010");
    expect_pattern("3", "1001");
    expect_pattern("4", "1000");
    expect_pattern("[0,1,1,0]", "0110");
    expect_pattern("[0]*1+[1]*3", "0111");
    expect_pattern("([0]*1+[1]*1)*2", "0101");
    expect_pattern("2*[0,1]", "0101");
    expect_pattern("[0]+2*([1])+[0]*1", "0110");
    expect_pattern("1+1", "1010");
    static const char *const wrong[] = {"0",
                                        "x",
                                        "[0,2,1,1]",
                                        "[1]*3",
                                        "[1]*5",
                                        "[0]*4",
                                        "[1]*4+1",
                                        "[1",
                                        "(1",
                                        "[1]*4)",
                                        "[1]*[4]",
                                        "1,1",
                                        "[]",
                                        "-1",
                                        "[1]*99999999999999999999",
                                        "((((((((((((((((((((((((((((((((((((1"};
    for (size_t i = 0; i < ARRAY_COUNT(wrong); i++) {
        char tail[256];
        snprintf(tail, sizeof(tail), "--moe-layer-freq %s", wrong[i]);
        refuses(MOE, tail, "--moe-layer-freq", wrong[i]);
    }
}

TEST(flags_reach_the_model) {
    struct model m;
    CHECK(!validate(
              MOE,
              "--moe-layer-freq [0]*1+[1]*3 --moe-router-topk 4 --moe-ffn-hidden-size 48 "
              "--moe-shared-expert-intermediate-size 32 --moe-shared-expert-gate --moe-router-num-groups 4 "
              "--moe-router-group-topk 2 --moe-router-score-function sigmoid --moe-aux-loss-coeff 0.25 "
              "--moe-router-load-balancing-type seq_aux_loss --moe-z-loss-coeff 0.5 "
              "--moe-router-topk-scaling-factor 2.5 --moe-router-dtype fp32"),
          "%s", err.text);
    model_from_config(&cfg, 64, &m);
    EXPECT(m.moe.experts == 8 && m.moe.topk == 4 && m.moe.ffn == 48 && m.moe.shared_ffn == 32 &&
               m.moe.shared_gate,
           "sizes");
    EXPECT(m.moe.group_count == 4 && m.moe.group_topk == 2 && m.moe.score == ROUTER_SIGMOID &&
               !m.moe.pre_softmax,
           "router");
    EXPECT(m.moe.balance_by_sequence && m.moe.balance_coeff == 0.25f && m.moe.z_coeff == 0.5f &&
               m.moe.scaling == 2.5f,
           "losses");
    EXPECT(!model_layer_is_moe(&m, 0) && model_layer_is_moe(&m, 1) && model_num_moe_layers(&m) == 3,
           "layers");
    config_free(&cfg);
    CHECK(!validate(MOE, "--moe-router-score-function sqrtsoftplus --moe-router-enable-expert-bias "
                         "--moe-router-load-balancing-type global_aux_loss --moe-aux-loss-coeff 0.25 "
                         "--moe-expert-capacity-factor 1.5 --moe-token-drop-policy position "
                         "--moe-pad-expert-input-to-capacity --moe-input-jitter-eps 0.125 "
                         "--moe-router-force-load-balancing"),
          "%s", err.text);
    model_from_config(&cfg, 64, &m);
    EXPECT(m.moe.score == ROUTER_SQRTSOFTPLUS && m.moe.expert_bias && m.moe.balance_globally &&
               !m.moe.balance_by_sequence && m.moe.balance_coeff == 0.25f,
           "choice and balance");
    EXPECT(m.moe.capacity_factor == 1.5 && m.moe.drops_by_position && m.moe.pads_to_capacity &&
               m.moe.jitter == 0.125f && m.moe.random_logits,
           "capacity and noise");
    config_free(&cfg);
    CHECK(!validate(MOE, "--moe-expert-capacity-factor -1"), "%s", err.text);
    model_from_config(&cfg, 64, &m);
    EXPECT(m.moe.capacity_factor == 0, "no limit");
    config_free(&cfg);
    CHECK(!validate(MOE, ""), "%s", err.text);
    model_from_config(&cfg, 64, &m);
    EXPECT(m.moe.ffn == 96 && m.moe.topk == 2 && m.moe.balance_coeff == 0 && model_num_moe_layers(&m) == 4,
           "defaults");
    config_free(&cfg);
    CHECK(!validate(DENSE, "--num-experts 0"), "%s", err.text);
    model_from_config(&cfg, 64, &m);
    EXPECT(m.moe.experts == 0 && model_num_moe_layers(&m) == 0, "a dense model");
    config_free(&cfg);
}

TEST(modules_exist_where_their_parts_do) {
    const char *why;
    struct model m = {.layers = 2};
    EXPECT(!model_has_module(&m, MODULE_moe, &why) && strstr(why, "--num-experts"), "%s", why);
    EXPECT(!model_has_module(&m, MODULE_moe_act, &why) && strstr(why, "--num-experts"), "%s", why);
    EXPECT(model_has_module(&m, MODULE_mlp, &why), "dense");
    m.moe.experts = 4;
    EXPECT(model_has_module(&m, MODULE_moe, &why) && model_has_module(&m, MODULE_moe_act, &why), "experts");
    EXPECT(!model_has_module(&m, MODULE_shared_experts, &why) &&
               strstr(why, "--moe-shared-expert-intermediate-size"),
           "%s", why);
    EXPECT(!model_has_module(&m, MODULE_mlp, &why) && strstr(why, "use moe"), "%s", why);
    m.moe.pattern = "01";
    m.moe.shared_ffn = 8;
    EXPECT(model_has_module(&m, MODULE_mlp, &why) && model_has_module(&m, MODULE_shared_experts, &why),
           "both kinds");
}

RUN_TESTS(CASE(contradictions_are_refused_with_a_remedy), CASE(patterns_of_layers_are_pythons),
          CASE(flags_reach_the_model), CASE(modules_exist_where_their_parts_do))
