#include "core/checkpoint/hf_config.h"
#include "core/checkpoint/record.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *hf;
    enum checkpoint_activation activation;
} activations[] = {
    {"gelu", CHECKPOINT_GELU},
    {"gelu_new", CHECKPOINT_GELU_TANH},
    {"gelu_pytorch_tanh", CHECKPOINT_GELU_TANH},
    {"silu", CHECKPOINT_SILU},
    {"swish", CHECKPOINT_SILU},
    {"relu", CHECKPOINT_RELU},
    {"relu2", CHECKPOINT_SQUARED_RELU},
    {"quick_gelu", CHECKPOINT_QUICK_GELU},
};

const char *hf_activation_name(size_t i, enum checkpoint_activation *activation_p) {
    if (i >= ARRAY_COUNT(activations)) return NULL;
    *activation_p = activations[i].activation;
    return activations[i].hf;
}

static const char *hf_activation(enum checkpoint_activation activation) {
    size_t i = 0;
    while (activations[i].activation != activation) i++;
    return activations[i].hf;
}

static double yarn_mscale(double factor, double mscale) {
    return factor > 1 ? 0.1 * mscale * log(factor) + 1 : 1;
}

double hf_yarn_concentration(const struct checkpoint_model *m) {
    return yarn_mscale(m->rope_scaling_factor, m->mscale) /
           yarn_mscale(m->rope_scaling_factor, m->mscale_all_dim);
}

/* ---- what config.json cannot say ---- */

static const char *unlike_mixtral(const struct checkpoint_model *m) {
    if (m->moe_score != CHECKPOINT_SOFTMAX)
        return "--num-experts without --multi-latent-attention has softmax scores there";
    if (m->moe_pre_softmax) return "--moe-router-pre-softmax";
    if (m->moe_num_groups) return "--moe-router-num-groups without --multi-latent-attention";
    return m->moe_scaling != 1 ? "--moe-router-topk-scaling-factor without --multi-latent-attention" : NULL;
}

static const char *unlike_deepseek(const struct checkpoint_model *m) {
    bool all_groups = m->moe_num_groups == m->moe_group_topk;
    if (m->norm_epsilon != LATENT_NORM_EPSILON)
        return "--multi-latent-attention with --norm-epsilon other than 1e-6";
    if (!m->num_experts) return NULL;
    if (m->moe_score != CHECKPOINT_SIGMOID)
        return "--multi-latent-attention with a --moe-router-score-function other than sigmoid";
    if (m->num_experts < 2) return "--multi-latent-attention with --num-experts 1";
    if (m->moe_shared_ffn_size % m->moe_ffn_hidden_size)
        return "--moe-shared-expert-intermediate-size that is no multiple of --moe-ffn-hidden-size";
    if (!all_groups && m->moe_topk != 2 * m->moe_group_topk)
        return "--moe-router-topk other than twice --moe-router-group-topk";
    return NULL;
}

const char *checkpoint_unlike_family(const struct checkpoint_model *model) {
    enum checkpoint_family family = checkpoint_family(model, NULL);
    return family == CHECKPOINT_MIXTRAL       ? unlike_mixtral(model)
           : family == CHECKPOINT_DEEPSEEK_V3 ? unlike_deepseek(model)
                                              : NULL;
}

/* ---- writing ---- */

static void put_integer(struct str *out, const char *key, int64_t value) {
    json_key(out, key);
    json_integer(out, value);
}

static void put_double(struct str *out, const char *key, double value) {
    json_key(out, key);
    json_double(out, value);
}

static void put_string(struct str *out, const char *key, const char *value) {
    json_key(out, key);
    json_string(out, value);
}

static void put_bool(struct str *out, const char *key, bool value) {
    json_key(out, key);
    json_bool(out, value);
}

static void put_token(struct str *out, const char *key, const struct checkpoint_state *state,
                      const char *extra, const char *or_extra) {
    double id = checkpoint_get_extra(state, extra, checkpoint_get_extra(state, or_extra, -1));
    json_key(out, key);
    if (id >= 0)
        json_integer(out, (int64_t)id);
    else
        json_null(out);
}

static void put_gpt2(struct str *out, const struct checkpoint_model *m) {
    put_integer(out, "n_positions", m->max_position_embeddings);
    put_integer(out, "n_ctx", m->max_position_embeddings);
    put_integer(out, "n_embd", m->hidden_size);
    put_integer(out, "n_layer", m->num_layers);
    put_integer(out, "n_head", m->num_attention_heads);
    put_integer(out, "n_inner", m->ffn_hidden_size);
    put_string(out, "activation_function", hf_activation(m->activation));
    put_double(out, "layer_norm_epsilon", m->norm_epsilon);
    put_double(out, "embd_pdrop", m->hidden_dropout);
    put_double(out, "resid_pdrop", m->hidden_dropout);
    put_double(out, "attn_pdrop", m->attention_dropout);
    put_bool(out, "scale_attn_weights", true);
}

