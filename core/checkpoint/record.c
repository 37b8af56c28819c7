#include "core/checkpoint/record.h"
#include "core/base/log.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum kind { INTEGER, COUNT /* 0 or more */, UNSIGNED, BOOLEAN, REAL, POSITION, ACTIVATION, SCORE };
enum match { SHAPE, MEANING, FREE }; /* what a difference between checkpoint and run spoils */

struct field {
    const char *name, *flag;
    enum kind kind;
    enum match match;
    size_t offset;
    bool added; /* not in the first checkpoints: zero when missing */
};

#define MODEL(name, flag, kind, match)                                                                       \
    { #name, flag, kind, match, offsetof(struct checkpoint_model, name), false }
#define ADDED(name, flag, kind, match)                                                                       \
    { #name, flag, kind, match, offsetof(struct checkpoint_model, name), true }
static const struct field model_fields[] = {
    MODEL(num_layers, "--num-layers", INTEGER, SHAPE),
    MODEL(hidden_size, "--hidden-size", INTEGER, SHAPE),
    MODEL(ffn_hidden_size, "--ffn-hidden-size", INTEGER, SHAPE),
    MODEL(num_attention_heads, "--num-attention-heads", INTEGER, SHAPE),
    MODEL(num_query_groups, "--num-query-groups", INTEGER, SHAPE),
    MODEL(kv_channels, "--kv-channels", INTEGER, SHAPE),
    MODEL(vocab_size, "--vocab-size", INTEGER, FREE),
    MODEL(padded_vocab_size, "--make-vocab-size-divisible-by", INTEGER, FREE),
    MODEL(max_position_embeddings, "--max-position-embeddings", INTEGER, FREE),
    MODEL(position, "--position-embedding-type", POSITION, SHAPE),
    MODEL(activation, "--swiglu and the other activation flags", ACTIVATION, MEANING),
    MODEL(gated, "--swiglu", BOOLEAN, SHAPE),
    MODEL(linear_bias, "--disable-bias-linear", BOOLEAN, SHAPE),
    MODEL(qkv_bias, "--add-qkv-bias", BOOLEAN, SHAPE),
    MODEL(qk_norm, "--qk-layernorm", BOOLEAN, SHAPE),
    MODEL(rms_norm, "--normalization", BOOLEAN, SHAPE),
    MODEL(zero_centered_norm, "--apply-layernorm-1p", BOOLEAN, MEANING),
    MODEL(tied, "--untie-embeddings-and-output-weights", BOOLEAN, SHAPE),
    MODEL(rotary_interleaved, "--rotary-interleaved", BOOLEAN, MEANING),
    MODEL(rotary_base, "--rotary-base", REAL, MEANING),
    MODEL(rotary_percent, "--rotary-percent", REAL, MEANING),
    MODEL(rope_scaling_factor, "--rope-scaling-factor, with YaRN --rotary-scaling-factor", REAL, MEANING),
    MODEL(norm_epsilon, "--norm-epsilon", REAL, MEANING),
    MODEL(hidden_dropout, "--hidden-dropout", REAL, FREE),
    MODEL(attention_dropout, "--attention-dropout", REAL, FREE),
    ADDED(kv_lora_rank, "--multi-latent-attention and --kv-lora-rank", COUNT, SHAPE),
    ADDED(q_lora_rank, "--q-lora-rank", COUNT, SHAPE),
    ADDED(qk_head_dim, "--qk-head-dim", COUNT, SHAPE),
    ADDED(qk_pos_emb_head_dim, "--qk-pos-emb-head-dim", COUNT, SHAPE),
    ADDED(v_head_dim, "--v-head-dim", COUNT, SHAPE),
    ADDED(mscale, "--mscale", REAL, MEANING),
    ADDED(mscale_all_dim, "--mscale-all-dim", REAL, MEANING),
    ADDED(num_experts, "--num-experts", COUNT, SHAPE),
    ADDED(moe_dense_layers, "--moe-layer-freq", COUNT, SHAPE),
    ADDED(moe_ffn_hidden_size, "--moe-ffn-hidden-size", COUNT, SHAPE),
    ADDED(moe_shared_ffn_size, "--moe-shared-expert-intermediate-size", COUNT, SHAPE),
    ADDED(moe_shared_gate, "--moe-shared-expert-gate", BOOLEAN, SHAPE),
    ADDED(moe_expert_bias, "--moe-router-enable-expert-bias", BOOLEAN, SHAPE),
    ADDED(mtp_layers, "--mtp-num-layers", COUNT, SHAPE),
    ADDED(moe_topk, "--moe-router-topk", COUNT, MEANING),
    ADDED(moe_num_groups, "--moe-router-num-groups", COUNT, MEANING),
    ADDED(moe_group_topk, "--moe-router-group-topk", COUNT, MEANING),
    ADDED(moe_scaling, "--moe-router-topk-scaling-factor", REAL, MEANING),
    ADDED(moe_score, "--moe-router-score-function", SCORE, MEANING),
    ADDED(moe_pre_softmax, "--moe-router-pre-softmax", BOOLEAN, MEANING),
};

#define STATE(name, kind)                                                                                    \
    { #name, "", kind, FREE, offsetof(struct checkpoint_state, name), false }
static const struct field state_fields[] = {
    STATE(iteration, INTEGER),
    STATE(consumed_train_samples, INTEGER),
    STATE(consumed_valid_samples, INTEGER),
    STATE(skipped_iterations, INTEGER),
    STATE(optimizer_steps, INTEGER),
    STATE(seed, UNSIGNED),
    STATE(loss_scale, REAL),
    STATE(loss_scale_growth, INTEGER),
    STATE(loss_scale_hysteresis, INTEGER),
};

static const char *const positions[] = {"learned_absolute", "rope", "none"};
static const char *const activations[] = {"gelu", "gelu_tanh", "silu", "relu", "squared_relu", "quick_gelu"};
static const char *const scores[] = {"softmax", "sigmoid", "sqrtsoftplus"};

const char *checkpoint_activation_name(enum checkpoint_activation activation) {
    return activations[activation];
}

/* ---- one field ---- */

static void write_field(struct str *out, const struct field *f, const void *record) {
    const char *at = (const char *)record + f->offset;
    switch (f->kind) {
    case INTEGER:
    case COUNT:
        json_integer(out, *(const int64_t *)(const void *)at);
        break;
    case UNSIGNED:
        json_integer(out, (int64_t) * (const uint64_t *)(const void *)at); /* the same 64 bits */
        break;
    case BOOLEAN:
        json_bool(out, *(const bool *)(const void *)at);
        break;
    case REAL:
        json_double(out, *(const double *)(const void *)at);
        break;
    case POSITION:
        json_string(out, positions[*(const enum checkpoint_position *)(const void *)at]);
        break;
    case ACTIVATION:
        json_string(out, activations[*(const enum checkpoint_activation *)(const void *)at]);
        break;
    case SCORE:
        json_string(out, scores[*(const enum checkpoint_score *)(const void *)at]);
        break;
    }
}

static int find_word(const struct json_node *node, const char *const *words, size_t count) {
    for (size_t i = 0; node->kind == JSON_STRING && i < count; i++)
        if (!strcmp(node->string, words[i])) return (int)i;
    return -1;
}

static int read_field(const struct json_node *node, const struct field *f, void *record) {
    void *at = (char *)record + f->offset;
    int word;
    if (!node) return f->added ? 0 : -1;
    switch (f->kind) {
    case INTEGER:
    case COUNT:
        if (node->kind != JSON_NUMBER || !node->is_integer) return -1;
        *(int64_t *)at = node->integer;
        return 0;
    case UNSIGNED:
        if (node->kind != JSON_NUMBER || !node->is_integer) return -1;
        *(uint64_t *)at = (uint64_t)node->integer;
        return 0;
    case BOOLEAN:
        if (node->kind != JSON_BOOL) return -1;
        *(bool *)at = node->boolean;
        return 0;
    case REAL:
        if (node->kind != JSON_NUMBER && node->kind != JSON_NULL) return -1;
        *(double *)at = node->kind == JSON_NULL ? (double)NAN : node->number;
        return 0;
    case POSITION:
        if ((word = find_word(node, positions, ARRAY_COUNT(positions))) < 0) return -1;
        *(enum checkpoint_position *)at = (enum checkpoint_position)word;
        return 0;
    case ACTIVATION:
        if ((word = find_word(node, activations, ARRAY_COUNT(activations))) < 0) return -1;
        *(enum checkpoint_activation *)at = (enum checkpoint_activation)word;
        return 0;
    case SCORE:
        if ((word = find_word(node, scores, ARRAY_COUNT(scores))) < 0) return -1;
        *(enum checkpoint_score *)at = (enum checkpoint_score)word;
        return 0;
    }
    return -1;
}

static void write_fields(struct str *out, const struct field *fields, size_t count, const void *record) {
    for (size_t i = 0; i < count; i++) {
        json_key(out, fields[i].name);
        write_field(out, &fields[i], record);
    }
}

static int read_fields(const struct json_node *node, const char *where, const char *member,
                       const struct field *fields, size_t count, void *record, struct err *err) {
    if (!node || node->kind != JSON_OBJECT) return err_set(err, "%s: no object '%s'", where, member);
    for (size_t i = 0; i < count; i++)
        if (read_field(json_get(node, fields[i].name), &fields[i], record))
            return err_set(err, "%s: '%s.%s' is missing or of the wrong kind", where, member, fields[i].name);
    return 0;
}

static void describe_fields(struct str *out, const struct field *fields, size_t count, const void *record) {
    for (size_t i = 0; i < count; i++) {
        struct str value = {0};
        write_field(&value, &fields[i], record);
        str_printf(out, "  %-24s %s\n", fields[i].name, value.data);
        str_free(&value);
    }
}

/* ---- model ---- */

void checkpoint_write_model(struct str *out, const struct checkpoint_model *model) {
    json_begin_object(out);
    write_fields(out, model_fields, ARRAY_COUNT(model_fields), model);
    json_key(out, "unlike_hf");
    json_string(out, model->unlike_hf);
    json_end_object(out);
}

int checkpoint_read_model(const struct json_node *node, const char *where, struct checkpoint_model *model_p,
                          struct err *err) {
    struct checkpoint_model m = {0};
    if (read_fields(node, where, "model", model_fields, ARRAY_COUNT(model_fields), &m, err)) return -1;
    const struct json_node *unlike = json_get(node, "unlike_hf");
    if (unlike && unlike->kind == JSON_STRING)
        snprintf(m.unlike_hf, sizeof(m.unlike_hf), "%s", unlike->string);
    if (checkpoint_check_model(&m, where, err)) return -1;
    *model_p = m;
    return 0;
}

/* Sizes that others are multiplied with or divided by. */
static int check_latents_and_experts(const struct checkpoint_model *m, const char *where, struct err *err) {
    int64_t most = 1 << 20;
    if (m->kv_lora_rank && (m->qk_head_dim < 1 || m->qk_pos_emb_head_dim < 1 || m->v_head_dim < 1 ||
                            m->qk_head_dim > most || m->qk_pos_emb_head_dim > most || m->v_head_dim > most))
        return err_set(
            err, "%s: heads of %lld plain, %lld rotated and %lld value columns, which no model has", where,
            (long long)m->qk_head_dim, (long long)m->qk_pos_emb_head_dim, (long long)m->v_head_dim);
    if (m->num_experts && (m->num_experts > most || m->moe_ffn_hidden_size < 1 || m->moe_topk < 1))
        return err_set(err, "%s: %lld experts of width %lld, %lld for each token, which no model has", where,
                       (long long)m->num_experts, (long long)m->moe_ffn_hidden_size, (long long)m->moe_topk);
    return 0;
}

int checkpoint_check_model(const struct checkpoint_model *model, const char *where, struct err *err) {
    for (size_t i = 0; i < ARRAY_COUNT(model_fields); i++) {
        const struct field *f = &model_fields[i];
        if (f->kind != INTEGER && f->kind != COUNT) continue;
        int64_t value = *(const int64_t *)(const void *)((const char *)model + f->offset);
        if (value < (f->kind == INTEGER) || value > (int64_t)1 << 30)
            return err_set(err, "%s: %s is %lld, which no model has", where, f->name, (long long)value);
    }
    if (model->num_attention_heads % model->num_query_groups)
        return err_set(err, "%s: %lld attention heads do not divide into %lld query groups", where,
                       (long long)model->num_attention_heads, (long long)model->num_query_groups);
    if (model->kv_channels > 1 << 20 || model->num_attention_heads > 1 << 20)
        return err_set(err, "%s: %lld heads of %lld channels, which no model has", where,
                       (long long)model->num_attention_heads, (long long)model->kv_channels);
    if (check_latents_and_experts(model, where, err)) return -1;
    if (model->padded_vocab_size < model->vocab_size)
        return err_set(err, "%s: padded_vocab_size %lld is less than vocab_size %lld", where,
                       (long long)model->padded_vocab_size, (long long)model->vocab_size);
    return 0;
}

static int compare_vocabulary(const struct checkpoint_model *saved, const struct checkpoint_model *wanted,
                              const char *where, struct err *err) {
    if (saved->padded_vocab_size >= wanted->vocab_size && wanted->padded_vocab_size >= saved->vocab_size)
        return 0;
    return err_set(
        err,
        "%s: the checkpoint has %lld tokens (%lld rows), this run %lld (%lld rows): load it with its "
        "own tokenizer or --vocab-size %lld",
        where, (long long)saved->vocab_size, (long long)saved->padded_vocab_size,
        (long long)wanted->vocab_size, (long long)wanted->padded_vocab_size, (long long)saved->vocab_size);
}

int checkpoint_compare_models(const struct checkpoint_model *saved, const struct checkpoint_model *wanted,
                              const char *where, struct err *err) {
    int status = 0;
    for (size_t i = 0; i < ARRAY_COUNT(model_fields) && !status; i++) {
        const struct field *f = &model_fields[i];
        bool positions_count = saved->position == CHECKPOINT_POSITION_LEARNED &&
                               f->offset == offsetof(struct checkpoint_model, max_position_embeddings);
        enum match match = positions_count ? SHAPE : f->match;
        struct str a = {0}, b = {0};
        if (match == FREE) continue;
        write_field(&a, f, saved);
        write_field(&b, f, wanted);
        if (strcmp(a.data, b.data)) {
            if (match == SHAPE)
                status = err_set(err,
                                 "%s: the checkpoint has %s %s, this run has %s (%s): give the checkpoint's "
                                 "value, or take its settings with --use-checkpoint-args",
                                 where, f->name, a.data, b.data, f->flag);
            else
                log_warn("%s: the checkpoint was trained with %s %s, this run goes on with %s (%s)", where,
                         f->name, a.data, b.data, f->flag);
        }
        str_free(&a);
        str_free(&b);
    }
    return status ? status : compare_vocabulary(saved, wanted, where, err);
}

void checkpoint_describe_model(struct str *out, const struct checkpoint_model *model) {
    describe_fields(out, model_fields, ARRAY_COUNT(model_fields), model);
    if (model->unlike_hf[0]) str_printf(out, "  %-24s %s\n", "unlike_hf", model->unlike_hf);
}

/* ---- state ---- */

void checkpoint_set_extra(struct checkpoint_state *state, const char *key, double value) {
    int i = 0;
    while (i < state->num_extras && strcmp(state->extras[i].key, key)) i++;
    CHECK(i < CHECKPOINT_MAX_EXTRAS && strlen(key) < sizeof(state->extras[i].key), "extra '%s'", key);
    snprintf(state->extras[i].key, sizeof(state->extras[i].key), "%s", key);
    state->extras[i].value = value;
    if (i == state->num_extras) state->num_extras++;
}

double checkpoint_get_extra(const struct checkpoint_state *state, const char *key, double if_missing) {
    for (int i = 0; i < state->num_extras; i++)
        if (!strcmp(state->extras[i].key, key)) return state->extras[i].value;
    return if_missing;
}

void checkpoint_write_state(struct str *out, const struct checkpoint_state *state) {
    json_begin_object(out);
    write_fields(out, state_fields, ARRAY_COUNT(state_fields), state);
    json_key(out, "extras");
    json_begin_object(out);
    for (int i = 0; i < state->num_extras; i++) {
        json_key(out, state->extras[i].key);
        json_double(out, state->extras[i].value);
    }
    json_end_object(out);
    json_end_object(out);
}

int checkpoint_read_state(const struct json_node *node, const char *where, struct checkpoint_state *state_p,
                          struct err *err) {
    struct checkpoint_state s = {0};
    if (read_fields(node, where, "state", state_fields, ARRAY_COUNT(state_fields), &s, err)) return -1;
    const struct json_node *extras = json_get(node, "extras");
    for (size_t i = 0; extras && extras->kind == JSON_OBJECT && i < extras->count; i++) {
        const struct json_node *v = &extras->items[i];
        if (v->kind != JSON_NUMBER && v->kind != JSON_NULL)
            return err_set(err, "%s: 'state.extras.%.64s' is no number", where, extras->keys[i]);
        if (s.num_extras == CHECKPOINT_MAX_EXTRAS || strlen(extras->keys[i]) >= sizeof(s.extras[0].key))
            return err_set(err, "%s: more than %d 'state.extras', or too long a name", where,
                           CHECKPOINT_MAX_EXTRAS);
        checkpoint_set_extra(&s, extras->keys[i], v->kind == JSON_NULL ? (double)NAN : v->number);
    }
    *state_p = s;
    return 0;
}

void checkpoint_describe_state(struct str *out, const struct checkpoint_state *state) {
    describe_fields(out, state_fields, ARRAY_COUNT(state_fields), state);
    for (int i = 0; i < state->num_extras; i++)
        str_printf(out, "  %-24s %.17g\n", state->extras[i].key, state->extras[i].value);
}
