/* Blockwise attention (FlashAttention-2, Dao 2023) in float32 arithmetic, for every dtype: the operands of a
 * task are unpacked into padded float32 rows, and 32 queries at a time walk over blocks of keys. A task is
 * one batch row and one key/value group with its query heads in order, so dk and dv sum over heads in order
 * and the bits do not depend on the threads. In the amx copy bf16 goes to attention_tiles.c. */
#include "kernels/cpu/attention_blocks.h"
#include "kernels/cpu/attention_dropout.h"
#include "kernels/cpu/attention_tiles.h"
#include <math.h>

enum {
    QUERIES = BLOCK_LANES, /* queries of a block: the lanes */
    KEYS = 128,            /* keys of a block */
    PART = 512             /* queries of a forward task */
};

/* What forward and backward know of the problem. */
struct problem {
    struct attention_shape z;
    struct attention_window w;
    int64_t dv;                           /* head size of the values */
    int64_t d_padded, v_padded, s_padded; /* s_padded: a multiple of QUERIES and of BLOCK_ROWS */
    int64_t k_padded;                     /* rows of keys, padded likewise */
    int64_t ahead;                        /* query row i stands at key row i + ahead */
    float scale;
    struct dropout drop;
    bool causal;
    enum dtype dtype;
};

static struct problem make_problem(struct attention_shape z, struct attention_window window, float scale,
                                   struct rng_key key, float dropout, bool causal, enum dtype dtype) {
    struct attention_window w = attention_window_of(&z, window);
    return (struct problem){.z = z,
                            .w = w,
                            .dv = attention_value_dim(&z),
                            .d_padded = round_up(z.d, BLOCK_LANES),
                            .v_padded = round_up(attention_value_dim(&z), BLOCK_LANES),
                            .s_padded = round_up(z.s, QUERIES),
                            .k_padded = round_up(w.keys, QUERIES),
                            .ahead = w.first_query - w.first_key,
                            .scale = scale,
                            .drop = dropout_make(key, dropout),
                            .causal = causal,
                            .dtype = dtype};
}

/* One block of scores: queries [query, query + QUERIES) against keys [key, key + rows). */
struct block {
    int64_t query, key, rows;
};

static bool needs_mask(const struct problem *p, const struct block *b) {
    return b->key + b->rows > p->w.keys || (p->causal && b->key + b->rows - 1 > b->query + p->ahead);
}

/* Lane i of row j is a score that counts. */
static bool lane_counts(const struct problem *p, const struct block *b, int64_t j, int i) {
    return b->key + j < p->w.keys && (!p->causal || b->key + j <= b->query + p->ahead + i);
}

/* Scores that do not count become -infinity. */
static void mask_block(const struct problem *p, const struct block *b, float *scores) {
    if (!needs_mask(p, b)) return;
    for (int64_t j = 0; j < b->rows; j++) {
        for (int i = 0; i < QUERIES; i++) {
            if (!lane_counts(p, b, j, i)) scores[j * QUERIES + i] = -INFINITY;
        }
    }
}

/* Queries are unpacked times the scale: their products with keys are then the scores, and those with the
 * gradients of the scores are dk. */
static void load_queries(const struct problem *p, float *q, const void *src, int64_t row, int64_t rows_padded,
                         int64_t rows) {
    const struct attention_shape *z = &p->z;
    pack_rows(q, rows_padded, p->d_padded, dtype_at(src, p->dtype, row * z->d), z->d, rows, z->d, p->dtype);
    for (int64_t n = 0; n < rows * p->d_padded; n++) q[n] *= p->scale;
}

/* Keys that the queries before `end` see. */
static int64_t keys_before(const struct problem *p, int64_t end) {
    return p->causal ? attention_window_sees(&p->w, end - 1) : p->w.keys;
}

static int64_t keys_of(const struct problem *p, int64_t query) {
    return keys_before(p, min_i64(p->z.s, query + QUERIES));
}

static uint64_t first_element(const struct problem *p, int64_t batch, int64_t head, const struct block *b) {
    const struct attention_window *w = &p->w;
    int64_t row = (batch * w->heads + w->first_head + head) * w->seq + w->first_query + b->query;
    return (uint64_t)(row * w->seq + w->first_key + b->key);
}

/* keep[rows, QUERIES]: 0 or 1 / (1 - p). */
static void drop_block(const struct problem *p, float *keep, uint64_t first, int64_t rows) {
    uint32_t bits[KEYS];
    dropout_mask(&p->drop, first, (uint64_t)p->w.seq, round_up(rows, 4), bits);
    for (int64_t j = 0; j < rows; j++) dropout_factors(&p->drop, bits[j], keep + j * QUERIES);
}

