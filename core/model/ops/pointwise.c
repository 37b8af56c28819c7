/* Activation, dropout and the residual addition. */
#include "core/model/ops/internal.h"
#include "core/model/ops.h"
#include "core/model/run.h"

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

int op_add_activation(struct program *p, const struct model *m, int x, int64_t width) {
    int op = program_op(p, &op_activation, "activation", &x, 1, &m->activation, sizeof(m->activation));
    return program_output(p, op, "activation", m->dtype, 3, (int64_t[]){model_seq(m), m->micro_batch, width},
                          true);
}

/* ---- dropout: the mask is a function of the element's place in the whole tensor, so backward reads nothing
 * and no layout changes it. A rank's elements are a few stretches of the whole ---- */

enum { DROPOUT_MAX_PIECES = 8 };

struct dropout_attributes {
    float p;
    int num_pieces;
    struct {
        int64_t first, global_first, count; /* elements */
    } pieces[DROPOUT_MAX_PIECES];
};

/* Hidden states: rows of the sequence. */
static struct dropout_attributes hidden_dropout(const struct model *m) {
    struct dropout_attributes d = {.p = m->hidden_dropout};
    struct model_piece pieces[MODEL_MAX_PIECES];
    int64_t row = m->micro_batch * m->hidden;
    d.num_pieces = model_pieces(m, false, pieces);
    for (int i = 0; i < d.num_pieces; i++) {
        d.pieces[i].first = pieces[i].first * row;
        d.pieces[i].global_first = pieces[i].global_first * row;
        d.pieces[i].count = pieces[i].count * row;
    }
    return d;
}

static void dropout_apply(struct run *r, const struct op *o, void *y, const void *x) {
    const struct dropout_attributes *d = o->attributes;
    enum dtype dtype = run_info(r, o->out[0])->dtype;
    for (int i = 0; i < d->num_pieces; i++)
        KERNEL_CALL(dropout, r->stream, .y = dtype_at(y, dtype, d->pieces[i].first),
                    .x = dtype_at((void *)(uintptr_t)x, dtype, d->pieces[i].first), .n = d->pieces[i].count,
                    .first_element = (uint64_t)d->pieces[i].global_first, .p = r->training ? d->p : 0,
                    .key = run_rng(r, o), .dtype = dtype);
}

static void dropout_forward(struct run *r, const struct op *o) {
    dropout_apply(r, o, run_tensor(r, o->out[0]), run_tensor(r, o->in[0]));
}

static void dropout_backward(struct run *r, const struct op *o) {
    dropout_apply(r, o, run_grad(r, o->in[0]), run_grad(r, o->out[0]));
}

static const struct op_def op_dropout = {"dropout", dropout_forward, dropout_backward, .grad_in = 1};

int op_add_dropout(struct program *p, const struct model *m, int x, const char *name) {
    struct dropout_attributes d = hidden_dropout(m);
    int op = program_op(p, &op_dropout, name, &x, 1, &d, sizeof(d));
    program_draws_random(p, op);
    struct tensor_info t = p->tensors[x];
    return program_output(p, op, name, t.dtype, t.num_dims, t.dims, true);
}

/* Probabilities [b, a, s, s] of this rank's heads: one call per sequence, with the place among all heads. */

struct probs_attributes {
    float p;
    int64_t sequences, count, first,
        stride; /* elements of one sequence; where the first and the next one lie */
};

static void probs_apply(struct run *r, const struct op *o, void *y, const void *x) {
    const struct probs_attributes *d = o->attributes;
    enum dtype dtype = run_info(r, o->out[0])->dtype;
    bool is_whole = d->count == d->stride;
    for (int64_t i = 0; i < (is_whole ? 1 : d->sequences); i++)
        KERNEL_CALL(dropout, r->stream, .y = dtype_at(y, dtype, i * d->count),
                    .x = dtype_at((void *)(uintptr_t)x, dtype, i * d->count),
                    .n = is_whole ? d->count * d->sequences : d->count,
                    .first_element = (uint64_t)(d->first + i * d->stride), .p = r->training ? d->p : 0,
                    .key = run_rng(r, o), .dtype = dtype);
}

