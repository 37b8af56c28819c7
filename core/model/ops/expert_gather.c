/* Experts over ranks by gathering: every rank gets the tokens and choices of all N ranks, works on the rows
 * that are for its experts, and adds up each token's rows; a reduce-scatter adds the ranks' sums. More bytes
 * travel than with pieces, in two large messages. Rows have the same order and windows as in expert.h, but no
 * rank needs another one's windows: how many it has is its own affair.
 *
 * The gathered tokens are kept by nobody: backward gathers them again. */
#include "core/model/ops/expert.h"
#include "core/model/ops.h"

struct gather_attributes {
    struct expert_group group;
    struct router_shape source,
        local; /* of this rank's tokens; of all ranks' tokens and this rank's experts */
    struct expert_mlp mlp;
};

static int64_t tokens_of(const struct gather_attributes *a) {
    return a->local.tokens;
}

/* Rows that a kernel sees in window 0. */
static int64_t rows_of(const struct run *r, const struct gather_attributes *a, const int32_t *dispatch) {
    return run_is_meta(r) ? a->group.balanced : dispatch[a->group.experts];
}

static void *own_part(const struct gather_attributes *a, void *whole, int64_t width, enum dtype dtype) {
    return dtype_at(whole, dtype, a->group.rank * a->source.tokens * width);
}

static void gather(struct run *r, const struct gather_attributes *a, void *whole, const void *part,
                   int64_t width, enum dtype dtype) {
    int64_t n = a->source.tokens * width;
    KERNEL_CALL(cast, r->stream, .dst = own_part(a, whole, width, dtype), .src = part, .n = n,
                .dst_dtype = dtype, .src_dtype = dtype);
    comm_all_gather(r->comms.expert, whole, n, comm_dtype_of(dtype));
}

/* part (+)= this rank's part of the sum over ranks; `whole` is destroyed. */
static void scatter(struct run *r, const struct gather_attributes *a, void *part, void *whole, int64_t width,
                    enum dtype dtype, bool accumulate) {
    int64_t n = a->source.tokens * width;
    const void *sum = own_part(a, whole, width, dtype);
    comm_reduce_scatter(r->comms.expert, whole, n, comm_dtype_of(dtype));
    if (accumulate)
        KERNEL_CALL(add, r->stream, .y = part, .a = part, .b = sum, .n = n, .dtype = dtype);
    else
        KERNEL_CALL(cast, r->stream, .dst = part, .src = sum, .n = n, .dst_dtype = dtype, .src_dtype = dtype);
}

/* ---- tokens ---- */

static void tokens_forward(struct run *r, const struct op *o) {
    const struct gather_attributes *a = o->attributes;
    gather(r, a, run_tensor(r, o->out[0]), run_tensor(r, o->in[0]), a->group.hidden, a->group.dtype);
}

static void tokens_backward(struct run *r, const struct op *o) {
    const struct gather_attributes *a = o->attributes;
    scatter(r, a, run_grad(r, o->in[0]), run_grad(r, o->out[0]), a->group.hidden, a->group.dtype,
            run_accumulates(r, 0));
}

static const struct op_def op_tokens = {.name = "expert_gather",
                                        .forward = tokens_forward,
                                        .backward = tokens_backward,
                                        .grad_in = 1,
                                        .classes = OP_COMMUNICATION};

/* ---- choices and probabilities, and the rows of this rank that follow from them: decided once ---- */

enum { IN_PROBS, IN_EXPERTS, IN_DISPATCH };
enum { OUT_PROBS, OUT_EXPERTS, OUT_DISPATCH, OUT_OFFSETS };

/* Local number of the expert of a slot, or -1. */
static int64_t local_expert(const struct gather_attributes *a, const int32_t *experts, int64_t slot) {
    int64_t e = experts[slot] - a->group.ep_rank * a->group.experts;
    return experts[slot] >= 0 && e >= 0 && e < a->group.experts ? e : -1;
}

/* Offsets of all rows, then those of window 0, and which slot is which row. */
static void order_rows(const struct gather_attributes *a, const int32_t *experts, int32_t *offsets,
                       int32_t *dispatch) {
    int64_t slots = moe_slots(&a->local), count = a->group.experts, first = a->group.first_rows;
    int32_t *row_of_slot = moe_row_of_slot(dispatch, &a->local);
    int32_t *slot_of_row = moe_slot_of_row(dispatch, &a->local);
    memset(offsets, 0, (size_t)(count + 1) * sizeof(*offsets));
    for (int64_t s = 0; s < slots; s++) {
        int64_t e = local_expert(a, experts, s);
        if (e >= 0) offsets[e + 1]++;
        slot_of_row[s] = row_of_slot[s] = -1;
    }
    for (int64_t e = 0; e < count; e++) offsets[e + 1] += offsets[e];
    memcpy(dispatch, offsets, (size_t)count * sizeof(*offsets)); /* the next row of each expert */
    for (int64_t s = 0; s < slots; s++) {
        int64_t e = local_expert(a, experts, s);
        if (e < 0) continue;
        int32_t row = dispatch[e]++;
        slot_of_row[row] = (int32_t)s;
        if (row < first) row_of_slot[s] = row;
    }
    for (int64_t e = 0; e <= count; e++) dispatch[e] = offsets[e] < first ? offsets[e] : (int32_t)first;
}

