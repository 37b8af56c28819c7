#include "core/checkpoint/hf_config.h"
#include "core/checkpoint/record.h"
#include <math.h>
#include <string.h>

struct source {
    const struct json_node *root;
    const char *where;
    struct err *err;
    int status; /* -1 after the first fault */
};

static const struct json_node *member(const struct source *s, const char *key) {
    const struct json_node *node = json_get(s->root, key);
    return node && node->kind != JSON_NULL ? node : NULL;
}

static void fail(struct source *s, const char *key, const char *what) {
    if (!s->status) s->status = err_set(s->err, "%s: '%s' %s", s->where, key, what);
}

/* `if_missing` < 0: the member must be there. */
static int64_t get_integer(struct source *s, const char *key, int64_t if_missing) {
    const struct json_node *node = member(s, key);
    if (!node && if_missing < 0)
        fail(s, key, "is missing");
    else if (node && (node->kind != JSON_NUMBER || !node->is_integer))
        fail(s, key, "is no whole number");
    else if (node)
        return node->integer;
    return if_missing;
}

static double get_double(struct source *s, const char *key, double if_missing) {
    const struct json_node *node = member(s, key);
    if (node && node->kind != JSON_NUMBER) fail(s, key, "is no number");
    return node && node->kind == JSON_NUMBER ? node->number : if_missing;
}

static bool get_bool(struct source *s, const char *key, bool if_missing) {
    const struct json_node *node = member(s, key);
    if (node && node->kind != JSON_BOOL) fail(s, key, "is neither true nor false");
    return node && node->kind == JSON_BOOL ? node->boolean : if_missing;
}

static bool is_word(const struct json_node *node, const char *word) {
    return node && node->kind == JSON_STRING && !strcmp(node->string, word);
}

static enum checkpoint_activation get_activation(struct source *s, const char *key, const char *if_missing) {
    const struct json_node *node = member(s, key);
    const char *word = node && node->kind == JSON_STRING ? node->string : (node ? "" : if_missing);
    enum checkpoint_activation activation;
    const char *name;
    for (size_t i = 0; (name = hf_activation_name(i, &activation)) != NULL; i++)
        if (!strcmp(name, word)) return activation;
    fail(s, key, "is an activation that this program does not have");
    return CHECKPOINT_GELU;
}

static void read_gpt2(struct source *s, struct checkpoint_model *m) {
    m->hidden_size = get_integer(s, "n_embd", -1);
    m->num_layers = get_integer(s, "n_layer", -1);
    m->num_attention_heads = m->num_query_groups = get_integer(s, "n_head", -1);
    m->max_position_embeddings = get_integer(s, "n_positions", -1);
    m->ffn_hidden_size = get_integer(s, "n_inner", 4 * m->hidden_size);
    m->kv_channels = m->num_attention_heads > 0 ? m->hidden_size / m->num_attention_heads : 0;
    m->activation = get_activation(s, "activation_function", "gelu_new");
    if (m->activation != CHECKPOINT_GELU && m->activation != CHECKPOINT_GELU_TANH &&
        m->activation != CHECKPOINT_SQUARED_RELU)
        fail(s, "activation_function", "is not gelu, gelu_new or relu2: not supported");
    m->norm_epsilon = get_double(s, "layer_norm_epsilon", 1e-5);
    m->hidden_dropout = get_double(s, "resid_pdrop", 0.1);
    m->attention_dropout = get_double(s, "attn_pdrop", 0.1);
    m->position = CHECKPOINT_POSITION_LEARNED;
    m->rotary_base = 10000;
    m->linear_bias = m->qkv_bias = true;
    m->tied = get_bool(s, "tie_word_embeddings", true);
    if (!get_bool(s, "scale_attn_weights", true)) fail(s, "scale_attn_weights", "is false: not supported");
    if (get_bool(s, "scale_attn_by_inverse_layer_idx", false))
        fail(s, "scale_attn_by_inverse_layer_idx", "is true: not supported");
    if (get_bool(s, "add_cross_attention", false)) fail(s, "add_cross_attention", "is true: not supported");
}

