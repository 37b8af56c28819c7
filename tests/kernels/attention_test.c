/* Fused attention: every backend and dtype against the oracle, which finite differences prove. */
#include "tests/kernels/attention_oracle.h"

static const struct attention_case shapes[] = {
    {{.s = 1, .b = 1, .a = 1, .g = 1, .d = 16}, true, 0},
    {{.s = 1, .b = 2, .a = 2, .g = 1, .d = 64}, false, 0.1f},
    {{.s = 7, .b = 2, .a = 2, .g = 2, .d = 16}, true, 0},
    {{.s = 33, .b = 1, .a = 4, .g = 2, .d = 40}, true, 0.1f},
    {{.s = 64, .b = 2, .a = 2, .g = 2, .d = 64}, true, 0},
    {{.s = 65, .b = 1, .a = 2, .g = 1, .d = 64}, false, 0},
    {{.s = 96, .b = 1, .a = 3, .g = 1, .d = 96}, true, 0.1f},
    {{.s = 130, .b = 1, .a = 2, .g = 2, .d = 80}, true, 0},
    {{.s = 160, .b = 1, .a = 2, .g = 1, .d = 128}, true, 0.1f},
    {{.s = 257, .b = 1, .a = 2, .g = 2, .d = 32}, true, 0.1f},
    {{.s = 300, .b = 1, .a = 1, .g = 1, .d = 64}, false, 0.1f},
    {{.s = 520, .b = 1, .a = 2, .g = 1, .d = 32}, true, 0},
    {{.s = 20, .b = 1, .a = 1, .g = 1, .d = 256}, true, 0},
    {{.s = 12, .b = 1, .a = 1, .g = 1, .d = 300}, true, 0},
    /* values narrower and wider than keys */
    {{.s = 70, .b = 1, .a = 2, .g = 2, .d = 192, .dv = 128}, true, 0.1f},
    {{.s = 64, .b = 1, .a = 2, .g = 1, .d = 32, .dv = 64}, true, 0},
    {{.s = 33, .b = 2, .a = 3, .g = 3, .d = 12, .dv = 8}, true, 0.1f},
    {{.s = 40, .b = 1, .a = 2, .g = 1, .d = 24, .dv = 72}, false, 0.1f},
    {{.s = 160, .b = 1, .a = 2, .g = 2, .d = 96, .dv = 32}, true, 0},
};
enum { NUM_SHAPES = (int)(sizeof(shapes) / sizeof(shapes[0])) };

/* One run of a backend, forward then backward, everything in `dtype`. */
struct run {
    enum dtype dtype;
    void *q, *k, *v, *d_o, *o, *dq, *dk, *dv;
    float *lse;
};

static struct run run_open(const struct attention_shape *z, enum dtype dtype, double deviation) {
    struct run r = {.dtype = dtype};
    r.q = new_random(q_size(z), dtype, 1, deviation), r.k = new_random(kv_size(z), dtype, 2, 1);
    r.v = new_random(v_size(z), dtype, 3, 1), r.d_o = new_random(o_size(z), dtype, 4, 1);
    r.o = new_output(o_size(z), dtype), r.dq = new_output(q_size(z), dtype);
    r.dk = new_output(kv_size(z), dtype), r.dv = new_output(v_size(z), dtype);
    r.lse = new_output(z->b * z->a * z->s, DTYPE_F32);
    return r;
}

static void run_close(struct run *r) {
    void *const all[] = {r->q, r->k, r->v, r->d_o, r->o, r->dq, r->dk, r->dv, r->lse};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) mem_free(all[i]);
}

static void run_forward(const struct run *r, const struct attention_case *c, const struct kernels *kernels,
                        struct threads *threads, bool want_lse) {
    struct attention_forward_args args = {.o = r->o,
                                          .lse = want_lse ? r->lse : NULL,
                                          .q = r->q,
                                          .k = r->k,
                                          .v = r->v,
                                          .shape = c->z,
                                          .scale = (float)(1.0 / sqrt((double)c->z.d)),
                                          .dropout = c->dropout,
                                          .key = test_key,
                                          .causal = c->causal,
                                          .dtype = r->dtype};
    RUN_KERNEL(attention_forward, kernels, threads, &args);
    EXPECT(guard_holds(r->o, o_size(&c->z), r->dtype), "o was written beyond its end");
    EXPECT(guard_holds(r->lse, c->z.b * c->z.a * c->z.s, DTYPE_F32), "lse was written beyond its end");
}

