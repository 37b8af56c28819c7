/* Multi-latent attention between its projections: every backend and dtype against an oracle that looks each
 * element up in nested arrays and rotates by complex multiplication; the backward is proved to be the
 * transpose of the forward: <forward(x), g> = <x, backward(g)> for every unit x of a small problem. */
#include "tests/kernels/attention_oracle.h"
#include <complex.h>

static const struct mla_shape shapes[] = {
    {.s = 1, .b = 1, .a = 1, .dn = 1, .dr = 2, .dv = 1},
    {.s = 5, .b = 2, .a = 3, .dn = 6, .dr = 4, .dv = 7},
    {.s = 33, .b = 1, .a = 2, .dn = 16, .dr = 8, .dv = 16},
    {.s = 21, .b = 3, .a = 4, .dn = 13, .dr = 10, .dv = 9},
    {.s = 40, .b = 1, .a = 2, .dn = 128, .dr = 64, .dv = 128},
};

struct sizes {
    int64_t q, kv, pe, v, angles;
};

static struct sizes sizes_of(const struct mla_shape *z) {
    int64_t heads = z->s * z->b * z->a;
    return (struct sizes){heads * (z->dn + z->dr), heads * (z->dn + z->dv), z->s * z->b * z->dr,
                          heads * z->dv, z->s * z->dr / 2};
}

/* q_in, kv, k_pe and their gradients; q, k, v and theirs. */
struct problem {
    struct mla_shape z;
    struct sizes n;
    enum dtype dtype;
    void *in[3], *out[3], *din[3], *dout[3];
    float *cos, *sin;
};

static struct problem problem_open(struct mla_shape z, enum dtype dtype) {
    struct problem x = {.z = z, .n = sizes_of(&z), .dtype = dtype};
    const int64_t in[3] = {x.n.q, x.n.kv, x.n.pe}, out[3] = {x.n.q, x.n.q, x.n.v};
    for (int i = 0; i < 3; i++) {
        x.in[i] = new_random(in[i], dtype, 10 + (uint64_t)i, 1), x.din[i] = new_output(in[i], dtype);
        x.dout[i] = new_random(out[i], dtype, 20 + (uint64_t)i, 1), x.out[i] = new_output(out[i], dtype);
    }
    x.cos = mem_new_array(float, (size_t)x.n.angles, "cos"),
    x.sin = mem_new_array(float, (size_t)x.n.angles, "sin");
    for (int64_t i = 0; i < x.n.angles; i++) { /* not on the unit circle: the factor of YaRN */
        x.cos[i] = (float)(1.3 * cos(0.37 * (double)i)), x.sin[i] = (float)(1.3 * sin(0.37 * (double)i));
    }
    return x;
}

static void problem_close(struct problem *x) {
    for (int i = 0; i < 3; i++)
        mem_free(x->in[i]), mem_free(x->out[i]), mem_free(x->din[i]), mem_free(x->dout[i]);
    mem_free(x->cos);
    mem_free(x->sin);
}

static void run(struct problem *x, const struct kernels *table, struct threads *team) {
    struct mla_assemble_forward_args forward = {.q = x->out[0],
                                                .k = x->out[1],
                                                .v = x->out[2],
                                                .q_in = x->in[0],
                                                .kv = x->in[1],
                                                .k_pe = x->in[2],
                                                .shape = x->z,
                                                .cos = x->cos,
                                                .sin = x->sin,
                                                .dtype = x->dtype};
    struct mla_assemble_backward_args backward = {.dq_in = x->din[0],
                                                  .dkv = x->din[1],
                                                  .dk_pe = x->din[2],
                                                  .dq = x->dout[0],
                                                  .dk = x->dout[1],
                                                  .dv = x->dout[2],
                                                  .shape = x->z,
                                                  .cos = x->cos,
                                                  .sin = x->sin,
                                                  .dtype = x->dtype};
    RUN_KERNEL(mla_assemble_forward, table, team, &forward);
    RUN_KERNEL(mla_assemble_backward, table, team, &backward);
    EXPECT(guard_holds(x->out[0], x->n.q, x->dtype) && guard_holds(x->out[1], x->n.q, x->dtype) &&
               guard_holds(x->out[2], x->n.v, x->dtype) && guard_holds(x->din[0], x->n.q, x->dtype) &&
               guard_holds(x->din[1], x->n.kv, x->dtype) && guard_holds(x->din[2], x->n.pe, x->dtype),
           "%s wrote beyond an end", table->backend);
}

/* Column c of the rotated part of a row of dr numbers at position i. */
static double turned(const struct problem *x, const void *row, int64_t first, int64_t i, int64_t c) {
    int64_t half = x->z.dr / 2, pair = c % half;
    double re = (double)load_f32(row, x->dtype, first + 2 * pair);
    double im = (double)load_f32(row, x->dtype, first + 2 * pair + 1);
    double complex turn = (double)x->cos[i * half + pair] + I * (double)x->sin[i * half + pair];
    double complex y = (re + I * im) * turn;
    return c < half ? creal(y) : cimag(y);
}

