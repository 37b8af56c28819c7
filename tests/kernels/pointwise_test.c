#include "kernels/cpu/math.h"
#include "kernels/cpu/simd.h"
#include "tests/kernels/compare.h"

static const struct rng_key key = {.seed = 7, .iteration = 3, .micro_batch = 11, .layer = 2, .op = 5};

/* ---- activations ---- */
static const int64_t shapes[][2] = {{0, 3}, {1, 1}, {1, 31}, {7, 33}, {5, 64}, {3, 1000}, {129, 257}};

struct act {
    struct tensor x, y, dy, dx;
    int64_t rows, cols;
    enum activation kind;
    enum dtype t;
};

static struct act act_new(const int64_t shape[2], enum activation kind, enum dtype t, double range,
                          bool unaligned) {
    int64_t n = shape[0] * shape[1], in = activation_is_gated(kind) ? 2 * n : n;
    struct act a = {.rows = shape[0], .cols = shape[1], .kind = kind, .t = t};
    a.x = tensor_random(t, in, unaligned, 1, -range, range);
    a.dy = tensor_random(t, n, unaligned, 2, -1, 1);
    a.y = tensor_new(t, n, unaligned);
    a.dx = tensor_new(t, in, unaligned);
    return a;
}

static void act_free(struct act *a) {
    tensor_free(&a->x), tensor_free(&a->y), tensor_free(&a->dy), tensor_free(&a->dx);
}

static void act_run(const struct kernels *k, struct threads *team, struct act *a) {
    RUN_ON(team, k, activation_forward, .y = a->y.data, .x = a->x.data, .rows = a->rows, .cols = a->cols,
           .kind = a->kind, .dtype = a->t);
    RUN_ON(team, k, activation_backward, .dx = a->dx.data, .dy = a->dy.data, .x = a->x.data, .rows = a->rows,
           .cols = a->cols, .kind = a->kind, .dtype = a->t);
}

/* y = x s (times a factor up to `range` for the gated kinds): the relative error of e^-u, (3 + |u|) 2^-23,
 * reaches s as s (1 - s) times as much, and x s (1 - s) (3 + |u|) stays below 4; then two or three roundings
 * of a number of size `range`. The slope s + x u' s (1 - s): beside the same terms, 1 - s carries a rounding
 * of 1, times x u'
 * <= 35 (GELU_TANH at x = 5; further up e^-u < 2^-25 and 1 - s is exactly 0). The second half of a gated dx
 * is dy times the value. */
static double act_error(enum activation kind, double range, bool slope) {
    double factor = activation_is_gated(kind) ? range : 1;
    return 0x1p-24 * (slope ? 48 * factor + 4 * range + 8 : (4 * range + 8) * factor);
}

static void check_activation(const struct kernels *k, enum dtype t, const int64_t shape[2],
                             enum activation kind, double range) {
    bool unaligned = shape[0] % 2;
    struct act a = act_new(shape, kind, t, range, unaligned), e = act_new(shape, kind, t, range, false);
    act_run(kernels_reference(), NULL, &e);
    act_run(k, NULL, &a);
    expect_close("y", k, &a.y, &e.y, act_error(kind, range, false));
    expect_close("dx", k, &a.dx, &e.dx, act_error(kind, range, true));
    RUN(k, activation_backward, .dx = a.x.data, .dy = a.dy.data, .x = a.x.data, .rows = a.rows,
        .cols = a.cols, .kind = kind, .dtype = t);
    expect_same_bits("dx in place of x", k, &a.x, &a.dx);
    if (!activation_is_gated(kind)) {
        RUN(k, activation_backward, .dx = e.dy.data, .dy = e.dy.data, .x = e.x.data, .rows = a.rows,
            .cols = a.cols, .kind = kind, .dtype = t);
        expect_same_bits("dx in place of dy", k, &e.dy, &a.dx);
        RUN(k, activation_forward, .y = e.x.data, .x = e.x.data, .rows = a.rows, .cols = a.cols, .kind = kind,
            .dtype = t);
        expect_same_bits("y in place of x", k, &e.x, &a.y);
    }
    act_free(&a);
    act_free(&e);
}

