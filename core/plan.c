#include "core/plan.h"
#include "core/base/hash.h"
#include "core/base/mem.h"
#include "core/model/run.h"
#include <stdio.h>
#include <stdlib.h>

const char *plan_category_name(enum plan_category category) {
    static const char *const names[CATEGORY_COUNT] = {"weights", "gradients", "optimizer",  "tables",
                                                      "batch",   "workspace", "activations"};
    return names[category];
}

/* ---- segments ---- */

/* Compiles a segment unless an equal one exists. Returns its index. */
static int compile_segment(struct plan *plan, enum segment_kind kind, int num_layers,
                           recompute_set selected) {
    for (int i = 0; i < plan->num_segments; i++) {
        const struct plan_segment *s = &plan->segments[i];
        if (s->kind == kind && s->num_layers == num_layers && s->selected == selected) return s->compiled;
    }
    struct program program;
    program_init(&program);
    if (kind == SEGMENT_EMBEDDING) build_embedding(&program, &plan->request.model);
    if (kind == SEGMENT_LAYERS) build_layers(&program, &plan->request.model, num_layers);
    if (kind == SEGMENT_HEAD) build_head(&program, &plan->request.model);
    recompute_compile(&program, selected, &plan->compiled[plan->num_compiled]);
    return plan->num_compiled++;
}

static void add_segment(struct plan *plan, enum segment_kind kind, int first_layer, int num_layers,
                        recompute_set selected) {
    int compiled = compile_segment(plan, kind, num_layers, selected);
    plan->segments[plan->num_segments++] =
        (struct plan_segment){kind, compiled, first_layer, num_layers, selected, NULL, 0, 0, 0};
}

static void make_segments(struct plan *plan) {
    int layers = (int)plan->request.model.layers;
    struct recompute_group *groups =
        mem_new_array(struct recompute_group, (size_t)layers, "recompute groups");
    struct recompute_chunk chunk = {.num_layers = layers};
    int count = recompute_groups(&plan->request.recompute, &chunk, groups);
    plan->segments = mem_new_array(struct plan_segment, (size_t)count + 2, "segments");
    plan->compiled = mem_new_array(struct compiled, (size_t)count + 2, "compiled segments");
    plan->costs = mem_new_array(struct compiled_cost, (size_t)count + 2, "segment costs");
    add_segment(plan, SEGMENT_EMBEDDING, 0, 0, 0);
    for (int i = 0, layer = 0; i < count; layer += groups[i++].num_layers)
        add_segment(plan, SEGMENT_LAYERS, layer, groups[i].num_layers, groups[i].selected);
    add_segment(plan, SEGMENT_HEAD, layers, 0, 0);
    mem_free(groups);
}

/* ---- parameters ---- */

static int param_find_or_add(struct plan *plan, const char *name, const struct param_info *info,
                             int *capacity, unsigned **forms) {
    for (int i = 0; i < plan->num_params && !info->per_layer; i++)
        if (!strcmp(plan->params[i].name, name)) {
            (*forms)[i] |= info->forms;
            return i;
        }
    if (plan->num_params == *capacity) {
        *capacity = *capacity ? 2 * *capacity : 64;
        plan->params =
            mem_realloc(plan->params, (size_t)*capacity * sizeof(*plan->params), "plan parameters");
        *forms = mem_realloc(*forms, (size_t)*capacity * sizeof(**forms), "plan parameters");
    }
    struct plan_param *p = &plan->params[plan->num_params];
    size_t length = strlen(name);
    bool is_bias = length > 5 && !strcmp(name + length - 5, ".bias");
    *p = (struct plan_param){.name = mem_strdup(name, "parameter name"),
                             .num_dims = info->num_dims,
                             .dims = {info->dims[0], info->dims[1]},
                             .count = info->num_dims > 1 ? info->dims[0] * info->dims[1] : info->dims[0],
                             .init = info->init,
                             .init_std = info->init_std,
                             .decays = info->num_dims > 1 && !is_bias,
                             .is_embedding =
                                 !strncmp(name, "embedding.", 10) || !strncmp(name, "output_layer.", 13),
                             .is_qk_norm = strstr(name, ".q_layernorm.") || strstr(name, ".k_layernorm.")};
    (*forms)[plan->num_params] = info->forms;
    plan->num_parameters += p->count;
    return plan->num_params++;
}

