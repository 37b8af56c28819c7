/* Chunks, segments and schedule lists; the order of planning. */
#include "core/plan_internal.h"
#include "core/base/hash.h"
#include "core/base/mem.h"

const char *plan_category_name(enum plan_category category) {
    static const char *const names[CATEGORY_COUNT] = {"weights", "gradients", "optimizer", "communication",
                                                      "tables",  "batch",     "workspace", "activations"};
    return names[category];
}

size_t plan_take(struct plan *plan, enum plan_category category, size_t bytes) {
    size_t offset = plan->arena_bytes;
    bytes = align_up(bytes);
    plan->fixed_bytes[category] += bytes;
    plan->arena_bytes += bytes;
    return offset;
}

size_t plan_hidden_bytes(const struct plan *plan) {
    const struct model *m = &plan->request.model;
    return align_up((size_t)(model_rows(m) * m->micro_batch * m->hidden) * dtype_bytes(m->dtype));
}

/* ---- segments ---- */

bool plan_runs_segment(const struct plan *plan, int segment, bool training) {
    return training || plan->segments[segment].kind != SEGMENT_MTP;
}

static bool are_alike(const struct model *m, enum segment_kind kind, int first, int other, int count) {
    if (kind == SEGMENT_MTP) return model_mtp_passes_on(m, first) == model_mtp_passes_on(m, other);
    return model_layers_are_alike(m, first, other, count);
}

/* Compiles a segment unless an equal one exists. Returns its index. */
static int compile_segment(struct plan *plan, enum segment_kind kind, int first_layer, int num_layers,
                           recompute_set selected) {
    const struct model *m = &plan->request.model;
    for (int i = 0; i < plan->num_segments; i++) {
        const struct plan_segment *s = &plan->segments[i];
        if (s->kind == kind && s->num_layers == num_layers && s->selected == selected &&
            are_alike(m, kind, s->first_layer, first_layer, num_layers))
            return s->compiled;
    }
    struct program program;
    program_init(&program);
    if (kind == SEGMENT_EMBEDDING) build_embedding(&program, m);
    if (kind == SEGMENT_LAYERS) build_layers(&program, m, first_layer, num_layers);
    if (kind == SEGMENT_HEAD) build_head(&program, m);
    if (kind == SEGMENT_MTP) build_mtp(&program, m, first_layer);
    selected |= PLAN_ALWAYS_RECOMPUTED;
    recompute_compile(&program, selected, plan->schedule->splits_backward,
                      &plan->compiled[plan->num_compiled]);
    return plan->num_compiled++;
}

static void add_segment(struct plan *plan, enum segment_kind kind, int first_layer, int num_layers,
                        recompute_set selected) {
    int compiled = compile_segment(plan, kind, first_layer, num_layers, selected);
    struct plan_chunk *chunk = &plan->chunks[plan->num_chunks];
    plan->segments[plan->num_segments++] = (struct plan_segment){.kind = kind,
                                                                 .compiled = compiled,
                                                                 .first_layer = first_layer,
                                                                 .num_layers = num_layers,
                                                                 .selected = selected,
                                                                 .chunk = plan->num_chunks,
                                                                 .unit = {-1, -1}};
    chunk->num_segments++;
}

static void make_chunk(struct plan *plan, const struct pipeline_chunk *part) {
    struct plan_chunk *chunk = &plan->chunks[plan->num_chunks];
    *chunk = (struct plan_chunk){.first_segment = plan->num_segments,
                                 .first_layer = part->first_layer,
                                 .num_layers = part->num_layers,
                                 .embedding = part->embedding,
                                 .head = part->head};
    struct recompute_group *groups =
        mem_new_array(struct recompute_group, (size_t)part->num_layers + 1, "recompute groups");
    struct recompute_chunk place = {plan->request.layout.stage, plan->num_chunks, part->first_layer,
                                    part->num_layers};
    int count = recompute_groups(&plan->request.recompute, &place, groups), layer = part->first_layer;
    if (part->embedding) add_segment(plan, SEGMENT_EMBEDDING, 0, 0, 0);
    for (int i = 0; i < count; layer += groups[i++].num_layers)
        add_segment(plan, SEGMENT_LAYERS, layer, groups[i].num_layers, groups[i].selected);
    if (part->head) add_segment(plan, SEGMENT_HEAD, layer, 0, 0);
    for (int i = 0; i < plan->request.model.mtp_layers && part->head; i++)
        add_segment(
            plan, SEGMENT_MTP, i, 0,
            recompute_of_mtp(&plan->request.recompute, place.stage, (int)plan->request.model.layers + i));
    CHECK(chunk->num_segments > 0, "chunk %d of stage %d is empty", plan->num_chunks,
          plan->request.layout.stage);
    mem_free(groups);
    plan->num_chunks++;
}

