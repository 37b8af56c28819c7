/* The ops between router and residual: rows in the order of the experts, the products with their weights, and
 * back. */
#include "core/model/ops/moe.h"
#include "core/model/ops.h"
#include "core/model/run.h"
#include <stdio.h>

/* ---- rows in the order of experts, and back ---- */

static void gather(struct run *r, void *y, const void *x, const struct moe_attributes *a, int dispatch,
                   enum dtype dtype) {
    KERNEL_CALL(gather_rows, r->stream, .y = y, .x = x,
                .index = moe_slot_of_row(run_tensor(r, dispatch), &a->shape), .rows = moe_rows(&a->shape),
                .cols = a->hidden, .divisor = a->shape.topk, .dtype = dtype);
}

static void combine(struct run *r, void *y, const void *x, const struct moe_attributes *a, int dispatch,
                    enum dtype dtype, bool accumulate) {
    KERNEL_CALL(combine_rows, r->stream, .y = y, .x = x,
                .index = moe_row_of_slot(run_tensor(r, dispatch), &a->shape), .rows = a->shape.tokens,
                .cols = a->hidden, .fan = a->shape.topk, .accumulate = accumulate, .dtype = dtype);
}

static void permute_forward(struct run *r, const struct op *o) {
    gather(r, run_tensor(r, o->out[0]), run_tensor(r, o->in[0]), o->attributes, o->in[1],
           run_info(r, o->in[0])->dtype);
}

static void permute_backward(struct run *r, const struct op *o) {
    combine(r, run_grad(r, o->in[0]), run_grad(r, o->out[0]), o->attributes, o->in[1],
            run_info(r, o->in[0])->dtype, run_accumulates(r, 0));
}

static void unpermute_forward(struct run *r, const struct op *o) {
    combine(r, run_tensor(r, o->out[0]), run_tensor(r, o->in[0]), o->attributes, o->in[1],
            run_info(r, o->in[0])->dtype, false);
}

static void unpermute_backward(struct run *r, const struct op *o) {
    gather(r, run_grad(r, o->in[0]), run_grad(r, o->out[0]), o->attributes, o->in[1],
           run_info(r, o->in[0])->dtype);
}

static const struct op_def op_permute = {"permute", permute_forward, permute_backward, .backward_reads_in = 2,
                                         .grad_in = 1};
static const struct op_def op_unpermute = {"unpermute", unpermute_forward, unpermute_backward,
                                           .backward_reads_in = 2, .grad_in = 1};

int op_add_permute(struct program *p, const struct model *m, int x, struct routing r) {
    struct moe_attributes a = moe_attributes_of(m);
    int op = program_op(p, &op_permute, "permute", (int[]){x, r.dispatch}, 2, &a, sizeof(a));
    return program_output(p, op, "expert_rows", m->dtype, 2, (int64_t[]){moe_rows(&a.shape), m->hidden},
                          true);
}

int op_add_unpermute(struct program *p, const struct model *m, int y, struct routing r) {
    struct moe_attributes a = moe_attributes_of(m);
    int op = program_op(p, &op_unpermute, "unpermute", (int[]){y, r.dispatch}, 2, &a, sizeof(a));
    return program_output(p, op, "expert_sum", m->dtype, 3,
                          (int64_t[]){model_rows(m), m->micro_batch, m->hidden}, true);
}

/* ---- products with the experts' weights ---- */

static bool has_unused_rows(const struct routing *r) {
    return r->expected_rows > 0 || r->shape.capacity > 0;
}

struct grouped_attributes {
    int64_t groups, rows, in, out, expected;
};

static void grouped_forward(struct run *r, const struct op *o) {
    const struct grouped_attributes *g = o->attributes;
    const struct param_view *w = run_param(r, o, 0);
    enum dtype dtype = run_info(r, o->in[0])->dtype;
    KERNEL_CALL(grouped_gemm, r->stream, .c = run_tensor(r, o->out[0]), .a = run_tensor(r, o->in[0]),
                .b = w->packed_forward ? w->packed_forward : w->plain, .offsets = run_tensor(r, o->in[1]),
                .groups = g->groups, .rows = g->rows, .n = g->out, .k = g->in, .expected = g->expected,
                .trans_b = w->packed_forward == NULL, .b_packed = w->packed_forward != NULL, .dtype = dtype,
                .c_dtype = dtype);
}

static void grouped_backward(struct run *r, const struct op *o) {
    const struct grouped_attributes *g = o->attributes;
    const struct param_view *w = run_param(r, o, 0);
    enum dtype dtype = run_info(r, o->in[0])->dtype;
    KERNEL_CALL(grouped_gemm, r->stream, .c = run_grad(r, o->in[0]), .a = run_grad(r, o->out[0]),
                .b = w->packed_backward ? w->packed_backward : w->plain, .offsets = run_tensor(r, o->in[1]),
                .groups = g->groups, .rows = g->rows, .expected = g->expected, .n = g->in, .k = g->out,
                .b_packed = w->packed_backward != NULL, .dtype = dtype, .c_dtype = dtype,
                .accumulate = run_accumulates(r, 0));
}

static void grouped_backward_weight(struct run *r, const struct op *o) {
    const struct grouped_attributes *g = o->attributes;
    const struct param_view *w = run_param(r, o, 0);
    KERNEL_CALL(grouped_gemm, r->stream, .c = w->grad, .a = run_grad(r, o->out[0]),
                .b = run_tensor(r, o->in[0]), .offsets = run_tensor(r, o->in[1]), .groups = g->groups,
                .rows = g->rows, .expected = g->expected, .n = g->out, .k = g->in, .sums_rows = true,
                .accumulate = run_param_accumulates(w), .dtype = run_info(r, o->in[0])->dtype,
                .c_dtype = DTYPE_F32);
}

