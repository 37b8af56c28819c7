/* Costs: every list, the optimizer and the packing of weights run once on the meta kernels, which add up
 * FLOPs, bytes and workspace; messages are counted by fake communicators. */
#include "core/plan_internal.h"
#include "core/base/mem.h"
#include "core/model/run.h"
#include "core/plan_time.h"

/* Addresses on meta are never read; they only have to be distinguishable from NULL. */
static void *meta_address(void) {
    return (void *)(uintptr_t)4096;
}

struct meter {
    const struct plan *plan;
    struct kernels table;
    struct kernel_meter meter;
    struct stream stream;
    struct comm_world *world;
    struct run_comms comms;
};

static struct comm *open_group(struct comm_world *world, const char *name, int size) {
    int *ranks = mem_new_array(int, (size_t)size, "fake group");
    for (int i = 0; i < size; i++) ranks[i] = i;
    struct comm *comm = comm_open(world, name, ranks, size);
    mem_free(ranks);
    return comm;
}

static void meter_open(struct meter *m, const struct plan *plan) {
    const struct model *model = &plan->request.model;
    int tp = (int)model_tp(model), cp = (int)model_cp(model), experts = (int)model_expert_ranks(model);
    int data = plan->request.layout.data > cp ? plan->request.layout.data : cp, world = tp * data;
    if (experts > world) world = experts;
    *m = (struct meter){.plan = plan, .table = kernels_meta(plan->request.kernels)};
    m->stream = (struct stream){.kernels = &m->table, .threads = plan->request.threads, .meter = &m->meter};
    comm_world_open_fake(&m->world, 0, world);
    m->comms = (struct run_comms){.tp = open_group(m->world, "tensor", tp),
                                  .cp = open_group(m->world, "context", cp)};
    if (!model->moe.experts) return;
    m->comms.expert = open_group(m->world, "expert", experts);
    m->comms.tp_cp = open_group(m->world, "tensor-context", tp * cp);
    m->comms.tp_dp_cp = open_group(m->world, "tensor-data-context", tp * data);
}

static int list_comms(const struct meter *m, struct comm *list[5]) {
    struct comm *const all[] = {m->comms.tp, m->comms.cp, m->comms.expert, m->comms.tp_cp, m->comms.tp_dp_cp};
    int count = 0;
    for (size_t i = 0; i < ARRAY_COUNT(all); i++)
        if (all[i]) list[count++] = all[i];
    return count;
}

static void meter_close(struct meter *m) {
    struct comm *comms[5];
    int count = list_comms(m, comms);
    for (int i = 0; i < count; i++) comm_close(comms[i]);
    comm_world_close(m->world);
}

static double messages(const struct meter *m) {
    struct comm *comms[5];
    int count = list_comms(m, comms);
    double bytes = 0;
    for (int i = 0; i < count; i++)
        for (int kind = 0; kind < COMM_KIND_COUNT; kind++)
            bytes += comm_stats(comms[i], (enum comm_kind)kind)->bytes;
    return bytes;
}

static double group_seconds(const struct meter *m, const struct comm *comm, int64_t span) {
    double seconds = 0;
    if (!comm || comm_size(comm) == 1) return 0;
    for (int kind = 0; kind < COMM_KIND_COUNT; kind++) {
        const struct comm_stats *s = comm_stats(comm, (enum comm_kind)kind);
        seconds += hardware_message_seconds(m->plan->request.hardware, s->bytes, (double)s->calls, span);
    }
    return seconds;
}

/* Seconds that all messages so far take on their links. */
static double message_seconds(const struct meter *m) {
    const struct plan_request *r = &m->plan->request;
    int64_t tp = model_tp(&r->model), cp = model_cp(&r->model),
            data = r->layout.data > cp ? r->layout.data : cp;
    if (!r->hardware) return 0;
    return group_seconds(m, m->comms.tp, tp) + group_seconds(m, m->comms.cp, tp * cp) +
           group_seconds(m, m->comms.expert, model_expert_ranks(&r->model)) +
           group_seconds(m, m->comms.tp_cp, tp * cp) + group_seconds(m, m->comms.tp_dp_cp, tp * data);
}

