#pragma once
/* Optimizer arithmetic over flat buffers.
 *
 * adamw (Loshchilov & Hutter 2019; the order of operations of Megatron-LM's fused Adam, adam_w_mode):
 *   g = grad * grad_scale;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
 *   update = (m / bias_correction1) / (sqrt(v / bias_correction2) + epsilon) + weight_decay * master
 *   master -= learning_rate * update
 *   model (optional, 16-bit) = round(master). All state is fp32.
 * sum_squares: *out (double) (+)= sum x^2; also counts elements that are not finite into *bad (+)=. Fixed
 * order. normal_init: x[i] = mean-zero normal of deviation std: element first_element + i of the random
 * tensor `key` (rng_normal_pair over words (0,1) and (2,3) of block e / 4), so any shard of a tensor can be
 * filled on its own. */
#include "core/base/rng.h"
#include "core/tensor/dtype.h"
#include <stdbool.h>

struct adamw_args {
    float *master, *m, *v;
    const float *grad;
    void *model; /* model_dtype, or NULL */
    int64_t n;
    float learning_rate, beta1, beta2, epsilon, weight_decay;
    float bias_correction1, bias_correction2; /* 1 - beta^step */
    float grad_scale;                         /* clip coefficient / loss scale */
    enum dtype model_dtype;
};

struct sum_squares_args {
    double *out;
    int64_t *bad; /* NULL: do not count */
    const void *x;
    int64_t n;
    bool accumulate;
    enum dtype dtype;
};

struct normal_init_args {
    float *x;
    int64_t n;
    uint64_t first_element;
    float std;
    struct rng_key key;
};
