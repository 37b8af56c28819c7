/* Attention over a part of longer sequences and more heads, and the folding of parts into a whole. The oracle
 * writes the whole out in double and cuts the part from it. */
#include "tests/kernels/attention_oracle.h"

struct window_case {
    struct attention_shape z;
    struct attention_window w;
    bool causal;
    float dropout;
};

/* q_rows and k_rows beyond s and keys: the rows used start one row into the buffer. */
static const struct window_case parts[] = {
    /* on the diagonal: the second half of a longer buffer */
    {{32, 2, 2, 1, 32, 0}, {32, 32, 32, 65, 64, 2, 6, 128}, true, 0.1f},
    /* wholly visible and not causal at all: no score is masked */
    {{40, 1, 2, 2, 40, 0}, {60, 3, 50, 40, 50, 0, 2, 100}, true, 0.1f},
    {{33, 2, 3, 1, 16, 0}, {0, 70, 21, 0, 0, 1, 4, 91}, false, 0.2f},
    /* wholly hidden: no query sees a key */
    {{35, 1, 2, 1, 32, 0}, {0, 64, 64, 40, 70, 0, 0, 128}, true, 0.1f},
    /* the diagonal enters at odd places */
    {{70, 1, 2, 1, 64, 0}, {45, 10, 90, 0, 91, 3, 8, 131}, true, 0.1f},
    {{70, 2, 2, 2, 24, 0}, {10, 45, 61, 71, 62, 0, 2, 113}, true, 0.3f},
    {{96, 1, 1, 1, 32, 0}, {3, 36, 96, 0, 0, 0, 0, 132}, true, 0},
    {{64, 1, 1, 1, 64, 0}, {128, 0, 160, 0, 0, 0, 0, 192}, true, 0.1f},
    {{1, 1, 4, 2, 16, 0}, {77, 0, 78, 0, 0, 4, 8, 79}, true, 0.1f},
    {{5, 1, 1, 1, 300, 0}, {8, 6, 7, 9, 9, 0, 0, 13}, true, 0},
    /* several parts of queries and blocks of keys */
    {{600, 1, 2, 1, 32, 0}, {300, 0, 450, 0, 0, 0, 0, 900}, true, 0.1f},
    {{300, 1, 1, 1, 64, 0}, {0, 130, 420, 301, 421, 5, 7, 601}, true, 0.1f},
    /* nothing set: the whole */
    {{67, 2, 4, 2, 32, 0}, {0}, true, 0.1f},
};
enum { NUM_PARTS = (int)(sizeof(parts) / sizeof(parts[0])) };

static bool counts(const struct window_case *c, int64_t i, int64_t j) {
    return !c->causal || j <= i;
}

/* One part, and the truth about it. i counts the part's queries, j the whole's positions. */
struct part {
    const struct window_case *c;
    struct attention_window w; /* filled in */
    enum dtype dtype;
    void *q, *k, *v, *d_o, *o_whole; /* inputs in dtype; k and v hold the part's keys only */
    float *lse_whole;
    double *o, *lse, *dq, *dk, *dv; /* truth, dense: [b, a, s, d], [b, a, s], [b, g, keys, d] */
    double *o_size, *dq_size, *dk_size, *dv_size, exponent;
};

static int64_t q_count(const struct part *x) {
    return x->c->z.b * x->c->z.a * x->c->z.s * x->c->z.d;
}

static int64_t k_count(const struct part *x) {
    return x->c->z.b * x->c->z.g * x->w.keys * x->c->z.d;
}

/* Where row `row` of `line` lies in a buffer of `rows` rows; the part starts at row 1 if there is room. */
static int64_t buffer_row(int64_t line, int64_t row, int64_t rows, int64_t used) {
    return line * rows + (rows > used) + row;
}

static void *spread(const double *dense, int64_t lines, int64_t rows, int64_t used, int64_t d, enum dtype t) {
    void *p = new_output(lines * rows * d, t);
    for (int64_t line = 0; line < lines; line++)
        for (int64_t n = 0; n < used * d; n++)
            store_f32(p, t, buffer_row(line, 0, rows, used) * d + n, (float)dense[line * used * d + n]);
    return p;
}

