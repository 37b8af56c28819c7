/* Writes the forward list, the backward list with its re-runs, and the places of work tensors and gradients.
 */
#include "recompute/homes.h"
#include "recompute/grads.h"
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

/* Appends the re-runs that bring home everything that backward of op `target` reads: one walk back marks the
 * producers, one walk forth emits them in forward order. */
static void append_reruns(const struct program *p, struct code *c, int target, recompute_set selected,
                          bool *live, bool *want) {
    const struct op *t = &p->ops[target];
    memset(want, 0, (size_t)p->num_tensors * sizeof(*want));
    for (int k = 0; k < t->num_in; k++) want[t->in[k]] |= t->backward_reads_in >> k & 1;
    for (int k = 0; k < t->num_out; k++) want[t->out[k]] |= t->backward_reads_out >> k & 1;
    for (int i = target; i >= 0; i--)
        if (any_wanted(p, &p->ops[i], want, live))
            for (int k = 0; k < p->ops[i].num_in; k++) want[p->ops[i].in[k]] = true;
    for (int i = 0; i <= target; i++) {
        const struct op *o = &p->ops[i];
        if (!any_wanted(p, o, want, live)) continue;
        CHECK(homes_op_is_selected(p, i, selected), "%s would be re-run but no selected module owns it",
              o->name);
        code_append(c, (struct instr){INSTR_RERUN, i, 0});
        for (int k = 0; k < o->num_out; k++) live[o->out[k]] = true;
    }
}

static void write_backward(const struct program *p, struct code *c, recompute_set selected) {
    size_t n = (size_t)p->num_tensors;
    bool *live = mem_new_array(bool, n, "backward list"), *want = mem_new_array(bool, n, "backward list");
    bool *has_grad = mem_new_array(bool, n, "backward list");
    for (int i = p->num_ops - 1; i >= 0; i--) {
        const struct op *o = &p->ops[i];
        struct instr instr = {INSTR_BACKWARD, i, 0};
        append_reruns(p, c, i, selected, live, want);
        for (int k = 0; k < o->num_in; k++) {
            if (!(o->grad_in >> k & 1)) continue;
            if (has_grad[o->in[k]]) instr.accumulate |= 1u << k;
            has_grad[o->in[k]] = true;
        }
        code_append(c, instr);
    }
    mem_free(live);
    mem_free(want);
    mem_free(has_grad);
}

/* Live range of each WORK tensor while `c` runs: from the instruction that makes it to the last that reads
 * it. */
static int work_ranges(const struct program *p, struct code *c, struct layout_block *blocks) {
    int count = 0;
    for (int t = 0; t < p->num_tensors; t++) {
        if (p->tensors[t].home != HOME_WORK) continue;
        int first = INT_MAX, last = -1;
        for (int i = 0; i < c->num_instrs; i++) {
            const struct op *o = &p->ops[c->at[i].op];
            bool backward = c->at[i].kind == INSTR_BACKWARD, used = false;
            for (int k = 0; k < o->num_out; k++)
                used |= o->out[k] == t && (!backward || (o->backward_reads_out >> k & 1));
            for (int k = 0; k < o->num_in; k++)
                used |= o->in[k] == t && (!backward || (o->backward_reads_in >> k & 1));
            if (!used) continue;
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

void recompute_compile(struct program *program, recompute_set selected, struct compiled *out) {
    *out = (struct compiled){.program = *program, .selected = selected};
    *program = (struct program){0};
    struct program *p = &out->program;
    out->frame_bytes = homes_choose(p, selected);
    code_init(&out->forward, p->num_tensors);
    code_init(&out->backward, p->num_tensors);
    for (int i = 0; i < p->num_ops; i++) code_append(&out->forward, (struct instr){INSTR_FORWARD, i, 0});
    write_backward(p, &out->backward, selected);
    lay_out(p, &out->forward, false);
    lay_out(p, &out->backward, true);
}

void recompute_free(struct compiled *c) {
    program_free(&c->program);
    code_free(&c->forward);
    code_free(&c->backward);
}
