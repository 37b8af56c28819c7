/* Experts over real ranks: gradients of a step are those of one rank for either dispatcher, any EP and ETP,
 * and any bound on the rows that a rank takes at a time, also when all tokens want the same experts; no
 * recompute setting changes a bit; the planned peak is the measured one; and a storm of ties with noise in
 * what recomputation starts from neither hangs nor sends a row elsewhere. */
#include "core/train/sync.h"
#include "parallel/mesh.h"
#include "tests/parallel/parallel.h"
#include "tests/tiny_model.h"

struct layout {
    int tp, ep, etp; /* sizes; the other ranks are data parallel */
    float capacity;  /* 0: the default */
    bool level;      /* all logits equal: every token goes to the first experts, all of them of one rank */
    bool sigmoid;    /* the other model */
    double limit;    /* capacity factor of an expert for each source; 0: nothing is dropped */
    bool pads;
};

static const struct layout layouts[] = {
    {1, 2, 1, 0, false, false, 0, false},      {1, 2, 1, 0.3f, true, false, 0, false},
    {1, 1, 2, 0, false, true, 0, false},       {1, 1, 2, 0.05f, true, false, 0, false},
    {2, 2, 1, 0.5f, false, false, 0, false},   {1, 4, 1, 0, true, true, 0, false},
    {2, 2, 2, 0.2f, true, false, 0, false},    {2, 1, 2, 0.4f, false, true, 0, false},
    {1, 2, 2, 0.3f, true, true, 0, false},     {2, 4, 1, 0, false, false, 0, false},
    {2, 1, 1, 0, false, false, 0, false},      {1, 2, 1, 0.3f, false, false, 0.75, false},
    {1, 1, 2, 0.4f, false, false, 0.75, true}, {1, 4, 1, 0, true, false, 0.75, false},
};

struct setting {
    struct mesh mesh;
    struct executor_comms comms;
    struct plan_request request; /* of this rank */
    struct tiny tiny;
};

static struct model model_of(const struct layout *l) {
    struct model m = l->sigmoid ? tiny_moe_sigmoid() : tiny_moe();
    m.moe.experts = 8;
    m.moe.capacity_factor = l->limit;
    m.moe.pads_to_capacity = l->pads;
    m.hidden_dropout = m.attention_dropout = 0.1f;
    m.fused_loss = false;
    return m;
}

static void open_tiny(struct tiny *t, const struct plan_request *request, const struct executor_comms *comms,
                      bool level) {
    struct err err;
    *t = (struct tiny){0};
    plan_build(request, &t->plan);
    CHECK(arena_open(&t->arena, t->plan.arena_bytes, &err) == 0, "%s", err.text);
    executor_open(&t->executor, &t->plan, &t->arena, NULL, 1234, comms);
    update_initialize(&t->executor);
    for (int i = 0; i < t->plan.num_params && level; i++) {
        const struct plan_param *p = &t->plan.params[i];
        if (strstr(p->name, "mlp.router.weight"))
            memset(executor_at(&t->executor, p->master), 0, (size_t)p->count * sizeof(float));
    }
    update_compute_copies(&t->executor);
}

static void open_groups(struct setting *s) {
    const enum mesh_group kinds[] = {MESH_WORLD,          MESH_TENSOR,
                                     MESH_CONTEXT,        MESH_DATA_CONTEXT,
                                     MESH_EXPERT_DATA,    MESH_EXPERT_TENSOR_MODEL,
                                     MESH_TENSOR_CONTEXT, MESH_TENSOR_DATA_CONTEXT};
    struct comm **const comms[] = {
        &s->comms.world,       &s->comms.tensor, &s->comms.context,        &s->comms.data,
        &s->comms.expert_data, &s->comms.expert, &s->comms.tensor_context, &s->comms.tensor_data_context};
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
        int members[64], index, count = mesh_group_ranks(&s->mesh, kinds[i], members, &index);
        *comms[i] = comm_open(world, mesh_group_name(kinds[i]), members, count);
    }
}

