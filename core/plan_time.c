/* Predicted times: see plan_time.h. */
#include "core/plan_time.h"
#include "core/base/mem.h"
#include "core/model/run.h"

/* ---- the clock ---- */

void plan_clock_start(struct plan_clock *c, const struct plan_request *request, int num_ops,
                      const struct kernel_meter *meter) {
    const struct model *m = &request->model;
    *c = (struct plan_clock){.hardware = request->hardware,
                             .dtype = m->dtype,
                             .dropout = m->hidden_dropout > 0,
                             .num_ops = num_ops};
    if (!c->hardware) return;
    c->ends = mem_new_array(double, 2 * (size_t)num_ops, "plan clock");
    c->seen = *meter;
}

void plan_clock_stop(struct plan_clock *c) {
    mem_free(c->ends);
    c->ends = NULL;
}

static double kernel_seconds(struct plan_clock *c, const struct kernel_meter *meter) {
    double seconds = 0;
    for (int k = 0; k < KERNEL_COUNT; k++) {
        if (meter->calls[k] == c->seen.calls[k]) continue;
        struct kernel_cost cost = meter->by_kernel[k], before = c->seen.by_kernel[k];
        cost.flops -= before.flops;
        cost.gemm_flops -= before.gemm_flops;
        cost.bytes -= before.bytes;
        seconds +=
            hardware_kernel_seconds(c->hardware, (enum kernel_id)k, cost,
                                    (double)(meter->calls[k] - c->seen.calls[k]), c->dtype, c->dropout);
    }
    c->seen = *meter;
    return seconds;
}

double plan_clock_instr(struct plan_clock *c, const struct op *op, const struct instr *instr,
                        const struct kernel_meter *meter, double message_seconds) {
    if (!c->hardware) return 0;
    double before = c->now;
    bool backward = instr_is_backward(instr->kind);
    double *end = &c->ends[2 * instr->op + backward];
    switch (instr->kind) {
    case INSTR_FORWARD_END:
    case INSTR_RERUN_END:
    case INSTR_BACKWARD_END:
        if (*end > c->now) c->now = *end;
        c->now += kernel_seconds(c, meter);
        break;
    default:
        c->now += kernel_seconds(c, meter);
        if (message_seconds > 0) {
            *end = (c->link_free > c->now ? c->link_free : c->now) + message_seconds;
            c->link_free = *end;
            bool ends_later = backward ? op->def->backward_end != NULL : op->def->forward_end != NULL;
            if (!ends_later) c->now = *end;
        }
    }
    return c->now - before;
}

/* ---- a stage ---- */

/* A message of the ranks that share the parameters of a bucket: `bytes` is the whole buffer, `rounds` 1 for a
 * gather or a scatter and 2 for a sum. */
static double shared_seconds(const struct plan *plan, const struct plan_bucket *b, double bytes, int rounds) {
    const struct plan_layout *l = &plan->request.layout;
    const struct model *m = &plan->request.model;
    bool expert = b->family == FAMILY_EXPERT;
    int n = expert ? l->expert_data : l->data;
    int64_t inner = expert ? model_expert_ranks(m) : model_tp(m);
    if (n <= 1) return 0;
    return hardware_message_seconds(plan->request.hardware, rounds * bytes * (n - 1) / n, rounds, inner * n);
}

static double reduce_seconds(const struct plan *plan, const struct plan_bucket *b, int rounds) {
    return shared_seconds(plan, b, 4.0 * (double)b->elements, rounds);
}

static double gather_seconds(const struct plan *plan, const struct plan_bucket *b) {
    return shared_seconds(plan, b, (double)b->elements * (double)dtype_bytes(plan->request.model.dtype), 1);
}

static void time_chunk(const struct plan *plan, int v, struct stage_time *out) {
    double forward_messages = 0, backward_messages = 0;
    for (int i = 0; i < plan->chunks[v].num_segments; i++) {
        const struct plan_segment *s = &plan->segments[plan->chunks[v].first_segment + i];
        const struct compiled_cost *c = &plan->costs[s->compiled];
        out->forward[v] += c->forward_seconds;
        out->backward[v] += c->rerun_seconds + c->backward_seconds;
        out->weight[v] += c->weight_seconds;
        out->rerun += c->rerun_seconds;
    }
    for (int i = 0; i < plan->num_buckets; i++) {
        const struct plan_bucket *b = &plan->buckets[i];
        if (b->chunk != v || !b->is_unit) continue;
        backward_messages += reduce_seconds(plan, b, 1);
        if (b->gathers_weights) {
            forward_messages += gather_seconds(plan, b);
            backward_messages += gather_seconds(plan, b);
        }
    }
    if (forward_messages > out->forward[v]) out->forward[v] = forward_messages;
    if (backward_messages > out->backward[v]) out->backward[v] = backward_messages;
}

/* What is reduced and gathered once in a step. With overlap all but one bucket's share can hide behind the
 * last backward and the first forward. */
