/* Activation, dropout and the residual addition. */
#include "core/model/ops/internal.h"
#include "core/model/ops.h"
#include "core/model/run.h"

static int64_t count_of(const struct tensor_info *t) {
    return (int64_t)(t->bytes / dtype_bytes(t->dtype));
}

/* ---- activation: backward reads x ---- */

static void activation_forward(struct run *r, const struct op *o) {
    const struct tensor_info *y = run_info(r, o->out[0]);
    KERNEL_CALL(activation_forward, r->stream, .y = run_tensor(r, o->out[0]), .x = run_tensor(r, o->in[0]),
                .rows = y->dims[0] * y->dims[1], .cols = y->dims[2],
                .kind = *(const enum activation *)o->attributes, .dtype = y->dtype);
}

static void activation_backward(struct run *r, const struct op *o) {
    const struct tensor_info *y = run_info(r, o->out[0]);
    KERNEL_CALL(activation_backward, r->stream, .dx = run_grad(r, o->in[0]), .dy = run_grad(r, o->out[0]),
                .x = run_tensor(r, o->in[0]), .rows = y->dims[0] * y->dims[1], .cols = y->dims[2],
                .kind = *(const enum activation *)o->attributes, .dtype = y->dtype);
}

static const struct op_def op_activation = {"activation", activation_forward, activation_backward,
                                            .backward_reads_in = 1, .grad_in = 1};

int op_add_activation(struct program *p, const struct model *m, int x) {
    int op = program_op(p, &op_activation, "activation", &x, 1, &m->activation, sizeof(m->activation));
    return program_output(p, op, "activation", m->dtype, 3, (int64_t[]){m->seq, m->micro_batch, m->ffn},
                          true);
}

/* ---- dropout: the mask is a function, so backward reads nothing ---- */

static void dropout_apply(struct run *r, const struct op *o, void *y, const void *x) {
    const struct tensor_info *t = run_info(r, o->out[0]);
    KERNEL_CALL(dropout, r->stream, .y = y, .x = x, .n = count_of(t),
                .p = r->training ? *(const float *)o->attributes : 0, .key = run_rng(r, o),
                .dtype = t->dtype);
}

static void dropout_forward(struct run *r, const struct op *o) {
    dropout_apply(r, o, run_tensor(r, o->out[0]), run_tensor(r, o->in[0]));
}

static void dropout_backward(struct run *r, const struct op *o) {
    dropout_apply(r, o, run_grad(r, o->in[0]), run_grad(r, o->out[0]));
}

static const struct op_def op_dropout = {"dropout", dropout_forward, dropout_backward, .grad_in = 1};

static int add_dropout(struct program *p, float probability, int x, const char *name) {
    int op = program_op(p, &op_dropout, name, &x, 1, &probability, sizeof(probability));
    struct tensor_info t = p->tensors[x];
    return program_output(p, op, name, t.dtype, t.num_dims, t.dims, true);
}

int op_add_dropout(struct program *p, const struct model *m, int x, const char *name) {
    return add_dropout(p, m->hidden_dropout, x, name);
}

int op_add_attention_dropout(struct program *p, const struct model *m, int x) {
    return add_dropout(p, m->attention_dropout, x, "attention_dropout");
}

/* ---- residual: y = residual + dropout(x); backward reads nothing, and passes its gradient on ---- */

static void residual_forward(struct run *r, const struct op *o) {
    const struct tensor_info *t = run_info(r, o->out[0]);
    KERNEL_CALL(residual_forward, r->stream, .y = run_tensor(r, o->out[0]),
                .residual = run_tensor(r, o->in[0]), .x = run_tensor(r, o->in[1]), .n = count_of(t),
                .p = r->training ? *(const float *)o->attributes : 0, .key = run_rng(r, o),
                .dtype = t->dtype);
}

static void residual_backward(struct run *r, const struct op *o) {
    const struct tensor_info *t = run_info(r, o->out[0]);
    void *dy = run_grad(r, o->out[0]), *dresidual = run_grad(r, o->in[0]), *dx = run_grad(r, o->in[1]);
    if (dresidual == dy && !run_accumulates(r, 0)) dresidual = NULL; /* already there */
    if (dx == dy) dx = NULL;
    if (!dx && !dresidual) return;
    KERNEL_CALL(residual_backward, r->stream, .dx = dx, .dresidual = dresidual, .dy = dy, .n = count_of(t),
                .p = *(const float *)o->attributes, .key = run_rng(r, o),
                .accumulate_dx = run_accumulates(r, 1), .accumulate_dresidual = run_accumulates(r, 0),
                .dtype = t->dtype);
}

static const struct op_def op_residual = {"residual", residual_forward, residual_backward, .grad_in = 3,
                                          .passes_grad = 1};

int op_add_residual(struct program *p, const struct model *m, int residual, int x, const char *name) {
    int op = program_op(p, &op_residual, name, (int[]){residual, x}, 2, &m->hidden_dropout,
                        sizeof(m->hidden_dropout));
    if (m->hidden_dropout == 0) p->ops[op].passes_grad = 3;
    struct tensor_info t = p->tensors[x];
    return program_output(p, op, name, t.dtype, t.num_dims, t.dims, true);
}
