#include "tests/kernels/compare.h"

struct shape {
    int64_t s, b, h, vocab;
};

static const struct shape shapes[] = {{0, 1, 3, 2},   {1, 1, 1, 1},     {5, 3, 7, 4},      {8, 2, 64, 3},
                                      {33, 2, 65, 9}, {16, 4, 130, 50}, {70, 3, 257, 1000}};

struct emb {
    struct tensor weight, position_weight, y, dy, dweight, dposition_weight;
    int32_t *tokens, *positions;
    struct shape s;
    enum dtype t;
};

static struct emb emb_new(struct shape s, enum dtype t, bool unaligned) {
    int64_t n = s.s * s.b * s.h, count = s.s * s.b;
    struct emb e = {.s = s, .t = t};
    e.weight = tensor_random(t, s.vocab * s.h, unaligned, 1, -1, 1);
    e.position_weight = tensor_random(t, (s.s + 1) * s.h, unaligned, 2, -1, 1);
    e.y = tensor_new(t, n, unaligned);
    e.dy = tensor_random(t, n, unaligned, 3, -1, 1);
    e.dweight = tensor_random(DTYPE_F32, s.vocab * s.h, unaligned, 4, -1, 1);
    e.dposition_weight = tensor_random(DTYPE_F32, (s.s + 1) * s.h, unaligned, 5, -1, 1);
    e.tokens = mem_new_array(int32_t, (size_t)count + 1, "test tokens");
    e.positions = mem_new_array(int32_t, (size_t)count + 1, "test positions");
    for (int64_t i = 0; i < count; i++) {
        e.tokens[i] = (int32_t)((uint64_t)i * 2654435761u % (uint64_t)s.vocab);
        e.positions[i] = (int32_t)(i % s.s * 3 % (s.s + 1)); /* not in order: documents restart */
    }
    return e;
}

static void emb_free(struct emb *e) {
    struct tensor *all[] = {&e->weight, &e->position_weight, &e->y,
                            &e->dy,     &e->dweight,         &e->dposition_weight};
    for (int i = 0; i < 6; i++) tensor_free(all[i]);
    mem_free(e->tokens), mem_free(e->positions);
}

static void forward(const struct kernels *k, struct threads *team, struct emb *e, bool positions) {
    RUN_ON(team, k, embedding_forward, .y = e->y.data, .weight = e->weight.data,
           .position_weight = positions ? e->position_weight.data : NULL, .tokens = e->tokens,
           .positions = positions ? e->positions : NULL, .s = e->s.s, .b = e->s.b, .h = e->s.h,
           .vocab = e->s.vocab, .max_positions = e->s.s + 1, .dtype = e->t);
}

static void backward(const struct kernels *k, struct threads *team, struct emb *e, bool weight,
                     bool positions) {
    RUN_ON(team, k, embedding_backward, .dweight = weight ? e->dweight.data : NULL,
           .dposition_weight = positions ? e->dposition_weight.data : NULL, .dy = e->dy.data,
           .tokens = e->tokens, .positions = positions ? e->positions : NULL, .s = e->s.s, .b = e->s.b,
           .h = e->s.h, .vocab = e->s.vocab, .max_positions = e->s.s + 1, .dtype = e->t);
}

TEST(forward_agrees_with_reference_to_the_bit) {
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
        for (int positions = 0; positions < 2; positions++) {
            struct emb a = emb_new(shapes[i], t, i % 2), b = emb_new(shapes[i], t, false);
            forward(kernels_reference(), NULL, &b, positions);
            forward(k, NULL, &a, positions);
            expect_same_bits("y", k, &a.y, &b.y);
            emb_free(&a), emb_free(&b);
        }
}

/* A row receives at most all s * b rows of dy, each of size 1, and each addition rounds a sum of that size.
 */
