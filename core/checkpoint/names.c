#include "core/checkpoint/names.h"
#include "core/base/mem.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the table: names.def ---- */

enum place { MODEL, LAYER, DEPTH };
enum size {
    NONE,
    ONE,
    VOCAB,
    POSITIONS,
    HIDDEN,
    TWO_HIDDEN,
    ATTENTION,
    QKV,
    HEAD,
    Q_LATENT,
    Q_UP,
    KV_DOWN,
    KV_LATENT,
    KV_UP,
    FC1,
    FFN,
    EXPERTS,
    EXPERTS_FC1,
    EXPERTS_FC2,
    EXPERT_FFN,
    SHARED_FC1,
    SHARED_FFN
};
enum cut { WHOLE, CUT_QKV, CUT_GATED, CUT_EXPERTS, CUT_EXPERTS_GATED };
enum when {
    ALWAYS,
    IF_LEARNED,
    IF_UNTIED,
    IF_NORM_BIAS,
    IF_LINEAR_BIAS,
    IF_QKV, /* attention without latents */
    IF_QKV_BIAS,
    IF_QK_NORM,
    IF_LATENT,
    IF_KV_NORM,
    IF_Q_DIRECT,
    IF_Q_LATENT,
    IF_Q_NORM,
    IF_DENSE, /* layers without experts */
    IF_DENSE_BIAS,
    IF_EXPERTS, /* layers with them */
    IF_EXPERT_BIAS,
    IF_SHARED,
    IF_SHARED_GATE,
    IF_MTP
};
enum { MAX_CUTS = 3 };

struct row {
    enum place place;
    const char *name;
    enum size rows, cols;
    enum cut cut;
    enum when when;
    const char *gpt2, *llama[MAX_CUTS], *mixtral[MAX_CUTS];
};

#define NAMES(...)                                                                                           \
    { __VA_ARGS__ }
#define ROW(place, name, rows, cols, cut, when, gpt2, llama, mixtral)                                        \
    {place, name, rows, cols, cut, when, gpt2, NAMES llama, NAMES mixtral},
static const struct row table[] = {
#include "core/checkpoint/names.def"
};

static const char LAYER_PREFIX[] = "decoder.layers.", DEPTH_PREFIX[] = "mtp.layers.";
static const char DEPTH_LAYER[] = "transformer_layer.";

static int64_t size_of_experts(const struct checkpoint_model *m, enum size size) {
    int64_t halves = m->gated ? 2 : 1;
    switch (size) {
    case EXPERTS:
        return m->num_experts;
    case EXPERTS_FC1:
        return m->num_experts * halves * m->moe_ffn_hidden_size;
    case EXPERTS_FC2:
        return m->num_experts * m->hidden_size;
    case EXPERT_FFN:
        return m->moe_ffn_hidden_size;
    case SHARED_FC1:
        return halves * m->moe_shared_ffn_size;
    case SHARED_FFN:
        return m->moe_shared_ffn_size;
    default:
        return 1; /* ONE, and NONE, which counts as one column */
    }
}

static int64_t size_of_attention(const struct checkpoint_model *m, enum size size) {
    int64_t plain = m->qk_head_dim, rotated = m->qk_pos_emb_head_dim, value = m->v_head_dim;
    switch (size) {
    case ATTENTION:
        return m->num_attention_heads * (m->kv_lora_rank ? value : m->kv_channels);
    case QKV:
        return (m->num_attention_heads + 2 * m->num_query_groups) * m->kv_channels;
    case HEAD:
        return m->kv_channels;
    case Q_LATENT:
        return m->q_lora_rank;
    case Q_UP:
        return m->num_attention_heads * (plain + rotated);
    case KV_DOWN:
        return m->kv_lora_rank + rotated;
    case KV_LATENT:
        return m->kv_lora_rank;
    case KV_UP:
        return m->num_attention_heads * (plain + value);
    default:
        return size_of_experts(m, size);
    }
}

