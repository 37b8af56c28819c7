#include "core/checkpoint/hf.h"
#include "core/checkpoint/record.h"
#include <stdio.h>
#include <string.h>

/* Megatron-LM's --use-rope-scaling fixes these three of Llama 3's four numbers. */
static const double LOW_FREQ_FACTOR = 1, HIGH_FREQ_FACTOR = 4, ORIGINAL_POSITIONS = 8192;

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

static const char *hf_activation(enum checkpoint_activation activation) {
    size_t i = 0;
    while (activations[i].activation != activation) i++;
    return activations[i].hf;
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
    put_double(out, "low_freq_factor", LOW_FREQ_FACTOR);
    put_double(out, "high_freq_factor", HIGH_FREQ_FACTOR);
    put_integer(out, "original_max_position_embeddings", (int64_t)ORIGINAL_POSITIONS);
    json_end_object(out);
}

static void put_llama(struct str *out, const struct checkpoint_model *m, enum checkpoint_family family) {
    put_integer(out, "hidden_size", m->hidden_size);
    put_integer(out, "intermediate_size", m->ffn_hidden_size);
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
    } else {
        if (family == CHECKPOINT_QWEN3) put_bool(out, "attention_bias", false);
        put_bool(out, "use_sliding_window", false);
    }
}

void checkpoint_write_hf_config(struct str *out, const struct checkpoint_model *model,
                                const struct checkpoint_state *state, enum safetensors_dtype dtype) {
    static const char *const architectures[CHECKPOINT_FAMILY_COUNT] = {
        [CHECKPOINT_GPT2] = "GPT2LMHeadModel",
        [CHECKPOINT_LLAMA] = "LlamaForCausalLM",
        [CHECKPOINT_QWEN2] = "Qwen2ForCausalLM",
        [CHECKPOINT_QWEN3] = "Qwen3ForCausalLM",
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

/* ---- reading ---- */

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
    for (size_t i = 0; i < ARRAY_COUNT(activations); i++)
        if (!strcmp(activations[i].hf, word)) return activations[i].activation;
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

static void read_rope(struct source *s, struct checkpoint_model *m) {
    const struct json_node *parameters = member(s, "rope_parameters"); /* what newer folders say */
    const struct json_node *scaling = parameters ? parameters : member(s, "rope_scaling");
    struct source inner = {scaling ? scaling : s->root, s->where, s->err, 0};
    m->rotary_base =
        get_double(s, "rope_theta", parameters ? get_double(&inner, "rope_theta", 10000) : 10000);
    if (get_double(s, "partial_rotary_factor", 1) != 1 || get_double(&inner, "partial_rotary_factor", 1) != 1)
        fail(s, "partial_rotary_factor",
             "is not 1: Hugging Face's tensors of such models are named otherwise");
    const struct json_node *type = scaling ? member(&inner, "rope_type") : NULL;
    if (scaling && !type) type = member(&inner, "type");
    if (!scaling || !type || is_word(type, "default")) return;
    if (!is_word(type, "llama3")) {
        fail(s, "rope_scaling", "is of a kind other than 'llama3' and 'default': not supported");
        return;
    }
    m->rope_scaling_factor = get_double(&inner, "factor", 8);
    if (get_double(&inner, "low_freq_factor", LOW_FREQ_FACTOR) != LOW_FREQ_FACTOR ||
        get_double(&inner, "high_freq_factor", HIGH_FREQ_FACTOR) != HIGH_FREQ_FACTOR ||
        get_double(&inner, "original_max_position_embeddings", ORIGINAL_POSITIONS) != ORIGINAL_POSITIONS)
        fail(s, "rope_scaling", "must have low_freq_factor 1, high_freq_factor 4, 8192 original positions");
    if (inner.status) s->status = -1;
}

static void read_llama(struct source *s, struct checkpoint_model *m, const char *type) {
    m->hidden_size = get_integer(s, "hidden_size", -1);
    m->ffn_hidden_size = get_integer(s, "intermediate_size", -1);
    m->num_layers = get_integer(s, "num_hidden_layers", -1);
    m->num_attention_heads = get_integer(s, "num_attention_heads", -1);
    m->num_query_groups = get_integer(s, "num_key_value_heads", m->num_attention_heads);
    int64_t heads = m->num_attention_heads > 0 ? m->num_attention_heads : 1;
    m->kv_channels = get_integer(s, "head_dim", m->hidden_size > 0 ? m->hidden_size / heads : 0);
    m->max_position_embeddings = get_integer(s, "max_position_embeddings", 2048);
    m->norm_epsilon = get_double(s, "rms_norm_eps", 1e-6);
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
    bool window = get_bool(s, "use_sliding_window", !strcmp(type, "mistral"));
    if (window && member(s, "sliding_window")) fail(s, "sliding_window", "is set: not supported");
    read_rope(s, m);
}

int checkpoint_read_hf_config(const struct json_node *root, const char *where,
                              struct checkpoint_model *model_p, struct err *err) {
    static const char *const types[] = {"gpt2", "llama", "mistral", "qwen2", "qwen3"};
    const struct json_node *type = json_get(root, "model_type");
    struct source s = {root, where, err, 0};
    struct checkpoint_model m = {.rotary_percent = 1};
    size_t i = 0;
    while (i < ARRAY_COUNT(types) && !is_word(type, types[i])) i++;
    if (i == ARRAY_COUNT(types))
        return err_set(err,
                       "%s: model_type '%.64s' is not supported: gpt2, llama, mistral, qwen2 and qwen3 are",
                       where, type && type->kind == JSON_STRING ? type->string : "(none)");
    m.vocab_size = m.padded_vocab_size = get_integer(&s, "vocab_size", -1);
    if (i == 0)
        read_gpt2(&s, &m);
    else
        read_llama(&s, &m, types[i]);
    if (s.status || checkpoint_check_model(&m, where, err)) return -1;
    const char *why = NULL;
    if (checkpoint_family(&m, &why) == CHECKPOINT_MEGATRON)
        return err_set(err, "%s: a %s with this trait cannot be imported: %s", where, types[i], why);
    *model_p = m;
    return 0;
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
    flag_integer(out, "kv_channels", m->kv_channels);
    flag_integer(out, "max_position_embeddings", m->max_position_embeddings);
    flag_string(out, "position_embedding_type", rope ? "rope" : "learned_absolute");
    if (rope) flag_double(out, "rotary_base", m->rotary_base);
    if (m->rope_scaling_factor != 0) {
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
