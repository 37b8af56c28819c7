#include "core/checkpoint/names.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the table: one row per parameter of a dense model ---- */

enum size { NONE, VOCAB, POSITIONS, HIDDEN, ATTENTION, QKV, HEAD, FC1, FFN };
enum cut { WHOLE, CUT_QKV, CUT_GATED };
enum when { ALWAYS, IF_LEARNED, IF_UNTIED, IF_NORM_BIAS, IF_QKV_BIAS, IF_LINEAR_BIAS, IF_QK_NORM };

/* Names of layer rows go behind "decoder.layers.N.", "transformer.h.N." and "model.layers.N.". */
struct row {
    const char *name;
    enum size rows, cols;
    bool layer, linear; /* linear: GPT-2 stores it transposed */
    enum cut cut;
    enum when when;
    const char *gpt2;
    const char *llama[CHECKPOINT_MAX_PARTS];
};

static const struct row table[] = {
    {"embedding.word_embeddings.weight",
     VOCAB,
     HIDDEN,
     false,
     false,
     WHOLE,
     ALWAYS,
     "transformer.wte.weight",
     {"model.embed_tokens.weight"}},
    {"embedding.position_embeddings.weight",
     POSITIONS,
     HIDDEN,
     false,
     false,
     WHOLE,
     IF_LEARNED,
     "transformer.wpe.weight",
     {NULL}},
    {"input_layernorm.weight",
     HIDDEN,
     NONE,
     true,
     false,
     WHOLE,
     ALWAYS,
     "ln_1.weight",
     {"input_layernorm.weight"}},
    {"input_layernorm.bias", HIDDEN, NONE, true, false, WHOLE, IF_NORM_BIAS, "ln_1.bias", {NULL}},
    {"self_attention.linear_qkv.weight",
     QKV,
     HIDDEN,
     true,
     true,
     CUT_QKV,
     ALWAYS,
     "attn.c_attn.weight",
     {"self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight"}},
    {"self_attention.linear_qkv.bias",
     QKV,
     NONE,
     true,
     false,
     CUT_QKV,
     IF_QKV_BIAS,
     "attn.c_attn.bias",
     {"self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"}},
    {"self_attention.q_layernorm.weight",
     HEAD,
     NONE,
     true,
     false,
     WHOLE,
     IF_QK_NORM,
     NULL,
     {"self_attn.q_norm.weight"}},
    {"self_attention.k_layernorm.weight",
     HEAD,
     NONE,
     true,
     false,
     WHOLE,
     IF_QK_NORM,
     NULL,
     {"self_attn.k_norm.weight"}},
    {"self_attention.linear_proj.weight",
     HIDDEN,
     ATTENTION,
     true,
     true,
     WHOLE,
     ALWAYS,
     "attn.c_proj.weight",
     {"self_attn.o_proj.weight"}},
    {"self_attention.linear_proj.bias",
     HIDDEN,
     NONE,
     true,
     false,
     WHOLE,
     IF_LINEAR_BIAS,
     "attn.c_proj.bias",
     {"self_attn.o_proj.bias"}},
    {"pre_mlp_layernorm.weight",
     HIDDEN,
     NONE,
     true,
     false,
     WHOLE,
     ALWAYS,
     "ln_2.weight",
     {"post_attention_layernorm.weight"}},
    {"pre_mlp_layernorm.bias", HIDDEN, NONE, true, false, WHOLE, IF_NORM_BIAS, "ln_2.bias", {NULL}},
    {"mlp.linear_fc1.weight",
     FC1,
     HIDDEN,
     true,
     true,
     CUT_GATED,
     ALWAYS,
     "mlp.c_fc.weight",
     {"mlp.gate_proj.weight", "mlp.up_proj.weight"}},
    {"mlp.linear_fc1.bias",
     FC1,
     NONE,
     true,
     false,
     CUT_GATED,
     IF_LINEAR_BIAS,
     "mlp.c_fc.bias",
     {"mlp.gate_proj.bias", "mlp.up_proj.bias"}},
    {"mlp.linear_fc2.weight",
     HIDDEN,
     FFN,
     true,
     true,
     WHOLE,
     ALWAYS,
     "mlp.c_proj.weight",
     {"mlp.down_proj.weight"}},
    {"mlp.linear_fc2.bias",
     HIDDEN,
     NONE,
     true,
     false,
     WHOLE,
     IF_LINEAR_BIAS,
     "mlp.c_proj.bias",
     {"mlp.down_proj.bias"}},
    {"decoder.final_layernorm.weight",
     HIDDEN,
     NONE,
     false,
     false,
     WHOLE,
     ALWAYS,
     "transformer.ln_f.weight",
     {"model.norm.weight"}},
    {"decoder.final_layernorm.bias",
     HIDDEN,
     NONE,
     false,
     false,
     WHOLE,
     IF_NORM_BIAS,
     "transformer.ln_f.bias",
     {NULL}},
    {"output_layer.weight",
     VOCAB,
     HIDDEN,
     false,
     false,
     WHOLE,
     IF_UNTIED,
     "lm_head.weight",
     {"lm_head.weight"}},
};

