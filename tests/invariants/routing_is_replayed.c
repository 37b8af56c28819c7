/* Routing is decided once. A storm of ties (every expert's router row is the same, so all logits of a token
 * are equal) with one unit in the last place of noise added to what recomputation starts from: an honest
 * second decision would send rows elsewhere, and their gradients with them. Here the gradients stay where
 * they are. And the lists show that no decision is ever made again. */
#include "tests/tiny_model.h"

static void add_noise(float *x, size_t bytes) {
    for (size_t i = 0; i < bytes / 4; i++) {
        int32_t bits;
        memcpy(&bits, &x[i], 4);
        if (isfinite(x[i]) && x[i] != 0) bits += (int32_t)((uint32_t)i * 2654435761u >> 20) % 3 - 1;
        memcpy(&x[i], &bits, 4);
    }
}

/* All experts equally good for every token, but for the last bit. */
static void level_router(struct tiny *t) {
    for (int i = 0; i < t->plan.num_params; i++) {
        const struct plan_param *p = &t->plan.params[i];
        float *w = executor_at(&t->executor, p->master);
        if (!strstr(p->name, "mlp.router.weight")) continue;
        for (int64_t k = p->dims[1]; k < p->count; k++) w[k] = w[k % p->dims[1]];
        add_noise(w, (size_t)p->count * sizeof(float));
    }
    update_compute_copies(&t->executor);
}

/* Noise on what the layers of the slot have saved: the input of the second norm, and the layer's own input.
 */
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

/* One step over the same token everywhere. Gradients are owned by the caller. */
static float *stormy_step(struct model m, struct recompute_policy policy, bool noise, int64_t *count_p) {
    enum { MOST = 64 };
    int32_t tokens[MOST], labels[MOST], positions[MOST];
    float mask[MOST];
    struct tiny t;
    struct plan_request request = tiny_request(m, policy);
    tiny_open(&t, &request);
    level_router(&t);
    CHECK(m.seq * m.micro_batch <= MOST, "too many tokens");
    tiny_fill(&m, 1, tokens, labels, positions, mask);
    for (int i = 0; i < MOST; i++) tokens[i] = 7;
    struct micro_batch micro = {tokens, labels, positions, mask, 0.01f, 0, true, 0.5f, {0}};
    executor_begin_step(&t.executor, 3);
    const struct schedule_list *list = plan_actions(&t.plan, request.micro_batches);
    for (int i = 0; i < list->count; i++) {
        executor_run(&t.executor, &list->actions[i], &micro);
        if (noise && list->actions[i].kind == ACTION_FORWARD) disturb(&t, &list->actions[i]);
    }
    float *grads = tiny_grads(&t);
    *count_p = t.plan.num_parameters;
    tiny_close(&t);
    return grads;
}

static void expect_calm(const char *what, struct model m, struct recompute_policy policy) {
    int64_t count;
    float *calm = stormy_step(m, policy, false, &count), *stormy = stormy_step(m, policy, true, &count);
    double off = 0, largest = 0;
    bool different = false;
    EXPECT(tiny_all_finite(stormy, count), "%s: not finite", what);
    for (int64_t i = 0; i < count; i++) {
        double d = fabs((double)calm[i] - (double)stormy[i]);
        if (d > off) off = d;
        if (fabs((double)calm[i]) > largest) largest = fabs((double)calm[i]);
        different |= calm[i] != stormy[i];
    }
    EXPECT(different, "%s: the noise did not reach the gradients, so this test shows nothing", what);
    /* noise of 2^-23 through a few layers; a row sent elsewhere moves gradients by as much as they are */
    EXPECT(off <= 1e-4 * largest, "%s: gradients moved by %.3g of %.3g", what, off, largest);
    mem_free(calm);
    mem_free(stormy);
}

TEST(a_storm_of_ties_moves_no_row) {
    struct recompute_policy full = {
        .granularity = RECOMPUTE_FULL, .method = RECOMPUTE_UNIFORM, .num_layers = 1};
    struct recompute_policy moe = {.granularity = RECOMPUTE_SELECTIVE,
                                   .modules = RECOMPUTE_BIT(MODULE_moe) | RECOMPUTE_BIT(MODULE_layernorm)};
    struct recompute_policy parts = moe;
    parts.modules = RECOMPUTE_BIT(MODULE_moe_act) | RECOMPUTE_BIT(MODULE_shared_experts) |
                    RECOMPUTE_BIT(MODULE_layernorm);
    struct model models[] = {tiny_moe(), tiny_moe_sigmoid(), tiny_moe_limited()};
    for (int i = 0; i < 3; i++) {
        struct model m = models[i];
        m.hidden_dropout = m.attention_dropout = 0; /* so that tokens stay identical */
        expect_calm("full", m, full);
        expect_calm("moe", m, moe);
        expect_calm("moe_act shared_experts", m, parts);
    }
}

static int count_reruns(const struct plan *plan, const char *op) {
    int n = 0;
    for (int s = 0; s < plan->num_segments; s++) {
        const struct compiled *c = &plan->compiled[plan->segments[s].compiled];
        for (int i = 0; i < c->backward.num_instrs; i++)
            n += c->backward.at[i].kind == INSTR_RERUN &&
                 (!op || !strcmp(c->program.ops[c->backward.at[i].op].name, op));
    }
    return n;
}

static void expect_reruns_of(struct model m, recompute_set set, const char *const *ops) {
    m.moe.pattern = NULL;
    struct plan_request request =
        tiny_request(m, (struct recompute_policy){.granularity = RECOMPUTE_SELECTIVE, .modules = set});
    struct plan plan;
    int named = 0;
    plan_build(&request, &plan);
    for (; *ops; ops++, named++) EXPECT(count_reruns(&plan, *ops) == 3, "%#x: %s", set, *ops);
    EXPECT(count_reruns(&plan, NULL) == 3 * named, "%#x: %d re-runs", set, count_reruns(&plan, NULL));
    EXPECT_EQ(count_reruns(&plan, "route"), 0);
    plan_free(&plan);
}

static void expect_reruns(recompute_set set, const char *const *ops) {
    expect_reruns_of(tiny_moe(), set, ops);
}

#define OPS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* The rows in expert order are always gathered again; nothing else is without a module that says so. */
TEST(reruns_are_those_of_the_closed_form) {
    struct model m = tiny_moe();
    expect_reruns(0, OPS("permute"));
    expect_reruns(RECOMPUTE_BIT(MODULE_moe_act), OPS("permute", "moe_act"));
    expect_reruns(RECOMPUTE_BIT(MODULE_shared_experts),
                  OPS("permute", "shared_fc1", "activation", "shared_fc2", "shared_gate"));
    expect_reruns(RECOMPUTE_BIT(MODULE_moe), OPS("permute", "router", "experts_fc1", "moe_act", "shared_fc1",
                                                 "activation", "shared_fc2", "shared_gate"));
    expect_reruns(RECOMPUTE_BIT(MODULE_mlp), OPS("permute")); /* dense layers only */
    m.moe.jitter = 0.1f;                                      /* made again like the rows */
    expect_reruns_of(m, 0, OPS("permute", "router_jitter"));
    expect_reruns_of(m, RECOMPUTE_BIT(MODULE_moe_act), OPS("permute", "router_jitter", "moe_act"));
}

RUN_TESTS(CASE(a_storm_of_ties_moves_no_row), CASE(reruns_are_those_of_the_closed_form))
