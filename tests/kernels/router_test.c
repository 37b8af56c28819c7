/* Routing against PyTorch in float64 (tests/golden/router.safetensors), every instruction set against
 * `reference`, and what a selection must be whatever computed it: ties, lonely experts, one expert for all.
 */
#include "core/checkpoint/safetensors.h"
#include "tests/kernels/routed.h"

/* ---- PyTorch ---- */

static const void *golden(const struct safetensors *f, const char *name, const char *part) {
    char full[80];
    snprintf(full, sizeof(full), "%s.%s", name, part);
    const struct safetensors_tensor *t = safetensors_find(f, full);
    return t ? t->data : NULL;
}

static void check_golden(const struct kernels *k, const struct safetensors *f, const char *name) {
    int64_t shape[8];
    CHECK(golden(f, name, "shape"), "no golden case %s", name);
    memcpy(shape, golden(f, name, "shape"), sizeof(shape));
    struct routed r = routed_new((struct router_shape){.tokens = 30,
                                                       .experts = shape[0],
                                                       .topk = shape[1],
                                                       .group_count = shape[2],
                                                       .group_topk = shape[3],
                                                       .count_sets = shape[4],
                                                       .score = shape[5] ? ROUTER_SIGMOID : ROUTER_SOFTMAX,
                                                       .pre_softmax = shape[6],
                                                       .scaling = (float)shape[7] / 10});
    int64_t n = 30 * shape[0], slots = 30 * shape[1];
    memcpy(r.logits, golden(f, name, "logits"), (size_t)n * 4);
    memcpy(r.dprobs, golden(f, name, "dprobs"), (size_t)slots * 4);
    route(k, NULL, &r, golden(f, name, "bias"));
    const int64_t *experts = golden(f, name, "experts");
    int wrong = 0;
    for (int64_t i = 0; i < slots; i++) wrong += experts[i] != r.experts[i];
    EXPECT(!wrong, "%s (%s): %d other choices than PyTorch's", name, k->backend, wrong);
    double probs = worst(r.probs, golden(f, name, "probs"), NULL, slots);
    double dlogits = worst(r.dlogits, golden(f, name, "dlogits"), NULL, n);
    EXPECT(probs <= 4e-6, "%s (%s): probabilities off by %.3g", name, k->backend, probs);
    EXPECT(dlogits <= 8e-6, "%s (%s): gradient off by %.3g", name, k->backend, dlogits);
    EXPECT_NEAR(r.balance, *(const double *)golden(f, name, "balance"), 2e-6);
    EXPECT_NEAR(r.z, *(const double *)golden(f, name, "z"), 2e-5);
    expect_permutation(&r, name);
    routed_free(&r);
}

TEST(routers_agree_with_pytorch) {
    static const char *const names[] = {"softmax",        "pre_softmax", "top1_pre", "top5",
                                        "softmax_groups", "pre_groups",  "sigmoid",  "sigmoid_top1",
                                        "sigmoid_groups", "many"};
    struct err err;
    struct safetensors *f = safetensors_open("tests/golden/router.safetensors", &err);
    CHECK(f, "%s", err.text);
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        check_golden(kernels_reference(), f, names[i]);
        FOR_EACH_ISA(k) check_golden(k, f, names[i]);
    }
    safetensors_close(f);
}

/* ---- every instruction set against reference, and threads ---- */

static void check_shape(const struct kernels *k, struct router_shape s, double range) {
    struct routed a = routed_new(s), e = routed_new(s);
    struct threads *team = threads_open(3);
    fill(a.logits, s.tokens * s.experts, (uint32_t)(s.experts * 31 + s.topk), range);
    fill(a.dprobs, s.tokens * s.topk, 5, 1);
    memcpy(e.logits, a.logits, (size_t)(s.tokens * s.experts) * 4);
    memcpy(e.dprobs, a.dprobs, (size_t)(s.tokens * s.topk) * 4);
    route(kernels_reference(), NULL, &e, NULL);
    route(k, NULL, &a, NULL);
    int64_t slots = s.tokens * s.topk;
    EXPECT(!memcmp(a.experts, e.experts, (size_t)slots * 4), "%s: E %lld k %lld: other choices", k->backend,
           (long long)s.experts, (long long)s.topk);
    EXPECT(!memcmp(a.counts, e.counts, (size_t)(s.count_sets * s.experts) * 4), "counts differ");
    expect_permutation(&a, k->backend);
    double scaling = s.scaling != 0 ? (double)s.scaling : 1;
    EXPECT(worst(a.probs, NULL, e.probs, slots) <= 4e-6 * scaling * (1 + range / 8), "probabilities");
    /* the z term is 2 lse P / T, and lse is at most range + ln E */
    EXPECT(worst(a.dlogits, NULL, e.dlogits, s.tokens * s.experts) <= 8e-6 * scaling * (1 + range / 4),
           "gradient");
    EXPECT_NEAR(a.balance, e.balance, 1e-5 * fmax(1, e.balance));
    EXPECT_NEAR(a.z, e.z, 1e-5 * fmax(1, e.z));
    float *probs = mem_new_array(float, (size_t)slots + 1, "test");
    memcpy(probs, a.probs, (size_t)slots * 4);
    double balance = a.balance;
    route(k, team, &a, NULL);
    EXPECT(balance == a.balance && !memcmp(probs, a.probs, (size_t)slots * 4), "three threads: other bits");
    mem_free(probs);
    threads_close(team);
    routed_free(&a);
    routed_free(&e);
}

