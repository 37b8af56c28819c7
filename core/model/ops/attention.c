/* Splitting the fused projection, fused attention, and the unfused chain that keeps the scores. */
#include "core/model/ops.h"
#include "core/model/run.h"
#include "core/model/ops/internal.h"
#include <math.h>
#include <stdio.h>

struct attention_attributes {
    struct attention_shape shape;
    struct attention_window window;
    float scale, dropout;
};

static struct attention_attributes attributes_of(const struct model *m) {
    return (struct attention_attributes){
        model_attention_shape(m),
        {.first_head = model_heads(m) * m->tp_rank, .heads = m->heads, .seq = m->seq},
        (float)model_softmax_scale(m),
        m->attention_dropout};
}

/* ---- qkv_split: backward reads qkv only for QK norm ---- */

struct split_attributes {
    struct attention_shape shape;
    struct qkv_split_norm norm; /* pointers stay null here */
    int64_t rotary_dim;
    bool rotary_interleaved, qk_norm;
};

enum { SPLIT_Q_WEIGHT, SPLIT_K_WEIGHT, SPLIT_Q_BIAS, SPLIT_K_BIAS };

static struct qkv_split_norm split_norm(const struct run *r, const struct op *o) {
    const struct split_attributes *s = o->attributes;
    struct qkv_split_norm norm = s->norm;
    if (!s->qk_norm) return norm;
    norm.q_weight = run_param(r, o, SPLIT_Q_WEIGHT)->plain;
    norm.k_weight = run_param(r, o, SPLIT_K_WEIGHT)->plain;
    if (!norm.rms) {
        norm.q_bias = run_param(r, o, SPLIT_Q_BIAS)->plain;
        norm.k_bias = run_param(r, o, SPLIT_K_BIAS)->plain;
    }
    return norm;
}

static void split_forward(struct run *r, const struct op *o) {
    const struct split_attributes *s = o->attributes;
    KERNEL_CALL(qkv_split_forward, r->stream, .q = run_tensor(r, o->out[0]), .k = run_tensor(r, o->out[1]),
                .v = run_tensor(r, o->out[2]), .qkv = run_tensor(r, o->in[0]), .shape = s->shape,
                .norm = split_norm(r, o), .cos = s->rotary_dim ? r->rotary_cos : NULL,
                .sin = s->rotary_dim ? r->rotary_sin : NULL, .rotary_dim = s->rotary_dim,
                .rotary_interleaved = s->rotary_interleaved, .dtype = run_info(r, o->in[0])->dtype);
}

static void split_backward(struct run *r, const struct op *o) {
    const struct split_attributes *s = o->attributes;
    float *grads[4] = {NULL, NULL, NULL, NULL};
    bool accumulate = false;
    for (int i = 0; i < o->num_params; i++) {
        accumulate = run_param_accumulates(run_param(r, o, i));
        grads[i] = run_param(r, o, i)->grad;
    }
    KERNEL_CALL(
        qkv_split_backward, r->stream, .dqkv = run_grad(r, o->in[0]), .dq_weight = grads[SPLIT_Q_WEIGHT],
        .dk_weight = grads[SPLIT_K_WEIGHT], .dq_bias = grads[SPLIT_Q_BIAS], .dk_bias = grads[SPLIT_K_BIAS],
        .dq = run_grad(r, o->out[0]), .dk = run_grad(r, o->out[1]), .dv = run_grad(r, o->out[2]),
        .qkv = s->qk_norm ? run_tensor(r, o->in[0]) : NULL, .shape = s->shape, .norm = split_norm(r, o),
        .cos = s->rotary_dim ? r->rotary_cos : NULL, .sin = s->rotary_dim ? r->rotary_sin : NULL,
        .rotary_dim = s->rotary_dim, .rotary_interleaved = s->rotary_interleaved,
        .accumulate_params = accumulate, .dtype = run_info(r, o->in[0])->dtype);
}

static const struct op_def op_qkv_split = {"qkv_split", split_forward, split_backward, .grad_in = 1};

