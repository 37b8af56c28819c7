/* Every kind of router against PyTorch in float64 (tests/golden/router_kinds.safetensors): score, groups,
 * bias, and what an expert's capacity drops. Then what a capacity must do whatever computed it, the losses of
 * tokens that several ranks share, and jitter. */
#include "core/checkpoint/safetensors.h"
#include "tests/kernels/routed.h"

enum { TOKENS = 16, EXPERTS = 8, TOPK = 2, SLOTS = TOKENS * TOPK, LOGITS = TOKENS * EXPERTS };

static const void *golden(const struct safetensors *f, const char *name) {
    const struct safetensors_tensor *t = safetensors_find(f, name);
    CHECK(t, "no golden tensor %s", name);
    return t->data;
}

static void check_kind(const struct kernels *k, const struct safetensors *f, int number, bool pads) {
    const int64_t *kind = (const int64_t *)golden(f, "cases") + 5 * number;
    char what[96];
    snprintf(what, sizeof(what), "%s: score %d pre %d groups %d bias %d drop %d pads %d", k->backend,
             (int)kind[0], (int)kind[1], (int)kind[2], (int)kind[3], (int)kind[4], pads);
    struct routed r = routed_new((struct router_shape){.tokens = TOKENS,
                                                       .experts = EXPERTS,
                                                       .topk = TOPK,
                                                       .count_sets = 2,
                                                       .score = (enum router_score)kind[0],
                                                       .pre_softmax = kind[1],
                                                       .group_count = kind[2],
                                                       .group_topk = kind[2] ? 2 : 0,
                                                       .scaling = 1.5f,
                                                       .capacity = kind[4] ? 3 : 0,
                                                       .drops_by_position = kind[4] == 2,
                                                       .pads = pads});
    memcpy(r.logits, golden(f, "logits"), LOGITS * 4);
    memcpy(r.dprobs, golden(f, "dprobs"), SLOTS * 4);
    route(k, NULL, &r, kind[3] ? golden(f, "bias") : NULL);
    const int64_t *experts = (const int64_t *)golden(f, "experts") + SLOTS * number;
    const int64_t *kept = (const int64_t *)golden(f, "kept") + SLOTS * number;
    const double *losses = (const double *)golden(f, "losses") + 2 * number;
    int64_t wrong = 0, stayed[EXPERTS] = {0};
    for (int i = 0; i < SLOTS; i++) {
        wrong += experts[i] != r.experts[i] || kept[i] != (r.row_of_slot[i] >= 0);
        stayed[experts[i]] += kept[i];
    }
    EXPECT(!wrong, "%s: %lld choices or drops unlike PyTorch's", what, (long long)wrong);
    EXPECT(!memcmp(stayed, r.tokens, sizeof(stayed)), "%s: loads", what);
    expect_permutation(&r, what);
    double probs = worst(r.probs, NULL, (const float *)golden(f, "probs") + SLOTS * number, SLOTS);
    double dlogits = worst(r.dlogits, NULL, (const float *)golden(f, "dlogits") + LOGITS * number, LOGITS);
    EXPECT(probs <= 4e-6, "%s: probabilities off by %.3g", what, probs);
    EXPECT(dlogits <= 8e-6, "%s: gradient off by %.3g", what, dlogits);
    EXPECT_NEAR(r.balance, losses[0], 2e-6);
    EXPECT_NEAR(r.z, losses[1], 2e-5);
    routed_free(&r);
}

TEST(every_kind_of_router_agrees_with_pytorch) {
    struct err err;
    struct safetensors *f = safetensors_open("tests/golden/router_kinds.safetensors", &err);
    CHECK(f, "%s", err.text);
    for (int backend = 0; backend <= ISA_COUNT; backend++) {
        const struct kernels *k = backend ? table_named(isa_names[backend - 1]) : kernels_reference();
        for (int number = 0; k && number < 36; number++)
            for (int pads = 0; pads <= (number % 3 > 0); pads++) check_kind(k, f, number, pads);
    }
    safetensors_close(f);
}

