/* Unrolls a plan into runs, frames and areas (see plan_timeline.h). */
#include "core/plan_timeline.h"
#include "core/base/mem.h"
#include "recompute/lives.h"
#include <limits.h>

/* ---- areas of one compiled segment ---- */

static void add_area(struct timeline_areas *areas, struct timeline_area area) {
    areas->at = mem_realloc(areas->at, (size_t)(areas->count + 1) * sizeof(*areas->at), "timeline areas");
    areas->at[areas->count++] = area;
}

/* Instructions of the list between which tensor t, or its gradient, is in use; false: never. */
static bool find_life(const struct program *p, const struct code *c, int t, bool grad, int *first_p,
                      int *last_p) {
    *first_p = INT_MAX, *last_p = -1;
    for (int i = 0; i < c->num_instrs; i++) {
        if (!(grad ? lives_touches_grad(p, &c->at[i], t) : lives_touches(p, &c->at[i], t))) continue;
        if (*first_p == INT_MAX) *first_p = i;
        *last_p = i;
    }
    return *last_p >= 0;
}

/* Gradients that share storage (a residual's) are one area, named after the first of them. */
static bool merge_grad(struct timeline_areas *areas, const struct timeline_area *area) {
    for (int i = 0; i < areas->count; i++) {
        struct timeline_area *a = &areas->at[i];
        if (!a->is_grad || a->offset != area->offset || a->first > area->last || area->first > a->last)
            continue;
        struct timeline_area both = *a;
        if (area->first < both.first) both.first = area->first;
        if (area->last > both.last) both.last = area->last;
        *a = areas->at[--areas->count];
        if (!merge_grad(areas, &both)) add_area(areas, both);
        return true;
    }
    return false;
}

static void find_work(const struct program *p, const struct code *c, struct timeline_areas *areas) {
    struct timeline_area a;
    for (int t = 0; t < p->num_tensors; t++) {
        if (c->work_offset[t] != SIZE_MAX && find_life(p, c, t, false, &a.first, &a.last)) {
            a.tensor = t, a.is_grad = false, a.offset = c->work_offset[t];
            a.bytes = align_up(p->tensors[t].bytes);
            add_area(areas, a);
        }
        if (c->grad_place[t] < 0 || !find_life(p, c, t, true, &a.first, &a.last)) continue;
        if (t == p->input) a.last = c->num_instrs - 1; /* it leaves when the list has ended */
        a.tensor = t, a.is_grad = true, a.offset = (size_t)c->grad_place[t];
        a.bytes = align_up(p->tensors[t].bytes);
        if (!merge_grad(areas, &a)) add_area(areas, a);
    }
}

static void find_keep(const struct program *p, const struct code *forward, struct timeline_areas *areas) {
    for (int t = 0; t < p->num_tensors; t++) {
        int first, last;
        if (p->tensors[t].home != HOME_KEEP) continue;
        if (!find_life(p, forward, t, false, &first, &last)) first = forward->num_instrs - 1;
        add_area(areas, (struct timeline_area){t, false, p->tensors[t].frame_offset,
                                               align_up(p->tensors[t].bytes), first, INT_MAX});
    }
}

/* The hold area: an input may be read by several weight gradients, the first copy begins it. */
static void find_hold(const struct program *p, const struct code *backward, const struct code *weight,
                      struct timeline_areas *areas) {
    for (int t = 0; t < p->num_tensors; t++)
        for (int grad = 0; grad < 2; grad++) {
            bool is_held = grad ? weight->grad_place[t] >= 0 : weight->work_offset[t] != SIZE_MAX;
            for (int i = 0; is_held && i < backward->num_instrs; i++) {
                const struct op *o = &p->ops[backward->at[i].op];
                bool copies = grad && o->out[0] == t;
                for (int k = 0; !grad && k < o->num_in; k++) copies |= o->in[k] == t;
                if (backward->at[i].kind != INSTR_HOLD || !copies) continue;
                size_t offset = grad ? (size_t)weight->grad_place[t] : weight->work_offset[t];
                add_area(areas,
                         (struct timeline_area){t, grad, offset, align_up(p->tensors[t].bytes), i, INT_MAX});
                break;
            }
        }
}

static void make_lists(const struct compiled *c, struct timeline_lists *out) {
    const struct program *p = &c->program;
    int last;
    find_keep(p, &c->forward, &out->keep);
    find_hold(p, &c->backward, &c->weight, &out->hold);
    find_work(p, &c->forward, &out->work[ACTION_FORWARD]);
    find_work(p, &c->backward, &out->work[ACTION_BACKWARD]);
    if (p->output < 0 || !find_life(p, &c->forward, p->output, false, &out->output_first, &last))
        out->output_first = 0;
}

