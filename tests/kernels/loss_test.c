#include "tests/kernels/compare.h"

static const int64_t shapes[][2] = {{0, 5},    {1, 1},    {3, 2},    {5, 31},   {4, 64},
                                    {7, 1000}, {3, 4096}, {2, 9001}, {2, 50304}};

struct ce {
    struct tensor logits, loss, lse, dlogits, mask;
    int32_t *labels;
    int64_t rows, vocab;
    enum dtype t;
};

/* Mask: every third row is out and has the label -100; some count half. */
static struct ce ce_new(const int64_t shape[2], enum dtype t, double range, bool unaligned) {
    struct ce c = {.rows = shape[0], .vocab = shape[1], .t = t};
    c.logits = tensor_random(t, c.rows * c.vocab, unaligned, 1, -range, range);
    c.loss = tensor_new(DTYPE_F32, c.rows, unaligned);
    c.lse = tensor_new(DTYPE_F32, c.rows, unaligned);
    c.mask = tensor_new(DTYPE_F32, c.rows, unaligned);
    c.dlogits = tensor_new(t, c.rows * c.vocab, unaligned);
    c.labels = mem_new_array(int32_t, (size_t)c.rows + 1, "test labels");
    for (int64_t r = 0; r < c.rows; r++) {
        c.labels[r] = r % 3 == 2 ? -100 : (int32_t)(r * 7919 % c.vocab);
        ((float *)c.mask.data)[r] = r % 3 == 2 ? 0 : r % 3 ? 0.5f : 1;
    }
    return c;
}

static void ce_free(struct ce *c) {
    tensor_free(&c->logits), tensor_free(&c->loss), tensor_free(&c->lse), tensor_free(&c->dlogits);
    tensor_free(&c->mask);
    mem_free(c->labels);
}

static void forward(const struct kernels *k, struct threads *team, struct ce *c) {
    RUN_ON(team, k, cross_entropy_forward, .loss = c->loss.data, .lse = c->lse.data, .logits = c->logits.data,
           .labels = c->labels, .mask = c->mask.data, .rows = c->rows, .vocab = c->vocab, .dtype = c->t);
}

static void backward(const struct kernels *k, struct threads *team, struct ce *c, void *dlogits) {
    RUN_ON(team, k, cross_entropy_backward, .dlogits = dlogits, .logits = c->logits.data, .lse = c->lse.data,
           .labels = c->labels, .mask = c->mask.data, .rows = c->rows, .vocab = c->vocab, .grad_scale = 0.25f,
           .dtype = c->t);
}

/* lse: each exponential of x - max is within (2 + range) 2^-23 where it matters (terms further down weigh
 * less than their error), a lane adds at most 4096 / 32 of them and their tree has five levels; the sum is
 * relative, so the error of its logarithm is absolute. Storing lse rounds a number of size range + log vocab.
 */
static double lse_error(const struct ce *c, double range) {
    return (8 + 128 + 6) * 0x1p-24 + (range + log((double)c->vocab + 1)) * 0x1p-23;
}

static void check_shape(const struct kernels *k, enum dtype t, const int64_t shape[2], double range) {
    struct ce c = ce_new(shape, t, range, shape[0] % 2), e = ce_new(shape, t, range, false);
    forward(kernels_reference(), NULL, &e);
    forward(k, NULL, &c);
    expect_close("lse", k, &c.lse, &e.lse, lse_error(&c, range));
    expect_close("loss", k, &c.loss, &e.loss, 2 * lse_error(&c, range));
    memcpy(c.lse.data, e.lse.data, (size_t)c.rows * 4);
    backward(kernels_reference(), NULL, &e, e.dlogits.data);
    backward(k, NULL, &c, c.dlogits.data);
    /* x e^-x <= 1 / e: the error of an exponential grows with |x| but its size shrinks; x - lse rounds too.
     */
    expect_close("dlogits", k, &c.dlogits, &e.dlogits, 0.25 * (8 + 2 * range) * 0x1p-23);
    backward(k, NULL, &c, c.logits.data);
    expect_same_bits("dlogits in place of logits", k, &c.logits, &c.dlogits);
    ce_free(&c), ce_free(&e);
}

TEST(forward_and_backward_agree_with_reference) {
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++) {
        check_shape(k, t, shapes[i], 3);
        check_shape(k, t, shapes[i], 60);
    }
}

TEST(backward_is_the_derivative_of_forward) {
    static const double weight[] = {1, -8, 8, -1};
    const int64_t shape[] = {4, 9};
    struct ce c = ce_new(shape, DTYPE_F32, 2, false);
    forward(kernels_reference(), NULL, &c);
    backward(kernels_reference(), NULL, &c, c.dlogits.data);
    for (int64_t i = 0; i < c.logits.n; i++) {
        double old = tensor_at(&c.logits, i), h = 0x1p-5, sum = 0;
        for (int s = 0; s < 4; s++) {
            store_f32(c.logits.data, c.t, i, (float)(old + (s < 2 ? s - 2 : s - 1) * h));
            forward(kernels_reference(), NULL, &c);
            for (int64_t r = 0; r < c.rows; r++) sum += weight[s] * 0.25 * tensor_at(&c.loss, r);
        }
        store_f32(c.logits.data, c.t, i, (float)old);
        /* a loss of order 4 rounded at 2^-24, over h 12 / 18; h^4 / 30 f''''' is below 1e-7 */
        EXPECT_NEAR(tensor_at(&c.dlogits, i), sum / (12 * h), 2e-5);
    }
    ce_free(&c);
}