/* Sets rotary_base. Returns the member that holds the scaling of the frequencies, NULL when there is none. */
static const struct json_node *read_theta(struct source *s, struct checkpoint_model *m, double if_missing) {
    const struct json_node *parameters = member(s, "rope_parameters"); /* what newer folders say */
    const struct json_node *scaling = parameters ? parameters : member(s, "rope_scaling");
    struct source inner = {scaling ? scaling : s->root, s->where, s->err, 0};
    m->rotary_base =
        get_double(s, "rope_theta", parameters ? get_double(&inner, "rope_theta", if_missing) : if_missing);
    if (get_double(s, "partial_rotary_factor", 1) != 1 || get_double(&inner, "partial_rotary_factor", 1) != 1)
        fail(s, "partial_rotary_factor",
             "is not 1: Hugging Face's tensors of such models are named otherwise");
    if (inner.status) s->status = -1;
    const struct json_node *type = scaling ? member(&inner, "rope_type") : NULL;
    if (scaling && !type) type = member(&inner, "type");
    return !scaling || !type || is_word(type, "default") ? NULL : scaling;
}

static bool is_kind(const struct json_node *scaling, const char *kind) {
    const struct json_node *type = json_get(scaling, "rope_type");
    return is_word(type && type->kind != JSON_NULL ? type : json_get(scaling, "type"), kind);
}

static void read_rope(struct source *s, struct checkpoint_model *m, double theta_if_missing) {
    const struct json_node *scaling = read_theta(s, m, theta_if_missing);
    struct source inner = {scaling, s->where, s->err, 0};
    if (!scaling) return;
    if (!is_kind(scaling, "llama3")) {
        fail(s, "rope_scaling", "is of a kind other than 'llama3' and 'default': not supported");
        return;
    }
    m->rope_scaling_factor = get_double(&inner, "factor", 8);
    if (get_double(&inner, "low_freq_factor", LLAMA3_LOW_FREQ_FACTOR) != LLAMA3_LOW_FREQ_FACTOR ||
        get_double(&inner, "high_freq_factor", LLAMA3_HIGH_FREQ_FACTOR) != LLAMA3_HIGH_FREQ_FACTOR ||
        get_double(&inner, "original_max_position_embeddings", LLAMA3_ORIGINAL_POSITIONS) !=
            LLAMA3_ORIGINAL_POSITIONS)
        fail(s, "rope_scaling", "must have low_freq_factor 1, high_freq_factor 4, 8192 original positions");
    if (inner.status) s->status = -1;
}

static void read_yarn(struct source *s, struct checkpoint_model *m) {
    const struct json_node *scaling = read_theta(s, m, 10000);
    struct source inner = {scaling, s->where, s->err, 0};
    if (!scaling) return;
    if (!is_kind(scaling, "yarn")) {
        fail(s, "rope_scaling", "is of a kind other than 'yarn' and 'default': not supported");
        return;
    }
    m->rope_scaling_factor = get_double(&inner, "factor", 0);
    m->mscale = get_double(&inner, "mscale", 0);
    m->mscale_all_dim = get_double(&inner, "mscale_all_dim", 0);
    /* transformers: without both of them the rotated columns are multiplied by mscale(1). */
    bool both = m->mscale != 0 && m->mscale_all_dim != 0;
    struct checkpoint_model one = *m;
    one.mscale = 1, one.mscale_all_dim = 0;
    double concentration = get_double(&inner, "attention_factor", hf_yarn_concentration(both ? m : &one));
    if (m->mscale == 0 && m->mscale_all_dim == 0 && concentration != 1) m->mscale = 1;
    if (m->rope_scaling_factor <= 1) fail(s, "rope_scaling", "needs a factor above 1");
    if (fabs(concentration - hf_yarn_concentration(m)) > 1e-6)
        fail(s, "rope_scaling", "has an attention_factor that does not follow from mscale: not supported");
    if (get_double(&inner, "beta_fast", YARN_BETA_FAST) != YARN_BETA_FAST ||
        get_double(&inner, "beta_slow", YARN_BETA_SLOW) != YARN_BETA_SLOW ||
        get_double(&inner, "original_max_position_embeddings", YARN_ORIGINAL_POSITIONS) !=
            YARN_ORIGINAL_POSITIONS ||
        !get_bool(&inner, "truncate", true))
        fail(s, "rope_scaling", "must have beta_fast 32, beta_slow 1, 4096 original positions");
    if (inner.status) s->status = -1;
}

