#include "core/config/config.h"
#include "core/model/model.h"
#include <math.h>

/* Kernels and flags list the activations in the same order. */
_Static_assert((int)ACTIVATION_SWIGLU == (int)MLP_ACTIVATION_SWIGLU, "activation lists differ");
_Static_assert((int)ROUTER_SIGMOID == (int)MOE_ROUTER_SCORE_FUNCTION_SIGMOID &&
                   (int)ROUTER_SQRTSOFTPLUS == (int)MOE_ROUTER_SCORE_FUNCTION_SQRTSOFTPLUS,
               "score lists differ");
_Static_assert((int)ACTIVATION_GEGLU_QUICK == (int)MLP_ACTIVATION_QUICK_GEGLU, "activation lists differ");

static enum dtype dtype_of(int params_dtype) {
    return params_dtype == PARAMS_DTYPE_BF16   ? DTYPE_BF16
           : params_dtype == PARAMS_DTYPE_FP16 ? DTYPE_F16
                                               : DTYPE_F32;
}

/* Tokens per chunk of the fused loss. More would hold more logits; fewer would read and write the whole
 * weight gradient too often. */
enum { LOSS_CHUNK_TOKENS = 512 };

static void experts_from_config(const struct config *cfg, struct model *m) {
    m->moe.experts = cfg->num_experts;
    m->moe.topk = cfg->moe_router_topk;
    m->moe.ffn = cfg->moe_ffn_hidden_size;
    m->moe.pattern = cfg->moe_layer_pattern;
    m->moe.gathers = cfg->moe_token_dispatcher_type == MOE_TOKEN_DISPATCHER_TYPE_ALLGATHER;
    if (config_is_set(cfg, moe_expert_rank_capacity_factor))
        m->moe.rank_capacity = (float)cfg->moe_expert_rank_capacity_factor;
    m->moe.score = (enum router_score)cfg->moe_router_score_function;
    m->moe.pre_softmax = cfg->moe_router_pre_softmax;
    m->moe.shared_gate = cfg->moe_shared_expert_gate;
    m->moe.balance_by_sequence =
        cfg->moe_router_load_balancing_type == MOE_ROUTER_LOAD_BALANCING_TYPE_SEQ_AUX_LOSS;
    m->moe.balance_globally =
        cfg->moe_router_load_balancing_type == MOE_ROUTER_LOAD_BALANCING_TYPE_GLOBAL_AUX_LOSS;
    m->moe.expert_bias = cfg->moe_router_enable_expert_bias;
    m->moe.random_logits = cfg->moe_router_force_load_balancing;
    if (config_is_set(cfg, moe_input_jitter_eps)) m->moe.jitter = (float)cfg->moe_input_jitter_eps;
    if (config_is_set(cfg, moe_expert_capacity_factor) && cfg->moe_expert_capacity_factor > 0)
        m->moe.capacity_factor = cfg->moe_expert_capacity_factor;
    m->moe.drops_by_position = cfg->moe_token_drop_policy == MOE_TOKEN_DROP_POLICY_POSITION;
    m->moe.pads_to_capacity = cfg->moe_pad_expert_input_to_capacity;
    if (cfg->moe_router_load_balancing_type != MOE_ROUTER_LOAD_BALANCING_TYPE_NONE)
        m->moe.balance_coeff = (float)cfg->moe_aux_loss_coeff;
    if (config_is_set(cfg, moe_z_loss_coeff)) m->moe.z_coeff = (float)cfg->moe_z_loss_coeff;
    if (config_is_set(cfg, moe_shared_expert_intermediate_size))
        m->moe.shared_ffn = cfg->moe_shared_expert_intermediate_size;
    if (config_is_set(cfg, moe_router_topk_scaling_factor))
        m->moe.scaling = (float)cfg->moe_router_topk_scaling_factor;
    if (config_is_set(cfg, moe_router_num_groups)) {
        m->moe.group_count = cfg->moe_router_num_groups;
        m->moe.group_topk = cfg->moe_router_group_topk;
    }
}

void model_from_config(const struct config *cfg, int64_t padded_vocab, struct model *out) {
    bool latents = cfg->multi_latent_attention, yarn = latents && cfg->rope_type == ROPE_TYPE_YARN;
    bool fused_loss =
        cfg->cross_entropy_loss_fusion && cfg->cross_entropy_fusion_impl == CROSS_ENTROPY_FUSION_IMPL_LINEAR;
    *out = (struct model){
        .layers = cfg->num_layers,
        .hidden = cfg->hidden_size,
        .heads = cfg->num_attention_heads,
        .groups = cfg->num_query_groups,
        .head_dim = latents ? cfg->qk_head_dim + cfg->qk_pos_emb_head_dim : cfg->kv_channels,
        .kv_rank = latents ? cfg->kv_lora_rank : 0,
        .q_rank = config_is_set(cfg, q_lora_rank) ? cfg->q_lora_rank : 0,
        .plain_dim = latents ? cfg->qk_head_dim : 0,
        .value_dim = latents ? cfg->v_head_dim : 0,
        .yarn_factor = yarn ? cfg->rotary_scaling_factor : 0,
        .yarn_mscale = cfg->mscale,
        .yarn_mscale_all_dim = cfg->mscale_all_dim,
        .ffn = cfg->ffn_hidden_size,
        .seq = cfg->seq_length,
        .micro_batch = cfg->micro_batch_size,
        .vocab = padded_vocab,
        .max_positions = cfg->max_position_embeddings,
        .dtype = dtype_of(cfg->params_dtype),
        .rms = cfg->normalization == NORMALIZATION_RMSNORM,
        .zero_centered = cfg->layernorm_zero_centered_gamma,
        .qk_norm = cfg->qk_layernorm,
        .norm_epsilon = (float)cfg->layernorm_epsilon,
        .learned_positions = cfg->position_embedding_type == POSITION_EMBEDDING_TYPE_LEARNED_ABSOLUTE,
        .flash = cfg->attention_blockwise,
        .rotary_dim = cfg->rotary_dim,
        .rotary_interleaved = cfg->rotary_interleaved,
        .rotary_base = (double)cfg->rotary_base,
        .rotary_interpolation = config_is_set(cfg, rotary_seq_len_interpolation_factor)
                                    ? (double)cfg->rotary_seq_len_interpolation_factor
                                    : 1,
        .rope_scaling_factor = cfg->use_rope_scaling ? cfg->rope_scaling_factor : 0,
        .linear_bias = cfg->add_bias_linear,
        .qkv_bias = cfg->qkv_bias && !latents,
        .tied = !cfg->untie_embeddings_and_output_weights,
        .activation = (enum activation)cfg->mlp_activation,
        .init_std = (float)cfg->init_method_std,
        .output_init_std = (float)cfg->output_init_std,
        .embedding_init_std =
            (float)(config_is_set(cfg, embedding_init_method_std) ? cfg->embedding_init_method_std
                                                                  : cfg->init_method_std),
        .hidden_dropout = (float)cfg->hidden_dropout,
        .attention_dropout = (float)cfg->attention_dropout,
        .fused_loss = fused_loss,
        .loss_chunk = LOSS_CHUNK_TOKENS,
        .mtp_layers = config_is_set(cfg, mtp_num_layers) ? cfg->mtp_num_layers : 0,
    };
    if (cfg->moe_layer_pattern) experts_from_config(cfg, out);
}
