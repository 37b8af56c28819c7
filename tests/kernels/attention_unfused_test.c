/* The unfused chain: each kernel of every backend against the oracle's matrices, and the whole chain against
 * fused attention. */
#include "tests/kernels/attention_oracle.h"

static const struct attention_case shapes[] = {
    {{.s = 1, .b = 1, .a = 1, .g = 1, .d = 16}, true, 0},
    {{.s = 7, .b = 2, .a = 2, .g = 2, .d = 16}, true, 0},
    {{.s = 33, .b = 2, .a = 4, .g = 2, .d = 40}, true, 0},
    {{.s = 65, .b = 1, .a = 2, .g = 1, .d = 64}, false, 0},
    {{.s = 96, .b = 1, .a = 3, .g = 1, .d = 96}, true, 0},
    {{.s = 130, .b = 1, .a = 2, .g = 2, .d = 80}, true, 0},
    {{.s = 257, .b = 1, .a = 2, .g = 2, .d = 32}, true, 0},
};
enum { NUM_SHAPES = (int)(sizeof(shapes) / sizeof(shapes[0])) };

/* A naive product in double, and the sum of magnitudes, element by element of [b, a, s, s] or [.., s, d]. */
struct truth {
    double *value, *size;
};

static struct truth truth_open(int64_t n) {
    return (struct truth){new_doubles(n), new_doubles(n)};
}

static void truth_close(struct truth *t) {
    mem_free(t->value);
    mem_free(t->size);
}

static void truth_add(struct truth *t, int64_t at, double x) {
    t->value[at] += x, t->size[at] += fabs(x);
}

struct inputs {
    struct attention_case c;
    enum dtype dtype;
    int64_t nq, nkv, ns;
    void *q, *k, *v, *d_o,
        *square; /* square [b, a, s, s]: probs or dscores; NaN above the diagonal when causal */
};

static struct inputs inputs_open(struct attention_case c, enum dtype dtype) {
    const struct attention_shape *z = &c.z;
    struct inputs x = {
        .c = c, .dtype = dtype, .nq = q_size(z), .nkv = kv_size(z), .ns = z->b * z->a * z->s * z->s};
    x.q = new_random(x.nq, dtype, 1, 1), x.k = new_random(x.nkv, dtype, 2, 1);
    x.v = new_random(x.nkv, dtype, 3, 1), x.d_o = new_random(x.nq, dtype, 4, 1);
    x.square = new_random(x.ns, dtype, 5, 1);
    for (int64_t i = 0; i < x.ns && c.causal; i++) {
        if (i % z->s > i / z->s % z->s) store_f32(x.square, dtype, i, NAN);
    }
    return x;
}

static void inputs_close(struct inputs *x) {
    void *const all[] = {x->q, x->k, x->v, x->d_o, x->square};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) mem_free(all[i]);
}

static double in(const struct inputs *x, const void *p, int64_t i) {
    return (double)load_f32(p, x->dtype, i);
}

/* Bound: one rounding to dtype, and float32 sums of up to s * a/g terms (see attention_test.c). */
static void expect_truth(const char *name, const char *backend, const struct inputs *x, const void *result,
                         const struct truth *t, int64_t n, bool skip_above) {
    double u = unit_roundoff(x->dtype), worst = 0;
    for (int64_t i = 0; i < n; i++) {
        double value = in(x, result, i), bound = u * fabs(t->value[i]) + 32 * 0x1p-24 * t->size[i] + 0x1p-24;
        if (skip_above && x->c.causal && i % x->c.z.s > i / x->c.z.s % x->c.z.s) {
            EXPECT(isnan(value), "%s %s wrote above the diagonal", backend, name);
            continue;
        }
        double error = isfinite(value) ? fabs(value - t->value[i]) / bound : (double)INFINITY;
        worst = error > worst ? error : worst;
    }
    EXPECT(worst <= 1, "%s %s of %s: %.3g times the bound (s %d b %d a %d g %d d %d causal %d)", backend,
           name, dtype_name(x->dtype), worst, (int)x->c.z.s, (int)x->c.z.b, (int)x->c.z.a, (int)x->c.z.g,
           (int)x->c.z.d, x->c.causal);
    EXPECT(guard_holds(result, n, x->dtype), "%s %s wrote beyond its end", backend, name);
}

