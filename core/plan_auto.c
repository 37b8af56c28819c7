/* Candidates of each stage, their exact peaks, and the choice: see plan_auto.h. */
#include "core/plan_auto.h"
#include "core/base/mem.h"
#include "core/plan_auto_internal.h"
#include "core/plan_internal.h"
#include "recompute/planned.h"
#include "recompute/solve.h"
#include <stdlib.h>
#include <string.h>

struct candidate {
    double seconds;
    int order;         /* among equals the first found */
    const int *choice; /* per layer of the stage: the option that starts there; NULL: uniform groups, built */
    int uniform;
    size_t peak; /* 0: not computed yet */
};

/* One pipeline stage; its layers are numbered chunk after chunk. */
struct stage {
    const struct plan *base; /* nothing recomputed */
    const struct auto_table *table;
    int num_layers;
    int *layer; /* -> layer of the model */
    struct solve_layer *layers;
    struct solve_front front;
    struct candidate *candidates;
    int num_candidates, capacity;
    int **plain; /* choices of plain settings */
    int num_plain;
    struct compiled *compiled; /* the base's, then the table's */
    struct plan_segment *segments;
    struct plan_chunk *chunks;
};

static size_t largest_work(const struct compiled *c) {
    return c->forward.work_bytes > c->backward.work_bytes ? c->forward.work_bytes : c->backward.work_bytes;
}

/* ---- candidates ---- */

static void add_candidate(struct stage *s, double seconds, const int *choice, int uniform, size_t peak) {
    if (s->num_candidates == s->capacity) {
        s->capacity = s->capacity ? 2 * s->capacity : 256;
        s->candidates =
            mem_realloc(s->candidates, (size_t)s->capacity * sizeof(*s->candidates), "recompute candidates");
    }
    s->candidates[s->num_candidates] = (struct candidate){seconds, s->num_candidates, choice, uniform, peak};
    s->num_candidates++;
}

static int option_of(const struct auto_table *t, int kind, recompute_set set) {
    for (int i = 0; i < t->num_options; i++)
        if (t->options[i].kind == kind && t->options[i].length == 1 && t->options[i].set == set) return i;
    return -1;
}

static double choice_seconds(const struct stage *s, const int *choice) {
    double seconds = 0;
    for (int i = 0; i < s->num_layers; i++)
        if (choice[i] >= 0) seconds += s->table->options[choice[i]].seconds;
    return seconds;
}

/* Room for one more plain choice, which belongs to the stage. */
static int *new_choice(struct stage *s) {
    s->plain = mem_realloc(s->plain, (size_t)(s->num_plain + 1) * sizeof(*s->plain), "recompute candidates");
    s->plain[s->num_plain] = mem_new_array(int, (size_t)s->num_layers + 1, "recompute candidates");
    return s->plain[s->num_plain++];
}

/* full block n: the first n layers of each chunk as a whole, the others keep everything. */
static void add_blocks(struct stage *s) {
    for (int n = 0; n <= s->num_layers; n++) {
        int *choice = new_choice(s);
        for (int i = 0, in_chunk = 0; i < s->num_layers; i++) {
            in_chunk = s->layers[i].first ? 0 : in_chunk + 1;
            recompute_set set = in_chunk < n ? RECOMPUTE_BIT(MODULE_layer) : 0;
            choice[i] = option_of(s->table, s->layers[i].kind, set);
        }
        add_candidate(s, choice_seconds(s, choice), choice, 0, 0);
    }
}

/* selective: a set of modules, of which each kind of layer takes those that it has. */
static void add_sets(struct stage *s) {
    recompute_set all = 0, set = 0;
    for (int k = 0; k < s->table->num_kinds; k++) all |= s->table->modules[k];
    do {
        int *choice = new_choice(s);
        for (int i = 0; i < s->num_layers; i++)
            choice[i] = option_of(s->table, s->layers[i].kind, set & s->table->modules[s->layers[i].kind]);
        add_candidate(s, choice_seconds(s, choice), choice, 0, 0);
        set = (set - all) & all; /* the next subset */
    } while (set);
}

static double layer_seconds(const struct plan *plan, double *rerun_p) {
    double seconds = 0;
    *rerun_p = 0;
    for (int i = 0; i < plan->num_segments; i++) {
        const struct compiled_cost *c = &plan->costs[plan->segments[i].compiled];
        if (plan->segments[i].kind != SEGMENT_LAYERS) continue;
        seconds += auto_cost_seconds(c);
        *rerun_p += c->rerun_seconds;
    }
    return seconds;
}