void op_add_qkv_split(struct program *p, const struct model *m, int qkv, int qkv_out[3]) {
    static const char *const params[4] = {"q_layernorm.weight", "k_layernorm.weight", "q_layernorm.bias",
                                          "k_layernorm.bias"};
    static const char *const names[3] = {"query", "key", "value"};
    struct split_attributes s = {
        .shape = attributes_of(m).shape,
        .norm = {.epsilon = m->norm_epsilon, .rms = m->rms, .zero_centered = m->zero_centered},
        .rotary_dim = m->rotary_dim,
        .rotary_interleaved = m->rotary_interleaved,
        .qk_norm = m->qk_norm};
    int op = program_op(p, &op_qkv_split, "qkv_split", &qkv, 1, &s, sizeof(s));
    if (m->qk_norm) p->ops[op].backward_reads_in = 1;
    for (int i = 0; m->qk_norm && i < (m->rms ? 2 : 4); i++) {
        char full[160];
        snprintf(full, sizeof(full), "decoder.layers.%%d.self_attention.%s", params[i]);
        bool zero = i >= SPLIT_Q_BIAS || m->zero_centered;
        program_param(p, op,
                      (struct param_info){.name = full,
                                          .per_layer = true,
                                          .num_dims = 1,
                                          .dims = {m->head_dim},
                                          .shard.full = {m->head_dim, 1},
                                          .sum_over_tensor = m->tp > 1,
                                          .init = zero ? PARAM_INIT_ZERO : PARAM_INIT_ONE,
                                          .forms = PARAM_FORM_PLAIN});
    }
    for (int i = 0; i < 3; i++)
        qkv_out[i] = program_output(
            p, op, names[i], m->dtype, 4,
            (int64_t[]){m->micro_batch, i ? s.shape.g : s.shape.a, s.shape.s, m->head_dim}, true);
}

/* ---- fused attention: backward reads q, k, v, the output and the log-sum-exp ---- */

static void flash_forward(struct run *r, const struct op *o) {
    const struct attention_attributes *a = o->attributes;
    KERNEL_CALL(attention_forward, r->stream, .o = run_tensor(r, o->out[0]), .lse = run_tensor(r, o->out[1]),
                .q = run_tensor(r, o->in[0]), .k = run_tensor(r, o->in[1]), .v = run_tensor(r, o->in[2]),
                .shape = a->shape, .window = a->window, .scale = a->scale,
                .dropout = r->training ? a->dropout : 0, .key = run_rng(r, o), .causal = true,
                .dtype = run_info(r, o->in[0])->dtype);
}

static void flash_backward(struct run *r, const struct op *o) {
    const struct attention_attributes *a = o->attributes;
    KERNEL_CALL(attention_backward, r->stream, .dq = run_grad(r, o->in[0]), .dk = run_grad(r, o->in[1]),
                .dv = run_grad(r, o->in[2]), .d_o = run_grad(r, o->out[0]), .o = run_tensor(r, o->out[0]),
                .lse = run_tensor(r, o->out[1]), .q = run_tensor(r, o->in[0]), .k = run_tensor(r, o->in[1]),
                .v = run_tensor(r, o->in[2]), .shape = a->shape, .window = a->window, .scale = a->scale,
                .dropout = a->dropout, .key = run_rng(r, o), .causal = true,
                .dtype = run_info(r, o->in[0])->dtype);
}

static const struct op_def op_attention = {
    "attention",  flash_forward,          flash_backward, .backward_reads_in = 7, .backward_reads_out = 3,
    .grad_in = 7, .classes = OP_ATTENTION};

static int add_context_output(struct program *p, const struct model *m, int op) {
    return program_output(p, op, "core_attention", m->dtype, 3,
                          (int64_t[]){model_seq(m), m->micro_batch, model_heads(m) * model_value_dim(m)},
                          true);
}

int op_add_attention(struct program *p, const struct model *m, const int qkv[3]) {
    struct attention_attributes a = attributes_of(m);
    int op = program_op(p, &op_attention, "attention", qkv, 3, &a, sizeof(a));
    program_draws_random(p, op);
    int o = add_context_output(p, m, op);
    program_output(p, op, "log_sum_exp", DTYPE_F32, 3, (int64_t[]){m->micro_batch, a.shape.a, a.shape.s},
                   false);
    return o;
}

/* ---- the unfused chain ---- */

