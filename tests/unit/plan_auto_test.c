/* Automatic recompute: within the budget, never slower than the best plain setting, exact against trying
 * every choice, never slower with more memory. The oracle builds whole plans and adds up the times of their
 * lists itself. */
#include "core/plan_auto.h"
#include "core/base/mem.h"
#include "recompute/planned.h"
#include "tests/tiny_model.h"

static struct hardware hw;

static void rates(void) {
    struct err err;
    EXPECT(!hardware_parse("matrix_flops_bf16: 1e12\nmatrix_flops_fp32: 1e11\nmemory_bandwidth: 3e10\n"
                           "bandwidth_activation: 1e10\nattention_forward_flops_fp32: 2e10\n",
                           "test", &hw, &err),
           "%s", err.text);
}

/* A model whose layers do most of the work and keep most of the memory. */
static struct model long_model(struct model m, int layers) {
    m.layers = layers;
    m.seq = m.max_positions = 64;
    return m;
}

/* As --pipeline-model-parallel-size: equal parts, embedding first, head last. */
struct world {
    struct plan_request requests[8];
    struct pipeline_chunk split[16];
    int stages;
};

static void make_world(struct world *w, struct model m, int stages, int chunks, const char *schedule,
                       int micro_batches) {
    struct err err;
    struct pipeline_split_options options = {.layers = (int)m.layers, .stages = stages, .chunks = chunks};
    rates();
    *w = (struct world){.stages = stages};
    EXPECT(!pipeline_split(&options, w->split, &err), "%s", err.text);
    for (int r = 0; r < stages; r++) {
        w->requests[r] = tiny_request(m, (struct recompute_policy){.granularity = RECOMPUTE_NONE});
        w->requests[r].hardware = &hw;
        w->requests[r].micro_batches = micro_batches;
        w->requests[r].layout = (struct plan_layout){.stages = stages,
                                                     .stage = r,
                                                     .chunks = chunks,
                                                     .split = w->split,
                                                     .schedule = schedule_find(schedule)};
    }
}

/* Peak and seconds of all layers of a stage, from a whole plan. */
struct outcome {
    size_t peak;
    double seconds;
};

static struct outcome outcome_of(const struct world *w, int stage, struct recompute_policy policy) {
    struct plan_request request = w->requests[stage];
    struct plan plan;
    struct outcome o = {0};
    request.recompute = policy;
    plan_build(&request, &plan);
    o.peak = plan.arena_bytes;
    for (int i = 0; i < plan.num_segments; i++) {
        const struct compiled_cost *c = &plan.costs[plan.segments[i].compiled];
        if (plan.segments[i].kind == SEGMENT_LAYERS)
            o.seconds += c->forward_seconds + c->rerun_seconds + c->backward_seconds + c->weight_seconds;
    }
    plan_free(&plan);
    return o;
}

static struct recompute_policy policy_of(const struct plan_auto *a) {
    return (struct recompute_policy){
        .granularity = RECOMPUTE_PLANNED, .planned = a->groups, .num_planned = a->num_groups};
}

/* The n-th plain setting of Megatron-LM; false after the last. */
static bool plain_setting(const struct model *m, int n, struct recompute_policy *out) {
    int subsets = 1 << MODULE_COUNT, layers = (int)m->layers;
    *out = (struct recompute_policy){.granularity = RECOMPUTE_SELECTIVE, .modules = (recompute_set)n};
    if (n < subsets) {
        const char *why;
        for (int i = 0; i < MODULE_COUNT; i++) /* sets with what the model lacks: the same as without */
            if (n >> i & 1 && (recompute_module_info(i)->is_internal || !model_has_module(m, i, &why)))
                out->modules &= ~RECOMPUTE_BIT(i);
        return true;
    }
    n -= subsets;
    *out = (struct recompute_policy){.granularity = RECOMPUTE_FULL,
                                     .method = n < layers ? RECOMPUTE_BLOCK : RECOMPUTE_UNIFORM,
                                     .num_layers = n % layers + 1};
    return n < 2 * layers;
}

static double best_plain(const struct world *w, int stage, size_t budget, size_t *smallest_p) {
    const struct model *m = &w->requests[stage].model;
    double best = INFINITY;
    struct recompute_policy policy, last = {.modules = ~0u};
    for (int n = 0; plain_setting(m, n, &policy); n++) {
        if (policy.granularity == RECOMPUTE_SELECTIVE && n && policy.modules != (recompute_set)n) continue;
        if (policy.modules == last.modules && policy.granularity == last.granularity &&
            policy.granularity == RECOMPUTE_SELECTIVE)
            continue;
        last = policy;
        struct outcome o = outcome_of(w, stage, policy);
        if (o.peak < *smallest_p) *smallest_p = o.peak;
        if (o.peak <= budget && o.seconds < best) best = o.seconds;
    }
    return best;
}

static size_t largest_peak(const struct world *w, struct recompute_policy policy) {
    size_t largest = 0;
    for (int r = 0; r < w->stages; r++) {
        struct outcome o = outcome_of(w, r, policy);
        if (o.peak > largest) largest = o.peak;
    }
    return largest;
}