/* Calls visit for every (head, query, key) that counts, with the rows of q, k and o. */
struct visit {
    const struct inputs *x;
    struct truth *a, *b;
    double scale;
};
typedef void (*visit_fn)(const struct visit *v, int64_t square, int64_t q, int64_t kv, int64_t o);

static void visit_all(const struct visit *v, visit_fn fn) {
    const struct attention_shape *z = &v->x->c.z;
    for (int64_t head = 0; head < z->b * z->a; head++) {
        int64_t kv_head = head / z->a * z->g + head % z->a / (z->a / z->g);
        for (int64_t i = 0; i < z->s; i++) {
            for (int64_t j = 0; j < (v->x->c.causal ? i + 1 : z->s); j++) {
                fn(v, (head * z->s + i) * z->s + j, (head * z->s + i) * z->d, (kv_head * z->s + j) * z->d,
                   o_at(z, head / z->a, head % z->a, i));
            }
        }
    }
}

static void visit_scores(const struct visit *v, int64_t square, int64_t q, int64_t kv, int64_t o) {
    const struct inputs *x = v->x;
    (void)o;
    for (int64_t n = 0; n < x->c.z.d; n++)
        truth_add(v->a, square, v->scale * in(x, x->q, q + n) * in(x, x->k, kv + n));
}

static void visit_scores_backward(const struct visit *v, int64_t square, int64_t q, int64_t kv, int64_t o) {
    const struct inputs *x = v->x;
    double ds = v->scale * in(x, x->square, square);
    (void)o;
    for (int64_t n = 0; n < x->c.z.d; n++) {
        truth_add(v->a, q + n, ds * in(x, x->k, kv + n));
        truth_add(v->b, kv + n, ds * in(x, x->q, q + n));
    }
}

static void visit_context(const struct visit *v, int64_t square, int64_t q, int64_t kv, int64_t o) {
    const struct inputs *x = v->x;
    (void)q;
    for (int64_t n = 0; n < x->c.z.d; n++)
        truth_add(v->a, o + n, in(x, x->square, square) * in(x, x->v, kv + n));
}

static void visit_context_backward(const struct visit *v, int64_t square, int64_t q, int64_t kv, int64_t o) {
    const struct inputs *x = v->x;
    (void)q;
    for (int64_t n = 0; n < x->c.z.d; n++) {
        truth_add(v->a, square, in(x, x->d_o, o + n) * in(x, x->v, kv + n));
        truth_add(v->b, kv + n, in(x, x->square, square) * in(x, x->d_o, o + n));
    }
}

static void check_scores(const struct inputs *x, const struct kernels *table, struct threads *team) {
    struct truth scores = truth_open(x->ns), dq = truth_open(x->nq), dk = truth_open(x->nkv);
    void *y = new_output(x->ns, x->dtype), *y_q = new_output(x->nq, x->dtype),
         *y_k = new_output(x->nkv, x->dtype);
    float scale = 0.3f;
    struct attention_scores_forward_args forward = {.scores = y,
                                                    .q = x->q,
                                                    .k = x->k,
                                                    .shape = x->c.z,
                                                    .scale = scale,
                                                    .causal = x->c.causal,
                                                    .dtype = x->dtype};
    struct attention_scores_backward_args backward = {.dq = y_q,
                                                      .dk = y_k,
                                                      .dscores = x->square,
                                                      .q = x->q,
                                                      .k = x->k,
                                                      .shape = x->c.z,
                                                      .scale = scale,
                                                      .causal = x->c.causal,
                                                      .dtype = x->dtype};
    visit_all(&(struct visit){x, &scores, NULL, (double)scale}, visit_scores);
    visit_all(&(struct visit){x, &dq, &dk, (double)scale}, visit_scores_backward);
    RUN_KERNEL(attention_scores_forward, table, team, &forward);
    RUN_KERNEL(attention_scores_backward, table, team, &backward);
    expect_truth("scores", table->backend, x, y, &scores, x->ns, true);
    expect_truth("dq", table->backend, x, y_q, &dq, x->nq, false);
    expect_truth("dk", table->backend, x, y_k, &dk, x->nkv, false);
    truth_close(&scores), truth_close(&dq), truth_close(&dk);
    mem_free(y), mem_free(y_q), mem_free(y_k);
}