static void make_segments(struct plan *plan) {
    const struct plan_layout *layout = &plan->request.layout;
    struct pipeline_chunk whole = {0, (int)plan->request.model.layers, true, true};
    int chunks = layout->split ? layout->chunks : 1, stages = layout->split ? layout->stages : 1;
    size_t most = (size_t)(plan->request.model.layers + plan->request.model.mtp_layers) + 2;
    plan->segments = mem_new_array(struct plan_segment, most, "segments");
    plan->compiled = mem_new_array(struct compiled, most, "compiled segments");
    plan->costs = mem_new_array(struct compiled_cost, most, "segment costs");
    plan->chunks = mem_new_array(struct plan_chunk, (size_t)chunks, "model chunks");
    for (int v = 0; v < chunks; v++)
        make_chunk(plan, layout->split ? &layout->split[v * stages + layout->stage] : &whole);
}

/* ---- schedule ---- */

static void add_list(struct plan *plan, int micro_batches, bool forward_only) {
    const struct plan_layout *layout = &plan->request.layout;
    struct schedule_shape shape = {.stages = layout->stages ? layout->stages : 1,
                                   .stage = layout->stage,
                                   .chunks = plan->num_chunks,
                                   .micro_batches = micro_batches,
                                   .group = layout->group,
                                   .forward_only = forward_only,
                                   .late_receive = layout->late_receive};
    struct plan_list *list = &plan->lists[plan->num_lists++];
    list->micro_batches = micro_batches;
    schedule_lower(plan->schedule, &shape, &list->actions);
    for (int v = 0; v < plan->num_chunks; v++)
        if (list->actions.num_slots[v] > plan->chunks[v].num_slots)
            plan->chunks[v].num_slots = list->actions.num_slots[v];
}

static void make_lists(struct plan *plan) {
    const struct plan_request *r = &plan->request;
    plan->lists = mem_new_array(struct plan_list, (size_t)r->num_other_counts + 2, "schedule lists");
    if (!r->forward_only) {
        add_list(plan, r->micro_batches, false);
        for (int i = 0; i < r->num_other_counts; i++) add_list(plan, r->other_counts[i], false);
    }
    add_list(plan, r->eval_micro_batches ? r->eval_micro_batches : r->micro_batches, true);
}

const struct schedule_list *plan_actions(const struct plan *plan, int micro_batches) {
    for (int i = 0; i + 1 < plan->num_lists; i++)
        if (plan->lists[i].micro_batches == micro_batches) return &plan->lists[i].actions;
    CHECK(false, "the plan has no list for %d micro-batches", micro_batches);
    return NULL;
}

const struct schedule_list *plan_eval_actions(const struct plan *plan) {
    return &plan->lists[plan->num_lists - 1].actions;
}

/* ---- all of it ---- */

void plan_build(const struct plan_request *request, struct plan *out) {
    *out = (struct plan){.request = *request};
    out->schedule = request->layout.schedule ? request->layout.schedule : schedule_find("1f1b");
    make_segments(out);
    make_lists(out);
    plan_make_params(out);
    plan_make_routers(out);
    plan_measure_costs(out);
    plan_place_frames(out);
    plan_find_peak(out);
    plan_place_rest(out);
    out->hash = plan_hash_of(out);
}

void plan_free(struct plan *plan) {
    for (int i = 0; i < plan->num_segments; i++) {
        mem_free(plan->segments[i].params);
        mem_free(plan->segments[i].routers);
    }
    for (int i = 0; i < plan->num_routers; i++) mem_free(plan->routers[i].name);
    mem_free(plan->routers);
    for (int i = 0; i < plan->num_params; i++) mem_free(plan->params[i].name);
    for (int i = 0; i < plan->num_compiled; i++) {
        recompute_free(&plan->compiled[i]);
        mem_free(plan->costs[i].op_flops);
    }
    for (int i = 0; i < plan->num_lists; i++) schedule_free(&plan->lists[i].actions);
    mem_free(plan->segments);
    mem_free(plan->params);
    mem_free(plan->compiled);
    mem_free(plan->costs);
    mem_free(plan->chunks);
    mem_free(plan->buckets);
    mem_free(plan->lists);
    mem_free(plan->slot_base);
    mem_free(plan->boundary_grad);
    mem_free(plan->receive);
    mem_free(plan->send);
    mem_free(plan->peak_live_end);
    mem_free(plan->peak_chunk);
    *plan = (struct plan){0};
}

/* Equal on all ranks that must do the same: those of one tensor- and context-parallel group. */
uint64_t plan_hash_of(const struct plan *plan) {
    struct hash h;
    hash_init(&h);
    for (int i = 0; i < plan->num_segments; i++) {
        const struct plan_segment *s = &plan->segments[i];
        const struct compiled *c = &plan->compiled[s->compiled];
        int64_t words[] = {(int64_t)s->kind,     s->first_layer,          s->num_layers,
                           (int64_t)s->selected, (int64_t)c->frame_bytes, (int64_t)c->backward.work_bytes};
        hash_update(&h, words, sizeof(words));
        hash_update(&h, c->backward.at, (size_t)c->backward.num_instrs * sizeof(struct instr));
    }
    hash_update(&h, &plan->arena_bytes, sizeof(plan->arena_bytes));
    return hash_final(&h);
}
