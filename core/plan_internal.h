#pragma once
/* Private to core/plan*.c: the steps of plan_build. */
#include "core/plan.h"

/* Modules that every segment recomputes, whatever was chosen. */
#define PLAN_ALWAYS_RECOMPUTED (RECOMPUTE_BIT(MODULE_tensor_gather) | RECOMPUTE_BIT(MODULE_moe_permute))

/* Reserves bytes of a fixed region and returns its arena offset. */
size_t plan_take(struct plan *plan, enum plan_category category, size_t bytes);
/* plan_params.c: parameters of all segments, buckets, and the places of weights, gradients and optimizer
 * state. */
void plan_make_params(struct plan *plan);
/* Full name of a parameter (or router) of a segment whose first layer is `first_layer`. */
void plan_param_name(const struct param_info *info, int first_layer, char *name, size_t capacity);
/* plan_routers.c: states of the routers and their places. */
void plan_make_routers(struct plan *plan);
/* plan_cost.c: runs every list on the meta kernels. */
void plan_measure_costs(struct plan *plan);
/* One list by itself: cost->op_flops belongs to the caller. The plan needs its request only. */
void plan_measure_compiled(const struct plan *plan, const struct compiled *c, struct compiled_cost *cost);
/* plan_memory.c */
void plan_place_frames(struct plan *plan);
void plan_find_peak(struct plan *plan);
void plan_place_rest(struct plan *plan);
