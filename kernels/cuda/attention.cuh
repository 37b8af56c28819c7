#pragma once
/* What the two paths of fused attention share: attention.cu does every dtype and head size,
 * attention_tiles.cu the common ones by tensor cores. */
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/reduce.cuh"

struct attention {
    attention_shape z;
    attention_window w;
    const void *q, *k, *v, *d_o, *o;
    const float *lse, *delta; /* [b, a, q_rows], [b, a, s] */
    int64_t dv;
    float scale, keep_scale;
    uint32_t threshold; /* 0: no dropout */
    struct rng_key key;
    bool causal;
};

static inline attention attention_of(const attention_shape &shape, const attention_window &window,
                                     float scale, float dropout, const struct rng_key &key, bool causal) {
    attention p = {};
    p.z = shape, p.w = attention_window_of(&shape, window);
    p.dv = shape.dv ? shape.dv : shape.d;
    p.scale = scale, p.keep_scale = 1.0f / (1.0f - dropout);
    p.threshold = dropout > 0 ? rng_drop_threshold(dropout) : 0;
    p.key = key, p.causal = causal;
    return p;
}

/* First elements of row i of query head (batch, head), of row j of its keys and values, and of its row of o.
 */
static __device__ __forceinline__ int64_t q_row(const attention &p, int64_t batch, int64_t head, int64_t i) {
    return ((batch * p.z.a + head) * p.w.q_rows + i) * p.z.d;
}
static __device__ __forceinline__ int64_t k_row(const attention &p, int64_t batch, int64_t group, int64_t j,
                                                int64_t size) {
    return ((batch * p.z.g + group) * p.w.k_rows + j) * size;
}
static __device__ __forceinline__ int64_t o_row(const attention &p, int64_t batch, int64_t head, int64_t i) {
    return ((i * p.z.b + batch) * p.z.a + head) * p.dv;
}

static __device__ __forceinline__ int64_t keys_seen(const attention &p, int64_t i) {
    const int64_t keys = p.w.first_query + i + 1 - p.w.first_key;
    return !p.causal ? p.w.keys : keys < 0 ? 0 : keys < p.w.keys ? keys : p.w.keys;
}

/* 0, or 1 / (1 - dropout). */
static __device__ __forceinline__ float mask_of(const attention &p, int64_t batch, int64_t head, int64_t i,
                                                int64_t j) {
    if (!p.threshold) return 1.0f;
    const int64_t row = (batch * p.w.heads + p.w.first_head + head) * p.w.seq + p.w.first_query + i;
    const uint64_t element = (uint64_t)(row * p.w.seq + p.w.first_key + j);
    return philox_pick(philox(p.key, element / 4), element) >= p.threshold ? p.keep_scale : 0.0f;
}

/* Whether attention_tiles.cu knows this dtype and these head sizes; its pointers suit 16-byte accesses. */
static inline bool attention_has_tiles(const attention &p, enum dtype dtype) {
    const bool same = p.z.d == p.dv && (p.z.d == 64 || p.z.d == 96 || p.z.d == 128);
    return dtype != DTYPE_F32 && (same || (p.z.d == 192 && p.dv == 128)) && all_wide(p.q, p.k, p.v, p.d_o);
}
void attention_tiles_forward(const struct stream *stream, const attention &p, enum dtype dtype, void *o,
                             bool o_is_f32, float *lse);
/* From p.lse and p.delta. */
void attention_tiles_backward(const struct stream *stream, const attention &p, enum dtype dtype, void *dq,
                              void *dk, void *dv, bool grads_are_f32, bool add);
