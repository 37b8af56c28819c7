/* y[t, out] = x[t, in] W^T + b. Backward reads x only. */
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

static void forward(struct run *r, const struct op *o) {
    const struct tensor_info *x = run_info(r, o->in[0]), *y = run_info(r, o->out[0]);
    const struct param_view *w = run_param(r, o, 0);
    KERNEL_CALL(gemm, r->stream, .c = run_tensor(r, o->out[0]), .a = run_tensor(r, o->in[0]),
                .b = w->packed_forward ? w->packed_forward : w->plain, .b_packed = w->packed_forward != NULL,
                .trans_b = true, .bias = o->num_params > 1 ? run_param(r, o, 1)->plain : NULL,
                .m = rows_of(x), .n = last_dim(y), .k = last_dim(x), .dtype = x->dtype, .c_dtype = y->dtype);
}

static void backward(struct run *r, const struct op *o) {
    const struct tensor_info *x = run_info(r, o->in[0]), *y = run_info(r, o->out[0]);
    const struct param_view *w = run_param(r, o, 0);
    const void *dy = run_grad(r, o->out[0]);
    KERNEL_CALL(gemm, r->stream, .c = w->grad, .a = dy, .trans_a = true, .b = run_tensor(r, o->in[0]),
                .m = last_dim(y), .n = last_dim(x), .k = rows_of(x), .dtype = x->dtype, .c_dtype = DTYPE_F32,
                .accumulate = run_param_accumulates(w));
    if (o->num_params > 1) {
        const struct param_view *bias = run_param(r, o, 1);
        KERNEL_CALL(bias_backward, r->stream, .dbias = bias->grad, .dy = dy, .rows = rows_of(y),
                    .cols = last_dim(y), .dtype = y->dtype, .accumulate = run_param_accumulates(bias));
    }
    KERNEL_CALL(gemm, r->stream, .c = run_grad(r, o->in[0]), .a = dy,
                .b = w->packed_backward ? w->packed_backward : w->plain,
                .b_packed = w->packed_backward != NULL, .m = rows_of(x), .n = last_dim(x), .k = last_dim(y),
                .dtype = x->dtype, .c_dtype = x->dtype, .accumulate = run_accumulates(r, 0));
}

static const struct op_def op_linear = {
    "linear", forward, backward, .backward_reads_in = 1, .grad_in = 1,
};

int op_add_linear(struct program *p, const struct model *m, int x, const char *name, const char *prefix,
                  bool per_layer, int64_t out_features, float init_std, bool bias) {
    char full[160];
    int op = program_op(p, &op_linear, name, &x, 1, NULL, 0);
    struct tensor_info in = p->tensors[x];
    int64_t dims[PROGRAM_MAX_DIMS];
    memcpy(dims, in.dims, sizeof(dims));
    dims[in.num_dims - 1] = out_features;
    snprintf(full, sizeof(full), "%s.weight", prefix);
    program_param(p, op,
                  (struct param_info){.name = full,
                                      .per_layer = per_layer,
                                      .num_dims = 2,
                                      .dims = {out_features, last_dim(&in)},
                                      .init = PARAM_INIT_NORMAL,
                                      .init_std = init_std,
                                      .forms = PARAM_FORM_PACKED_FORWARD | PARAM_FORM_PACKED_BACKWARD});
    if (bias) {
        snprintf(full, sizeof(full), "%s.bias", prefix);
        program_param(p, op,
                      (struct param_info){.name = full,
                                          .per_layer = per_layer,
                                          .num_dims = 1,
                                          .dims = {out_features},
                                          .init = PARAM_INIT_ZERO,
                                          .forms = PARAM_FORM_PLAIN});
    }
    return program_output(p, op, name, m->dtype, in.num_dims, dims, true);
}
