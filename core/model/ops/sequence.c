/* Sequence parallelism: all-gather and reduce-scatter along the sequence, which is the first dimension, so a
 * rank's rows are one stretch of the whole. */
#include "core/model/ops/internal.h"
#include "core/model/ops.h"
#include "core/model/run.h"

static int64_t count_of(const struct tensor_info *t) {
    return (int64_t)(t->bytes / dtype_bytes(t->dtype));
}

/* Where this rank's part lies in the whole. */
static void *own_part(const struct run *r, void *whole, const struct tensor_info *part) {
    return (char *)whole + part->bytes * (size_t)comm_rank(r->comms.tp);
}

/* whole <- part of every rank */
static void gather_start(struct run *r, void *whole, const void *part, const struct tensor_info *t) {
    run_copy(r, own_part(r, whole, t), part, t);
    *run_request(r) = comm_start_all_gather(r->comms.tp, whole, count_of(t), comm_dtype_of(t->dtype));
}

/* Own part of the sum over ranks; `whole` is destroyed. */
static void scatter_start(struct run *r, void *whole, const struct tensor_info *t) {
    *run_request(r) = comm_start_reduce_scatter(r->comms.tp, whole, count_of(t), comm_dtype_of(t->dtype));
}

static void wait_end(struct run *r, const struct op *o) {
    (void)o;
    comm_wait(*run_request(r));
}

/* ---- gather ---- */

static void gather_forward(struct run *r, const struct op *o) {
    gather_start(r, run_tensor(r, o->out[0]), run_tensor(r, o->in[0]), run_info(r, o->in[0]));
}

static void gather_backward(struct run *r, const struct op *o) {
    scatter_start(r, run_grad(r, o->out[0]), run_info(r, o->in[0]));
}

static void gather_backward_end(struct run *r, const struct op *o) {
    const struct tensor_info *t = run_info(r, o->in[0]);
    comm_wait(*run_request(r));
    const void *sum = own_part(r, run_grad(r, o->out[0]), t);
    void *dx = run_grad(r, o->in[0]);
    if (run_accumulates(r, 0))
        KERNEL_CALL(add, r->stream, .y = dx, .a = dx, .b = sum, .n = count_of(t), .dtype = t->dtype);
    else
        run_copy(r, dx, sum, t);
}

static const struct op_def op_gather = {"sequence_gather",
                                        gather_forward,
                                        gather_backward,
                                        .forward_end = wait_end,
                                        .backward_end = gather_backward_end,
                                        .grad_in = 1,
                                        .classes = OP_COMMUNICATION};

int op_add_gather(struct program *p, const struct model *m, int x) {
    if (!model_splits_sequence(m)) return x;
    int op = program_op(p, &op_gather, "sequence_gather", &x, 1, NULL, 0);
    struct tensor_info t = p->tensors[x];
    return program_output(p, op, "sequence_gather", t.dtype, 3,
                          (int64_t[]){model_seq(m), t.dims[1], t.dims[2]}, true);
}

/* ---- reduce-scatter: its input is destroyed, which no backward reads ---- */

static void scatter_forward(struct run *r, const struct op *o) {
    scatter_start(r, run_tensor(r, o->in[0]), run_info(r, o->out[0]));
}

static void scatter_forward_end(struct run *r, const struct op *o) {
    const struct tensor_info *t = run_info(r, o->out[0]);
    comm_wait(*run_request(r));
    run_copy(r, run_tensor(r, o->out[0]), own_part(r, run_tensor(r, o->in[0]), t), t);
}

static void scatter_backward(struct run *r, const struct op *o) {
    CHECK(!run_accumulates(r, 0), "%s: gathered rows cannot be added to another gradient", o->name);
    gather_start(r, run_grad(r, o->in[0]), run_grad(r, o->out[0]), run_info(r, o->out[0]));
}

/* Of both classes: as the end of a linear layer it is kept where products are. Re-run alone it would read an
 * input that the first forward destroyed. */
static const struct op_def op_reduce_scatter = {"sequence_reduce_scatter",
                                                scatter_forward,
                                                scatter_backward,
                                                .forward_end = scatter_forward_end,
                                                .backward_end = wait_end,
                                                .grad_in = 1,
                                                .classes = OP_GEMM | OP_COMMUNICATION};

int op_add_reduce_scatter(struct program *p, const struct model *m, int x) {
    if (!model_splits_sequence(m)) return x;
    int op = program_op(p, &op_reduce_scatter, "sequence_reduce_scatter", &x, 1, NULL, 0);
    struct tensor_info t = p->tensors[x];
    return program_output(p, op, "sequence_reduce_scatter", t.dtype, 3,
                          (int64_t[]){model_rows(m), t.dims[1], t.dims[2]}, true);
}