static void check_context(const struct inputs *x, const struct kernels *table, struct threads *team) {
    struct truth o = truth_open(x->nq), dp = truth_open(x->ns), dv = truth_open(x->nkv);
    void *y = new_output(x->nq, x->dtype), *y_p = new_output(x->ns, x->dtype),
         *y_v = new_output(x->nkv, x->dtype);
    struct attention_context_forward_args forward = {
        .o = y, .probs = x->square, .v = x->v, .shape = x->c.z, .causal = x->c.causal, .dtype = x->dtype};
    struct attention_context_backward_args backward = {.dprobs = y_p,
                                                       .dv = y_v,
                                                       .d_o = x->d_o,
                                                       .probs = x->square,
                                                       .v = x->v,
                                                       .shape = x->c.z,
                                                       .causal = x->c.causal,
                                                       .dtype = x->dtype};
    visit_all(&(struct visit){x, &o, NULL, 1}, visit_context);
    visit_all(&(struct visit){x, &dp, &dv, 1}, visit_context_backward);
    RUN_KERNEL(attention_context_forward, table, team, &forward);
    RUN_KERNEL(attention_context_backward, table, team, &backward);
    expect_truth("o", table->backend, x, y, &o, x->nq, false);
    expect_truth("dprobs", table->backend, x, y_p, &dp, x->ns, false);
    expect_truth("dv", table->backend, x, y_v, &dv, x->nkv, false);
    truth_close(&o), truth_close(&dp), truth_close(&dv);
    mem_free(y), mem_free(y_p), mem_free(y_v);
}

TEST(every_product_agrees_with_plain_sums) {
    const struct kernels *backends[8];
    struct threads *team = threads_open(2);
    int count = list_backends(backends);
    for (int n = 0; n < count * NUM_SHAPES * 3; n++) {
        const struct kernels *table = backends[n / NUM_SHAPES / 3];
        if (judged_elsewhere(table)) continue;
        struct inputs x = inputs_open(shapes[n / 3 % NUM_SHAPES], (enum dtype)(n % 3));
        check_scores(&x, table, team);
        check_context(&x, table, team);
        inputs_close(&x);
    }
    threads_close(team);
}

/* x and dy of a softmax of `rows` rows; the result may take the place of the input. */
static void check_softmax(const struct kernels *table, struct threads *team, int64_t rows, int64_t cols,
                          bool causal, enum dtype dtype) {
    int64_t n = rows * cols;
    void *x = new_random(n, dtype, 1, 3), *dy = new_random(n, dtype, 2, 1);
    void *y = new_output(n, dtype), *dx = new_output(n, dtype);
    struct softmax_forward_args forward = {
        .y = y, .x = x, .rows = rows, .cols = cols, .causal = causal, .dtype = dtype};
    struct softmax_backward_args backward = {
        .dx = dx, .dy = dy, .y = y, .rows = rows, .cols = cols, .causal = causal, .dtype = dtype};
    for (int64_t i = 0; i < n && causal; i++) {
        if (i % cols > i / cols % cols) store_f32(x, dtype, i, NAN), store_f32(dy, dtype, i, NAN);
    }
    RUN_KERNEL(softmax_forward, table, team, &forward);
    RUN_KERNEL(softmax_backward, table, team, &backward);
    double u = unit_roundoff(dtype) + 32 * 0x1p-24;
    for (int64_t r = 0; r < rows; r++) {
        int64_t used = causal ? r % cols + 1 : cols;
        double sum = 0, delta = 0, size = 0;
        for (int64_t j = 0; j < used; j++) sum += exp((double)load_f32(x, dtype, r * cols + j));
        for (int64_t j = 0; j < used; j++) {
            double term =
                (double)load_f32(y, dtype, r * cols + j) * (double)load_f32(dy, dtype, r * cols + j);
            delta += term, size += fabs(term);
        }
        for (int64_t j = 0; j < cols; j++) {
            double truth = j < used ? exp((double)load_f32(x, dtype, r * cols + j)) / sum : 0;
            double stored = (double)load_f32(y, dtype, r * cols + j);
            double slope = j < used ? stored * ((double)load_f32(dy, dtype, r * cols + j) - delta) : 0;
            EXPECT_NEAR(load_f32(y, dtype, r * cols + j), truth, u * truth + 0x1p-25);
            EXPECT_NEAR(load_f32(dx, dtype, r * cols + j), slope,
                        u * fabs(slope) + 32 * 0x1p-24 * stored * (size + 4) + 0x1p-25);
        }
    }
    EXPECT(guard_holds(y, n, dtype) && guard_holds(dx, n, dtype), "wrote beyond its end");
    forward.y = x, backward.dx = dy; /* in place */
    RUN_KERNEL(softmax_forward, table, team, &forward);
    RUN_KERNEL(softmax_backward, table, team, &backward);
    EXPECT(!memcmp(x, y, (size_t)n * dtype_bytes(dtype)), "%s: y in place of x differs", table->backend);
    EXPECT(!memcmp(dy, dx, (size_t)n * dtype_bytes(dtype)), "%s: dx in place of dy differs", table->backend);
    mem_free(x), mem_free(dy), mem_free(y), mem_free(dx);
}

