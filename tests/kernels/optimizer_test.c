#include "tests/kernels/compare.h"

static const int64_t sizes[] = {0, 1, 3, 31, 64, 1000, 32769, 70001};

/* ---- adamw ---- */
struct adam {
    struct tensor master, m, v, grad, model;
    int64_t n;
};

static struct adam adam_new(int64_t n, enum dtype model, bool unaligned) {
    struct adam a = {.n = n};
    a.master = tensor_random(DTYPE_F32, n, unaligned, 1, -1, 1);
    a.m = tensor_random(DTYPE_F32, n, unaligned, 2, -1e-2, 1e-2);
    a.v = tensor_random(DTYPE_F32, n, unaligned, 3, 1e-6, 1e-3);
    a.grad = tensor_random(DTYPE_F32, n, unaligned, 4, -1, 1);
    a.model = tensor_new(model, n, unaligned);
    return a;
}

static void adam_free(struct adam *a) {
    tensor_free(&a->master), tensor_free(&a->m), tensor_free(&a->v), tensor_free(&a->grad),
        tensor_free(&a->model);
}

static void adam_step(const struct kernels *k, struct threads *team, struct adam *a, int step,
                      bool with_model) {
    RUN_ON(team, k, adamw, .master = a->master.data, .m = a->m.data, .v = a->v.data, .grad = a->grad.data,
           .model = with_model ? a->model.data : NULL, .n = a->n, .learning_rate = 1e-2f, .beta1 = 0.9f,
           .beta2 = 0.95f, .epsilon = 1e-8f, .weight_decay = 0.1f,
           .bias_correction1 = (float)(1 - pow(0.9, step)), .bias_correction2 = (float)(1 - pow(0.95, step)),
           .grad_scale = 0.5f, .model_dtype = a->model.dtype);
}

/* m and v are two products and a sum; the update of order 2 takes about ten roundings and is multiplied by
 * the learning rate; master itself is rounded once. Three steps add up. */
TEST(adamw_agrees_with_reference) {
    FOR_EACH_ISA(k)
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
        for (int d = 0; d < 3; d++) {
            struct adam a = adam_new(sizes[i], float_dtypes[d ? d : 1], i % 2);
            struct adam e = adam_new(sizes[i], float_dtypes[d ? d : 1], false);
            for (int step = 1; step <= 3; step++) {
                adam_step(kernels_reference(), NULL, &e, step, d);
                adam_step(k, NULL, &a, step, d);
            }
            expect_close("m", k, &a.m, &e.m, 3 * 4 * 0x1p-24);
            expect_close("v", k, &a.v, &e.v, 3 * 4 * 0x1p-24);
            expect_close("master", k, &a.master, &e.master, 3 * (1 + 1e-2 * 2 * 16) * 0x1p-24);
            int64_t wrong = 0;
            for (int64_t j = 0; d && j < a.n; j++) {
                float expected = tensor_at(&a.master, j), got = tensor_at(&a.model, j), rounded;
                store_f32(&rounded, a.model.dtype, 0, expected);
                wrong += load_f32(&rounded, a.model.dtype, 0) != got;
            }
            EXPECT(!wrong, "%s: %lld model weights are not round(master)", k->backend, (long long)wrong);
            adam_free(&a), adam_free(&e);
        }
}

/* One element by hand: m = 0, v = 0, g = 2 at step 1: m / c1 = 2, sqrt(v / c2) = 2, update = 1 + 0.1 * 3. */
TEST(adamw_is_decoupled_and_takes_a_unit_step_first) {
    FOR_EACH_ISA(k) {
        struct adam a = adam_new(1, DTYPE_BF16, false);
        *(float *)a.master.data = 3, *(float *)a.m.data = 0, *(float *)a.v.data = 0,
                *(float *)a.grad.data = 4;
        adam_step(k, NULL, &a, 1, true);
        EXPECT_NEAR(tensor_at(&a.master, 0), 3 - 1e-2 * 1.3, 1e-6);
        EXPECT_NEAR(tensor_at(&a.m, 0), 0.2, 1e-7);
        EXPECT_NEAR(tensor_at(&a.v, 0), 0.2, 1e-7);
        adam_free(&a);
    }
}

