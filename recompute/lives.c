/* See lives.h. */
#include "recompute/lives.h"

bool lives_touches(const struct program *p, const struct instr *in, int t) {
    const struct op *o = &p->ops[in->op];
    bool is_forward = in->kind == INSTR_FORWARD || in->kind == INSTR_RERUN || in->kind == INSTR_FORWARD_END ||
                      in->kind == INSTR_RERUN_END;
    bool is_weight = in->kind == INSTR_WEIGHT || in->kind == INSTR_HOLD;
    unsigned reads_in = is_forward ? ~o->forward_skips_in : o->backward_reads_in;
    unsigned reads_out =
        is_forward ? ~o->backward_scratch_out : o->backward_reads_out | o->backward_scratch_out;
    if (in->kind == INSTR_BACKWARD && o->def->backward_weight) reads_in &= ~o->weight_reads_in;
    if (is_weight) reads_out = 0;
    for (int k = 0; k < o->num_in; k++)
        if (o->in[k] == t && (reads_in >> k & 1)) return true;
    for (int k = 0; k < o->num_out; k++)
        if (o->out[k] == t && (reads_out >> k & 1)) return true;
    return false;
}

bool lives_touches_grad(const struct program *p, const struct instr *in, int t) {
    const struct op *o = &p->ops[in->op];
    bool writes = in->kind == INSTR_BACKWARD || in->kind == INSTR_BACKWARD_END;
    if (!writes && in->kind != INSTR_WEIGHT && in->kind != INSTR_HOLD) return false;
    for (int k = 0; k < o->num_out; k++)
        if (o->out[k] == t) return true;
    for (int k = 0; writes && k < o->num_in; k++)
        if (o->in[k] == t && (o->grad_in >> k & 1)) return true;
    return false;
}
