/* Activations: slots and frames, the peak over all lists, and the remaining fixed regions. */
#include "core/plan_internal.h"
#include "core/base/mem.h"

bool plan_is_distributed(const struct plan *plan, const struct plan_segment *segment) {
    return plan->request.layout.distribute_saved && model_tp(&plan->request.model) > 1 &&
           (segment->selected >> MODULE_layer & 1);
}

static size_t input_bytes(const struct plan *plan, const struct plan_segment *s) {
    if (plan->compiled[s->compiled].program.input < 0) return 0;
    size_t whole = plan_hidden_bytes(plan);
    return plan_is_distributed(plan, s) ? align_up(whole / (size_t)plan->request.model.tp) : whole;
}

static void place_chunk_frames(struct plan *plan, struct plan_chunk *chunk) {
    size_t offset = 0;
    for (int i = chunk->first_segment; i < chunk->first_segment + chunk->num_segments; i++) {
        struct plan_segment *s = &plan->segments[i];
        s->input_offset = offset;
        s->frame_offset = offset + input_bytes(plan, s);
        s->end_offset = offset = s->frame_offset + plan->compiled[s->compiled].frame_bytes;
    }
    for (int i = chunk->first_segment; i < chunk->first_segment + chunk->num_segments; i++) {
        plan->segments[i].hold_offset = offset;
        offset += plan->compiled[plan->segments[i].compiled].weight.work_bytes;
    }
    chunk->slot_bytes = offset;
}

/* Slots of their own for each chunk: total bytes. */
static size_t own_slots(struct plan *plan) {
    size_t bytes = 0;
    plan->num_slots = 0;
    for (int v = 0; v < plan->num_chunks; v++) {
        plan->chunks[v].first_slot = plan->num_slots;
        plan->num_slots += plan->chunks[v].num_slots;
        bytes += (size_t)plan->chunks[v].num_slots * plan->chunks[v].slot_bytes;
    }
    return bytes;
}

/* Sizes of slots that all chunks use in turn, each as large as the largest frame that any list puts there. */
static size_t shared_slots(const struct plan *plan, size_t *sizes, int *count_p) {
    size_t bytes = 0;
    *count_p = 0;
    for (int k = 0; k < plan->num_lists; k++) {
        const struct schedule_list *list = &plan->lists[k].actions;
        for (int i = 0; i < list->count; i++) {
            const struct action *a = &list->actions[i];
            if (a->kind != ACTION_FORWARD) continue;
            size_t *size = &sizes[a->shared_slot], need = plan->chunks[a->chunk].slot_bytes;
            if (a->shared_slot >= *count_p) *count_p = a->shared_slot + 1;
            if (need > *size) bytes += need - *size, *size = need;
        }
    }
    return bytes;
}

void plan_place_frames(struct plan *plan) {
    int most = 1, shared_count;
    for (int v = 0; v < plan->num_chunks; v++) place_chunk_frames(plan, &plan->chunks[v]);
    for (int k = 0; k < plan->num_lists; k++)
        if (plan->lists[k].actions.num_shared_slots > most) most = plan->lists[k].actions.num_shared_slots;
    size_t *sizes = mem_new_array(size_t, (size_t)most, "slots"), base = 0, own = own_slots(plan);
    plan->shares_slots = shared_slots(plan, sizes, &shared_count) < own;
    if (plan->shares_slots) plan->num_slots = shared_count;
    plan->slot_base = mem_new_array(size_t, (size_t)plan->num_slots + 1, "slots");
    for (int i = 0, v = 0; i < plan->num_slots; i++) {
        while (!plan->shares_slots && i >= plan->chunks[v].first_slot + plan->chunks[v].num_slots) v++;
        plan->slot_base[i] = base;
        base += plan->shares_slots ? sizes[i] : plan->chunks[v].slot_bytes;
    }
    mem_free(sizes);
}

void frames_open(struct frame_tracker *f, const struct plan *plan) {
    *f =
        (struct frame_tracker){mem_new_array(size_t, (size_t)plan->num_slots, "frame tracker"),
                               mem_new_array(int, (size_t)plan->num_slots, "frame tracker"), plan->num_slots};
}

void frames_close(struct frame_tracker *f) {
    mem_free(f->live_end);
    mem_free(f->chunk);
}

int frames_slot(const struct plan *plan, const struct action *action) {
    return plan->shares_slots ? action->shared_slot : plan->chunks[action->chunk].first_slot + action->slot;
}

static bool is_last_of_chunk(const struct plan *plan, int segment) {
    const struct plan_chunk *c = &plan->chunks[plan->segments[segment].chunk];
    return segment == c->first_segment + c->num_segments - 1;
}

size_t frames_enter(struct frame_tracker *f, const struct plan *plan, const struct action *action,
                    int segment) {
    const struct plan_segment *s = &plan->segments[segment];
    int slot = frames_slot(plan, action);
    size_t top = 0, end = s->end_offset;
    if (action->kind == ACTION_FORWARD && !is_last_of_chunk(plan, segment))
        end = plan->segments[segment + 1].frame_offset; /* the output is the next segment's input */
    if (action->kind != ACTION_FORWARD && plan->schedule->splits_backward)
        end = plan->chunks[action->chunk].slot_bytes; /* all of it until the weight gradients are done */
    f->live_end[slot] = end;
    f->chunk[slot] = action->chunk;
    for (int i = 0; i < f->num_slots; i++)
        if (f->live_end[i] && plan->slot_base[i] + f->live_end[i] > top)
            top = plan->slot_base[i] + f->live_end[i];
    return top;
}

