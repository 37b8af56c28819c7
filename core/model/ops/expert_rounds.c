/* The op that returns the experts' results to the sources of their rows; and the rows that found no room in
 * window 0. Those pass here, window after window: they are gathered from x into the places that their results
 * (or, in backward, their gradients) will take, travel to the owners, meet the same weights as all others,
 * and the results travel back to these places. All ranks do as many windows as the fullest one needs.
 *
 * Backward writes the gradients of the rows of these windows; those of window 0 are written by the exchange,
 * in other places of the same tensor. It makes the experts' intermediates again, whatever is recomputed. */
#include "core/model/ops/expert.h"
#include "core/model/ops.h"

enum { IN_RESULT, IN_ROWS, IN_PROBS, IN_X, IN_DISPATCH, IN_COUNTS };
enum { OUT_ROWS, OUT_FORWARD_SCRATCH, OUT_BACKWARD_SCRATCH };
enum { PARAM_FC1, PARAM_FC2 };

struct return_attributes {
    struct expert_group group;
    struct router_shape source;
    struct expert_mlp mlp;
};

/* One window's buffers. */
struct buffers {
    struct expert_paths paths;
    struct expert_mlp_buffers mlp;
    int32_t *index;
    float *scales;
};

static size_t carve(struct buffers *b, const struct return_attributes *a, uintptr_t at, bool backward) {
    const struct expert_group *g = &a->group;
    uintptr_t end = at;
    *b = (struct buffers){0};
    expert_paths_carve(&b->paths, g, &end, !backward || g->more_rows);
    if (!g->more_rows) return end - at;
    b->index = expert_carve(&end, g->more_rows, sizeof(*b->index));
    b->scales = expert_carve(&end, g->more_rows, sizeof(*b->scales));
    expert_mlp_carve(&b->mlp, &a->mlp, &end, backward);
    if (backward) b->mlp.d_scales = expert_carve(&end, g->more_rows, sizeof(*b->mlp.d_scales));
    b->mlp.scales = b->scales;
    b->mlp.index = b->index;
    return end - at;
}

/* ---- rows of a window from x to their owners, through the places of their results ---- */

static void gather_pieces(struct run *r, const struct op *o, const struct buffers *b, void *rows) {
    const struct return_attributes *a = o->attributes;
    const struct expert_group *g = &a->group;
    const int32_t *slots = moe_slot_of_row(run_tensor(r, o->in[IN_DISPATCH]), &a->source);
    const void *x = run_tensor(r, o->in[IN_X]);
    for (int64_t i = 0; i < g->ranks * g->experts; i++) {
        struct comm_piece piece = b->paths.out[i];
        if (!piece.count || i / g->experts % g->etp) continue;
        KERNEL_CALL(gather_rows, r->stream, .y = dtype_at(rows, g->dtype, piece.offset * g->hidden), .x = x,
                    .index = slots + piece.offset, .rows = piece.count, .cols = g->hidden,
                    .divisor = a->source.topk, .dtype = g->dtype);
    }
}

/* Prepares window i and brings its rows and scales here; `places` is where the sources may put rows. */
static void fetch(struct run *r, const struct op *o, const struct buffers *b, void *places) {
    const struct return_attributes *a = o->attributes;
    const struct expert_group *g = &a->group;
    gather_pieces(r, o, b, places);
    expert_send(r, g, &b->paths, b->mlp.rows, places, g->hidden, g->dtype);
    expert_send(r, g, &b->paths, b->scales, run_tensor(r, o->in[IN_PROBS]), 1, DTYPE_F32);
}

static void prepare(struct run *r, const struct op *o, const struct buffers *b, int64_t window) {
    const struct return_attributes *a = o->attributes;
    const struct expert_group *g = &a->group;
    const int32_t *counts = run_tensor(r, o->in[IN_COUNTS]);
    struct expert_window w = expert_window_at(g, window);
    expert_paths_fill(&b->paths, g, counts, w);
    if (window) expert_window_rows(g, counts, w, b->mlp.offsets, b->index);
}

static void forward(struct run *r, const struct op *o) {
    const struct return_attributes *a = o->attributes;
    const struct expert_group *g = &a->group;
    void *rows = run_tensor(r, o->out[OUT_ROWS]);
    struct buffers b;
    carve(&b, a, (uintptr_t)run_tensor(r, o->out[OUT_FORWARD_SCRATCH]), false);
    int64_t windows = run_is_meta(r) ? 1 : expert_windows(g, run_tensor(r, o->in[IN_COUNTS]));
    if (!run_is_meta(r)) prepare(r, o, &b, 0);
    expert_collect(r, g, &b.paths, rows, run_tensor(r, o->in[IN_RESULT]), g->hidden, g->dtype);
    for (int64_t i = 1; i < windows; i++) {
        prepare(r, o, &b, i);
        fetch(r, o, &b, rows);
        expert_mlp_forward(r, &a->mlp, &b.mlp, run_param(r, o, PARAM_FC1), run_param(r, o, PARAM_FC2));
        expert_collect(r, g, &b.paths, rows, b.mlp.rows, g->hidden, g->dtype);
    }
}