static double *round_all(int64_t n, enum dtype dtype, uint64_t seed) {
    double *p = new_doubles(n);
    void *narrow = new_random(n, dtype, seed, 1);
    widen(p, narrow, dtype, n);
    mem_free(narrow);
    return p;
}

/* Of one query: the scores of all positions of the whole sequence that it sees, and their masks. */
struct line {
    double score[1024], mask[1024], lse, part_lse;
};

/* The keys of the whole sequence [b, g, seq, d] and this line's query row give the line. */
static void fill_line(struct part *x, struct line *l, const double *q, const double *k, int64_t batch,
                      int64_t head, int64_t i) {
    const struct window_case *c = x->c;
    int64_t position = x->w.first_query + i, d = c->z.d, end = x->w.first_key + x->w.keys;
    double sum = 0, part = 0;
    for (int64_t j = 0; j < x->w.seq; j++) {
        double dot = 0, size = 0;
        for (int64_t n = 0; n < d; n++) dot += q[n] * k[j * d + n], size += fabs(q[n] * k[j * d + n]);
        l->score[j] = dot / sqrt((double)d), x->exponent = fmax(x->exponent, size / sqrt((double)d));
        int64_t row = (batch * x->w.heads + x->w.first_head + head) * x->w.seq + position;
        uint64_t e = (uint64_t)(row * x->w.seq + j);
        bool kept = rng_uniform(rng_philox(test_key, e / 4).w[e % 4]) >= c->dropout;
        l->mask[j] = c->dropout > 0 ? (kept ? 1 / (1 - (double)c->dropout) : 0) : 1;
        if (!counts(c, position, j)) continue;
        sum += exp(l->score[j]);
        if (j >= x->w.first_key && j < end) part += exp(l->score[j]);
    }
    l->lse = log(sum), l->part_lse = log(part);
}

/* o of the part, o of the whole, and the gradients that the part's pairs give with the whole's lse. */
static void solve_line(struct part *x, const struct line *l, const double *const in[4], double *whole_o,
                       int64_t kv, int64_t at) {
    int64_t d = x->c->z.d, first = x->w.first_key, position = x->w.first_query + at / d % x->c->z.s;
    const double *q = in[0] + at, *d_o = in[3] + at;
    double delta = 0, delta_size = 0;
    for (int64_t j = 0; j < x->w.seq; j++) {
        const double *v = in[2] + (kv * x->w.seq + j) * d;
        for (int64_t n = 0; n < d && counts(x->c, position, j); n++)
            whole_o[n] += exp(l->score[j] - l->lse) * l->mask[j] * v[n];
    }
    for (int64_t n = 0; n < d; n++) delta += d_o[n] * whole_o[n], delta_size += fabs(d_o[n] * whole_o[n]);
    for (int64_t j = first; j < first + x->w.keys; j++) {
        const double *k = in[1] + (kv * x->w.seq + j) * d, *v = in[2] + (kv * x->w.seq + j) * d;
        int64_t row = (kv * x->w.keys + j - first) * d;
        double dp = 0, dp_size = 0, p = exp(l->score[j] - l->lse), part = exp(l->score[j] - l->part_lse);
        if (!counts(x->c, position, j)) continue;
        for (int64_t n = 0; n < d; n++) {
            dp += l->mask[j] * d_o[n] * v[n], dp_size += l->mask[j] * fabs(d_o[n] * v[n]);
            x->o[at + n] += part * l->mask[j] * v[n], x->o_size[at + n] += part * l->mask[j] * fabs(v[n]);
        }
        double ds = p * (dp - delta) / sqrt((double)d), noise = p * (dp_size + delta_size) / sqrt((double)d);
        for (int64_t n = 0; n < d; n++) {
            x->dq[at + n] += ds * k[n], x->dq_size[at + n] += (fabs(ds) + noise) * fabs(k[n]);
            x->dk[row + n] += ds * q[n], x->dk_size[row + n] += (fabs(ds) + noise) * fabs(q[n]);
            x->dv[row + n] += p * l->mask[j] * d_o[n];
            x->dv_size[row + n] += p * l->mask[j] * fabs(d_o[n]);
        }
    }
}