static void build_with(const struct stage *s, struct recompute_policy policy, struct plan *out) {
    struct plan_request request = s->base->request;
    request.recompute = policy;
    plan_build(&request, out);
}

/* full uniform n, where the table has no groups or a group would hold layers of several kinds. */
static void add_uniform(struct stage *s) {
    for (int n = 2; n <= s->table->longest && (!s->table->has_groups || s->table->num_kinds > 1); n++) {
        struct plan plan;
        double rerun;
        build_with(s, (struct recompute_policy){.granularity = RECOMPUTE_FULL, .num_layers = n}, &plan);
        add_candidate(s, layer_seconds(&plan, &rerun), NULL, n, plan.arena_bytes);
        plan_free(&plan);
    }
}

static int by_seconds(const void *a, const void *b) {
    const struct candidate *x = a, *y = b;
    if (x->seconds != y->seconds) return x->seconds < y->seconds ? -1 : 1;
    return x->order - y->order;
}

/* Where the order of the layers does not matter to memory, equal choices come together: those that keep least
 * first, as full block does. */
static void tidy(const struct stage *s, int *choice) {
    const struct auto_option *options = s->table->options;
    for (int i = 1; i < s->num_layers; i++)
        for (int k = i; k > 0 && !s->layers[k].first && choice[k] >= 0 && choice[k - 1] >= 0; k--) {
            const struct auto_option *a = &options[choice[k - 1]], *b = &options[choice[k]];
            if (a->kind != b->kind || a->length > 1 || b->length > 1) break;
            size_t before = a->compiled.frame_bytes, after = b->compiled.frame_bytes;
            if (before < after || (before == after && choice[k - 1] <= choice[k])) break;
            int swap = choice[k];
            choice[k] = choice[k - 1], choice[k - 1] = swap;
        }
}

/* The formulas of solve.h from the base plan. */
static void search(struct stage *s) {
    const struct plan *base = s->base;
    size_t hidden = plan_hidden_bytes(base), n = (size_t)s->table->num_options;
    struct solve_option *options = mem_new_array(struct solve_option, n, "recompute search");
    struct solve_problem p = {.layers = s->layers,
                              .num_layers = s->num_layers,
                              .options = options,
                              .num_options = (int)n,
                              .flat = base->schedule->splits_backward || base->num_slots > 1 ||
                                      base->num_chunks > 1};
    for (size_t i = 0; i < n; i++) {
        const struct auto_option *o = &s->table->options[i];
        size_t forward = hidden + o->compiled.forward.work_bytes, backward = o->compiled.backward.work_bytes;
        options[i] = (struct solve_option){
            .kind = o->kind,
            .length = o->length,
            .kept = (int64_t)(hidden + o->compiled.frame_bytes + o->compiled.weight.work_bytes),
            .work = (int64_t)(forward > backward && !p.flat ? forward : backward),
            .seconds = o->seconds};
    }
    for (int i = 0; i < base->num_segments; i++) {
        const struct compiled *c = &base->compiled[base->segments[i].compiled];
        if (base->segments[i].kind == SEGMENT_LAYERS) continue;
        if ((int64_t)largest_work(c) > p.work) p.work = (int64_t)largest_work(c);
        if (c->program.input < 0)
            p.below = (int64_t)c->frame_bytes;
        else
            p.above += (int64_t)(hidden + c->frame_bytes + largest_work(c));
    }
    solve_open(&p, &s->front);
    mem_free(options);
    for (int i = 0; i < s->front.count && p.flat; i++)
        tidy(s, s->front.choices + (ptrdiff_t)i * s->num_layers);
    for (int i = s->front.count - 1; i >= 0; i--)
        add_candidate(s, s->front.points[i].seconds, s->front.points[i].choice, 0, 0);
}