enum { FORWARD, RERUN, BACKWARD };

static int phase_of(enum instr_kind kind) {
    if (kind == INSTR_RERUN || kind == INSTR_RERUN_END) return RERUN;
    return instr_is_backward(kind) ? BACKWARD : FORWARD;
}

static void measure_list(struct meter *m, const struct compiled *c, const struct code *code,
                         struct kernel_cost by_phase[3], double seconds[3], double *op_flops) {
    bool written = false;
    struct plan_clock clock;
    const struct plan_request *r = &m->plan->request;
    const void *packed = r->kernels->gemm_packed_bytes(r->model.dtype, 64, 64) ? meta_address() : NULL;
    struct param_view view = {meta_address(), packed, packed, meta_address(), &written};
    const struct param_view **views =
        mem_new_array(const struct param_view *, (size_t)c->program.num_params, "meta parameters");
    struct comm_request **requests =
        mem_new_array(struct comm_request *, 2 * (size_t)c->program.num_ops, "meta requests");
    for (int i = 0; i < c->program.num_params; i++) views[i] = &view;
    struct run run = {.program = &c->program,
                      .stream = &m->stream,
                      .input = meta_address(),
                      .output = meta_address(),
                      .frame = meta_address(),
                      .work = meta_address(),
                      .boundary_grad = meta_address(),
                      .params = views,
                      .batch = {meta_address(), meta_address(), meta_address(), meta_address()},
                      .rotary_cos = meta_address(),
                      .rotary_sin = meta_address(),
                      .training = true,
                      .comms = m->comms,
                      .requests = requests,
                      .hold = meta_address(),
                      .weight_code = &c->weight,
                      .code = code};
    plan_clock_start(&clock, r, c->program.num_ops, &m->meter);
    for (int i = 0; i < code->num_instrs; i++) {
        double sent = message_seconds(m);
        struct kernel_cost before = m->meter.total;
        struct kernel_cost *sum = &by_phase[phase_of(code->at[i].kind)];
        run_instr(&run, i);
        seconds[phase_of(code->at[i].kind)] += plan_clock_instr(
            &clock, &c->program.ops[code->at[i].op], &code->at[i], &m->meter, message_seconds(m) - sent);
        sum->flops += m->meter.total.flops - before.flops;
        if (code->at[i].kind == INSTR_FORWARD) op_flops[code->at[i].op] = m->meter.total.flops - before.flops;
        sum->gemm_flops += m->meter.total.gemm_flops - before.gemm_flops;
        sum->bytes += m->meter.total.bytes - before.bytes;
    }
    plan_clock_stop(&clock);
    mem_free(views);
    mem_free(requests);
}

/* The optimizer step and the packing of weights use the same workspace. */
static void measure_optimizer(struct plan *plan, struct meter *m) {
    const struct stream *stream = &m->stream;
    void *p = meta_address();
    double before = m->meter.total.bytes;
    enum dtype dtype = plan->request.model.dtype;
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *param = &plan->params[i];
        KERNEL_CALL(normal_init, stream, .x = p, .n = param->count);
        KERNEL_CALL(fill, stream, .y = p, .n = param->count, .dtype = DTYPE_F32);
        KERNEL_CALL(cast, stream, .dst = p, .src = (char *)p + 64, .n = param->count, .dst_dtype = dtype,
                    .src_dtype = DTYPE_F32);
        KERNEL_CALL(sum_squares, stream, .out = p, .x = p, .n = param->count, .dtype = DTYPE_F32);
        KERNEL_CALL(adamw, stream, .master = p, .m = p, .v = p, .grad = p, .n = param->count,
                    .bias_correction1 = 1, .bias_correction2 = 1);
        int64_t rows = param->dims[0] / param->groups;
        for (int g = 0; g < param->groups && param->packed_forward != SIZE_MAX; g++)
            KERNEL_CALL(gemm_pack, stream, .dst = p, .src = p, .k = param->dims[1], .n = rows, .trans = true,
                        .dtype = dtype, .src_dtype = DTYPE_F32);
        for (int g = 0; g < param->groups && param->packed_backward != SIZE_MAX; g++)
            KERNEL_CALL(gemm_pack, stream, .dst = p, .src = p, .k = rows, .n = param->dims[1], .dtype = dtype,
                        .src_dtype = DTYPE_F32);
    }
    plan->step_bytes += m->meter.total.bytes - before;
}