TEST(rows_out_of_the_mask_cost_nothing_and_are_not_read_for_labels) {
    FOR_EACH_ISA(k) {
        const int64_t shape[] = {9, 40};
        struct ce c = ce_new(shape, DTYPE_BF16, 3, false);
        for (int64_t r = 0; r < 9; r++) ((float *)c.mask.data)[r] = 0, c.labels[r] = -100;
        store_f32(c.logits.data, c.t, 45, NAN);
        forward(k, NULL, &c);
        backward(k, NULL, &c, c.dlogits.data);
        for (int64_t r = 0; r < 9; r++)
            EXPECT(tensor_at(&c.loss, r) == 0, "%s: loss of row %d", k->backend, (int)r);
        for (int64_t i = 0; i < c.dlogits.n; i++)
            EXPECT(tensor_at(&c.dlogits, i) == 0, "%s: dlogits", k->backend);
        ce_free(&c);
    }
}

TEST(gradient_of_a_row_sums_to_nothing) {
    FOR_EACH_ISA(k) {
        const int64_t shape[] = {2, 50304};
        struct ce c = ce_new(shape, DTYPE_F32, 5, false);
        forward(k, NULL, &c);
        backward(k, NULL, &c, c.dlogits.data);
        double sum = 0;
        for (int64_t v = 0; v < c.vocab; v++) sum += tensor_at(&c.dlogits, v);
        EXPECT_NEAR(sum, 0, 0.25 * (lse_error(&c, 5) + 12 * 0x1p-23)); /* sum of p, minus one */
        ce_free(&c);
    }
}

TEST(nan_and_infinity_stay_visible) {
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (int64_t at = 0; at < 9001; at += 1000) {
        const int64_t shape[] = {2, 9001};
        struct ce c = ce_new(shape, t, 3, false);
        store_f32(c.logits.data, t, at, NAN);
        forward(k, NULL, &c);
        backward(k, NULL, &c, c.dlogits.data);
        EXPECT(isnan(tensor_at(&c.loss, 0)) && isnan(tensor_at(&c.lse, 0)), "%s: NaN at %d vanished",
               k->backend, (int)at);
        EXPECT(isnan(tensor_at(&c.dlogits, at)), "%s: NaN at %d vanished in backward", k->backend, (int)at);
        EXPECT(isfinite(tensor_at(&c.loss, 1)), "%s: the next row is spoilt", k->backend);
        store_f32(c.logits.data, t, at, INFINITY);
        forward(k, NULL, &c);
        EXPECT(!isfinite(tensor_at(&c.loss, 0)), "%s: infinity at %d vanished", k->backend, (int)at);
        store_f32(c.logits.data, t, at, -INFINITY); /* a forbidden token: probability 0 */
        c.labels[0] = (int32_t)(at ? 0 : 1);
        forward(k, NULL, &c);
        backward(k, NULL, &c, c.dlogits.data);
        EXPECT(isfinite(tensor_at(&c.loss, 0)), "%s: loss beside -infinity", k->backend);
        EXPECT(tensor_at(&c.dlogits, at) == 0, "%s: gradient of -infinity", k->backend);
        ce_free(&c);
    }
}

TEST(a_leading_block_of_minus_infinity_is_no_information) {
    FOR_EACH_ISA(k) {
        const int64_t shape[] = {1, 9001};
        struct ce c = ce_new(shape, DTYPE_F32, 3, false);
        for (int64_t v = 0; v < 9000; v++) ((float *)c.logits.data)[v] = -INFINITY;
        c.labels[0] = 9000;
        forward(k, NULL, &c);
        EXPECT_NEAR(tensor_at(&c.lse, 0), tensor_at(&c.logits, 9000), 0x1p-22);
        EXPECT_NEAR(tensor_at(&c.loss, 0), 0, 0x1p-22);
        ((float *)c.logits.data)[9000] = -INFINITY;
        forward(k, NULL, &c);
        EXPECT(!isfinite(tensor_at(&c.loss, 0)), "%s: a row of -infinity has no loss", k->backend);
        ce_free(&c);
    }
}

TEST(bits_do_not_depend_on_threads) {
    const int64_t shape[] = {23, 5003};
    FOR_EACH_ISA(k) {
        struct ce one = ce_new(shape, DTYPE_BF16, 8, false);
        forward(k, NULL, &one);
        backward(k, NULL, &one, one.dlogits.data);
        for (int threads = 1; threads <= MOST_TEAM; threads++) {
            struct threads *team = threads_open(threads);
            struct ce c = ce_new(shape, DTYPE_BF16, 8, threads == 2);
            forward(k, team, &c);
            backward(k, team, &c, c.dlogits.data);
            expect_same_bits("loss", k, &c.loss, &one.loss);
            expect_same_bits("lse", k, &c.lse, &one.lse);
            expect_same_bits("dlogits", k, &c.dlogits, &one.dlogits);
            ce_free(&c);
            threads_close(team);
        }
        ce_free(&one);
    }
}

TEST(check_and_cost_state_the_shape) {
    struct cross_entropy_forward_args a = {.rows = 2, .vocab = 0, .dtype = DTYPE_BF16};
    EXPECT_CONTAINS(cross_entropy_forward_check(&a), "vocab");
    a.vocab = 10;
    EXPECT(!cross_entropy_forward_check(&a), "well formed");
    EXPECT_EQ(cross_entropy_forward_cost(&a).bytes, 2 * 10 * 2 + 2 * 16);
}

RUN_TESTS(CASE(forward_and_backward_agree_with_reference), CASE(backward_is_the_derivative_of_forward),
          CASE(rows_out_of_the_mask_cost_nothing_and_are_not_read_for_labels),
          CASE(gradient_of_a_row_sums_to_nothing), CASE(nan_and_infinity_stay_visible),
          CASE(a_leading_block_of_minus_infinity_is_no_information), CASE(bits_do_not_depend_on_threads),
          CASE(check_and_cost_state_the_shape))
