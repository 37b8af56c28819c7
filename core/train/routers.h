#pragma once
/* What all routers do together at the end of a step: sum their losses over ranks, and move their expert
 * biases towards an even load (Wang et al. 2024, "Auxiliary-loss-free load balancing"): bias += rate *
 * sign(mean - tokens), tokens summed over all ranks and micro-batches of the step. Megatron-LM does so before
 * it knows whether the gradients are finite, so a step that only the loss scale skips moves the biases too.
 */
#include "core/train/executor.h"

void routers_update_biases(struct executor *e, float rate);
/* Adds up the losses of this step by layer, over all ranks: losses[layer] of the whole model's `layers`. */
void routers_sum_layers(struct executor *e, struct router_losses *losses, int64_t layers);
/* One term per element, as update_params_hash takes them: of the biases that this rank writes. */
uint64_t routers_hash(const struct executor *e);