static void expect_value(const struct problem *x, const char *backend, const char *name, int64_t i,
                         const void *got, double want) {
    double value = (double)load_f32(got, x->dtype, i);
    double bound = unit_roundoff(x->dtype) * fabs(want) * 1.01 + 8 * 0x1p-24 * 10;
    EXPECT(isfinite(value) && fabs(value - want) <= bound, "%s %s %s[%d]: %.9g, not %.9g", backend,
           dtype_name(x->dtype), name, (int)i, value, want);
}

static void expect_assembled(const struct problem *x, const char *backend) {
    const struct mla_shape *z = &x->z;
    int64_t d = z->dn + z->dr, wide = z->dn + z->dv;
    for (int64_t batch = 0; batch < z->b; batch++)
        for (int64_t head = 0; head < z->a; head++)
            for (int64_t i = 0; i < z->s; i++) {
                int64_t row = (batch * z->a + head) * z->s + i, token = i * z->b + batch,
                        from = token * z->a + head;
                for (int64_t c = 0; c < d; c++) {
                    bool plain = c < z->dn;
                    double q = plain ? (double)load_f32(x->in[0], x->dtype, from * d + c)
                                     : turned(x, x->in[0], from * d + z->dn, i, c - z->dn);
                    double k = plain ? (double)load_f32(x->in[1], x->dtype, from * wide + c)
                                     : turned(x, x->in[2], token * z->dr, i, c - z->dn);
                    expect_value(x, backend, "q", row * d + c, x->out[0], q);
                    expect_value(x, backend, "k", row * d + c, x->out[1], k);
                }
                for (int64_t c = 0; c < z->dv; c++)
                    expect_value(x, backend, "v", row * z->dv + c, x->out[2],
                                 (double)load_f32(x->in[1], x->dtype, from * wide + z->dn + c));
            }
}

TEST(every_backend_assembles_what_the_formulas_say) {
    const struct kernels *backends[8];
    struct threads *team = threads_open(2);
    int count = list_backends(backends);
    for (int n = 0; n < count; n++)
        for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
            for (int dtype = DTYPE_F32; dtype <= DTYPE_F16; dtype++) {
                struct problem x = problem_open(shapes[i], (enum dtype)dtype);
                run(&x, backends[n], team);
                expect_assembled(&x, backends[n]->backend);
                problem_close(&x);
            }
    threads_close(team);
}

/* sum of dout * forward(unit vector e of input `which`) */
static double pull(const struct problem *x, const struct kernels *table, int which, int64_t e) {
    const int64_t in[3] = {x->n.q, x->n.kv, x->n.pe}, out[3] = {x->n.q, x->n.q, x->n.v};
    struct problem unit = problem_open(x->z, x->dtype);
    double sum = 0;
    for (int i = 0; i < 3; i++)
        for (int64_t j = 0; j < in[i]; j++)
            store_f32(unit.in[i], x->dtype, j, i == which && j == e ? 1.0f : 0.0f);
    run(&unit, table, NULL);
    for (int i = 0; i < 3; i++)
        for (int64_t j = 0; j < out[i]; j++)
            sum += (double)load_f32(unit.out[i], x->dtype, j) * (double)load_f32(x->dout[i], x->dtype, j);
    problem_close(&unit);
    return sum;
}

TEST(backward_is_the_transpose_of_forward) {
    const struct kernels *backends[8];
    int count = list_backends(backends);
    for (int n = 0; n < count; n++) {
        struct problem x = problem_open(shapes[1], DTYPE_F32);
        const int64_t in[3] = {x.n.q, x.n.kv, x.n.pe};
        run(&x, backends[n], NULL);
        for (int which = 0; which < 3; which++)
            for (int64_t e = 0; e < in[which]; e += 3)
                EXPECT_NEAR(load_f32(x.din[which], DTYPE_F32, e), pull(&x, kernels_reference(), which, e),
                            1e-5);
        problem_close(&x);
    }
}

TEST(sixteen_bit_gradients_are_the_float_gradients_rounded) {
    const struct kernels *backends[8];
    int count = list_backends(backends);
    for (int n = 0; n < count * 2; n++) {
        enum dtype dtype = n % 2 ? DTYPE_BF16 : DTYPE_F16;
        struct problem x = problem_open(shapes[3], dtype), wide = problem_open(shapes[3], DTYPE_F32);
        const int64_t in[3] = {x.n.q, x.n.kv, x.n.pe}, out[3] = {x.n.q, x.n.q, x.n.v};
        for (int i = 0; i < 3; i++)
            for (int64_t j = 0; j < out[i]; j++)
                store_f32(wide.dout[i], DTYPE_F32, j, load_f32(x.dout[i], dtype, j));
        run(&x, backends[n / 2], NULL);
        run(&wide, kernels_reference(), NULL);
        for (int i = 0; i < 3; i++)
            for (int64_t j = 0; j < in[i]; j++)
                expect_value(&x, backends[n / 2]->backend, "gradient", j, x.din[i],
                             (double)load_f32(wide.din[i], DTYPE_F32, j));
        problem_close(&x);
        problem_close(&wide);
    }
}

