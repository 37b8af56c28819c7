#include "core/train/executor.h"
#include "core/base/mem.h"
#include "core/train/timers.h"
#include <string.h>

void *executor_at(const struct executor *e, size_t offset) {
    return e->arena->base + offset;
}

static const void *stored_or_null(const struct executor *e, size_t offset) {
    return offset == SIZE_MAX ? NULL : executor_at(e, offset);
}

static void open_views(struct executor *e) {
    const struct plan *plan = e->plan;
    e->views = mem_new_array(struct param_view, (size_t)plan->num_params, "parameter views");
    e->grad_written = mem_new_array(bool, (size_t)plan->num_params, "parameter views");
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        const void *plain = stored_or_null(e, p->plain);
        if (!plain && plan->request.model.dtype == DTYPE_F32) plain = executor_at(e, p->master);
        e->views[i] = (struct param_view){
            plain, stored_or_null(e, p->packed_forward), stored_or_null(e, p->packed_backward),
            plan->request.forward_only ? NULL : executor_at(e, p->grad), &e->grad_written[i]};
    }
    e->segment_views =
        mem_new_array(const struct param_view **, (size_t)plan->num_segments, "parameter views of segments");
    for (int i = 0; i < plan->num_segments; i++) {
        const struct plan_segment *s = &plan->segments[i];
        int n = plan->compiled[s->compiled].program.num_params;
        e->segment_views[i] =
            mem_new_array(const struct param_view *, (size_t)n, "parameter views of a segment");
        for (int k = 0; k < n; k++) e->segment_views[i][k] = &e->views[s->params[k]];
    }
}

void executor_open(struct executor *e, const struct plan *plan, struct arena *arena, struct threads *threads,
                   uint32_t seed) {
    *e = (struct executor){.plan = plan, .arena = arena, .seed = seed};
    e->stream = (struct stream){.kernels = plan->request.kernels,
                                .threads = threads,
                                .workspace = arena->base + plan->workspace,
                                .workspace_bytes = plan->workspace_bytes};
    frames_open(&e->frames, plan);
    open_views(e);
    if (plan->request.model.rotary_dim)
        model_fill_rotary(&plan->request.model, executor_at(e, plan->rotary_cos),
                          executor_at(e, plan->rotary_sin));
    e->high_water = plan->activations;
}

void executor_close(struct executor *e) {
    for (int i = 0; e->segment_views && i < e->plan->num_segments; i++)
        mem_free((void *)(uintptr_t)e->segment_views[i]);
    mem_free((void *)(uintptr_t)e->segment_views);
    mem_free(e->views);
    mem_free(e->grad_written);
    frames_close(&e->frames);
    *e = (struct executor){0};
}

void executor_begin_step(struct executor *e, int64_t iteration) {
    memset(e->grad_written, 0, (size_t)e->plan->num_params * sizeof(*e->grad_written));
    memset(e->frames.live_end, 0, (size_t)e->frames.num_slots * sizeof(*e->frames.live_end));
    memset(e->phase_seconds, 0, sizeof(e->phase_seconds));
    e->iteration = (uint32_t)iteration;
    e->loss_sum = 0;
    e->bad.found = false;
}

/* ---- the micro-batch ---- */

/* Copies the micro-batch into its slot: tokens and positions as they are, labels and mask in the row order of
 * hidden tensors ([s, b]). */
static struct batch_view stage_batch(struct executor *e, int slot, const struct micro_batch *micro) {
    const struct model *m = &e->plan->request.model;
    size_t part = e->plan->batch_slot_bytes / 4, n = (size_t)(m->seq * m->micro_batch);
    char *base = executor_at(e, e->plan->batch + (size_t)slot * e->plan->batch_slot_bytes);
    int32_t *tokens = (int32_t *)(void *)base, *positions = (int32_t *)(void *)(base + part);
    int32_t *labels = (int32_t *)(void *)(base + 2 * part);
    float *mask = (float *)(void *)(base + 3 * part);
    if (micro) {
        memcpy(tokens, micro->tokens, n * 4);
        memcpy(positions, micro->positions, n * 4);
        for (int64_t i = 0; i < m->seq; i++)
            for (int64_t j = 0; j < m->micro_batch; j++) {
                labels[i * m->micro_batch + j] = micro->labels[j * m->seq + i];
                mask[i * m->micro_batch + j] = micro->loss_mask[j * m->seq + i];
            }
    }
    return (struct batch_view){tokens, positions, labels, mask};
}

/* ---- looking for the first value that is not finite ---- */

static bool is_bad(struct executor *e, const void *p, const struct tensor_info *t) {
    int64_t bad = 0;
    KERNEL_CALL(sum_squares, &e->stream, .out = executor_at(e, e->plan->reductions), .bad = &bad, .x = p,
                .n = (int64_t)(t->bytes / dtype_bytes(t->dtype)), .dtype = t->dtype);
    return bad != 0;
}