static void scores_forward(struct run *r, const struct op *o) {
    const struct attention_attributes *a = o->attributes;
    KERNEL_CALL(attention_scores_forward, r->stream, .scores = run_tensor(r, o->out[0]),
                .q = run_tensor(r, o->in[0]), .k = run_tensor(r, o->in[1]), .shape = a->shape,
                .scale = a->scale, .causal = true, .dtype = run_info(r, o->in[0])->dtype);
}

static void scores_backward(struct run *r, const struct op *o) {
    const struct attention_attributes *a = o->attributes;
    KERNEL_CALL(attention_scores_backward, r->stream, .dq = run_grad(r, o->in[0]),
                .dk = run_grad(r, o->in[1]), .dscores = run_grad(r, o->out[0]), .q = run_tensor(r, o->in[0]),
                .k = run_tensor(r, o->in[1]), .shape = a->shape, .scale = a->scale, .causal = true,
                .dtype = run_info(r, o->in[0])->dtype);
}

static void softmax_forward(struct run *r, const struct op *o) {
    const struct tensor_info *y = run_info(r, o->out[0]);
    KERNEL_CALL(softmax_forward, r->stream, .y = run_tensor(r, o->out[0]), .x = run_tensor(r, o->in[0]),
                .rows = y->dims[0] * y->dims[1] * y->dims[2], .cols = y->dims[3], .causal = true,
                .dtype = y->dtype);
}

static void softmax_backward(struct run *r, const struct op *o) {
    const struct tensor_info *y = run_info(r, o->out[0]);
    KERNEL_CALL(softmax_backward, r->stream, .dx = run_grad(r, o->in[0]), .dy = run_grad(r, o->out[0]),
                .y = run_tensor(r, o->out[0]), .rows = y->dims[0] * y->dims[1] * y->dims[2],
                .cols = y->dims[3], .causal = true, .dtype = y->dtype);
}

static void context_forward(struct run *r, const struct op *o) {
    const struct attention_attributes *a = o->attributes;
    KERNEL_CALL(attention_context_forward, r->stream, .o = run_tensor(r, o->out[0]),
                .probs = run_tensor(r, o->in[0]), .v = run_tensor(r, o->in[1]), .shape = a->shape,
                .causal = true, .dtype = run_info(r, o->in[0])->dtype);
}

static void context_backward(struct run *r, const struct op *o) {
    const struct attention_attributes *a = o->attributes;
    KERNEL_CALL(attention_context_backward, r->stream, .dprobs = run_grad(r, o->in[0]),
                .dv = run_grad(r, o->in[1]), .d_o = run_grad(r, o->out[0]), .probs = run_tensor(r, o->in[0]),
                .v = run_tensor(r, o->in[1]), .shape = a->shape, .causal = true,
                .dtype = run_info(r, o->in[0])->dtype);
}

static const struct op_def op_scores = {"attention_scores",     scores_forward, scores_backward,
                                        .backward_reads_in = 3, .grad_in = 3,   .classes = OP_ATTENTION};
static const struct op_def op_softmax = {"softmax",        softmax_forward,
                                         softmax_backward, .backward_reads_out = 1,
                                         .grad_in = 1,     .classes = OP_ATTENTION};
static const struct op_def op_context = {"attention_context",    context_forward, context_backward,
                                         .backward_reads_in = 3, .grad_in = 3,    .classes = OP_ATTENTION};

int op_add_attention_unfused(struct program *p, const struct model *m, const int qkv[3]) {
    struct attention_attributes a = attributes_of(m);
    int64_t square[] = {m->micro_batch, a.shape.a, a.shape.s, a.shape.s};
    int op = program_op(p, &op_scores, "attention_scores", qkv, 2, &a, sizeof(a));
    int scores = program_output(p, op, "attention_scores", m->dtype, 4, square, true);
    op = program_op(p, &op_softmax, "softmax", &scores, 1, NULL, 0);
    int probs = program_output(p, op, "attention_probs", m->dtype, 4, square, true);
    if (m->attention_dropout > 0) probs = op_add_attention_dropout(p, m, probs);
    a.shape.d = model_value_dim(m); /* the one head size that this kernel knows */
    op = program_op(p, &op_context, "attention_context", (int[]){probs, qkv[2]}, 2, &a, sizeof(a));
    return add_context_output(p, m, op);
}
