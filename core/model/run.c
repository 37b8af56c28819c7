#include "core/model/run.h"
#include "core/base/check.h"

/* Measures where memory is really taken: the highest byte that any op was handed. */
static char *handed_out(struct run *r, char *p, int tensor) {
    char *end = p + align_up(run_info(r, tensor)->bytes);
    if (end > r->high_water) r->high_water = end;
    return p;
}

void *run_tensor(struct run *r, int tensor) {
    const struct tensor_info *t = run_info(r, tensor);
    if (tensor == r->program->input) return handed_out(r, r->input, tensor);
    if (tensor == r->program->output) return handed_out(r, r->output, tensor);
    char *base = t->home == HOME_KEEP ? r->frame + t->frame_offset : r->work + r->code->work_offset[tensor];
    return handed_out(r, base, tensor);
}

void *run_grad(struct run *r, int tensor) {
    int64_t place = r->code->grad_place[tensor];
    if (place == GRAD_AT_BOUNDARY) return r->boundary_grad;
    if (place == GRAD_IN_TENSOR) return run_tensor(r, r->code->grad_tensor[tensor]);
    CHECK(place >= 0, "%s has no gradient", run_info(r, tensor)->name);
    return handed_out(r, r->work + place, tensor);
}

bool run_param_accumulates(const struct param_view *param) {
    bool written = *param->grad_written;
    *param->grad_written = true;
    return written;
}

struct rng_key run_rng(const struct run *r, const struct op *o) {
    struct rng_key key = r->rng;
    key.layer = (uint16_t)(r->first_layer + o->layer);
    key.op = o->rng_op;
    return key;
}

struct comm_request **run_request(const struct run *r) {
    return &r->requests[2 * r->at->op + instr_is_backward(r->at->kind)];
}

void run_copy(const struct run *r, void *to, const void *from, const struct tensor_info *t) {
    KERNEL_CALL(cast, r->stream, .dst = to, .src = from, .n = (int64_t)(t->bytes / dtype_bytes(t->dtype)),
                .dst_dtype = t->dtype, .src_dtype = t->dtype);
}

/* Saves what the weight gradient of `o` will read from buffers that this list reuses. */
static void hold(struct run *r, const struct op *o) {
    const struct code *w = r->weight_code;
    for (int k = 0; k < o->num_in; k++)
        if (w->work_offset[o->in[k]] != SIZE_MAX)
            run_copy(r, r->hold + w->work_offset[o->in[k]], run_tensor(r, o->in[k]), run_info(r, o->in[k]));
    run_copy(r, r->hold + w->grad_place[o->out[0]], run_grad(r, o->out[0]), run_info(r, o->out[0]));
}

void run_instr(struct run *r, int i) {
    const struct op *o = &r->program->ops[r->code->at[i].op];
    r->at = &r->code->at[i];
    switch (r->at->kind) {
    case INSTR_FORWARD:
    case INSTR_RERUN:
        o->def->forward(r, o);
        return;
    case INSTR_FORWARD_END:
    case INSTR_RERUN_END:
        o->def->forward_end(r, o);
        return;
    case INSTR_BACKWARD:
        o->def->backward(r, o);
        return;
    case INSTR_BACKWARD_END:
        o->def->backward_end(r, o);
        return;
    case INSTR_WEIGHT:
        o->def->backward_weight(r, o);
        return;
    case INSTR_HOLD:
        hold(r, o);
        return;
    }
}

void run_finish(struct run *r) {
    const struct program *p = r->program;
    const struct code *code = r->code;
    if (p->input < 0 || code->grad_place[p->input] < 0) return;
    run_copy(r, r->boundary_grad, run_grad(r, p->input), run_info(r, p->input));
}