/* [b, a, s, d] to [s, b, a * d] in dtype. */
static void *sequence_first(const struct attention_shape *z, const double *dense, enum dtype dtype) {
    void *p = new_output(q_size(z), dtype);
    for (int64_t line = 0; line < z->b * z->a; line++)
        for (int64_t i = 0; i < z->s; i++)
            for (int64_t n = 0; n < z->d; n++)
                store_f32(p, dtype, o_at(z, line / z->a, line % z->a, i) + n,
                          (float)dense[(line * z->s + i) * z->d + n]);
    return p;
}

static void part_open(struct part *x, const struct window_case *c, enum dtype dtype) {
    *x = (struct part){.c = c, .w = attention_window_of(&c->z, c->w), .dtype = dtype};
    const struct attention_shape *z = &c->z;
    int64_t nq = q_count(x), nk = k_count(x), lines = z->b * z->a, all = z->b * z->g * x->w.seq * z->d;
    double *const in[4] = {round_all(nq, dtype, 1), round_all(all, dtype, 2), round_all(all, dtype, 3),
                           round_all(nq, dtype, 4)};
    double *whole_o = new_doubles(nq), *whole_lse = new_doubles(lines * z->s), *cut = new_doubles(nk);
    double **const by_q[] = {&x->o, &x->dq, &x->o_size, &x->dq_size};
    double **const by_k[] = {&x->dk, &x->dv, &x->dk_size, &x->dv_size};
    for (int i = 0; i < 4; i++) *by_q[i] = new_doubles(nq), *by_k[i] = new_doubles(nk);
    x->lse = new_doubles(lines * z->s);
    struct line *l = mem_alloc(sizeof(*l), "oracle");
    for (int64_t row = 0; row < lines * z->s; row++) {
        int64_t head = row / z->s % z->a, batch = row / z->s / z->a, kv = batch * z->g + head / (z->a / z->g);
        fill_line(x, l, in[0] + row * z->d, in[1] + kv * x->w.seq * z->d, batch, head, row % z->s);
        x->lse[row] = l->part_lse, whole_lse[row] = l->lse;
        solve_line(x, l, (const double *const *)in, whole_o + row * z->d, kv, row * z->d);
    }
    x->q = spread(in[0], lines, x->w.q_rows, z->s, z->d, dtype);
    void **const kv[2] = {&x->k, &x->v};
    for (int i = 0; i < 2; i++) {
        for (int64_t n = 0; n < nk; n++) {
            int64_t line = n / (x->w.keys * z->d), rest = n % (x->w.keys * z->d);
            cut[n] = in[1 + i][(line * x->w.seq + x->w.first_key) * z->d + rest];
        }
        *kv[i] = spread(cut, z->b * z->g, x->w.k_rows, x->w.keys, z->d, dtype);
    }
    x->d_o = sequence_first(z, in[3], dtype), x->o_whole = sequence_first(z, whole_o, dtype);
    x->lse_whole = spread(whole_lse, lines, x->w.q_rows, z->s, 1, DTYPE_F32);
    for (int i = 0; i < 4; i++) mem_free(in[i]);
    mem_free(whole_o), mem_free(whole_lse), mem_free(cut), mem_free(l);
}

static void part_close(struct part *x) {
    void *const all[] = {x->q,  x->k,  x->v,  x->d_o,    x->o_whole, x->lse_whole, x->o,      x->lse,
                         x->dq, x->dk, x->dv, x->o_size, x->dq_size, x->dk_size,   x->dv_size};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) mem_free(all[i]);
}

static void *skip_row(void *p, enum dtype dtype, int64_t d, bool skip) {
    return dtype_at(p, dtype, skip ? d : 0);
}

struct results {
    void *o, *dq, *dk, *dv;
    float *lse;
    enum dtype dtype; /* of all but lse */
};

