/* Rules of mixtures of experts. Sources: Megatron-LM's validate_args and TransformerConfig.__post_init__. */
#include "core/config/rules.h"
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

/* ---- --moe-layer-freq: a number, or a list expression of Python's: "[0]*3+[1]*5", "([0]+[1]*2)*4" ---- */

struct pattern {
    bool is_list;
    int64_t number;
    struct str items; /* '0' and '1' */
};

struct pattern_reader {
    const char *at;
    int64_t most; /* items; longer ones are wrong in any case */
    int depth;
    bool failed;
};

enum { PATTERN_DEPTH = 32 };

static struct pattern read_sum(struct pattern_reader *r);

static void skip_blanks(struct pattern_reader *r) {
    while (isspace((unsigned char)*r->at)) r->at++;
}

static bool take(struct pattern_reader *r, char c) {
    skip_blanks(r);
    if (*r->at != c) return false;
    r->at++;
    return true;
}

static int64_t read_number(struct pattern_reader *r) {
    int64_t value = 0;
    skip_blanks(r);
    if (!isdigit((unsigned char)*r->at)) r->failed = true;
    for (; isdigit((unsigned char)*r->at) && value <= r->most; r->at++) value = value * 10 + (*r->at - '0');
    if (isdigit((unsigned char)*r->at)) r->failed = true;
    return value;
}

static struct pattern read_factor(struct pattern_reader *r) {
    struct pattern p = {0};
    if (take(r, '(')) {
        if (++r->depth > PATTERN_DEPTH) r->failed = true;
        if (!r->failed) p = read_sum(r);
        r->depth--;
        if (!take(r, ')')) r->failed = true;
    } else if (take(r, '[')) {
        p.is_list = true;
        do {
            int64_t n = read_number(r);
            if (n > 1) r->failed = true;
            str_puts(&p.items, n ? "1" : "0");
        } while (!r->failed && take(r, ','));
        if (!take(r, ']')) r->failed = true;
    } else {
        p.number = read_number(r);
    }
    return p;
}

static void repeat(struct pattern_reader *r, struct pattern *list, int64_t times) {
    struct str out = {0};
    if (times * (int64_t)list->items.length > r->most) r->failed = true;
    for (int64_t i = 0; i < times && !r->failed; i++)
        str_puts(&out, list->items.data ? list->items.data : "");
    str_free(&list->items);
    list->items = out;
}

static struct pattern read_product(struct pattern_reader *r) {
    struct pattern p = read_factor(r);
    while (!r->failed && take(r, '*')) {
        struct pattern q = read_factor(r);
        if (p.is_list && q.is_list)
            r->failed = true;
        else if (p.is_list)
            repeat(r, &p, q.number);
        else if (q.is_list)
            repeat(r, &q, p.number);
        else if ((p.number *= q.number) > r->most)
            r->failed = true;
        struct pattern other = q;
        if (q.is_list) other = p, p = q;
        str_free(&other.items);
    }
    return p;
}

static struct pattern read_sum(struct pattern_reader *r) {
    struct pattern p = read_product(r);
    while (!r->failed && take(r, '+')) {
        struct pattern q = read_product(r);
        if (p.is_list != q.is_list) r->failed = true;
        p.number += q.number;
        if (q.items.data) str_puts(&p.items, q.items.data);
        if (p.number > r->most || (int64_t)p.items.length > r->most) r->failed = true;
        str_free(&q.items);
    }
    return p;
}

static int rules_layer_freq(struct config *cfg, struct err *err) {
    enum { MOST = 65535 };
    struct pattern_reader r = {.at = cfg->moe_layer_freq, .most = MOST};
    struct pattern p = read_sum(&r);
    skip_blanks(&r);
    bool good = !r.failed && !*r.at && (p.is_list || p.number >= 1);
    int64_t count = p.is_list ? (int64_t)p.items.length : cfg->num_layers;
    if (good && count == cfg->num_layers) {
        char *kinds = config_keep(cfg, (size_t)count + 1);
        for (int64_t i = 0; i < count; i++) kinds[i] = p.is_list ? p.items.data[i] : i % p.number ? '0' : '1';
        kinds[count] = 0;
        cfg->moe_layer_pattern = kinds;
    }
    str_free(&p.items);
    REQUIRE(good,
            "--moe-layer-freq '%s': takes a number N (every N-th layer has experts) or a list of 0 and 1 as "
            "'[0]*1+[1]*3'",
            cfg->moe_layer_freq);
    REQUIRE(count == cfg->num_layers,
            "--moe-layer-freq '%s' names %lld layers, --num-layers is %lld: give one 0 or 1 for each",
            cfg->moe_layer_freq, (long long)count, (long long)cfg->num_layers);
    REQUIRE(strchr(cfg->moe_layer_pattern, '1'),
            "--moe-layer-freq '%s' leaves no layer with experts: drop --num-experts or change it",
            cfg->moe_layer_freq);
    return 0;
}

/* ---- router ---- */