static size_t take(struct plan *plan, enum plan_category category, size_t bytes) {
    size_t offset = plan->arena_bytes;
    bytes = align_up(bytes);
    plan->fixed_bytes[category] += bytes;
    plan->arena_bytes += bytes;
    return offset;
}

/* Compute copies of one parameter: plain, and packed where the kernels pack. */
static void place_weight(struct plan *plan, struct plan_param *p, unsigned forms) {
    enum dtype dtype = plan->request.model.dtype;
    size_t (*packed_bytes)(enum dtype, int64_t, int64_t) = plan->request.kernels->gemm_packed_bytes;
    size_t packed = p->num_dims == 2 ? packed_bytes(dtype, p->dims[1], p->dims[0]) : 0;
    size_t packed_back = p->num_dims == 2 ? packed_bytes(dtype, p->dims[0], p->dims[1]) : 0;
    unsigned packed_forms = PARAM_FORM_PACKED_FORWARD | PARAM_FORM_PACKED_BACKWARD;
    p->plain = p->packed_forward = p->packed_backward = SIZE_MAX;
    if (forms & packed_forms && !(packed && packed_back)) forms = PARAM_FORM_PLAIN;
    if (forms & PARAM_FORM_PLAIN && dtype != DTYPE_F32)
        p->plain = take(plan, CATEGORY_WEIGHTS, (size_t)p->count * dtype_bytes(dtype));
    if (forms & PARAM_FORM_PACKED_FORWARD) p->packed_forward = take(plan, CATEGORY_WEIGHTS, packed);
    if (forms & PARAM_FORM_PACKED_BACKWARD && !plan->request.forward_only)
        p->packed_backward = take(plan, CATEGORY_WEIGHTS, packed_back);
}

static void make_params(struct plan *plan) {
    int capacity = 0;
    unsigned *forms = NULL;
    for (int i = 0; i < plan->num_segments; i++) {
        struct plan_segment *s = &plan->segments[i];
        const struct program *program = &plan->compiled[s->compiled].program;
        s->params = mem_new_array(int, (size_t)program->num_params, "segment parameters");
        for (int k = 0; k < program->num_params; k++) {
            const struct param_info *info = &program->params[k];
            char name[192];
            const char *d = strstr(info->name, "%d");
            if (info->per_layer && d)
                snprintf(name, sizeof(name), "%.*s%d%s", (int)(d - info->name), info->name,
                         s->first_layer + info->layer, d + 2);
            else
                snprintf(name, sizeof(name), "%s", info->name);
            s->params[k] = param_find_or_add(plan, name, info, &capacity, &forms);
        }
    }
    bool training = !plan->request.forward_only, is_fp32 = plan->request.model.dtype == DTYPE_F32;
    for (int i = 0; i < plan->num_params; i++) place_weight(plan, &plan->params[i], forms[i]);
    /* each kind of fp32 state is one contiguous stretch, in parameter order */
    for (int i = 0; i < plan->num_params; i++)
        plan->params[i].master =
            take(plan, is_fp32 ? CATEGORY_WEIGHTS : CATEGORY_OPTIMIZER, (size_t)plan->params[i].count * 4);
    for (int i = 0; training && i < plan->num_params; i++)
        plan->params[i].exp_avg = take(plan, CATEGORY_OPTIMIZER, (size_t)plan->params[i].count * 4);
    for (int i = 0; training && i < plan->num_params; i++)
        plan->params[i].exp_avg_sq = take(plan, CATEGORY_OPTIMIZER, (size_t)plan->params[i].count * 4);
    for (int i = 0; training && i < plan->num_params; i++)
        plan->params[i].grad = take(plan, CATEGORY_GRADIENTS, (size_t)plan->params[i].count * 4);
    mem_free(forms);
}