static void put_rope_scaling(struct str *out, double factor) {
    json_key(out, "rope_scaling");
    if (factor == 0) {
        json_null(out);
        return;
    }
    json_begin_object(out);
    put_string(out, "rope_type", "llama3");
    put_double(out, "factor", factor);
    put_double(out, "low_freq_factor", LLAMA3_LOW_FREQ_FACTOR);
    put_double(out, "high_freq_factor", LLAMA3_HIGH_FREQ_FACTOR);
    put_integer(out, "original_max_position_embeddings", LLAMA3_ORIGINAL_POSITIONS);
    json_end_object(out);
}

static void put_llama(struct str *out, const struct checkpoint_model *m, enum checkpoint_family family) {
    put_integer(out, "hidden_size", m->hidden_size);
    put_integer(out, "intermediate_size",
                family == CHECKPOINT_MIXTRAL ? m->moe_ffn_hidden_size : m->ffn_hidden_size);
    put_integer(out, "num_hidden_layers", m->num_layers);
    put_integer(out, "num_attention_heads", m->num_attention_heads);
    put_integer(out, "num_key_value_heads", m->num_query_groups);
    if (family != CHECKPOINT_QWEN2) put_integer(out, "head_dim", m->kv_channels);
    put_string(out, "hidden_act", hf_activation(m->activation));
    put_integer(out, "max_position_embeddings", m->max_position_embeddings);
    put_double(out, "rms_norm_eps", m->norm_epsilon);
    put_double(out, "rope_theta", m->rotary_base);
    put_rope_scaling(out, m->rope_scaling_factor);
    put_double(out, "attention_dropout", m->attention_dropout);
    if (family == CHECKPOINT_LLAMA) {
        put_bool(out, "attention_bias", m->linear_bias);
        put_bool(out, "mlp_bias", m->linear_bias);
    } else if (family == CHECKPOINT_MIXTRAL) {
        put_integer(out, "num_local_experts", m->num_experts);
        put_integer(out, "num_experts_per_tok", m->moe_topk);
        put_bool(out, "output_router_logits", false);
        json_key(out, "sliding_window");
        json_null(out);
    } else {
        if (family == CHECKPOINT_QWEN3) put_bool(out, "attention_bias", false);
        put_bool(out, "use_sliding_window", false);
    }
}

static void put_yarn(struct str *out, const struct checkpoint_model *m) {
    json_key(out, "rope_scaling");
    if (m->rope_scaling_factor == 0) {
        json_null(out);
        return;
    }
    json_begin_object(out);
    put_string(out, "rope_type", "yarn");
    put_string(out, "type", "yarn");
    put_double(out, "factor", m->rope_scaling_factor);
    put_double(out, "beta_fast", YARN_BETA_FAST);
    put_double(out, "beta_slow", YARN_BETA_SLOW);
    put_double(out, "mscale", m->mscale);
    put_double(out, "mscale_all_dim", m->mscale_all_dim);
    if (m->mscale == 0 || m->mscale_all_dim == 0) /* taken for "not given" there */
        put_double(out, "attention_factor", hf_yarn_concentration(m));
    put_integer(out, "original_max_position_embeddings", YARN_ORIGINAL_POSITIONS);
    json_end_object(out);
}

static void put_deepseek_experts(struct str *out, const struct checkpoint_model *m) {
    bool groups = m->moe_num_groups != m->moe_group_topk; /* taking all of them is having none */
    put_integer(out, "moe_intermediate_size", m->moe_ffn_hidden_size);
    put_integer(out, "n_routed_experts", m->num_experts);
    put_integer(out, "n_shared_experts", m->moe_shared_ffn_size / m->moe_ffn_hidden_size);
    put_integer(out, "num_experts_per_tok", m->moe_topk);
    put_integer(out, "n_group", groups ? m->moe_num_groups : 1);
    put_integer(out, "topk_group", groups ? m->moe_group_topk : 1);
    put_string(out, "scoring_func", "sigmoid");
    put_string(out, "topk_method", "noaux_tc");
    put_bool(out, "norm_topk_prob", m->moe_topk > 1);
    put_double(out, "routed_scaling_factor", m->moe_scaling);
    put_integer(out, "moe_layer_freq", 1);
}