/* ---- forward ---- */
struct forward_buffers {
    float *k, *v;         /* [k_padded, d_padded], [k_padded, v_padded] */
    float *q, *q_t;       /* [QUERIES, d_padded], [d_padded, QUERIES] */
    float *out, *row;     /* [v_padded, QUERIES], [v_padded] */
    float *scores, *keep; /* [KEYS, QUERIES] */
    float max[QUERIES], sum[QUERIES];
};

static int64_t forward_floats(const struct problem *p) {
    return (p->k_padded + QUERIES) * (p->d_padded + p->v_padded) + QUERIES * p->d_padded + p->v_padded +
           2 * KEYS * QUERIES;
}

static struct forward_buffers forward_carve(const struct problem *p, float *at) {
    struct forward_buffers f;
    f.k = at, at += p->k_padded * p->d_padded;
    f.v = at, at += p->k_padded * p->v_padded;
    f.q = at, at += QUERIES * p->d_padded;
    f.q_t = at, at += QUERIES * p->d_padded;
    f.out = at, at += QUERIES * p->v_padded;
    f.row = at, at += p->v_padded;
    f.scores = at, at += KEYS * QUERIES;
    f.keep = at;
    return f;
}

/* Raises the running maximum to that of the block and rescales what was summed so far. */
static void raise_max(const struct problem *p, struct forward_buffers *f, const struct block *b) {
    float max[QUERIES], shrink[QUERIES];
    bool same = true;
    memcpy(max, f->max, sizeof(max));
    for (int64_t j = 0; j < b->rows; j++) {
        const float *row = f->scores + j * QUERIES;
        SIMD_LOOP for (int i = 0; i < QUERIES; i++) max[i] = row[i] > max[i] ? row[i] : max[i];
    }
    for (int i = 0; i < QUERIES; i++) {
        shrink[i] = math_exp(f->max[i] - max[i]);
        f->sum[i] *= shrink[i];
        same = same && shrink[i] == 1.0f;
    }
    memcpy(f->max, max, sizeof(max));
    if (same || !b->key) return;
    for (int64_t n = 0; n < p->v_padded; n++) {
        SIMD_LOOP for (int i = 0; i < QUERIES; i++) f->out[n * QUERIES + i] *= shrink[i];
    }
}

/* scores become probabilities times a common factor; sums grow by them before dropout. */
static void exponentials(const struct problem *p, struct forward_buffers *f, int64_t rows) {
    float max[QUERIES], sum[QUERIES]; /* local: nothing aliases them */
    memcpy(max, f->max, sizeof(max));
    memcpy(sum, f->sum, sizeof(sum));
    for (int64_t j = 0; j < rows; j++) {
        float *row = f->scores + j * QUERIES;
        SIMD_LOOP for (int i = 0; i < QUERIES; i++) {
            row[i] = math_exp(row[i] - max[i]);
            sum[i] += row[i];
        }
    }
    memcpy(f->sum, sum, sizeof(sum));
    for (int64_t n = 0; n < rows * QUERIES && p->drop.threshold; n++) f->scores[n] *= f->keep[n];
}

static void forward_block(const struct problem *p, struct forward_buffers *f, const struct block *b,
                          uint64_t first) {
    int64_t rows = round_up(b->rows, BLOCK_ROWS);
    struct left keys = {f->k + b->key * p->d_padded, p->d_padded, 1};
    block_product(f->scores, QUERIES, keys, f->q_t, QUERIES, rows, QUERIES, p->d_padded, false);
    mask_block(p, b, f->scores);
    raise_max(p, f, b);
    if (p->drop.threshold) drop_block(p, f->keep, first, b->rows);
    exponentials(p, f, b->rows);
    struct left values = {f->v + b->key * p->v_padded, 1, p->v_padded};
    block_product(f->out, QUERIES, values, f->scores, QUERIES, p->v_padded, QUERIES, b->rows, b->key > 0);
}