/* Budgets between what nothing and what most recompute takes. */
static void expect_good_choices(const char *name, const struct world *w) {
    struct recompute_policy none = {.granularity = RECOMPUTE_NONE};
    struct recompute_policy full = {
        .granularity = RECOMPUTE_FULL, .method = RECOMPUTE_UNIFORM, .num_layers = 1};
    size_t most = largest_peak(w, none), least = largest_peak(w, full);
    double last_step = INFINITY, last_rerun = INFINITY;
    int found = 0;
    EXPECT(least < most, "%s: full recompute takes %zu, nothing %zu", name, least, most);
    for (int i = -1; i <= 8; i++) {
        size_t budget = least + (most - least) / 8 * (size_t)(i + 1) - (i < 0 ? 1 : 0);
        struct plan_auto a;
        struct err err;
        if (plan_auto_choose(w->requests, w->stages, budget, &a, &err)) {
            EXPECT_CONTAINS(err.text, "--recompute-memory-budget");
            EXPECT(i < 0, "%s: no choice for %zu: %s", name, budget, err.text);
            continue;
        }
        double rerun = 0;
        found++;
        for (int r = 0; r < w->stages; r++) {
            size_t smallest = SIZE_MAX;
            struct outcome o = outcome_of(w, r, policy_of(&a));
            double plain = best_plain(w, r, budget, &smallest);
            EXPECT(o.peak <= budget, "%s: stage %d takes %zu of %zu", name, r, o.peak, budget);
            EXPECT(o.peak == a.stages[r].peak_bytes, "%s: stage %d takes %zu, said %zu", name, r, o.peak,
                   a.stages[r].peak_bytes);
            EXPECT_NEAR(o.seconds, a.stages[r].seconds, 1e-12);
            EXPECT(o.seconds <= plain * (1 + 1e-9), "%s: stage %d of budget %zu: %.9g s, plain %.9g s", name,
                   r, budget, o.seconds, plain);
            rerun += a.stages[r].rerun_seconds;
        }
        EXPECT(a.step.seconds <= last_step * (1 + 1e-9), "%s: more memory, longer step: %g after %g", name,
               a.step.seconds, last_step);
        EXPECT(rerun <= last_rerun * (1 + 1e-9), "%s: more memory, more recompute", name);
        last_step = a.step.seconds, last_rerun = rerun;
        plan_auto_free(&a);
    }
    EXPECT(found >= 9, "%s: %d budgets had a choice", name, found);
}

TEST(one_stage_is_within_the_budget_and_beats_every_plain_setting) {
    struct world w;
    make_world(&w, long_model(tiny_gpt(), 6), 1, 1, "1f1b", 2);
    expect_good_choices("gpt", &w);
    make_world(&w, long_model(tiny_llama(), 5), 1, 1, "1f1b", 2);
    expect_good_choices("llama", &w);
}

TEST(layers_of_two_kinds_choose_each_for_themselves) {
    struct world w;
    make_world(&w, long_model(tiny_moe(), 4), 1, 1, "1f1b", 2);
    expect_good_choices("experts", &w);
}

/* Depths of multi-token prediction keep what they need; the layers make room. */
TEST(a_model_with_multi_token_prediction_stays_within_the_budget) {
    struct model m = long_model(tiny_mtp(), 4);
    struct world w;
    struct plan_auto a;
    struct err err;
    make_world(&w, m, 1, 1, "1f1b", 2);
    size_t most = outcome_of(&w, 0, (struct recompute_policy){.granularity = RECOMPUTE_NONE}).peak;
    bool found = !plan_auto_choose(w.requests, 1, most - most / 20, &a, &err);
    EXPECT(found, "%s", err.text);
    if (!found) return;
    EXPECT(outcome_of(&w, 0, policy_of(&a)).peak <= most - most / 20, "the plan is larger than the budget");
    EXPECT_EQ(outcome_of(&w, 0, policy_of(&a)).peak, a.stages[0].peak_bytes);
    EXPECT(a.stages[0].rerun_seconds > 0, "nothing is recomputed");
    plan_auto_free(&a);
}

TEST(every_stage_of_a_pipeline_uses_its_own_budget) {
    struct world w;
    make_world(&w, long_model(tiny_llama(), 6), 3, 1, "1f1b", 5);
    expect_good_choices("1f1b", &w);
    make_world(&w, long_model(tiny_llama(), 4), 2, 1, "zero-bubble", 4);
    expect_good_choices("zero-bubble", &w);
    make_world(&w, long_model(tiny_gpt(), 8), 2, 2, "interleaved", 4);
    expect_good_choices("interleaved", &w);
}

TEST(gradients_that_live_in_units_count_as_they_are) {
    struct world w;
    make_world(&w, long_model(tiny_llama(), 4), 1, 1, "1f1b", 2);
    w.requests[0].layout.data = 2;
    w.requests[0].layout.sharding = PLAN_SHARD_PARAMS;
    expect_good_choices("zero 3", &w);
}

