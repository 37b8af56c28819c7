/* Fused attention, the judge: the formulas of kernels/args/attention.h written out, double inside. Every
 * score is computed again wherever it is needed, so nothing is stored but the sums of one row. */
#include "kernels/reference/reference.h"

enum { CHUNK = 256 }; /* head dims summed at a time */

/* What forward and backward share. */
struct problem {
    struct attention_shape shape;
    const void *q, *k, *v;
    double scale, keep_scale; /* 1 / (1 - dropout) */
    uint32_t threshold;       /* 0: no dropout */
    struct rng_key key;
    enum dtype dtype;
    bool causal;
};

static double at(const void *p, enum dtype dtype, int64_t i) {
    return (double)load_f32(p, dtype, i);
}

/* Row of query head `head`, or of key/value group `group`, at position i: [b, a|g, s, d]. */
static int64_t q_row(const struct problem *p, int64_t batch, int64_t head, int64_t i) {
    return ((batch * p->shape.a + head) * p->shape.s + i) * p->shape.d;
}

static int64_t kv_row(const struct problem *p, int64_t batch, int64_t group, int64_t j) {
    return ((batch * p->shape.g + group) * p->shape.s + j) * p->shape.d;
}

/* Row of o and dO: [s, b, a * d]. */
static int64_t o_row(const struct problem *p, int64_t batch, int64_t head, int64_t i) {
    return (i * p->shape.b + batch) * p->shape.a * p->shape.d + head * p->shape.d;
}

static double dot(const struct problem *p, const void *x, int64_t x_row, const void *y, int64_t y_row) {
    double sum = 0;
    for (int64_t n = 0; n < p->shape.d; n++) sum += at(x, p->dtype, x_row + n) * at(y, p->dtype, y_row + n);
    return sum;
}

static double score(const struct problem *p, int64_t batch, int64_t head, int64_t i, int64_t j) {
    int64_t group = head / (p->shape.a / p->shape.g);
    return p->scale * dot(p, p->q, q_row(p, batch, head, i), p->k, kv_row(p, batch, group, j));
}

/* 0, or 1 / (1 - dropout). */
static double mask(const struct problem *p, int64_t batch, int64_t head, int64_t i, int64_t j) {
    if (!p->threshold) return 1.0;
    uint64_t element = (uint64_t)(((batch * p->shape.a + head) * p->shape.s + i) * p->shape.s + j);
    struct rng_words words = rng_philox(p->key, element / 4);
    return words.w[element % 4] >= p->threshold ? p->keep_scale : 0.0;
}

static int64_t num_keys(const struct problem *p, int64_t i) {
    return p->causal ? i + 1 : p->shape.s;
}

static double row_lse(const struct problem *p, int64_t batch, int64_t head, int64_t i) {
    double max = -INFINITY, sum = 0;
    for (int64_t j = 0; j < num_keys(p, i); j++) max = fmax(max, score(p, batch, head, i, j));
    for (int64_t j = 0; j < num_keys(p, i); j++) sum += exp(score(p, batch, head, i, j) - max);
    return max + log(sum);
}

/* NaN and infinity in a row must reach o and lse: fmax drops NaN, but the sum keeps it. */
static void forward_row(const struct problem *p, const struct attention_forward_args *args, int64_t batch,
                        int64_t head, int64_t i) {
    int64_t group = head / (p->shape.a / p->shape.g);
    double lse = row_lse(p, batch, head, i);
    if (args->lse) args->lse[(batch * p->shape.a + head) * p->shape.s + i] = (float)lse;
    for (int64_t first = 0; first < p->shape.d; first += CHUNK) {
        int64_t count = p->shape.d - first < CHUNK ? p->shape.d - first : CHUNK;
        double sum[CHUNK] = {0};
        for (int64_t j = 0; j < num_keys(p, i); j++) {
            double prob = exp(score(p, batch, head, i, j) - lse) * mask(p, batch, head, i, j);
            int64_t row = kv_row(p, batch, group, j) + first;
            for (int64_t n = 0; n < count; n++) sum[n] += prob * at(p->v, p->dtype, row + n);
        }
        int64_t row = o_row(p, batch, head, i) + first;
        for (int64_t n = 0; n < count; n++) store_f32(args->o, p->dtype, row + n, (float)sum[n]);
    }
}

static struct problem make_problem(struct attention_shape shape, float scale, float dropout) {
    return (struct problem){.shape = shape,
                            .scale = (double)scale,
                            .keep_scale = 1.0 / (1.0 - (double)dropout),
                            .threshold = dropout > 0 ? rng_drop_threshold(dropout) : 0};
}

