/* Writes the forward list, the backward list with its re-runs, and the places of work tensors and gradients.
 */
#include "recompute/homes.h"
#include "recompute/grads.h"
#include "recompute/lives.h"
#include "core/base/check.h"
#include "core/base/mem.h"
#include "core/tensor/layout.h"
#include <limits.h>

static bool at_home(const struct program *p, int tensor, const bool *live) {
    enum tensor_home home = p->tensors[tensor].home;
    return home == HOME_KEEP || home == HOME_GIVEN || live[tensor];
}

static bool any_wanted(const struct program *p, const struct op *o, const bool *want, const bool *live) {
    for (int k = 0; k < o->num_out; k++)
        if (want[o->out[k]] && !at_home(p, o->out[k], live)) return true;
    return false;
}

/* While the backward list is written. */
struct writer {
    const struct program *p;
    recompute_set selected;
    struct code *code;
    bool *live;     /* WORK tensors that have been re-run */
    bool *want;     /* scratch */
    bool *has_grad; /* tensors whose gradient has been written */
    int open_rerun; /* a re-run that communicates and has not ended, or -1 */
};

/* A re-run that communicates may end late when nothing but the weight gradient of `target` reads it. */
static bool may_end_late(const struct writer *w, int op, int target) {
    const struct op *t = &w->p->ops[target], *o = &w->p->ops[op];
    for (int i = op + 1; i <= target; i++) {
        const struct op *reader = &w->p->ops[i];
        for (int k = 0; k < reader->num_in; k++) {
            if (w->p->tensors[reader->in[k]].producer != op) continue;
            if (i != target || !(t->weight_reads_in >> k & 1)) return false;
        }
    }
    return o->def->forward_end && t->def->backward_weight;
}

static void append(struct writer *w, enum instr_kind kind, int op, unsigned accumulate) {
    code_append(w->code, (struct instr){kind, op, accumulate});
}

/* Appends the re-runs that bring home everything that backward of op `target` reads: one walk back marks the
 * producers, one walk forth emits them in forward order. */
static void append_reruns(struct writer *w, int target) {
    const struct program *p = w->p;
    const struct op *t = &p->ops[target];
    memset(w->want, 0, (size_t)p->num_tensors * sizeof(*w->want));
    for (int k = 0; k < t->num_in; k++) w->want[t->in[k]] |= t->backward_reads_in >> k & 1;
    for (int k = 0; k < t->num_out; k++) w->want[t->out[k]] |= t->backward_reads_out >> k & 1;
    for (int i = target; i >= 0; i--)
        if (any_wanted(p, &p->ops[i], w->want, w->live))
            for (int k = 0; k < p->ops[i].num_in; k++) w->want[p->ops[i].in[k]] = true;
    for (int i = 0; i <= target; i++) {
        const struct op *o = &p->ops[i];
        if (!any_wanted(p, o, w->want, w->live)) continue;
        CHECK(homes_op_is_selected(p, i, w->selected), "%s would be re-run but no selected module owns it",
              o->name);
        append(w, INSTR_RERUN, i, 0);
        for (int k = 0; k < o->num_out; k++) w->live[o->out[k]] = true;
        if (!o->def->forward_end) continue;
        if (w->open_rerun < 0 && may_end_late(w, i, target))
            w->open_rerun = i;
        else
            append(w, INSTR_RERUN_END, i, 0);
    }
}

static unsigned append_backward(struct writer *w, int op) {
    const struct op *o = &w->p->ops[op];
    unsigned accumulate = 0;
    for (int k = 0; k < o->num_in; k++) {
        if (!(o->grad_in >> k & 1)) continue;
        if (w->has_grad[o->in[k]]) accumulate |= 1u << k;
        w->has_grad[o->in[k]] = true;
    }
    append(w, INSTR_BACKWARD, op, accumulate);
    return accumulate;
}

/* Backward of op i, and of the op before it when that one communicates the gradient that i has just made: its
 * communication then runs beside i's weight gradient. Returns the next op to do. */