static void read_llama(struct source *s, struct checkpoint_model *m, const char *type) {
    bool mixtral = !strcmp(type, "mixtral");
    m->hidden_size = get_integer(s, "hidden_size", -1);
    m->ffn_hidden_size = get_integer(s, "intermediate_size", -1);
    m->num_layers = get_integer(s, "num_hidden_layers", -1);
    m->num_attention_heads = get_integer(s, "num_attention_heads", -1);
    m->num_query_groups = get_integer(s, "num_key_value_heads", m->num_attention_heads);
    int64_t heads = m->num_attention_heads > 0 ? m->num_attention_heads : 1;
    m->kv_channels = get_integer(s, "head_dim", m->hidden_size > 0 ? m->hidden_size / heads : 0);
    m->max_position_embeddings = get_integer(s, "max_position_embeddings", mixtral ? 131072 : 2048);
    m->norm_epsilon = get_double(s, "rms_norm_eps", mixtral ? 1e-5 : 1e-6);
    m->attention_dropout = get_double(s, "attention_dropout", 0);
    m->activation = get_activation(s, "hidden_act", "silu");
    m->position = CHECKPOINT_POSITION_ROPE;
    m->gated = m->rms_norm = true;
    m->tied = get_bool(s, "tie_word_embeddings", false);
    m->qk_norm = !strcmp(type, "qwen3");
    m->linear_bias = get_bool(s, "attention_bias", false);
    m->qkv_bias = m->linear_bias || !strcmp(type, "qwen2");
    if (m->activation != CHECKPOINT_SILU) fail(s, "hidden_act", "is not 'silu': not supported");
    if (m->linear_bias != get_bool(s, "mlp_bias", false))
        fail(s, "attention_bias", "differs from 'mlp_bias': this program has biases in both or in none");
    bool window = get_bool(s, "use_sliding_window", !strcmp(type, "mistral") || mixtral);
    if (window && member(s, "sliding_window")) fail(s, "sliding_window", "is set: not supported");
    read_rope(s, m, mixtral ? 1e6 : 10000);
}

static void read_mixtral(struct source *s, struct checkpoint_model *m) {
    read_llama(s, m, "mixtral");
    m->moe_ffn_hidden_size = m->ffn_hidden_size;
    m->num_experts = get_integer(s, "num_local_experts", 8);
    m->moe_topk = get_integer(s, "num_experts_per_tok", 2);
    m->moe_scaling = 1;
    if (m->num_experts < 1) fail(s, "num_local_experts", "is not positive");
    if (m->moe_topk < 2) fail(s, "num_experts_per_tok", "is less than 2: not supported");
}

static void read_deepseek_experts(struct source *s, struct checkpoint_model *m) {
    int64_t groups = get_integer(s, "n_group", 1), best = get_integer(s, "topk_group", 1);
    m->num_experts = get_integer(s, "n_routed_experts", -1);
    m->moe_ffn_hidden_size = get_integer(s, "moe_intermediate_size", -1);
    if (!m->moe_dense_layers) m->ffn_hidden_size = m->moe_ffn_hidden_size; /* no layer has the other */
    m->moe_shared_ffn_size = get_integer(s, "n_shared_experts", 1) * m->moe_ffn_hidden_size;
    m->moe_topk = get_integer(s, "num_experts_per_tok", -1);
    m->moe_scaling = get_double(s, "routed_scaling_factor", 1);
    m->moe_score = CHECKPOINT_SIGMOID;
    const struct json_node *score = member(s, "scoring_func"), *method = member(s, "topk_method");
    if (score && !is_word(score, "sigmoid")) fail(s, "scoring_func", "is not 'sigmoid': not supported");
    if (method && !is_word(method, "noaux_tc")) fail(s, "topk_method", "is not 'noaux_tc': not supported");
    if (get_integer(s, "moe_layer_freq", 1) != 1) fail(s, "moe_layer_freq", "is not 1: not supported");
    if (m->num_experts < 2) fail(s, "n_routed_experts", "is less than 2: not supported");
    if (m->moe_shared_ffn_size < 1) fail(s, "n_shared_experts", "is not positive: not supported");
    if (get_bool(s, "norm_topk_prob", true) != (m->moe_topk > 1))
        fail(s, "norm_topk_prob", "must be true for several experts and false for one: not supported");
    m->mtp_layers = get_integer(s, "num_nextn_predict_layers", 0);
    if (groups == best) return;
    m->moe_num_groups = groups, m->moe_group_topk = best;
    if (groups < 1 || best < 1 || best > groups || m->num_experts % groups || m->moe_topk != 2 * best)
        fail(s, "topk_group",
             "must be at most n_group, which divides n_routed_experts, and half of num_experts_per_tok");
}