TEST(activations_agree_with_reference) {
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
        for (int kind = 0; kind < ACTIVATION_COUNT; kind++) {
            check_activation(k, t, shapes[i], (enum activation)kind, 4);
            check_activation(k, t, shapes[i], (enum activation)kind, t == DTYPE_F16 ? 40 : 300);
        }
}

static double act_loss(struct act *a) {
    double loss = 0;
    RUN(kernels_reference(), activation_forward, .y = a->y.data, .x = a->x.data, .rows = a->rows,
        .cols = a->cols, .kind = a->kind, .dtype = a->t);
    for (int64_t j = 0; j < a->y.n; j++) loss += (double)tensor_at(&a->y, j) * tensor_at(&a->dy, j);
    return loss;
}

TEST(activation_backward_is_the_derivative_of_forward) {
    static const double weight[] = {1, -8, 8, -1};
    const int64_t shape[] = {3, 8};
    for (int kind = 0; kind < ACTIVATION_COUNT; kind++) {
        struct act a = act_new(shape, (enum activation)kind, DTYPE_F32, 3, false);
        act_run(kernels_reference(), NULL, &a);
        for (int64_t i = 0; i < a.x.n; i++) {
            double old = tensor_at(&a.x, i), h = 0x1p-5, sum = 0;
            if (kind == ACTIVATION_SQUARED_RELU && fabs(old) < 4 * h) continue; /* its slope has a corner */
            for (int s = 0; s < 4; s++) {
                store_f32(a.x.data, a.t, i, (float)(old + (s < 2 ? s - 2 : s - 1) * h));
                sum += weight[s] * act_loss(&a);
            }
            store_f32(a.x.data, a.t, i, (float)old);
            /* y of order 9 is rounded at 2^-24, divided by h 12 / 18; h^4 / 30 f''''' is below 1e-5 */
            EXPECT_NEAR(tensor_at(&a.dx, i), sum / (12 * h), 5e-5);
        }
        act_free(&a);
    }
}

TEST(activations_keep_nan_and_infinity) {
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (int kind = 0; kind < ACTIVATION_COUNT; kind++)
        for (int64_t at = 0; at < 40; at += 13) {
            const int64_t shape[] = {1, 40};
            struct act a = act_new(shape, (enum activation)kind, t, 2, false);
            uint32_t odd_nan = 0xFFFFFFFF; /* what poisoned memory holds */
            if (t == DTYPE_F32)
                memcpy((char *)a.x.data + at * 4, &odd_nan, 4);
            else
                memcpy((char *)a.x.data + at * 2, &odd_nan, 2);
            store_f32(a.dy.data, t, (at + 1) % 40, NAN);
            act_run(k, NULL, &a);
            for (int64_t i = 0; i < 40; i++) {
                EXPECT(isnan(tensor_at(&a.y, i)) == (i == at), "%s kind %d: y[%d]", k->backend, kind, (int)i);
                bool bad = i == at || i == (at + 1) % 40;
                EXPECT(isnan(tensor_at(&a.dx, i)) == bad, "%s kind %d: dx[%d]", k->backend, kind, (int)i);
            }
            store_f32(a.x.data, t, at, INFINITY);
            act_run(k, NULL, &a);
            EXPECT(!isfinite(tensor_at(&a.y, at)), "%s kind %d: infinity vanished", k->backend, kind);
            act_free(&a);
        }
}

/* ---- dropout and residual ---- */
static const int64_t sizes[] = {0, 1, 3, 31, 64, 511, 513, 4097, 70001};
static const uint64_t firsts[] = {0, 1,           2,          3,
                                  4, 0x3FFFFFFF8, 0x3FFFFFFFD}; /* the block counter passes 2^32 */

struct mix {
    struct tensor x, residual, y, dx, dresidual;
};

static struct mix mix_new(int64_t n, enum dtype t, bool unaligned) {
    struct mix m;
    m.x = tensor_random(t, n, unaligned, 1, -1, 1);
    m.residual = tensor_random(t, n, unaligned, 2, -1, 1);
    m.y = tensor_new(t, n, unaligned);
    m.dx = tensor_random(t, n, unaligned, 3, -1, 1);
    m.dresidual = tensor_random(t, n, unaligned, 4, -1, 1);
    return m;
}

static void mix_free(struct mix *m) {
    tensor_free(&m->x), tensor_free(&m->residual), tensor_free(&m->y), tensor_free(&m->dx);
    tensor_free(&m->dresidual);
}