const char *timeline_module(const struct program *p, int tensor) {
    int producer = p->tensors[tensor].producer;
    if (producer < 0) return "";
    for (int s = p->ops[producer].scope; s >= 0; s = p->scopes[s].parent)
        if (p->scopes[s].module != MODULE_layer) return recompute_module_info(p->scopes[s].module)->name;
    return "";
}

/* ---- the runs of a step ---- */

static const struct code *code_of(const struct compiled *c, enum action_kind kind) {
    return kind == ACTION_FORWARD ? &c->forward : kind == ACTION_WEIGHT ? &c->weight : &c->backward;
}

const struct code *timeline_code(const struct timeline *t, int run) {
    const struct timeline_run *r = &t->runs[run];
    return code_of(&t->plan->compiled[t->plan->segments[r->segment].compiled],
                   t->list->actions[r->action].kind);
}

size_t timeline_slot(const struct timeline *t, int run) {
    int slot = frames_slot(t->plan, &t->list->actions[t->runs[run].action]);
    return t->plan->activations + t->plan->slot_base[slot];
}

/* Frames that are open, as the walk goes on. */
struct walk {
    struct timeline *t;
    struct frame_tracker tracker;
    int *frame_of; /* per slot and segment: the open frame, or -1 */
};

static int *open_frame(struct walk *w, int slot, int segment) {
    return &w->frame_of[(size_t)slot * (size_t)w->t->plan->num_segments + (size_t)segment];
}

static void close_frames(struct walk *w, int slot, int first_segment, int count, int run) {
    for (int s = first_segment; s < first_segment + count; s++) {
        int *frame = open_frame(w, slot, s);
        if (*frame >= 0) w->t->frames[*frame].death = run;
        *frame = -1;
    }
}

static void walk_run(struct walk *w, const struct action *a, int index, int segment) {
    struct timeline *t = w->t;
    const struct plan *plan = t->plan;
    const struct plan_chunk *chunk = &plan->chunks[a->chunk];
    int slot = frames_slot(plan, a), run = t->num_runs++;
    t->runs[run] = (struct timeline_run){index, segment, t->num_instrs,
                                         plan->activations + frames_enter(&w->tracker, plan, a, segment)};
    t->num_instrs += timeline_code(t, run)->num_instrs;
    if (a->kind == ACTION_FORWARD) {
        /* forward alone (evaluation) leaves nothing behind: the next micro-batch takes the place */
        if (segment == chunk->first_segment) close_frames(w, slot, 0, plan->num_segments, run - 1);
        *open_frame(w, slot, segment) = t->num_frames;
        t->frames[t->num_frames++] = (struct timeline_frame){run, -1, -1};
        return;
    }
    bool splits = plan->schedule->splits_backward;
    if (splits && a->kind == ACTION_BACKWARD) t->frames[*open_frame(w, slot, segment)].held = run;
    if (!splits) close_frames(w, slot, segment, 1, run);
    if (splits && a->kind == ACTION_WEIGHT && segment == chunk->first_segment)
        close_frames(w, slot, chunk->first_segment, chunk->num_segments, run);
    frames_leave(&w->tracker, plan, a, segment);
}

static void walk_list(struct timeline *t, const struct schedule_list *list) {
    const struct plan *plan = t->plan;
    struct walk w = {.t = t};
    size_t places = (size_t)plan->num_slots * (size_t)plan->num_segments;
    t->list = list;
    t->num_runs = t->num_frames = 0, t->num_instrs = 0;
    w.frame_of = mem_new_array(int, places, "timeline frames");
    for (size_t i = 0; i < places; i++) w.frame_of[i] = -1;
    frames_open(&w.tracker, plan);
    for (int i = 0; i < list->count; i++) {
        const struct action *a = &list->actions[i];
        if (a->kind > ACTION_WEIGHT) continue;
        const struct plan_chunk *c = &plan->chunks[a->chunk];
        for (int k = 0; k < c->num_segments; k++)
            walk_run(&w, a, i, c->first_segment + (a->kind == ACTION_FORWARD ? k : c->num_segments - 1 - k));
    }
    for (int slot = 0; slot < plan->num_slots; slot++)
        close_frames(&w, slot, 0, plan->num_segments, t->num_runs - 1);
    frames_close(&w.tracker);
    mem_free(w.frame_of);
}

static int count_runs(const struct plan *plan, const struct schedule_list *list) {
    int runs = 0;
    for (int i = 0; i < list->count; i++)
        if (list->actions[i].kind <= ACTION_WEIGHT) runs += plan->chunks[list->actions[i].chunk].num_segments;
    return runs;
}

/* The first run whose frames and work area end where the arena ends, or -1. */
static int find_peak(const struct timeline *t) {
    for (int i = 0; i < t->num_runs; i++) {
        bool works = t->list->actions[t->runs[i].action].kind != ACTION_WEIGHT;
        if (t->runs[i].work + (works ? timeline_code(t, i)->work_bytes : 0) == t->plan->arena_bytes) return i;
    }
    return -1;
}