static void run_backward(const struct run *r, const struct attention_case *c, const struct kernels *kernels,
                         struct threads *threads) {
    struct attention_backward_args args = {.dq = r->dq,
                                           .dk = r->dk,
                                           .dv = r->dv,
                                           .d_o = r->d_o,
                                           .o = r->o,
                                           .lse = r->lse,
                                           .q = r->q,
                                           .k = r->k,
                                           .v = r->v,
                                           .shape = c->z,
                                           .scale = (float)(1.0 / sqrt((double)c->z.d)),
                                           .dropout = c->dropout,
                                           .key = test_key,
                                           .causal = c->causal,
                                           .dtype = r->dtype};
    RUN_KERNEL(attention_backward, kernels, threads, &args);
    EXPECT(guard_holds(r->dq, q_size(&c->z), r->dtype), "dq was written beyond its end");
    EXPECT(guard_holds(r->dk, kv_size(&c->z), r->dtype), "dk was written beyond its end");
    EXPECT(guard_holds(r->dv, v_size(&c->z), r->dtype), "dv was written beyond its end");
}

static struct oracle oracle_of(const struct run *r, struct attention_case c, bool backward) {
    struct oracle x = oracle_open(c);
    widen(x.q, r->q, r->dtype, q_size(&c.z)), widen(x.k, r->k, r->dtype, kv_size(&c.z));
    widen(x.v, r->v, r->dtype, v_size(&c.z)), widen(x.d_o, r->d_o, r->dtype, o_size(&c.z));
    oracle_run(&x, backward);
    return x;
}

/* A scalar loss, sum of dO * o, of which dq, dk and dv are the gradients. */
static double oracle_loss(struct oracle *x) {
    double loss = 0;
    oracle_run(x, false);
    for (int64_t i = 0; i < o_size(&x->c.z); i++) loss += x->d_o[i] * x->o[i];
    return loss;
}

static void expect_slopes(struct oracle *x, double *input, const double *gradient, int64_t n,
                          const char *name) {
    const double step = 1e-4; /* error: step^2 of the third derivative, and 1e-16 / step of rounding */
    for (int64_t i = 0; i < n; i++) {
        double centre = input[i];
        input[i] = centre + step;
        double above = oracle_loss(x);
        input[i] = centre - step;
        double slope = (above - oracle_loss(x)) / (2 * step);
        input[i] = centre;
        EXPECT(fabs(slope - gradient[i]) < 1e-6, "%s[%d]: slope %.9g, gradient %.9g", name, (int)i, slope,
               gradient[i]);
    }
}

TEST(the_oracles_gradients_are_slopes) {
    static const struct attention_case small[] = {
        {{.s = 5, .b = 2, .a = 4, .g = 2, .d = 6}, true, 0.3f},
        {{.s = 4, .b = 1, .a = 2, .g = 2, .d = 4}, false, 0},
        {{.s = 6, .b = 1, .a = 3, .g = 1, .d = 4}, true, 0},
        {{.s = 4, .b = 2, .a = 2, .g = 1, .d = 6, .dv = 3}, true, 0.2f},
    };
    for (size_t n = 0; n < sizeof(small) / sizeof(small[0]); n++) {
        struct run r = run_open(&small[n].z, DTYPE_F32, 1);
        struct oracle x = oracle_of(&r, small[n], true);
        expect_slopes(&x, x.q, x.dq, q_size(&small[n].z), "dq");
        expect_slopes(&x, x.k, x.dk, kv_size(&small[n].z), "dk");
        expect_slopes(&x, x.v, x.dv, v_size(&small[n].z), "dv");
        oracle_close(&x);
        run_close(&r);
    }
}

/* The bound, in units of the magnitudes summed. Rounding to dtype: the result once, and the 16-bit kernels
 * round each probability or score gradient once more; o in dtype moves delta by u |dO * o|, which is part of
 * `noise`. Float32: a sum of m terms is off by at most m 2^-24 of its magnitudes, in practice by the root of
 * m (m <= 600: 32 is enough); a score of magnitude E, a sum of d terms, is off by some sqrt(d) E
 * 2^-24, and so are its maximum and its probability. */
static double unit_of(const struct run *r, const struct oracle *x) {
    return unit_roundoff(r->dtype) * 1.01 + (32 + 2 * sqrt((double)x->c.z.d) * x->exponent) * 0x1p-24;
}

static void expect_close(const char *name, const struct run *r, const struct oracle *x, const char *backend,
                         const void *result, const double *truth, const double *size, const double *noise,
                         int64_t n) {
    const struct attention_case *c = &x->c;
    double u = unit_of(r, x), worst = worst_error(result, r->dtype, truth, u, size, u, noise, n);
    EXPECT(worst <= 1,
           "%s %s of %s: %.3g times the bound (s %d b %d a %d g %d d %d dv %d causal %d dropout %g)", backend,
           name, dtype_name(r->dtype), worst, (int)c->z.s, (int)c->z.b, (int)c->z.a, (int)c->z.g, (int)c->z.d,
           (int)v_dim(&c->z), c->causal, (double)c->dropout);
}