static int rules_router(const struct config *cfg, struct err *err) {
    long long experts = cfg->num_experts, topk = cfg->moe_router_topk;
    bool softmax = cfg->moe_router_score_function == MOE_ROUTER_SCORE_FUNCTION_SOFTMAX;
    REQUIRE(topk <= experts, "--moe-router-topk %lld is more than --num-experts %lld: lower it", topk,
            experts);
    REQUIRE(
        topk > 1 || !softmax || cfg->moe_router_pre_softmax,
        "--moe-router-topk 1 gives every expert the weight 1 when the softmax is taken over the chosen: add "
        "--moe-router-pre-softmax");
    REQUIRE(!cfg->moe_router_enable_expert_bias || !softmax,
            "--moe-router-enable-expert-bias needs --moe-router-score-function sigmoid or sqrtsoftplus: add "
            "it or "
            "drop the bias");
    REQUIRE(
        !GAVE(moe_router_bias_update_rate) || cfg->moe_router_enable_expert_bias,
        "--moe-router-bias-update-rate has no effect without --moe-router-enable-expert-bias: add it or drop "
        "--moe-router-bias-update-rate");
    REQUIRE(!cfg->moe_router_pre_softmax || softmax,
            "--moe-router-pre-softmax is for --moe-router-score-function softmax: drop one of them");
    REQUIRE(!config_is_set(cfg, moe_router_group_topk) || config_is_set(cfg, moe_router_num_groups),
            "--moe-router-group-topk needs --moe-router-num-groups: add it or drop --moe-router-group-topk");
    REQUIRE(config_is_set(cfg, moe_router_group_topk) || !config_is_set(cfg, moe_router_num_groups),
            "--moe-router-num-groups needs --moe-router-group-topk: add it or drop --moe-router-num-groups");
    if (!config_is_set(cfg, moe_router_num_groups)) return 0;
    long long groups = cfg->moe_router_num_groups, best = cfg->moe_router_group_topk;
    REQUIRE(experts % groups == 0,
            "--num-experts %lld is not a multiple of --moe-router-num-groups %lld: change one of them",
            experts, groups);
    REQUIRE(best <= groups && topk % best == 0,
            "--moe-router-group-topk %lld must be at most --moe-router-num-groups %lld and divide "
            "--moe-router-topk %lld: change one of them",
            best, groups, topk);
    REQUIRE(
        topk / best <= experts / groups,
        "--moe-router-topk %lld of --moe-router-group-topk %lld groups takes %lld experts of a group, which "
        "has %lld: change one of them",
        topk, best, topk / best, experts / groups);
    return 0;
}

static int rules_capacity(struct config *cfg, struct err *err) {
    bool given = config_is_set(cfg, moe_expert_capacity_factor) && cfg->moe_expert_capacity_factor >= 0;
    REQUIRE(
        !given || cfg->moe_expert_capacity_factor > 0,
        "--moe-expert-capacity-factor 0 would drop every token: give a number above 0, or -1 for no limit");
    REQUIRE(
        given || !cfg->moe_pad_expert_input_to_capacity,
        "--moe-pad-expert-input-to-capacity needs --moe-expert-capacity-factor: add it or drop the padding");
    REQUIRE(given || !GAVE(moe_token_drop_policy),
            "--moe-token-drop-policy has no effect without --moe-expert-capacity-factor: add it or drop "
            "--moe-token-drop-policy");
    return 0;
}

/* ---- what goes together ---- */

static int rules_dense(const struct config *cfg, struct err *err) {
    static const int flags[] = {CONFIG_FLAG_moe_layer_freq,
                                CONFIG_FLAG_moe_ffn_hidden_size,
                                CONFIG_FLAG_moe_shared_expert_gate,
                                CONFIG_FLAG_moe_shared_expert_intermediate_size,
                                CONFIG_FLAG_moe_router_topk,
                                CONFIG_FLAG_moe_router_num_groups,
                                CONFIG_FLAG_moe_router_group_topk,
                                CONFIG_FLAG_moe_router_pre_softmax,
                                CONFIG_FLAG_moe_router_dtype,
                                CONFIG_FLAG_moe_router_topk_scaling_factor,
                                CONFIG_FLAG_moe_z_loss_coeff,
                                CONFIG_FLAG_moe_router_score_function,
                                CONFIG_FLAG_moe_aux_loss_coeff,
                                CONFIG_FLAG_moe_router_load_balancing_type,
                                CONFIG_FLAG_moe_grouped_gemm,
                                CONFIG_FLAG_moe_token_dispatcher_type,
                                CONFIG_FLAG_moe_permute_fusion,
                                CONFIG_FLAG_moe_router_fusion,
                                CONFIG_FLAG_expert_model_parallel_size,
                                CONFIG_FLAG_expert_tensor_parallel_size,
                                CONFIG_FLAG_moe_expert_rank_capacity_factor,
                                CONFIG_FLAG_moe_router_enable_expert_bias,
                                CONFIG_FLAG_moe_router_bias_update_rate,
                                CONFIG_FLAG_moe_input_jitter_eps,
                                CONFIG_FLAG_moe_router_force_load_balancing,
                                CONFIG_FLAG_moe_expert_capacity_factor,
                                CONFIG_FLAG_moe_token_drop_policy,
                                CONFIG_FLAG_moe_pad_expert_input_to_capacity,
                                CONFIG_FLAG_moe_per_layer_logging};
    for (size_t i = 0; i < ARRAY_COUNT(flags); i++) {
        const char *flag = config_flag_name(flags[i]);
        REQUIRE(!rules_gave(cfg, flags[i]),
                "%s has no effect without --num-experts: add --num-experts or drop %s", flag, flag);
    }
    return 0;
}