static void choices_forward(struct run *r, const struct op *o) {
    const struct gather_attributes *a = o->attributes;
    int64_t k = a->source.topk, own = a->source.tokens * k;
    const int32_t *chosen = run_tensor(r, o->in[IN_EXPERTS]);
    const int32_t *rows = moe_row_of_slot(run_tensor(r, o->in[IN_DISPATCH]), &a->source);
    int32_t *experts = run_tensor(r, o->out[OUT_EXPERTS]), *offsets = run_tensor(r, o->out[OUT_OFFSETS]);
    int32_t *dispatch = run_tensor(r, o->out[OUT_DISPATCH]);
    gather(r, a, run_tensor(r, o->out[OUT_PROBS]), run_tensor(r, o->in[IN_PROBS]), k, DTYPE_F32);
    for (int64_t s = 0; s < own && !run_is_meta(r); s++)
        experts[a->group.rank * own + s] = rows[s] < 0 ? -1 : chosen[s];
    comm_all_gather(r->comms.expert, experts, own, COMM_I32);
    if (!run_is_meta(r)) order_rows(a, experts, offsets, dispatch);
}

static void choices_backward(struct run *r, const struct op *o) {
    const struct gather_attributes *a = o->attributes;
    scatter(r, a, run_grad(r, o->in[IN_PROBS]), run_grad(r, o->out[OUT_PROBS]), a->source.topk, DTYPE_F32,
            run_accumulates(r, IN_PROBS));
}

static const struct op_def op_choices = {.name = "expert_choices",
                                         .forward = choices_forward,
                                         .backward = choices_backward,
                                         .grad_in = 1u << IN_PROBS,
                                         .classes = OP_COMMUNICATION};

/* ---- rows of window 0 ---- */

static void rows_forward(struct run *r, const struct op *o) {
    const struct gather_attributes *a = o->attributes;
    int32_t *dispatch = run_tensor(r, o->in[1]);
    KERNEL_CALL(gather_rows, r->stream, .y = run_tensor(r, o->out[0]), .x = run_tensor(r, o->in[0]),
                .index = moe_slot_of_row(dispatch, &a->local), .rows = rows_of(r, a, dispatch),
                .cols = a->group.hidden, .divisor = a->local.topk, .dtype = a->group.dtype);
}

static void rows_backward(struct run *r, const struct op *o) {
    const struct gather_attributes *a = o->attributes;
    KERNEL_CALL(combine_rows, r->stream, .y = run_grad(r, o->in[0]), .x = run_grad(r, o->out[0]),
                .index = moe_row_of_slot(run_tensor(r, o->in[1]), &a->local), .rows = tokens_of(a),
                .cols = a->group.hidden, .fan = a->local.topk, .accumulate = run_accumulates(r, 0),
                .dtype = a->group.dtype);
}

static const struct op_def op_rows = {.name = "expert_permute",
                                      .forward = rows_forward,
                                      .backward = rows_backward,
                                      .backward_reads_in = 2,
                                      .grad_in = 1};

static struct gather_attributes attributes_of(const struct model *m, struct routing source) {
    struct gather_attributes a = {.group = expert_group_of(m), .source = source.shape};
    a.local = (struct router_shape){
        .tokens = a.group.ranks * source.shape.tokens, .topk = source.shape.topk, .experts = a.group.experts};
    return a;
}

