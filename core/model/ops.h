#pragma once
/* The ops that builders append. Each function records one op and returns the tensor that it makes. Every op
 * has a forward, a backward, and says which of its inputs and outputs backward reads; none knows of
 * recompute. Legend: s sequence, b micro-batch, h hidden, t = s * b tokens; hidden tensors are [s, b, h]. */
#include "core/model/model.h"
#include "core/tensor/program.h"

/* [s, b, h] from the micro-batch's tokens: word embedding plus learned positions. */
int op_add_embedding(struct program *p, const struct model *m);
/* y = norm(x); parameters `prefix`.weight and, for LayerNorm, .bias. */
int op_add_norm(struct program *p, const struct model *m, int x, const char *name, const char *prefix,
                bool per_layer);
/* y = x W^T + b, W [out_features, in_features]; parameters `prefix`.weight and .bias when `bias`. */
int op_add_linear(struct program *p, const struct model *m, int x, const char *name, const char *prefix,
                  bool per_layer, int64_t out_features, float init_std, bool bias);
/* qkv [s, b, g (a/g + 2) d] -> qkv_out = {q, k, v}, head-major, with QK norm and rotary embedding. */
void op_add_qkv_split(struct program *p, const struct model *m, int qkv, int qkv_out[3]);
/* Fused attention: o [s, b, a d] from q, k, v; keeps the log-sum-exp only. */
int op_add_attention(struct program *p, const struct model *m, const int qkv[3]);
/* The unfused chain: scores, softmax, dropout, context. */
int op_add_attention_unfused(struct program *p, const struct model *m, const int qkv[3]);
int op_add_activation(struct program *p, const struct model *m, int x);
int op_add_dropout(struct program *p, const struct model *m, int x, const char *name);
/* y = residual + dropout(x) */
int op_add_residual(struct program *p, const struct model *m, int residual, int x, const char *name);
/* Cross entropy of whole logits [t, V]. */
void op_add_cross_entropy(struct program *p, const struct model *m, int logits);
/* Output projection and cross entropy in chunks of tokens: logits are never whole, and the gradients of the
 * hidden states and of the weight are made in the same pass. `weight` is the parameter's full name. */
void op_add_linear_cross_entropy(struct program *p, const struct model *m, int hidden, const char *weight);
