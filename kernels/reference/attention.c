/* Fused attention, the judge: the formulas of kernels/args/attention.h written out, double inside. Every
 * score is computed again wherever it is needed, so nothing is stored but the sums of one row. */
#include "kernels/reference/reference.h"

enum { CHUNK = 256 }; /* head dims summed at a time */

/* What forward and backward share. */
struct problem {
    struct attention_shape shape;
    struct attention_window w;
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

static int64_t value_dim(const struct problem *p) {
    return attention_value_dim(&p->shape);
}

/* Row i of query head `head`, and row j of key/value group `group`: [b, a|g, rows, d]; of v [b, g, rows, dv].
 */
static int64_t q_row(const struct problem *p, int64_t batch, int64_t head, int64_t i) {
    return ((batch * p->shape.a + head) * p->w.q_rows + i) * p->shape.d;
}

static int64_t kv_row(const struct problem *p, int64_t batch, int64_t group, int64_t j) {
    return ((batch * p->shape.g + group) * p->w.k_rows + j) * p->shape.d;
}

static int64_t v_row(const struct problem *p, int64_t batch, int64_t group, int64_t j) {
    return ((batch * p->shape.g + group) * p->w.k_rows + j) * value_dim(p);
}

/* Row of o and dO: [s, b, a * dv]. */
static int64_t o_row(const struct problem *p, int64_t batch, int64_t head, int64_t i) {
    return ((i * p->shape.b + batch) * p->shape.a + head) * value_dim(p);
}

static double dot(const struct problem *p, const void *x, int64_t x_row, const void *y, int64_t y_row,
                  int64_t size) {
    double sum = 0;
    for (int64_t n = 0; n < size; n++) sum += at(x, p->dtype, x_row + n) * at(y, p->dtype, y_row + n);
    return sum;
}

static double score(const struct problem *p, int64_t batch, int64_t head, int64_t i, int64_t j) {
    int64_t group = head / (p->shape.a / p->shape.g);
    return p->scale * dot(p, p->q, q_row(p, batch, head, i), p->k, kv_row(p, batch, group, j), p->shape.d);
}

/* 0, or 1 / (1 - dropout). */
static double mask(const struct problem *p, int64_t batch, int64_t head, int64_t i, int64_t j) {
    if (!p->threshold) return 1.0;
    int64_t row = (batch * p->w.heads + p->w.first_head + head) * p->w.seq + p->w.first_query + i;
    uint64_t element = (uint64_t)(row * p->w.seq + p->w.first_key + j);
    struct rng_words words = rng_philox(p->key, element / 4);
    return words.w[element % 4] >= p->threshold ? p->keep_scale : 0.0;
}

static int64_t num_keys(const struct problem *p, int64_t i) {
    return p->causal ? attention_window_sees(&p->w, i) : p->w.keys;
}

static double row_lse(const struct problem *p, int64_t batch, int64_t head, int64_t i) {
    double max = -INFINITY, sum = 0;
    if (!num_keys(p, i)) return -INFINITY;
    for (int64_t j = 0; j < num_keys(p, i); j++) max = fmax(max, score(p, batch, head, i, j));
    for (int64_t j = 0; j < num_keys(p, i); j++) sum += exp(score(p, batch, head, i, j) - max);
    return max + log(sum);
}

/* NaN and infinity in a row must reach o and lse: fmax drops NaN, but the sum keeps it. */
static void forward_row(const struct problem *p, const struct attention_forward_args *args, int64_t batch,
                        int64_t head, int64_t i) {
    int64_t group = head / (p->shape.a / p->shape.g);
    double lse = row_lse(p, batch, head, i);
    if (args->lse) args->lse[(batch * p->shape.a + head) * p->w.q_rows + i] = (float)lse;
    for (int64_t first = 0; first < value_dim(p); first += CHUNK) {
        int64_t count = value_dim(p) - first < CHUNK ? value_dim(p) - first : CHUNK;
        double sum[CHUNK] = {0};
        for (int64_t j = 0; j < num_keys(p, i); j++) {
            double prob = exp(score(p, batch, head, i, j) - lse) * mask(p, batch, head, i, j);
            int64_t row = v_row(p, batch, group, j) + first;
            for (int64_t n = 0; n < count; n++) sum[n] += prob * at(p->v, p->dtype, row + n);
        }
        int64_t row = o_row(p, batch, head, i) + first;
        for (int64_t n = 0; n < count; n++)
            store_f32(args->o, args->o_is_f32 ? DTYPE_F32 : p->dtype, row + n, (float)sum[n]);
    }
}

static struct problem make_problem(struct attention_shape shape, struct attention_window window, float scale,
                                   float dropout) {
    return (struct problem){.shape = shape,
                            .w = attention_window_of(&shape, window),
                            .scale = (double)scale,
                            .keep_scale = 1.0 / (1.0 - (double)dropout),
                            .threshold = dropout > 0 ? rng_drop_threshold(dropout) : 0};
}

void reference_attention_forward(const struct stream *stream, const struct attention_forward_args *args) {
    (void)stream;
    struct problem p = make_problem(args->shape, args->window, args->scale, args->dropout);
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
    double lse = (double)args->lse[(batch * p->shape.a + head) * p->w.q_rows + i];
    double prob = exp(score(p, batch, head, i, j) - lse), keep = mask(p, batch, head, i, j);
    double delta = dot(p, args->d_o, row, args->o, row, value_dim(p));
    double dprob = keep * dot(p, args->d_o, row, p->v, v_row(p, batch, group, j), value_dim(p));
    return (struct pair){prob * keep, prob * (dprob - delta)};
}

/* grad[i] (+)= value. */
static void put(const struct attention_backward_args *args, void *grad, int64_t i, double value) {
    enum dtype dtype = args->grads_are_f32 ? DTYPE_F32 : args->dtype;
    store_f32(grad, dtype, i, (float)(value + (args->accumulate ? at(grad, dtype, i) : 0)));
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
        for (int64_t n = 0; n < count; n++) put(args, args->dq, row + n, dq[n]);
    }
}

