#pragma once
/* Cross entropy over the (padded) vocabulary, one row per token.
 *
 *   forward:  lse[r] = log sum_v exp(logits[r, v]); loss[r] = mask[r] == 0 ? 0 : mask[r] * (lse[r] -
 * logits[r, label[r]]) backward: dlogits[r, v] = mask[r] == 0 ? 0 : (exp(logits[r, v] - lse[r]) - [v ==
 * label[r]]) * mask[r] * grad_scale dlogits may alias logits. Rows whose mask is 0 are never read for their
 * label (labels of -100 are fine there). Exponentials and sums are fp32. rows are in any order; labels and
 * mask follow the same order. */
#include "core/tensor/dtype.h"

struct cross_entropy_forward_args {
    float *loss, *lse;  /* [rows] */
    const void *logits; /* [rows, vocab] dtype */
    const int32_t *labels;
    const float *mask;
    int64_t rows, vocab;
    enum dtype dtype;
};

struct cross_entropy_backward_args {
    void *dlogits;      /* [rows, vocab] dtype */
    const void *logits; /* [rows, vocab] dtype */
    const float *lse;
    const int32_t *labels;
    const float *mask;
    int64_t rows, vocab;
    float grad_scale;
    enum dtype dtype;
};