/* ---- costs: the lists run on meta kernels ---- */

/* Addresses on meta are never read; they only have to be distinguishable from NULL. */
static void *meta_address(void) {
    return (void *)(uintptr_t)4096;
}

static void measure_list(const struct plan *plan, const struct plan_segment *s, const struct code *code,
                         struct kernel_cost by_kind[3], double *op_flops, size_t *workspace_p) {
    const struct compiled *c = &plan->compiled[s->compiled];
    struct kernels table = kernels_meta(plan->request.kernels);
    struct kernel_meter meter = {0};
    struct stream stream = {.kernels = &table, .threads = plan->request.threads, .meter = &meter};
    bool written = false;
    const void *packed =
        plan->request.kernels->gemm_packed_bytes(plan->request.model.dtype, 64, 64) ? meta_address() : NULL;
    struct param_view view = {meta_address(), packed, packed, meta_address(), &written};
    const struct param_view **views =
        mem_new_array(const struct param_view *, (size_t)c->program.num_params, "meta parameters");
    for (int i = 0; i < c->program.num_params; i++) views[i] = &view;
    struct run run = {.program = &c->program,
                      .stream = &stream,
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
                      .code = code};
    for (int i = 0; i < code->num_instrs; i++) {
        struct kernel_cost before = meter.total;
        struct kernel_cost *sum = &by_kind[code->at[i].kind];
        run_instr(&run, i);
        sum->flops += meter.total.flops - before.flops;
        if (code->at[i].kind == INSTR_FORWARD) op_flops[code->at[i].op] = meter.total.flops - before.flops;
        sum->gemm_flops += meter.total.gemm_flops - before.gemm_flops;
        sum->bytes += meter.total.bytes - before.bytes;
    }
    if (meter.workspace_bytes > *workspace_p) *workspace_p = meter.workspace_bytes;
    mem_free(views);
}

/* The optimizer step and the packing of weights use the same workspace. */
static void measure_optimizer(struct plan *plan) {
    struct kernels table = kernels_meta(plan->request.kernels);
    struct kernel_meter meter = {0};
    struct stream stream = {.kernels = &table, .threads = plan->request.threads, .meter = &meter};
    void *p = meta_address();
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *param = &plan->params[i];
        enum dtype dtype = plan->request.model.dtype;
        KERNEL_CALL(normal_init, &stream, .x = p, .n = param->count);
        KERNEL_CALL(fill, &stream, .y = p, .n = param->count, .dtype = DTYPE_F32);
        KERNEL_CALL(cast, &stream, .dst = p, .src = (char *)p + 64, .n = param->count, .dst_dtype = dtype,
                    .src_dtype = DTYPE_F32);
        KERNEL_CALL(sum_squares, &stream, .out = p, .x = p, .n = param->count, .dtype = DTYPE_F32);
        KERNEL_CALL(adamw, &stream, .master = p, .m = p, .v = p, .grad = p, .n = param->count,
                    .bias_correction1 = 1, .bias_correction2 = 1);
        if (param->packed_forward != SIZE_MAX)
            KERNEL_CALL(gemm_pack, &stream, .dst = p, .src = p, .k = param->dims[1], .n = param->dims[0],
                        .trans = true, .dtype = dtype, .src_dtype = DTYPE_F32);
        if (param->packed_backward != SIZE_MAX)
            KERNEL_CALL(gemm_pack, &stream, .dst = p, .src = p, .k = param->dims[0], .n = param->dims[1],
                        .dtype = dtype, .src_dtype = DTYPE_F32);
    }
    if (meter.workspace_bytes > plan->workspace_bytes) plan->workspace_bytes = meter.workspace_bytes;
    plan->step_bytes += meter.total.bytes;
}