/* Larger shapes, by reference: choices, drops and rows are the same numbers. */
TEST(drops_are_those_of_reference) {
    static const struct router_shape shapes[] = {
        {.tokens = 200, .experts = 5, .topk = 3, .count_sets = 1, .capacity = 100},
        {.tokens = 200, .experts = 5, .topk = 3, .count_sets = 1, .capacity = 1, .pads = true},
        {.tokens = 70, .experts = 64, .topk = 8, .count_sets = 1, .capacity = 9, .score = ROUTER_SIGMOID},
        {.tokens = 70, .experts = 2, .topk = 2, .count_sets = 1, .capacity = 70, .pads = true},
        {.tokens = 64, .experts = 7, .topk = 1, .count_sets = 1, .capacity = 5, .drops_by_position = true}};
    FOR_EACH_ISA(k)
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
        struct routed got = routed_new(shapes[i]), want = routed_new(shapes[i]);
        struct router_shape s = shapes[i];
        fill(got.logits, s.tokens * s.experts, (uint32_t)i, 3);
        for (int64_t t = 0; t < s.tokens / 2; t++) /* many equal weights */
            for (int64_t e = 0; e < s.experts; e++) got.logits[t * s.experts + e] = (float)(e % 3);
        memcpy(want.logits, got.logits, (size_t)(s.tokens * s.experts) * 4);
        route(k, NULL, &got, NULL);
        route(kernels_reference(), NULL, &want, NULL);
        size_t slots = (size_t)(s.tokens * s.topk) * 4;
        /* equal weights of reference may differ in the last bit of another's arithmetic: compare what must
         * hold */
        expect_permutation(&got, k->backend);
        expect_permutation(&want, "reference");
        EXPECT(!memcmp(got.offsets, want.offsets, (size_t)(s.experts + 1) * 4), "shape %zu: offsets", i);
        EXPECT(!memcmp(got.row_of_slot, want.row_of_slot, slots), "shape %zu (%s): rows", i, k->backend);
        EXPECT(!memcmp(got.slot_of_row, want.slot_of_row, (size_t)router_rows(&s) * 4), "shape %zu: slots",
               i);
        EXPECT(!memcmp(got.tokens, want.tokens, (size_t)s.experts * 8), "shape %zu: loads", i);
        routed_free(&got);
        routed_free(&want);
    }
}

/* Logits that are no numbers leave every list of rows in order: nobody writes outside. */
TEST(logits_that_are_no_numbers_keep_to_the_capacity) {
    for (int backend = 0; backend <= ISA_COUNT; backend++) {
        const struct kernels *k = backend ? table_named(isa_names[backend - 1]) : kernels_reference();
        if (!k) continue;
        struct routed r = routed_new((struct router_shape){
            .tokens = 40, .experts = 4, .topk = 2, .count_sets = 1, .capacity = 3, .score = ROUTER_SIGMOID});
        for (int i = 0; i < 160; i++) r.logits[i] = i % 3 ? -NAN : i % 5 ? INFINITY : 1;
        for (int i = 0; i < 80; i++) r.row_of_slot[i] = -7;
        if (!backend) /* plain loops compare: equal to nothing, a NaN may be chosen by no one */
            for (int i = 0; i < 160; i++) r.logits[i] = i % 3 ? -INFINITY : 1;
        route(k, NULL, &r, NULL);
        EXPECT(r.offsets[4] <= 12, "%s: %d rows", k->backend, r.offsets[4]);
        for (int i = 0; i < 80; i++)
            EXPECT(r.row_of_slot[i] >= -1 && r.row_of_slot[i] < 12, "%s: row %d", k->backend,
                   r.row_of_slot[i]);
        routed_free(&r);
    }
}