static const char LAYER_PREFIX[] = "decoder.layers.";

static int64_t size_of(const struct checkpoint_model *m, enum size size) {
    switch (size) {
    case VOCAB:
        return m->padded_vocab_size;
    case POSITIONS:
        return m->max_position_embeddings;
    case HIDDEN:
        return m->hidden_size;
    case ATTENTION:
        return m->num_attention_heads * m->kv_channels;
    case QKV:
        return (m->num_attention_heads + 2 * m->num_query_groups) * m->kv_channels;
    case HEAD:
        return m->kv_channels;
    case FC1:
        return m->gated ? 2 * m->ffn_hidden_size : m->ffn_hidden_size;
    case FFN:
        return m->ffn_hidden_size;
    default:
        return 1;
    }
}

static bool has_row(const struct checkpoint_model *m, enum when when) {
    switch (when) {
    case IF_LEARNED:
        return m->position == CHECKPOINT_POSITION_LEARNED;
    case IF_UNTIED:
        return !m->tied;
    case IF_NORM_BIAS:
        return !m->rms_norm;
    case IF_QKV_BIAS:
        return m->qkv_bias || m->linear_bias;
    case IF_LINEAR_BIAS:
        return m->linear_bias;
    case IF_QK_NORM:
        return m->qk_norm;
    default:
        return true;
    }
}

/* ---- families ---- */

const char *checkpoint_family_name(enum checkpoint_family family) {
    static const char *const names[] = {"megatron", "gpt2", "llama", "qwen2", "qwen3"};
    return names[family];
}

static const char *why_not_gpt2(const struct checkpoint_model *m) {
    if (m->rms_norm) return "learned positions with RMSNorm";
    if (m->gated) return "learned positions with a gated activation";
    if (!m->linear_bias) return "learned positions without biases (--disable-bias-linear)";
    if (m->qk_norm) return "learned positions with --qk-layernorm";
    if (m->num_query_groups != m->num_attention_heads)
        return "learned positions with --group-query-attention";
    if (m->num_attention_heads * m->kv_channels != m->hidden_size)
        return "learned positions with heads * --kv-channels other than --hidden-size";
    return NULL;
}

static const char *why_not_llama(const struct checkpoint_model *m) {
    if (!m->rms_norm) return "rope with LayerNorm";
    if (!m->gated || m->activation != CHECKPOINT_SILU) return "rope with an activation other than --swiglu";
    if (m->rotary_percent != 1.0) return "--rotary-percent other than 1";
    if (m->rotary_interleaved) return "--rotary-interleaved";
    if (m->qk_norm && (m->qkv_bias || m->linear_bias)) return "--qk-layernorm with biases";
    if (m->qkv_bias && !m->linear_bias && m->num_attention_heads * m->kv_channels != m->hidden_size)
        return "--add-qkv-bias with heads * --kv-channels other than --hidden-size";
    return NULL;
}