static void measure_costs(struct plan *plan) {
    for (int i = 0, next = 0; i < plan->num_segments; i++) {
        const struct plan_segment *s = &plan->segments[i];
        if (s->compiled != next) continue; /* measured with an earlier, equal segment */
        struct compiled_cost *cost = &plan->costs[next];
        struct kernel_cost by_kind[3] = {0};
        const struct compiled *c = &plan->compiled[next];
        cost->op_flops = mem_new_array(double, (size_t)c->program.num_ops, "op costs");
        measure_list(plan, s, &c->forward, by_kind, cost->op_flops, &plan->workspace_bytes);
        if (!plan->request.forward_only)
            measure_list(plan, s, &c->backward, by_kind, cost->op_flops, &plan->workspace_bytes);
        cost->forward = by_kind[INSTR_FORWARD];
        cost->rerun = by_kind[INSTR_RERUN];
        cost->backward = by_kind[INSTR_BACKWARD];
        next++;
    }
    for (int i = 0; i < plan->num_segments; i++) {
        const struct compiled_cost *c = &plan->costs[plan->segments[i].compiled];
        int n = plan->request.micro_batches;
        plan->step_rerun_gemm_flops += n * c->rerun.gemm_flops;
        plan->step_rerun_flops += n * c->rerun.flops;
        plan->step_gemm_flops += n * (c->forward.gemm_flops + c->rerun.gemm_flops + c->backward.gemm_flops);
        plan->step_flops += n * (c->forward.flops + c->rerun.flops + c->backward.flops);
        plan->step_bytes += n * (c->forward.bytes + c->rerun.bytes + c->backward.bytes);
    }
}

/* ---- activations ---- */

static size_t hidden_bytes(const struct model *m) {
    return align_up((size_t)(m->seq * m->micro_batch * m->hidden) * dtype_bytes(m->dtype));
}

static void place_frames(struct plan *plan) {
    size_t offset = 0;
    for (int i = 0; i < plan->num_segments; i++) {
        struct plan_segment *s = &plan->segments[i];
        const struct compiled *c = &plan->compiled[s->compiled];
        s->input_offset = offset;
        s->frame_offset = offset + (c->program.input >= 0 ? hidden_bytes(&plan->request.model) : 0);
        s->end_offset = offset = s->frame_offset + c->frame_bytes;
    }
    plan->slot_bytes = offset;
}

void frames_open(struct frame_tracker *f, const struct plan *plan) {
    *f = (struct frame_tracker){mem_new_array(size_t, (size_t)plan->num_slots, "frame tracker"),
                                plan->num_slots};
}

void frames_close(struct frame_tracker *f) {
    mem_free(f->live_end);
}

size_t frames_enter(struct frame_tracker *f, const struct plan *plan, const struct action *action,
                    int segment) {
    const struct plan_segment *s = &plan->segments[segment];
    size_t top = 0, end = s->end_offset;
    if (action->kind == ACTION_FORWARD && segment + 1 < plan->num_segments)
        end = plan->segments[segment + 1].frame_offset; /* the output is the next segment's input */
    f->live_end[action->slot] = end;
    for (int i = 0; i < f->num_slots; i++)
        if (f->live_end[i] && (size_t)i * plan->slot_bytes + f->live_end[i] > top)
            top = (size_t)i * plan->slot_bytes + f->live_end[i];
    return top;
}

void frames_leave(struct frame_tracker *f, const struct plan *plan, const struct action *action,
                  int segment) {
    f->live_end[action->slot] = plan->segments[segment].input_offset;
}