TEST(adamw_keeps_nan_visible) {
    FOR_EACH_ISA(k) {
        struct adam a = adam_new(100, DTYPE_BF16, false);
        ((float *)a.grad.data)[37] = NAN;
        adam_step(k, NULL, &a, 1, true);
        for (int64_t i = 0; i < 100; i++)
            EXPECT(isnan(tensor_at(&a.master, i)) == (i == 37) && isnan(tensor_at(&a.model, i)) == (i == 37),
                   "%s: element %d", k->backend, (int)i);
        adam_free(&a);
    }
}

/* ---- sum_squares ---- */
TEST(sum_squares_agrees_with_reference_and_counts_what_is_not_finite) {
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++)
        for (int bad_values = 0; bad_values < 4; bad_values++) {
            if (sizes[i] < 100 && bad_values) break;
            int64_t n = sizes[i], bad = -1, bad_expected = -1;
            if (n < 100 && bad_values) break;
            struct tensor x = tensor_random(t, n, i % 2, 1, -10, 10);
            double sum = 5, expected = 5;
            for (int64_t j = 0; j < bad_values; j++)
                store_f32(x.data, t, j * 17 + n / 2, j == 1 ? -INFINITY : NAN);
            for (int accumulate = 0; accumulate < 2; accumulate++) {
                RUN(kernels_reference(), sum_squares, .out = &expected, .bad = &bad_expected, .x = x.data,
                    .n = n, .accumulate = accumulate, .dtype = t);
                RUN(k, sum_squares, .out = &sum, .bad = &bad, .x = x.data, .n = n, .accumulate = accumulate,
                    .dtype = t);
            }
            if (bad_values == 0)
                EXPECT_NEAR(sum, expected, expected * (double)(n + 4) * 0x1p-53); /* n additions in double */
            else
                EXPECT(!isfinite(sum), "%s: a bad element vanished", k->backend);
            EXPECT_EQ(bad, 2 * bad_values);
            EXPECT_EQ(bad_expected, 2 * bad_values);
            RUN(k, sum_squares, .out = &sum, .x = x.data, .n = n, .dtype = t); /* bad NULL: do not count */
            tensor_free(&x);
        }
}

TEST(sum_squares_of_the_largest_floats_does_not_overflow) {
    FOR_EACH_ISA(k) {
        enum { N = 1000 };
        float x[N];
        double sum = 0;
        int64_t bad = 0;
        for (int i = 0; i < N; i++) x[i] = 3.4e38f;
        RUN(k, sum_squares, .out = &sum, .bad = &bad, .x = x, .n = N, .dtype = DTYPE_F32);
        EXPECT_EQ(bad, 0);
        EXPECT_NEAR(sum / N, (double)x[0] * x[0], 1e63);
    }
}

/* ---- normal_init ---- */
static const struct rng_key key = {.seed = 1234, .layer = 3, .op = 7};

TEST(normal_init_has_the_same_bits_everywhere_and_for_every_shard) {
    static const int64_t shards[][2] = {{0, 1}, {1, 3}, {2, 5}, {3, 4}, {5, 32768}, {32769, 33000}};
    enum { N = 70001 };
    struct tensor whole = tensor_new(DTYPE_F32, N, false);
    RUN(kernels_reference(), normal_init, .x = whole.data, .n = N, .std = 0.02f, .key = key);
    FOR_EACH_ISA(k) {
        for (int threads = 1; threads <= MOST_TEAM; threads++) {
            struct threads *team = threads_open(threads);
            struct tensor x = tensor_new(DTYPE_F32, N, threads == 2);
            RUN_ON(team, k, normal_init, .x = x.data, .n = N, .std = 0.02f, .key = key);
            expect_same_bits("normal_init", k, &x, &whole);
            tensor_free(&x);
            threads_close(team);
        }
        for (size_t i = 0; i < sizeof(shards) / sizeof(*shards); i++) {
            int64_t first = shards[i][0], n = shards[i][1];
            struct tensor x = tensor_new(DTYPE_F32, n, false);
            RUN(k, normal_init, .x = x.data, .n = n, .first_element = (uint64_t)first, .std = 0.02f,
                .key = key);
            EXPECT(!memcmp(x.data, (float *)whole.data + first, (size_t)n * 4), "%s: shard %d", k->backend,
                   (int)i);
            tensor_free(&x);
        }
    }
    tensor_free(&whole);
}