/* False: the layout is not one of so many ranks. */
static bool open_setting(struct setting *s, const struct layout *l, bool gathers) {
    struct err err;
    int size = comm_world_size(world);
    *s = (struct setting){0};
    struct mesh_shape shape = {size, l->tp, 1, 1, l->ep, l->etp, 1, 1, false};
    if (size % l->tp || size % (l->ep * l->etp)) return false;
    CHECK(!mesh_init(&s->mesh, &shape, comm_world_rank(world), &err), "%s", err.text);
    open_groups(s);
    struct model m = model_of(l);
    m.moe.gathers = gathers;
    m.moe.rank_capacity = l->capacity;
    m.tp = l->tp, m.tp_rank = s->mesh.tp, m.sequence_parallel = l->tp > 1;
    m.ep = l->ep, m.ep_rank = s->mesh.ep, m.etp = l->etp, m.etp_rank = s->mesh.etp;
    s->request = tiny_request(m, (struct recompute_policy){0});
    s->request.micro_batches = 1;
    s->request.layout = (struct plan_layout){.data = s->mesh.data,
                                             .data_rank = s->mesh.dp,
                                             .expert_data = s->mesh.expert_data,
                                             .expert_data_rank = s->mesh.edp};
    return true;
}

static void close_setting(struct setting *s) {
    struct comm *comms[EXECUTOR_MAX_COMMS];
    int count = executor_list_comms(&s->comms, comms);
    for (int i = 0; i < count; i++) comm_close(comms[i]);
}

/* One micro-batch for each data-parallel rank: micro-batch `first` and as many as the plan has. */
static void step(struct tiny *t, int first, bool same_token,
                 void (*between)(struct tiny *, const struct action *)) {
    enum { MOST = 64 };
    const struct model *m = &t->plan.request.model;
    int32_t tokens[MOST], labels[MOST], positions[MOST];
    float mask[MOST];
    CHECK(m->seq * m->micro_batch <= MOST, "too many tokens");
    struct micro_batch micro = {.tokens = tokens,
                                .labels = labels,
                                .positions = positions,
                                .loss_mask = mask,
                                .loss_grad_scale = 0.01f,
                                .training = true,
                                .aux_grad_scale = 0.5f};
    executor_begin_step(&t->executor, 3);
    const struct schedule_list *list = plan_actions(&t->plan, t->plan.request.micro_batches);
    for (int i = 0; i < list->count; i++) {
        micro.index = first + list->actions[i].micro_batch;
        tiny_fill(m, micro.index, tokens, labels, positions, mask);
        for (int k = 0; k < MOST && same_token; k++) tokens[k] = 7;
        executor_run(&t->executor, &list->actions[i], &micro);
        if (between && list->actions[i].kind == ACTION_FORWARD) between(t, &list->actions[i]);
    }
}

static const struct plan_param *param_of(const struct tiny *t, const char *name) {
    for (int i = 0; i < t->plan.num_params; i++)
        if (!strcmp(t->plan.params[i].name, name)) return &t->plan.params[i];
    CHECK(false, "no parameter %s", name);
    return NULL;
}

static void compare_gradients(const struct tiny *t, const struct tiny *one, const char *what) {
    for (int k = 0; k < t->plan.num_params; k++) {
        const struct plan_param *p = &t->plan.params[k], *whole = param_of(one, p->name);
        const float *grad = executor_at(&t->executor, p->grad),
                    *truth = executor_at(&one->executor, whole->grad);
        double off = 0, largest = 0;
        for (int64_t i = 0; i < whole->count; i++) largest = fmax(largest, fabs((double)truth[i]));
        for (int64_t i = 0, count; i < p->count; i++) {
            double d = fabs((double)grad[i] - (double)truth[update_global_element(p, i, &count)]);
            off = isfinite(d) ? fmax(off, d) : HUGE_VAL;
        }
        EXPECT(off <= 2e-5 * largest, "%s: %s is off by %.3g of %.3g", what, p->name, off, largest);
    }
}

