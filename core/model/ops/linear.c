/* y[t, out] = x[t, in] W^T + b. The gradient of the weight reads x; that of the input reads nothing. Over
 * tensor-parallel ranks a column-split layer reduces the gradient of its input while it makes the weight
 * gradient, a row-split one reduces its result. */
#include "core/base/str.h"
#include "core/model/ops.h"
#include "core/model/run.h"
#include <stdio.h>

static int64_t last_dim(const struct tensor_info *t) {
    return t->dims[t->num_dims - 1];
}
static int64_t rows_of(const struct tensor_info *t) {
    int64_t rows = 1;
    for (int i = 0; i + 1 < t->num_dims; i++) rows *= t->dims[i];
    return rows;
}

struct linear_attributes {
    bool adds_bias; /* in forward */
};

static void forward(struct run *r, const struct op *o) {
    const struct linear_attributes *l = o->attributes;
    const struct tensor_info *x = run_info(r, o->in[0]), *y = run_info(r, o->out[0]);
    const struct param_view *w = run_param(r, o, 0);
    KERNEL_CALL(gemm, r->stream, .c = run_tensor(r, o->out[0]), .a = run_tensor(r, o->in[0]),
                .b = w->packed_forward ? w->packed_forward : w->plain, .b_packed = w->packed_forward != NULL,
                .trans_b = true, .bias = l->adds_bias ? run_param(r, o, 1)->plain : NULL, .m = rows_of(x),
                .n = last_dim(y), .k = last_dim(x), .dtype = x->dtype, .c_dtype = y->dtype);
}

static void backward(struct run *r, const struct op *o) {
    const struct tensor_info *x = run_info(r, o->in[0]), *y = run_info(r, o->out[0]);
    const struct param_view *w = run_param(r, o, 0);
    KERNEL_CALL(gemm, r->stream, .c = run_grad(r, o->in[0]), .a = run_grad(r, o->out[0]),
                .b = w->packed_backward ? w->packed_backward : w->plain,
                .b_packed = w->packed_backward != NULL, .m = rows_of(x), .n = last_dim(x), .k = last_dim(y),
                .dtype = x->dtype, .c_dtype = x->dtype, .accumulate = run_accumulates(r, 0));
}

static void backward_weight(struct run *r, const struct op *o) {
    const struct tensor_info *x = run_info(r, o->in[0]), *y = run_info(r, o->out[0]);
    const struct param_view *w = run_param(r, o, 0);
    const void *dy = run_grad(r, o->out[0]);
    KERNEL_CALL(gemm, r->stream, .c = w->grad, .a = dy, .trans_a = true, .b = run_tensor(r, o->in[0]),
                .m = last_dim(y), .n = last_dim(x), .k = rows_of(x), .dtype = x->dtype, .c_dtype = DTYPE_F32,
                .accumulate = run_param_accumulates(w));
    if (o->num_params < 2) return;
    const struct param_view *bias = run_param(r, o, 1);
    KERNEL_CALL(bias_backward, r->stream, .dbias = bias->grad, .dy = dy, .rows = rows_of(y),
                .cols = last_dim(y), .dtype = y->dtype, .accumulate = run_param_accumulates(bias));
}

static void reduce_start(struct run *r, void *data, const struct tensor_info *t) {
    *run_request(r) = comm_start_all_reduce(r->comms.tp, data, (int64_t)(t->bytes / dtype_bytes(t->dtype)),
                                            comm_dtype_of(t->dtype), COMM_SUM);
}

static void reduce_end(struct run *r, const struct op *o) {
    (void)o;
    comm_wait(*run_request(r));
}

static void forward_reduced(struct run *r, const struct op *o) {
    forward(r, o);
    reduce_start(r, run_tensor(r, o->out[0]), run_info(r, o->out[0]));
}

static void backward_reduced(struct run *r, const struct op *o) {
    CHECK(!run_accumulates(r, 0), "%s: a sum over ranks cannot be added to another gradient", o->name);
    backward(r, o);
    reduce_start(r, run_grad(r, o->in[0]), run_info(r, o->in[0]));
}

static const struct op_def op_linear = {
    "linear",     forward,           backward, backward_weight, .backward_reads_in = 1, .weight_reads_in = 1,
    .grad_in = 1, .classes = OP_GEMM};
static const struct op_def op_linear_column = {"linear",
                                               forward,
                                               backward_reduced,
                                               backward_weight,
                                               .backward_end = reduce_end,
                                               .backward_reads_in = 1,
                                               .weight_reads_in = 1,
                                               .grad_in = 1,
                                               .classes = OP_GEMM};
static const struct op_def op_linear_row = {"linear",
                                            forward_reduced,
                                            backward,
                                            backward_weight,
                                            .forward_end = reduce_end,
                                            .backward_reads_in = 1,
                                            .weight_reads_in = 1,
                                            .grad_in = 1,
                                            .classes = OP_GEMM | OP_COMMUNICATION};

static const struct op_def *def_of(const struct model *m, enum linear_split split) {
    if (m->tp <= 1 || model_splits_sequence(m) || split == LINEAR_WHOLE) return &op_linear;
    return split == LINEAR_COLUMN ? &op_linear_column : &op_linear_row;
}

/* The bias of a column-split layer is split with its rows; that of a row-split one is whole on every rank. */
static void add_bias(struct program *p, int op, const struct linear_spec *spec) {
    char full[160];
    snprintf(full, sizeof(full), "%s.bias", spec->prefix);
    struct param_info info = {.name = full,
                              .per_layer = spec->per_layer,
                              .num_dims = 1,
                              .dims = {spec->out_features},
                              .init = PARAM_INIT_ZERO,
                              .forms = PARAM_FORM_PLAIN};
    if (spec->split == LINEAR_COLUMN) info.shard = spec->shard;
    info.shard.full[0] = spec->split == LINEAR_COLUMN ? spec->shard.full[0] : spec->out_features;
    info.shard.full[1] = 1;
    program_param(p, op, info);
}

int op_add_linear(struct program *p, const struct model *m, int x, const struct linear_spec *spec) {
    char full[160];
    struct linear_attributes attributes = {spec->bias && (spec->split != LINEAR_ROW || m->tp_rank == 0)};
    int op = program_op(p, def_of(m, spec->split), spec->name, &x, 1, &attributes, sizeof(attributes));
    struct tensor_info in = p->tensors[x];
    int64_t dims[PROGRAM_MAX_DIMS];
    memcpy(dims, in.dims, sizeof(dims));
    dims[in.num_dims - 1] = spec->out_features;
    snprintf(full, sizeof(full), "%s.weight", spec->prefix);
    program_param(
        p, op,
        (struct param_info){.name = spec->weight ? spec->weight : full,
                            .per_layer = spec->per_layer,
                            .num_dims = 2,
                            .dims = {spec->out_features, last_dim(&in)},
                            .shard = spec->shard,
                            .sum_over_tensor = spec->split == LINEAR_WHOLE && model_splits_sequence(m),
                            .init = PARAM_INIT_NORMAL,
                            .init_std = spec->init_std,
                            .forms = PARAM_FORM_PACKED_FORWARD | PARAM_FORM_PACKED_BACKWARD});
    if (spec->bias) add_bias(p, op, spec);
    return program_output(p, op, spec->name, m->dtype, in.num_dims, dims, true);
}