TEST(bits_depend_on_neither_threads_nor_the_run) {
    const struct kernels *backends[8];
    int count = list_backends(backends);
    struct threads *team = threads_open(3);
    for (int n = 0; n < count; n++) {
        struct problem a = problem_open(shapes[4], DTYPE_BF16), b = problem_open(shapes[4], DTYPE_BF16);
        run(&a, backends[n], NULL);
        run(&b, backends[n], team);
        EXPECT(!memcmp(a.out[1], b.out[1], (size_t)a.n.q * 2) &&
                   !memcmp(a.din[0], b.din[0], (size_t)a.n.q * 2) &&
                   !memcmp(a.din[2], b.din[2], (size_t)a.n.pe * 2),
               "%s", backends[n]->backend);
        problem_close(&a);
        problem_close(&b);
    }
    threads_close(team);
}

TEST(the_latent_split_cuts_rows_and_joins_them_again) {
    enum { ROWS = 37, RANK = 12, DR = 6, WIDTH = RANK + DR };
    const struct kernels *backends[8];
    int count = list_backends(backends);
    for (int n = 0; n < count * 3; n++) {
        enum dtype t = (enum dtype)(n % 3);
        void *x = new_random(ROWS * WIDTH, t, 3, 1), *latent = new_output(ROWS * RANK, t);
        void *k_pe = new_output(ROWS * DR, t), *dx = new_output(ROWS * WIDTH, t);
        struct mla_latent_split_forward_args forward = {latent, k_pe, x, ROWS, RANK, DR, t};
        struct mla_latent_split_backward_args backward = {dx, latent, k_pe, ROWS, RANK, DR, t};
        RUN_KERNEL(mla_latent_split_forward, backends[n / 3], NULL, &forward);
        RUN_KERNEL(mla_latent_split_backward, backends[n / 3], NULL, &backward);
        for (int64_t i = 0; i < ROWS * WIDTH; i++) {
            int64_t row = i / WIDTH, col = i % WIDTH;
            float got =
                col < RANK ? load_f32(latent, t, row * RANK + col) : load_f32(k_pe, t, row * DR + col - RANK);
            EXPECT_EQ(got, load_f32(x, t, i));
        }
        EXPECT(!memcmp(dx, x, (size_t)(ROWS * WIDTH) * dtype_bytes(t)), "%s", backends[n / 3]->backend);
        EXPECT(guard_holds(latent, ROWS * RANK, t) && guard_holds(k_pe, ROWS * DR, t) &&
                   guard_holds(dx, ROWS * WIDTH, t),
               "%s wrote beyond an end", backends[n / 3]->backend);
        mem_free(x), mem_free(latent), mem_free(k_pe), mem_free(dx);
    }
}

TEST(the_cost_counts_every_element_once) {
    struct mla_assemble_forward_args args = {.shape = {.s = 8, .b = 2, .a = 4, .dn = 6, .dr = 2, .dv = 5},
                                             .dtype = DTYPE_BF16};
    double projected = 16 * (4 * (6 + 2) + 4 * (6 + 5) + 2), assembled = 16 * 4 * (8 + 8 + 5);
    EXPECT_EQ(mla_assemble_forward_cost(&args).bytes, (projected + assembled) * 2 + 8 * 2 * 4);
    EXPECT_EQ(mla_assemble_forward_cost(&args).flops, 16 * (4 + 1) * 6); /* a pair: 4 products, 2 sums */
}

TEST(malformed_args_are_refused) {
    char some[4];
    float angle = 0;
    struct mla_assemble_forward_args good = {
        some,   some,   some,     some, some, some, {.s = 1, .b = 1, .a = 1, .dn = 1, .dr = 2, .dv = 1},
        &angle, &angle, DTYPE_F32};
    struct mla_assemble_forward_args bad = good;
    EXPECT(!mla_assemble_forward_check(&good), "good args");
    bad.shape.dr = 3;
    EXPECT_STR(mla_assemble_forward_check(&bad), "dr must be even and at least 2");
    bad = good, bad.cos = NULL;
    EXPECT_STR(mla_assemble_forward_check(&bad), "cos and sin must be set");
    bad = good, bad.k_pe = NULL;
    EXPECT_STR(mla_assemble_forward_check(&bad), "q_in, kv and k_pe must be set");
    struct mla_latent_split_forward_args split = {some, some, some, 1, 1, 0, DTYPE_F32};
    EXPECT_STR(mla_latent_split_forward_check(&split), "rows, rank and dr must be at least 1");
}

RUN_TESTS(CASE(every_backend_assembles_what_the_formulas_say), CASE(backward_is_the_transpose_of_forward),
          CASE(sixteen_bit_gradients_are_the_float_gradients_rounded),
          CASE(bits_depend_on_neither_threads_nor_the_run),
          CASE(the_latent_split_cuts_rows_and_joins_them_again), CASE(the_cost_counts_every_element_once),
          CASE(malformed_args_are_refused))
