/* The plan as text and JSON: the memory table, what recompute saves and costs, the trace of ops. */
#include "core/plan.h"
#include "core/base/json.h"
#include "core/base/mem.h"
#include "core/base/str.h"
#include "recompute/planned.h"
#include <string.h>

/* ---- bytes by module ---- */

enum { MAX_LABELS = 32 };
struct ledger {
    int count;
    const char *label[MAX_LABELS];
    size_t bytes[MAX_LABELS];
};

static void ledger_add(struct ledger *l, const char *label, size_t bytes) {
    int i = 0;
    while (i < l->count && strcmp(l->label[i], label)) i++;
    if (i == MAX_LABELS) i = MAX_LABELS - 1; /* never reached: there are fewer modules than labels */
    if (i == l->count) l->label[l->count++] = label;
    l->bytes[i] += bytes;
}

/* The innermost module that is not the layer itself, or the op that made the tensor. */
static const char *label_of(const struct program *p, const struct tensor_info *t) {
    const struct op *o = &p->ops[t->producer];
    for (int s = o->scope; s >= 0; s = p->scopes[s].parent)
        if (p->scopes[s].module != MODULE_layer) return recompute_module_info(p->scopes[s].module)->name;
    return o->name;
}

static void ledger_add_frame(struct ledger *l, const struct plan *plan, const struct plan_segment *s,
                             size_t live_end) {
    const struct program *p = &plan->compiled[s->compiled].program;
    if (s->frame_offset > live_end) return;
    if (p->input >= 0) ledger_add(l, "layer_input", s->frame_offset - s->input_offset);
    if (s->end_offset > live_end) return;
    for (int t = 0; t < p->num_tensors; t++)
        if (p->tensors[t].home == HOME_KEEP)
            ledger_add(l, label_of(p, &p->tensors[t]), align_up(p->tensors[t].bytes));
}

static void ledger_add_slot(struct ledger *l, const struct plan *plan, const struct plan_chunk *chunk,
                            int slot) {
    size_t end = plan->peak_live_end[slot], held = 0;
    for (int i = chunk->first_segment; i < chunk->first_segment + chunk->num_segments; i++) {
        ledger_add_frame(l, plan, &plan->segments[i], end);
        held += plan->compiled[plan->segments[i].compiled].weight.work_bytes;
    }
    if (held && end == chunk->slot_bytes) ledger_add(l, "held_for_weight_gradients", held);
}

/* Activation memory at the peak, by module; adds up to the activations category. */
static struct ledger activations_by_module(const struct plan *plan) {
    struct ledger l = {0};
    for (int slot = 0; slot < plan->num_slots; slot++)
        if (plan->peak_live_end[slot]) ledger_add_slot(&l, plan, &plan->chunks[plan->peak_chunk[slot]], slot);
    size_t holes = plan->peak_frame_bytes;
    for (int i = 0; i < l.count; i++) holes -= l.bytes[i];
    if (holes) ledger_add(&l, "empty_slots", holes); /* below a slot that is in use */
    if (plan->fixed_bytes[CATEGORY_ACTIVATIONS])
        ledger_add(&l, "hidden_gradient", plan->fixed_bytes[CATEGORY_ACTIVATIONS]);
    ledger_add(&l, "work", plan->peak_work_bytes);
    return l;
}

static size_t category_bytes(const struct plan *plan, enum plan_category c) {
    return plan->fixed_bytes[c] + (c == CATEGORY_ACTIVATIONS ? plan->activation_bytes : 0);
}

static const char *segment_label(const struct plan *plan, int segment, char *buffer, size_t capacity) {
    const struct plan_segment *s = &plan->segments[segment];
    if (s->kind == SEGMENT_EMBEDDING) return "embedding";
    if (s->kind == SEGMENT_HEAD) return "head";
    if (s->kind == SEGMENT_MTP) {
        snprintf(buffer, capacity, "multi-token prediction %d", s->first_layer + 1);
        return buffer;
    }
    if (s->num_layers == 1)
        snprintf(buffer, capacity, "layer %d", s->first_layer);
    else
        snprintf(buffer, capacity, "layers %d-%d", s->first_layer, s->first_layer + s->num_layers - 1);
    return buffer;
}

