#pragma once
/* Self-attention. Legend: s sequence, b batch, a query heads, g key/value groups (a % g == 0), d head size.
 * Query head i reads group i / (a / g). All attention is causal over the positions of one sequence unless
 * `causal` is false. Hidden tensors keep the sequence first: [s, b, ...], row index i * b + j. Values may
 * have a head size dv of their own (multi-latent attention): fused attention and attention_merge read it; of
 * the unfused chain each kernel knows one head size only, scores that of q and k, context that of v, as `d`.
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
 * s + j. With a `window` the rows at hand are a part of longer sequences, more heads, or both: see there.
 *
 * attention_merge: folds the attention over some keys (o_part, lse_part) into that over others (o, lse), in
 * place: lse' = log(exp(lse) + exp(lse_part)), o' = o exp(lse - lse') + o_part exp(lse_part - lse'). A part
 * without keys (lse_part = -infinity) leaves o and lse as they are, bit for bit; o without keys takes o_part.
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
    int64_t dv; /* head size of v, o and their gradients where it differs from that of q and k; 0: d */
};

static inline int64_t attention_value_dim(const struct attention_shape *shape) {
    return shape->dv ? shape->dv : shape->d;
}

/* Which part of a larger attention the tensors hold. All zero: the whole, keys and queries at the same
 * positions. Query row i stands at position first_query + i, key row j at first_key + j; causal means that a
 * query sees the keys at its own position and before. A query that sees no key has o = 0, lse = -infinity.
 * Dropout element index of (batch, head, i, j): ((batch * heads + first_head + head) * seq + first_query + i)
 * * seq + first_key + j, so that the mask of a score does not depend on who computes it.
 *
 *     .shape.s = c, .window = {.first_query = 3 * c, .keys = 2 * c, .seq = 4 * c}   // chunk 3 on chunks 0, 1
 */
struct attention_window {
    int64_t first_query, first_key;
    int64_t keys;              /* rows of k and v; 0: shape.s, which is the number of queries */
    int64_t q_rows, k_rows;    /* rows of the buffers for each (batch, head): q, dq and lse; k, v, dk and dv.
                                  0: s and keys. The pointers then point to the first row used. */
    int64_t first_head, heads; /* this shape's heads are first_head .. of `heads` (0: a) */
    int64_t seq;               /* length of the whole sequence, 0: s */
};

/* The window with its defaults filled in. */
static inline struct attention_window attention_window_of(const struct attention_shape *shape,
                                                          struct attention_window w) {
    if (!w.keys) w.keys = shape->s;
    if (!w.q_rows) w.q_rows = shape->s;
    if (!w.k_rows) w.k_rows = w.keys;
    if (!w.heads) w.heads = shape->a;
    if (!w.seq) w.seq = shape->s;
    return w;
}

/* How many keys, from the first row on, causal query row i sees. */
static inline int64_t attention_window_sees(const struct attention_window *w, int64_t i) {
    int64_t keys = w->first_query + i + 1 - w->first_key;
    return keys < 0 ? 0 : keys < w->keys ? keys : w->keys;
}

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
    void *o;    /* [s, b, a * dv] dtype, or float32 */
    float *lse; /* [b, a, s]; NULL when nobody needs it (evaluation) */
    const void *q, *k, *v;
    struct attention_shape shape;
    struct attention_window window;
    float scale, dropout;
    struct rng_key key;
    bool causal;
    bool o_is_f32;
    enum dtype dtype;
};

struct attention_backward_args {
    void *dq, *dk, *dv; /* [b, a|g, s, d] dtype, or float32 */
    const void *d_o;    /* [s, b, a * dv] dtype */
    const void *o;      /* [s, b, a * dv] dtype; with a window: of all the keys, not of these alone, */
    const float *lse;   /* [b, a, s]            and so is lse */
    const void *q, *k, *v;
    struct attention_shape shape;
    struct attention_window window;
    float scale, dropout;
    struct rng_key key;
    bool causal;
    bool grads_are_f32;
    bool accumulate; /* dq, dk, dv += ...; float32 gradients only */
    enum dtype dtype;
};

struct attention_merge_args {
    float *o;   /* [s, b, a * dv] */
    float *lse; /* [b, a, lse_rows], the first s of each row; 0: s */
    const float *o_part;
    const float *lse_part; /* [b, a, part_rows] likewise */
    struct attention_shape shape;
    int64_t lse_rows, part_rows;
    bool first; /* nothing to fold into yet: o and lse are written without being read */
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
