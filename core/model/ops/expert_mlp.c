/* The experts' products and activation on a few rows, with every intermediate in scratch; see expert.h. */
#include "core/model/ops/expert.h"

struct expert_mlp expert_mlp_of(const struct program *p, const struct model *m, int fc1) {
    struct expert_group g = expert_group_of(m);
    return (struct expert_mlp){.experts = g.experts,
                               .rows = g.more_rows,
                               .hidden = m->hidden,
                               .up = p->tensors[fc1].dims[1],
                               .ffn = model_expert_ffn(m),
                               .kind = m->activation,
                               .dtype = m->dtype};
}

void expert_mlp_carve(struct expert_mlp_buffers *b, const struct expert_mlp *a, uintptr_t *at,
                      bool backward) {
    size_t size = dtype_bytes(a->dtype);
    b->offsets = expert_carve(at, a->experts + 1, sizeof(*b->offsets));
    b->rows = expert_carve(at, a->rows * a->hidden, size);
    b->up = expert_carve(at, a->rows * a->up, size);
    b->act = expert_carve(at, a->rows * a->ffn, size);
    if (!backward) return;
    b->d_result = expert_carve(at, a->rows * a->hidden, size);
    b->d_act = expert_carve(at, a->rows * a->ffn, size);
    b->d_up = expert_carve(at, a->rows * a->up, size);
}

/* c = rows W^T, or (backward) c = rows W. */
static void product(struct run *r, const struct expert_mlp *a, const struct expert_mlp_buffers *b,
                    const struct param_view *w, void *c, const void *rows, int64_t in, int64_t out,
                    bool backward) {
    const void *packed = backward ? w->packed_backward : w->packed_forward;
    KERNEL_CALL(grouped_gemm, r->stream, .c = c, .a = rows, .b = packed ? packed : w->plain,
                .offsets = b->offsets, .groups = a->experts, .rows = a->rows, .n = backward ? in : out,
                .k = backward ? out : in, .trans_b = !backward && !packed, .b_packed = packed != NULL,
                .dtype = a->dtype, .c_dtype = a->dtype);
}

static void weight_gradient(struct run *r, const struct expert_mlp *a, const struct expert_mlp_buffers *b,
                            const struct param_view *w, const void *dy, const void *x, int64_t in,
                            int64_t out) {
    KERNEL_CALL(grouped_gemm, r->stream, .c = w->grad, .a = dy, .b = x, .offsets = b->offsets,
                .groups = a->experts, .rows = a->rows, .n = out, .k = in, .sums_rows = true,
                .accumulate = run_param_accumulates(w), .dtype = a->dtype, .c_dtype = DTYPE_F32);
}

static void up_and_activation(struct run *r, const struct expert_mlp *a, const struct expert_mlp_buffers *b,
                              const struct param_view *fc1) {
    product(r, a, b, fc1, b->up, b->rows, a->hidden, a->up, false);
    KERNEL_CALL(scaled_activation_forward, r->stream, .y = b->act, .x = b->up, .scales = b->scales,
                .index = b->index, .rows = b->offsets[a->experts], .cols = a->ffn, .kind = a->kind,
                .dtype = a->dtype);
}

void expert_mlp_forward(struct run *r, const struct expert_mlp *a, const struct expert_mlp_buffers *b,
                        const struct param_view *fc1, const struct param_view *fc2) {
    up_and_activation(r, a, b, fc1);
    product(r, a, b, fc2, b->rows, b->act, a->ffn, a->hidden, false);
}

void expert_mlp_backward(struct run *r, const struct expert_mlp *a, const struct expert_mlp_buffers *b,
                         const struct param_view *fc1, const struct param_view *fc2) {
    up_and_activation(r, a, b, fc1);
    product(r, a, b, fc2, b->d_act, b->d_result, a->ffn, a->hidden, true);
    weight_gradient(r, a, b, fc2, b->d_result, b->act, a->ffn, a->hidden);
    KERNEL_CALL(scaled_activation_backward, r->stream, .dx = b->d_up, .dscales = b->d_scales, .dy = b->d_act,
                .x = b->up, .scales = b->scales, .index = b->index, .rows = b->offsets[a->experts],
                .cols = a->ffn, .kind = a->kind, .dtype = a->dtype);
    product(r, a, b, fc1, b->d_result, b->d_up, a->hidden, a->up, true);
    weight_gradient(r, a, b, fc1, b->d_up, b->rows, a->hidden, a->up);
}