/* Outputs are NaN before, except the gradients when they accumulate: `start`. */
static struct results run_part(const struct part *x, const struct kernels *k, struct threads *team, bool f32,
                               bool accumulate, float start) {
    const struct attention_shape *z = &x->c->z;
    enum dtype t = f32 ? DTYPE_F32 : x->dtype;
    bool q_skip = x->w.q_rows > z->s, k_skip = x->w.k_rows > x->w.keys;
    int64_t nq = z->b * z->a * x->w.q_rows * z->d, nk = z->b * z->g * x->w.k_rows * z->d;
    struct results r = {.o = new_output(q_size(z), t), .dq = new_output(nq, t), .dtype = t};
    r.dk = new_output(nk, t), r.dv = new_output(nk, t), r.lse = new_output(nq / z->d, DTYPE_F32);
    for (int64_t n = 0; n < nq && accumulate; n++) store_f32(r.dq, t, n, start);
    for (int64_t n = 0; n < nk && accumulate; n++) store_f32(r.dk, t, n, start), store_f32(r.dv, t, n, start);
    const void *q = skip_row(x->q, x->dtype, z->d, q_skip), *key = skip_row(x->k, x->dtype, z->d, k_skip);
    const void *value = skip_row(x->v, x->dtype, z->d, k_skip);
    float scale = (float)(1 / sqrt((double)z->d));
    struct attention_forward_args f = {.o = r.o,
                                       .lse = r.lse + q_skip,
                                       .q = q,
                                       .k = key,
                                       .v = value,
                                       .shape = *z,
                                       .window = x->c->w,
                                       .scale = scale,
                                       .dropout = x->c->dropout,
                                       .key = test_key,
                                       .causal = x->c->causal,
                                       .o_is_f32 = f32,
                                       .dtype = x->dtype};
    struct attention_backward_args b = {.dq = skip_row(r.dq, t, z->d, q_skip),
                                        .dk = skip_row(r.dk, t, z->d, k_skip),
                                        .dv = skip_row(r.dv, t, z->d, k_skip),
                                        .d_o = x->d_o,
                                        .o = x->o_whole,
                                        .lse = x->lse_whole + q_skip,
                                        .q = q,
                                        .k = key,
                                        .v = value,
                                        .shape = *z,
                                        .window = x->c->w,
                                        .scale = scale,
                                        .dropout = x->c->dropout,
                                        .key = test_key,
                                        .causal = x->c->causal,
                                        .grads_are_f32 = f32,
                                        .accumulate = accumulate,
                                        .dtype = x->dtype};
    RUN_KERNEL(attention_forward, k, team, &f);
    RUN_KERNEL(attention_backward, k, team, &b);
    EXPECT(guard_holds(r.o, q_size(z), t) && guard_holds(r.dq, nq, t) && guard_holds(r.dk, nk, t) &&
               guard_holds(r.dv, nk, t) && guard_holds(r.lse, nq / z->d, DTYPE_F32),
           "%s wrote beyond an output", k->backend);
    return r;
}

static void results_close(struct results *r) {
    mem_free(r->o), mem_free(r->dq), mem_free(r->dk), mem_free(r->dv), mem_free(r->lse);
}

/* The bound of attention_test.c. Rows of the buffer that the window leaves out must still be NaN. */
static void expect_rows(const char *name, const struct part *x, const struct kernels *k, const void *result,
                        enum dtype t, int64_t lines, int64_t rows, int64_t used, const double *truth,
                        const double *size) {
    int64_t d = x->c->z.d;
    double u = unit_roundoff(x->dtype) * 1.01 + (32 + 2 * sqrt((double)d) * x->exponent) * 0x1p-24, worst = 0;
    int64_t touched = 0;
    for (int64_t line = 0; line < lines; line++) {
        int64_t first = buffer_row(line, 0, rows, used);
        for (int64_t row = line * rows; row < (line + 1) * rows; row++) {
            bool inside = row >= first && row < first + used;
            for (int64_t n = 0; n < d && !inside; n++) touched += !isnan(load_f32(result, t, row * d + n));
        }
        const void *at = dtype_at(result, t, first * d);
        int64_t skip = line * used * d;
        worst = fmax(worst, worst_error(at, t, truth + skip, u, size + skip, 0, size + skip, used * d));
    }
    EXPECT(!touched, "%s %s: %d elements outside the window were written", k->backend, name, (int)touched);
    EXPECT(worst <= 1, "%s %s of %s, case %d: %.3g times the bound", k->backend, name, dtype_name(x->dtype),
           (int)(x->c - parts), worst);
}