/* scale = 1 / (1 - p) is two roundings off, the product and the sum one each, on numbers up to 1 / (1 - p).
 */
static double mix_error(float p) {
    return 8 * 0x1p-24 / (1 - p);
}

static void check_mix(const struct kernels *k, enum dtype t, int64_t n, uint64_t first, float p) {
    const struct kernels *reference = kernels_reference();
    struct mix m = mix_new(n, t, n % 2), e = mix_new(n, t, false);
    RUN(reference, dropout, .y = e.y.data, .x = e.x.data, .n = n, .first_element = first, .p = p, .key = key,
        .dtype = t);
    RUN(k, dropout, .y = m.y.data, .x = m.x.data, .n = n, .first_element = first, .p = p, .key = key,
        .dtype = t);
    expect_close("dropout", k, &m.y, &e.y, mix_error(p));
    for (int64_t i = 0; i < n; i++)
        EXPECT((tensor_at(&m.y, i) == 0) == (tensor_at(&e.y, i) == 0), "%s: mask of element %lld", k->backend,
               (long long)i);

    RUN(reference, residual_forward, .y = e.y.data, .residual = e.residual.data, .x = e.x.data, .n = n,
        .first_element = first, .p = p, .key = key, .dtype = t);
    RUN(k, residual_forward, .y = m.y.data, .residual = m.residual.data, .x = m.x.data, .n = n,
        .first_element = first, .p = p, .key = key, .dtype = t);
    expect_close("residual forward", k, &m.y, &e.y, mix_error(p));
    RUN(k, residual_forward, .y = m.residual.data, .residual = m.residual.data, .x = m.x.data, .n = n,
        .first_element = first, .p = p, .key = key, .dtype = t);
    expect_same_bits("y in place of residual", k, &m.residual, &m.y);

    for (int accumulate = 0; accumulate < 4; accumulate++) {
        bool in_dx = accumulate & 1, in_dresidual = accumulate & 2;
        RUN(reference, residual_backward, .dx = e.dx.data, .dresidual = e.dresidual.data, .dy = e.x.data,
            .n = n, .first_element = first, .p = p, .key = key, .accumulate_dx = in_dx,
            .accumulate_dresidual = in_dresidual, .dtype = t);
        RUN(k, residual_backward, .dx = m.dx.data, .dresidual = m.dresidual.data, .dy = m.x.data, .n = n,
            .first_element = first, .p = p, .key = key, .accumulate_dx = in_dx,
            .accumulate_dresidual = in_dresidual, .dtype = t);
        /* what is there already may be a neighbouring value of the dtype, of size 4 / (1 - p) at most */
        double before = 2 * unit_roundoff(t) * 4 / (1 - p);
        expect_close("residual dx", k, &m.dx, &e.dx, mix_error(p) + (in_dx ? before : 0));
        expect_close("dresidual", k, &m.dresidual, &e.dresidual,
                     4 * mix_error(0) + (in_dresidual ? before : 0));
    }
    mix_free(&m);
    mix_free(&e);
}

TEST(dropout_and_residual_agree_with_reference_mask_included) {
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
        for (size_t f = 0; f < sizeof(firsts) / sizeof(*firsts); f++) {
            if (sizes[i] > 5000 && f > 1) continue;
            check_mix(k, t, sizes[i], firsts[f], 0);
            check_mix(k, t, sizes[i], firsts[f], 0.1f);
            if (f < 2) check_mix(k, t, sizes[i], firsts[f], 0.75f);
        }
}