static void check_case(const struct attention_case *c, const struct kernels *kernels, struct threads *threads,
                       enum dtype dtype, double deviation) {
    struct run r = run_open(&c->z, dtype, deviation);
    struct oracle x = oracle_of(&r, *c, true);
    int64_t nq = q_size(&c->z), nk = kv_size(&c->z), no = o_size(&c->z), nv = v_size(&c->z),
            rows = c->z.b * c->z.a * c->z.s;
    run_forward(&r, c, kernels, threads, true);
    expect_close("o", &r, &x, kernels->backend, r.o, x.o, x.o_size, x.o_size, no);
    for (int64_t i = 0; i < rows; i++)
        EXPECT_NEAR(r.lse[i], x.lse[i], (32 + 2 * sqrt((double)c->z.d) * x.exponent) * 0x1p-24);
    run_backward(&r, c, kernels, threads);
    expect_close("dq", &r, &x, kernels->backend, r.dq, x.dq, x.dq_size, x.dq_noise, nq);
    expect_close("dk", &r, &x, kernels->backend, r.dk, x.dk, x.dk_size, x.dk_noise, nk);
    expect_close("dv", &r, &x, kernels->backend, r.dv, x.dv, x.dv_size, x.dv_size, nv);
    oracle_close(&x);
    run_close(&r);
}

TEST(every_backend_agrees_with_the_oracle) {
    const struct kernels *backends[8];
    struct threads *team = threads_open(2);
    int count = list_backends(backends);
    for (int n = 0; n < count; n++) {
        for (int i = 0; i < NUM_SHAPES; i++) {
            for (int dtype = DTYPE_F32; dtype <= DTYPE_F16; dtype++) {
                if (backends[n] == kernels_reference() && shapes[i].z.s > 130) continue; /* it is slow */
                if (judged_elsewhere(backends[n]) ||
                    (MOST_TEAM == 1 && shapes[i].z.s > 200 && dtype == DTYPE_F16))
                    continue;
                check_case(&shapes[i], backends[n], team, (enum dtype)dtype, 1);
            }
        }
    }
    threads_close(team);
}

/* Scores of a few hundred: exponentials would overflow without the running maximum. */
TEST(large_scores_do_not_overflow) {
    static const struct attention_case c = {{.s = 150, .b = 1, .a = 2, .g = 1, .d = 64}, true, 0};
    const struct kernels *backends[8];
    int count = list_backends(backends);
    for (int n = 0; n < count; n++) check_case(&c, backends[n], NULL, DTYPE_F32, 100);
    for (int n = 0; n < count; n++) check_case(&c, backends[n], NULL, DTYPE_BF16, 30);
}

TEST(bits_depend_on_neither_threads_nor_the_run) {
    static const struct attention_case several[] = {
        {{.s = MOST_TEAM > 1 ? 600 : 70, .b = 4, .a = 4, .g = 2, .d = 64},
         true,
         0.1f}, /* enough work that all threads get some */
        {{.s = MOST_TEAM > 1 ? 377 : 61, .b = 6, .a = 2, .g = 1, .d = 40}, false, 0},
    };
    const struct kernels *backends[8];
    int count = list_backends(backends);
    struct threads *teams[] = {NULL, threads_open(2), threads_open(3), NULL};
    for (int n = 1; n < count * 6; n++) {
        const struct attention_case *c = &several[n % 2];
        enum dtype dtype = (enum dtype)(n / 2 % 3);
        if (n / 6 == 0) continue; /* the reference is serial */
        struct run first = run_open(&c->z, dtype, 1);
        run_forward(&first, c, backends[n / 6], NULL, true);
        run_backward(&first, c, backends[n / 6], NULL);
        for (size_t t = 1; t <= (size_t)MOST_TEAM; t++) {
            struct run r = run_open(&c->z, dtype, 1);
            size_t nq = (size_t)q_size(&c->z) * dtype_bytes(dtype),
                   nkv = (size_t)kv_size(&c->z) * dtype_bytes(dtype);
            run_forward(&r, c, backends[n / 6], teams[t], true);
            run_backward(&r, c, backends[n / 6], teams[t]);
            EXPECT(!memcmp(first.o, r.o, nq) && !memcmp(first.dq, r.dq, nq) && !memcmp(first.dk, r.dk, nkv) &&
                       !memcmp(first.dv, r.dv, nkv),
                   "%s %s, team %d", backends[n / 6]->backend, dtype_name(dtype), (int)t);
            run_close(&r);
        }
        run_close(&first);
    }
    threads_close(teams[1]);
    threads_close(teams[2]);
}

