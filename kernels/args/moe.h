#pragma once
/* Mixture of experts: routing, dispatch and the products with the experts' weights.
 *
 * route_forward: which experts a token goes to, and with what weight. logits[tokens, experts] are fp32.
 *   score            selected by            weight of a selected expert
 *   SOFTMAX          logit                  softmax over the selected logits
 *   SOFTMAX, pre     softmax over all       that softmax, not normalised again
 *   SIGMOID          sigmoid(logit) + bias  sigmoid(logit) / (their sum + 1e-20) when topk > 1, else sigmoid
 *   SQRTSOFTPLUS     as SIGMOID with the score sqrt(log(1 + e^logit))
 * times `scaling` (0 means 1). With group_count > 0 only the group_topk groups of experts count whose best
 * topk / group_topk members add up to most. Ties go to the lowest index, of groups and of experts. Slot
 * t * topk + j is the j-th best expert of token t. A row is a slot in the order of experts, and within an
 * expert of tokens: rows offsets[e] .. offsets[e + 1] are expert e's. Without capacity row_of_slot and
 * slot_of_row are each other's inverse.
 *
 * capacity > 0: an expert takes so many slots at most, those with the largest weights (or drops_by_position:
 * of the first tokens); among equal weights the lower token stays. A dropped slot has weight 0 and
 * row_of_slot -1. With `pads` every expert has exactly `capacity` rows; a row without a slot has slot_of_row
 * -1, as have the rows from offsets[experts] to router_rows(shape). tokens[e] += the slots that stayed,
 * unless NULL.
 *
 * counts[count_sets, experts]: how many tokens have the expert among the topk largest logits (without bias,
 * groups and capacity); token t belongs to set t % count_sets: one set for the whole batch, or one per
 * sequence when rows are [sequence position, sequence].
 *
 * route_losses: `parts` ranks have equal shares of the tokens, and counts are sums over them. With P[t, e]
 * the softmax, or score / (sum of scores + 1e-20), and T = tokens / count_sets * parts, *balance_sum +=
 * experts / (topk T^2 count_sets) sum over sets, e of (sum over t of P[t, e]) counts[set, e] *z_sum       +=
 * sum over tokens of logsumexp(logits)^2 / (tokens * parts) each skipped when its pointer is NULL: this
 * rank's part of the losses. (Fedus et al. 2021; Zoph et al. 2022; group limits: DeepSeek-V2.)
 *
 * route_backward: dlogits from dprobs (those of dropped slots are not read), plus balance_scale times the
 * gradient of the first sum and z_scale times that of the second. The selection itself has no gradient.
 *
 * router_jitter: y[i] (+)= x[i] * (1 - eps + 2 eps u), u the uniform number of (key, first_element + i).
 *
 * router_backward: dx[tokens, hidden] (+)= dlogits[tokens, experts] W[experts, hidden] and dweight (fp32)
 * (+)= dlogits^T x, both with dlogits in fp32.
 *
 * gather_rows: y[i, :] = x[index[i] / divisor, :]; a negative index gives zeros.
 * combine_rows: y[i, :] (+)= sum over j < fan of x[index[i * fan + j], :], in order of j, negative ones
 * skipped.
 *
 * scaled_activation: y[i, :] = activation(x[i, :]) * scales[index[i]]; backward gives dx and
 * dscales[index[i]] = sum of activation(x[i, :]) * dy[i, :]. index must hit each scale once. A negative index
 * gives zeros, whatever x and dy hold. Layouts of x as in activation_forward. dx must not alias dy.
 *
 * gate: y[i, :] = x[i, :] * sigmoid(g[i]); backward: dx and dg. dx may alias dy.
 *
 * grouped_gemm: one product per expert; rows offsets[g] .. offsets[g + 1] of the operands belong to group g.
 *   forward, dx       c[rows, n] = a[rows, k] B_g, where B_g is [k, n], or [n, k] with trans_b, the groups
 * one after the other, or packed by gemm_pack, each in gemm_packed_bytes(dtype, k, n) weight gradient
 * (sums_rows) c[groups, n, k] (+)= a[rows of g, n]^T b[rows of g, k] `rows` is at least offsets[groups]; rows
 * of c from there on are left alone. An empty group's weight gradient is zero. Everything else as gemm.
 * Workspace depends on `rows`, not on how they are shared out.
 *
 * `expected`, here and in scaled_activation: cost is counted for so many rows, where buffers have room for
 * more than usually come; 0: for `rows`. */
#include "core/tensor/dtype.h"
#include "kernels/args/pointwise.h"
#include <stdbool.h>

