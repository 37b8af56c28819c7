#include "core/model/run.h"
#include "core/base/check.h"

void *run_tensor(const struct run *r, int tensor) {
    const struct tensor_info *t = run_info(r, tensor);
    if (tensor == r->program->input) return r->input;
    if (tensor == r->program->output) return r->output;
    return t->home == HOME_KEEP ? r->frame + t->frame_offset : r->work + r->code->work_offset[tensor];
}

void *run_grad(const struct run *r, int tensor) {
    int64_t place = r->code->grad_place[tensor];
    if (place == GRAD_AT_BOUNDARY) return r->boundary_grad;
    if (place == GRAD_IN_TENSOR) return run_tensor(r, r->code->grad_tensor[tensor]);
    CHECK(place >= 0, "%s has no gradient", run_info(r, tensor)->name);
    return r->work + place;
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

void run_code(struct run *r, const struct code *code) {
    const struct program *p = r->program;
    r->code = code;
    for (int i = 0; i < code->num_instrs; i++) {
        const struct op *o = &p->ops[code->at[i].op];
        r->at = &code->at[i];
        if (r->at->kind == INSTR_BACKWARD)
            o->def->backward(r, o);
        else
            o->def->forward(r, o);
    }
    /* the gradient of the input must end in the boundary buffer */
    if (code->at[code->num_instrs - 1].kind == INSTR_BACKWARD && p->input >= 0 &&
        code->grad_place[p->input] >= 0) {
        const struct tensor_info *x = run_info(r, p->input);
        KERNEL_CALL(cast, r->stream, .dst = r->boundary_grad, .src = run_grad(r, p->input),
                    .n = (int64_t)(x->bytes / dtype_bytes(x->dtype)), .dst_dtype = x->dtype,
                    .src_dtype = x->dtype);
    }
}
