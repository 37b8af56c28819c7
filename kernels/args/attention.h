#pragma once
/* Self-attention. Legend: s sequence, b batch, a query heads, g key/value groups (a % g == 0), d head size.
 * Query head i reads group i / (a / g). All attention is causal over the positions of one sequence unless
 * `causal` is false. Hidden tensors keep the sequence first: [s, b, ...], row index i * b + j.
 *
 * qkv_split: from the fused projection qkv[s, b, g * (a/g + 2) * d], whose columns are, for each group, a/g
 * query heads, one key head and one value head (Megatron-LM's layout), to q[b, a, s, d], k[b, g, s, d], v[b,
 * g, s, d]: optional norm of each q and k head (QK norm; LayerNorm or RMSNorm over d), then optional rotary
 * embedding of the first rotary_dim dims. Rotary: half-split pairs (x[i], x[i + r/2]) or, when interleaved,
 * (x[2i], x[2i + 1]): (x0, x1) -> (x0 cos - x1 sin, x1 cos + x0 sin), cos and sin from the tables at
 * [position, i]. Backward turns dq, dk, dv into dqkv; it reads qkv only for QK norm (q_norm_weight set), else
 * qkv may be NULL.
 *
 * attention_forward/backward: blockwise attention that never stores s x s scores (FlashAttention-2, Dao
 * 2023): o = dropout(softmax(scale * q k^T)) v, lse[b, a, s] = log sum exp of the scaled scores. Backward
 * needs q, k, v, o, lse and dO. Dropout element index of (batch, head, i, j): ((batch * a + head) * s + i) *
 * s + j.
 *
 * The unfused chain keeps the scores ([b, a, s, s], dtype):
 *   attention_scores:  scores = scale * q k^T             (entries above the diagonal are not written when
 * causal) softmax:           probs = softmax(scores) per row, zero above the diagonal; backward from probs
 * and dprobs (dropout is the `dropout` kernel over probs, same element index as above) attention_context: o =
 * probs v Gradients of the chain: context: dprobs = dO v^T, dv = probs^T dO; softmax: dscores = probs *
 * (dprobs - sum(dprobs * probs)); scores: dq = scale * dscores k, dk = scale * dscores^T q. With a / g > 1,
 * dk and dv sum over the group's heads in head order. */
#include "core/base/rng.h"
#include "core/tensor/dtype.h"
#include <stdbool.h>

struct attention_shape {
    int64_t s, b, a, g, d;
};

struct qkv_split_norm {              /* QK norm; all zero when off */
    const void *q_weight, *k_weight; /* [d] dtype */
    const void *q_bias, *k_bias;     /* [d] dtype; NULL for RMSNorm */
    float epsilon;
    bool rms, zero_centered;
};

struct qkv_split_forward_args {
    void *q, *k, *v; /* [b, a|g, s, d] dtype */
    const void *qkv; /* [s, b, g * (a/g + 2) * d] dtype */
    struct attention_shape shape;
    struct qkv_split_norm norm;
    const float *cos, *sin; /* [s, rotary_dim / 2]; NULL: no rotary embedding */
    int64_t rotary_dim;
    bool rotary_interleaved;
    enum dtype dtype;
};

struct qkv_split_backward_args {
    void *dqkv; /* [s, b, g * (a/g + 2) * d] dtype */
    float *dq_weight, *dk_weight, *dq_bias,
        *dk_bias;             /* [d]; NULL when QK norm is off (biases: when RMSNorm) */
    const void *dq, *dk, *dv; /* [b, a|g, s, d] dtype */
    const void *qkv;          /* only read with QK norm */
    struct attention_shape shape;
    struct qkv_split_norm norm;
    const float *cos, *sin;
    int64_t rotary_dim;
    bool rotary_interleaved;
    bool accumulate_params;
    enum dtype dtype;
};

struct attention_forward_args {
    void *o;    /* [s, b, a * d] dtype */
    float *lse; /* [b, a, s]; NULL when nobody needs it (evaluation) */
    const void *q, *k, *v;
    struct attention_shape shape;
    float scale, dropout;
    struct rng_key key;
    bool causal;
    enum dtype dtype;
};

struct attention_backward_args {
    void *dq, *dk, *dv; /* [b, a|g, s, d] dtype */
    const void *d_o;    /* [s, b, a * d] dtype */
    const void *o;      /* [s, b, a * d] dtype */
    const float *lse;   /* [b, a, s] */
    const void *q, *k, *v;
    struct attention_shape shape;
    float scale, dropout;
    struct rng_key key;
    bool causal;
    enum dtype dtype;
};

struct attention_scores_forward_args {
    void *scores; /* [b, a, s, s] dtype */
    const void *q, *k;
    struct attention_shape shape;
    float scale;
    bool causal;
    enum dtype dtype;
};

struct attention_scores_backward_args {
    void *dq, *dk;
    const void *dscores; /* [b, a, s, s] */
    const void *q, *k;
    struct attention_shape shape;
    float scale;
    bool causal;
    enum dtype dtype;
};

struct softmax_forward_args {
    void *y;       /* [rows, cols] dtype; row r is query r % cols when causal; may alias x */
    const void *x; /* [rows, cols] dtype */
    int64_t rows, cols;
    bool causal;
    enum dtype dtype;
};

struct softmax_backward_args {
    void *dx; /* may alias dy; zero above the diagonal */
    const void *dy, *y;
    int64_t rows, cols;
    bool causal;
    enum dtype dtype;
};

struct attention_context_forward_args {
    void *o;           /* [s, b, a * d] */
    const void *probs; /* [b, a, s, s] */
    const void *v;
    struct attention_shape shape;
    bool causal;
    enum dtype dtype;
};

struct attention_context_backward_args {
    void *dprobs, *dv; /* dprobs: entries above the diagonal are zero when causal */
    const void *d_o;   /* [s, b, a * d] */
    const void *probs, *v;
    struct attention_shape shape;
    bool causal;
    enum dtype dtype;
};