static const struct op_def op_grouped_linear = {
    "grouped_linear",       grouped_forward,      grouped_backward, grouped_backward_weight,
    .backward_reads_in = 3, .weight_reads_in = 1, .grad_in = 1,     .classes = OP_GEMM};

int op_add_grouped_linear(struct program *p, const struct model *m, int x, struct routing r,
                          const struct linear_spec *spec) {
    char full[160];
    const struct tensor_info *t = &p->tensors[x];
    struct grouped_attributes g = {model_experts(m), t->dims[0], t->dims[1], spec->out_features,
                                   r.expected_rows};
    int op = program_op(p, &op_grouped_linear, spec->name, (int[]){x, r.dispatch}, 2, &g, sizeof(g));
    snprintf(full, sizeof(full), "%s.weight", spec->prefix);
    program_param(p, op,
                  (struct param_info){.name = full,
                                      .per_layer = true,
                                      .num_dims = 2,
                                      .dims = {g.groups * g.out, g.in},
                                      .groups = (int)g.groups,
                                      .shard = spec->shard,
                                      .is_expert = true,
                                      .init = PARAM_INIT_NORMAL,
                                      .init_std = spec->init_std,
                                      .forms = PARAM_FORM_PACKED_FORWARD | PARAM_FORM_PACKED_BACKWARD});
    int y = program_output(p, op, spec->name, m->dtype, 2, (int64_t[]){g.rows, g.out}, true);
    p->tensors[y].is_partly_unused = has_unused_rows(&r);
    return y;
}

/* ---- activation times probability: backward reads its input and the routing, so its result need not stay */

struct scaled_attributes {
    struct router_shape shape;
    enum activation kind;
    int64_t rows, cols, expected;
};

static void scaled_forward(struct run *r, const struct op *o) {
    const struct scaled_attributes *a = o->attributes;
    KERNEL_CALL(scaled_activation_forward, r->stream, .y = run_tensor(r, o->out[0]),
                .x = run_tensor(r, o->in[0]), .scales = run_tensor(r, o->in[1]),
                .index = moe_slot_of_row(run_tensor(r, o->in[2]), &a->shape), .rows = a->rows,
                .expected = a->expected, .cols = a->cols, .kind = a->kind,
                .dtype = run_info(r, o->in[0])->dtype);
}

static void scaled_backward(struct run *r, const struct op *o) {
    const struct scaled_attributes *a = o->attributes;
    KERNEL_CALL(
        scaled_activation_backward, r->stream, .dx = run_grad(r, o->in[0]), .dscales = run_grad(r, o->in[1]),
        .dy = run_grad(r, o->out[0]), .x = run_tensor(r, o->in[0]), .scales = run_tensor(r, o->in[1]),
        .index = moe_slot_of_row(run_tensor(r, o->in[2]), &a->shape), .rows = a->rows,
        .expected = a->expected, .cols = a->cols, .kind = a->kind, .dtype = run_info(r, o->in[0])->dtype);
}

static const struct op_def op_scaled_activation = {"scaled_activation", scaled_forward, scaled_backward,
                                                   .backward_reads_in = 7, .grad_in = 3};

int op_add_scaled_activation(struct program *p, const struct model *m, int x, struct routing r) {
    struct scaled_attributes a = {r.shape, m->activation, r.rows ? r.rows : moe_rows(&r.shape),
                                  model_expert_ffn(m), r.expected_rows};
    int op =
        program_op(p, &op_scaled_activation, "moe_act", (int[]){x, r.probs, r.dispatch}, 3, &a, sizeof(a));
    int y = program_output(p, op, "moe_act", m->dtype, 2, (int64_t[]){a.rows, a.cols}, true);
    p->tensors[y].is_partly_unused = has_unused_rows(&r);
    return y;
}

/* ---- shared experts' gate ---- */

static void gate_forward(struct run *r, const struct op *o) {
    const struct tensor_info *y = run_info(r, o->out[0]);
    KERNEL_CALL(gate_forward, r->stream, .y = run_tensor(r, o->out[0]), .x = run_tensor(r, o->in[0]),
                .g = run_tensor(r, o->in[1]), .rows = y->dims[0] * y->dims[1], .cols = y->dims[2],
                .dtype = y->dtype);
}

static void gate_backward(struct run *r, const struct op *o) {
    const struct tensor_info *y = run_info(r, o->out[0]);
    KERNEL_CALL(gate_backward, r->stream, .dx = run_grad(r, o->in[0]), .dg = run_grad(r, o->in[1]),
                .dy = run_grad(r, o->out[0]), .x = run_tensor(r, o->in[0]), .g = run_tensor(r, o->in[1]),
                .rows = y->dims[0] * y->dims[1], .cols = y->dims[2], .dtype = y->dtype);
}

static const struct op_def op_gate = {"gate", gate_forward, gate_backward, .backward_reads_in = 3,
                                      .grad_in = 3};

int op_add_gate(struct program *p, const struct model *m, int x, int g) {
    int op = program_op(p, &op_gate, "gate", (int[]){x, g}, 2, NULL, 0);
    return program_output(p, op, "gated", m->dtype, 3, (int64_t[]){model_rows(m), m->micro_batch, m->hidden},
                          true);
}

/* ---- sum of two branches: a residual addition without dropout ---- */

int op_add_sum(struct program *p, const struct model *m, int a, int b, const char *name) {
    struct model plain = *m;
    plain.hidden_dropout = 0;
    return op_add_residual(p, &plain, a, b, name);
}