static void read_deepseek(struct source *s, struct checkpoint_model *m) {
    m->hidden_size = get_integer(s, "hidden_size", -1);
    m->ffn_hidden_size = get_integer(s, "intermediate_size", -1);
    m->num_layers = get_integer(s, "num_hidden_layers", -1);
    m->num_attention_heads = m->num_query_groups = get_integer(s, "num_attention_heads", -1);
    m->q_lora_rank = get_integer(s, "q_lora_rank", 0);
    m->kv_lora_rank = get_integer(s, "kv_lora_rank", -1);
    m->qk_head_dim = get_integer(s, "qk_nope_head_dim", -1);
    m->qk_pos_emb_head_dim = get_integer(s, "qk_rope_head_dim", -1);
    m->v_head_dim = get_integer(s, "v_head_dim", -1);
    m->kv_channels = m->qk_head_dim + m->qk_pos_emb_head_dim;
    m->max_position_embeddings = get_integer(s, "max_position_embeddings", 4096);
    m->norm_epsilon = get_double(s, "rms_norm_eps", LATENT_NORM_EPSILON);
    m->attention_dropout = get_double(s, "attention_dropout", 0);
    m->activation = get_activation(s, "hidden_act", "silu");
    m->position = CHECKPOINT_POSITION_ROPE;
    m->gated = m->rms_norm = m->qk_norm = true;
    m->tied = get_bool(s, "tie_word_embeddings", false);
    if (m->activation != CHECKPOINT_SILU) fail(s, "hidden_act", "is not 'silu': not supported");
    if (m->kv_lora_rank < 1) fail(s, "kv_lora_rank", "is not positive");
    if (m->norm_epsilon != LATENT_NORM_EPSILON)
        fail(s, "rms_norm_eps", "is not 1e-6, which the norms on the latents have: not supported");
    if (get_bool(s, "attention_bias", false)) fail(s, "attention_bias", "is true: not supported");
    if (!get_bool(s, "rope_interleave", true)) fail(s, "rope_interleave", "is false: not supported");
    read_yarn(s, m);
    m->moe_dense_layers = get_integer(s, "first_k_dense_replace", 3);
    if (m->moe_dense_layers >= m->num_layers)
        m->moe_dense_layers = 0; /* all layers are dense */
    else
        read_deepseek_experts(s, m);
}

int checkpoint_read_hf_config(const struct json_node *root, const char *where,
                              struct checkpoint_model *model_p, struct err *err) {
    static const char *const types[] = {"gpt2",  "llama",   "mistral",    "qwen2",
                                        "qwen3", "mixtral", "deepseek_v3"};
    const struct json_node *type = json_get(root, "model_type");
    struct source s = {root, where, err, 0};
    struct checkpoint_model m = {.rotary_percent = 1};
    size_t i = 0;
    while (i < ARRAY_COUNT(types) && !is_word(type, types[i])) i++;
    if (i == ARRAY_COUNT(types))
        return err_set(err,
                       "%s: model_type '%.64s' is not supported: gpt2, llama, mistral, qwen2, qwen3, mixtral "
                       "and deepseek_v3 are",
                       where, type && type->kind == JSON_STRING ? type->string : "(none)");
    m.vocab_size = m.padded_vocab_size = get_integer(&s, "vocab_size", -1);
    if (i == 0)
        read_gpt2(&s, &m);
    else if (!strcmp(types[i], "mixtral"))
        read_mixtral(&s, &m);
    else if (!strcmp(types[i], "deepseek_v3"))
        read_deepseek(&s, &m);
    else
        read_llama(&s, &m, types[i]);
    if (s.status || checkpoint_check_model(&m, where, err)) return -1;
    const char *why = NULL;
    if (checkpoint_family(&m, &why) == CHECKPOINT_MEGATRON)
        return err_set(err, "%s: a %s with this trait cannot be imported: %s", where, types[i], why);
    *model_p = m;
    return 0;
}
