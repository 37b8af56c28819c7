/* y = norm(x). Backward computes the statistics again from x, so it reads x only. */
#include "core/model/ops.h"
#include "core/model/run.h"
#include <stdio.h>

struct norm_attributes {
    float epsilon;
    bool rms, zero_centered;
};

static void forward(struct run *r, const struct op *o) {
    const struct norm_attributes *n = o->attributes;
    const struct tensor_info *x = run_info(r, o->in[0]);
    KERNEL_CALL(norm_forward, r->stream, .y = run_tensor(r, o->out[0]), .x = run_tensor(r, o->in[0]),
                .weight = run_param(r, o, 0)->plain, .bias = n->rms ? NULL : run_param(r, o, 1)->plain,
                .rows = x->dims[0] * x->dims[1], .cols = x->dims[2], .epsilon = n->epsilon, .rms = n->rms,
                .zero_centered = n->zero_centered, .dtype = x->dtype);
}

static void backward(struct run *r, const struct op *o) {
    const struct norm_attributes *n = o->attributes;
    const struct tensor_info *x = run_info(r, o->in[0]);
    const struct param_view *weight = run_param(r, o, 0), *bias = n->rms ? NULL : run_param(r, o, 1);
    bool accumulate = run_param_accumulates(weight);
    if (bias) run_param_accumulates(bias);
    KERNEL_CALL(norm_backward, r->stream, .dx = run_grad(r, o->in[0]), .dweight = weight->grad,
                .dbias = bias ? bias->grad : NULL, .dy = run_grad(r, o->out[0]), .x = run_tensor(r, o->in[0]),
                .weight = weight->plain, .rows = x->dims[0] * x->dims[1], .cols = x->dims[2],
                .epsilon = n->epsilon, .rms = n->rms, .zero_centered = n->zero_centered,
                .accumulate_dx = run_accumulates(r, 0), .accumulate_params = accumulate, .dtype = x->dtype);
}

static const struct op_def op_norm = {"norm", forward, backward, .backward_reads_in = 1, .grad_in = 1};

int op_add_norm(struct program *p, const struct model *m, int x, const char *name, const char *prefix,
                bool per_layer) {
    char full[160];
    struct norm_attributes attributes = {m->norm_epsilon, m->rms, m->zero_centered};
    int64_t width = p->tensors[x].dims[2];
    int op = program_op(p, &op_norm, name, &x, 1, &attributes, sizeof(attributes));
    struct param_info info = {.name = full,
                              .per_layer = per_layer,
                              .num_dims = 1,
                              .dims = {width},
                              .shard.full = {width, 1},
                              .sum_over_tensor = model_splits_sequence(m),
                              .init = m->zero_centered ? PARAM_INIT_ZERO : PARAM_INIT_ONE,
                              .forms = PARAM_FORM_PLAIN};
    snprintf(full, sizeof(full), "%s.weight", prefix);
    program_param(p, op, info);
    if (!m->rms) {
        info.init = PARAM_INIT_ZERO;
        snprintf(full, sizeof(full), "%s.bias", prefix);
        program_param(p, op, info);
    }
    return program_output(p, op, name, m->dtype, 3, (int64_t[]){model_rows(m), m->micro_batch, width}, true);
}
