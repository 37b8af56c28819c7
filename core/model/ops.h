#pragma once
/* The ops that builders append. Each function records one op and returns the tensor that it makes. Every op
 * has a forward, a backward, and says which of its inputs and outputs backward reads; none knows of
 * recompute. Legend: s sequence, b micro-batch, h hidden, t = s * b tokens; hidden tensors are [s, b, h],
 * where s is this rank's rows of the sequence (model_rows between the linear layers, model_seq inside them).
 */
#include "core/model/model.h"
#include "core/tensor/program.h"

/* [model_rows, b, h] from the micro-batch's tokens: word embedding plus learned positions. */
int op_add_embedding(struct program *p, const struct model *m);
/* y = norm(x); parameters `prefix`.weight and, for LayerNorm, .bias. */
int op_add_norm(struct program *p, const struct model *m, int x, const char *name, const char *prefix,
                bool per_layer);
/* y = x W^T + b, W [out_features, in_features] of which this rank holds a part:
 *   LINEAR_WHOLE   all of it (one tensor-parallel rank, or the same work on each; where the sequence is
 * split, each on its rows, and the gradient of W is a sum over the ranks) LINEAR_COLUMN  rows of W: y is this
 * rank's features. The gradient of x is a sum over the ranks: the op reduces it (beside its weight gradient)
 * unless the sequence is split, where op_add_gather does LINEAR_ROW columns of W: x is this rank's features,
 * y a part of a sum: the op reduces it, unless the sequence is split, where op_add_reduce_scatter does. The
 * bias is added on the first rank only A name that is there already (tied weights) is the same parameter. */
enum linear_split { LINEAR_WHOLE, LINEAR_COLUMN, LINEAR_ROW };
struct linear_spec {
    const char *name, *prefix; /* parameters `prefix`.weight and, with `bias`, `prefix`.bias */
    const char *weight;        /* the weight's name where it is not `prefix`.weight, or NULL */
    bool per_layer, bias;
    enum linear_split split;
    struct param_shard shard; /* of the weight; the bias follows its rows */
    int64_t out_features;     /* this rank's */
    float init_std;
};
int op_add_linear(struct program *p, const struct model *m, int x, const struct linear_spec *spec);

/* Sequence parallel: [model_rows, b, h] -> [model_seq, b, h] and back (all-gather, reduce-scatter; each the
 * other's backward). Without it they return x. */
int op_add_gather(struct program *p, const struct model *m, int x);
int op_add_reduce_scatter(struct program *p, const struct model *m, int x);

/* Shards: rows of an even split, of [gate; up], of the fused projection by query groups; columns. */
struct param_shard shard_rows(const struct model *m, int64_t rows, int64_t cols);
struct param_shard shard_gated_rows(const struct model *m, int64_t half, int64_t cols);
struct param_shard shard_qkv_rows(const struct model *m, int64_t cols);
struct param_shard shard_cols(const struct model *m, int64_t rows, int64_t cols);
/* Of the experts' weights, one after the other: this expert-parallel rank's experts, of each the
 * expert-tensor-parallel rank's rows (of `parts` equal parts, 2 for [gate; up], an even split) or columns. */
struct param_shard shard_expert_rows(const struct model *m, int parts, int64_t part, int64_t cols);
struct param_shard shard_expert_cols(const struct model *m, int64_t rows, int64_t cols);
/* qkv [s, b, g (a/g + 2) d] -> qkv_out = {q, k, v}, head-major, with QK norm and rotary embedding. */
void op_add_qkv_split(struct program *p, const struct model *m, int qkv, int qkv_out[3]);
/* Multi-latent attention: kv_down [s, b, rank + dr] -> latents = {latent [s, b, rank], k_pe [s, b, dr]}; and
 * q [s, b, a (dn + dr)], kv [s, b, a (dn + dv)] and k_pe -> head-major qkv_out, rotated. k_pe is the same on
 * every tensor-parallel rank and each rank's heads make a part of its gradient: the op reduces it, unless the
 * sequence is split, where op_add_gather does. */