static void stage_open(struct stage *s, const struct plan *base, const struct auto_table *table) {
    size_t most = (size_t)base->request.model.layers + 2 * (size_t)base->num_chunks + 2;
    *s = (struct stage){.base = base, .table = table};
    s->layer = mem_new_array(int, most, "recompute candidates");
    s->layers = mem_new_array(struct solve_layer, most, "recompute candidates");
    s->segments = mem_new_array(struct plan_segment, most, "recompute candidates");
    s->chunks = mem_new_array(struct plan_chunk, (size_t)base->num_chunks, "recompute candidates");
    s->compiled = mem_new_array(struct compiled, (size_t)(base->num_compiled + table->num_options),
                                "recompute candidates");
    memcpy(s->compiled, base->compiled, (size_t)base->num_compiled * sizeof(*s->compiled));
    for (int i = 0; i < table->num_options; i++)
        s->compiled[base->num_compiled + i] = table->options[i].compiled;
    for (int v = 0; v < base->num_chunks; v++)
        for (int i = 0; i < base->chunks[v].num_layers; i++) {
            int layer = base->chunks[v].first_layer + i;
            s->layer[s->num_layers] = layer;
            s->layers[s->num_layers++] =
                (struct solve_layer){table->kind_of[layer], i == 0, base->chunks[v].num_slots};
        }
    search(s);
    add_blocks(s);
    add_sets(s);
    add_uniform(s);
    qsort(s->candidates, (size_t)s->num_candidates, sizeof(*s->candidates), by_seconds);
}

static void stage_close(struct stage *s) {
    solve_close(&s->front);
    mem_free(s->layer);
    mem_free(s->layers);
    mem_free(s->candidates);
    for (int i = 0; i < s->num_plain; i++) mem_free(s->plain[i]);
    mem_free(s->plain);
    mem_free(s->compiled);
    mem_free(s->segments);
    mem_free(s->chunks);
}

/* ---- exact peaks ---- */

/* The base plan with the segments of a choice: frames, peak and what depends on them, as plan_build places
 * them. */
static void place_segments(struct stage *s, const int *choice, struct plan *p) {
    const struct plan *base = s->base;
    int count = 0, layer = 0;
    for (int v = 0; v < base->num_chunks; v++) {
        struct plan_chunk *chunk = &s->chunks[v];
        *chunk = base->chunks[v];
        const struct plan_segment *from = &base->segments[chunk->first_segment],
                                  *after = from + chunk->num_segments;
        chunk->first_segment = count;
        for (; from < after && from->kind != SEGMENT_LAYERS; from++) s->segments[count++] = *from;
        for (int end = layer + chunk->num_layers; layer < end;) {
            const struct auto_option *o = &s->table->options[choice[layer]];
            s->segments[count++] = (struct plan_segment){.kind = SEGMENT_LAYERS,
                                                         .compiled = base->num_compiled + choice[layer],
                                                         .first_layer = s->layer[layer],
                                                         .num_layers = o->length,
                                                         .selected = o->set,
                                                         .chunk = v,
                                                         .unit = {-1, -1}};
            layer += o->length;
        }
        while (from < after && from->kind == SEGMENT_LAYERS) from++;
        while (from < after) s->segments[count++] = *from++;
        chunk->num_segments = count - chunk->first_segment;
    }
    *p = *base;
    p->segments = s->segments;
    p->num_segments = count;
    p->chunks = s->chunks;
    p->compiled = s->compiled;
    p->arena_bytes = base->rotary_cos; /* the first thing that plan_place_rest takes */
    p->activation_bytes = 0;
}

/* The activation peak over the lists of the plan; only over the first `actions` of the longest when not 0. */
static void find_activation_peak(struct plan *p, int actions) {
    struct plan_list *lists = p->lists, first = lists[0];
    int count = p->num_lists;
    if (actions && actions < first.actions.count) {
        first.actions.count = actions;
        p->lists = &first, p->num_lists = 1;
    }
    p->activation_bytes = 0;
    plan_find_peak(p);
    mem_free(p->peak_live_end);
    mem_free(p->peak_chunk);
    p->lists = lists, p->num_lists = count;
}

/* The peak of a choice. A part of a step shows already that most choices are too large for the budget: of
 * those the result is what that part takes. */
static size_t peak_of(struct stage *s, const int *choice, size_t budget) {
    struct plan p;
    place_segments(s, choice, &p);
    plan_place_frames(&p);
    find_activation_peak(&p, 12 * (p.num_slots + 1));
    plan_place_rest(&p);
    if (p.arena_bytes <= budget) {
        p.arena_bytes -= p.activation_bytes;
        find_activation_peak(&p, 0);
        p.arena_bytes += p.activation_bytes;
    }
    mem_free(p.slot_base);
    mem_free(p.receive);
    mem_free(p.send);
    mem_free(p.boundary_grad);
    return p.arena_bytes;
}

