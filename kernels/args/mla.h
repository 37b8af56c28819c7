#pragma once
/* Multi-latent attention (DeepSeek-V2, 2024, section 2.1): from low-rank latents to the heads that attention
 * reads. Legend: s sequence, b batch, a heads, dn head size without positions (--qk-head-dim), dr rotated
 * head size (--qk-pos-emb-head-dim), dv head size of the values. Hidden tensors keep the sequence first: row
 * index i * b + j.
 *
 * mla_latent_split: the output x[rows, rank + dr] of the down projection is cut into latent[rows, rank] and
 * the positional key k_pe[rows, dr], which all heads share; backward joins their gradients.
 *
 * mla_assemble: q_in[s, b, a * (dn + dr)] (each head: dn plain columns, then dr rotated), kv[s, b, a * (dn +
 * dv)] (each head: dn columns of the key, then dv of the value) and k_pe[s, b, dr] become head-major
 *     q[b, a, s, dn + dr] = [q_plain | rotate(q_pe)]    k[b, a, s, dn + dr] = [k_plain | rotate(k_pe)]
 *     v[b, a, s, dv]
 * with k_pe rotated once and copied into every head. The rotation takes neighbouring pairs and writes halves,
 * as Megatron-LM and DeepSeek do (DeepSeek's weights are trained on interleaved pairs): with h = dr / 2, y[i]
 * = x[2i] cos[i] - x[2i + 1] sin[i],   y[i + h] = x[2i + 1] cos[i] + x[2i] sin[i] cos and sin come from the
 * tables at [position, i]; a factor in them (YaRN's concentration) is applied with them. Backward is the
 * transpose, so it reads gradients and tables only; dk_pe sums over heads in head order. */
#include "core/tensor/dtype.h"
#include <stdint.h>

struct mla_shape {
    int64_t s, b, a, dn, dr, dv;
};

struct mla_latent_split_forward_args {
    void *latent, *k_pe; /* [rows, rank], [rows, dr] dtype */
    const void *x;       /* [rows, rank + dr] dtype */
    int64_t rows, rank, dr;
    enum dtype dtype;
};

struct mla_latent_split_backward_args {
    void *dx; /* [rows, rank + dr] dtype */
    const void *dlatent, *dk_pe;
    int64_t rows, rank, dr;
    enum dtype dtype;
};

struct mla_assemble_forward_args {
    void *q, *k, *v; /* [b, a, s, dn + dr] twice, [b, a, s, dv]; dtype */
    const void *q_in, *kv, *k_pe;
    struct mla_shape shape;
    const float *cos, *sin; /* [s, dr / 2] */
    enum dtype dtype;
};

struct mla_assemble_backward_args {
    void *dq_in, *dkv, *dk_pe; /* dtype */
    const void *dq, *dk, *dv;
    struct mla_shape shape;
    const float *cos, *sin;
    enum dtype dtype;
};