TEST(normal_init_is_normal) {
    enum { N = 1 << 20 };
    struct tensor x = tensor_new(DTYPE_F32, N, false);
    double sum[5] = {0}, within = 0;
    RUN(kernels_cpu(), normal_init, .x = x.data, .n = N, .std = 2, .key = key);
    for (int64_t i = 0; i < N; i++) {
        double z = tensor_at(&x, i) / 2, power = z;
        for (int p = 1; p < 5; p++, power *= z) sum[p] += power / N;
        within += fabs(z) < 1 ? 1.0 / N : 0;
    }
    /* deviations of the mean of z^p over N: sqrt((E z^2p - (E z^p)^2) / N), five of them */
    EXPECT_NEAR(sum[1], 0, 5 * sqrt(1.0 / N));
    EXPECT_NEAR(sum[2], 1, 5 * sqrt(2.0 / N));
    EXPECT_NEAR(sum[3], 0, 5 * sqrt(15.0 / N));
    EXPECT_NEAR(sum[4], 3, 5 * sqrt(96.0 / N));
    EXPECT_NEAR(within, 0.6826894921, 5 * sqrt(0.2166 / N));
    tensor_free(&x);
}

TEST(bits_do_not_depend_on_threads) {
    enum { N = 200003 };
    FOR_EACH_ISA(k) {
        struct adam one = adam_new(N, DTYPE_BF16, false);
        double sum_one, sum;
        adam_step(k, NULL, &one, 1, true);
        RUN(k, sum_squares, .out = &sum_one, .x = one.master.data, .n = N, .dtype = DTYPE_F32);
        for (int threads = 1; threads <= MOST_TEAM; threads++) {
            struct threads *team = threads_open(threads);
            struct adam a = adam_new(N, DTYPE_BF16, threads == 2);
            adam_step(k, team, &a, 1, true);
            RUN_ON(team, k, sum_squares, .out = &sum, .x = a.master.data, .n = N, .dtype = DTYPE_F32);
            expect_same_bits("master", k, &a.master, &one.master);
            expect_same_bits("model", k, &a.model, &one.model);
            EXPECT(sum == sum_one, "%s: sum_squares %.17g is not %.17g", k->backend, sum, sum_one);
            adam_free(&a);
            threads_close(team);
        }
        adam_free(&one);
    }
}

TEST(check_names_what_is_wrong) {
    struct adamw_args a = {.n = 1, .beta1 = 0.9f, .beta2 = 0.99f};
    EXPECT_CONTAINS(adamw_check(&a), "bias corrections");
    a.bias_correction1 = a.bias_correction2 = 0.5f;
    EXPECT(!adamw_check(&a), "well formed");
    a.model = &a;
    EXPECT_CONTAINS(adamw_check(&a), "model copy");
    a.model_dtype = DTYPE_BF16, a.beta2 = 1;
    EXPECT_CONTAINS(adamw_check(&a), "beta2");
    EXPECT_EQ(adamw_cost(&a).bytes, 30);
    EXPECT_CONTAINS(sum_squares_check(&(struct sum_squares_args){.dtype = DTYPE_I32}), "dtype");
    EXPECT_CONTAINS(normal_init_check(&(struct normal_init_args){.std = NAN}), "std");
}

RUN_TESTS(CASE(adamw_agrees_with_reference), CASE(adamw_is_decoupled_and_takes_a_unit_step_first),
          CASE(adamw_keeps_nan_visible),
          CASE(sum_squares_agrees_with_reference_and_counts_what_is_not_finite),
          CASE(sum_squares_of_the_largest_floats_does_not_overflow),
          CASE(normal_init_has_the_same_bits_everywhere_and_for_every_shard), CASE(normal_init_is_normal),
          CASE(bits_do_not_depend_on_threads), CASE(check_names_what_is_wrong))
