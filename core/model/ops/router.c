/* The router's ops: logits and the choice of experts. Routing (probabilities, choices, rows, counts) is
 * pinned: it is decided in the first forward and never again, so recomputation cannot change it or the shapes
 * that follow from it. */
#include "core/model/ops/moe.h"
#include "core/model/ops.h"
#include "core/model/run.h"
#include <math.h>

/* As Megatron-LM rounds it; an expert is chosen by a token once, so more than all tokens it never has. */
static int64_t capacity_of(const struct model *m, int64_t tokens) {
    double even = (double)(tokens * m->moe.topk) / (double)m->moe.experts;
    double capacity = ceil(even * m->moe.capacity_factor);
    return capacity < (double)tokens ? (int64_t)capacity : tokens;
}

struct moe_attributes moe_attributes_of(const struct model *m) {
    int64_t tokens = model_rows(m) * m->micro_batch;
    return (struct moe_attributes){.shape = {.tokens = tokens,
                                             .experts = m->moe.experts,
                                             .topk = m->moe.topk,
                                             .group_count = m->moe.group_count,
                                             .group_topk = m->moe.group_topk,
                                             .count_sets = m->moe.balance_by_sequence ? m->micro_batch : 1,
                                             .score = m->moe.score,
                                             .pre_softmax = m->moe.pre_softmax,
                                             .scaling = m->moe.scaling,
                                             .capacity = capacity_of(m, tokens),
                                             .drops_by_position = m->moe.drops_by_position,
                                             .pads = m->moe.pads_to_capacity,
                                             .parts = m->seq / model_rows(m)},
                                   .balance_coeff = m->moe.balance_coeff,
                                   .z_coeff = m->moe.z_coeff,
                                   .balance_globally = m->moe.balance_globally,
                                   .hidden = m->hidden};
}

/* Which tokens of the whole micro-batch this rank's rows are. */
struct token_pieces {
    int count;
    struct model_piece at[MODEL_MAX_PIECES];
};

static struct token_pieces token_pieces_of(const struct model *m) {
    struct token_pieces t;
    t.count = model_pieces(m, false, t.at);
    for (int i = 0; i < t.count; i++) {
        t.at[i].first *= m->micro_batch;
        t.at[i].global_first *= m->micro_batch;
        t.at[i].count *= m->micro_batch;
    }
    return t;
}

/* ---- jitter of the router's input: like a dropout mask a function, so backward reads nothing ---- */

struct jitter_attributes {
    struct token_pieces tokens;
    int64_t hidden;
    float eps;
};

static void jitter(struct run *r, const struct op *o, void *y, const void *x, bool accumulate) {
    const struct jitter_attributes *a = o->attributes;
    enum dtype dtype = run_info(r, o->out[0])->dtype;
    for (int i = 0; i < a->tokens.count; i++) {
        const struct model_piece *piece = &a->tokens.at[i];
        KERNEL_CALL(
            router_jitter, r->stream, .y = dtype_at(y, dtype, piece->first * a->hidden),
            .x = dtype_at((void *)(uintptr_t)x, dtype, piece->first * a->hidden),
            .n = piece->count * a->hidden, .first_element = (uint64_t)(piece->global_first * a->hidden),
            .eps = r->training ? a->eps : 0, .accumulate = accumulate, .key = run_rng(r, o), .dtype = dtype);
    }
}

static void jitter_forward(struct run *r, const struct op *o) {
    jitter(r, o, run_tensor(r, o->out[0]), run_tensor(r, o->in[0]), false);
}

static void jitter_backward(struct run *r, const struct op *o) {
    jitter(r, o, run_grad(r, o->in[0]), run_grad(r, o->out[0]), run_accumulates(r, 0));
}

static const struct op_def op_jitter = {"router_jitter", jitter_forward, jitter_backward, .grad_in = 1};

/* Made again in backward, never kept. */
static int add_jitter(struct program *p, const struct model *m, int x) {
    struct jitter_attributes a = {token_pieces_of(m), m->hidden, m->moe.jitter};
    int outer = program_begin(p, MODULE_moe_permute);
    int op = program_op(p, &op_jitter, "router_jitter", &x, 1, &a, sizeof(a));
    program_draws_random(p, op);
    struct tensor_info t = p->tensors[x];
    int y = program_output(p, op, "router_jitter", t.dtype, t.num_dims, t.dims, true);
    program_end(p, outer);
    return y;
}

/* ---- router: logits in fp32 from the hidden states ---- */