TEST(softmax_agrees_with_plain_sums_and_works_in_place) {
    static const int64_t cols[] = {1, 5, 31, 64, 100};
    const struct kernels *backends[8];
    struct threads *team = threads_open(2);
    int count = list_backends(backends);
    for (int n = 0; n < count; n++) {
        for (int i = 0; i < 5 * 3 * 2; i++) {
            check_softmax(backends[n], team, 2 * cols[i % 5], cols[i % 5], i / 15, (enum dtype)(i / 5 % 3));
        }
    }
    threads_close(team);
}

/* Forward and backward of the chain, with dropout on the probabilities, in float32: against the oracle of
 * fused attention, so both compute the same function of the same masks. */
static void check_chain(const struct attention_case *c, const struct kernels *table) {
    const struct attention_shape *z = &c->z;
    struct inputs in_ = inputs_open(*c, DTYPE_F32);
    struct oracle x = oracle_open(*c);
    float scale = (float)x.scale, *probs = in_.square, *dropped = new_output(in_.ns, DTYPE_F32);
    float *dprobs = new_output(in_.ns, DTYPE_F32), *o = new_output(in_.nq, DTYPE_F32);
    float *dq = new_output(in_.nq, DTYPE_F32), *dk = new_output(in_.nkv, DTYPE_F32),
          *dv = new_output(in_.nkv, DTYPE_F32);
    widen(x.q, in_.q, DTYPE_F32, in_.nq), widen(x.k, in_.k, DTYPE_F32, in_.nkv);
    widen(x.v, in_.v, DTYPE_F32, in_.nkv), widen(x.d_o, in_.d_o, DTYPE_F32, in_.nq);
    oracle_run(&x, true);
    struct attention_scores_forward_args scores = {
        .scores = probs, .q = in_.q, .k = in_.k, .shape = *z, .scale = scale, .causal = c->causal};
    struct softmax_forward_args softmax = {
        .y = probs, .x = probs, .rows = z->b * z->a * z->s, .cols = z->s, .causal = c->causal};
    struct attention_context_forward_args context = {
        .o = o, .probs = dropped, .v = in_.v, .shape = *z, .causal = c->causal};
    struct attention_context_backward_args context_b = {.dprobs = dprobs,
                                                        .dv = dv,
                                                        .d_o = in_.d_o,
                                                        .probs = dropped,
                                                        .v = in_.v,
                                                        .shape = *z,
                                                        .causal = c->causal};
    struct softmax_backward_args softmax_b = {
        .dx = dprobs, .dy = dprobs, .y = probs, .rows = softmax.rows, .cols = z->s, .causal = c->causal};
    struct attention_scores_backward_args scores_b = {.dq = dq,
                                                      .dk = dk,
                                                      .dscores = dprobs,
                                                      .q = in_.q,
                                                      .k = in_.k,
                                                      .shape = *z,
                                                      .scale = scale,
                                                      .causal = c->causal};
    uint32_t threshold = rng_drop_threshold(c->dropout);
    RUN_KERNEL(attention_scores_forward, table, NULL, &scores);
    RUN_KERNEL(softmax_forward, table, NULL, &softmax);
    for (int64_t i = 0; i < in_.ns; i++) {
        bool kept = rng_philox(test_key, (uint64_t)i / 4).w[i % 4] >= threshold;
        dropped[i] = kept ? probs[i] / (1 - c->dropout) : 0;
    }
    RUN_KERNEL(attention_context_forward, table, NULL, &context);
    RUN_KERNEL(attention_context_backward, table, NULL, &context_b);
    for (int64_t i = 0; i < in_.ns; i++) {
        bool kept = rng_philox(test_key, (uint64_t)i / 4).w[i % 4] >= threshold;
        dprobs[i] = kept ? dprobs[i] / (1 - c->dropout) : 0;
    }
    RUN_KERNEL(softmax_backward, table, NULL, &softmax_b);
    RUN_KERNEL(attention_scores_backward, table, NULL, &scores_b);
    double u = (64 + 2 * sqrt((double)z->d) * x.exponent) * 0x1p-24;
    EXPECT(worst_error(o, DTYPE_F32, x.o, u, x.o_size, 0, x.o_size, in_.nq) <= 1, "%s o", table->backend);
    EXPECT(worst_error(dq, DTYPE_F32, x.dq, u, x.dq_size, u, x.dq_noise, in_.nq) <= 1, "%s dq",
           table->backend);
    EXPECT(worst_error(dk, DTYPE_F32, x.dk, u, x.dk_size, u, x.dk_noise, in_.nkv) <= 1, "%s dk",
           table->backend);
    EXPECT(worst_error(dv, DTYPE_F32, x.dv, u, x.dv_size, 0, x.dv_size, in_.nkv) <= 1, "%s dv",
           table->backend);
    void *const all[] = {dropped, dprobs, o, dq, dk, dv};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) mem_free(all[i]);
    oracle_close(&x);
    inputs_close(&in_);
}

