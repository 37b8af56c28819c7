#pragma once
/* From the flags to what each layer recomputes.
 *
 *   none             every layer by itself, nothing recomputed
 *   selective        every layer by itself, the chosen modules
 *   full uniform N   groups of N consecutive layers (the last may be shorter); only a group's input is kept
 *   full sqrt        uniform, where N is the square root of the chunk's layers, rounded
 *   full block N     the first N layers of the model chunk, each by itself; the others keep everything
 *   full layer_ids   exactly these layers of the model, each by itself; the others keep everything
 *   planned          groups of layers with modules of their own, over the whole model (planned.h)
 *
 * N counts per model chunk, as in Megatron-LM: with 2 chunks of 4 layers per stage, block 3 recomputes 6
 * layers of the stage. N above a chunk's layers means all of them. With per_stage every stage has its own N,
 * for each of its chunks; 0 there: the stage recomputes nothing.
 *
 *     struct recompute_policy policy = {.granularity = RECOMPUTE_FULL, .method = RECOMPUTE_BLOCK, .num_layers
 * = 3}; struct recompute_chunk chunk = {.stage = 1, .first_layer = 8, .num_layers = 4}; int count =
 * recompute_groups(&policy, &chunk, groups);       // {1, layer} {1, layer} {1, layer} {1, 0}
 *
 * Sqrt, from Chen et al. 2016 (arXiv 1604.06174): groups of N out of L equal layers hold L/N inputs and, in
 * backward, N layers; the sum is least near the root of L where an input weighs about what a layer keeps.
 *
 * The lists belong to the caller. An N below 1 is a broken invariant: config_validate refuses it. */
#include "core/base/check.h"
#include "recompute/recompute.h"

enum recompute_granularity { RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_FULL, RECOMPUTE_PLANNED };

struct recompute_group {
    int num_layers;
    recompute_set selected;
};
enum recompute_method { RECOMPUTE_UNIFORM, RECOMPUTE_BLOCK, RECOMPUTE_SQRT };

struct recompute_policy {
    enum recompute_granularity granularity;
    enum recompute_method method;
    int num_layers;           /* the N of full; not read with sqrt, per_stage or layer_ids */
    recompute_set modules;    /* of selective: modules, or RECOMPUTE_OPS with what is kept */
    const int64_t *per_stage; /* N of each pipeline stage, or NULL */
    int64_t num_stages;
    const int64_t *layer_ids; /* of full: rising layer numbers of the model, or NULL; excludes method and N */
    int64_t num_layer_ids;
    const struct recompute_group
        *planned; /* of planned: cover the layers of the model; none crosses a chunk */
    int num_planned;
};

/* One chunk of the model: what a pipeline stage runs in one go. */
struct recompute_chunk {
    int stage, chunk;
    int first_layer, num_layers;
};

/* Writes at most chunk->num_layers groups that cover exactly its layers; returns how many. */
int recompute_groups(const struct recompute_policy *policy, const struct recompute_chunk *chunk,
                     struct recompute_group *groups);
/* Of a layer of multi-token prediction, which has number `layer` after the model's last: it follows no other,
 * so with uniform and sqrt it is a group of its own; block counts from the first layer and does not reach it.
 */
recompute_set recompute_of_mtp(const struct recompute_policy *policy, int stage, int layer);