static void put_deepseek(struct str *out, const struct checkpoint_model *m) {
    put_integer(out, "hidden_size", m->hidden_size);
    put_integer(out, "intermediate_size", m->ffn_hidden_size);
    put_integer(out, "num_hidden_layers", m->num_layers);
    put_integer(out, "num_attention_heads", m->num_attention_heads);
    put_integer(out, "num_key_value_heads", m->num_attention_heads);
    json_key(out, "q_lora_rank");
    if (m->q_lora_rank)
        json_integer(out, m->q_lora_rank);
    else
        json_null(out);
    put_integer(out, "kv_lora_rank", m->kv_lora_rank);
    put_integer(out, "qk_nope_head_dim", m->qk_head_dim);
    put_integer(out, "qk_rope_head_dim", m->qk_pos_emb_head_dim);
    put_integer(out, "v_head_dim", m->v_head_dim);
    put_integer(out, "first_k_dense_replace", m->num_experts ? m->moe_dense_layers : m->num_layers);
    if (m->num_experts) put_deepseek_experts(out, m);
    put_integer(out, "num_nextn_predict_layers", m->mtp_layers);
    put_string(out, "hidden_act", hf_activation(m->activation));
    put_integer(out, "max_position_embeddings", m->max_position_embeddings);
    put_double(out, "rms_norm_eps", m->norm_epsilon);
    put_double(out, "rope_theta", m->rotary_base);
    put_yarn(out, m);
    put_bool(out, "rope_interleave", true);
    put_bool(out, "attention_bias", false);
    put_double(out, "attention_dropout", m->attention_dropout);
}

void checkpoint_write_hf_config(struct str *out, const struct checkpoint_model *model,
                                const struct checkpoint_state *state, enum safetensors_dtype dtype) {
    static const char *const architectures[CHECKPOINT_FAMILY_COUNT] = {
        [CHECKPOINT_GPT2] = "GPT2LMHeadModel",       [CHECKPOINT_LLAMA] = "LlamaForCausalLM",
        [CHECKPOINT_QWEN2] = "Qwen2ForCausalLM",     [CHECKPOINT_QWEN3] = "Qwen3ForCausalLM",
        [CHECKPOINT_MIXTRAL] = "MixtralForCausalLM", [CHECKPOINT_DEEPSEEK_V3] = "DeepseekV3ForCausalLM",
    };
    enum checkpoint_family family = checkpoint_family(model, NULL);
    json_begin_object(out);
    json_key(out, "architectures");
    json_begin_array(out);
    json_string(out, architectures[family]);
    json_end_array(out);
    put_string(out, "model_type", checkpoint_family_name(family));
    put_integer(out, "vocab_size", model->vocab_size);
    if (family == CHECKPOINT_GPT2)
        put_gpt2(out, model);
    else if (family == CHECKPOINT_DEEPSEEK_V3)
        put_deepseek(out, model);
    else
        put_llama(out, model, family);
    put_bool(out, "tie_word_embeddings", model->tied);
    put_bool(out, "use_cache", true);
    put_token(out, "bos_token_id", state, "bos_id", "eod_id");
    put_token(out, "eos_token_id", state, "eod_id", "eod_id");
    put_string(out, "torch_dtype",
               dtype == SAFETENSORS_F32 ? "float32" : (dtype == SAFETENSORS_BF16 ? "bfloat16" : "float16"));
    json_end_object(out);
    str_puts(out, "\n");
}

/* ---- flags ---- */

static void flag_begin(struct str *out, const char *field) {
    str_puts(out, out->data[out->length - 1] == '{' ? "\n" : ",\n");
    json_key(out, field);
    json_begin_object(out);
    json_key(out, "value");
}

static void flag_end(struct str *out) {
    put_string(out, "origin", "imported");
    json_end_object(out);
}

static void flag_integer(struct str *out, const char *field, int64_t value) {
    flag_begin(out, field);
    json_integer(out, value);
    flag_end(out);
}

static void flag_double(struct str *out, const char *field, double value) {
    flag_begin(out, field);
    json_double(out, value);
    flag_end(out);
}

static void flag_bool(struct str *out, const char *field, bool value) {
    flag_begin(out, field);
    json_bool(out, value);
    flag_end(out);
}

static void flag_string(struct str *out, const char *field, const char *value) {
    flag_begin(out, field);
    json_string(out, value);
    flag_end(out);
}