static int64_t size_of(const struct checkpoint_model *m, enum size size) {
    switch (size) {
    case VOCAB:
        return m->padded_vocab_size;
    case POSITIONS:
        return m->max_position_embeddings;
    case HIDDEN:
        return m->hidden_size;
    case TWO_HIDDEN:
        return 2 * m->hidden_size;
    case FC1:
        return m->gated ? 2 * m->ffn_hidden_size : m->ffn_hidden_size;
    case FFN:
        return m->ffn_hidden_size;
    default:
        return size_of_attention(m, size);
    }
}

static bool has_attention_row(const struct checkpoint_model *m, enum when when) {
    bool latents = m->kv_lora_rank > 0;
    switch (when) {
    case IF_QKV:
        return !latents;
    case IF_QKV_BIAS:
        return !latents && (m->qkv_bias || m->linear_bias);
    case IF_QK_NORM:
        return !latents && m->qk_norm;
    case IF_LATENT:
        return latents;
    case IF_KV_NORM:
        return latents && m->qk_norm;
    case IF_Q_DIRECT:
        return latents && !m->q_lora_rank;
    case IF_Q_LATENT:
        return latents && m->q_lora_rank;
    case IF_Q_NORM:
        return latents && m->q_lora_rank && m->qk_norm;
    default:
        return true;
    }
}

/* `layer` is -1 for rows outside the layers; depths of multi-token prediction follow the last layer, whose
 * kind theirs is. */
static bool has_row(const struct checkpoint_model *m, const struct row *row, int64_t layer) {
    bool experts = m->num_experts > 0 && layer >= m->moe_dense_layers;
    switch (row->when) {
    case IF_LEARNED:
        return m->position == CHECKPOINT_POSITION_LEARNED;
    case IF_UNTIED:
        return !m->tied;
    case IF_NORM_BIAS:
        return !m->rms_norm;
    case IF_LINEAR_BIAS:
        return m->linear_bias;
    case IF_DENSE:
        return !experts;
    case IF_DENSE_BIAS:
        return !experts && m->linear_bias;
    case IF_EXPERTS:
        return experts;
    case IF_EXPERT_BIAS:
        return experts && m->moe_expert_bias;
    case IF_SHARED:
        return experts && m->moe_shared_ffn_size > 0;
    case IF_SHARED_GATE:
        return experts && m->moe_shared_gate;
    case IF_MTP:
        return m->mtp_layers > 0;
    default:
        return has_attention_row(m, row->when);
    }
}

/* ---- families ---- */