void plan_print_memory(const struct plan *plan, int rank, FILE *out) {
    char size[32], name[48];
    struct ledger modules = activations_by_module(plan);
    fprintf(out, "memory plan of rank %d (%lld parameters", rank, (long long)plan->num_parameters);
    if (plan->num_expert_parameters)
        fprintf(out, ", of which %lld of experts", (long long)plan->num_expert_parameters);
    fprintf(out, "):\n");
    for (int c = 0; c < CATEGORY_COUNT; c++)
        fprintf(out, "  %-28s %16zu bytes  %12s\n", plan_category_name(c), category_bytes(plan, c),
                str_format_bytes(size, sizeof(size), (double)category_bytes(plan, c)));
    for (int i = 0; i < modules.count; i++)
        fprintf(out, "    %-26s %16zu bytes  %12s\n", modules.label[i], modules.bytes[i],
                str_format_bytes(size, sizeof(size), (double)modules.bytes[i]));
    fprintf(out, "  %-28s %16zu bytes  %12s\n", "peak", plan->arena_bytes,
            str_format_bytes(size, sizeof(size), (double)plan->arena_bytes));
    fprintf(out, "  the activation peak is in %s of %s, %d micro-batch%s in flight\n",
            plan->peak_kind == ACTION_FORWARD ? "forward" : "backward",
            segment_label(plan, plan->peak_segment, name, sizeof(name)), plan->num_slots,
            plan->num_slots == 1 ? "" : "es");
    fprintf(out, "  one step: %.4g matrix FLOPs, of which %.4g (%.1f%%) are recomputed\n",
            plan->step_gemm_flops, plan->step_rerun_gemm_flops,
            plan->step_gemm_flops > 0 ? 100 * plan->step_rerun_gemm_flops / plan->step_gemm_flops : 0);
}

/* ---- what recompute saves and costs ---- */

/* The same plan with another policy. */
static void plan_with(const struct plan *plan, struct recompute_policy policy, struct plan *out) {
    struct plan_request request = plan->request;
    request.recompute = policy;
    plan_build(&request, out);
}

static void print_choice(const struct plan *plan, const struct plan *without, const char *name, FILE *out) {
    char saved[32];
    double less = (double)without->arena_bytes - (double)plan->arena_bytes;
    double share = 100 * less / (double)without->arena_bytes;
    double cost = without->step_gemm_flops > 0
                      ? 100 * (plan->step_gemm_flops - without->step_gemm_flops) / without->step_gemm_flops
                      : 0;
    fprintf(out, "  %-12s saves %12s of the peak (%.1f%%), costs %.4g more matrix FLOPs per step (%.1f%%)\n",
            name, str_format_bytes(saved, sizeof(saved), less), share,
            plan->step_gemm_flops - without->step_gemm_flops, cost);
    if (share < 1 && strcmp(name, "the plan"))
        fprintf(out,
                "warning: recomputing %s saves %.2f%% of the peak on this configuration; leave it out, or "
                "recompute "
                "something larger (see docs/recompute.md)\n",
                name, share);
}

static void print_list(const int64_t *items, int64_t count, FILE *out) {
    for (int64_t i = 0; i < count; i++) fprintf(out, "%s%lld", i ? " " : "", (long long)items[i]);
}

static void print_full(const struct recompute_policy *policy, FILE *out) {
    bool uniform = policy->method == RECOMPUTE_UNIFORM;
    const char *what = uniform ? "per group" : "recomputed, the others kept";
    if (policy->layer_ids) {
        fprintf(out, "recompute: full, of layers ");
        print_list(policy->layer_ids, policy->num_layer_ids, out);
        fprintf(out, "; the others kept\n");
    } else if (policy->method == RECOMPUTE_SQRT) {
        fprintf(out, "recompute: full, sqrt, groups of the square root of a chunk's layers\n");
    } else if (policy->per_stage) {
        fprintf(out, "recompute: full, %s, layers of each stage's chunks %s: ", uniform ? "uniform" : "block",
                what);
        print_list(policy->per_stage, policy->num_stages, out);
        fputc('\n', out);
    } else {
        fprintf(out, "recompute: full, %s, %d layer%s %s\n", uniform ? "uniform" : "block",
                policy->num_layers, policy->num_layers == 1 ? "" : "s", what);
    }
}