TEST(residual_backward_skips_null_outputs_and_leaves_plain_copies_alone) {
    FOR_EACH_ISA(k) {
        struct mix m = mix_new(1000, DTYPE_BF16, false);
        struct tensor x = tensor_copy(&m.x), dx = tensor_copy(&m.dx), dresidual = tensor_copy(&m.dresidual);
        RUN(k, residual_backward, .dx = m.x.data, .dresidual = m.x.data, .dy = m.x.data, .n = 1000,
            .dtype = DTYPE_BF16);
        expect_same_bits("dx == dresidual == dy", k, &m.x, &x);
        RUN(k, residual_backward, .dresidual = m.dresidual.data, .dy = m.x.data, .n = 1000,
            .dtype = DTYPE_BF16);
        expect_same_bits("dresidual alone", k, &m.dresidual, &x);
        RUN(k, residual_backward, .dx = m.dx.data, .dresidual = m.x.data, .dy = m.x.data, .n = 1000,
            .p = 0.5f, .key = key, .dtype = DTYPE_BF16);
        expect_same_bits("dresidual == dy under dropout", k, &m.x, &x);
        RUN(k, dropout, .y = m.y.data, .x = x.data, .n = 1000, .p = 0.5f, .key = key, .dtype = DTYPE_BF16);
        expect_same_bits("dx is the dropout of dy", k, &m.dx, &m.y);
        RUN(k, dropout, .y = x.data, .x = x.data, .n = 1000, .p = 0.5f, .key = key, .dtype = DTYPE_BF16);
        expect_same_bits("dropout in place", k, &x, &m.y);
        tensor_free(&x), tensor_free(&dx), tensor_free(&dresidual);
        mix_free(&m);
    }
}

TEST(a_shard_of_a_tensor_gets_its_part_of_the_mask) {
    FOR_EACH_ISA(k) {
        struct mix m = mix_new(5000, DTYPE_F32, false);
        struct tensor part = tensor_new(DTYPE_F32, 1234, false);
        RUN(k, dropout, .y = m.y.data, .x = m.x.data, .n = 5000, .p = 0.3f, .key = key, .dtype = DTYPE_F32);
        RUN(k, dropout, .y = part.data, .x = (float *)m.x.data + 701, .n = 1234, .first_element = 701,
            .p = 0.3f, .key = key, .dtype = DTYPE_F32);
        EXPECT(!memcmp(part.data, (float *)m.y.data + 701, 1234 * 4), "%s: shard differs", k->backend);
        tensor_free(&part);
        mix_free(&m);
    }
}

TEST(dropout_keeps_the_stated_share_and_the_mean) {
    enum { N = 1 << 20 };
    struct tensor x = tensor_new(DTYPE_F32, N, false), y = tensor_new(DTYPE_F32, N, false);
    RUN(kernels_cpu(), fill, .y = x.data, .n = N, .value = 1, .dtype = DTYPE_F32);
    RUN(kernels_cpu(), dropout, .y = y.data, .x = x.data, .n = N, .p = 0.1f, .key = key, .dtype = DTYPE_F32);
    double kept = 0, sum = 0;
    for (int64_t i = 0; i < N; i++) kept += tensor_at(&y, i) != 0, sum += tensor_at(&y, i);
    /* binomial: deviation sqrt(0.1 * 0.9 / N) = 2.9e-4 */
    EXPECT_NEAR(kept / N, 0.9, 5 * 2.9e-4);
    EXPECT_NEAR(sum / N, 1.0, 5 * 2.9e-4 / 0.9);
    tensor_free(&x), tensor_free(&y);
}

/* ---- cast, add, fill ---- */
TEST(cast_and_add_and_fill_agree_with_reference_to_the_bit) {
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
        int64_t n = sizes[i];
        struct mix m = mix_new(n, t, n % 2);
        struct tensor got = tensor_new(t, n, n % 2), expected = tensor_new(t, n, false);
        RUN(kernels_reference(), add, .y = expected.data, .a = m.x.data, .b = m.residual.data, .n = n,
            .dtype = t);
        RUN(k, add, .y = got.data, .a = m.x.data, .b = m.residual.data, .n = n, .dtype = t);
        expect_same_bits("add", k, &got, &expected);
        RUN(k, add, .y = m.residual.data, .a = m.x.data, .b = m.residual.data, .n = n, .dtype = t);
        expect_same_bits("add in place of b", k, &m.residual, &expected);
        for (int v = 0; v < 3; v++) {
            float value = (float[]){0, -1.7f, NAN}[v];
            RUN(kernels_reference(), fill, .y = expected.data, .n = n, .value = value, .dtype = t);
            RUN(k, fill, .y = got.data, .n = n, .value = value, .dtype = t);
            expect_same_bits("fill", k, &got, &expected);
        }
        FOR_EACH_DTYPE(to) {
            struct tensor a = tensor_new(to, n, n % 2), b = tensor_new(to, n, false);
            RUN(kernels_reference(), cast, .dst = b.data, .src = m.x.data, .n = n, .dst_dtype = to,
                .src_dtype = t);
            RUN(k, cast, .dst = a.data, .src = m.x.data, .n = n, .dst_dtype = to, .src_dtype = t);
            expect_same_bits("cast", k, &a, &b);
            tensor_free(&a), tensor_free(&b);
        }
        tensor_free(&got), tensor_free(&expected);
        mix_free(&m);
    }
}

