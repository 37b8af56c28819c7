#pragma once
/* What the attention tests share: random tensors with a poisoned margin, and an oracle that writes attention
 * and its gradients out over whole s x s matrices in double, sharing no code with any backend. Beside each
 * result it gives the sum of the magnitudes that went into it, from which the bounds on rounding errors are
 * made. */
#include "core/base/mem.h"
#include "tests/kernels/tables.h"
#include "tests/test.h"

enum { GUARD = 64 }; /* poisoned bytes behind every output */

struct attention_case {
    struct attention_shape z;
    bool causal;
    float dropout;
};

static const struct rng_key test_key = {.seed = 7, .iteration = 3, .micro_batch = 1, .layer = 2, .op = 5};

/* Roughly normal numbers, the same on every run. */
static inline double random_normal(uint64_t *state) {
    double sum = 0;
    for (int i = 0; i < 4; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        sum += (double)(*state >> 40) * 0x1p-24 - 0.5;
    }
    return sum * 1.7320508;
}

static inline void *new_random(int64_t n, enum dtype dtype, uint64_t seed, double deviation) {
    void *p = mem_alloc((size_t)n * dtype_bytes(dtype), "random tensor");
    for (int64_t i = 0; i < n; i++) store_f32(p, dtype, i, (float)(deviation * random_normal(&seed)));
    return p;
}

/* An output full of NaN, with a guard behind it. */
static inline void *new_output(int64_t n, enum dtype dtype) {
    size_t bytes = (size_t)n * dtype_bytes(dtype);
    char *p = mem_alloc(bytes + GUARD, "output");
    memset(p, 0xFF, bytes + GUARD);
    return p;
}

static inline bool guard_holds(const void *p, int64_t n, enum dtype dtype) {
    const unsigned char *guard = (const unsigned char *)p + (size_t)n * dtype_bytes(dtype);
    for (int i = 0; i < GUARD; i++) {
        if (guard[i] != 0xFF) return false;
    }
    return true;
}

/* Half the distance between neighbours, relative: the largest error of one rounding. */
static inline double unit_roundoff(enum dtype dtype) {
    return dtype == DTYPE_F32 ? 0x1p-24 : dtype == DTYPE_BF16 ? 0x1p-8 : 0x1p-11;
}

static inline double *new_doubles(int64_t n) {
    return mem_zalloc((size_t)n * sizeof(double), "oracle");
}

/* Inputs, results and, named *_size, sums of magnitudes: `size` of what was rounded to dtype on the way,
 * `noise` of what was summed in float32. */
struct oracle {
    struct attention_case c;
    double scale;
    double exponent;                /* largest sum of magnitudes of a score */
    double *q, *k, *v, *d_o;        /* inputs: [b, a|g, s, d], [b, g, s, dv], [s, b, a * dv] */
    double *o, *lse, *dq, *dk, *dv; /* results */
    double *o_size, *dq_size, *dk_size, *dv_size;
    double *dq_noise, *dk_noise;
    double *probs, *mask, *dprobs, *dscores, *noise; /* [s, s] of the head at hand */
};

static inline int64_t q_size(const struct attention_shape *z) {
    return z->b * z->a * z->s * z->d;
}

static inline int64_t kv_size(const struct attention_shape *z) {
    return z->b * z->g * z->s * z->d;
}

static inline int64_t v_dim(const struct attention_shape *z) {
    return z->dv ? z->dv : z->d;
}

static inline int64_t o_size(const struct attention_shape *z) {
    return z->b * z->a * z->s * v_dim(z);
}

static inline int64_t v_size(const struct attention_shape *z) {
    return z->b * z->g * z->s * v_dim(z);
}