static void print_planned(const struct recompute_policy *policy, FILE *out) {
    struct str text = {0};
    recompute_planned_describe(policy->planned, policy->num_planned, 0, &text);
    fprintf(out, "recompute: as planned, %s\n", text.data);
    str_free(&text);
}

void plan_print_recompute(const struct plan *plan, FILE *out) {
    const struct recompute_policy *policy = &plan->request.recompute;
    struct plan without, with;
    if (policy->granularity == RECOMPUTE_NONE) return;
    if (policy->granularity == RECOMPUTE_FULL || policy->granularity == RECOMPUTE_PLANNED) {
        bool planned = policy->granularity == RECOMPUTE_PLANNED;
        plan_with(plan, (struct recompute_policy){.granularity = RECOMPUTE_NONE}, &without);
        if (planned)
            print_planned(policy, out);
        else
            print_full(policy, out);
        print_choice(plan, &without, planned ? "the plan" : "full", out);
        plan_free(&without);
        return;
    }
    if (policy->modules & RECOMPUTE_OPS) {
        fprintf(out, "recompute: op, all operations of a layer but%s%s%s\n",
                policy->modules & RECOMPUTE_SAVE(OP_GEMM) ? " gemm" : "",
                policy->modules & RECOMPUTE_SAVE(OP_ATTENTION) ? " attention" : "",
                policy->modules & RECOMPUTE_SAVE(OP_COMMUNICATION) ? " communication" : "");
        plan_with(plan, (struct recompute_policy){.granularity = RECOMPUTE_NONE}, &without);
        print_choice(plan, &without, "op", out);
        plan_free(&without);
        return;
    }
    fprintf(out, "recompute: selective; each module against the same plan without it\n");
    for (int m = 0; m < MODULE_COUNT; m++) {
        struct recompute_policy less = *policy;
        if (!(policy->modules >> m & 1)) continue;
        less.modules &= ~RECOMPUTE_BIT(m);
        plan_with(plan, less, &without);
        print_choice(plan, &without, recompute_module_info(m)->name, out);
        plan_free(&without);
    }
    plan_with(plan, (struct recompute_policy){.granularity = RECOMPUTE_NONE}, &with);
    print_choice(plan, &with, "together", out);
    plan_free(&with);
}

/* ---- trace ---- */

struct op_trace {
    bool reruns;
    size_t kept_bytes;
};

static struct op_trace trace_op(const struct compiled *c, int op) {
    struct op_trace t = {0};
    const struct op *o = &c->program.ops[op];
    for (int k = 0; k < o->num_out; k++)
        if (c->program.tensors[o->out[k]].home == HOME_KEEP)
            t.kept_bytes += c->program.tensors[o->out[k]].bytes;
    for (int i = 0; i < c->backward.num_instrs; i++)
        t.reruns |= c->backward.at[i].kind == INSTR_RERUN && c->backward.at[i].op == op;
    return t;
}

/* Index of op `op_in_layer` of layer `layer` of the segment, or -1 when the layer has fewer. */
static int op_of_layer(const struct program *p, int layer, int op_in_layer) {
    for (int i = 0; i < p->num_ops; i++)
        if (p->ops[i].layer == layer && op_in_layer-- == 0) return i;
    return -1;
}

/* Op `op` of a layer, counted within one layer, in the segment that holds global layer `layer`. */
static struct op_trace trace_layer_op(const struct plan *plan, int layer, int op_in_layer) {
    for (int i = 0; i < plan->num_segments; i++) {
        const struct plan_segment *s = &plan->segments[i];
        if (s->kind != SEGMENT_LAYERS || layer < s->first_layer || layer >= s->first_layer + s->num_layers)
            continue;
        const struct compiled *c = &plan->compiled[s->compiled];
        return trace_op(c, op_of_layer(&c->program, layer - s->first_layer, op_in_layer));
    }
    return (struct op_trace){0};
}

static void trace_line(const char *name, const char *verdict, size_t bytes, double flops, FILE *out) {
    fprintf(out, "  %-24s %-10s %14zu bytes kept %12.4g FLOPs\n", name, verdict, bytes, flops);
}

