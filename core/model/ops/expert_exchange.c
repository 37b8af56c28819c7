/* The ops that bring rows to the ranks of their experts: the counts of all ranks, the probabilities in the
 * order of rows, the exchange of window 0. */
#include "core/model/ops/expert.h"
#include "core/model/ops.h"

/* ---- counts: decided once, so that recomputation exchanges the same rows ---- */

static void counts_forward(struct run *r, const struct op *o) {
    const struct expert_group *g = o->attributes;
    const int32_t *offsets = run_tensor(r, o->in[0]);
    int32_t *counts = run_tensor(r, o->out[0]), *local = run_tensor(r, o->out[1]);
    int64_t experts = g->experts * g->ep;
    struct router_shape s = expert_local_shape(g);
    for (int64_t e = 0; e < experts && !run_is_meta(r); e++)
        counts[g->rank * experts + e] = offsets[e + 1] - offsets[e];
    comm_all_gather(r->comms.expert, counts, experts, COMM_I32);
    if (!run_is_meta(r))
        expert_window_rows(g, counts, expert_window_at(g, 0), local, moe_slot_of_row(local, &s));
}

static void counts_backward(struct run *r, const struct op *o) {
    (void)r, (void)o; /* nothing has a gradient */
}

static const struct op_def op_counts = {.name = "expert_counts",
                                        .forward = counts_forward,
                                        .backward = counts_backward,
                                        .classes = OP_COMMUNICATION};

/* ---- probabilities in the order of rows ---- */

static void probs_forward(struct run *r, const struct op *o) {
    const struct moe_attributes *a = o->attributes;
    KERNEL_CALL(gather_rows, r->stream, .y = run_tensor(r, o->out[0]), .x = run_tensor(r, o->in[0]),
                .index = moe_slot_of_row(run_tensor(r, o->in[1]), &a->shape), .rows = moe_rows(&a->shape),
                .cols = 1, .divisor = 1, .dtype = DTYPE_F32);
}

static void probs_backward(struct run *r, const struct op *o) {
    const struct moe_attributes *a = o->attributes;
    KERNEL_CALL(combine_rows, r->stream, .y = run_grad(r, o->in[0]), .x = run_grad(r, o->out[0]),
                .index = moe_row_of_slot(run_tensor(r, o->in[1]), &a->shape),
                .rows = a->shape.tokens * a->shape.topk, .cols = 1, .fan = 1,
                .accumulate = run_accumulates(r, 0), .dtype = DTYPE_F32);
}

static const struct op_def op_probs = {"row_probs", probs_forward, probs_backward, .backward_reads_in = 2,
                                       .grad_in = 1};

int op_add_row_probs(struct program *p, const struct model *m, struct routing r) {
    struct moe_attributes a = moe_attributes_of(m);
    int64_t rows = moe_rows(&a.shape);
    int op = program_op(p, &op_probs, "row_probs", (int[]){r.probs, r.dispatch}, 2, &a, sizeof(a));
    int t = program_output(p, op, "row_probs", DTYPE_F32, 1, &rows, true);
    p->tensors[t].is_partly_unused = true;
    return t;
}

/* ---- exchange ---- */

enum { IN_ROWS, IN_PROBS, IN_COUNTS };
enum { OUT_ROWS, OUT_SCALES, OUT_FORWARD_SCRATCH, OUT_BACKWARD_SCRATCH };

static size_t scratch_of(const struct expert_group *g, struct expert_paths *x, uintptr_t at, bool collects) {
    uintptr_t end = at;
    *x = (struct expert_paths){0};
    expert_paths_carve(x, g, &end, collects);
    return end - at;
}

/* The paths of window 0. */
static struct expert_paths paths_of(struct run *r, const struct op *o, int scratch, bool collects) {
    const struct expert_group *g = o->attributes;
    const int32_t *counts = run_tensor(r, o->in[IN_COUNTS]);
    struct expert_paths x;
    scratch_of(g, &x, (uintptr_t)run_tensor(r, o->out[scratch]), collects);
    if (!run_is_meta(r)) expert_paths_fill(&x, g, counts, expert_window_at(g, 0));
    return x;
}

static void exchange_forward(struct run *r, const struct op *o) {
    const struct expert_group *g = o->attributes;
    struct expert_paths x = paths_of(r, o, OUT_FORWARD_SCRATCH, false);
    expert_send(r, g, &x, run_tensor(r, o->out[OUT_ROWS]), run_tensor(r, o->in[IN_ROWS]), g->hidden,
                g->dtype);
    expert_send(r, g, &x, run_tensor(r, o->out[OUT_SCALES]), run_tensor(r, o->in[IN_PROBS]), 1, DTYPE_F32);
}

/* The gradients of rows that passed in other windows are there already, in other places. */
static void exchange_backward(struct run *r, const struct op *o) {
    const struct expert_group *g = o->attributes;
    struct expert_paths x = paths_of(r, o, OUT_BACKWARD_SCRATCH, true);
    expert_collect(r, g, &x, run_grad(r, o->in[IN_ROWS]), run_grad(r, o->out[OUT_ROWS]), g->hidden, g->dtype);
    expert_collect(r, g, &x, run_grad(r, o->in[IN_PROBS]), run_grad(r, o->out[OUT_SCALES]), 1, DTYPE_F32);
}

static const struct op_def op_exchange = {"expert_exchange",
                                          exchange_forward,
                                          exchange_backward,
                                          .backward_reads_in = 1u << IN_COUNTS,
                                          .grad_in = 1u << IN_ROWS | 1u << IN_PROBS,
                                          .classes = OP_COMMUNICATION};

struct expert_rows op_add_expert_exchange(struct program *p, const struct model *m, int rows, int probs,
                                          struct routing source) {
    struct expert_group g = expert_group_of(m);
    struct expert_rows e = {.local = {.shape = expert_local_shape(&g), .expected_rows = g.balanced}};
    struct expert_paths x;
    int op = program_op(p, &op_counts, "expert_counts", &source.dispatch, 1, &g, sizeof(g));
    int64_t entries = moe_offsets_space(&e.local.shape) + 2 * g.first_rows;
    e.counts =
        program_output(p, op, "expert_counts", DTYPE_I32, 2, (int64_t[]){g.ranks, m->moe.experts}, false);
    e.local.dispatch = program_output(p, op, "expert_dispatch", DTYPE_I32, 1, &entries, false);
    p->tensors[e.counts].is_pinned = p->tensors[e.local.dispatch].is_pinned = true;
    op = program_op(p, &op_exchange, "expert_exchange", (int[]){rows, probs, e.counts}, 3, &g, sizeof(g));
    e.rows = program_output(p, op, "exchanged_rows", m->dtype, 2, (int64_t[]){g.first_rows, m->hidden}, true);
    e.local.probs = program_output(p, op, "exchanged_probs", DTYPE_F32, 1, &g.first_rows, true);
    for (int collects = 0; collects < 2; collects++)
        program_output(p, op, "exchange_scratch", DTYPE_F32, 1,
                       (int64_t[]){(int64_t)scratch_of(&g, &x, 0, collects) / 4}, false);
    p->ops[op].backward_scratch_out = 1u << OUT_BACKWARD_SCRATCH;
    for (int k = 0; k < 4; k++) p->tensors[p->ops[op].out[k]].is_partly_unused = true;
    return e;
}