void reference_attention_forward(const struct stream *stream, const struct attention_forward_args *args) {
    (void)stream;
    struct problem p = make_problem(args->shape, args->scale, args->dropout);
    p.q = args->q, p.k = args->k, p.v = args->v, p.key = args->key;
    p.dtype = args->dtype, p.causal = args->causal;
    for (int64_t batch = 0; batch < p.shape.b; batch++) {
        for (int64_t head = 0; head < p.shape.a; head++) {
            for (int64_t i = 0; i < p.shape.s; i++) forward_row(&p, args, batch, head, i);
        }
    }
}

/* Of one score: the probability after dropout, and the gradient of the scaled score. */
struct pair {
    double dropped, dscore;
};

static struct pair pair_at(const struct problem *p, const struct attention_backward_args *args, int64_t batch,
                           int64_t head, int64_t i, int64_t j) {
    int64_t group = head / (p->shape.a / p->shape.g), row = o_row(p, batch, head, i);
    double lse = (double)args->lse[(batch * p->shape.a + head) * p->shape.s + i];
    double prob = exp(score(p, batch, head, i, j) - lse), keep = mask(p, batch, head, i, j);
    double delta = dot(p, args->d_o, row, args->o, row);
    double dprob = keep * dot(p, args->d_o, row, p->v, kv_row(p, batch, group, j));
    return (struct pair){prob * keep, prob * (dprob - delta)};
}

static void backward_query(const struct problem *p, const struct attention_backward_args *args, int64_t batch,
                           int64_t head, int64_t i) {
    int64_t group = head / (p->shape.a / p->shape.g);
    for (int64_t first = 0; first < p->shape.d; first += CHUNK) {
        int64_t count = p->shape.d - first < CHUNK ? p->shape.d - first : CHUNK;
        double dq[CHUNK] = {0};
        for (int64_t j = 0; j < num_keys(p, i); j++) {
            double dscore = pair_at(p, args, batch, head, i, j).dscore;
            int64_t row = kv_row(p, batch, group, j) + first;
            for (int64_t n = 0; n < count; n++) dq[n] += p->scale * dscore * at(p->k, p->dtype, row + n);
        }
        int64_t row = q_row(p, batch, head, i) + first;
        for (int64_t n = 0; n < count; n++) store_f32(args->dq, p->dtype, row + n, (float)dq[n]);
    }
}

static void backward_key(const struct problem *p, const struct attention_backward_args *args, int64_t batch,
                         int64_t group, int64_t j) {
    int64_t heads = p->shape.a / p->shape.g;
    for (int64_t first = 0; first < p->shape.d; first += CHUNK) {
        int64_t count = p->shape.d - first < CHUNK ? p->shape.d - first : CHUNK;
        double dk[CHUNK] = {0}, dv[CHUNK] = {0};
        for (int64_t head = group * heads; head < (group + 1) * heads; head++) {
            for (int64_t i = p->causal ? j : 0; i < p->shape.s; i++) {
                struct pair pair = pair_at(p, args, batch, head, i, j);
                int64_t q = q_row(p, batch, head, i) + first, o = o_row(p, batch, head, i) + first;
                for (int64_t n = 0; n < count; n++) {
                    dk[n] += p->scale * pair.dscore * at(p->q, p->dtype, q + n);
                    dv[n] += pair.dropped * at(args->d_o, p->dtype, o + n);
                }
            }
        }
        int64_t row = kv_row(p, batch, group, j) + first;
        for (int64_t n = 0; n < count; n++) {
            store_f32(args->dk, p->dtype, row + n, (float)dk[n]);
            store_f32(args->dv, p->dtype, row + n, (float)dv[n]);
        }
    }
}

void reference_attention_backward(const struct stream *stream, const struct attention_backward_args *args) {
    (void)stream;
    struct problem p = make_problem(args->shape, args->scale, args->dropout);
    p.q = args->q, p.k = args->k, p.v = args->v, p.key = args->key;
    p.dtype = args->dtype, p.causal = args->causal;
    for (int64_t batch = 0; batch < p.shape.b; batch++) {
        for (int64_t head = 0; head < p.shape.a; head++) {
            for (int64_t i = 0; i < p.shape.s; i++) backward_query(&p, args, batch, head, i);
        }
        for (int64_t group = 0; group < p.shape.g; group++) {
            for (int64_t j = 0; j < p.shape.s; j++) backward_key(&p, args, batch, group, j);
        }
    }
}