void frames_leave(struct frame_tracker *f, const struct plan *plan, const struct action *action,
                  int segment) {
    size_t *end = &f->live_end[frames_slot(plan, action)];
    if (!plan->schedule->splits_backward)
        *end = plan->segments[segment].input_offset;
    else if (action->kind == ACTION_WEIGHT && segment == plan->chunks[action->chunk].first_segment)
        *end = 0;
}

static void note_peak(struct plan *plan, const struct frame_tracker *f, const struct action *a, int segment,
                      size_t frames, size_t work) {
    if (frames + work <= plan->activation_bytes) return;
    plan->activation_bytes = frames + work;
    plan->peak_segment = segment;
    memcpy(plan->peak_live_end, f->live_end, (size_t)f->num_slots * sizeof(size_t));
    memcpy(plan->peak_chunk, f->chunk, (size_t)f->num_slots * sizeof(int));
    plan->peak_kind = a->kind;
    plan->peak_frame_bytes = frames;
    plan->peak_work_bytes = work;
}

static size_t work_bytes(const struct plan *plan, enum action_kind kind, int segment) {
    const struct compiled *c = &plan->compiled[plan->segments[segment].compiled];
    if (kind == ACTION_WEIGHT) return 0;
    return kind == ACTION_FORWARD ? c->forward.work_bytes : c->backward.work_bytes;
}

static void walk_action(struct plan *plan, struct frame_tracker *frames, const struct action *a,
                        bool training) {
    const struct plan_chunk *chunk = &plan->chunks[a->chunk];
    for (int k = 0; k < chunk->num_segments; k++) {
        bool forward = a->kind == ACTION_FORWARD;
        int segment = chunk->first_segment + (forward ? k : chunk->num_segments - 1 - k);
        if (!plan_runs_segment(plan, segment, training)) continue;
        size_t top = frames_enter(frames, plan, a, segment);
        note_peak(plan, frames, a, segment, top, work_bytes(plan, a->kind, segment));
        if (!forward) frames_leave(frames, plan, a, segment);
    }
}

void plan_find_peak(struct plan *plan) {
    struct frame_tracker frames;
    frames_open(&frames, plan);
    plan->peak_live_end = mem_new_array(size_t, (size_t)plan->num_slots, "plan peak");
    plan->peak_chunk = mem_new_array(int, (size_t)plan->num_slots, "plan peak");
    for (int k = 0; k < plan->num_lists; k++) {
        const struct schedule_list *list = &plan->lists[k].actions;
        memset(frames.live_end, 0, (size_t)frames.num_slots * sizeof(size_t));
        for (int i = 0; i < list->count; i++)
            if (list->actions[i].kind <= ACTION_WEIGHT)
                walk_action(plan, &frames, &list->actions[i], k + 1 < plan->num_lists);
    }
    frames_close(&frames);
}

static size_t *take_buffers(struct plan *plan, enum plan_category category, int count) {
    size_t *offsets = mem_new_array(size_t, (size_t)count + 1, "stage buffers");
    for (int i = 0; i < count; i++) offsets[i] = plan_take(plan, category, plan_hidden_bytes(plan));
    return offsets;
}

static int larger(int a, int b) {
    return a > b ? a : b;
}

/* Buffers between stages, and whole inputs where only a share is saved. */
static void place_stage_buffers(struct plan *plan) {
    bool distributed = false;
    plan->num_boundary_grads = plan->request.forward_only ? 0 : 1;
    for (int i = 0; i < plan->num_lists && plan->request.layout.stages > 1; i++) {
        const struct schedule_list *list = &plan->lists[i].actions;
        plan->num_receives = larger(plan->num_receives, list->receive_buffers);
        plan->num_sends = larger(plan->num_sends, list->send_buffers);
        if (!plan->request.forward_only)
            plan->num_boundary_grads = larger(plan->num_boundary_grads, list->grad_buffers);
    }
    plan->receive = take_buffers(plan, CATEGORY_COMMUNICATION, plan->num_receives);
    plan->send = take_buffers(plan, CATEGORY_COMMUNICATION, plan->num_sends);
    for (int i = 0; i < plan->num_segments; i++) distributed |= plan_is_distributed(plan, &plan->segments[i]);
    for (int i = 0; i < 2 && distributed; i++)
        plan->full_input[i] = plan_take(plan, CATEGORY_ACTIVATIONS, plan_hidden_bytes(plan));
    plan->boundary_grad = take_buffers(plan, CATEGORY_ACTIVATIONS, plan->num_boundary_grads);
}

void plan_place_rest(struct plan *plan) {
    const struct model *m = &plan->request.model;
    size_t table = (size_t)(model_seq(m) * (m->rotary_dim / 2)) * sizeof(float);
    plan->rotary_cos = plan_take(plan, CATEGORY_TABLES, table);
    plan->rotary_sin = plan_take(plan, CATEGORY_TABLES, table);
    plan->reductions = plan_take(plan, CATEGORY_TABLES, 2 * (size_t)plan->num_params * sizeof(double));
    int parts = 4;
    for (int i = 0; i < plan->num_segments; i++) parts += plan->segments[i].kind == SEGMENT_MTP ? 3 : 0;
    plan->batch_part_bytes = align_up((size_t)(model_seq(m) * m->micro_batch) * 4);
    plan->batch_slot_bytes = (size_t)parts * plan->batch_part_bytes;
    plan->batch = plan_take(plan, CATEGORY_BATCH, (size_t)plan->num_slots * plan->batch_slot_bytes);
    plan->workspace_bytes = align_up(plan->workspace_bytes);
    plan->workspace = plan_take(plan, CATEGORY_WORKSPACE, plan->workspace_bytes);
    place_stage_buffers(plan);
    plan->activations = plan->arena_bytes;
    plan->arena_bytes += plan->activation_bytes;
}
