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

void run_instr(struct run *r, int i) {
    const struct op *o = &r->program->ops[r->code->at[i].op];
    r->at = &r->code->at[i];
    if (r->at->kind == INSTR_BACKWARD)
        o->def->backward(r, o);
    else
        o->def->forward(r, o);
}

void run_finish(struct run *r) {
    const struct program *p = r->program;
    const struct code *code = r->code;
    if (code->at[code->num_instrs - 1].kind == INSTR_BACKWARD && p->input >= 0 &&
        code->grad_place[p->input] >= 0) {
        const struct tensor_info *x = run_info(r, p->input);
        KERNEL_CALL(cast, r->stream, .dst = r->boundary_grad, .src = run_grad(r, p->input),
                    .n = (int64_t)(x->bytes / dtype_bytes(x->dtype)), .dst_dtype = x->dtype,
                    .src_dtype = x->dtype);
    }
}