TEST(the_chain_is_fused_attention_with_the_same_dropout_mask) {
    static const struct attention_case chains[] = {
        {{.s = 40, .b = 2, .a = 4, .g = 2, .d = 24}, true, 0.2f},
        {{.s = 66, .b = 1, .a = 2, .g = 2, .d = 64}, false, 0.1f},
    };
    const struct kernels *backends[8];
    int count = list_backends(backends);
    for (int n = 0; n < count; n++) {
        check_chain(&chains[0], backends[n]);
        check_chain(&chains[1], backends[n]);
    }
}

TEST(bits_depend_on_neither_threads_nor_the_run) {
    static const struct attention_case c = {{.s = 150, .b = 2, .a = 4, .g = 2, .d = 64}, true, 0};
    const struct kernels *backends[8];
    int count = list_backends(backends);
    struct threads *teams[] = {NULL, threads_open(2), threads_open(3)};
    for (int n = 3; n < count * 3; n++) {
        struct inputs x = inputs_open(c, (enum dtype)(n % 3));
        size_t nq = (size_t)x.nq * dtype_bytes(x.dtype), nkv = (size_t)x.nkv * dtype_bytes(x.dtype);
        char *out[3];
        for (int t = 0; t == 1 || t < MOST_TEAM; t++) {
            out[t] = new_output(2 * (x.nq + x.nkv), x.dtype);
            struct attention_scores_backward_args scores = {.dq = out[t],
                                                            .dk = out[t] + nq,
                                                            .dscores = x.square,
                                                            .q = x.q,
                                                            .k = x.k,
                                                            .shape = c.z,
                                                            .scale = 0.1f,
                                                            .causal = true,
                                                            .dtype = x.dtype};
            struct attention_context_forward_args context = {.o = out[t] + nq + nkv,
                                                             .probs = x.square,
                                                             .v = x.v,
                                                             .shape = c.z,
                                                             .causal = true,
                                                             .dtype = x.dtype};
            RUN_KERNEL(attention_scores_backward, backends[n / 3], teams[t], &scores);
            RUN_KERNEL(attention_context_forward, backends[n / 3], teams[t], &context);
            EXPECT(!memcmp(out[0], out[t], 2 * (nq + nkv)), "%s %s", backends[n / 3]->backend,
                   dtype_name(x.dtype));
        }
        for (int t = 0; t == 1 || t < MOST_TEAM; t++) mem_free(out[t]);
        inputs_close(&x);
    }
    threads_close(teams[1]);
    threads_close(teams[2]);
}

RUN_TESTS(CASE(every_product_agrees_with_plain_sums), CASE(softmax_agrees_with_plain_sums_and_works_in_place),
          CASE(the_chain_is_fused_attention_with_the_same_dropout_mask),
          CASE(bits_depend_on_neither_threads_nor_the_run))
