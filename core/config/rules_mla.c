/* Rules of multi-latent attention: what goes with it, and what Megatron-LM would ignore beside it. */
#include "core/config/rules.h"

/* Rotary flags of other attention, which Megatron-LM ignores or rejects here. */
static int rules_plain_rotary(const struct config *cfg, struct err *err) {
    REQUIRE(cfg->position_embedding_type == POSITION_EMBEDDING_TYPE_ROPE,
            "--multi-latent-attention rotates a part of each head: add --position-embedding-type rope");
    REQUIRE(!cfg->rotary_interleaved,
            "--rotary-interleaved and --multi-latent-attention exclude each other: drop "
            "--rotary-interleaved, its pairs are interleaved anyway");
    REQUIRE(cfg->rotary_percent == 1.0,
            "--rotary-percent has no effect with --multi-latent-attention: drop it and give "
            "--qk-pos-emb-head-dim");
    REQUIRE(!config_is_set(cfg, rotary_seq_len_interpolation_factor),
            "--rotary-seq-len-interpolation-factor has no effect with --multi-latent-attention: use "
            "--rotary-scaling-factor");
    REQUIRE(!cfg->use_rope_scaling,
            "--use-rope-scaling has no effect with --multi-latent-attention: use --rotary-scaling-factor");
    return 0;
}

static int rules_yarn(struct config *cfg, struct err *err) {
    static const int flags[] = {CONFIG_FLAG_rotary_scaling_factor, CONFIG_FLAG_mscale,
                                CONFIG_FLAG_mscale_all_dim};
    if (!config_is_set(cfg, rope_type)) {
        cfg->rope_type = ROPE_TYPE_YARN;
        config_derive(cfg, CONFIG_FLAG_rope_type, "--multi-latent-attention");
    }
    REQUIRE(cfg->rope_type != ROPE_TYPE_YARN || cfg->rotary_base > 1,
            "--rotary-base %lld with --rope-type yarn has one frequency only: raise it",
            (long long)cfg->rotary_base);
    for (size_t i = 0; i < ARRAY_COUNT(flags) && cfg->rope_type == ROPE_TYPE_ROPE; i++) {
        const char *flag = config_flag_name(flags[i]);
        REQUIRE(!rules_gave(cfg, flags[i]), "%s belongs to YaRN: drop --rope-type rope or %s", flag, flag);
    }
    return 0;
}

int rules_mla(struct config *cfg, struct err *err) {
    REQUIRE(cfg->multi_latent_attention || cfg->rope_type != ROPE_TYPE_YARN,
            "--rope-type yarn comes with --multi-latent-attention only: add it, or use rope");
    if (!cfg->multi_latent_attention) return 0;
    REQUIRE(!cfg->group_query_attention,
            "--multi-latent-attention and --group-query-attention exclude each other: every head has its own "
            "key and value; drop --group-query-attention");
    REQUIRE(!cfg->add_qkv_bias, "--add-qkv-bias has no effect with --multi-latent-attention, whose "
                                "projections have no biases: drop it");
    REQUIRE(cfg->qk_pos_emb_head_dim % 2 == 0,
            "--qk-pos-emb-head-dim %lld is odd: columns are rotated in pairs, make it even",
            (long long)cfg->qk_pos_emb_head_dim);
    if (rules_plain_rotary(cfg, err) || rules_yarn(cfg, err)) return -1;
    if (GAVE(kv_channels)) {
        config_note(cfg, "--kv-channels: without effect with --multi-latent-attention (in Megatron-LM too)");
    }
    cfg->rotary_dim = cfg->qk_pos_emb_head_dim;
    return 0;
}