static void check_part(const struct part *x, const struct kernels *k, struct threads *team, bool f32) {
    const struct attention_shape *z = &x->c->z;
    struct results r = run_part(x, k, team, f32, false, 0);
    int64_t q_lines = z->b * z->a, k_lines = z->b * z->g;
    void *dense = new_output(q_size(z), r.dtype); /* o as [b, a, s, d] */
    for (int64_t line = 0; line < q_lines; line++)
        for (int64_t n = 0; n < z->s * z->d; n++) {
            int64_t from = o_at(z, line / z->a, line % z->a, n / z->d) + n % z->d;
            store_f32(dense, r.dtype, line * z->s * z->d + n, load_f32(r.o, r.dtype, from));
        }
    expect_rows("o", x, k, dense, r.dtype, q_lines, z->s, z->s, x->o, x->o_size);
    expect_rows("dq", x, k, r.dq, r.dtype, q_lines, x->w.q_rows, z->s, x->dq, x->dq_size);
    expect_rows("dk", x, k, r.dk, r.dtype, k_lines, x->w.k_rows, x->w.keys, x->dk, x->dk_size);
    expect_rows("dv", x, k, r.dv, r.dtype, k_lines, x->w.k_rows, x->w.keys, x->dv, x->dv_size);
    for (int64_t row = 0; row < q_lines * z->s; row++) {
        double got = (double)r.lse[buffer_row(row / z->s, row % z->s, x->w.q_rows, z->s)];
        if (isinf(x->lse[row])) {
            EXPECT(got == (double)-INFINITY, "%s: lse without keys is %g", k->backend, got);
        } else {
            EXPECT_NEAR(got, x->lse[row], (32 + 2 * sqrt((double)z->d) * x->exponent) * 0x1p-24);
        }
    }
    mem_free(dense);
    results_close(&r);
}

TEST(every_backend_computes_the_part_that_the_window_names) {
    const struct kernels *backends[8];
    struct threads *team = threads_open(2);
    int count = list_backends(backends);
    for (int i = 0; i < NUM_PARTS; i++) {
        for (int dtype = DTYPE_F32; dtype <= DTYPE_F16; dtype++) {
            struct part x;
            part_open(&x, &parts[i], (enum dtype)dtype);
            for (int n = 0; n < count; n++) {
                if (backends[n] == kernels_reference() && x.w.seq > 200) continue; /* it is slow */
                if (judged_elsewhere(backends[n])) continue;
                check_part(&x, backends[n], team, (i + dtype) % 2);
            }
            part_close(&x);
        }
    }
    threads_close(team);
}

/* dtype results are the float32 ones rounded; accumulating adds the same float32 to what was there. */
TEST(float32_results_and_accumulation_are_the_same_numbers) {
    const struct kernels *backends[8];
    int count = list_backends(backends);
    for (int n = 0; n < count * 2; n++) {
        const struct kernels *k = backends[n / 2];
        struct part x;
        part_open(&x, &parts[5], n % 2 ? DTYPE_F16 : DTYPE_BF16);
        struct results narrow = run_part(&x, k, NULL, false, false, 0);
        struct results wide = run_part(&x, k, NULL, true, false, 0);
        struct results sum = run_part(&x, k, NULL, true, true, 0.75f);
        int64_t rounded = 0, added = 0, nk = x.c->z.b * x.c->z.g * x.w.k_rows * x.c->z.d;
        for (int64_t i = 0; i < q_size(&x.c->z); i++) {
            uint16_t bits[2];
            store_f32(bits, x.dtype, 0, ((float *)wide.o)[i]);
            rounded += bits[0] != ((uint16_t *)narrow.o)[i];
        }
        for (int64_t i = 0; i < nk; i++) {
            const float *w = wide.dk, *v = wide.dv, *sw = sum.dk, *sv = sum.dv;
            uint16_t bits[2];
            if (isnan(w[i])) continue; /* outside the window */
            store_f32(bits, x.dtype, 0, w[i]);
            rounded += bits[0] != ((uint16_t *)narrow.dk)[i];
            added += fabsf(sw[i] - (w[i] + 0.75f)) > (fabsf(w[i]) + 0.75f) * 0x1p-23f;
            added += fabsf(sv[i] - (v[i] + 0.75f)) > (fabsf(v[i]) + 0.75f) * 0x1p-23f;
        }
        EXPECT(!rounded && !added, "%s: %d not rounded alike, %d not added", k->backend, (int)rounded,
               (int)added);
        results_close(&narrow), results_close(&wide), results_close(&sum);
        part_close(&x);
    }
}