static inline struct oracle oracle_open(struct attention_case c) {
    const struct attention_shape *z = &c.z;
    struct oracle x = {.c = c, .scale = (double)(float)(1.0 / sqrt((double)z->d))};
    double **const by_q[] = {&x.q, &x.dq, &x.dq_size, &x.dq_noise},
                   **const by_o[] = {&x.d_o, &x.o, &x.o_size};
    double **const by_kv[] = {&x.k, &x.dk, &x.dk_size, &x.dk_noise},
                   **const by_v[] = {&x.v, &x.dv, &x.dv_size};
    double **const by_square[] = {&x.probs, &x.mask, &x.dprobs, &x.dscores, &x.noise};
    for (size_t i = 0; i < sizeof(by_q) / sizeof(by_q[0]); i++) *by_q[i] = new_doubles(q_size(z));
    for (size_t i = 0; i < sizeof(by_kv) / sizeof(by_kv[0]); i++) *by_kv[i] = new_doubles(kv_size(z));
    for (size_t i = 0; i < sizeof(by_o) / sizeof(by_o[0]); i++) *by_o[i] = new_doubles(o_size(z));
    for (size_t i = 0; i < sizeof(by_v) / sizeof(by_v[0]); i++) *by_v[i] = new_doubles(v_size(z));
    for (size_t i = 0; i < sizeof(by_square) / sizeof(by_square[0]); i++)
        *by_square[i] = new_doubles(z->s * z->s);
    x.lse = new_doubles(z->b * z->a * z->s);
    return x;
}

static inline void oracle_close(struct oracle *x) {
    double *const all[] = {x->q,      x->d_o,     x->o,     x->dq,       x->o_size,   x->dq_size, x->k,
                           x->v,      x->dk,      x->dv,    x->dk_size,  x->dv_size,  x->probs,   x->mask,
                           x->dprobs, x->dscores, x->noise, x->dq_noise, x->dk_noise, x->lse};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) mem_free(all[i]);
}

static inline void widen(double *dst, const void *src, enum dtype dtype, int64_t n) {
    for (int64_t i = 0; i < n; i++) dst[i] = (double)load_f32(src, dtype, i);
}

static inline int64_t o_at(const struct attention_shape *z, int64_t batch, int64_t head, int64_t i) {
    return ((i * z->b + batch) * z->a + head) * v_dim(z);
}

/* probs, mask, o, lse of one head. */
static inline void oracle_forward_head(struct oracle *x, int64_t batch, int64_t head) {
    const struct attention_shape *z = &x->c.z;
    int64_t s = z->s, d = z->d, dv = v_dim(z), group = head / (z->a / z->g);
    const double *q = x->q + (batch * z->a + head) * s * d, *k = x->k + (batch * z->g + group) * s * d;
    const double *v = x->v + (batch * z->g + group) * s * dv;
    for (int64_t i = 0; i < s; i++) {
        int64_t n_keys = x->c.causal ? i + 1 : s;
        double max = -INFINITY, sum = 0, *p = x->probs + i * s, *m = x->mask + i * s;
        for (int64_t j = 0; j < s; j++) {
            p[j] = 0, m[j] = 1;
            double size = 0;
            for (int64_t n = 0; n < d; n++) {
                p[j] += x->scale * q[i * d + n] * k[j * d + n];
                size += x->scale * fabs(q[i * d + n] * k[j * d + n]);
            }
            x->exponent = fmax(x->exponent, size);
            if (j < n_keys && p[j] > max) max = p[j];
        }
        for (int64_t j = 0; j < s; j++) {
            uint64_t e = (uint64_t)(((batch * z->a + head) * s + i) * s + j);
            bool kept = rng_uniform(rng_philox(test_key, e / 4).w[e % 4]) >= x->c.dropout;
            if (x->c.dropout > 0) m[j] = kept ? 1 / (1 - (double)x->c.dropout) : 0;
            p[j] = j < n_keys ? exp(p[j] - max) : 0;
            sum += p[j];
        }
        x->lse[(batch * z->a + head) * s + i] = max + log(sum);
        double *o = x->o + o_at(z, batch, head, i), *size = x->o_size + o_at(z, batch, head, i);
        for (int64_t n = 0; n < dv; n++) o[n] = size[n] = 0;
        for (int64_t j = 0; j < s; j++) {
            p[j] /= sum;
            for (int64_t n = 0; n < dv; n++) {
                o[n] += p[j] * m[j] * v[j * dv + n], size[n] += p[j] * m[j] * fabs(v[j * dv + n]);
            }
        }
    }
}