/* Every assignment of every set of modules, whole layers and groups to three layers, each as a whole plan. */
TEST(the_choice_is_the_best_of_all_choices_of_a_small_model) {
    enum { SETS = 17, BUDGETS = 12 };
    struct world w;
    make_world(&w, long_model(tiny_gpt(), 3), 1, 1, "1f1b", 2);
    w.requests[0].model.hidden_dropout = w.requests[0].model.attention_dropout = 0;
    static const int modules[] = {MODULE_core_attn, MODULE_mlp, MODULE_layernorm, MODULE_mlp_act};
    recompute_set sets[SETS] = {0};
    for (int i = 0; i < 16; i++)
        for (int k = 0; k < 4; k++)
            if (i >> k & 1) sets[i] |= RECOMPUTE_BIT(modules[k]);
    sets[16] = RECOMPUTE_BIT(MODULE_layer);
    size_t budgets[BUDGETS], least = SIZE_MAX, most = 0;
    struct outcome *all = mem_new_array(struct outcome, 5 * 1000, "outcomes");
    int count = 0;
    for (int c = 0; c < SETS * SETS * SETS; c++) {
        struct recompute_group g[3] = {
            {1, sets[c % SETS]}, {1, sets[c / SETS % SETS]}, {1, sets[c / SETS / SETS]}};
        all[count++] = outcome_of(
            &w, 0,
            (struct recompute_policy){.granularity = RECOMPUTE_PLANNED, .planned = g, .num_planned = 3});
    }
    for (int i = 0; i < count; i++) {
        if (all[i].peak < least) least = all[i].peak;
        if (all[i].peak > most) most = all[i].peak;
    }
    for (int i = 0; i < BUDGETS; i++) {
        double best = INFINITY;
        struct plan_auto a;
        struct err err;
        budgets[i] = least + (most - least) / (BUDGETS - 1) * (size_t)i;
        for (int k = 0; k < count; k++)
            if (all[k].peak <= budgets[i] && all[k].seconds < best) best = all[k].seconds;
        bool found = !plan_auto_choose(w.requests, 1, budgets[i], &a, &err);
        EXPECT(found, "budget %zu: %s", budgets[i], err.text);
        if (!found) continue;
        EXPECT(a.stages[0].seconds <= best * (1 + 1e-9), "budget %zu: %.12g s, the best is %.12g s",
               budgets[i], a.stages[0].seconds, best);
        plan_auto_free(&a);
    }
    mem_free(all);
}

/* I1 and I2: three budgets, the same loss and gradients to the last bit, a measured peak within the budget.
 */
TEST(gradients_are_bit_equal_and_the_measured_peak_is_within_the_budget) {
    struct model models[] = {long_model(tiny_gpt(), 4), long_model(tiny_llama(), 4),
                             long_model(tiny_moe(), 4), long_model(tiny_mla(), 3)};
    for (int i = 0; i < (int)ARRAY_COUNT(models); i++) {
        struct world w;
        struct tiny t;
        make_world(&w, models[i], 1, 1, "1f1b", 2);
        tiny_open(&t, &w.requests[0]);
        double loss = tiny_step(&t, 5);
        float *grads = tiny_grads(&t);
        int64_t n = t.plan.num_parameters;
        size_t most = t.plan.arena_bytes;
        tiny_close(&t);
        size_t least = largest_peak(&w, (struct recompute_policy){.granularity = RECOMPUTE_FULL,
                                                                  .method = RECOMPUTE_UNIFORM,
                                                                  .num_layers = 1});
        for (size_t k = 0; k < 3; k++) {
            size_t budget = least + (most - least) * k / 3;
            struct plan_auto a;
            struct err err;
            EXPECT(!plan_auto_choose(w.requests, 1, budget, &a, &err), "%s", err.text);
            struct plan_request request = w.requests[0];
            request.recompute = policy_of(&a);
            tiny_open(&t, &request);
            EXPECT(tiny_step(&t, 5) == loss, "model %d, budget %zu: another loss", i, budget);
            float *mine = tiny_grads(&t);
            EXPECT(tiny_all_finite(mine, n) && !memcmp(mine, grads, (size_t)n * sizeof(float)),
                   "model %d, budget %zu: other gradients", i, budget);
            EXPECT(t.executor.high_water == t.plan.arena_bytes && t.executor.high_water <= budget,
                   "model %d: measured %zu, planned %zu, budget %zu", i, t.executor.high_water,
                   t.plan.arena_bytes, budget);
            EXPECT(k || t.plan.step_rerun_flops > 0, "model %d: the smallest budget recomputes nothing", i);
            mem_free(mine);
            tiny_close(&t);
            plan_auto_free(&a);
        }
        mem_free(grads);
    }
}

RUN_TESTS(CASE(one_stage_is_within_the_budget_and_beats_every_plain_setting),
          CASE(layers_of_two_kinds_choose_each_for_themselves),
          CASE(a_model_with_multi_token_prediction_stays_within_the_budget),
          CASE(every_stage_of_a_pipeline_uses_its_own_budget),
          CASE(gradients_that_live_in_units_count_as_they_are),
          CASE(the_choice_is_the_best_of_all_choices_of_a_small_model),
          CASE(gradients_are_bit_equal_and_the_measured_peak_is_within_the_budget))
