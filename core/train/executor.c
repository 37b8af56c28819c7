#include "core/train/executor.h"
#include "core/base/mem.h"
#include "core/train/sync.h"
#include "core/train/timers.h"
#include <string.h>

void *executor_at(const struct executor *e, size_t offset) {
    return e->arena->base + offset;
}

static void *stored_or_null(const struct executor *e, size_t offset) {
    return offset == SIZE_MAX ? NULL : executor_at(e, offset);
}

static void open_views(struct executor *e) {
    const struct plan *plan = e->plan;
    e->views = mem_new_array(struct param_view, (size_t)plan->num_params, "parameter views");
    e->grad_written = mem_new_array(bool, (size_t)plan->num_params, "parameter views");
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        const struct plan_bucket *b = &plan->buckets[p->bucket];
        e->views[i] = (struct param_view){.grad_written = &e->grad_written[i]};
        if (!b->is_unit && !plan->request.forward_only) e->views[i].grad = executor_at(e, p->grad);
        if (b->gathers_weights) continue; /* sync.c sets the places each time */
        const void *plain = stored_or_null(e, p->plain);
        if (!plain && plan->request.model.dtype == DTYPE_F32 && b->shard_elements == b->elements)
            plain = executor_at(e, p->master);
        e->views[i].plain = plain;
        e->views[i].packed_forward = stored_or_null(e, p->packed_forward);
        e->views[i].packed_backward = stored_or_null(e, p->packed_backward);
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

static void open_routers(struct executor *e) {
    const struct plan *plan = e->plan;
    e->routers = mem_new_array(struct router_state, (size_t)plan->num_routers, "routers");
    for (int i = 0; i < plan->num_routers; i++) {
        const struct plan_router *r = &plan->routers[i];
        e->routers[i] = (struct router_state){
            .bias = stored_or_null(e, r->bias),
            .tokens = stored_or_null(e, r->tokens),
            .seen = stored_or_null(e, r->seen),
        };
    }
    e->segment_routers =
        mem_new_array(struct router_state **, (size_t)plan->num_segments, "routers of segments");
    for (int i = 0; i < plan->num_segments; i++) {
        int n = plan->compiled[plan->segments[i].compiled].program.num_routers;
        e->segment_routers[i] = mem_new_array(struct router_state *, (size_t)n, "routers of a segment");
        for (int k = 0; k < n; k++) e->segment_routers[i][k] = &e->routers[plan->segments[i].routers[k]];
    }
}

static void begin_routers(struct executor *e) {
    for (int i = 0; i < e->plan->num_routers; i++) {
        struct router_state *r = &e->routers[i];
        size_t n = (size_t)e->plan->routers[i].experts;
        if (r->tokens) memset(r->tokens, 0, n * sizeof(*r->tokens));
        if (r->seen) memset(r->seen, 0, n * sizeof(*r->seen));
        r->batches = 0;
        r->losses = (struct router_losses){0};
    }
}

static void open_requests(struct executor *e) {
    int most = 0;
    for (int i = 0; i < e->plan->num_compiled; i++)
        if (e->plan->compiled[i].program.num_ops > most) most = e->plan->compiled[i].program.num_ops;
    e->requests = mem_new_array(struct comm_request *, 2 * (size_t)most, "requests");
    size_t grads = (size_t)e->plan->num_boundary_grads;
    e->receives = mem_new_array(struct comm_request *, (size_t)e->plan->num_receives, "requests");
    e->sends = mem_new_array(struct comm_request *, (size_t)e->plan->num_sends, "requests");
    e->grad_receives = mem_new_array(struct comm_request *, grads, "requests");
    e->grad_sends = mem_new_array(struct comm_request *, grads, "requests");
}

int executor_list_comms(const struct executor_comms *c, struct comm *list[EXECUTOR_MAX_COMMS]) {
    struct comm *const all[EXECUTOR_MAX_COMMS] = {
        c->world,  c->tensor,      c->context,        c->pipeline,           c->data, c->embedding, c->kv,
        c->expert, c->expert_data, c->tensor_context, c->tensor_data_context};
    int count = 0;
    for (int i = 0; i < EXECUTOR_MAX_COMMS; i++)
        if (all[i]) list[count++] = all[i];
    return count;
}

void executor_open(struct executor *e, const struct plan *plan, struct arena *arena, struct threads *threads,
                   uint32_t seed, const struct executor_comms *comms) {
    *e = (struct executor){.plan = plan, .arena = arena, .seed = seed};
    if (comms) e->comms = *comms;
    e->stream = (struct stream){.kernels = plan->request.kernels,
                                .threads = threads,
                                .workspace = arena->base + plan->workspace,
                                .workspace_bytes = plan->workspace_bytes};
    frames_open(&e->frames, plan);
    e->slots = mem_new_array(struct slot_state, (size_t)plan->num_slots, "slots");
    open_requests(e);
    open_views(e);
    open_routers(e);
    e->sync = sync_open(e);
    if (plan->request.model.rotary_dim)
        model_fill_rotary(&plan->request.model, executor_at(e, plan->rotary_cos),
                          executor_at(e, plan->rotary_sin));
    e->high_water = plan->activations;
}

void executor_close(struct executor *e) {
    for (int i = 0; e->segment_views && i < e->plan->num_segments; i++)
        mem_free((void *)(uintptr_t)e->segment_views[i]);
    mem_free((void *)(uintptr_t)e->segment_views);
    for (int i = 0; e->segment_routers && i < e->plan->num_segments; i++) mem_free(e->segment_routers[i]);
    mem_free(e->segment_routers);
    mem_free(e->routers);
    mem_free(e->views);
    mem_free(e->grad_written);
    mem_free(e->slots);
    mem_free(e->requests);
    mem_free(e->receives);
    mem_free(e->sends);
    mem_free(e->grad_receives);
    mem_free(e->grad_sends);
    sync_close(e->sync);
    frames_close(&e->frames);
    *e = (struct executor){0};
}

void executor_begin_step(struct executor *e, int64_t iteration) {
    memset(e->grad_written, 0, (size_t)e->plan->num_params * sizeof(*e->grad_written));
    memset(e->frames.live_end, 0, (size_t)e->frames.num_slots * sizeof(*e->frames.live_end));
    memset(e->phase_seconds, 0, sizeof(e->phase_seconds));
    e->iteration = (uint32_t)iteration;
    e->loss_sum = 0;
    memset(e->mtp_loss_sum, 0, sizeof(e->mtp_loss_sum));
    e->router_losses = (struct router_losses){0};
    begin_routers(e);
    e->bad.found = false;
}

/* ---- the micro-batch ---- */

/* Where the micro-batch of a depth lies in its slot: 0 of the head, then those of multi-token prediction,
 * which have no positions of their own. */
static struct batch_view batch_of(const struct executor *e, int slot, int depth) {
    size_t part = e->plan->batch_part_bytes;
    char *base = executor_at(e, e->plan->batch + (size_t)slot * e->plan->batch_slot_bytes);
    char *own = base + part * (size_t)(depth ? 1 + 3 * depth : 0), *rest = own + part * (depth ? 1 : 2);
    return (struct batch_view){.tokens = (int32_t *)(void *)own,
                               .positions = (int32_t *)(void *)(base + part),
                               .labels = (int32_t *)(void *)rest,
                               .loss_mask = (float *)(void *)(rest + part)};
}

/* Copies this rank's tokens of the micro-batch, `depth` places on, into its slot: tokens as they are, labels
 * and mask in the row order of hidden tensors ([s, b]). Behind the end of a sequence nothing counts. */
static void fill_batch(const struct model *m, const struct micro_batch *micro, int depth,
                       const struct batch_view *out) {
    struct model_piece pieces[MODEL_MAX_PIECES];
    int count = model_pieces(m, true, pieces);
    int64_t rows = model_seq(m);
    int32_t *tokens = (int32_t *)(uintptr_t)out->tokens, *positions = (int32_t *)(uintptr_t)out->positions;
    int32_t *labels = (int32_t *)(uintptr_t)out->labels;
    float *mask = (float *)(uintptr_t)out->loss_mask;
    for (int k = 0; k < count; k++)
        for (int64_t j = 0; j < m->micro_batch; j++)
            for (int64_t i = 0; i < pieces[k].count; i++) {
                int64_t place = pieces[k].global_first + i + depth, row = pieces[k].first + i;
                int64_t from = j * m->seq + place;
                bool inside = place < m->seq;
                tokens[j * rows + row] = inside ? micro->tokens[from] : 0;
                if (!depth) positions[j * rows + row] = micro->positions[from];
                labels[row * m->micro_batch + j] = inside ? micro->labels[from] : 0;
                mask[row * m->micro_batch + j] = inside ? micro->loss_mask[from] : 0;
            }
}

static void stage_batch(struct executor *e, int slot, const struct micro_batch *micro) {
    const struct plan *plan = e->plan;
    for (int i = -1; i < plan->num_segments; i++) {
        if (i >= 0 && plan->segments[i].kind != SEGMENT_MTP) continue;
        int depth = i < 0 ? 0 : plan->segments[i].first_layer + 1;
        struct batch_view view = batch_of(e, slot, depth);
        fill_batch(&plan->request.model, micro, depth, &view);
    }
}

/* ---- looking for the first value that is not finite ---- */

static bool is_bad(struct executor *e, const void *p, const struct tensor_info *t) {
    int64_t bad = 0;
    KERNEL_CALL(sum_squares, &e->stream, .out = executor_at(e, e->plan->reductions), .bad = &bad, .x = p,
                .n = (int64_t)(t->bytes / dtype_bytes(t->dtype)), .dtype = t->dtype);
    return bad != 0;
}

static enum executor_phase phase_of(enum instr_kind kind) {
    if (kind == INSTR_RERUN || kind == INSTR_RERUN_END) return PHASE_RECOMPUTE;
    return instr_is_backward(kind) ? PHASE_BACKWARD : PHASE_FORWARD;
}

/* What an instruction has just written: outputs, or gradients of inputs; once they are complete. */
static bool has_written(const struct op *o, enum instr_kind kind) {
    switch (kind) {
    case INSTR_FORWARD:
    case INSTR_RERUN:
        return !o->def->forward_end;
    case INSTR_BACKWARD:
        return !o->def->backward_end;
    case INSTR_FORWARD_END:
    case INSTR_RERUN_END:
    case INSTR_BACKWARD_END:
        return true;
    default:
        return false;
    }
}

static bool is_partly_undefined(const char *name) {
    static const char *const names[] = {"attention_scores", "logits_chunk", "loss_parts"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        if (!strcmp(name, names[i])) return true;
    return false;
}

static void check_instr(struct executor *e, struct run *r, const struct plan_segment *s) {
    const struct op *o = &r->program->ops[r->at->op];
    bool backward = instr_is_backward(r->at->kind);
    int count = backward ? o->num_in : o->num_out;
    if (!has_written(o, r->at->kind)) return;
    for (int k = 0; k < count && !e->bad.found; k++) {
        int tensor = backward ? o->in[k] : o->out[k];
        if (backward && !(o->grad_in >> k & 1)) continue;
        const struct tensor_info *t = run_info(r, tensor);
        if (!backward && (is_partly_undefined(t->name) || !dtype_is_float(t->dtype))) continue;
        if (t->is_partly_unused) continue;
        if (!is_bad(e, backward ? run_grad(r, tensor) : run_tensor(r, tensor), t)) continue;
        bool in_layer = s->kind == SEGMENT_LAYERS || s->kind == SEGMENT_MTP;
        e->bad = (struct bad_tensor){true,
                                     in_layer ? r->first_layer + o->layer : -1,
                                     o->name,
                                     t->name,
                                     phase_of(r->at->kind),
                                     backward,
                                     (int)r->rng.micro_batch};
    }
}

/* ---- lists ---- */

static void record(struct executor *e, const struct run *r, uint64_t begin, uint64_t end) {
    static const char *const categories[PHASE_COUNT] = {"forward", "recompute", "backward"};
    const struct op *o = &r->program->ops[r->at->op];
    enum executor_phase phase = phase_of(r->at->kind);
    e->phase_seconds[phase] += (double)(end - begin) * 1e-9;
    if (!e->trace) return;
    trace_span(e->trace,
               &(struct trace_event){
                   .name = o->name,
                   .category = categories[phase],
                   .begin_ns = begin,
                   .end_ns = end,
                   .num_args = 2,
                   .args = {{"layer", r->first_layer == UINT16_MAX ? -1 : r->first_layer + o->layer},
                            {"micro_batch", r->rng.micro_batch}}});
}

static void run_list(struct executor *e, struct run *r, const struct plan_segment *s,
                     const struct code *code) {
    r->code = code;
    uint64_t begin = clock_now_ns();
    for (int i = 0; i < code->num_instrs; i++) {
        run_instr(r, i);
        uint64_t end = clock_now_ns();
        record(e, r, begin, end);
        begin = end;
        if (e->check_finite && !e->bad.found) check_instr(e, r, s);
    }
}

static void note_memory(struct executor *e, const struct run *r) {
    size_t end = (size_t)(r->high_water - e->arena->base);
    if (r->high_water && end > e->high_water) e->high_water = end;
    if (e->run_ends) e->run_ends[e->num_run_ends++] = r->high_water ? end : e->plan->activations;
    if (e->trace)
        trace_counter(e->trace, "memory", clock_now_ns(), 1,
                      &(struct trace_arg){"allocated_bytes", (double)end});
}

/* ---- segments ---- */

static size_t slot_offset(const struct executor *e, const struct action *a) {
    return e->plan->activations + e->plan->slot_base[frames_slot(e->plan, a)];
}

/* Where a segment finds its input while it runs: in its frame, or whole beside it when the frame keeps a
 * share. */
static char *input_of(const struct executor *e, const struct action *a, int segment) {
    const struct plan_segment *s = &e->plan->segments[segment];
    if (plan_is_distributed(e->plan, s)) return executor_at(e, e->plan->full_input[segment & 1]);
    return executor_at(e, slot_offset(e, a) + s->input_offset);
}

static char *output_of(const struct executor *e, const struct action *a, int segment) {
    const struct plan_chunk *chunk = &e->plan->chunks[a->chunk];
    if (segment + 1 < chunk->first_segment + chunk->num_segments) return input_of(e, a, segment + 1);
    return a->kind == ACTION_FORWARD && a->send_buffer >= 0 ? executor_at(e, e->plan->send[a->send_buffer])
                                                            : NULL;
}

/* --distribute-saved-activations: the frame keeps this rank's stretch of the input. */
static void move_share(struct executor *e, const struct action *a, int segment, bool save) {
    const struct plan_segment *s = &e->plan->segments[segment];
    const struct model *m = &e->plan->request.model;
    if (!plan_is_distributed(e->plan, s)) return;
    int64_t share = model_rows(m) * m->micro_batch * m->hidden / m->tp;
    char *kept = executor_at(e, slot_offset(e, a) + s->input_offset), *whole = input_of(e, a, segment);
    char *own = whole + (size_t)(share * m->tp_rank) * dtype_bytes(m->dtype);
    KERNEL_CALL(cast, &e->stream, .dst = save ? kept : own, .src = save ? own : kept, .n = share,
                .dst_dtype = m->dtype, .src_dtype = m->dtype);
    if (!save) comm_all_gather(e->comms.tensor, whole, share, comm_dtype_of(m->dtype));
}

/* Number of the segment's first layer: of the model's layers, then of multi-token prediction's. */
static int first_layer_of(const struct plan *plan, const struct plan_segment *s) {
    if (s->kind == SEGMENT_EMBEDDING) return UINT16_MAX;
    return s->first_layer + (s->kind == SEGMENT_MTP ? (int)plan->request.model.layers : 0);
}

static struct run make_run(struct executor *e, const struct action *a, int segment, size_t work) {
    const struct plan *plan = e->plan;
    const struct plan_segment *s = &plan->segments[segment];
    const struct compiled *c = &plan->compiled[s->compiled];
    const struct slot_state *state = &e->slots[frames_slot(plan, a)];
    size_t slot = slot_offset(e, a);
    bool mtp = s->kind == SEGMENT_MTP;
    return (struct run){
        .program = &c->program,
        .stream = &e->stream,
        .input = input_of(e, a, segment),
        .output = output_of(e, a, segment),
        .frame = executor_at(e, slot + s->frame_offset),
        .work = executor_at(e, a->kind == ACTION_WEIGHT ? slot + s->hold_offset : work),
        .boundary_grad = a->kind == ACTION_BACKWARD
                             ? executor_at(e, plan->boundary_grad[a->buffer > 0 ? a->buffer : 0])
                             : NULL,
        .params = e->segment_views[segment],
        .batch = batch_of(e, frames_slot(plan, a), mtp ? s->first_layer + 1 : 0),
        .rotary_cos = executor_at(e, plan->rotary_cos),
        .rotary_sin = executor_at(e, plan->rotary_sin),
        .rng = {.seed = e->seed, .iteration = e->iteration, .micro_batch = (uint32_t)state->index},
        .first_layer = first_layer_of(plan, s),
        .training = state->training,
        .loss_grad_scale = mtp ? state->mtp_grad_scale[s->first_layer] : state->loss_grad_scale,
        .loss_sum = mtp ? &e->mtp_loss_sum[s->first_layer] : &e->loss_sum,
        .aux_grad_scale = state->aux_grad_scale,
        .router_losses = &e->router_losses,
        .routers = e->segment_routers[segment],
        .comms = {e->comms.tensor, e->comms.context, e->comms.expert, e->comms.tensor_context,
                  e->comms.tensor_data_context},
        .requests = e->requests,
        .hold = executor_at(e, slot + s->hold_offset),
        .weight_code = &c->weight};
}

static void run_segment(struct executor *e, const struct action *a, int segment) {
    const struct plan *plan = e->plan;
    const struct plan_segment *s = &plan->segments[segment];
    const struct compiled *c = &plan->compiled[s->compiled];
    bool forward = a->kind == ACTION_FORWARD;
    const struct code *code = forward ? &c->forward : a->kind == ACTION_WEIGHT ? &c->weight : &c->backward;
    size_t work = plan->activations + frames_enter(&e->frames, plan, a, segment);
    sync_before_segment(e, a, segment);
    if (a->kind != ACTION_WEIGHT) {
        arena_poison(e->arena, work, code->work_bytes);
        move_share(e, a, segment, forward);
    }
    struct run run = make_run(e, a, segment, work);
    run_list(e, &run, s, code);
    if (a->kind == ACTION_BACKWARD) run_finish(&run);
    note_memory(e, &run);
    sync_after_segment(e, a, segment);
    if (forward) return;
    frames_leave(&e->frames, plan, a, segment);
    if (!plan->schedule->splits_backward)
        arena_poison(e->arena, slot_offset(e, a) + s->input_offset, s->end_offset - s->input_offset);
}

/* ---- actions ---- */

static void compute(struct executor *e, const struct action *a, const struct micro_batch *micro) {
    const struct plan *plan = e->plan;
    const struct plan_chunk *chunk = &plan->chunks[a->chunk];
    int slot = frames_slot(plan, a), n = chunk->num_segments;
    bool forward = a->kind == ACTION_FORWARD;
    if (forward) {
        e->slots[slot] = (struct slot_state){.loss_grad_scale = micro->loss_grad_scale,
                                             .aux_grad_scale = micro->aux_grad_scale,
                                             .index = micro->index,
                                             .training = micro->training};
        memcpy(e->slots[slot].mtp_grad_scale, micro->mtp_grad_scale, sizeof(micro->mtp_grad_scale));
    }
    if (forward && micro->tokens) stage_batch(e, slot, micro);
    if (forward && a->receive_buffer >= 0) {
        comm_wait(e->receives[a->receive_buffer]);
        e->receives[a->receive_buffer] = NULL;
        memcpy(input_of(e, a, chunk->first_segment), executor_at(e, plan->receive[a->receive_buffer]),
               plan_hidden_bytes(plan));
    }
    if (a->kind == ACTION_BACKWARD && a->buffer >= 0) {
        comm_wait(e->grad_receives[a->buffer]);
        e->grad_receives[a->buffer] = NULL;
    }
    for (int i = 0; i < n; i++) {
        int segment = chunk->first_segment + (forward ? i : n - 1 - i);
        if (plan_runs_segment(plan, segment, e->slots[slot].training)) run_segment(e, a, segment);
    }
}

static void communicate(struct executor *e, const struct action *a) {
    const struct plan *plan = e->plan;
    int64_t bytes = (int64_t)plan_hidden_bytes(plan);
    switch (a->kind) {
    case ACTION_RECEIVE_FORWARD:
        e->receives[a->buffer] = comm_start_receive(
            e->comms.pipeline, executor_at(e, plan->receive[a->buffer]), bytes, a->peer, a->tag);
        return;
    case ACTION_RECEIVE_BACKWARD:
        e->grad_receives[a->buffer] = comm_start_receive(
            e->comms.pipeline, executor_at(e, plan->boundary_grad[a->buffer]), bytes, a->peer, a->tag);
        return;
    case ACTION_SEND_FORWARD:
        e->sends[a->buffer] =
            comm_start_send(e->comms.pipeline, executor_at(e, plan->send[a->buffer]), bytes, a->peer, a->tag);
        return;
    case ACTION_SEND_BACKWARD:
        e->grad_sends[a->buffer] = comm_start_send(
            e->comms.pipeline, executor_at(e, plan->boundary_grad[a->buffer]), bytes, a->peer, a->tag);
        return;
    case ACTION_WAIT_SEND_FORWARD:
        comm_wait(e->sends[a->buffer]);
        e->sends[a->buffer] = NULL;
        return;
    case ACTION_WAIT_SEND_BACKWARD:
        comm_wait(e->grad_sends[a->buffer]);
        e->grad_sends[a->buffer] = NULL;
        return;
    default:
        CHECK(false, "action %d does not communicate", (int)a->kind);
    }
}

void executor_run(struct executor *e, const struct action *action, const struct micro_batch *micro) {
    if (action->kind <= ACTION_WEIGHT)
        compute(e, action, micro);
    else
        communicate(e, action);
}