/* Gradients of one head from probs and mask; dk and dv add up over the heads of a group. */
static inline void oracle_backward_head(struct oracle *x, int64_t batch, int64_t head) {
    const struct attention_shape *z = &x->c.z;
    int64_t s = z->s, d = z->d, dv = v_dim(z), q = (batch * z->a + head) * s * d;
    int64_t rows = (batch * z->g + head / (z->a / z->g)) * s, kv = rows * d, values = rows * dv;
    for (int64_t i = 0; i < s; i++) {
        const double *d_o = x->d_o + o_at(z, batch, head, i), *o = x->o + o_at(z, batch, head, i);
        double delta = 0, delta_noise = 0;
        for (int64_t n = 0; n < dv; n++) delta += d_o[n] * o[n], delta_noise += fabs(d_o[n] * o[n]);
        for (int64_t j = 0; j < s; j++) {
            double dp = 0, dp_noise = 0, m = x->mask[i * s + j], p = x->probs[i * s + j];
            for (int64_t n = 0; n < dv; n++) {
                dp += m * d_o[n] * x->v[values + j * dv + n];
                dp_noise += m * fabs(d_o[n] * x->v[values + j * dv + n]);
            }
            double ds = x->scale * p * (dp - delta), noise = x->scale * p * (dp_noise + delta_noise);
            x->dprobs[i * s + j] = dp, x->dscores[i * s + j] = ds, x->noise[i * s + j] = noise;
            for (int64_t n = 0; n < d; n++) {
                double kn = x->k[kv + j * d + n], qn = x->q[q + i * d + n];
                x->dq[q + i * d + n] += ds * kn, x->dk[kv + j * d + n] += ds * qn;
                x->dq_size[q + i * d + n] += fabs(ds * kn), x->dk_size[kv + j * d + n] += fabs(ds * qn);
                x->dq_noise[q + i * d + n] += noise * fabs(kn),
                    x->dk_noise[kv + j * d + n] += noise * fabs(qn);
            }
            for (int64_t n = 0; n < dv; n++) {
                x->dv[values + j * dv + n] += p * m * d_o[n];
                x->dv_size[values + j * dv + n] += p * m * fabs(d_o[n]);
            }
        }
    }
}

static inline void oracle_run(struct oracle *x, bool backward) {
    for (int64_t batch = 0; batch < x->c.z.b; batch++) {
        for (int64_t head = 0; head < x->c.z.a; head++) {
            oracle_forward_head(x, batch, head);
            if (backward) oracle_backward_head(x, batch, head);
        }
    }
}

/* Calls `kernel` of `table` with exactly the workspace that it asks for, poisoned and guarded. */
#define RUN_KERNEL(kernel, table, team, args_p)                                                              \
    do {                                                                                                     \
        struct stream run_stream = {.kernels = (table), .threads = (team)};                                  \
        if ((table)->kernel##_workspace) {                                                                   \
            run_stream.workspace_bytes = (table)->kernel##_workspace(&run_stream, (args_p));                 \
        }                                                                                                    \
        run_stream.workspace = new_output((int64_t)run_stream.workspace_bytes / 2, DTYPE_BF16);              \
        EXPECT(run_stream.workspace_bytes % 2 == 0, "odd workspace");                                        \
        kernel##_call(&run_stream, (args_p));                                                                \
        EXPECT(guard_holds(run_stream.workspace, (int64_t)run_stream.workspace_bytes / 2, DTYPE_BF16),       \
               #kernel " wrote beyond its workspace");                                                       \
        mem_free(run_stream.workspace);                                                                      \
    } while (0)

/* Largest error of x[n] in units of its bound, bound[i] = u * size[i] + noise_u * noise[i] + tiny; infinite
 * when x is not finite. */
static inline double worst_error(const void *x, enum dtype dtype, const double *truth, double u,
                                 const double *size, double noise_u, const double *noise, int64_t n) {
    double worst = 0;
    for (int64_t i = 0; i < n; i++) {
        double value = (double)load_f32(x, dtype, i);
        double bound =
            u * (size[i] + fabs(truth[i])) + noise_u * noise[i] + (dtype == DTYPE_F16 ? 0x1p-24 : 1e-30);
        double error = isfinite(value) ? fabs(value - truth[i]) / bound : (double)INFINITY;
        worst = error > worst ? error : worst;
    }
    return worst;
}

/* The backends that this processor can run. */
static inline int list_backends(const struct kernels **list) {
    int count = 0;
    list[count++] = kernels_reference();
    for (int i = 0; i < ISA_COUNT; i++) {
        if (table_named(isa_names[i])) list[count++] = table_named(isa_names[i]);
    }
    return count;
}