void timeline_open(struct timeline *t, const struct plan *plan) {
    *t = (struct timeline){.plan = plan, .peak_run = -1};
    t->lists = mem_new_array(struct timeline_lists, (size_t)plan->num_compiled, "timeline");
    for (int i = 0; i < plan->num_compiled; i++) make_lists(&plan->compiled[i], &t->lists[i]);
    for (int k = 0; k < plan->num_lists && t->peak_run < 0; k++) {
        const struct schedule_list *list = &plan->lists[k].actions;
        size_t runs = (size_t)count_runs(plan, list);
        t->runs = mem_realloc(t->runs, mem_array_bytes(runs, sizeof(*t->runs)), "timeline runs");
        t->frames = mem_realloc(t->frames, mem_array_bytes(runs, sizeof(*t->frames)), "timeline frames");
        walk_list(t, list);
        t->peak_run = find_peak(t);
    }
    CHECK(t->peak_run >= 0, "no list of the plan reaches its peak of %zu bytes", plan->arena_bytes);
}

void timeline_close(struct timeline *t) {
    for (int i = 0; t->plan && i < t->plan->num_compiled; i++) {
        mem_free(t->lists[i].keep.at);
        mem_free(t->lists[i].hold.at);
        for (int k = 0; k < TIMELINE_LISTS; k++) mem_free(t->lists[i].work[k].at);
    }
    mem_free(t->lists);
    mem_free(t->runs);
    mem_free(t->frames);
    *t = (struct timeline){0};
}

/* ---- what one run sees ---- */

struct collector {
    const struct timeline *t;
    int run;
    struct timeline_alive *at;
    int count, capacity;
};

static void collect(struct collector *c, struct timeline_area area, int segment, int micro_batch,
                    bool is_work) {
    if (c->count == c->capacity) {
        c->capacity = c->capacity ? 2 * c->capacity : 256;
        c->at = mem_realloc(c->at, (size_t)c->capacity * sizeof(*c->at), "timeline areas");
    }
    c->at[c->count++] = (struct timeline_alive){area, segment, micro_batch, is_work};
}

/* Areas that begin in run `begun` at their own instruction and are alive to the end of this run. */
static void collect_kept(struct collector *c, const struct timeline_areas *areas, size_t base, int begun,
                         int segment, int micro_batch) {
    for (int i = 0; i < areas->count; i++) {
        struct timeline_area a = areas->at[i];
        a.offset += base;
        a.first = begun == c->run ? a.first : 0;
        a.last = timeline_code(c->t, c->run)->num_instrs - 1;
        collect(c, a, segment, micro_batch, false);
    }
}

static void collect_frame(struct collector *c, const struct timeline_frame *f) {
    const struct timeline *t = c->t;
    int segment = t->runs[f->birth].segment, micro = t->list->actions[t->runs[f->birth].action].micro_batch;
    const struct plan_segment *s = &t->plan->segments[segment];
    const struct timeline_lists *lists = &t->lists[s->compiled];
    size_t slot = timeline_slot(t, f->birth);
    bool has_input = s->frame_offset > s->input_offset;
    bool from_segment = has_input && segment != t->plan->chunks[s->chunk].first_segment;
    int birth = from_segment ? f->birth - 1 : f->birth; /* the segment before it writes its input */
    if (c->run < birth || c->run > f->death) return;
    if (has_input) {
        int first = 0;
        if (from_segment && c->run == birth)
            first = t->lists[t->plan->segments[segment - 1].compiled].output_first;
        collect(c,
                (struct timeline_area){-1, false, slot + s->input_offset, s->frame_offset - s->input_offset,
                                       first, timeline_code(t, c->run)->num_instrs - 1},
                segment, micro, false);
    }
    if (c->run >= f->birth) collect_kept(c, &lists->keep, slot + s->frame_offset, f->birth, segment, micro);
    if (f->held >= 0 && c->run >= f->held)
        collect_kept(c, &lists->hold, slot + s->hold_offset, f->held, segment, micro);
}

int timeline_alive_in(const struct timeline *t, int run, struct timeline_alive **alive_p) {
    const struct timeline_run *r = &t->runs[run];
    const struct action *a = &t->list->actions[r->action];
    struct collector c = {.t = t, .run = run};
    for (int i = 0; i < t->num_frames; i++) collect_frame(&c, &t->frames[i]);
    const struct timeline_areas *work = &t->lists[t->plan->segments[r->segment].compiled].work[a->kind];
    for (int i = 0; i < work->count; i++) {
        struct timeline_area area = work->at[i];
        area.offset += r->work;
        collect(&c, area, r->segment, a->micro_batch, true);
    }
    *alive_p = c.at;
    return c.count;
}