/* ---- the choice ---- */

/* The groups of the model's layers [0, layers) that a stage decides, where they start; others keep num_layers
 * 0. */
static void write_groups(const struct stage *s, const struct candidate *c, struct recompute_group *at_layer) {
    for (int i = 0, in_chunk = 0, left = 0; i < s->num_layers; i++) {
        in_chunk = s->layers[i].first ? 0 : in_chunk + 1;
        if (c->choice) {
            if (c->choice[i] < 0) continue;
            const struct auto_option *o = &s->table->options[c->choice[i]];
            at_layer[s->layer[i]] = (struct recompute_group){o->length, o->set};
        } else if (in_chunk % c->uniform == 0) {
            for (left = 1; left < c->uniform && i + left < s->num_layers && !s->layers[i + left].first;)
                left++;
            at_layer[s->layer[i]] = (struct recompute_group){left, RECOMPUTE_BIT(MODULE_layer)};
        }
    }
}

static struct recompute_group *pack_groups(const struct recompute_group *at_layer, int layers, int *count_p) {
    struct recompute_group *groups =
        mem_new_array(struct recompute_group, (size_t)layers + 1, "recompute plan");
    int count = 0;
    for (int i = 0; i < layers; i++)
        if (at_layer[i].num_layers) groups[count++] = at_layer[i];
    *count_p = count;
    return groups;
}

/* Builds the plan of a candidate whose peak fits, as every rank of the stage will build it. */
static bool confirm(const struct stage *s, const struct candidate *c, struct recompute_group *at_layer,
                    size_t budget, struct plan_auto_stage *out, struct stage_time *time) {
    struct plan plan;
    int count, layers = (int)s->base->request.model.layers;
    write_groups(s, c, at_layer);
    struct recompute_group *filled =
        mem_new_array(struct recompute_group, (size_t)layers + 1, "recompute plan");
    memcpy(filled, at_layer, (size_t)layers * sizeof(*filled));
    for (int i = 0; i < layers; i += filled[i].num_layers) /* stages that have not chosen yet */
        if (!filled[i].num_layers) filled[i].num_layers = 1;
    struct recompute_group *groups = pack_groups(filled, layers, &count);
    build_with(
        s,
        (struct recompute_policy){.granularity = RECOMPUTE_PLANNED, .planned = groups, .num_planned = count},
        &plan);
    bool fits = plan.arena_bytes <= budget;
    if (fits) {
        out->peak_bytes = plan.arena_bytes;
        out->seconds = layer_seconds(&plan, &out->rerun_seconds);
        plan_time_stage(&plan, time);
    } else {
        for (int i = 0; i < s->num_layers; i++) at_layer[s->layer[i]].num_layers = 0;
    }
    plan_free(&plan);
    mem_free(groups);
    mem_free(filled);
    return fits;
}

/* The fastest candidate that fits; on failure *smallest_p is the smallest peak of all. */
static bool choose(struct stage *s, size_t budget, struct recompute_group *at_layer,
                   struct plan_auto_stage *out, struct stage_time *time, size_t *smallest_p) {
    const struct candidate *smallest = NULL;
    out->candidates = s->num_candidates;
    for (int i = 0; i < s->num_candidates; i++) {
        struct candidate *c = &s->candidates[i];
        if (!c->peak) c->peak = peak_of(s, c->choice, budget);
        out->tried = i + 1;
        if (!smallest || c->peak < smallest->peak) smallest = c;
        if (c->peak <= budget && confirm(s, c, at_layer, budget, out, time)) return true;
    }
    *smallest_p = smallest->choice ? peak_of(s, smallest->choice, SIZE_MAX) : smallest->peak;
    return false;
}

static int choose_stage(struct plan *const *bases, int r, const struct auto_table *table, size_t budget,
                        struct recompute_group *at_layer, struct plan_auto *out, struct stage_time *time,
                        struct err *err) {
    struct stage s;
    size_t smallest;
    char need[32], have[32];
    stage_open(&s, bases[r], table);
    bool found = choose(&s, budget, at_layer, &out->stages[r], time, &smallest);
    stage_close(&s);
    if (found) return 0;
    return err_set(
        err,
        "--recompute-granularity auto: no choice fits %s (%zu bytes): the smallest plan of pipeline stage %d "
        "takes %s (%zu bytes); raise --recompute-memory-budget, or lower --micro-batch-size",
        str_format_bytes(have, sizeof(have), (double)budget), budget, r,
        str_format_bytes(need, sizeof(need), (double)smallest), smallest);
}