enum checkpoint_family checkpoint_family(const struct checkpoint_model *model, const char **why) {
    const char *reason = NULL;
    enum checkpoint_family family = CHECKPOINT_GPT2;
    if (model->unlike_hf[0]) {
        reason = model->unlike_hf;
    } else if (model->zero_centered_norm) {
        reason = "--apply-layernorm-1p";
    } else if (model->position == CHECKPOINT_POSITION_LEARNED) {
        reason = why_not_gpt2(model);
    } else if (model->position == CHECKPOINT_POSITION_ROPE) {
        reason = why_not_llama(model);
        family = model->qk_norm                           ? CHECKPOINT_QWEN3
                 : model->qkv_bias && !model->linear_bias ? CHECKPOINT_QWEN2
                                                          : CHECKPOINT_LLAMA;
    } else {
        reason = "--position-embedding-type none";
    }
    if (why) *why = reason;
    return reason ? CHECKPOINT_MEGATRON : family;
}

/* ---- entries ---- */

/* Finds the row of a Megatron-LM name; *layer_p is -1 for rows outside the layers. */
static const struct row *find_row(const struct checkpoint_model *m, const char *name, int64_t *layer_p) {
    size_t prefix = sizeof(LAYER_PREFIX) - 1;
    *layer_p = -1;
    if (!strncmp(name, LAYER_PREFIX, prefix)) {
        char *end;
        if (name[prefix] < '0' || name[prefix] > '9') return NULL;
        long long layer = strtoll(name + prefix, &end, 10);
        if (*end != '.' || layer >= m->num_layers) return NULL;
        *layer_p = layer, name = end + 1;
    }
    for (size_t i = 0; i < ARRAY_COUNT(table); i++)
        if (table[i].layer == (*layer_p >= 0) && !strcmp(table[i].name, name)) return &table[i];
    return NULL;
}

static int whole_entry(struct checkpoint_entry *e, const char *name, int num_dims, const int64_t dims[2],
                       struct err *err) {
    int64_t rows = dims[0];
    *e = (struct checkpoint_entry){.num_dims = num_dims, .dims = {rows, num_dims > 1 ? dims[1] : 1}};
    e->num_segments = 1;
    e->segments[0] = (struct checkpoint_segment){rows, 0, rows, rows};
    if ((size_t)snprintf(e->name, sizeof(e->name), "%s", name) >= sizeof(e->name))
        return err_set(err, "tensor name '%s' is longer than %d bytes", name, CHECKPOINT_MAX_NAME - 1);
    return 1;
}

/* The parts of one tensor along its rows. */
static int cut_rows(const struct checkpoint_model *m, const struct row *row, int64_t rows,
                    struct checkpoint_segment parts[CHECKPOINT_MAX_PARTS]) {
    int64_t d = m->kv_channels, groups = m->num_query_groups, per_group = m->num_attention_heads / groups;
    int64_t stride = (per_group + 2) * d;
    if (row->cut == CUT_QKV) {
        parts[0] = (struct checkpoint_segment){groups * per_group * d, 0, per_group * d, stride};
        parts[1] = (struct checkpoint_segment){groups * d, per_group * d, d, stride};
        parts[2] = (struct checkpoint_segment){groups * d, (per_group + 1) * d, d, stride};
        return 3;
    }
    if (row->cut == CUT_GATED && m->gated) {
        parts[0] = (struct checkpoint_segment){rows / 2, 0, rows, rows};
        parts[1] = (struct checkpoint_segment){rows / 2, rows / 2, rows, rows};
        return 2;
    }
    parts[0] = (struct checkpoint_segment){rows, 0, rows, rows};
    return 1;
}

static void name_entry(struct checkpoint_entry *e, const char *prefix, int64_t layer, const char *name) {
    if (layer >= 0)
        snprintf(e->name, sizeof(e->name), "%s.%lld.%s", prefix, (long long)layer, name);
    else
        snprintf(e->name, sizeof(e->name), "%s", name);
}

