/* The router's ops: logits and the choice of experts. Routing (probabilities, choices, rows, counts) is
 * pinned: it is decided in the first forward and never again, so recomputation cannot change it or the shapes
 * that follow from it. */
#include "core/model/ops/moe.h"
#include "core/model/ops.h"
#include "core/model/run.h"

struct moe_attributes moe_attributes_of(const struct model *m) {
    return (struct moe_attributes){.shape = {.tokens = model_rows(m) * m->micro_batch,
                                             .experts = m->moe.experts,
                                             .topk = m->moe.topk,
                                             .group_count = m->moe.group_count,
                                             .group_topk = m->moe.group_topk,
                                             .count_sets = m->moe.balance_by_sequence ? m->micro_batch : 1,
                                             .score = m->moe.score,
                                             .pre_softmax = m->moe.pre_softmax,
                                             .scaling = m->moe.scaling},
                                   .balance_coeff = m->moe.balance_coeff,
                                   .z_coeff = m->moe.z_coeff,
                                   .hidden = m->hidden};
}

/* ---- router: logits in fp32 from the hidden states ---- */

static void router_forward(struct run *r, const struct op *o) {
    const struct moe_attributes *a = o->attributes;
    enum dtype dtype = run_info(r, o->in[0])->dtype;
    KERNEL_CALL(gemm, r->stream, .c = run_tensor(r, o->out[0]), .a = run_tensor(r, o->in[0]),
                .b = run_param(r, o, 0)->plain, .trans_b = true, .m = a->shape.tokens, .n = a->shape.experts,
                .k = a->hidden, .dtype = dtype, .c_dtype = DTYPE_F32);
}

static void router_backward(struct run *r, const struct op *o) {
    const struct moe_attributes *a = o->attributes;
    const struct param_view *w = run_param(r, o, 0);
    KERNEL_CALL(router_backward, r->stream, .dx = run_grad(r, o->in[0]), .dweight = w->grad,
                .dlogits = run_grad(r, o->out[0]), .x = run_tensor(r, o->in[0]), .weight = w->plain,
                .tokens = a->shape.tokens, .experts = a->shape.experts, .hidden = a->hidden,
                .accumulate_dx = run_accumulates(r, 0), .accumulate_dweight = run_param_accumulates(w),
                .dtype = run_info(r, o->in[0])->dtype);
}

static const struct op_def op_router = {"router", router_forward, router_backward, .backward_reads_in = 1,
                                        .grad_in = 1};

int op_add_router(struct program *p, const struct model *m, int x) {
    struct moe_attributes a = moe_attributes_of(m);
    int op = program_op(p, &op_router, "router", &x, 1, &a, sizeof(a));
    program_param(p, op,
                  (struct param_info){.name = "decoder.layers.%d.mlp.router.weight",
                                      .per_layer = true,
                                      .num_dims = 2,
                                      .dims = {m->moe.experts, m->hidden},
                                      .sum_over_tensor = model_splits_sequence(m),
                                      .init = PARAM_INIT_NORMAL,
                                      .init_std = m->init_std,
                                      .forms = PARAM_FORM_PLAIN});
    return program_output(p, op, "router_logits", DTYPE_F32, 2, (int64_t[]){a.shape.tokens, a.shape.experts},
                          true);
}

/* ---- route: who goes where ---- */

static void route_forward(struct run *r, const struct op *o) {
    const struct moe_attributes *a = o->attributes;
    const struct router_shape *s = &a->shape;
    int32_t *dispatch = run_tensor(r, o->out[2]);
    bool counts = r->training && run_is_first_forward(r) && !run_is_meta(r);
    KERNEL_CALL(route_forward, r->stream, .probs = run_tensor(r, o->out[0]),
                .experts = run_tensor(r, o->out[1]), .offsets = dispatch,
                .row_of_slot = moe_row_of_slot(dispatch, s), .slot_of_row = moe_slot_of_row(dispatch, s),
                .counts = run_tensor(r, o->out[3]),
                .balance_sum = counts && a->balance_coeff != 0 ? &r->router_losses->balance : NULL,
                .z_sum = counts && a->z_coeff != 0 ? &r->router_losses->z : NULL,
                .logits = run_tensor(r, o->in[0]), .shape = *s);
}

static void route_backward(struct run *r, const struct op *o) {
    const struct moe_attributes *a = o->attributes;
    KERNEL_CALL(route_backward, r->stream, .dlogits = run_grad(r, o->in[0]), .dprobs = run_grad(r, o->out[0]),
                .logits = run_tensor(r, o->in[0]), .experts = run_tensor(r, o->out[1]),
                .counts = run_tensor(r, o->out[3]), .shape = a->shape,
                .balance_scale = a->balance_coeff * r->aux_grad_scale,
                .z_scale = a->z_coeff * r->aux_grad_scale);
}

static const struct op_def op_route = {
    "route",     route_forward, route_backward, .backward_reads_in = 1, .backward_reads_out = 2 | 8,
    .grad_in = 1};

struct routing op_add_route(struct program *p, const struct model *m, int logits) {
    struct moe_attributes a = moe_attributes_of(m);
    const struct router_shape *s = &a.shape;
    int op = program_op(p, &op_route, "route", &logits, 1, &a, sizeof(a));
    struct routing r = {.shape = a.shape};
    int64_t per_token[2] = {s->tokens, s->topk}, counts[2] = {s->count_sets, s->experts};
    int64_t entries = moe_offsets_space(s) + 2 * moe_slots(s);
    r.probs = program_output(p, op, "routing_probs", DTYPE_F32, 2, per_token, true);
    r.experts = program_output(p, op, "routing_experts", DTYPE_I32, 2, per_token, false);
    r.dispatch = program_output(p, op, "routing_dispatch", DTYPE_I32, 1, &entries, false);
    int count = program_output(p, op, "routing_counts", DTYPE_I32, 2, counts, false);
    int pinned[] = {r.probs, r.experts, r.dispatch, count};
    for (int i = 0; i < 4; i++) p->tensors[pinned[i]].is_pinned = true;
    return r;
}