TEST(backward_agrees_with_reference) {
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
        for (int which = 1; which < 4; which++) {
            struct emb a = emb_new(shapes[i], t, i % 2), b = emb_new(shapes[i], t, false);
            double uses = (double)(shapes[i].s * shapes[i].b);
            backward(kernels_reference(), NULL, &b, which & 1, which & 2);
            backward(k, NULL, &a, which & 1, which & 2);
            expect_close("dweight", k, &a.dweight, &b.dweight, uses * (uses + 1) * 0x1p-24);
            expect_close("dposition_weight", k, &a.dposition_weight, &b.dposition_weight,
                         uses * (uses + 1) * 0x1p-24);
            emb_free(&a), emb_free(&b);
        }
}

/* <dy, forward(weight)> = <backward(dy), weight> for a linear map: the transpose, without a shared formula.
 */
TEST(backward_is_the_transpose_of_forward) {
    struct emb e = emb_new(shapes[5], DTYPE_F32, false);
    double left = 0, right = 0;
    memset(e.dweight.data, 0, (size_t)e.dweight.n * 4);
    memset(e.dposition_weight.data, 0, (size_t)e.dposition_weight.n * 4);
    forward(kernels_reference(), NULL, &e, true);
    backward(kernels_reference(), NULL, &e, true, true);
    for (int64_t i = 0; i < e.y.n; i++) left += (double)tensor_at(&e.y, i) * tensor_at(&e.dy, i);
    for (int64_t i = 0; i < e.weight.n; i++)
        right += (double)tensor_at(&e.weight, i) * tensor_at(&e.dweight, i);
    for (int64_t i = 0; i < e.position_weight.n; i++)
        right += (double)tensor_at(&e.position_weight, i) * tensor_at(&e.dposition_weight, i);
    EXPECT_NEAR(left, right, 1e-3); /* 8320 products, each rounded at 2^-23 */
    emb_free(&e);
}

TEST(bits_do_not_depend_on_threads) {
    FOR_EACH_ISA(k) {
        struct emb one = emb_new(shapes[6], DTYPE_BF16, false);
        forward(k, NULL, &one, true);
        backward(k, NULL, &one, true, true);
        for (int threads = 1; threads <= MOST_TEAM; threads++) {
            struct threads *team = threads_open(threads);
            struct emb e = emb_new(shapes[6], DTYPE_BF16, threads == 2);
            forward(k, team, &e, true);
            backward(k, team, &e, true, true);
            expect_same_bits("y", k, &e.y, &one.y);
            expect_same_bits("dweight", k, &e.dweight, &one.dweight);
            expect_same_bits("dposition_weight", k, &e.dposition_weight, &one.dposition_weight);
            emb_free(&e);
            threads_close(team);
        }
        emb_free(&one);
    }
}

TEST(nan_stays_visible) {
    FOR_EACH_ISA(k) {
        struct emb e = emb_new(shapes[4], DTYPE_BF16, false);
        store_f32(e.weight.data, e.t, e.tokens[0] * e.s.h + 5, NAN);
        store_f32(e.dy.data, e.t, 7, NAN);
        forward(k, NULL, &e, true);
        backward(k, NULL, &e, true, true);
        EXPECT(isnan(tensor_at(&e.y, 5)) && !isnan(tensor_at(&e.y, 6)), "%s: y", k->backend);
        EXPECT(isnan(tensor_at(&e.dweight, e.tokens[0] * e.s.h + 7)), "%s: dweight", k->backend);
        emb_free(&e);
    }
}

TEST(check_and_cost_state_the_shape) {
    struct embedding_forward_args a = {.s = 2, .b = 3, .h = 4, .vocab = 5, .dtype = DTYPE_BF16};
    EXPECT(!embedding_forward_check(&a), "well formed");
    EXPECT_EQ(embedding_forward_cost(&a).bytes, 2 * 24 * 2 + 6 * 4); /* row in, row out, one id */
    a.position_weight = &a;
    EXPECT_CONTAINS(embedding_forward_check(&a), "max_positions");
    a.vocab = 0, a.weight = &a;
    EXPECT_CONTAINS(embedding_forward_check(&a), "vocab");
}

RUN_TESTS(CASE(forward_agrees_with_reference_to_the_bit), CASE(backward_agrees_with_reference),
          CASE(backward_is_the_transpose_of_forward), CASE(bits_do_not_depend_on_threads),
          CASE(nan_stays_visible), CASE(check_and_cost_state_the_shape))