/* Every bf16 and fp16 value, and float32 values next to every rounding boundary of both, NaNs included. */
TEST(conversions_have_the_bits_of_dtype_h_for_every_class_of_number) {
    enum { N = 65536 * 8 };
    struct tensor f = tensor_new(DTYPE_F32, N, false), h = tensor_new(DTYPE_BF16, N, false);
    static const uint32_t lows[8] = {0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0xFFFF};
    for (uint32_t i = 0; i < N; i++) ((uint32_t *)f.data)[i] = (i / 8) << 16 | lows[i % 8];
    FOR_EACH_ISA(k)
    for (int d = 1; d < 3; d++) {
        int64_t bad = 0;
        enum dtype t = float_dtypes[d];
        RUN(k, cast, .dst = h.data, .src = f.data, .n = N, .dst_dtype = t, .src_dtype = DTYPE_F32);
        for (int64_t i = 0; i < N; i++) {
            float x = ((float *)f.data)[i];
            uint16_t expected = t == DTYPE_BF16 ? f32_to_bf16(x) : f32_to_f16(x);
            bad += ((uint16_t *)h.data)[i] != expected;
        }
        EXPECT(!bad, "%s: %lld of %d wrong to %s", k->backend, (long long)bad, N, dtype_name(t));
        struct tensor back = tensor_new(DTYPE_F32, 65536, false);
        for (int64_t i = 0; i < 65536; i++) ((uint16_t *)h.data)[i] = (uint16_t)i;
        RUN(k, cast, .dst = back.data, .src = h.data, .n = 65536, .dst_dtype = DTYPE_F32, .src_dtype = t);
        for (int64_t i = bad = 0; i < 65536; i++) {
            float expected = t == DTYPE_BF16 ? bf16_to_f32((uint16_t)i) : f16_to_f32((uint16_t)i);
            bad += memcmp(&expected, (float *)back.data + i, 4) != 0;
        }
        EXPECT(!bad, "%s: %lld wrong from %s", k->backend, (long long)bad, dtype_name(t));
        tensor_free(&back);
    }
    tensor_free(&f), tensor_free(&h);
}

TEST(bits_do_not_depend_on_threads) {
    enum { N = 100003 };
    const int64_t shape[] = {7, 14289};
    FOR_EACH_ISA(k) {
        struct mix one = mix_new(N, DTYPE_BF16, false);
        struct act act_one = act_new(shape, ACTIVATION_SWIGLU, DTYPE_BF16, 3, false);
        RUN(k, residual_forward, .y = one.y.data, .residual = one.residual.data, .x = one.x.data, .n = N,
            .p = 0.2f, .key = key, .dtype = DTYPE_BF16);
        act_run(k, NULL, &act_one);
        for (int threads = 1; threads <= MOST_TEAM; threads++) {
            struct threads *team = threads_open(threads);
            struct mix m = mix_new(N, DTYPE_BF16, threads == 2);
            struct act a = act_new(shape, ACTIVATION_SWIGLU, DTYPE_BF16, 3, threads == 2);
            RUN_ON(team, k, residual_forward, .y = m.y.data, .residual = m.residual.data, .x = m.x.data,
                   .n = N, .p = 0.2f, .key = key, .dtype = DTYPE_BF16);
            act_run(k, team, &a);
            expect_same_bits("residual", k, &m.y, &one.y);
            expect_same_bits("activation", k, &a.y, &act_one.y);
            expect_same_bits("activation dx", k, &a.dx, &act_one.dx);
            mix_free(&m);
            act_free(&a);
            threads_close(team);
        }
        mix_free(&one);
        act_free(&act_one);
    }
}