struct expert_gathered op_add_expert_gather(struct program *p, const struct model *m, int x,
                                            struct routing source) {
    struct gather_attributes a = attributes_of(m, source);
    struct expert_gathered e = {
        .local = {.shape = a.local, .rows = a.group.first_rows, .expected_rows = a.group.balanced}};
    int64_t slots[2] = {a.local.tokens, a.local.topk}, offsets = a.group.experts + 1;
    int64_t entries = moe_offsets_space(&a.local) + 2 * moe_slots(&a.local);
    int op = program_op(p, &op_choices, "expert_choices",
                        (int[]){source.probs, source.experts, source.dispatch}, 3, &a, sizeof(a));
    e.local.probs = program_output(p, op, "gathered_probs", DTYPE_F32, 2, slots, true);
    e.local.experts = program_output(p, op, "gathered_experts", DTYPE_I32, 2, slots, false);
    e.local.dispatch = program_output(p, op, "expert_dispatch", DTYPE_I32, 1, &entries, false);
    e.offsets = program_output(p, op, "expert_offsets", DTYPE_I32, 1, &offsets, false);
    for (int k = 0; k < 4; k++) p->tensors[p->ops[op].out[k]].is_pinned = k != OUT_EXPERTS;
    int outer = program_begin(p, MODULE_tensor_gather);
    op = program_op(p, &op_tokens, "expert_gather", &x, 1, &a, sizeof(a));
    e.x = program_output(p, op, "gathered_tokens", m->dtype, 2, (int64_t[]){a.local.tokens, m->hidden}, true);
    program_end(p, outer);
    outer = program_begin(p, MODULE_moe_permute);
    op = program_op(p, &op_rows, "expert_permute", (int[]){e.x, e.local.dispatch}, 2, &a, sizeof(a));
    e.rows = program_output(p, op, "expert_rows", m->dtype, 2, (int64_t[]){e.local.rows, m->hidden}, true);
    p->tensors[e.rows].is_partly_unused = true;
    program_end(p, outer);
    return e;
}

/* ---- sums of each token's rows, over the rows and over the ranks; and the windows behind window 0 ---- */

enum { IN_RESULT, IN_TOKENS, IN_SCALES, IN_ORDER, IN_ALL_OFFSETS };
enum { OUT_SUM, OUT_FORWARD_SCRATCH, OUT_BACKWARD_SCRATCH };

struct buffers {
    void *sums; /* [N t, h] */
    struct expert_mlp_buffers mlp;
    int32_t *row_of_slot; /* [N t k], of a window */
};

static size_t carve(struct buffers *b, const struct gather_attributes *a, uintptr_t at, bool backward) {
    uintptr_t end = at;
    *b = (struct buffers){0};
    b->sums = expert_carve(&end, tokens_of(a) * a->group.hidden, dtype_bytes(a->group.dtype));
    if (!a->group.more_rows) return end - at;
    b->row_of_slot = expert_carve(&end, moe_slots(&a->local), sizeof(*b->row_of_slot));
    expert_mlp_carve(&b->mlp, &a->mlp, &end, backward);
    return end - at;
}

/* Sets up window i and fetches its rows. False: there is none. */
static bool open_window(struct run *r, const struct op *o, struct buffers *b, int64_t i) {
    const struct gather_attributes *a = o->attributes;
    const int32_t *slots = moe_slot_of_row(run_tensor(r, o->in[IN_ORDER]), &a->local);
    const int32_t *offsets = run_tensor(r, o->in[IN_ALL_OFFSETS]);
    struct expert_window w = expert_window_at(&a->group, i);
    if (run_is_meta(r) || offsets[a->group.experts] <= w.begin) return false;
    for (int64_t e = 0; e <= a->group.experts; e++) {
        int64_t at = offsets[e] - w.begin;
        b->mlp.offsets[e] = (int32_t)(at < 0 ? 0 : at > w.count ? w.count : at);
    }
    b->mlp.index = slots + w.begin;
    b->mlp.scales = run_tensor(r, o->in[IN_SCALES]);
    int32_t rows = b->mlp.offsets[a->group.experts];
    for (int64_t s = 0; s < moe_slots(&a->local); s++) b->row_of_slot[s] = -1;
    for (int32_t row = 0; row < rows; row++) b->row_of_slot[b->mlp.index[row]] = row;
    KERNEL_CALL(gather_rows, r->stream, .y = b->mlp.rows, .x = run_tensor(r, o->in[IN_TOKENS]),
                .index = b->mlp.index, .rows = rows, .cols = a->group.hidden, .divisor = a->local.topk,
                .dtype = a->group.dtype);
    return true;
}

static void combine(struct run *r, const struct gather_attributes *a, void *y, const void *rows,
                    const int32_t *row_of_slot, bool accumulate) {
    KERNEL_CALL(combine_rows, r->stream, .y = y, .x = rows, .index = row_of_slot, .rows = tokens_of(a),
                .cols = a->group.hidden, .fan = a->local.topk, .accumulate = accumulate,
                .dtype = a->group.dtype);
}

