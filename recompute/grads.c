#include "recompute/grads.h"
#include "core/base/check.h"
#include "core/base/mem.h"
#include <limits.h>

static bool writes_grads(enum instr_kind kind) {
    return kind == INSTR_BACKWARD || kind == INSTR_BACKWARD_END;
}

static bool reads_grads(enum instr_kind kind) {
    return writes_grads(kind) || kind == INSTR_WEIGHT || kind == INSTR_HOLD;
}

/* True when every gradient write to tensor `written` after instruction `now` comes after `member` was last
 * read. */
static bool writes_spare(const struct grad_classes *g, const struct program *p, const struct code *c,
                         int written, int member, int now) {
    for (int i = now + 1; i < c->num_instrs; i++) {
        if (!writes_grads(c->at[i].kind)) continue;
        const struct op *o = &p->ops[c->at[i].op];
        for (int k = 0; k < o->num_in; k++)
            if (o->in[k] == written && (o->grad_in >> k & 1) && i <= g->last_read[member]) return false;
    }
    return true;
}

static bool may_share(const struct grad_classes *g, const struct program *p, const struct code *c, int input,
                      int output, int now) {
    if (g->class_of[output] < 0 || p->tensors[input].bytes != p->tensors[output].bytes) return false;
    for (int m = 0; m < p->num_tensors; m++) {
        if (g->class_of[m] != g->class_of[output] || m == output || g->last_read[m] <= now) continue;
        if (!writes_spare(g, p, c, input, m, now) || !writes_spare(g, p, c, m, input, now)) return false;
    }
    return true;
}

static bool lives_elsewhere(const struct program *p, int tensor) {
    for (int i = 0; i < p->num_ops; i++)
        if (p->ops[i].grad_of_in0_lives_in >= 0 && p->ops[i].in[0] == tensor) return true;
    return false;
}

static void touch(struct grad_classes *g, int tensor, int instant) {
    int class = g->class_of[tensor];
    if (class < 0) return;
    if (instant < g->first[class]) g->first[class] = instant;
    if (instant > g->last[class]) g->last[class] = instant;
}

/* The first write of an input's gradient by op o decides its class: the output's, or one of its own. */
static void give_class(struct grad_classes *g, const struct program *p, const struct code *c, int instant,
                       int k) {
    const struct instr *in = &c->at[instant];
    const struct op *o = &p->ops[in->op];
    int t = o->in[k];
    if (in->accumulate >> k & 1 || g->class_of[t] >= 0 || lives_elsewhere(p, t)) return;
    if (o->passes_grad >> k & 1 && may_share(g, p, c, t, o->out[0], instant))
        g->class_of[t] = g->class_of[o->out[0]];
    else
        g->class_of[t] = t;
}

void grads_share(struct grad_classes *g, const struct program *p, const struct code *c) {
    size_t n = (size_t)p->num_tensors;
    *g = (struct grad_classes){.class_of = mem_new_array(int, n, "gradient classes"),
                               .last_read = mem_new_array(int, n, "gradient classes"),
                               .offset = mem_new_array(size_t, n, "gradient classes"),
                               .first = mem_new_array(int, n, "gradient classes"),
                               .last = mem_new_array(int, n, "gradient classes"),
                               .boundary_class = p->output >= 0 ? p->output : p->input};
    for (size_t t = 0; t < n; t++) g->class_of[t] = -1, g->first[t] = INT_MAX, g->last[t] = -1;
    for (int i = 0; i < c->num_instrs; i++)
        if (reads_grads(c->at[i].kind))
            for (int k = 0; k < p->ops[c->at[i].op].num_out; k++)
                g->last_read[p->ops[c->at[i].op].out[k]] = i;
    if (p->input >= 0) g->last_read[p->input] = INT_MAX;
    if (g->boundary_class >= 0) g->class_of[g->boundary_class] = g->boundary_class;
    for (int i = 0; i < c->num_instrs; i++) {
        if (!reads_grads(c->at[i].kind)) continue;
        const struct op *o = &p->ops[c->at[i].op];
        bool writes = writes_grads(c->at[i].kind);
        for (int k = 0; k < o->num_in && c->at[i].kind == INSTR_BACKWARD; k++)
            if (o->grad_in >> k & 1) give_class(g, p, c, i, k);
        for (int k = 0; k < o->num_in && writes; k++)
            if (o->grad_in >> k & 1) touch(g, o->in[k], i);
        for (int k = 0; k < o->num_out; k++) touch(g, o->out[k], i);
    }
    if (p->input >= 0) touch(g, p->input, c->num_instrs);
}

int grads_ranges(struct grad_classes *g, const struct program *p, struct layout_block *blocks) {
    int count = 0;
    for (int t = 0; t < p->num_tensors; t++)
        if (g->class_of[t] == t && t != g->boundary_class && g->last[t] >= 0)
            blocks[count++] =
                (struct layout_block){g->first[t], g->last[t], p->tensors[t].bytes, &g->offset[t]};
    return count;
}

void grads_finish(struct grad_classes *g, const struct program *p, struct code *c) {
    for (int t = 0; t < p->num_tensors; t++) {
        int class = g->class_of[t];
        if (class < 0) continue;
        c->grad_place[t] = class == g->boundary_class ? GRAD_AT_BOUNDARY : (int64_t)g->offset[class];
    }
    for (int i = 0; i < p->num_ops; i++) {
        const struct op *o = &p->ops[i];
        if (o->grad_of_in0_lives_in < 0) continue;
        CHECK(p->tensors[o->grad_of_in0_lives_in].home == HOME_KEEP, "%s: its gradient needs a kept tensor",
              o->name);
        c->grad_place[o->in[0]] = GRAD_IN_TENSOR;
        c->grad_tensor[o->in[0]] = o->grad_of_in0_lives_in;
    }
    mem_free(g->class_of);
    mem_free(g->last_read);
    mem_free(g->offset);
    mem_free(g->first);
    mem_free(g->last);
}