/* ---- merge ---- */
enum { MERGE_ROWS = 3 }; /* rows of lse beyond s */

TEST(merging_parts_gives_the_whole) {
    static const struct attention_shape z = {.s = 37, .b = 2, .a = 3, .g = 3, .d = 12, .dv = 21};
    const struct kernels *backends[8];
    int count = list_backends(backends);
    int64_t n = o_size(&z), rows = n / z.dv, wide = z.s + MERGE_ROWS;
    struct threads *team = threads_open(2);
    for (int k = 0; k < count; k++) {
        float *o = new_output(n, DTYPE_F32), *lse = new_output(z.b * z.a * wide, DTYPE_F32);
        double *sum = new_doubles(n), *weight = new_doubles(rows);
        for (int part = 0; part < 4; part++) {
            float *p = new_random(n, DTYPE_F32, (uint64_t)part + 5, 1);
            float *l = new_random(z.b * z.a * (z.s + part), DTYPE_F32, (uint64_t)part + 9, 20);
            for (int64_t r = 0; r < rows; r++) { /* [s, b, a] */
                int64_t line = r % (z.a * z.b), i = r / (z.a * z.b);
                float *at = &l[line * (z.s + part) + i];
                if ((r + part) % 4 == 0 || r % 11 == 0)
                    *at = -INFINITY; /* no keys: o_part may hold anything */
                for (int64_t c = 0; c < z.dv; c++) {
                    if (isinf(*at)) p[r * z.dv + c] = part % 2 ? 0 : 1e30f;
                    sum[r * z.dv + c] += isinf(*at) ? 0 : exp((double)*at) * p[r * z.dv + c];
                }
                if (isinf(*at) && r % 11 == 0)
                    for (int64_t c = 0; c < z.dv; c++) p[r * z.dv + c] = 0;
                weight[r] += exp((double)*at);
            }
            struct attention_merge_args args = {.o = o,
                                                .lse = lse,
                                                .o_part = p,
                                                .lse_part = l,
                                                .shape = z,
                                                .lse_rows = wide,
                                                .part_rows = part ? z.s + part : 0,
                                                .first = part == 0};
            RUN_KERNEL(attention_merge, backends[k], team, &args);
            mem_free(p), mem_free(l);
        }
        EXPECT(guard_holds(o, n, DTYPE_F32) && guard_holds(lse, z.b * z.a * wide, DTYPE_F32), "guard");
        for (int64_t r = 0; r < rows; r++) {
            int64_t line = r % (z.a * z.b), i = r / (z.a * z.b);
            double got = lse[line * wide + i];
            /* four parts, each weight off by the rounding of an lse of size 80: 2^-17 each */
            for (int64_t c = 0; c < z.dv; c++)
                EXPECT_NEAR(o[r * z.dv + c], weight[r] > 0 ? sum[r * z.dv + c] / weight[r] : 0, 1e-4);
            EXPECT(weight[r] > 0 ? fabs(got - log(weight[r])) < 1e-4 : got == (double)-INFINITY,
                   "%s: lse %g, not %g", backends[k]->backend, got, log(weight[r]));
        }
        for (int64_t line = 0; line < z.b * z.a; line++)
            EXPECT(isnan(lse[line * wide + z.s]), "rows beyond s are not touched");
        mem_free(o), mem_free(lse), mem_free(sum), mem_free(weight);
    }
    threads_close(team);
}