static void forward_queries(const struct problem *p, const struct attention_forward_args *args,
                            struct forward_buffers *f, int64_t batch, int64_t head, int64_t query) {
    const struct attention_shape *z = &p->z;
    enum dtype o_dtype = args->o_is_f32 ? DTYPE_F32 : p->dtype;
    int64_t rows = min_i64(QUERIES, z->s - query), row = (batch * z->a + head) * p->w.q_rows + query;
    load_queries(p, f->q, args->q, row, QUERIES, rows);
    transpose_lanes(f->q_t, f->q, p->d_padded);
    /* A query that sees no key starts from 0, so that no difference of infinities arises: its sum stays 0. */
    for (int i = 0; i < QUERIES; i++) {
        f->max[i] = p->causal && query + i + p->ahead < 0 ? 0.0f : -INFINITY, f->sum[i] = 0.0f;
    }
    if (!keys_of(p, query)) memset(f->out, 0, (size_t)(QUERIES * p->v_padded) * sizeof(float));
    for (int64_t key = 0, keys = keys_of(p, query); key < keys; key += KEYS) {
        struct block b = {query, key, min_i64(KEYS, keys - key)};
        forward_block(p, f, &b, first_element(p, batch, head, &b));
    }
    for (int i = 0; i < rows; i++) {
        float sum = f->sum[i] == 0.0f ? INFINITY : f->sum[i];
        for (int64_t n = 0; n < p->dv; n++) f->row[n] = f->out[n * QUERIES + i] / sum;
        row_from_f32(dtype_at(args->o, o_dtype, (((query + i) * z->b + batch) * z->a + head) * p->dv), f->row,
                     o_dtype, p->dv);
        if (args->lse) args->lse[row + i] = f->max[i] + logf(f->sum[i]);
    }
}

struct forward_job {
    const struct attention_forward_args *args;
    struct problem p;
    float *workspace;
    int64_t parts;
};

/* Task t: the last parts, which have most keys, come first. */
static void forward_task(void *context, int64_t begin, int64_t end, int thread) {
    struct forward_job *job = context;
    const struct problem *p = &job->p;
    const struct attention_shape *z = &p->z;
    struct forward_buffers f = forward_carve(p, job->workspace + thread * forward_floats(p));
    for (int64_t task = begin; task < end; task++) {
        int64_t part = job->parts - 1 - task / (z->b * z->g), batch = task % (z->b * z->g) / z->g;
        int64_t group = task % z->g, per_group = z->a / z->g, last = min_i64(z->s, (part + 1) * PART);
        int64_t keys = keys_before(p, last), row = (batch * z->g + group) * p->w.k_rows;
        pack_rows(f.k, round_up(keys, QUERIES), p->d_padded, dtype_at(job->args->k, p->dtype, row * z->d),
                  z->d, keys, z->d, p->dtype);
        pack_rows(f.v, round_up(keys, QUERIES), p->v_padded, dtype_at(job->args->v, p->dtype, row * p->dv),
                  p->dv, keys, p->dv, p->dtype);
        for (int64_t head = group * per_group; head < (group + 1) * per_group; head++) {
            for (int64_t query = part * PART; query < last; query += QUERIES) {
                forward_queries(p, job->args, &f, batch, head, query);
            }
        }
    }
}

static struct problem forward_problem(const struct attention_forward_args *args) {
    return make_problem(args->shape, args->window, args->scale, args->key, args->dropout, args->causal,
                        args->dtype);
}

size_t CPU(attention_forward_workspace)(const struct stream *stream,
                                        const struct attention_forward_args *args) {
    if (CPU_ISA_amx && attention_fits_tiles(args->scale, args->dtype)) {
        return CPU(attention_tiles_forward_workspace)(stream, args);
    }
    struct problem p = forward_problem(args);
    return (size_t)threads_count(stream->threads) * (size_t)forward_floats(&p) * sizeof(float);
}

void CPU(attention_forward)(const struct stream *stream, const struct attention_forward_args *args) {
    if (CPU_ISA_amx && attention_fits_tiles(args->scale, args->dtype)) {
        CPU(attention_tiles_forward)(stream, args);
        return;
    }
    struct forward_job job = {args, forward_problem(args), stream->workspace, 0};
    job.parts = (args->shape.s + PART - 1) / PART;
    threads_for(stream->threads, args->shape.b * args->shape.g * job.parts, 1, forward_task, &job);
}

/* ---- backward ---- */
struct backward_buffers {
    float *k, *dk, *v, *dv;        /* [k_padded, d_padded], [k_padded, v_padded], of the group */
    float *q, *dq, *d_o;           /* [s_padded, d_padded], [s_padded, v_padded], of the head */
    float *q_t, *do_t;             /* [d_padded, QUERIES], [v_padded, QUERIES] */
    float *row;                    /* [v_padded] */
    float *probs, *dscores, *keep; /* [KEYS, QUERIES] */
    float *lse, *delta;            /* [s_padded], of the head */
};

static int64_t backward_floats(const struct problem *p) {
    return (2 * p->k_padded + 2 * p->s_padded + QUERIES) * p->d_padded +
           (2 * p->k_padded + p->s_padded + QUERIES + 1) * p->v_padded + 3 * KEYS * QUERIES + 2 * p->s_padded;
}