static void check_instr(struct executor *e, struct run *r, const struct micro_batch *micro) {
    const struct op *o = &r->program->ops[r->at->op];
    bool backward = r->at->kind == INSTR_BACKWARD;
    int count = backward ? o->num_in : o->num_out;
    for (int k = 0; k < count && !e->bad.found; k++) {
        int tensor = backward ? o->in[k] : o->out[k];
        if (backward && !(o->grad_in >> k & 1)) continue;
        const struct tensor_info *t = run_info(r, tensor);
        if (!backward && !strcmp(t->name, "attention_scores")) continue; /* masked part is undefined */
        if (!backward && !strcmp(t->name, "logits_chunk")) continue;     /* may hold less than a chunk */
        if (!is_bad(e, backward ? run_grad(r, tensor) : run_tensor(r, tensor), t)) continue;
        bool in_layer = r->program->input >= 0 && r->program->output >= 0;
        e->bad = (struct bad_tensor){true,        in_layer ? r->first_layer + o->layer : -1, o->name,
                                     t->name,     (enum executor_phase)r->at->kind,          backward,
                                     micro->index};
    }
}

/* ---- lists ---- */

static void record(struct executor *e, const struct run *r, uint64_t begin, uint64_t end) {
    static const char *const categories[PHASE_COUNT] = {"forward", "recompute", "backward"};
    const struct op *o = &r->program->ops[r->at->op];
    e->phase_seconds[r->at->kind] += (double)(end - begin) * 1e-9;
    if (!e->trace) return;
    trace_span(e->trace,
               &(struct trace_event){
                   .name = o->name,
                   .category = categories[r->at->kind],
                   .begin_ns = begin,
                   .end_ns = end,
                   .num_args = 2,
                   .args = {{"layer", r->first_layer == UINT16_MAX ? -1 : r->first_layer + o->layer},
                            {"micro_batch", r->rng.micro_batch}}});
}

static void run_list(struct executor *e, struct run *r, const struct code *code,
                     const struct micro_batch *micro) {
    r->code = code;
    uint64_t begin = clock_now_ns();
    for (int i = 0; i < code->num_instrs; i++) {
        run_instr(r, i);
        uint64_t end = clock_now_ns();
        record(e, r, begin, end);
        begin = end;
        if (e->check_finite && !e->bad.found) check_instr(e, r, micro);
    }
    if (code->at[code->num_instrs - 1].kind == INSTR_BACKWARD) run_finish(r);
}

static void note_memory(struct executor *e, const struct run *r) {
    size_t end = (size_t)(r->high_water - e->arena->base);
    if (r->high_water && end > e->high_water) e->high_water = end;
    if (e->trace)
        trace_counter(e->trace, "memory", clock_now_ns(), 1,
                      &(struct trace_arg){"allocated_bytes", (double)end});
}

static void run_segment(struct executor *e, const struct action *a, int segment,
                        const struct micro_batch *micro, struct batch_view batch) {
    const struct plan *plan = e->plan;
    const struct plan_segment *s = &plan->segments[segment];
    const struct compiled *c = &plan->compiled[s->compiled];
    bool forward = a->kind == ACTION_FORWARD;
    const struct code *code = forward ? &c->forward : &c->backward;
    size_t slot = plan->activations + (size_t)a->slot * plan->slot_bytes;
    size_t work = plan->activations + frames_enter(&e->frames, plan, a, segment);
    bool has_next = segment + 1 < plan->num_segments;
    struct run run = {
        .program = &c->program,
        .stream = &e->stream,
        .input = executor_at(e, slot + s->input_offset),
        .output = has_next ? executor_at(e, slot + plan->segments[segment + 1].input_offset) : NULL,
        .frame = executor_at(e, slot + s->frame_offset),
        .work = executor_at(e, work),
        .boundary_grad = executor_at(e, plan->boundary_grad),
        .params = e->segment_views[segment],
        .batch = batch,
        .rotary_cos = executor_at(e, plan->rotary_cos),
        .rotary_sin = executor_at(e, plan->rotary_sin),
        .rng = {.seed = e->seed, .iteration = e->iteration, .micro_batch = (uint32_t)micro->index},
        .first_layer = s->kind == SEGMENT_EMBEDDING ? UINT16_MAX : s->first_layer,
        .training = micro->training,
        .loss_grad_scale = micro->loss_grad_scale,
        .loss_sum = &e->loss_sum};
    arena_poison(e->arena, work, code->work_bytes);
    run_list(e, &run, code, micro);
    note_memory(e, &run);
    if (forward) return;
    frames_leave(&e->frames, plan, a, segment);
    arena_poison(e->arena, slot + s->input_offset, s->end_offset - s->input_offset);
}

void executor_run(struct executor *e, const struct action *action, const struct micro_batch *micro) {
    int n = e->plan->num_segments;
    bool forward = action->kind == ACTION_FORWARD;
    struct batch_view batch = stage_batch(e, action->slot, forward ? micro : NULL);
    for (int i = 0; i < n; i++) run_segment(e, action, forward ? i : n - 1 - i, micro, batch);
}