/* All layers of the kind of layer `first` of this rank, each op once. */
static void trace_layers(const struct plan *plan, const struct plan_segment *s, int first, FILE *out) {
    const struct model *m = &plan->request.model;
    const struct program *p = &plan->compiled[s->compiled].program;
    fprintf(out, "recompute trace of %s:\n",
            m->moe.experts == 0            ? "a layer"
            : model_layer_is_moe(m, first) ? "a layer with experts"
                                           : "a dense layer");
    for (int k = 0, op; (op = op_of_layer(p, first - s->first_layer, k)) >= 0; k++) {
        struct op_trace t = trace_layer_op(plan, first, k);
        bool alternates = false;
        for (int i = 0; i < plan->num_segments; i++) {
            const struct plan_segment *other = &plan->segments[i];
            for (int layer = other->first_layer; layer < other->first_layer + other->num_layers; layer++)
                alternates |= model_layers_are_alike(m, first, layer, 1) &&
                              trace_layer_op(plan, layer, k).reruns != t.reruns;
        }
        trace_line(p->ops[op].name,
                   alternates ? "ALTERNATE"
                   : t.reruns ? "RECOMPUTE"
                              : "SAVE",
                   t.kept_bytes, plan->costs[s->compiled].op_flops[op], out);
    }
}

void plan_print_trace(const struct plan *plan, FILE *out) {
    bool shown[2] = {false, false}; /* dense layers, layers with experts */
    for (int i = 0; i < plan->num_segments; i++) {
        const struct plan_segment *s = &plan->segments[i];
        const struct compiled *c = &plan->compiled[s->compiled];
        for (int layer = s->first_layer; layer < s->first_layer + s->num_layers; layer++) {
            bool *was_shown = &shown[model_layer_is_moe(&plan->request.model, layer)];
            if (!*was_shown) trace_layers(plan, s, layer, out);
            *was_shown = true;
        }
        if (s->kind == SEGMENT_LAYERS) continue;
        char name[48];
        fprintf(out, "recompute trace of %s%s:\n", s->kind == SEGMENT_MTP ? "" : "the ",
                segment_label(plan, i, name, sizeof(name)));
        for (int op = 0; op < c->program.num_ops; op++) {
            struct op_trace t = trace_op(c, op);
            trace_line(c->program.ops[op].name, t.reruns ? "RECOMPUTE" : "SAVE", t.kept_bytes,
                       plan->costs[s->compiled].op_flops[op], out);
        }
    }
}

/* ---- JSON ---- */

void plan_write_json(const struct plan *plan, struct str *out) {
    struct ledger modules = activations_by_module(plan);
    json_begin_object(out);
    json_key(out, "stage");
    json_integer(out, plan->request.layout.stage);
    json_key(out, "peak_allocated_bytes");
    json_unsigned(out, plan->arena_bytes);
    json_key(out, "peak_activation_bytes");
    json_unsigned(out, category_bytes(plan, CATEGORY_ACTIVATIONS));
    json_key(out, "by_category");
    json_begin_object(out);
    for (int c = 0; c < CATEGORY_COUNT; c++) {
        json_key(out, plan_category_name(c));
        json_unsigned(out, category_bytes(plan, c));
    }
    json_end_object(out);
    json_key(out, "by_module");
    json_begin_object(out);
    for (int i = 0; i < modules.count; i++) {
        json_key(out, modules.label[i]);
        json_unsigned(out, modules.bytes[i]);
    }
    json_end_object(out);
    json_key(out, "num_parameters");
    json_integer(out, plan->num_parameters);
    json_key(out, "num_expert_parameters");
    json_integer(out, plan->num_expert_parameters);
    json_key(out, "micro_batches_in_flight");
    json_integer(out, plan->num_slots);
    json_key(out, "step_flops");
    json_double(out, plan->step_gemm_flops);
    json_key(out, "step_recompute_flops");
    json_double(out, plan->step_rerun_gemm_flops);
    json_key(out, "plan_hash");
    char hash[24];
    snprintf(hash, sizeof(hash), "%016llx", (unsigned long long)plan->hash);
    json_string(out, hash);
    json_end_object(out);
}
