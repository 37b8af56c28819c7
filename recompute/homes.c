/* Chooses the home of every tensor (see recompute.h for the rules). */
#include "recompute/homes.h"
#include "core/base/check.h"
#include "core/base/mem.h"

void recompute_backward_reads(const struct program *p, bool *reads) {
    for (int i = 0; i < p->num_ops; i++) {
        const struct op *o = &p->ops[i];
        for (int k = 0; k < o->num_in; k++) reads[o->in[k]] |= o->backward_reads_in >> k & 1;
        for (int k = 0; k < o->num_out; k++) reads[o->out[k]] |= o->backward_reads_out >> k & 1;
    }
}

static bool read_only_inside(const struct program *p, int tensor, int instance) {
    for (int i = 0; i < p->num_ops; i++)
        for (int k = 0; k < p->ops[i].num_in; k++)
            if (p->ops[i].in[k] == tensor && !program_inside(p, p->ops[i].scope, instance)) return false;
    return true;
}

/* By op-level selection: inside a layer, and of no class that is kept. */
static bool op_is_unsaved(const struct program *p, int op, recompute_set selected) {
    if (!(selected & RECOMPUTE_OPS) || selected & RECOMPUTE_SAVE(p->ops[op].def->classes)) return false;
    for (int s = p->ops[op].scope; s >= 0; s = p->scopes[s].parent)
        if (p->scopes[s].module == MODULE_layer) return true;
    return false;
}

bool homes_op_is_selected(const struct program *p, int op, recompute_set selected) {
    if (op_is_unsaved(p, op, selected)) return true;
    for (int s = p->ops[op].scope; s >= 0; s = p->scopes[s].parent)
        if (selected >> p->scopes[s].module & 1) return true;
    return false;
}

static bool is_dropped(const struct program *p, int tensor, recompute_set selected) {
    const struct tensor_info *t = &p->tensors[tensor];
    if (t->producer < 0 || tensor == p->output || t->is_pinned) return false;
    if (op_is_unsaved(p, t->producer, selected)) return true;
    for (int s = p->ops[t->producer].scope; s >= 0; s = p->scopes[s].parent) {
        if (!(selected >> p->scopes[s].module & 1)) continue;
        if (recompute_module_info(p->scopes[s].module)->discards_output || read_only_inside(p, tensor, s))
            return true;
    }
    return false;
}

/* need[t]: backward, or the re-run of an op that backward wants, reads t. Inputs come before outputs in the
 * list, so one walk from the last op to the first reaches every producer. */
static void mark_needed(const struct program *p, const bool *dropped, const bool *backward_reads,
                        bool *need) {
    memcpy(need, backward_reads, (size_t)p->num_tensors * sizeof(*need));
    for (int i = p->num_ops - 1; i >= 0; i--) {
        const struct op *o = &p->ops[i];
        bool rerun = false;
        for (int k = 0; k < o->num_out; k++) rerun |= need[o->out[k]] && dropped[o->out[k]];
        for (int k = 0; rerun && k < o->num_in; k++) need[o->in[k]] = true;
    }
}

/* Drops the other outputs of ops that are re-run anyway. Returns true when it dropped one. */
static bool drop_free_outputs(const struct program *p, recompute_set selected, bool *dropped,
                              const bool *need) {
    bool changed = false;
    for (int i = 0; i < p->num_ops; i++) {
        const struct op *o = &p->ops[i];
        bool rerun = false;
        for (int k = 0; k < o->num_out; k++) rerun |= dropped[o->out[k]] && need[o->out[k]];
        if (!rerun || !homes_op_is_selected(p, i, selected)) continue;
        for (int k = 0; k < o->num_out; k++)
            if (!dropped[o->out[k]] && o->out[k] != p->output && !p->tensors[o->out[k]].is_pinned)
                dropped[o->out[k]] = changed = true;
    }
    return changed;
}

size_t homes_choose(struct program *p, recompute_set selected) {
    size_t n = (size_t)p->num_tensors, frame = 0;
    bool *dropped = mem_new_array(bool, n, "homes"), *need = mem_new_array(bool, n, "homes");
    bool *backward_reads = mem_new_array(bool, n, "homes");
    recompute_backward_reads(p, backward_reads);
    for (int t = 0; t < p->num_tensors; t++) dropped[t] = is_dropped(p, t, selected);
    do {
        mark_needed(p, dropped, backward_reads, need);
    } while (drop_free_outputs(p, selected, dropped, need));
    for (int t = 0; t < p->num_tensors; t++) {
        struct tensor_info *info = &p->tensors[t];
        if (t == p->input || t == p->output) {
            info->home = HOME_GIVEN;
        } else if (info->is_pinned || (need[t] && !dropped[t])) {
            info->home = HOME_KEEP;
            info->frame_offset = frame;
            frame += align_up(info->bytes);
        } else {
            info->home = HOME_WORK;
        }
    }
    mem_free(dropped);
    mem_free(need);
    mem_free(backward_reads);
    return frame;
}
