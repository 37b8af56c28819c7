#pragma once
/* From the flags to what each layer recomputes.
 *
 *   none        every layer by itself, nothing recomputed
 *   selective   every layer by itself, the chosen modules
 *   full uniform N   groups of N consecutive layers (the last may be shorter); only a group's input is kept
 *   full block N     the first N layers of the model chunk, each by itself; the others keep everything
 *
 * N counts per model chunk, as in Megatron-LM. */
#include "recompute/recompute.h"

enum recompute_granularity { RECOMPUTE_NONE, RECOMPUTE_SELECTIVE, RECOMPUTE_FULL };
enum recompute_method { RECOMPUTE_UNIFORM, RECOMPUTE_BLOCK };

struct recompute_policy {
    enum recompute_granularity granularity;
    enum recompute_method method;
    int num_layers;        /* the N of full */
    recompute_set modules; /* of selective */
};

struct recompute_group {
    int num_layers;
    recompute_set selected;
};

/* Writes at most chunk_layers groups that cover exactly chunk_layers layers; returns how many. */
int recompute_groups(const struct recompute_policy *policy, int chunk_layers, struct recompute_group *groups);