/* dk, or with `values` dv, of one key. */
static void backward_key(const struct problem *p, const struct attention_backward_args *args, int64_t batch,
                         int64_t group, int64_t j, bool values) {
    int64_t heads = p->shape.a / p->shape.g, size = values ? value_dim(p) : p->shape.d;
    for (int64_t first = 0; first < size; first += CHUNK) {
        int64_t count = size - first < CHUNK ? size - first : CHUNK;
        double sum[CHUNK] = {0};
        for (int64_t head = group * heads; head < (group + 1) * heads; head++) {
            for (int64_t i = 0; i < p->shape.s; i++) {
                if (j >= num_keys(p, i)) continue;
                struct pair pair = pair_at(p, args, batch, head, i, j);
                double factor = values ? pair.dropped : p->scale * pair.dscore;
                int64_t row = (values ? o_row(p, batch, head, i) : q_row(p, batch, head, i)) + first;
                for (int64_t n = 0; n < count; n++)
                    sum[n] += factor * at(values ? args->d_o : p->q, p->dtype, row + n);
            }
        }
        int64_t row = (values ? v_row(p, batch, group, j) : kv_row(p, batch, group, j)) + first;
        for (int64_t n = 0; n < count; n++) put(args, values ? args->dv : args->dk, row + n, sum[n]);
    }
}

void reference_attention_backward(const struct stream *stream, const struct attention_backward_args *args) {
    (void)stream;
    struct problem p = make_problem(args->shape, args->window, args->scale, args->dropout);
    p.q = args->q, p.k = args->k, p.v = args->v, p.key = args->key;
    p.dtype = args->dtype, p.causal = args->causal;
    for (int64_t batch = 0; batch < p.shape.b; batch++) {
        for (int64_t head = 0; head < p.shape.a; head++) {
            for (int64_t i = 0; i < p.shape.s; i++) backward_query(&p, args, batch, head, i);
        }
        for (int64_t group = 0; group < p.shape.g; group++) {
            for (int64_t j = 0; j < p.w.keys; j++) {
                backward_key(&p, args, batch, group, j, false);
                backward_key(&p, args, batch, group, j, true);
            }
        }
    }
}

static double merged_lse(double a, double b) {
    double max = a > b ? a : b;
    if (max == -INFINITY) return isnan(a) ? a : b; /* no keys on either side, or NaN */
    return max + log(exp(a - max) + exp(b - max));
}

void reference_attention_merge(const struct stream *stream, const struct attention_merge_args *args) {
    (void)stream;
    const struct attention_merge_args a = *args;
    const struct attention_shape z = a.shape;
    int64_t lse_rows = a.lse_rows ? a.lse_rows : z.s, part_rows = a.part_rows ? a.part_rows : z.s;
    for (int64_t row = 0; row < z.s * z.b * z.a; row++) {
        int64_t head = row % z.a, batch = row / z.a % z.b, i = row / (z.a * z.b);
        float *lse = &a.lse[(batch * z.a + head) * lse_rows + i], *o = a.o + row * attention_value_dim(&z);
        double part = (double)a.lse_part[(batch * z.a + head) * part_rows + i];
        int64_t dv = attention_value_dim(&z);
        double old = a.first ? (double)-INFINITY : (double)*lse, both = merged_lse(old, part);
        for (int64_t n = 0; n < dv; n++) {
            double sum = 0;
            if (old != -INFINITY) sum += (double)o[n] * exp(old - both);
            if (part != -INFINITY) sum += (double)a.o_part[row * dv + n] * exp(part - both);
            o[n] = (float)sum;
        }
        *lse = (float)both;
    }
}
