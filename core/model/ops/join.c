/* Hidden states that have two readers, or two sources: passing on to the next segment, and joining columns.
 * Both are linear, so backward reads gradients only. */
#include "core/base/check.h"
#include "core/model/ops.h"
#include "core/model/run.h"

/* ---- pass ---- */

static void pass_forward(struct run *r, const struct op *o) {
    run_copy(r, run_tensor(r, o->out[0]), run_tensor(r, o->in[0]), run_info(r, o->in[0]));
}

static void pass_backward(struct run *r, const struct op *o) {
    const struct tensor_info *t = run_info(r, o->in[0]);
    void *dx = run_grad(r, o->in[0]), *dy = run_grad(r, o->out[0]);
    if (run_accumulates(r, 0))
        KERNEL_CALL(add, r->stream, .y = dx, .a = dx, .b = dy,
                    .n = (int64_t)(t->bytes / dtype_bytes(t->dtype)), .dtype = t->dtype);
    else if (dx != dy)
        run_copy(r, dx, dy, t);
}

static const struct op_def op_pass = {"pass", pass_forward, pass_backward, .grad_in = 1, .passes_grad = 1};

int op_add_pass(struct program *p, const struct model *m, int x) {
    int op = program_op(p, &op_pass, "pass_on", &x, 1, NULL, 0);
    struct tensor_info t = p->tensors[x];
    return program_output(p, op, "passed_on", m->dtype, t.num_dims, t.dims, true);
}

/* ---- concat: the columns of a, then those of b; the kernels are those that cut a latent ---- */

struct concat_attributes {
    int64_t rows, cols;
};

static void concat_forward(struct run *r, const struct op *o) {
    const struct concat_attributes *c = o->attributes;
    KERNEL_CALL(mla_latent_split_backward, r->stream, .dx = run_tensor(r, o->out[0]),
                .dlatent = run_tensor(r, o->in[0]), .dk_pe = run_tensor(r, o->in[1]), .rows = c->rows,
                .rank = c->cols, .dr = c->cols, .dtype = run_info(r, o->out[0])->dtype);
}

static void concat_backward(struct run *r, const struct op *o) {
    const struct concat_attributes *c = o->attributes;
    CHECK(!run_accumulates(r, 0) && !run_accumulates(r, 1), "%s: parts are stored, not added", o->name);
    KERNEL_CALL(mla_latent_split_forward, r->stream, .latent = run_grad(r, o->in[0]),
                .k_pe = run_grad(r, o->in[1]), .x = run_grad(r, o->out[0]), .rows = c->rows, .rank = c->cols,
                .dr = c->cols, .dtype = run_info(r, o->out[0])->dtype);
}

static const struct op_def op_concat = {"concat", concat_forward, concat_backward, .grad_in = 3};

int op_add_concat(struct program *p, const struct model *m, int a, int b) {
    struct tensor_info t = p->tensors[a];
    struct concat_attributes c = {t.dims[0] * t.dims[1], t.dims[2]};
    CHECK(p->tensors[b].bytes == t.bytes, "%s and %s have different sizes", t.name, p->tensors[b].name);
    int op = program_op(p, &op_concat, "concat", (int[]){a, b}, 2, &c, sizeof(c));
    return program_output(p, op, "concat", m->dtype, 3, (int64_t[]){t.dims[0], t.dims[1], 2 * t.dims[2]},
                          true);
}