static struct backward_buffers backward_carve(const struct problem *p, float *at) {
    struct backward_buffers f;
    float **const wide[] = {&f.k, &f.dk, &f.q, &f.dq}, **const values[] = {&f.v, &f.dv, &f.d_o};
    for (size_t i = 0; i < 4; i++) *wide[i] = at, at += (i < 2 ? p->k_padded : p->s_padded) * p->d_padded;
    for (size_t i = 0; i < 3; i++) *values[i] = at, at += (i < 2 ? p->k_padded : p->s_padded) * p->v_padded;
    f.q_t = at, at += QUERIES * p->d_padded;
    f.do_t = at, at += QUERIES * p->v_padded;
    f.row = at, at += p->v_padded;
    f.probs = at, at += KEYS * QUERIES;
    f.dscores = at, at += KEYS * QUERIES;
    f.keep = at, at += KEYS * QUERIES;
    f.lse = at, at += p->s_padded;
    f.delta = at;
    return f;
}

/* From scores and dprobs: probs after dropout, and dscores. */
static void backward_scores(const struct problem *p, struct backward_buffers *f, const struct block *b,
                            uint64_t first) {
    float lse[QUERIES], delta[QUERIES]; /* local: nothing aliases them */
    memcpy(lse, f->lse + b->query, sizeof(lse));
    memcpy(delta, f->delta + b->query, sizeof(delta));
    mask_block(p, b, f->probs);
    if (p->drop.threshold) drop_block(p, f->keep, first, b->rows);
    for (int64_t j = 0; j < b->rows; j++) {
        float *prob = f->probs + j * QUERIES, *dscore = f->dscores + j * QUERIES;
        const float *keep = f->keep + j * QUERIES;
        if (p->drop.threshold) {
            SIMD_LOOP for (int i = 0; i < QUERIES; i++) {
                float x = math_exp(prob[i] - lse[i]);
                dscore[i] = x * (keep[i] * dscore[i] - delta[i]);
                prob[i] = x * keep[i];
            }
        } else {
            SIMD_LOOP for (int i = 0; i < QUERIES; i++) {
                float x = math_exp(prob[i] - lse[i]);
                dscore[i] = x * (dscore[i] - delta[i]);
                prob[i] = x;
            }
        }
    }
}

static void backward_block(const struct problem *p, struct backward_buffers *f, const struct block *b,
                           uint64_t first) {
    int64_t d = p->d_padded, dv = p->v_padded, rows = round_up(b->rows, BLOCK_ROWS);
    float *k = f->k + b->key * d, *v = f->v + b->key * dv;
    block_product(f->probs, QUERIES, (struct left){k, d, 1}, f->q_t, QUERIES, rows, QUERIES, d, false);
    block_product(f->dscores, QUERIES, (struct left){v, dv, 1}, f->do_t, QUERIES, rows, QUERIES, dv, false);
    backward_scores(p, f, b, first);
    for (int64_t n = b->rows * QUERIES; n < rows * QUERIES; n++) f->probs[n] = f->dscores[n] = 0.0f;
    struct left probs = {f->probs, QUERIES, 1}, dscores = {f->dscores, QUERIES, 1};
    struct left dscores_t = {f->dscores, 1, QUERIES};
    block_product(f->dv + b->key * dv, dv, probs, f->d_o + b->query * dv, dv, rows, dv, QUERIES, true);
    block_product(f->dk + b->key * d, d, dscores, f->q + b->query * d, d, rows, d, QUERIES, true);
    block_product(f->dq + b->query * d, d, dscores_t, k, d, QUERIES, d, b->rows, true);
}

/* Unpacks a head; delta is the sum of dO * O over a row. Rows past the end, and those that see no key, give
 * lse +infinity: probability 0. */
static void backward_open_head(const struct problem *p, const struct attention_backward_args *args,
                               struct backward_buffers *f, int64_t batch, int64_t head) {
    const struct attention_shape *z = &p->z;
    int64_t row = (batch * z->a + head) * p->w.q_rows, o = (batch * z->a + head) * p->dv;
    int64_t step = z->b * z->a * p->dv;
    load_queries(p, f->q, args->q, row, p->s_padded, z->s);
    pack_rows(f->d_o, p->s_padded, p->v_padded, dtype_at(args->d_o, p->dtype, o), step, z->s, p->dv,
              p->dtype);
    for (int64_t i = 0; i < p->s_padded; i++) {
        float sum = 0;
        if (i < z->s) row_to_f32(f->row, dtype_at(args->o, p->dtype, o + i * step), p->dtype, p->dv);
        for (int64_t n = 0; n < p->dv && i < z->s; n++) sum += f->row[n] * f->d_o[i * p->v_padded + n];
        f->delta[i] = sum;
        f->lse[i] = i < z->s && args->lse[row + i] != -INFINITY ? args->lse[row + i] : INFINITY;
    }
    memset(f->dq, 0, (size_t)(p->s_padded * p->d_padded) * sizeof(float));
}

