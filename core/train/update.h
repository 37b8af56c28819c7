#pragma once
/* Weights: their start, their update, and the copies that the kernels read. All state lives in the arena at
 * the plan's offsets; nothing is allocated and nothing fails. */
#include "core/train/executor.h"

/* Initial weights: a function of the seed and the parameter's name. Optimizer state starts as the arena's
 * zeros. */
void update_initialize(struct executor *e);
/* 16-bit and packed copies from the fp32 masters; after initialising and after loading. */
void update_compute_copies(struct executor *e);
/* sqrt of the sum of squares of all gradients (before unscaling), and how many elements are not finite. */
double update_grad_norm(struct executor *e, int64_t *bad_p);
double update_params_norm(struct executor *e);
double update_count_zeros(struct executor *e);

struct update_options {
    int64_t step; /* of the optimizer, from 1: bias correction */
    double learning_rate, embedding_learning_rate, weight_decay;
    double beta1, beta2, epsilon;
    float grad_scale; /* clip coefficient / loss scale */
    bool decay_qk_norm;
};
/* AdamW over every parameter (no decay on biases and norms), then the compute copies. */
void update_apply(struct executor *e, const struct update_options *options);
/* Hash of all master weights (and of the routers' expert biases) with their names and places; the same for
 * every layout that has the same weights. */
uint64_t update_params_hash(struct executor *e);
/* Of `count` elements from element `first` of a tensor on; the hash of all is the sum. */
uint64_t update_hash_stretch(const float *x, int64_t count, uint64_t name, uint64_t first);
/* Where element `element` of the local part lies in the whole tensor (row-major), and how many elements from
 * there on lie one after the other in both. */
int64_t update_global_element(const struct plan_param *p, int64_t element, int64_t *count_p);
