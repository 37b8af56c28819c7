/* qkv_split: every backend against a naive double version, whose gradients are taken by finite differences.
 */
#include "tests/kernels/attention_oracle.h"

struct split_case {
    struct attention_shape z;
    int norm; /* 0 none, 1 RMSNorm, 2 LayerNorm, 3 LayerNorm around 1 */
    int64_t rotary_dim;
    bool interleaved;
};

static const struct split_case shapes[] = {
    {{.s = 5, .b = 2, .a = 4, .g = 2, .d = 8}, 0, 0, false},
    {{.s = 5, .b = 2, .a = 4, .g = 2, .d = 8}, 0, 8, false},
    {{.s = 7, .b = 1, .a = 2, .g = 2, .d = 10}, 0, 6, true},
    {{.s = 3, .b = 3, .a = 6, .g = 2, .d = 40}, 1, 40, false},
    {{.s = 4, .b = 2, .a = 2, .g = 1, .d = 20}, 2, 10, false},
    {{.s = 9, .b = 2, .a = 2, .g = 2, .d = 64}, 3, 64, true},
    {{.s = 40, .b = 2, .a = 3, .g = 3, .d = 64}, 1, 0, false},
};
enum { NUM_SHAPES = (int)(sizeof(shapes) / sizeof(shapes[0])) };

/* Everything as doubles; `in` lists the differentiable inputs: qkv and the four parameters. */
struct naive {
    struct split_case c;
    double *qkv, *param[4];   /* q weight, k weight, q bias, k bias: [d] */
    double *out[3], *grad[3]; /* q, k, v and their gradients */
    float *cos, *sin;
};

static int64_t qkv_size(const struct attention_shape *z) {
    return z->s * z->b * (z->a + 2 * z->g) * z->d;
}

static int64_t part_size(const struct attention_shape *z, int part) {
    return part ? kv_size(z) : q_size(z);
}

static void naive_head(const struct naive *x, int part, int64_t row, int64_t position, double *y) {
    int64_t d = x->c.z.d, half = x->c.rotary_dim / 2;
    const double *in = x->qkv + row;
    double mean = 0, square = 0;
    for (int64_t n = 0; n < d; n++) mean += x->c.norm >= 2 ? in[n] / (double)d : 0;
    for (int64_t n = 0; n < d; n++) square += (in[n] - mean) * (in[n] - mean) / (double)d;
    for (int64_t n = 0; n < d; n++) {
        y[n] = in[n];
        if (part == 2 || !x->c.norm) continue;
        y[n] = (in[n] - mean) / sqrt(square + 1e-5) * (x->param[part][n] + (x->c.norm == 3));
        if (x->c.norm >= 2) y[n] += x->param[2 + part][n];
    }
    for (int64_t n = 0; n < half && part < 2; n++) {
        int64_t first = x->c.interleaved ? 2 * n : n, second = x->c.interleaved ? 2 * n + 1 : n + half;
        double c = (double)x->cos[position * half + n], s = (double)x->sin[position * half + n];
        double x0 = y[first], x1 = y[second];
        y[first] = x0 * c - x1 * s, y[second] = x1 * c + x0 * s;
    }
}

static void naive_split(const struct naive *x) {
    const struct attention_shape *z = &x->c.z;
    int64_t per_group = z->a / z->g, row = 0;
    for (int64_t i = 0; i < z->s; i++) {
        for (int64_t batch = 0; batch < z->b; batch++) {
            for (int64_t group = 0; group < z->g; group++) {
                for (int64_t h = 0; h < per_group + 2; h++, row += z->d) {
                    int part = h < per_group ? 0 : (int)(h - per_group) + 1;
                    int64_t head = part ? group : group * per_group + h, heads = part ? z->g : z->a;
                    naive_head(x, part, row, i, x->out[part] + ((batch * heads + head) * z->s + i) * z->d);
                }
            }
        }
    }
}

static double naive_loss(const struct naive *x) {
    double loss = 0;
    naive_split(x);
    for (int part = 0; part < 3; part++) {
        for (int64_t i = 0; i < part_size(&x->c.z, part); i++) loss += x->out[part][i] * x->grad[part][i];
    }
    return loss;
}

/* The same problem as a backend sees it. */
struct problem {
    struct naive naive;
    enum dtype dtype;
    void *qkv, *param[4], *out[3], *grad[3], *dqkv;
    float *dparam[4];
};