/* d_rows may be the storage of d_out: a row of a later window leaves it before its gradient comes. */
static void backward_window(struct run *r, const struct op *o, const struct buffers *b, void *d_rows,
                            const void *d_out) {
    const struct return_attributes *a = o->attributes;
    const struct expert_group *g = &a->group;
    expert_send(r, g, &b->paths, b->mlp.d_result, d_out, g->hidden, g->dtype);
    fetch(r, o, b, d_rows);
    expert_mlp_backward(r, &a->mlp, &b->mlp, run_param(r, o, PARAM_FC1), run_param(r, o, PARAM_FC2));
    expert_collect(r, g, &b->paths, d_rows, b->mlp.d_result, g->hidden, g->dtype);
    expert_collect(r, g, &b->paths, run_grad(r, o->in[IN_PROBS]), b->mlp.d_scales, 1, DTYPE_F32);
}

static void backward(struct run *r, const struct op *o) {
    const struct return_attributes *a = o->attributes;
    const struct expert_group *g = &a->group;
    const void *d_out = run_grad(r, o->out[OUT_ROWS]);
    struct buffers b;
    carve(&b, a, (uintptr_t)run_tensor(r, o->out[OUT_BACKWARD_SCRATCH]), true);
    int64_t windows = run_is_meta(r) ? 1 : expert_windows(g, run_tensor(r, o->in[IN_COUNTS]));
    if (!run_is_meta(r)) prepare(r, o, &b, 0);
    expert_send(r, g, &b.paths, run_grad(r, o->in[IN_RESULT]), d_out, g->hidden, g->dtype);
    for (int64_t i = 1; i < windows; i++) {
        prepare(r, o, &b, i);
        backward_window(r, o, &b, run_grad(r, o->in[IN_ROWS]), d_out);
    }
}

static const struct op_def op_return = {"expert_return",
                                        forward,
                                        backward,
                                        .backward_reads_in =
                                            1u << IN_PROBS | 1u << IN_X | 1u << IN_DISPATCH | 1u << IN_COUNTS,
                                        .grad_in = 1u << IN_RESULT | 1u << IN_ROWS | 1u << IN_PROBS,
                                        .passes_grad = 1u << IN_ROWS,
                                        .classes = OP_COMMUNICATION};

int op_add_expert_return(struct program *p, const struct model *m, const struct expert_rows *e,
                         const struct expert_return *from) {
    struct return_attributes a = {
        .group = expert_group_of(m), .source = from->source.shape, .mlp = expert_mlp_of(p, m, from->fc1)};
    struct buffers b;
    int in[] = {from->fc2, from->rows, from->probs, from->x, from->source.dispatch, e->counts};
    int op = program_op(p, &op_return, "expert_return", in, 6, &a, sizeof(a));
    for (int i = 0; i < 2; i++) {
        const struct op *linear = &p->ops[p->tensors[i ? from->fc2 : from->fc1].producer];
        program_share_param(p, op, linear->param[0]);
    }
    int y = program_output(p, op, "returned_rows", m->dtype, 2, (int64_t[]){a.group.rows, m->hidden}, true);
    for (int backward_too = 0; backward_too < 2; backward_too++) {
        int64_t words = (int64_t)carve(&b, &a, 0, backward_too) / 4;
        int t = program_output(p, op, "return_scratch", DTYPE_F32, 1, &words, false);
        p->tensors[t].is_partly_unused = true;
    }
    if (!a.group.more_rows) { /* no later windows, and no gradients of their rows */
        p->ops[op].backward_reads_in = 1u << IN_COUNTS;
        p->ops[op].grad_in = 1u << IN_RESULT;
        p->ops[op].passes_grad = 0;
    }
    p->ops[op].forward_skips_in = 1u << IN_ROWS;
    p->ops[op].backward_scratch_out = 1u << OUT_BACKWARD_SCRATCH;
    p->tensors[from->rows].is_partly_unused = p->tensors[from->fc2].is_partly_unused = true;
    p->tensors[from->fc1].is_partly_unused = true;
    return y;
}