TEST(routers_agree_with_reference) {
    static const int64_t experts[] = {1, 2, 5, 8, 33, 64};
    FOR_EACH_ISA(k)
    for (size_t i = 0; i < ARRAY_COUNT(experts); i++)
        for (int64_t topk = 1; topk <= 8 && topk <= experts[i]; topk++)
            for (int kind = 0; kind < 3; kind++) {
                struct router_shape s = {.tokens = 150,
                                         .experts = experts[i],
                                         .topk = topk,
                                         .count_sets = topk % 2 ? 1 : 3,
                                         .score = kind == 2 ? ROUTER_SIGMOID : ROUTER_SOFTMAX,
                                         .pre_softmax = kind == 1,
                                         .scaling = topk == 3 ? 2.5f : 0};
                check_shape(k, s, topk == 2 ? 30 : 4);
                if (experts[i] < 8 || experts[i] % 4) continue;
                s.group_count = 4;
                for (s.group_topk = 1; s.group_topk <= 4; s.group_topk++)
                    if (topk % s.group_topk == 0 && topk / s.group_topk <= experts[i] / 4)
                        check_shape(k, s, 4);
            }
}

/* ---- ties and extremes ---- */

TEST(ties_go_to_the_lowest_experts) {
    for (int backend = 0; backend <= ISA_COUNT; backend++)
        for (int kind = 0; kind < 4; kind++) {
            const struct kernels *k = backend ? table_named(isa_names[backend - 1]) : kernels_reference();
            if (!k) continue;
            struct routed r =
                routed_new((struct router_shape){.tokens = 100,
                                                 .experts = 16,
                                                 .topk = 4,
                                                 .group_count = kind > 1 ? 4 : 0,
                                                 .group_topk = kind > 1 ? 2 : 0,
                                                 .count_sets = 1,
                                                 .score = kind % 2 ? ROUTER_SIGMOID : ROUTER_SOFTMAX});
            static const int32_t plain[] = {0, 1, 2, 3}, best[] = {9, 0, 1, 2};
            for (int i = 0; i < 1600; i++) r.logits[i] = 0.625f;
            route(k, NULL, &r, NULL);
            for (int t = 0; t < 100; t++)
                EXPECT(!memcmp(r.experts + t * 4, plain, sizeof(plain)), "%s kind %d: token %d", k->backend,
                       kind, t);
            /* all tokens to the same experts: twelve have nothing */
            EXPECT(r.offsets[4] == 400 && r.offsets[16] == 400 && r.counts[3] == 100 && r.counts[4] == 0,
                   "loads");
            for (int t = 0; t < 100; t++) EXPECT_NEAR(r.probs[t * 4 + 3], 0.25, 1e-6);
            for (int t = 0; t < 100 && kind < 2; t++) r.logits[t * 16 + 9] = 0.75f;
            if (kind < 2) route(k, NULL, &r, NULL);
            for (int t = 0; t < 100 && kind < 2; t++)
                EXPECT(!memcmp(r.experts + t * 4, best, sizeof(best)), "%s kind %d: token %d", k->backend,
                       kind, t);
            routed_free(&r);
        }
}

/* The bias moves the choice and nothing else. */
TEST(a_bias_changes_the_choice_and_not_the_weights) {
    for (int backend = 0; backend <= ISA_COUNT; backend++) {
        const struct kernels *k = backend ? table_named(isa_names[backend - 1]) : kernels_reference();
        if (!k) continue;
        struct routed r = routed_new((struct router_shape){
            .tokens = 2, .experts = 4, .topk = 1, .count_sets = 1, .score = ROUTER_SIGMOID});
        static const float logits[] = {1, 0.5f, 0, -1, 0, 3, 1, 2}, bias[] = {0, 0, 0.9f, 0};
        memcpy(r.logits, logits, sizeof(logits));
        route(k, NULL, &r, bias);
        EXPECT(r.experts[0] == 2 && r.experts[1] == 2, "%s: chose %d and %d", k->backend, r.experts[0],
               r.experts[1]);
        EXPECT_NEAR(r.probs[0], 0.5, 1e-6);
        EXPECT_NEAR(r.probs[1], 1 / (1 + exp(-1.0)), 1e-6);
        EXPECT(r.counts[0] == 1 && r.counts[1] == 1 && r.counts[2] == 0, "counts are those without bias");
        routed_free(&r);
    }
}

RUN_TESTS(CASE(routers_agree_with_pytorch), CASE(routers_agree_with_reference),
          CASE(ties_go_to_the_lowest_experts), CASE(a_bias_changes_the_choice_and_not_the_weights))