static void flags_of_latents(struct str *out, const struct checkpoint_model *m) {
    flag_bool(out, "multi_latent_attention", true);
    if (m->q_lora_rank) flag_integer(out, "q_lora_rank", m->q_lora_rank);
    flag_integer(out, "kv_lora_rank", m->kv_lora_rank);
    flag_integer(out, "qk_head_dim", m->qk_head_dim);
    flag_integer(out, "qk_pos_emb_head_dim", m->qk_pos_emb_head_dim);
    flag_integer(out, "v_head_dim", m->v_head_dim);
    flag_string(out, "rope_type", m->rope_scaling_factor != 0 ? "yarn" : "rope");
    if (m->rope_scaling_factor == 0) return;
    flag_double(out, "rotary_scaling_factor", m->rope_scaling_factor);
    flag_double(out, "mscale", m->mscale);
    flag_double(out, "mscale_all_dim", m->mscale_all_dim);
}

static void flags_of_experts(struct str *out, const struct checkpoint_model *m) {
    struct str pattern = {0};
    str_printf(&pattern, "[0]*%lld+[1]*%lld", (long long)m->moe_dense_layers,
               (long long)(m->num_layers - m->moe_dense_layers));
    flag_integer(out, "num_experts", m->num_experts);
    flag_string(out, "moe_layer_freq", m->moe_dense_layers ? pattern.data : "1");
    flag_integer(out, "moe_ffn_hidden_size", m->moe_ffn_hidden_size);
    if (m->moe_shared_ffn_size)
        flag_integer(out, "moe_shared_expert_intermediate_size", m->moe_shared_ffn_size);
    flag_integer(out, "moe_router_topk", m->moe_topk);
    flag_string(out, "moe_router_score_function", m->moe_score == CHECKPOINT_SIGMOID ? "sigmoid" : "softmax");
    if (m->moe_num_groups) {
        flag_integer(out, "moe_router_num_groups", m->moe_num_groups);
        flag_integer(out, "moe_router_group_topk", m->moe_group_topk);
    }
    if (m->moe_scaling != 1) flag_double(out, "moe_router_topk_scaling_factor", m->moe_scaling);
    if (m->mtp_layers) flag_integer(out, "mtp_num_layers", m->mtp_layers);
    if (m->moe_expert_bias) flag_bool(out, "moe_router_enable_expert_bias", true);
    str_free(&pattern);
}

void checkpoint_write_model_flags(struct str *out, const struct checkpoint_model *m) {
    bool rope = m->position == CHECKPOINT_POSITION_ROPE;
    json_begin_object(out);
    flag_integer(out, "num_layers", m->num_layers);
    flag_integer(out, "hidden_size", m->hidden_size);
    flag_integer(out, "ffn_hidden_size", m->ffn_hidden_size);
    flag_integer(out, "num_attention_heads", m->num_attention_heads);
    flag_bool(out, "group_query_attention", m->num_query_groups != m->num_attention_heads);
    if (m->num_query_groups != m->num_attention_heads)
        flag_integer(out, "num_query_groups", m->num_query_groups);
    if (!m->kv_lora_rank) flag_integer(out, "kv_channels", m->kv_channels);
    flag_integer(out, "max_position_embeddings", m->max_position_embeddings);
    flag_string(out, "position_embedding_type", rope ? "rope" : "learned_absolute");
    if (rope) flag_double(out, "rotary_base", m->rotary_base);
    if (m->kv_lora_rank) flags_of_latents(out, m);
    if (m->num_experts) flags_of_experts(out, m);
    if (m->rope_scaling_factor != 0 && !m->kv_lora_rank) {
        flag_bool(out, "use_rope_scaling", true);
        flag_double(out, "rope_scaling_factor", m->rope_scaling_factor);
    }
    flag_string(out, "normalization", m->rms_norm ? "RMSNorm" : "LayerNorm");
    flag_double(out, "layernorm_epsilon", m->norm_epsilon);
    flag_bool(out, "swiglu", m->gated && m->activation == CHECKPOINT_SILU);
    if (m->activation == CHECKPOINT_SQUARED_RELU) flag_bool(out, "squared_relu", true);
    if (m->activation == CHECKPOINT_GELU_TANH) flag_bool(out, "openai_gelu", true);
    if (m->activation == CHECKPOINT_GELU) flag_bool(out, "bias_gelu_fusion", false);
    flag_bool(out, "add_bias_linear", m->linear_bias);
    flag_bool(out, "add_qkv_bias", m->qkv_bias && !m->linear_bias);
    flag_bool(out, "untie_embeddings_and_output_weights", !m->tied);
    flag_bool(out, "qk_layernorm", m->qk_norm);
    flag_double(out, "hidden_dropout", m->hidden_dropout);
    flag_double(out, "attention_dropout", m->attention_dropout);
    flag_integer(out, "padded_vocab_size", m->padded_vocab_size);
    json_end_object(out);
    str_puts(out, "\n");
}