/* ---- kernels/cpu/math.h as compiled into this program ---- */
TEST(math_functions_keep_their_stated_errors) {
    for (double x = -100; x < 100; x += 0.00371) {
        float f = (float)x, density;
        double e = exp((double)f), s = 1 / (1 + exp(-(double)f)), cdf = 0.5 * erfc(-(double)f * M_SQRT1_2);
        if (f > -87.3f && f < 88) EXPECT_NEAR(math_exp(f) / e, 1, 2 * 0x1p-23);
        if (f >= -87 && f <= 87) EXPECT_NEAR(math_exp_softmax(f) / e, 1, (2 + fabs(x)) * 0x1p-23);
        if (f >= -87) EXPECT_NEAR(math_sigmoid(f) / s, 1, (3 + fabs(x)) * 0x1p-23);
        EXPECT_NEAR(math_tanh(f), tanh(f), 2e-7);
        if (f > -13) EXPECT_NEAR(math_normal_cdf(f, &density) / cdf, 1, (4 + x * x) * 0x1p-23);
    }
    EXPECT(math_exp_softmax(0) == 1 && math_exp(0) == 1, "e^0 is 1");
    EXPECT(math_exp(-INFINITY) == 0 && math_exp_softmax(-INFINITY) == 0 && math_exp_softmax(-1e30f) == 0,
           "e^-inf");
    EXPECT(isinf(math_exp(INFINITY)) && isinf(math_exp(1e30f)), "e^inf");
    EXPECT(math_sigmoid(INFINITY) == 1 && math_sigmoid(-INFINITY) == 0 && math_sigmoid(1e30f) == 1,
           "sigmoid ends");
    float bad = math_from_bits(-1), density;
    EXPECT(isnan(math_exp(bad)) && isnan(math_exp_softmax(bad)) && isnan(math_sigmoid(bad)) &&
               isnan(math_tanh(bad)) && isnan(math_normal_cdf(bad, &density)),
           "NaN stays");
}

TEST(check_names_what_is_wrong) {
    char dx;
    struct activation_backward_args a = {
        .rows = 1, .cols = 1, .kind = ACTIVATION_SWIGLU, .dx = &dx, .dy = &dx};
    EXPECT_CONTAINS(activation_backward_check(&a), "alias");
    a.kind = ACTIVATION_GELU_ERF;
    EXPECT(!activation_backward_check(&a), "dx may alias dy here");
    a.kind = ACTIVATION_COUNT;
    EXPECT_CONTAINS(activation_backward_check(&a), "activation");
    EXPECT_CONTAINS(dropout_check(&(struct dropout_args){.p = 1}), "probability");
    EXPECT_CONTAINS(dropout_check(&(struct dropout_args){.p = NAN}), "probability");
    EXPECT_CONTAINS(dropout_check(&(struct dropout_args){.n = -1}), "n must");
    struct residual_backward_args r = {.dx = &dx, .dy = &dx, .p = 0.5f};
    EXPECT_CONTAINS(residual_backward_check(&r), "alias");
    r.p = 0;
    EXPECT(!residual_backward_check(&r), "a plain copy may stay in place");
    EXPECT(residual_backward_cost(&r).bytes == 0, "and moves nothing");
    r.dresidual = &dx, r.accumulate_dresidual = true;
    EXPECT_CONTAINS(residual_backward_check(&r), "dresidual");
    EXPECT_CONTAINS(cast_check(&(struct cast_args){.dst = &dx, .src = &dx, .dst_dtype = DTYPE_BF16}),
                    "in place");
    EXPECT_CONTAINS(add_check(&(struct add_args){.dtype = DTYPE_I32}), "dtype");
}

RUN_TESTS(CASE(activations_agree_with_reference), CASE(activation_backward_is_the_derivative_of_forward),
          CASE(activations_keep_nan_and_infinity),
          CASE(dropout_and_residual_agree_with_reference_mask_included),
          CASE(residual_backward_skips_null_outputs_and_leaves_plain_copies_alone),
          CASE(a_shard_of_a_tensor_gets_its_part_of_the_mask),
          CASE(dropout_keeps_the_stated_share_and_the_mean),
          CASE(cast_and_add_and_fill_agree_with_reference_to_the_bit),
          CASE(conversions_have_the_bits_of_dtype_h_for_every_class_of_number),
          CASE(bits_do_not_depend_on_threads), CASE(math_functions_keep_their_stated_errors),
          CASE(check_names_what_is_wrong))