TEST(a_part_without_keys_changes_no_bit_and_nan_stays) {
    static const struct attention_shape z = {.s = 2, .b = 1, .a = 1, .g = 1, .d = 3};
    const struct kernels *backends[8];
    int count = list_backends(backends);
    for (int k = 0; k < count; k++) {
        float o[6] = {0.1f, -0.2f, 0.3f, 7, 8, 9}, lse[2] = {1.25f, -INFINITY}, nothing[6] = {0};
        float none[2] = {-INFINITY, -INFINITY}, some[6] = {1.1f, 1.2f, 1.3f, 0.4f, 0.5f, 0.6f};
        float some_lse[2] = {NAN, 3.5f};
        struct stream stream = {.kernels = backends[k]};
        KERNEL_CALL(attention_merge, &stream, .o = o, .lse = lse, .o_part = nothing, .lse_part = none,
                    .shape = z);
        EXPECT(o[0] == 0.1f && o[1] == -0.2f && o[2] == 0.3f && lse[0] == 1.25f, "%s: kept row changed",
               backends[k]->backend);
        EXPECT(lse[1] == -INFINITY, "%s: still no keys", backends[k]->backend);
        KERNEL_CALL(attention_merge, &stream, .o = o, .lse = lse, .o_part = some, .lse_part = some_lse,
                    .shape = z);
        EXPECT(isnan(lse[0]) && isnan(o[0]), "%s: NaN vanished", backends[k]->backend);
        EXPECT(o[3] == 0.4f && o[4] == 0.5f && o[5] == 0.6f && lse[1] == 3.5f, "%s: row not taken over",
               backends[k]->backend);
    }
}

/* ---- cost and checks ---- */
TEST(the_cost_of_parts_adds_up_to_the_whole) {
    char some[4];
    struct attention_forward_args f = {.o = some,
                                       .q = some,
                                       .k = some,
                                       .v = some,
                                       .shape = {.s = 96, .b = 2, .a = 4, .g = 2, .d = 8},
                                       .causal = true};
    double whole = attention_forward_cost(&f).gemm_flops, sum = 0;
    static const int64_t cuts[] = {0, 7, 50, 96};
    for (int q = 0; q < 3; q++)
        for (int k = 0; k < 3; k++) {
            struct attention_forward_args part = f;
            part.shape.s = cuts[q + 1] - cuts[q];
            part.window = (struct attention_window){
                .first_query = cuts[q], .first_key = cuts[k], .keys = cuts[k + 1] - cuts[k], .seq = 96};
            sum += attention_forward_cost(&part).gemm_flops;
        }
    EXPECT_EQ(sum, whole);
}

TEST(malformed_windows_are_refused) {
    char some[4];
    struct attention_forward_args good = {.o = some,
                                          .q = some,
                                          .k = some,
                                          .v = some,
                                          .shape = {.s = 4, .b = 1, .a = 2, .g = 2, .d = 8},
                                          .window = {.first_query = 8, .keys = 3, .k_rows = 3, .seq = 12}};
    struct attention_forward_args bad = good;
    EXPECT(!attention_forward_check(&good), "good args");
    bad.window.first_query = 9;
    EXPECT_CONTAINS(attention_forward_check(&bad), "within seq");
    bad = good, bad.window.k_rows = 2;
    EXPECT_CONTAINS(attention_forward_check(&bad), "k_rows");
    bad = good, bad.window.heads = 3, bad.window.first_head = 2;
    EXPECT_CONTAINS(attention_forward_check(&bad), "heads");
    bad = good, bad.window.first_key = -1;
    EXPECT_CONTAINS(attention_forward_check(&bad), "negative");
    struct attention_backward_args b = {.dq = some,
                                        .dk = some,
                                        .dv = some,
                                        .d_o = some,
                                        .o = some,
                                        .lse = (float *)some,
                                        .q = some,
                                        .k = some,
                                        .v = some,
                                        .shape = good.shape,
                                        .accumulate = true,
                                        .dtype = DTYPE_BF16};
    EXPECT_CONTAINS(attention_backward_check(&b), "grads_are_f32");
    struct attention_merge_args m = {
        .o = (float *)some, .lse = (float *)some, .o_part = (float *)some, .lse_part = (float *)some};
    m.shape = good.shape, m.part_rows = 3;
    EXPECT_CONTAINS(attention_merge_check(&m), "part_rows");
}

RUN_TESTS(CASE(every_backend_computes_the_part_that_the_window_names),
          CASE(float32_results_and_accumulation_are_the_same_numbers), CASE(merging_parts_gives_the_whole),
          CASE(a_part_without_keys_changes_no_bit_and_nan_stays),
          CASE(the_cost_of_parts_adds_up_to_the_whole), CASE(malformed_windows_are_refused))