static const char *title(const struct layout *l, bool gathers) {
    static char text[96];
    snprintf(text, sizeof(text), "%s tp%d ep%d etp%d room %.2f%s%s%s", gathers ? "allgather" : "alltoall",
             l->tp, l->ep, l->etp, (double)l->capacity, l->level ? " level" : "",
             l->sigmoid ? " sigmoid" : "",
             l->pads        ? " padded"
             : l->limit > 0 ? " limited"
                            : "");
    return text;
}

TEST(gradients_are_those_of_one_rank_however_rows_travel) {
    for (size_t n = 0; n < 2 * ARRAY_COUNT(layouts); n++) {
        const struct layout *l = &layouts[n / 2];
        struct setting s;
        struct tiny one;
        if (!open_setting(&s, l, n % 2)) continue;
        open_tiny(&s.tiny, &s.request, &s.comms, l->level);
        struct plan_request whole = tiny_request(model_of(l), (struct recompute_policy){0});
        whole.micro_batches = s.mesh.data;
        open_tiny(&one, &whole, NULL, l->level);
        step(&s.tiny, s.mesh.dp, false, NULL);
        step(&one, 0, false, NULL);
        sync_finish_grads(&s.tiny.executor);
        compare_gradients(&s.tiny, &one, title(l, n % 2));
        EXPECT(s.tiny.executor.high_water == s.tiny.plan.arena_bytes, "%s: measured %zu, planned %zu",
               title(l, n % 2), s.tiny.executor.high_water, s.tiny.plan.arena_bytes);
        tiny_close(&one);
        tiny_close(&s.tiny);
        close_setting(&s);
    }
}

static const struct recompute_policy policies[] = {
    {.granularity = RECOMPUTE_SELECTIVE, .modules = RECOMPUTE_BIT(MODULE_moe)},
    {.granularity = RECOMPUTE_SELECTIVE, .modules = RECOMPUTE_BIT(MODULE_moe_act)},
    {.granularity = RECOMPUTE_SELECTIVE,
     .modules = RECOMPUTE_BIT(MODULE_layernorm) | RECOMPUTE_BIT(MODULE_moe_act) |
                RECOMPUTE_BIT(MODULE_shared_experts)},
    {.granularity = RECOMPUTE_SELECTIVE,
     .modules = RECOMPUTE_BIT(MODULE_layernorm) | RECOMPUTE_BIT(MODULE_moe)},
    {.granularity = RECOMPUTE_FULL, .method = RECOMPUTE_UNIFORM, .num_layers = 2},
};

TEST(recompute_changes_no_bit_and_the_planned_peak_is_the_measured_one) {
    for (size_t n = 0; n < 2 * ARRAY_COUNT(layouts); n++) {
        const struct layout *l = &layouts[n / 2];
        struct setting s;
        if (!open_setting(&s, l, n % 2)) continue;
        s.request.model.dtype = l->level ? DTYPE_BF16 : DTYPE_F32;
        open_tiny(&s.tiny, &s.request, &s.comms, l->level);
        step(&s.tiny, s.mesh.dp, false, NULL);
        float *plain = tiny_grads(&s.tiny);
        size_t bytes = (size_t)s.tiny.plan.num_parameters * sizeof(float);
        EXPECT(tiny_all_finite(plain, s.tiny.plan.num_parameters), "%s", title(l, n % 2));
        tiny_close(&s.tiny);
        for (size_t i = 0; i < ARRAY_COUNT(policies); i++) {
            s.request.recompute = policies[i];
            open_tiny(&s.tiny, &s.request, &s.comms, l->level);
            step(&s.tiny, s.mesh.dp, false, NULL);
            float *grads = tiny_grads(&s.tiny);
            EXPECT(!memcmp(grads, plain, bytes), "%s: setting %zu changes gradients", title(l, n % 2), i);
            EXPECT(s.tiny.executor.high_water == s.tiny.plan.arena_bytes,
                   "%s: setting %zu: measured %zu, planned %zu", title(l, n % 2), i,
                   s.tiny.executor.high_water, s.tiny.plan.arena_bytes);
            mem_free(grads);
            tiny_close(&s.tiny);
        }
        mem_free(plain);
        close_setting(&s);
    }
}

