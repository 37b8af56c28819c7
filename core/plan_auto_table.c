/* The options of every kind of layer, compiled and measured. */
#include "core/plan_auto_internal.h"
#include "core/base/mem.h"
#include "core/plan_internal.h"
#include <math.h>

static int find_kinds(const struct model *m, int *kind_of) {
    int kinds = 0;
    for (int i = 0; i < (int)m->layers; i++) {
        kind_of[i] = -1;
        for (int j = 0; j < i && kind_of[i] < 0; j++)
            if (model_layers_are_alike(m, j, i, 1)) kind_of[i] = kind_of[j];
        if (kind_of[i] < 0) kind_of[i] = kinds++;
    }
    return kinds;
}

/* The first of `length` consecutive layers of a kind, or -1. */
static int find_run(const struct auto_table *t, int num_layers, int kind, int length) {
    for (int i = 0, run = 0; i < num_layers; i++) {
        run = t->kind_of[i] == kind ? run + 1 : 0;
        if (run == length) return i - length + 1;
    }
    return -1;
}

static recompute_set modules_of(const struct model *m, int layer) {
    struct program p;
    recompute_set set = 0;
    program_init(&p);
    build_layers(&p, m, layer, 1);
    for (int i = 0; i < p.num_scopes; i++)
        if (!recompute_module_info(p.scopes[i].module)->is_internal) set |= RECOMPUTE_BIT(p.scopes[i].module);
    program_free(&p);
    return set;
}

static void add_option(struct auto_table *t, const struct plan *base, int kind, int first, int length,
                       recompute_set set) {
    if (t->num_options == t->capacity) {
        t->capacity = t->capacity ? 2 * t->capacity : 64;
        t->options = mem_realloc(t->options, (size_t)t->capacity * sizeof(*t->options), "recompute options");
    }
    struct auto_option *o = &t->options[t->num_options++];
    struct program program;
    *o = (struct auto_option){.kind = kind, .length = length, .set = set};
    program_init(&program);
    build_layers(&program, &base->request.model, first, length);
    recompute_compile(&program, set | PLAN_ALWAYS_RECOMPUTED, base->schedule->splits_backward, &o->compiled);
    plan_measure_compiled(base, &o->compiled, &o->cost);
    o->seconds = auto_cost_seconds(&o->cost);
}

static void add_kind(struct auto_table *t, const struct plan *base, int kind, int longest) {
    const struct model *m = &base->request.model;
    int layers = (int)m->layers, first = find_run(t, layers, kind, 1);
    recompute_set modules = t->modules[kind] = modules_of(m, first), set = 0;
    do {
        add_option(t, base, kind, first, 1, set);
        set = (set - modules) & modules; /* the next subset */
    } while (set);
    for (int n = 1; n <= longest; n++) {
        int at = find_run(t, layers, kind, n);
        if (at >= 0) add_option(t, base, kind, at, n, RECOMPUTE_BIT(MODULE_layer));
    }
}

double auto_cost_seconds(const struct compiled_cost *c) {
    return c->forward_seconds + c->rerun_seconds + c->backward_seconds + c->weight_seconds;
}

/* Groups longer than this only add to the peak: `slots` micro-batches keep layers / n inputs each, against n
 * layers that are brought back at once. */
static int longest_group(const struct plan *const *bases, int stages) {
    double most = 1;
    for (int r = 0; r < stages; r++)
        for (int v = 0; v < bases[r]->num_chunks; v++)
            most = fmax(most, (double)bases[r]->chunks[v].num_layers * bases[r]->chunks[v].num_slots);
    return (int)ceil(sqrt(most)) + 1;
}

void auto_table_open(struct auto_table *t, const struct plan *const *bases, int stages) {
    const struct plan *base = bases[0];
    *t = (struct auto_table){0};
    t->kind_of = mem_new_array(int, (size_t)base->request.model.layers, "recompute options");
    t->num_kinds = find_kinds(&base->request.model, t->kind_of);
    t->modules = mem_new_array(recompute_set, (size_t)t->num_kinds, "recompute options");
    t->longest = longest_group(bases, stages);
    /* With buckets that live in unit buffers a group changes the fixed part: see auto_adds_uniform. */
    t->has_groups = base->request.layout.sharding < PLAN_SHARD_GRADS;
    for (int k = 0; k < t->num_kinds; k++) add_kind(t, base, k, t->has_groups ? t->longest : 1);
}

void auto_table_close(struct auto_table *t) {
    for (int i = 0; i < t->num_options; i++) {
        recompute_free(&t->options[i].compiled);
        mem_free(t->options[i].cost.op_flops);
    }
    mem_free(t->options);
    mem_free(t->kind_of);
    mem_free(t->modules);
    *t = (struct auto_table){0};
}