int checkpoint_entries_of(const struct checkpoint_model *model, const char *name, int num_dims,
                          const int64_t dims[2], struct checkpoint_entry *entries, struct err *err) {
    enum checkpoint_family family = checkpoint_family(model, NULL);
    int64_t layer, cols = num_dims > 1 ? dims[1] : 1;
    const struct row *row = find_row(model, name, &layer);
    bool known = row && (family == CHECKPOINT_GPT2 ? row->gpt2 != NULL : row->llama[0] != NULL);
    if (family == CHECKPOINT_MEGATRON || !known) {
        int n = whole_entry(entries, name, num_dims, dims, err);
        entries->vocabulary = row && row->rows == VOCAB;
        return n;
    }
    if (num_dims != (row->cols == NONE ? 1 : 2) || dims[0] != size_of(model, row->rows) ||
        cols != size_of(model, row->cols))
        return err_set(err, "tensor '%s' is [%lld, %lld], but the model's sizes make it [%lld, %lld]", name,
                       (long long)dims[0], (long long)cols, (long long)size_of(model, row->rows),
                       (long long)size_of(model, row->cols));
    struct checkpoint_segment parts[CHECKPOINT_MAX_PARTS];
    int num_parts = cut_rows(model, row, dims[0], parts);
    bool joined = family == CHECKPOINT_GPT2; /* all parts side by side in one tensor */
    bool transposed = joined && row->linear;
    for (int i = 0; i < (joined ? 1 : num_parts); i++) {
        struct checkpoint_entry *e = &entries[i];
        int64_t rows = joined ? dims[0] : parts[i].rows;
        *e = (struct checkpoint_entry){.num_dims = num_dims, .transposed = transposed};
        e->dims[0] = transposed ? cols : rows, e->dims[1] = transposed ? rows : cols;
        e->vocabulary = row->rows == VOCAB;
        e->num_segments = joined ? num_parts : 1;
        memcpy(e->segments, joined ? parts : &parts[i], (size_t)e->num_segments * sizeof(parts[0]));
        if (joined)
            name_entry(e, "transformer.h", layer, row->gpt2);
        else
            name_entry(e, "model.layers", layer, row->llama[i]);
    }
    return joined ? 1 : num_parts;
}

void checkpoint_each_tensor(const struct checkpoint_model *model, checkpoint_tensor_fn fn, void *context) {
    char name[CHECKPOINT_MAX_NAME];
    for (size_t i = 0; i < ARRAY_COUNT(table);) {
        size_t end = i + 1; /* consecutive layer rows go layer by layer */
        while (table[i].layer && end < ARRAY_COUNT(table) && table[end].layer) end++;
        for (int64_t layer = 0; layer < (table[i].layer ? model->num_layers : 1); layer++)
            for (size_t r = i; r < end; r++) {
                const struct row *row = &table[r];
                int64_t dims[2] = {size_of(model, row->rows), size_of(model, row->cols)};
                if (!has_row(model, row->when)) continue;
                if (row->layer)
                    snprintf(name, sizeof(name), "%s%lld.%s", LAYER_PREFIX, (long long)layer, row->name);
                else
                    snprintf(name, sizeof(name), "%s", row->name);
                fn(context, name, row->cols == NONE ? 1 : 2, dims);
            }
        i = end;
    }
}

int64_t checkpoint_map_rows(const struct checkpoint_entry *entry, int64_t i, int64_t *row_p) {
    const struct checkpoint_segment *s = entry->segments;
    for (int n = 1; i >= s->rows; n++) {
        CHECK(n < entry->num_segments, "%s: row outside the tensor", entry->name);
        i -= s->rows, s++;
    }
    *row_p = s->base + i / s->block * s->stride + i % s->block;
    int64_t in_block = s->block - i % s->block, in_segment = s->rows - i;
    return in_block < in_segment ? in_block : in_segment;
}