enum { ROUTER_MAX_EXPERTS = 1024, ROUTER_MAX_TOPK = 64 };
enum router_score { ROUTER_SOFTMAX, ROUTER_SIGMOID, ROUTER_SQRTSOFTPLUS };

struct router_shape {
    int64_t tokens, experts, topk;
    int64_t group_count, group_topk; /* 0: no groups */
    int64_t count_sets;
    enum router_score score;
    bool pre_softmax;
    float scaling;    /* 0 means 1 */
    int64_t capacity; /* slots of an expert at most; 0: no limit */
    bool drops_by_position, pads;
    int64_t parts; /* ranks that the losses are over; 0 means 1 */
};

/* Rows that routing makes at most; exactly so many with `pads` or without capacity. */
static inline int64_t router_rows(const struct router_shape *s) {
    int64_t slots = s->tokens * s->topk, room = s->experts * s->capacity;
    return s->capacity && (s->pads || room < slots) ? room : slots;
}

struct route_forward_args {
    float *probs;         /* [tokens, topk] */
    int32_t *experts;     /* [tokens, topk] */
    int32_t *offsets;     /* [experts + 1] */
    int32_t *row_of_slot; /* [tokens * topk] */
    int32_t *slot_of_row; /* [router_rows] */
    int32_t *counts;      /* [count_sets, experts] */
    int64_t *tokens;      /* [experts], added to; or NULL */
    const float *logits;  /* [tokens, experts] */
    const float *bias;    /* [experts], added to scores for the selection only, not with SOFTMAX; or NULL */
    struct router_shape shape;
};

struct route_losses_args {
    double *balance_sum;   /* or NULL */
    double *z_sum;         /* or NULL */
    const float *logits;   /* [tokens, experts] */
    const int32_t *counts; /* [count_sets, experts]; read when balance_sum is not NULL */
    struct router_shape shape;
};

struct route_backward_args {
    float *dlogits;             /* [tokens, experts] */
    const float *dprobs;        /* [tokens, topk] */
    const float *logits;        /* [tokens, experts] */
    const int32_t *experts;     /* [tokens, topk] */
    const int32_t *row_of_slot; /* [tokens, topk]; read with capacity */
    const int32_t *counts;      /* [count_sets, experts]; read when balance_scale is not 0 */
    struct router_shape shape;
    float balance_scale, z_scale;
};

struct router_jitter_args {
    void *y;
    const void *x;
    int64_t n;
    uint64_t first_element;
    float eps;
    bool accumulate;
    struct rng_key key;
    enum dtype dtype;
};

struct router_backward_args {
    void *dx;             /* [tokens, hidden] dtype */
    float *dweight;       /* [experts, hidden] */
    const float *dlogits; /* [tokens, experts] */
    const void *x;        /* [tokens, hidden] dtype */
    const void *weight;   /* [experts, hidden] dtype */
    int64_t tokens, experts, hidden;
    bool accumulate_dx, accumulate_dweight;
    enum dtype dtype;
};

struct gather_rows_args {
    void *y;       /* [rows, cols] */
    const void *x; /* [., cols] */
    const int32_t *index;
    int64_t rows, cols, divisor;
    enum dtype dtype;
};

struct combine_rows_args {
    void *y;              /* [rows, cols] */
    const void *x;        /* [., cols] */
    const int32_t *index; /* [rows, fan] */
    int64_t rows, cols, fan;
    bool accumulate;
    enum dtype dtype;
};

struct scaled_activation_forward_args {
    void *y;       /* [rows, cols] */
    const void *x; /* [rows, cols or 2 * cols] */
    const float *scales;
    const int32_t *index; /* [rows] */
    int64_t rows, cols, expected;
    enum activation kind;
    enum dtype dtype;
};

struct scaled_activation_backward_args {
    void *dx; /* [rows, cols or 2 * cols] */
    float *dscales;
    const void *dy; /* [rows, cols] */
    const void *x;
    const float *scales;
    const int32_t *index;
    int64_t rows, cols, expected;
    enum activation kind;
    enum dtype dtype;
};

struct gate_forward_args {
    void *y;       /* [rows, cols] */
    const void *x; /* [rows, cols] */
    const void *g; /* [rows] */
    int64_t rows, cols;
    enum dtype dtype;
};

struct gate_backward_args {
    void *dx, *dg;
    const void *dy, *x, *g;
    int64_t rows, cols;
    enum dtype dtype;
};

struct grouped_gemm_args {
    void *c;
    const void *a, *b;
    const int32_t *offsets; /* [groups + 1] */
    int64_t groups, rows, n, k;
    int64_t expected;
    bool sums_rows, trans_b, b_packed, accumulate;
    enum dtype dtype, c_dtype;
};