static void time_shared(const struct plan *plan, struct stage_time *out) {
    const struct plan_layout *l = &plan->request.layout;
    bool sharded = l->sharding != PLAN_SHARD_NONE;
    double reduce = 0, gather = 0;
    int count = 0;
    for (int i = 0; i < plan->num_buckets; i++) {
        const struct plan_bucket *b = &plan->buckets[i];
        count += !b->is_unit;
        if (!b->is_unit) reduce += reduce_seconds(plan, b, sharded ? 1 : 2);
        if (sharded && !b->gathers_weights) gather += gather_seconds(plan, b);
    }
    if (l->overlap_grad_reduce && count) {
        double hidden = reduce * (count - 1) / count, cover = out->backward[0] + out->weight[0];
        reduce -= hidden < cover ? hidden : cover;
    }
    if (l->overlap_param_gather && plan->num_buckets) {
        double hidden = gather * (plan->num_buckets - 1) / plan->num_buckets;
        gather -= hidden < out->forward[0] ? hidden : out->forward[0];
    }
    out->exposed_reduce = reduce;
    out->exposed_gather = gather;
}

/* The norm of the gradients, the update, and the forms that the kernels read. */
static double optimizer_seconds(const struct plan *plan) {
    const struct hardware *hw = plan->request.hardware;
    enum dtype dtype = plan->request.model.dtype;
    double size = (double)dtype_bytes(dtype), updated = 0, held = 0, packed = 0, copied = 0;
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        struct adamw_args args = {.n = p->held_count};
        updated += adamw_cost(&args).bytes;
        held += 4.0 * (double)p->held_count;
        packed += ((p->packed_forward != SIZE_MAX) + (p->packed_backward != SIZE_MAX)) * (double)p->count *
                  (4 + size);
        if (p->plain != SIZE_MAX && dtype != DTYPE_F32) copied += (double)p->count * (4 + size);
    }
    return updated / hw->bandwidth_optimizer + held / hw->bandwidth_sum + packed / hw->bandwidth_pack +
           copied / hw->bandwidth_copy;
}

void plan_time_stage(const struct plan *plan, struct stage_time *out) {
    size_t n = (size_t)plan->num_chunks;
    const struct model *m = &plan->request.model;
    *out = (struct stage_time){.chunks = plan->num_chunks, .matrix_flops = plan->step_gemm_flops};
    out->forward = mem_new_array(double, n, "stage times");
    out->backward = mem_new_array(double, n, "stage times");
    out->weight = mem_new_array(double, n, "stage times");
    if (!plan->request.hardware) return;
    for (int v = 0; v < plan->num_chunks; v++) time_chunk(plan, v, out);
    time_shared(plan, out);
    out->optimizer = optimizer_seconds(plan);
    if (plan->request.layout.stages > 1)
        out->send = hardware_message_seconds(plan->request.hardware, (double)plan_hidden_bytes(plan), 1,
                                             2 * model_tp(m) * plan->request.layout.data);
}

void stage_time_free(struct stage_time *t) {
    mem_free(t->forward);
    mem_free(t->backward);
    mem_free(t->weight);
    *t = (struct stage_time){0};
}

/* ---- the step ---- */

struct step_time plan_time_step(const struct plan *plan, const struct stage_time *times) {
    const struct plan_layout *l = &plan->request.layout;
    int stages = l->stages > 0 ? l->stages : 1, chunks = plan->num_chunks, n = plan->request.micro_batches;
    struct schedule_shape shape = {.stages = stages,
                                   .chunks = chunks,
                                   .micro_batches = n,
                                   .group = l->group,
                                   .forward_only = plan->request.forward_only,
                                   .late_receive = l->late_receive};
    size_t cells = (size_t)(stages * chunks);
    double *seconds = mem_new_array(double, 3 * cells, "step time");
    struct schedule_times by_action = {seconds, seconds + cells, seconds + 2 * cells, 0};
    struct step_time step = {0};
    double tail = 0;
    for (int r = 0; r < stages; r++) {
        const struct stage_time *t = &times[r];
        double exposed = t->exposed_reduce + t->exposed_gather;
        for (int v = 0; v < chunks; v++) {
            seconds[v * stages + r] = t->forward[v];
            seconds[cells + (size_t)(v * stages + r)] = t->backward[v];
            seconds[2 * cells + (size_t)(v * stages + r)] = t->weight[v];
        }
        if (t->send > by_action.message) by_action.message = t->send;
        if (t->rerun * n > step.rerun) step.rerun = t->rerun * n;
        if (exposed > step.exposed) step.exposed = exposed;
        if (t->optimizer > step.optimizer) step.optimizer = t->optimizer;
        if (exposed + t->optimizer > tail) tail = exposed + t->optimizer;
    }
    struct schedule_report report;
    step.schedule = schedule_simulate_times(plan->schedule, &shape, &by_action, &report);
    step.bubble = report.bubble;
    step.seconds = step.schedule + (plan->request.forward_only ? 0 : tail);
    mem_free(seconds);
    return step;
}