static int write_backward_of(struct writer *w, int i, struct code *weight) {
    const struct op *o = &w->p->ops[i];
    append_reruns(w, i);
    unsigned accumulate = append_backward(w, i);
    int next = i - 1;
    if (!o->def->backward_weight) {
        if (o->def->backward_end) append(w, INSTR_BACKWARD_END, i, accumulate);
        return next;
    }
    bool beside = next >= 0 && o->num_in && w->p->tensors[o->in[0]].producer == next &&
                  w->p->ops[next].def->backward_end;
    if (beside) {
        append_reruns(w, next);
        accumulate = append_backward(w, next);
    }
    if (w->open_rerun >= 0) append(w, INSTR_RERUN_END, w->open_rerun, 0);
    w->open_rerun = -1;
    append(w, weight ? INSTR_HOLD : INSTR_WEIGHT, i, 0);
    if (weight) code_append(weight, (struct instr){INSTR_WEIGHT, i, 0});
    if (o->def->backward_end) append(w, INSTR_BACKWARD_END, i, 0);
    if (beside) append(w, INSTR_BACKWARD_END, next, accumulate);
    return beside ? next - 1 : next;
}

/* With `weight`, gradients of parameters go to that list and what they read is held. */
static void write_backward(const struct program *p, struct code *c, struct code *weight,
                           recompute_set selected) {
    size_t n = (size_t)p->num_tensors;
    struct writer w = {.p = p,
                       .selected = selected,
                       .code = c,
                       .live = mem_new_array(bool, n, "backward list"),
                       .want = mem_new_array(bool, n, "backward list"),
                       .has_grad = mem_new_array(bool, n, "backward list"),
                       .open_rerun = -1};
    for (int i = p->num_ops - 1; i >= 0;) i = write_backward_of(&w, i, weight);
    mem_free(w.live);
    mem_free(w.want);
    mem_free(w.has_grad);
}

static void write_forward(const struct program *p, struct code *c) {
    for (int i = 0; i < p->num_ops; i++) {
        code_append(c, (struct instr){INSTR_FORWARD, i, 0});
        if (p->ops[i].def->forward_end) code_append(c, (struct instr){INSTR_FORWARD_END, i, 0});
    }
}

/* What the weight list reads lies in the hold area: the gradients of outputs, and inputs that are not kept.
 */
static void lay_out_weight(const struct program *p, struct code *weight) {
    for (int i = 0; i < weight->num_instrs; i++) {
        const struct op *o = &p->ops[weight->at[i].op];
        for (int k = 0; k < o->num_in; k++) {
            int t = o->in[k];
            if (p->tensors[t].home != HOME_WORK || weight->work_offset[t] != SIZE_MAX) continue;
            weight->work_offset[t] = weight->work_bytes;
            weight->work_bytes += align_up(p->tensors[t].bytes);
        }
        weight->grad_place[o->out[0]] = (int64_t)weight->work_bytes;
        weight->work_bytes += align_up(p->tensors[o->out[0]].bytes);
    }
}

/* Live range of each WORK tensor while `c` runs: from the instruction that makes it to the last that reads
 * it. */
static int work_ranges(const struct program *p, struct code *c, struct layout_block *blocks) {
    int count = 0;
    for (int t = 0; t < p->num_tensors; t++) {
        if (p->tensors[t].home != HOME_WORK) continue;
        int first = INT_MAX, last = -1;
        for (int i = 0; i < c->num_instrs; i++) {
            if (!lives_touches(p, &c->at[i], t)) continue;
            if (first == INT_MAX) first = i;
            last = i;
        }
        if (last >= 0)
            blocks[count++] = (struct layout_block){first, last, p->tensors[t].bytes, &c->work_offset[t]};
    }
    return count;
}

static void lay_out(const struct program *p, struct code *c, bool with_grads) {
    struct layout_block *blocks = mem_new_array(struct layout_block, 2 * (size_t)p->num_tensors, "layout");
    struct grad_classes grads;
    int count = work_ranges(p, c, blocks);
    if (with_grads) {
        grads_share(&grads, p, c);
        count += grads_ranges(&grads, p, blocks + count);
    }
    c->work_bytes = layout_place(blocks, count);
    if (with_grads) grads_finish(&grads, p, c);
    mem_free(blocks);
}

void recompute_compile(struct program *program, recompute_set selected, bool split, struct compiled *out) {
    *out = (struct compiled){.program = *program, .selected = selected};
    *program = (struct program){0};
    struct program *p = &out->program;
    out->frame_bytes = homes_choose(p, selected);
    code_init(&out->forward, p->num_tensors);
    code_init(&out->backward, p->num_tensors);
    code_init(&out->weight, p->num_tensors);
    write_forward(p, &out->forward);
    write_backward(p, &out->backward, split ? &out->weight : NULL, selected);
    lay_out(p, &out->forward, false);
    lay_out(p, &out->backward, true);
    if (split) lay_out_weight(p, &out->weight);
}

void recompute_free(struct compiled *c) {
    program_free(&c->program);
    code_free(&c->forward);
    code_free(&c->backward);
    code_free(&c->weight);
}