/* A row of gradients from float32, stored or added. */
static void put_gradients(const struct attention_backward_args *args, void *grad, int64_t row,
                          const float *src, int64_t size) {
    enum dtype dtype = args->grads_are_f32 ? DTYPE_F32 : args->dtype;
    if (!args->accumulate) {
        row_from_f32(dtype_at(grad, dtype, row), src, dtype, size);
        return;
    }
    float *sum = (float *)grad + row; /* accumulating is float32 only */
    for (int64_t n = 0; n < size; n++) sum[n] += src[n];
}

static void backward_head(const struct problem *p, const struct attention_backward_args *args,
                          struct backward_buffers *f, int64_t batch, int64_t head) {
    const struct attention_shape *z = &p->z;
    backward_open_head(p, args, f, batch, head);
    for (int64_t query = 0; query < z->s; query += QUERIES) {
        transpose_lanes(f->q_t, f->q + query * p->d_padded, p->d_padded);
        transpose_lanes(f->do_t, f->d_o + query * p->v_padded, p->v_padded);
        for (int64_t key = 0, keys = keys_of(p, query); key < keys; key += KEYS) {
            struct block b = {query, key, min_i64(KEYS, keys - key)};
            backward_block(p, f, &b, first_element(p, batch, head, &b));
        }
    }
    for (int64_t n = 0; n < z->s * p->d_padded; n++) f->dq[n] *= p->scale;
    for (int64_t i = 0; i < z->s; i++) {
        int64_t row = ((batch * z->a + head) * p->w.q_rows + i) * z->d;
        put_gradients(args, args->dq, row, f->dq + i * p->d_padded, z->d);
    }
}

struct backward_job {
    const struct attention_backward_args *args;
    struct problem p;
    float *workspace;
};

static void backward_task(void *context, int64_t begin, int64_t end, int thread) {
    struct backward_job *job = context;
    const struct problem *p = &job->p;
    const struct attention_shape *z = &p->z;
    const struct attention_backward_args *args = job->args;
    struct backward_buffers f = backward_carve(p, job->workspace + thread * backward_floats(p));
    for (int64_t task = begin; task < end; task++) {
        int64_t group = task % z->g, per_group = z->a / z->g, keys = p->w.keys, row = task * p->w.k_rows;
        pack_rows(f.k, p->k_padded, p->d_padded, dtype_at(args->k, p->dtype, row * z->d), z->d, keys, z->d,
                  p->dtype);
        pack_rows(f.v, p->k_padded, p->v_padded, dtype_at(args->v, p->dtype, row * p->dv), p->dv, keys, p->dv,
                  p->dtype);
        memset(f.dk, 0, (size_t)(p->k_padded * p->d_padded) * sizeof(float));
        memset(f.dv, 0, (size_t)(p->k_padded * p->v_padded) * sizeof(float));
        for (int64_t head = group * per_group; head < (group + 1) * per_group; head++) {
            backward_head(p, args, &f, task / z->g, head);
        }
        for (int64_t j = 0; j < keys; j++) {
            put_gradients(args, args->dk, (row + j) * z->d, f.dk + j * p->d_padded, z->d);
            put_gradients(args, args->dv, (row + j) * p->dv, f.dv + j * p->v_padded, p->dv);
        }
    }
}

static struct problem backward_problem(const struct attention_backward_args *args) {
    return make_problem(args->shape, args->window, args->scale, args->key, args->dropout, args->causal,
                        args->dtype);
}

size_t CPU(attention_backward_workspace)(const struct stream *stream,
                                         const struct attention_backward_args *args) {
    if (CPU_ISA_amx && attention_fits_tiles(args->scale, args->dtype)) {
        return CPU(attention_tiles_backward_workspace)(stream, args);
    }
    struct problem p = backward_problem(args);
    return (size_t)threads_count(stream->threads) * (size_t)backward_floats(&p) * sizeof(float);
}

void CPU(attention_backward)(const struct stream *stream, const struct attention_backward_args *args) {
    if (CPU_ISA_amx && attention_fits_tiles(args->scale, args->dtype)) {
        CPU(attention_tiles_backward)(stream, args);
        return;
    }
    struct backward_job job = {args, backward_problem(args), stream->workspace};
    threads_for(stream->threads, args->shape.b * args->shape.g, 1, backward_task, &job);
}