const char *checkpoint_family_name(enum checkpoint_family family) {
    static const char *const names[] = {"megatron", "gpt2",    "llama",      "qwen2",
                                        "qwen3",    "mixtral", "deepseek_v3"};
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

static const char *why_not_mixtral(const struct checkpoint_model *m) {
    const char *why = why_not_llama(m);
    if (why) return why;
    if (m->qk_norm) return "--num-experts with --qk-layernorm";
    if (m->qkv_bias || m->linear_bias) return "--num-experts with biases";
    if (m->moe_dense_layers) return "--num-experts with dense layers (--moe-layer-freq)";
    if (m->moe_shared_ffn_size) return "--moe-shared-expert-intermediate-size";
    if (m->moe_expert_bias) return "--moe-router-enable-expert-bias";
    return NULL;
}

/* A dense model counts as one whose layers all come before the first with experts. */
static const char *why_not_deepseek(const struct checkpoint_model *m) {
    if (!m->rms_norm || !m->gated || m->activation != CHECKPOINT_SILU)
        return "--multi-latent-attention without RMSNorm and --swiglu";
    if (!m->qk_norm) return "--multi-latent-attention without --qk-layernorm";
    if (m->linear_bias) return "--multi-latent-attention with biases";
    if (!m->num_experts) return m->mtp_layers ? "--mtp-num-layers without experts" : NULL;
    if (!m->moe_shared_ffn_size)
        return "--multi-latent-attention and --num-experts without shared experts "
               "(--moe-shared-expert-intermediate-size)";
    return m->moe_shared_gate ? "--moe-shared-expert-gate" : NULL;
}

static enum checkpoint_family rotary_family(const struct checkpoint_model *m, const char **why) {
    if (m->kv_lora_rank) {
        *why = why_not_deepseek(m);
        return CHECKPOINT_DEEPSEEK_V3;
    }
    if (m->mtp_layers) {
        *why = "--mtp-num-layers without --multi-latent-attention";
        return CHECKPOINT_MEGATRON;
    }
    if (m->num_experts) {
        *why = why_not_mixtral(m);
        return CHECKPOINT_MIXTRAL;
    }
    *why = why_not_llama(m);
    return m->qk_norm                       ? CHECKPOINT_QWEN3
           : m->qkv_bias && !m->linear_bias ? CHECKPOINT_QWEN2
                                            : CHECKPOINT_LLAMA;
}

enum checkpoint_family checkpoint_family(const struct checkpoint_model *model, const char **why) {
    const char *reason = NULL;
    enum checkpoint_family family = CHECKPOINT_GPT2;
    if (model->unlike_hf[0])
        reason = model->unlike_hf;
    else if (model->mtp_layers && model->position != CHECKPOINT_POSITION_ROPE)
        reason = "--mtp-num-layers without --multi-latent-attention";
    else if (model->zero_centered_norm)
        reason = "--apply-layernorm-1p";
    else if (model->position == CHECKPOINT_POSITION_ROPE)
        family = rotary_family(model, &reason);
    else if (model->position != CHECKPOINT_POSITION_LEARNED)
        reason = "--position-embedding-type none";
    else
        reason = model->num_experts ? "learned positions with --num-experts" : why_not_gpt2(model);
    if (why) *why = reason;
    return reason ? CHECKPOINT_MEGATRON : family;
}

/* ---- entries ---- */

/* The number behind `prefix`, -1 when the name does not begin so or the number is not below `end`; *rest_p is
 * what follows. */
static int64_t read_number(const char *name, const char *prefix, int64_t end, const char **rest_p) {
    size_t length = strlen(prefix);
    char *after;
    if (strncmp(name, prefix, length) || name[length] < '0' || name[length] > '9') return -1;
    long long number = strtoll(name + length, &after, 10);
    if (*after != '.' || number >= end) return -1;
    *rest_p = after + 1;
    return number;
}

/* Finds the row of a Megatron-LM name; *layer_p is -1 for rows outside the layers. */
static const struct row *find_row(const struct checkpoint_model *m, const char *name, int64_t *layer_p) {
    enum place place = MODEL;
    *layer_p = read_number(name, LAYER_PREFIX, m->num_layers, &name);
    if (*layer_p >= 0) {
        place = LAYER;
    } else if ((*layer_p = read_number(name, DEPTH_PREFIX, m->mtp_layers, &name)) >= 0) {
        bool inside = !strncmp(name, DEPTH_LAYER, sizeof(DEPTH_LAYER) - 1);
        place = inside ? LAYER : DEPTH;
        name += inside ? sizeof(DEPTH_LAYER) - 1 : 0;
        *layer_p += m->num_layers;
    }
    for (size_t i = 0; i < ARRAY_COUNT(table); i++)
        if (table[i].place == place && !strcmp(table[i].name, name) && has_row(m, &table[i], *layer_p))
            return &table[i];
    return NULL;
}

static struct checkpoint_entry *new_entry(struct checkpoint_entries *entries, int num_dims, int64_t rows,
                                          int64_t cols) {
    if (entries->count == entries->capacity) {
        entries->capacity = entries->capacity * 2 + 64;
        entries->list =
            mem_realloc(entries->list, mem_array_bytes((size_t)entries->capacity, sizeof(*entries->list)),
                        "checkpoint entries");
    }
    struct checkpoint_entry *e = &entries->list[entries->count++];
    *e = (struct checkpoint_entry){.num_dims = num_dims, .dims = {rows, cols}};
    return e;
}

static int add_whole(struct checkpoint_entries *entries, const char *name, int num_dims,
                     const int64_t dims[2], bool vocabulary, struct err *err) {
    int64_t rows = dims[0];
    if (strlen(name) >= CHECKPOINT_MAX_NAME)
        return err_set(err, "tensor name '%s' is longer than %d bytes", name, CHECKPOINT_MAX_NAME - 1);
    struct checkpoint_entry *e = new_entry(entries, num_dims, rows, num_dims > 1 ? dims[1] : 1);
    snprintf(e->name, sizeof(e->name), "%s", name);
    e->vocabulary = vocabulary;
    e->num_segments = 1;
    e->segments[0] = (struct checkpoint_segment){rows, 0, rows, rows};
    return 1;
}

/* The parts of one tensor along its rows; of one expert, where it is cut by experts. */
static int cut_rows(const struct checkpoint_model *m, const struct row *row, int64_t rows, int64_t expert,
                    struct checkpoint_segment parts[MAX_CUTS]) {
    int64_t d = m->kv_channels, groups = m->num_query_groups, per_group = m->num_attention_heads / groups;
    int64_t stride = (per_group + 2) * d;
    bool experts = row->cut == CUT_EXPERTS || row->cut == CUT_EXPERTS_GATED;
    bool gated = m->gated && (row->cut == CUT_GATED || row->cut == CUT_EXPERTS_GATED);
    int64_t base = experts ? expert * (rows / m->num_experts) : 0;
    if (row->cut == CUT_QKV) {
        parts[0] = (struct checkpoint_segment){groups * per_group * d, 0, per_group * d, stride};
        parts[1] = (struct checkpoint_segment){groups * d, per_group * d, d, stride};
        parts[2] = (struct checkpoint_segment){groups * d, (per_group + 1) * d, d, stride};
        return 3;
    }
    if (experts) rows /= m->num_experts;
    if (gated) {
        parts[0] = (struct checkpoint_segment){rows / 2, base, rows, rows};
        parts[1] = (struct checkpoint_segment){rows / 2, base + rows / 2, rows, rows};
        return 2;
    }
    parts[0] = (struct checkpoint_segment){rows, base, rows, rows};
    return 1;
}

/* '#' in `name` becomes the expert's number. */
static void name_entry(struct checkpoint_entry *e, const char *prefix, int64_t layer, const char *name,
                       int64_t expert) {
    const char *mark = strchr(name, '#');
    int n = 0;
    if (layer >= 0) n = snprintf(e->name, sizeof(e->name), "%s.%lld.", prefix, (long long)layer);
    size_t left = sizeof(e->name) - (size_t)n;
    if (mark)
        snprintf(e->name + n, left, "%.*s%lld%s", (int)(mark - name), name, (long long)expert, mark + 1);
    else
        snprintf(e->name + n, left, "%s", name);
}

/* GPT-2: all parts side by side in one tensor. */
static void add_joined(struct checkpoint_entries *entries, const struct checkpoint_model *m,
                       const struct row *row, int64_t layer, int num_dims, const int64_t dims[2]) {
    int64_t cols = num_dims > 1 ? dims[1] : 1;
    bool transposed = row->place == LAYER && num_dims > 1;
    struct checkpoint_entry *e =
        new_entry(entries, num_dims, transposed ? cols : dims[0], transposed ? dims[0] : cols);
    e->transposed = transposed;
    e->vocabulary = row->rows == VOCAB;
    e->num_segments = cut_rows(m, row, dims[0], 0, e->segments);
    name_entry(e, "transformer.h", layer, row->gpt2, 0);
}

/* Llama and its kin: each part a tensor of its own. */
static int add_parts(struct checkpoint_entries *entries, const struct checkpoint_model *m,
                     const struct row *row, const char *const names[MAX_CUTS], int64_t layer, int num_dims,
                     const int64_t dims[2]) {
    bool by_expert = row->cut == CUT_EXPERTS || row->cut == CUT_EXPERTS_GATED;
    int num_parts = 0;
    for (int64_t expert = 0; expert < (by_expert ? m->num_experts : 1); expert++) {
        struct checkpoint_segment parts[MAX_CUTS];
        num_parts = cut_rows(m, row, dims[0], expert, parts);
        for (int i = 0; i < num_parts; i++) {
            struct checkpoint_entry *e =
                new_entry(entries, num_dims, parts[i].rows, num_dims > 1 ? dims[1] : 1);
            e->vocabulary = row->rows == VOCAB;
            e->num_segments = 1;
            e->segments[0] = parts[i];
            name_entry(e, "model.layers", layer, names[i], expert);
        }
    }
    return num_parts * (by_expert ? (int)m->num_experts : 1);
}

int checkpoint_entries_of(const struct checkpoint_model *model, const char *name, int num_dims,
                          const int64_t dims[2], struct checkpoint_entries *entries, struct err *err) {
    enum checkpoint_family family = checkpoint_family(model, NULL);
    int64_t layer, cols = num_dims > 1 ? dims[1] : 1;
    const struct row *row = find_row(model, name, &layer);
    const char *const *names =
        row && family == CHECKPOINT_MIXTRAL && row->mixtral[0] ? row->mixtral : (row ? row->llama : NULL);
    bool known = row && (family == CHECKPOINT_GPT2 ? row->gpt2 != NULL : names[0] != NULL);
    if (family == CHECKPOINT_MEGATRON || !known)
        return add_whole(entries, name, num_dims, dims, row && row->rows == VOCAB, err);
    if (num_dims != (row->cols == NONE ? 1 : 2) || dims[0] != size_of(model, row->rows) ||
        cols != size_of(model, row->cols))
        return err_set(err, "tensor '%s' is [%lld, %lld], but the model's sizes make it [%lld, %lld]", name,
                       (long long)dims[0], (long long)cols, (long long)size_of(model, row->rows),
                       (long long)size_of(model, row->cols));
    if (family != CHECKPOINT_GPT2) return add_parts(entries, model, row, names, layer, num_dims, dims);
    add_joined(entries, model, row, layer, num_dims, dims);
    return 1;
}

/* What each_tensor was called with. */
struct visit {
    const struct checkpoint_model *model;
    checkpoint_tensor_fn fn;
    void *context;
};

static void visit_row(const struct visit *v, const struct row *row, int64_t layer) {
    char name[CHECKPOINT_MAX_NAME];
    int64_t dims[2] = {size_of(v->model, row->rows), size_of(v->model, row->cols)};
    int64_t depth = layer - v->model->num_layers;
    if (!has_row(v->model, row, layer)) return;
    if (row->place == MODEL)
        snprintf(name, sizeof(name), "%s", row->name);
    else if (depth < 0)
        snprintf(name, sizeof(name), "%s%lld.%s", LAYER_PREFIX, (long long)layer, row->name);
    else
        snprintf(name, sizeof(name), "%s%lld.%s%s", DEPTH_PREFIX, (long long)depth,
                 row->place == LAYER ? DEPTH_LAYER : "", row->name);
    v->fn(v->context, name, row->cols == NONE ? 1 : 2, dims);
}

/* All layers' rows lie together in the table, and go layer by layer. */
static void visit_layers(const struct visit *v, int64_t first, int64_t end) {
    for (int64_t layer = first; layer < end; layer++)
        for (size_t i = 0; i < ARRAY_COUNT(table); i++)
            if (table[i].place == LAYER || (table[i].place == DEPTH && layer >= v->model->num_layers))
                visit_row(v, &table[i], layer);
}

void checkpoint_each_tensor(const struct checkpoint_model *model, checkpoint_tensor_fn fn, void *context) {
    struct visit v = {model, fn, context};
    bool layers_done = false;
    for (size_t i = 0; i < ARRAY_COUNT(table); i++) {
        if (table[i].place == MODEL) {
            visit_row(&v, &table[i], -1);
        } else if (!layers_done) {
            visit_layers(&v, 0, model->num_layers);
            layers_done = true;
        }
    }
    visit_layers(&v, model->num_layers, model->num_layers + model->mtp_layers);
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