static void combine_forward(struct run *r, const struct op *o) {
    const struct gather_attributes *a = o->attributes;
    struct buffers b;
    carve(&b, a, (uintptr_t)run_tensor(r, o->out[OUT_FORWARD_SCRATCH]), false);
    combine(r, a, b.sums, run_tensor(r, o->in[IN_RESULT]),
            moe_row_of_slot(run_tensor(r, o->in[IN_ORDER]), &a->local), false);
    for (int64_t i = 1; open_window(r, o, &b, i); i++) {
        expert_mlp_forward(r, &a->mlp, &b.mlp, run_param(r, o, 0), run_param(r, o, 1));
        combine(r, a, b.sums, b.mlp.rows, b.row_of_slot, true);
    }
    scatter(r, a, run_tensor(r, o->out[OUT_SUM]), b.sums, a->group.hidden, a->group.dtype, false);
}

static void spread(struct run *r, const struct gather_attributes *a, void *rows, const void *sums,
                   const int32_t *slots, int64_t count) {
    KERNEL_CALL(gather_rows, r->stream, .y = rows, .x = sums, .index = slots, .rows = count,
                .cols = a->group.hidden, .divisor = a->local.topk, .dtype = a->group.dtype);
}

/* Starts the gradients of the gathered tokens and probabilities, to which window 0 adds its own: rows of
 * other ranks get none here. */
static void combine_backward(struct run *r, const struct op *o) {
    const struct gather_attributes *a = o->attributes;
    int32_t *dispatch = run_tensor(r, o->in[IN_ORDER]);
    struct buffers b;
    carve(&b, a, (uintptr_t)run_tensor(r, o->out[OUT_BACKWARD_SCRATCH]), true);
    gather(r, a, b.sums, run_grad(r, o->out[OUT_SUM]), a->group.hidden, a->group.dtype);
    spread(r, a, run_grad(r, o->in[IN_RESULT]), b.sums, moe_slot_of_row(dispatch, &a->local),
           rows_of(r, a, dispatch));
    b.mlp.d_scales = run_grad(r, o->in[IN_SCALES]);
    KERNEL_CALL(fill, r->stream, .y = b.mlp.d_scales, .n = moe_slots(&a->local), .dtype = DTYPE_F32);
    if (!a->group.more_rows) return;
    void *d_tokens = run_grad(r, o->in[IN_TOKENS]);
    KERNEL_CALL(fill, r->stream, .y = d_tokens, .n = tokens_of(a) * a->group.hidden, .dtype = a->group.dtype);
    for (int64_t i = 1; open_window(r, o, &b, i); i++) {
        spread(r, a, b.mlp.d_result, b.sums, b.mlp.index, b.mlp.offsets[a->group.experts]);
        expert_mlp_backward(r, &a->mlp, &b.mlp, run_param(r, o, 0), run_param(r, o, 1));
        combine(r, a, d_tokens, b.mlp.d_result, b.row_of_slot, true);
    }
}

static const struct op_def op_combine = {.name = "expert_combine",
                                         .forward = combine_forward,
                                         .backward = combine_backward,
                                         .backward_reads_in = 1u << IN_TOKENS | 1u << IN_SCALES |
                                                              1u << IN_ORDER | 1u << IN_ALL_OFFSETS,
                                         .grad_in = 1u << IN_RESULT | 1u << IN_TOKENS | 1u << IN_SCALES,
                                         .classes = OP_COMMUNICATION};

int op_add_expert_combine(struct program *p, const struct model *m, const struct expert_gathered *e,
                          const int results[2]) {
    struct gather_attributes a = attributes_of(m, (struct routing){.shape = moe_attributes_of(m).shape});
    struct buffers b;
    a.mlp = expert_mlp_of(p, m, results[0]);
    int in[] = {results[1], e->x, e->local.probs, e->local.dispatch, e->offsets};
    int op = program_op(p, &op_combine, "expert_combine", in, 5, &a, sizeof(a));
    for (int i = 0; i < 2; i++) program_share_param(p, op, p->ops[p->tensors[results[i]].producer].param[0]);
    int y = program_output(p, op, "expert_sum", m->dtype, 3,
                           (int64_t[]){model_rows(m), m->micro_batch, m->hidden}, true);
    for (int backward = 0; backward < 2; backward++) {
        int64_t words = (int64_t)carve(&b, &a, 0, backward) / 4;
        int t = program_output(p, op, "combine_scratch", DTYPE_F32, 1, &words, false);
        p->tensors[t].is_partly_unused = true;
    }
    if (!a.group.more_rows) {
        p->ops[op].backward_reads_in &= ~(1u << IN_TOKENS);
        p->ops[op].grad_in &= ~(1u << IN_TOKENS);
        p->ops[op].forward_skips_in = 1u << IN_TOKENS;
    }
    p->ops[op].backward_scratch_out = 1u << OUT_BACKWARD_SCRATCH;
    for (int i = 0; i < 2; i++) p->tensors[results[i]].is_partly_unused = true;
    return y;
}