struct router_attributes {
    struct router_shape shape;
    int64_t hidden;
    bool is_random; /* logits are replaced by random ones; gradients pass as if they were not */
    struct token_pieces pieces;
};

static void randomize(struct run *r, const struct op *o, float *logits) {
    const struct router_attributes *a = o->attributes;
    for (int i = 0; i < a->pieces.count; i++) {
        const struct model_piece *piece = &a->pieces.at[i];
        KERNEL_CALL(normal_init, r->stream, .x = logits + piece->first * a->shape.experts,
                    .n = piece->count * a->shape.experts,
                    .first_element = (uint64_t)(piece->global_first * a->shape.experts), .std = 1,
                    .key = run_rng(r, o));
    }
}

static void router_forward(struct run *r, const struct op *o) {
    const struct router_attributes *a = o->attributes;
    enum dtype dtype = run_info(r, o->in[0])->dtype;
    float *logits = run_tensor(r, o->out[0]);
    KERNEL_CALL(gemm, r->stream, .c = logits, .a = run_tensor(r, o->in[0]), .b = run_param(r, o, 0)->plain,
                .trans_b = true, .m = a->shape.tokens, .n = a->shape.experts, .k = a->hidden, .dtype = dtype,
                .c_dtype = DTYPE_F32);
    if (a->is_random) randomize(r, o, logits);
}

static void router_backward(struct run *r, const struct op *o) {
    const struct router_attributes *a = o->attributes;
    const struct param_view *w = run_param(r, o, 0);
    KERNEL_CALL(router_backward, r->stream, .dx = run_grad(r, o->in[0]), .dweight = w->grad,
                .dlogits = run_grad(r, o->out[0]), .x = run_tensor(r, o->in[0]), .weight = w->plain,
                .tokens = a->shape.tokens, .experts = a->shape.experts, .hidden = a->hidden,
                .accumulate_dx = run_accumulates(r, 0), .accumulate_dweight = run_param_accumulates(w),
                .dtype = run_info(r, o->in[0])->dtype);
}

static const struct op_def op_router = {
    "router", router_forward, router_backward, .backward_reads_in = 1, .grad_in = 1, .classes = OP_GEMM};

int op_add_router(struct program *p, const struct model *m, int x) {
    struct moe_attributes moe = moe_attributes_of(m);
    struct router_attributes a = {moe.shape, m->hidden, m->moe.random_logits, token_pieces_of(m)};
    if (m->moe.jitter > 0) x = add_jitter(p, m, x);
    int op = program_op(p, &op_router, "router", &x, 1, &a, sizeof(a));
    if (a.is_random) program_draws_random(p, op);
    program_param(p, op,
                  (struct param_info){.name = "decoder.layers.%d.mlp.router.weight",
                                      .per_layer = true,
                                      .num_dims = 2,
                                      .dims = {m->moe.experts, m->hidden},
                                      .init = PARAM_INIT_NORMAL,
                                      .init_std = m->init_std,
                                      .sum_over_tensor = model_splits_sequence(m),
                                      .forms = PARAM_FORM_PLAIN});
    return program_output(p, op, "router_logits", DTYPE_F32, 2, (int64_t[]){a.shape.tokens, a.shape.experts},
                          true);
}

/* ---- route: who goes where ---- */

static void sum_counts(struct comm *comm, int32_t *counts, int64_t n) {
    if (comm && comm_size(comm) > 1) comm_all_reduce(comm, counts, n, COMM_I32, COMM_SUM);
}

/* Counts of this micro-batch become those of all that the losses are over: the ranks of its sequences, or all
 * micro-batches of the step so far, on all ranks. Then their number follows the counts. */
static void complete_counts(struct run *r, const struct moe_attributes *a, struct router_state *state,
                            int32_t *counts) {
    int64_t experts = a->shape.experts;
    if (!a->balance_globally) {
        sum_counts(r->comms.tp_cp, counts, a->shape.count_sets * experts);
        return;
    }
    sum_counts(r->comms.tp_dp_cp, counts, experts);
    if (run_is_meta(r)) return;
    for (int64_t e = 0; e < experts; e++) counts[e] = state->seen[e] += counts[e];
    counts[experts] = ++state->batches;
}

/* What the sum over experts is multiplied by when counts are those of several micro-batches: each rank has
 * its micro-batch's share of a loss over parts * data-parallel ranks, and the step takes the mean of them. */
static double balance_factor(const struct run *r, const struct moe_attributes *a, const int32_t *counts) {
    if (!a->balance_globally || run_is_meta(r)) return 1;
    double ranks = r->comms.tp_dp_cp ? (double)comm_size(r->comms.tp_dp_cp) : (double)a->shape.parts;
    return (double)a->shape.parts / (ranks * (double)counts[a->shape.experts]);
}