/* Experts split over ranks, and everything that is split beside them. */
static int rules_expert_ranks(struct config *cfg, struct err *err) {
    long long tp = cfg->tensor_model_parallel_size, ep = cfg->expert_model_parallel_size;
    long long etp = config_is_set(cfg, expert_tensor_parallel_size) ? cfg->expert_tensor_parallel_size : tp;
    REQUIRE(tp == 1 || cfg->sequence_parallel,
            "--num-experts with --tensor-model-parallel-size %lld needs --sequence-parallel: add it, so that "
            "each rank routes tokens of its own",
            tp);
    REQUIRE(cfg->num_experts % ep == 0,
            "--num-experts %lld is not a multiple of --expert-model-parallel-size %lld: change one of them",
            (long long)cfg->num_experts, ep);
    REQUIRE(
        cfg->moe_ffn_hidden_size % etp == 0,
        "--moe-ffn-hidden-size %lld is not a multiple of --expert-tensor-parallel-size %lld%s: change one "
        "of them",
        (long long)cfg->moe_ffn_hidden_size, etp,
        config_is_set(cfg, expert_tensor_parallel_size) ? "" : " (from --tensor-model-parallel-size)");
    REQUIRE(!config_is_set(cfg, moe_shared_expert_intermediate_size) ||
                cfg->moe_shared_expert_intermediate_size % tp == 0,
            "--moe-shared-expert-intermediate-size %lld is not a multiple of --tensor-model-parallel-size "
            "%lld: change one of them",
            (long long)cfg->moe_shared_expert_intermediate_size, tp);
    if (ep * etp > 1 && cfg->moe_pad_expert_input_to_capacity &&
        cfg->moe_token_dispatcher_type == MOE_TOKEN_DISPATCHER_TYPE_ALLGATHER)
        config_note(cfg,
                    "--moe-pad-expert-input-to-capacity: with the allgather dispatcher over several ranks "
                    "no rows are filled up; results are the same");
    if (ep * etp == 1 && config_is_set(cfg, moe_expert_rank_capacity_factor))
        config_note(cfg, "--moe-expert-rank-capacity-factor: every rank has all experts, and room for all "
                         "its rows");
    if (ep * etp == 1 && GAVE(moe_token_dispatcher_type))
        config_note(cfg, "--moe-token-dispatcher-type: every rank has all experts, so rows go nowhere");
    return 0;
}

int rules_moe(struct config *cfg, struct err *err) {
    if (!config_is_set(cfg, num_experts) || !cfg->num_experts) return rules_dense(cfg, err);
    REQUIRE(!cfg->add_bias_linear,
            "--num-experts: experts with biases are not built: add --disable-bias-linear");
    REQUIRE(!cfg->moe_shared_expert_gate || config_is_set(cfg, moe_shared_expert_intermediate_size),
            "--moe-shared-expert-gate has no effect without --moe-shared-expert-intermediate-size: add it or "
            "drop "
            "--moe-shared-expert-gate");
    REQUIRE(
        cfg->moe_router_load_balancing_type != MOE_ROUTER_LOAD_BALANCING_TYPE_NONE ||
            !GAVE(moe_aux_loss_coeff) || cfg->moe_aux_loss_coeff == 0,
        "--moe-aux-loss-coeff has no effect with --moe-router-load-balancing-type none: drop one of them");
    REQUIRE(!cfg->moe_per_layer_logging || cfg->tensorboard_dir,
            "--moe-per-layer-logging writes to TensorBoard: add --tensorboard-dir or drop it");
    REQUIRE(!cfg->moe_per_layer_logging || cfg->moe_aux_loss_coeff > 0 ||
                config_is_set(cfg, moe_z_loss_coeff),
            "--moe-per-layer-logging has nothing to log: add --moe-aux-loss-coeff or --moe-z-loss-coeff, or "
            "drop it");
    if (!config_is_set(cfg, moe_ffn_hidden_size)) {
        cfg->moe_ffn_hidden_size = cfg->ffn_hidden_size;
        config_derive(cfg, CONFIG_FLAG_moe_ffn_hidden_size, "--ffn-hidden-size");
    }
    if (!config_is_set(cfg, moe_router_dtype) && cfg->num_experts >= 32)
        config_note(cfg, "--moe-router-dtype: logits and probabilities are fp32 here in any case");
    if (rules_expert_ranks(cfg, err)) return -1;
    return rules_router(cfg, err) || rules_capacity(cfg, err) || rules_layer_freq(cfg, err) ? -1 : 0;
}
