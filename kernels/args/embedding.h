#pragma once
/* Token embedding plus optional learned positions.
 *
 *   y[i, j, :] (+)= weight[tokens[j, i], :] (+ position_weight[positions[j, i], :])     i < s, j < b
 * tokens and positions are [b, s] int32 (as the loader delivers them); y is [s, b, h]. Token ids and
 * positions were range-checked on the host. Backward adds rows of dy into the fp32 gradients in a fixed
 * order: for each table row, by rising (i, j). It always accumulates: the caller zeroes or has already
 * written the gradient.
 *
 * A shard of the vocabulary: `weight` holds the tokens first_token_id .. first_token_id + vocab - 1. Other
 * tokens count as a row of zeros, and backward skips them: the sum over all shards is the whole embedding.
 * tokens and weight NULL: positions only.
 *
 * A shard of the sequence: tokens and positions are [b, stride], and the s columns from first_column on are
 * done; y and dy hold just these. */
#include "core/tensor/dtype.h"
#include <stdbool.h>

struct embedding_forward_args {
    void *y;                     /* [s, b, h] dtype */
    const void *weight;          /* [vocab, h] dtype */
    const void *position_weight; /* [max positions, h] dtype; NULL: none */
    const int32_t *tokens, *positions;
    int64_t s, b, h, vocab, max_positions;
    int64_t first_token_id;
    int64_t stride, first_column; /* stride 0: s */
    bool accumulate;
    enum dtype dtype;
};

struct embedding_backward_args {
    float *dweight;          /* [vocab, h]; NULL: skip */
    float *dposition_weight; /* [max positions, h]; NULL: none */
    const void *dy;          /* [s, b, h] dtype */
    const int32_t *tokens, *positions;
    int64_t s, b, h, vocab, max_positions;
    int64_t first_token_id;
    int64_t stride, first_column; /* stride 0: s */
    enum dtype dtype;
};