static void measure_compiled(struct meter *m, const struct compiled *c, struct compiled_cost *cost) {
    struct kernel_cost by_phase[3] = {0};
    double seconds[3] = {0}, weight_seconds[3] = {0}, sent = messages(m);
    cost->op_flops = mem_new_array(double, (size_t)c->program.num_ops, "op costs");
    measure_list(m, c, &c->forward, by_phase, seconds, cost->op_flops);
    if (!m->plan->request.forward_only) {
        measure_list(m, c, &c->backward, by_phase, seconds, cost->op_flops);
        measure_list(m, c, &c->weight, by_phase, weight_seconds, cost->op_flops);
    }
    cost->forward = by_phase[FORWARD];
    cost->rerun = by_phase[RERUN];
    cost->backward = by_phase[BACKWARD];
    cost->message_bytes = messages(m) - sent;
    cost->forward_seconds = seconds[FORWARD];
    cost->rerun_seconds = seconds[RERUN];
    cost->backward_seconds = seconds[BACKWARD];
    cost->weight_seconds = weight_seconds[BACKWARD];
}

void plan_measure_compiled(const struct plan *plan, const struct compiled *c, struct compiled_cost *cost) {
    struct meter m;
    meter_open(&m, plan);
    measure_compiled(&m, c, cost);
    meter_close(&m);
}

static void measure_segments(struct plan *plan, struct meter *m) {
    for (int i = 0, next = 0; i < plan->num_segments; i++) {
        if (plan->segments[i].compiled != next) continue; /* measured with an earlier, equal segment */
        measure_compiled(m, &plan->compiled[next], &plan->costs[next]);
        next++;
    }
}

/* Context-parallel ranks see different stretches of the keys, so their kernels may want different workspaces;
 * all take the largest, so that all have the same plan. */
static void measure_other_ranks(struct plan *plan, struct meter *m) {
    struct model model = plan->request.model;
    for (model.cp_rank = 0; model.cp_rank < model_cp(&model) && model.cp > 1; model.cp_rank++) {
        struct program program;
        struct compiled compiled;
        struct kernel_cost by_phase[3] = {{0}};
        program_init(&program);
        build_layers(&program, &model, 0, 1);
        recompute_compile(&program, RECOMPUTE_BIT(MODULE_tensor_gather), false, &compiled);
        double *op_flops = mem_new_array(double, (size_t)compiled.program.num_ops, "op costs"),
               seconds[3] = {0};
        measure_list(m, &compiled, &compiled.forward, by_phase, seconds, op_flops);
        if (!plan->request.forward_only)
            measure_list(m, &compiled, &compiled.backward, by_phase, seconds, op_flops);
        mem_free(op_flops);
        recompute_free(&compiled);
    }
}

void plan_measure_costs(struct plan *plan) {
    struct meter m;
    meter_open(&m, plan);
    measure_segments(plan, &m);
    for (int i = 0; i < plan->num_segments; i++) {
        const struct compiled_cost *c = &plan->costs[plan->segments[i].compiled];
        int n = plan->request.micro_batches;
        plan->step_rerun_gemm_flops += n * c->rerun.gemm_flops;
        plan->step_rerun_flops += n * c->rerun.flops;
        plan->step_gemm_flops += n * (c->forward.gemm_flops + c->rerun.gemm_flops + c->backward.gemm_flops);
        plan->step_flops += n * (c->forward.flops + c->rerun.flops + c->backward.flops);
        plan->step_bytes += n * (c->forward.bytes + c->rerun.bytes + c->backward.bytes);
    }
    measure_optimizer(plan, &m);
    measure_other_ranks(plan, &m);
    plan->workspace_bytes = m.meter.workspace_bytes;
    meter_close(&m);
}