/* ---- ties ---- */

static void add_noise(float *x, size_t bytes) {
    for (size_t i = 0; i < bytes / 4; i++) {
        int32_t bits;
        memcpy(&bits, &x[i], 4);
        if (isfinite(x[i]) && x[i] != 0) bits += (int32_t)((uint32_t)i * 2654435761u >> 20) % 3 - 1;
        memcpy(&x[i], &bits, 4);
    }
}

/* Noise on the layer's own input and on that of its second norm. */
static void disturb(struct tiny *t, const struct action *a) {
    const struct plan *plan = &t->plan;
    char *slot = t->arena.base + plan->activations + plan->slot_base[frames_slot(plan, a)];
    for (int i = 0; i < plan->num_segments; i++) {
        const struct plan_segment *s = &plan->segments[i];
        const struct program *p = &plan->compiled[s->compiled].program;
        if (s->kind != SEGMENT_LAYERS) continue;
        add_noise((float *)(void *)(slot + s->input_offset), p->tensors[p->input].bytes);
        for (int k = 0; k < p->num_tensors; k++)
            if (p->tensors[k].home == HOME_KEEP && !strcmp(p->tensors[k].name, "residual_attention"))
                add_noise((float *)(void *)(slot + s->frame_offset + p->tensors[k].frame_offset),
                          p->tensors[k].bytes);
    }
}

static float *stormy_step(struct setting *s, bool noise) {
    open_tiny(&s->tiny, &s->request, &s->comms, false);
    for (int i = 0; i < s->tiny.plan.num_params; i++) {
        const struct plan_param *p = &s->tiny.plan.params[i];
        float *w = executor_at(&s->tiny.executor, p->master);
        if (!strstr(p->name, "mlp.router.weight")) continue;
        for (int64_t k = p->dims[1]; k < p->count; k++) w[k] = w[k % p->dims[1]];
        add_noise(w, (size_t)p->count * sizeof(float));
    }
    update_compute_copies(&s->tiny.executor);
    step(&s->tiny, s->mesh.dp, true, noise ? disturb : NULL);
    float *grads = tiny_grads(&s->tiny);
    tiny_close(&s->tiny);
    return grads;
}

TEST(a_storm_of_ties_neither_hangs_nor_moves_a_row) {
    for (size_t n = 0; n < 2 * ARRAY_COUNT(layouts); n++) {
        const struct layout *l = &layouts[n / 2];
        struct setting s;
        if (l->level || l->limit > 0 || !open_setting(&s, l, n % 2)) continue;
        s.request.model.hidden_dropout = s.request.model.attention_dropout = 0;
        for (size_t i = 0; i < ARRAY_COUNT(policies); i++) {
            s.request.recompute = policies[i];
            float *calm = stormy_step(&s, false), *stormy = stormy_step(&s, true);
            struct plan plan;
            plan_build(&s.request, &plan);
            double off = 0, largest = 0;
            for (int64_t k = 0; k < plan.num_parameters; k++) {
                off = fmax(off, isfinite(stormy[k]) ? fabs((double)calm[k] - (double)stormy[k]) : HUGE_VAL);
                largest = fmax(largest, fabs((double)calm[k]));
            }
            EXPECT(off > 0 && off <= 1e-4 * largest, "%s, setting %zu: gradients moved by %.3g of %.3g",
                   title(l, n % 2), i, off, largest);
            plan_free(&plan);
            mem_free(calm);
            mem_free(stormy);
        }
        close_setting(&s);
    }
}

RUN_PARALLEL_TESTS("2 4", CASE(gradients_are_those_of_one_rank_however_rows_travel),
                   CASE(recompute_changes_no_bit_and_the_planned_peak_is_the_measured_one),
                   CASE(a_storm_of_ties_neither_hangs_nor_moves_a_row))