static struct problem problem_open(struct split_case c, enum dtype dtype) {
    struct problem x = {.naive = {.c = c}, .dtype = dtype};
    int64_t d = c.z.d, angles = c.z.s * (c.rotary_dim / 2) + 1;
    x.qkv = new_random(qkv_size(&c.z), dtype, 1, 1), x.dqkv = new_output(qkv_size(&c.z), dtype);
    x.naive.qkv = new_doubles(qkv_size(&c.z));
    widen(x.naive.qkv, x.qkv, dtype, qkv_size(&c.z));
    for (int i = 0; i < 4; i++) {
        x.param[i] = new_random(d, dtype, (uint64_t)(20 + i), 1), x.naive.param[i] = new_doubles(d);
        x.dparam[i] = new_output(d, DTYPE_F32);
        widen(x.naive.param[i], x.param[i], dtype, d);
    }
    for (int part = 0; part < 3; part++) {
        int64_t n = part_size(&c.z, part);
        x.out[part] = new_output(n, dtype), x.grad[part] = new_random(n, dtype, (uint64_t)(30 + part), 1);
        x.naive.out[part] = new_doubles(n), x.naive.grad[part] = new_doubles(n);
        widen(x.naive.grad[part], x.grad[part], dtype, n);
    }
    x.naive.cos = mem_alloc((size_t)angles * 4, "cos"), x.naive.sin = mem_alloc((size_t)angles * 4, "sin");
    for (int64_t i = 0; i < angles; i++) x.naive.cos[i] = cosf((float)i), x.naive.sin[i] = sinf((float)i);
    return x;
}

static void problem_close(struct problem *x) {
    for (int i = 0; i < 4; i++) mem_free(x->param[i]), mem_free(x->naive.param[i]), mem_free(x->dparam[i]);
    for (int i = 0; i < 3; i++) {
        mem_free(x->out[i]), mem_free(x->grad[i]), mem_free(x->naive.out[i]), mem_free(x->naive.grad[i]);
    }
    mem_free(x->qkv), mem_free(x->dqkv), mem_free(x->naive.qkv), mem_free(x->naive.cos),
        mem_free(x->naive.sin);
}

static struct qkv_split_norm norm_of(const struct problem *x) {
    int norm = x->naive.c.norm;
    struct qkv_split_norm out = {.epsilon = 1e-5f, .rms = norm == 1, .zero_centered = norm == 3};
    if (norm) out.q_weight = x->param[0], out.k_weight = x->param[1];
    if (norm >= 2) out.q_bias = x->param[2], out.k_bias = x->param[3];
    return out;
}

static void run(const struct problem *x, const struct kernels *table, struct threads *team, bool accumulate) {
    const struct split_case *c = &x->naive.c;
    const float *cos = c->rotary_dim ? x->naive.cos : NULL, *sin = c->rotary_dim ? x->naive.sin : NULL;
    struct qkv_split_forward_args forward = {.q = x->out[0],
                                             .k = x->out[1],
                                             .v = x->out[2],
                                             .qkv = x->qkv,
                                             .shape = c->z,
                                             .norm = norm_of(x),
                                             .cos = cos,
                                             .sin = sin,
                                             .rotary_dim = c->rotary_dim,
                                             .rotary_interleaved = c->interleaved,
                                             .dtype = x->dtype};
    struct qkv_split_backward_args backward = {.dqkv = x->dqkv,
                                               .dq = x->grad[0],
                                               .dk = x->grad[1],
                                               .dv = x->grad[2],
                                               .qkv = c->norm ? x->qkv : NULL,
                                               .shape = c->z,
                                               .norm = norm_of(x),
                                               .cos = cos,
                                               .sin = sin,
                                               .rotary_dim = c->rotary_dim,
                                               .rotary_interleaved = c->interleaved,
                                               .dtype = x->dtype,
                                               .accumulate_params = accumulate};
    if (c->norm) backward.dq_weight = x->dparam[0], backward.dk_weight = x->dparam[1];
    if (c->norm >= 2) backward.dq_bias = x->dparam[2], backward.dk_bias = x->dparam[3];
    RUN_KERNEL(qkv_split_forward, table, team, &forward);
    RUN_KERNEL(qkv_split_backward, table, team, &backward);
}

/* Bound: one rounding to dtype, and float32 arithmetic on numbers of size about 10. Slopes by central
 * differences of step 1e-4 are good to 1e-6 here. */
static double bound(enum dtype dtype, double truth) {
    return unit_roundoff(dtype) * fabs(truth) + 256 * 0x1p-24 * (1 + fabs(truth)) + 1e-6;
}

static void expect_slopes(const struct problem *x, const char *backend, double *input, const void *gradient,
                          enum dtype dtype, int64_t n, const char *name) {
    int64_t stride = n > 200 ? 61 : 1; /* every element of a small tensor, a sample of a large one */
    for (int64_t i = 0; i < n; i += stride) {
        double centre = input[i], step = 1e-4;
        input[i] = centre + step;
        double above = naive_loss(&x->naive);
        input[i] = centre - step;
        double slope = (above - naive_loss(&x->naive)) / (2 * step);
        input[i] = centre;
        double value = (double)load_f32(gradient, dtype, i);
        EXPECT(isfinite(value) && fabs(value - slope) <= bound(dtype, slope),
               "%s %s %s[%d]: %.9g, slope %.9g", backend, dtype_name(x->dtype), name, (int)i, value, slope);
    }
}

