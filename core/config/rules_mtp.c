/* Rules of multi-token prediction. Sources: Megatron-LM's validate_args and MultiTokenPredictionBlock. */
#include "core/config/rules.h"

int rules_mtp(struct config *cfg, struct err *err) {
    if (!config_is_set(cfg, mtp_num_layers) || !cfg->mtp_num_layers) {
        REQUIRE(
            !GAVE(mtp_loss_scaling_factor),
            "--mtp-loss-scaling-factor has no effect without --mtp-num-layers: add --mtp-num-layers or drop "
            "--mtp-loss-scaling-factor");
        return 0;
    }
    REQUIRE(cfg->position_embedding_type == POSITION_EMBEDDING_TYPE_ROPE ||
                cfg->position_embedding_type == POSITION_EMBEDDING_TYPE_NONE,
            "--mtp-num-layers rolls the tokens under their positions, which cannot be learned: add "
            "--position-embedding-type rope or none");
    REQUIRE(cfg->mtp_num_layers < cfg->seq_length,
            "--mtp-num-layers %lld leaves the last depth no token to predict in --seq-length %lld: lower it",
            (long long)cfg->mtp_num_layers, (long long)cfg->seq_length);
    if (cfg->recompute_granularity == RECOMPUTE_GRANULARITY_FULL &&
        !config_is_set(cfg, recompute_layer_ids) && cfg->recompute_method == RECOMPUTE_METHOD_BLOCK) {
        config_note(cfg,
                    "--recompute-method block recomputes no layer of --mtp-num-layers (in Megatron-LM too): "
                    "uniform does");
    }
    return 0;
}