static void note_peak(struct plan *plan, const struct frame_tracker *f, const struct action *a, int segment,
                      size_t frames, size_t work) {
    if (frames + work <= plan->activation_bytes) return;
    plan->activation_bytes = frames + work;
    plan->peak_segment = segment;
    memcpy(plan->peak_live_end, f->live_end, (size_t)f->num_slots * sizeof(size_t));
    plan->peak_kind = a->kind;
    plan->peak_frame_bytes = frames;
    plan->peak_work_bytes = work;
}

static void find_peak(struct plan *plan) {
    struct frame_tracker frames;
    frames_open(&frames, plan);
    plan->peak_live_end = mem_new_array(size_t, (size_t)plan->num_slots, "plan peak");
    for (int i = 0; i < plan->num_actions; i++) {
        const struct action *a = &plan->actions[i];
        bool forward = a->kind == ACTION_FORWARD;
        for (int k = 0; k < plan->num_segments; k++) {
            int segment = forward ? k : plan->num_segments - 1 - k;
            const struct compiled *c = &plan->compiled[plan->segments[segment].compiled];
            size_t top = frames_enter(&frames, plan, a, segment);
            note_peak(plan, &frames, a, segment, top,
                      forward ? c->forward.work_bytes : c->backward.work_bytes);
            if (!forward) frames_leave(&frames, plan, a, segment);
        }
    }
    frames_close(&frames);
}

static void make_schedule(struct plan *plan) {
    struct schedule_shape shape = {1, 0, 1, plan->request.micro_batches};
    plan->num_actions = schedule_num_actions(&shape);
    plan->actions = mem_new_array(struct action, (size_t)plan->num_actions, "schedule");
    schedule_find("1f1b")->make(&shape, plan->actions);
    if (plan->request.forward_only) plan->num_actions = 1; /* one forward; evaluation repeats it */
    plan->num_slots = schedule_assign_slots(plan->actions, plan->num_actions);
}

static void place_rest(struct plan *plan) {
    const struct model *m = &plan->request.model;
    size_t table = (size_t)(m->seq * (m->rotary_dim / 2)) * sizeof(float);
    plan->rotary_cos = take(plan, CATEGORY_TABLES, table);
    plan->rotary_sin = take(plan, CATEGORY_TABLES, table);
    plan->reductions = take(plan, CATEGORY_TABLES, 2 * (size_t)plan->num_params * sizeof(double));
    plan->batch_slot_bytes = 4 * align_up((size_t)(m->seq * m->micro_batch) * 4);
    plan->batch = take(plan, CATEGORY_BATCH, (size_t)plan->num_slots * plan->batch_slot_bytes);
    plan->workspace_bytes = align_up(plan->workspace_bytes);
    plan->workspace = take(plan, CATEGORY_WORKSPACE, plan->workspace_bytes);
    if (!plan->request.forward_only) plan->boundary_grad = take(plan, CATEGORY_ACTIVATIONS, hidden_bytes(m));
    plan->activations = plan->arena_bytes;
    plan->arena_bytes += plan->activation_bytes;
}

void plan_build(const struct plan_request *request, struct plan *out) {
    *out = (struct plan){.request = *request};
    make_segments(out);
    make_params(out);
    measure_costs(out);
    measure_optimizer(out);
    make_schedule(out);
    place_frames(out);
    find_peak(out);
    place_rest(out);
    out->hash = plan_hash_of(out);
}

void plan_free(struct plan *plan) {
    for (int i = 0; i < plan->num_segments; i++) mem_free(plan->segments[i].params);
    for (int i = 0; i < plan->num_params; i++) mem_free(plan->params[i].name);
    for (int i = 0; i < plan->num_compiled; i++) {
        recompute_free(&plan->compiled[i]);
        mem_free(plan->costs[i].op_flops);
    }
    mem_free(plan->segments);
    mem_free(plan->params);
    mem_free(plan->compiled);
    mem_free(plan->costs);
    mem_free(plan->actions);
    mem_free(plan->peak_live_end);
    *plan = (struct plan){0};
}

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