void op_add_latent_split(struct program *p, const struct model *m, int kv_down, int latents[2]);
void op_add_mla_assemble(struct program *p, const struct model *m, int q, int kv, int k_pe, int qkv_out[3]);
/* Fused attention: o [s, b, a d] from q, k, v; keeps the log-sum-exp only. */
int op_add_attention(struct program *p, const struct model *m, const int qkv[3]);
/* The same over the tokens of all context-parallel ranks (m->cp > 1): ring, gather or exchange of heads. */
int op_add_attention_context(struct program *p, const struct model *m, const int qkv[3]);
/* The unfused chain: scores, softmax, dropout, context. */
int op_add_attention_unfused(struct program *p, const struct model *m, const int qkv[3]);
/* [.., .., width] from x, which is twice as wide for gated kinds. */
int op_add_activation(struct program *p, const struct model *m, int x, int64_t width);
int op_add_dropout(struct program *p, const struct model *m, int x, const char *name);
/* y = residual + dropout(x) */
int op_add_residual(struct program *p, const struct model *m, int residual, int x, const char *name);
/* y = x, and its gradient is added to that of x. */
int op_add_pass(struct program *p, const struct model *m, int x);
/* [.., .., 2 h] = [a | b] of hidden tensors. */
int op_add_concat(struct program *p, const struct model *m, int a, int b);
/* Cross entropy of whole logits [t, V]. */
void op_add_cross_entropy(struct program *p, const struct model *m, int logits);
/* Output projection and cross entropy in chunks of tokens: logits are never whole, and the gradients of the
 * hidden states and of the weight (tied: the embedding's) are made in the same pass. */
void op_add_linear_cross_entropy(struct program *p, const struct model *m, int hidden);

/* ---- mixture of experts; t tokens, k experts of each, rows in the order of experts ---- */
struct routing {
    int probs;                 /* [t, k] fp32, has a gradient */
    int dispatch;              /* int32: offsets of the experts, row of each slot, slot of each row */
    int experts;               /* [t, k] int32: the choices */
    struct router_shape shape; /* of the dispatch */
    int64_t rows;              /* in the order of experts that are worked on; 0: one per slot */
    int64_t expected_rows; /* what FLOPs are counted for where fewer rows than there is room for are usual;
                              0: all */
};
/* Logits [t, E] in fp32; parameter mlp.router.weight. */
int op_add_router(struct program *p, const struct model *m, int x);
/* Choices, probabilities and the order of rows; the losses that balance the load enter the gradient here. */
struct routing op_add_route(struct program *p, const struct model *m, int logits);
/* x [s, b, h] -> rows [t k, h], and the sum of each token's rows. */
int op_add_permute(struct program *p, const struct model *m, int x, struct routing r);
int op_add_unpermute(struct program *p, const struct model *m, int y, struct routing r);
/* Rows [t k, in] -> [t k, out] with each expert's own weight; one parameter [E out, in] of which this rank
 * holds what spec->shard says: its experts, of each spec->out_features rows and as many columns as x has. */
int op_add_grouped_linear(struct program *p, const struct model *m, int x, struct routing r,
                          const struct linear_spec *spec);
/* activation(x) times the row's probability. */
int op_add_scaled_activation(struct program *p, const struct model *m, int x, struct routing r);
/* Expert parallelism (core/model/ops/expert.h). Probabilities [t k] in the order of rows; rows and
 * probabilities of all ranks that are for experts of this one, as many as it takes at a time; and from their
 * results back to [t k, h], with those that found no room passing behind in the same way. fc1 and fc2 are the
 * results of the two grouped products, x is what `rows` was permuted from. */
struct expert_rows {
    int rows;   /* [bound, h] */
    int counts; /* int32 [ranks, E] */
    struct routing local;
};
int op_add_row_probs(struct program *p, const struct model *m, struct routing r);
struct expert_rows op_add_expert_exchange(struct program *p, const struct model *m, int rows, int probs,
                                          struct routing source);
struct expert_return {
    int fc1, fc2, rows, probs, x;
    struct routing source;
};
int op_add_expert_return(struct program *p, const struct model *m, const struct expert_rows *e,
                         const struct expert_return *from);
/* The other way: each rank sees the tokens of all, works on rows that are for its experts, and the sums of
 * each token's rows are added over the ranks. gathered [N t, h]; from rows to [s, b, h]. */
struct expert_gathered {
    int x;       /* [N t, h] */
    int rows;    /* [bound, h] */
    int offsets; /* int32: of all rows for this rank, in windows or not */
    struct routing local;
};
struct expert_gathered op_add_expert_gather(struct program *p, const struct model *m, int x,
                                            struct routing source);
int op_add_expert_combine(struct program *p, const struct model *m, const struct expert_gathered *e,
                          const int results[2]);
/* x * sigmoid(g), g [s, b, 1] */
int op_add_gate(struct program *p, const struct model *m, int x, int g);
int op_add_sum(struct program *p, const struct model *m, int a, int b, const char *name);