TEST(without_lse_the_output_is_the_same) {
    const struct attention_case *c = &shapes[3];
    const struct kernels *backends[8];
    int count = list_backends(backends);
    for (int n = 0; n < count; n++) {
        struct run with = run_open(&c->z, DTYPE_BF16, 1), without = run_open(&c->z, DTYPE_BF16, 1);
        run_forward(&with, c, backends[n], NULL, true);
        run_forward(&without, c, backends[n], NULL, false);
        EXPECT(!memcmp(with.o, without.o, (size_t)q_size(&c->z) * 2), "%s", backends[n]->backend);
        EXPECT(isnan(without.lse[0]), "lse was written though nobody asked");
        run_close(&with);
        run_close(&without);
    }
}

TEST(a_nan_in_a_query_reaches_its_output) {
    const struct attention_case *c = &shapes[4];
    const struct kernels *backends[8];
    int count = list_backends(backends);
    for (int n = 0; n < count * 2; n++) {
        struct run r = run_open(&c->z, n % 2 ? DTYPE_BF16 : DTYPE_F32, 1);
        store_f32(r.q, r.dtype, 5 * c->z.d + 3, NAN); /* batch 0, head 0, position 5 */
        run_forward(&r, c, backends[n / 2], NULL, true);
        EXPECT(isnan(load_f32(r.o, r.dtype, o_at(&c->z, 0, 0, 5))) && isnan(r.lse[5]), "%s",
               backends[n / 2]->backend);
        EXPECT(isfinite(load_f32(r.o, r.dtype, o_at(&c->z, 0, 0, 6))), "%s", backends[n / 2]->backend);
        run_close(&r);
    }
}

TEST(the_cost_counts_causal_work_once) {
    char some[4];
    struct attention_forward_args forward = {.o = some,
                                             .q = some,
                                             .k = some,
                                             .v = some,
                                             .causal = true,
                                             .shape = {.s = 1024, .b = 2, .a = 12, .g = 4, .d = 64},
                                             .dtype = DTYPE_BF16};
    struct attention_backward_args backward = {.shape = forward.shape, .dtype = DTYPE_BF16};
    double pairs = 2.0 * 12 * 1024 * 1025 / 2, q = 2.0 * 1024 * 12 * 64, kv = q / 3;
    EXPECT_EQ(attention_forward_cost(&forward).gemm_flops, pairs * 64 * 4);
    EXPECT_EQ(attention_forward_cost(&forward).bytes, (2 * q + 2 * kv) * 2);
    EXPECT_EQ(attention_backward_cost(&backward).gemm_flops, 2.0 * 12 * 1024 * 1024 * 64 * 10);
    forward.shape.dv = backward.shape.dv = 48; /* scores take 64 multiply-adds, their use 48 */
    EXPECT_EQ(attention_forward_cost(&forward).gemm_flops, pairs * 2 * (64 + 48));
    EXPECT_EQ(attention_forward_cost(&forward).bytes, (q + kv) * 2 * 112 / 64);
    EXPECT_EQ(attention_backward_cost(&backward).gemm_flops, 2.0 * 12 * 1024 * 1024 * 2 * (3 * 64 + 2 * 48));
}

TEST(malformed_args_are_refused) {
    char some[4];
    struct attention_forward_args good = {
        .o = some, .q = some, .k = some, .v = some, .shape = {.s = 4, .b = 1, .a = 4, .g = 2, .d = 8}};
    struct attention_forward_args bad = good;
    EXPECT(!attention_forward_check(&good), "good args");
    bad.shape.g = 3;
    EXPECT_STR(attention_forward_check(&bad), "a must be a multiple of g");
    bad = good, bad.dropout = 1.0f;
    EXPECT_STR(attention_forward_check(&bad), "dropout must be in [0, 1)");
    bad = good, bad.dtype = DTYPE_I32;
    EXPECT_STR(attention_forward_check(&bad), "dtype must be fp32, bf16 or fp16");
    bad = good, bad.v = NULL;
    EXPECT_STR(attention_forward_check(&bad), "o, q, k and v must be set");
    bad = good, bad.shape.s = 0;
    EXPECT_STR(attention_forward_check(&bad), "s, b, a, g and d must be at least 1");
}

RUN_TESTS(CASE(the_oracles_gradients_are_slopes), CASE(every_backend_agrees_with_the_oracle),
          CASE(large_scores_do_not_overflow), CASE(bits_depend_on_neither_threads_nor_the_run),
          CASE(without_lse_the_output_is_the_same), CASE(a_nan_in_a_query_reaches_its_output),
          CASE(the_cost_counts_causal_work_once), CASE(malformed_args_are_refused))