static int choose_all(struct plan *const *bases, int stages, const struct auto_table *table, size_t budget,
                      struct plan_auto *out, struct err *err) {
    int layers = (int)bases[0]->request.model.layers, status = 0;
    struct recompute_group *at_layer =
        mem_new_array(struct recompute_group, (size_t)layers + 1, "recompute plan");
    struct stage_time *times = mem_new_array(struct stage_time, (size_t)stages, "recompute plan");
    for (int r = 0; r < stages && !status; r++)
        status = choose_stage(bases, r, table, budget, at_layer, out, &times[r], err);
    if (!status) {
        out->groups = pack_groups(at_layer, layers, &out->num_groups);
        out->step = plan_time_step(bases[0], times);
    }
    for (int r = 0; r < stages; r++) stage_time_free(&times[r]);
    mem_free(times);
    mem_free(at_layer);
    return status;
}

int plan_auto_choose(const struct plan_request *requests, int stages, size_t budget, struct plan_auto *out,
                     struct err *err) {
    struct auto_table table;
    struct plan *plans = mem_new_array(struct plan, (size_t)stages, "recompute plan");
    struct plan **bases = mem_new_array(struct plan *, (size_t)stages, "recompute plan");
    *out = (struct plan_auto){.num_stages = stages};
    out->stages = mem_new_array(struct plan_auto_stage, (size_t)stages, "recompute plan");
    for (int r = 0; r < stages; r++) {
        struct plan_request request = requests[r];
        CHECK(request.hardware, "automatic recompute without rates");
        request.recompute = (struct recompute_policy){.granularity = RECOMPUTE_NONE};
        plan_build(&request, &plans[r]);
        bases[r] = &plans[r];
    }
    auto_table_open(&table, (const struct plan *const *)bases, stages);
    int status = choose_all(bases, stages, &table, budget, out, err);
    auto_table_close(&table);
    for (int r = 0; r < stages; r++) plan_free(&plans[r]);
    mem_free(plans);
    mem_free(bases);
    if (status) plan_auto_free(out);
    return status;
}

void plan_auto_free(struct plan_auto *a) {
    mem_free(a->groups);
    mem_free(a->stages);
    *a = (struct plan_auto){0};
}

/* ---- report ---- */

void plan_auto_describe(const struct plan_auto *a, const struct plan_request *request, size_t budget,
                        struct str *out) {
    char peak[32], limit[32];
    const struct plan_layout *l = &request->layout;
    struct pipeline_chunk whole = {0, (int)request->model.layers, true, true};
    int chunks = l->split ? l->chunks : 1;
    struct recompute_group *groups =
        mem_new_array(struct recompute_group, (size_t)request->model.layers + 1, "recompute plan");
    struct recompute_policy policy = {
        .granularity = RECOMPUTE_PLANNED, .planned = a->groups, .num_planned = a->num_groups};
    str_printf(out, "recompute plan for %s per rank, rates of %s: predicted step %.4g ms\n",
               str_format_bytes(limit, sizeof(limit), (double)budget), request->hardware->name,
               1e3 * a->step.seconds);
    for (int r = 0; r < a->num_stages; r++) {
        const struct plan_auto_stage *s = &a->stages[r];
        str_printf(out, "  stage %d: ", r);
        for (int v = 0, shown = 0; v < chunks; v++) {
            const struct pipeline_chunk *part = l->split ? &l->split[v * a->num_stages + r] : &whole;
            struct recompute_chunk chunk = {r, v, part->first_layer, part->num_layers};
            int count = recompute_groups(&policy, &chunk, groups);
            if (count && shown++) str_puts(out, ", ");
            recompute_planned_describe(groups, count, part->first_layer, out);
        }
        str_printf(out, "; peak %s, recompute %.3g ms of %.4g ms per micro-batch\n",
                   str_format_bytes(peak, sizeof(peak), (double)s->peak_bytes), 1e3 * s->rerun_seconds,
                   1e3 * s->seconds);
    }
    mem_free(groups);
}