/* Two ranks with half of the tokens each, and the counts of both, have the losses and gradients of one. */
TEST(losses_of_parts_add_up) {
    FOR_EACH_ISA(k)
    for (int sets = 1; sets <= 2; sets++) {
        struct router_shape whole = {.tokens = 60, .experts = 8, .topk = 3, .count_sets = sets};
        struct router_shape half = whole;
        half.tokens = 30, half.parts = 2;
        struct routed all = routed_new(whole), part[2] = {routed_new(half), routed_new(half)};
        double balance = 0, z = 0;
        fill(all.logits, 480, 11, 3);
        route(k, NULL, &all, NULL);
        for (int i = 0; i < 2; i++) {
            struct routed *r = &part[i];
            memcpy(r->logits, all.logits + i * 240, 240 * 4);
            RUN(k, route_forward, .probs = r->probs, .experts = r->experts, .offsets = r->offsets,
                .row_of_slot = r->row_of_slot, .slot_of_row = r->slot_of_row, .counts = r->counts,
                .logits = r->logits, .shape = half);
        }
        for (int i = 0; i < 8 * sets; i++) part[0].counts[i] = part[1].counts[i] += part[0].counts[i];
        EXPECT(!memcmp(part[0].counts, all.counts, (size_t)(8 * sets) * 4), "counts do not add up");
        for (int i = 0; i < 2; i++) {
            struct routed *r = &part[i];
            RUN(k, route_losses, .balance_sum = &balance, .z_sum = &z, .logits = r->logits,
                .counts = r->counts, .shape = half);
            RUN(k, route_backward, .dlogits = r->dlogits, .dprobs = r->dprobs, .logits = r->logits,
                .experts = r->experts, .counts = r->counts, .shape = half, .balance_scale = 0.7f,
                .z_scale = 0.3f);
            double off = worst(r->dlogits, NULL, all.dlogits + i * 240, 240);
            EXPECT(off <= 1e-8, "%s: gradients of part %d off by %.3g", k->backend, i, off);
        }
        EXPECT_NEAR(balance, all.balance, 1e-6);
        EXPECT_NEAR(z, all.z, 1e-6);
        routed_free(&all), routed_free(&part[0]), routed_free(&part[1]);
    }
}

TEST(jitter_agrees_with_reference_and_stays_inside) {
    static const struct rng_key key = {.seed = 3, .iteration = 9, .micro_batch = 2, .layer = 1, .op = 4};
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        enum { N = 1500, FIRST = 7 };
        struct tensor x = tensor_random(t, N, true, 1, -2, 2), y[2], halves;
        for (int b = 0; b < 2; b++) {
            y[b] = tensor_random(t, N, b, 5, -1, 1);
            RUN(b ? kernels_reference() : k, router_jitter, .y = y[b].data, .x = x.data, .n = N,
                .first_element = FIRST, .eps = 0.25f, .accumulate = accumulate, .key = key, .dtype = t);
        }
        expect_close("jitter", k, &y[0], &y[1], 0x1p-24 * 16);
        /* an element's factor is its own, whatever part of the tensor is asked for */
        halves = tensor_random(t, N, false, 5, -1, 1);
        for (int64_t at = 0; at < N; at += 500)
            RUN(k, router_jitter, .y = dtype_at(halves.data, t, at), .x = dtype_at(x.data, t, at), .n = 500,
                .first_element = (uint64_t)(FIRST + at), .eps = 0.25f, .accumulate = accumulate, .key = key,
                .dtype = t);
        expect_same_bits("parts of a tensor", k, &halves, &y[0]);
        double least = 1, most = 1;
        for (int64_t i = 0; i < N && t == DTYPE_F32 && !accumulate; i++) {
            double factor = (double)((float *)y[0].data)[i] / (double)((float *)x.data)[i];
            least = fmin(least, factor), most = fmax(most, factor);
        }
        if (t == DTYPE_F32 && !accumulate)
            EXPECT(least >= 0.7499 && least < 0.76 && most <= 1.2501 && most > 1.24, "factors from %g to %g",
                   least, most);
        tensor_free(&x), tensor_free(&y[0]), tensor_free(&y[1]), tensor_free(&halves);
    }
}

RUN_TESTS(CASE(every_kind_of_router_agrees_with_pytorch), CASE(drops_are_those_of_reference),
          CASE(logits_that_are_no_numbers_keep_to_the_capacity), CASE(losses_of_parts_add_up),
          CASE(jitter_agrees_with_reference_and_stays_inside))