static void add_losses(struct run *r, const struct op *o, struct router_state *state) {
    const struct moe_attributes *a = o->attributes;
    int32_t *counts = run_tensor(r, o->out[3]);
    struct router_losses losses = {0};
    if (a->balance_coeff != 0) complete_counts(r, a, state, counts);
    KERNEL_CALL(route_losses, r->stream, .balance_sum = a->balance_coeff != 0 ? &losses.balance : NULL,
                .z_sum = a->z_coeff != 0 ? &losses.z : NULL, .logits = run_tensor(r, o->in[0]),
                .counts = counts, .shape = a->shape);
    if (run_is_meta(r)) return;
    if (a->balance_coeff != 0) losses.balance *= balance_factor(r, a, counts);
    state->losses.balance += losses.balance;
    state->losses.z += losses.z;
    r->router_losses->balance += losses.balance;
    r->router_losses->z += losses.z;
}

static void route_forward(struct run *r, const struct op *o) {
    const struct moe_attributes *a = o->attributes;
    const struct router_shape *s = &a->shape;
    int32_t *dispatch = run_tensor(r, o->out[2]);
    struct router_state *state = run_is_meta(r) ? NULL : r->routers[o->router];
    bool counts = r->training && run_is_first_forward(r);
    KERNEL_CALL(route_forward, r->stream, .probs = run_tensor(r, o->out[0]),
                .experts = run_tensor(r, o->out[1]), .offsets = dispatch,
                .row_of_slot = moe_row_of_slot(dispatch, s), .slot_of_row = moe_slot_of_row(dispatch, s),
                .counts = run_tensor(r, o->out[3]), .tokens = state && counts ? state->tokens : NULL,
                .logits = run_tensor(r, o->in[0]), .bias = state ? state->bias : NULL, .shape = *s);
    if (counts && (a->balance_coeff != 0 || a->z_coeff != 0)) add_losses(r, o, state);
}

static void route_backward(struct run *r, const struct op *o) {
    const struct moe_attributes *a = o->attributes;
    const int32_t *counts = run_tensor(r, o->out[3]);
    double factor = a->balance_coeff != 0 ? balance_factor(r, a, counts) : 0;
    KERNEL_CALL(route_backward, r->stream, .dlogits = run_grad(r, o->in[0]), .dprobs = run_grad(r, o->out[0]),
                .logits = run_tensor(r, o->in[0]), .experts = run_tensor(r, o->out[1]),
                .row_of_slot = moe_row_of_slot(run_tensor(r, o->out[2]), &a->shape), .counts = counts,
                .shape = a->shape, .balance_scale = (float)(a->balance_coeff * r->aux_grad_scale * factor),
                .z_scale = a->z_coeff * r->aux_grad_scale);
}

static const struct op_def op_route = {
    "route",     route_forward, route_backward, .backward_reads_in = 1, .backward_reads_out = 2 | 4 | 8,
    .grad_in = 1};

struct routing op_add_route(struct program *p, const struct model *m, int logits) {
    struct moe_attributes a = moe_attributes_of(m);
    const struct router_shape *s = &a.shape;
    int op = program_op(p, &op_route, "route", &logits, 1, &a, sizeof(a));
    struct routing r = {.shape = a.shape};
    int64_t per_token[2] = {s->tokens, s->topk}, entries = moe_dispatch_entries(s);
    int64_t counts = s->count_sets * s->experts + (a.balance_globally ? 1 : 0);
    program_router(p, op,
                   (struct param_info){.name = "decoder.layers.%d.mlp.router.expert_bias",
                                       .per_layer = true,
                                       .num_dims = 1,
                                       .dims = {s->experts, 1}});
    r.probs = program_output(p, op, "routing_probs", DTYPE_F32, 2, per_token, true);
    r.experts = program_output(p, op, "routing_experts", DTYPE_I32, 2, per_token, false);
    r.dispatch = program_output(p, op, "routing_dispatch", DTYPE_I32, 1, &entries, false);
    int count = program_output(p, op, "routing_counts", DTYPE_I32, 1, &counts, false);
    int pinned[] = {r.probs, r.experts, r.dispatch, count};
    for (int i = 0; i < 4; i++) p->tensors[pinned[i]].is_pinned = true;
    p->tensors[r.probs].is_partly_unused = s->capacity > 0; /* gradients of what was dropped */
    return r;
}