static void probs_forward(struct run *r, const struct op *o) {
    probs_apply(r, o, run_tensor(r, o->out[0]), run_tensor(r, o->in[0]));
}

static void probs_backward(struct run *r, const struct op *o) {
    probs_apply(r, o, run_grad(r, o->in[0]), run_grad(r, o->out[0]));
}

static const struct op_def op_attention_dropout = {"dropout", probs_forward, probs_backward, .grad_in = 1};

int op_add_attention_dropout(struct program *p, const struct model *m, int x) {
    struct tensor_info t = p->tensors[x];
    int64_t square = t.dims[2] * t.dims[3];
    struct probs_attributes d = {m->attention_dropout, t.dims[0], t.dims[1] * square,
                                 model_heads(m) * m->tp_rank * square, m->heads * square};
    int op = program_op(p, &op_attention_dropout, "attention_dropout", &x, 1, &d, sizeof(d));
    program_draws_random(p, op);
    return program_output(p, op, "attention_dropout", t.dtype, t.num_dims, t.dims, true);
}

/* ---- residual: y = residual + dropout(x); backward reads nothing, and passes its gradient on ---- */

static void *at_piece(void *x, enum dtype dtype, int64_t first) {
    return x ? dtype_at(x, dtype, first) : NULL;
}

static void residual_forward(struct run *r, const struct op *o) {
    const struct dropout_attributes *d = o->attributes;
    enum dtype dtype = run_info(r, o->out[0])->dtype;
    char *y = run_tensor(r, o->out[0]), *residual = run_tensor(r, o->in[0]), *x = run_tensor(r, o->in[1]);
    for (int i = 0; i < d->num_pieces; i++)
        KERNEL_CALL(residual_forward, r->stream, .y = at_piece(y, dtype, d->pieces[i].first),
                    .residual = at_piece(residual, dtype, d->pieces[i].first),
                    .x = at_piece(x, dtype, d->pieces[i].first), .n = d->pieces[i].count,
                    .first_element = (uint64_t)d->pieces[i].global_first, .p = r->training ? d->p : 0,
                    .key = run_rng(r, o), .dtype = dtype);
}

static void residual_backward(struct run *r, const struct op *o) {
    const struct dropout_attributes *d = o->attributes;
    enum dtype dtype = run_info(r, o->out[0])->dtype;
    void *dy = run_grad(r, o->out[0]), *dresidual = run_grad(r, o->in[0]), *dx = run_grad(r, o->in[1]);
    if (dresidual == dy && !run_accumulates(r, 0)) dresidual = NULL; /* already there */
    if (dx == dy) dx = NULL;
    if (!dx && !dresidual) return;
    for (int i = 0; i < d->num_pieces; i++)
        KERNEL_CALL(residual_backward, r->stream, .dx = at_piece(dx, dtype, d->pieces[i].first),
                    .dresidual = at_piece(dresidual, dtype, d->pieces[i].first),
                    .dy = at_piece(dy, dtype, d->pieces[i].first), .n = d->pieces[i].count,
                    .first_element = (uint64_t)d->pieces[i].global_first, .p = d->p, .key = run_rng(r, o),
                    .accumulate_dx = run_accumulates(r, 1), .accumulate_dresidual = run_accumulates(r, 0),
                    .dtype = dtype);
}

static const struct op_def op_residual = {"residual", residual_forward, residual_backward, .grad_in = 3,
                                          .passes_grad = 1};

int op_add_residual(struct program *p, const struct model *m, int residual, int x, const char *name) {
    struct dropout_attributes d = hidden_dropout(m);
    int op = program_op(p, &op_residual, name, (int[]){residual, x}, 2, &d, sizeof(d));
    program_draws_random(p, op);
    if (m->hidden_dropout == 0) p->ops[op].passes_grad = 3;
    struct tensor_info t = p->tensors[x];
    return program_output(p, op, name, t.dtype, t.num_dims, t.dims, true);
}