static void check(const struct problem *x, const struct kernels *table, struct threads *team) {
    static const char *const names[] = {"q_weight", "k_weight", "q_bias", "k_bias"};
    const struct attention_shape *z = &x->naive.c.z;
    run(x, table, team, false);
    naive_split(&x->naive);
    for (int part = 0; part < 3; part++) {
        for (int64_t i = 0; i < part_size(z, part); i++) {
            EXPECT_NEAR(load_f32(x->out[part], x->dtype, i), x->naive.out[part][i],
                        bound(x->dtype, x->naive.out[part][i]));
        }
        EXPECT(guard_holds(x->out[part], part_size(z, part), x->dtype), "wrote beyond the end of part %d",
               part);
    }
    EXPECT(guard_holds(x->dqkv, qkv_size(z), x->dtype), "wrote beyond the end of dqkv");
    expect_slopes(x, table->backend, x->naive.qkv, x->dqkv, x->dtype, qkv_size(z), "dqkv");
    for (int i = 0; i < 4; i++) {
        bool wanted = x->naive.c.norm >= 2 || (x->naive.c.norm && i < 2);
        if (wanted)
            expect_slopes(x, table->backend, x->naive.param[i], x->dparam[i], DTYPE_F32, z->d, names[i]);
    }
}

TEST(every_backend_splits_norms_and_rotates_as_the_formulas_say) {
    const struct kernels *backends[8];
    struct threads *team = threads_open(2);
    int count = list_backends(backends);
    for (int n = 0; n < count * NUM_SHAPES * 3; n++) {
        struct problem x = problem_open(shapes[n / 3 % NUM_SHAPES], (enum dtype)(n % 3));
        check(&x, backends[n / 3 / NUM_SHAPES], team);
        problem_close(&x);
    }
    threads_close(team);
}

TEST(parameter_gradients_accumulate_when_asked) {
    const struct kernels *backends[8];
    int count = list_backends(backends);
    for (int n = 0; n < count; n++) {
        struct problem once = problem_open(shapes[4], DTYPE_F32), twice = problem_open(shapes[4], DTYPE_F32);
        run(&once, backends[n], NULL, false);
        run(&twice, backends[n], NULL, false);
        run(&twice, backends[n], NULL, true);
        for (int i = 0; i < 4; i++) {
            for (int64_t j = 0; j < shapes[4].z.d; j++) {
                EXPECT_NEAR(twice.dparam[i][j], 2 * once.dparam[i][j],
                            1e-5 * (1 + fabs((double)once.dparam[i][j])));
            }
        }
        problem_close(&once);
        problem_close(&twice);
    }
}

TEST(bits_depend_on_neither_threads_nor_the_run) {
    const struct kernels *backends[8];
    int count = list_backends(backends);
    struct threads *teams[] = {NULL, threads_open(2), threads_open(3)};
    for (int n = 0; n < count; n++) {
        struct problem first = problem_open(shapes[6], DTYPE_BF16);
        run(&first, backends[n], NULL, false);
        for (int t = 1; t == 1 || t < MOST_TEAM; t++) {
            struct problem x = problem_open(shapes[6], DTYPE_BF16);
            run(&x, backends[n], teams[t], false);
            EXPECT(!memcmp(first.dqkv, x.dqkv, (size_t)qkv_size(&shapes[6].z) * 2), "%s dqkv",
                   backends[n]->backend);
            for (int i = 0; i < 2; i++) {
                EXPECT(!memcmp(first.dparam[i], x.dparam[i], (size_t)shapes[6].z.d * 4), "%s",
                       backends[n]->backend);
            }
            problem_close(&x);
        }
        problem_close(&first);
    }
    threads_close(teams[1]);
    threads_close(teams[2]);
}

TEST(malformed_args_are_refused) {
    char some[4];
    float angle = 0;
    struct qkv_split_forward_args good = {
        .q = some, .k = some, .v = some, .qkv = some, .shape = {.s = 4, .b = 1, .a = 4, .g = 2, .d = 8}};
    struct qkv_split_forward_args bad = good;
    EXPECT(!qkv_split_forward_check(&good), "good args");
    bad.cos = bad.sin = &angle, bad.rotary_dim = 10;
    EXPECT_STR(qkv_split_forward_check(&bad), "rotary_dim must be even, from 2 to d");
    bad = good, bad.cos = &angle;
    EXPECT_STR(qkv_split_forward_check(&bad), "the rotary embedding needs both tables or none");
    bad = good, bad.norm.q_weight = some;
    EXPECT_STR(qkv_split_forward_check(&bad), "QK norm needs both weights or none");
    bad = good, bad.norm.q_bias = bad.norm.k_bias = some;
    EXPECT_STR(qkv_split_forward_check(&bad), "biases belong to a LayerNorm");
}

RUN_TESTS(CASE(every_backend_splits_norms_and_rotates_as_the_formulas_say),
          CASE(parameter_gradients_accumulate_when_asked), CASE(bits_depend_on_neither_threads_nor_the_run),
          CASE(malformed_args_are_refused))
