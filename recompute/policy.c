#include "recompute/policy.h"

static bool has_layer_id(const struct recompute_policy *policy, int64_t layer) {
    int64_t low = 0, high = policy->num_layer_ids;
    while (low < high) { /* the first id that is not below `layer` */
        int64_t middle = (low + high) / 2;
        if (policy->layer_ids[middle] < layer)
            low = middle + 1;
        else
            high = middle;
    }
    return low < policy->num_layer_ids && policy->layer_ids[low] == layer;
}

/* The square root of n, rounded: r while (r - 1/2)^2 < n < (r + 1/2)^2, in whole numbers. At least 1. */
static int64_t rounded_root(int64_t n) {
    int64_t r = 1;
    while (r * (r + 1) < n) r++;
    return r;
}

/* The N of full for this chunk. */
static int64_t chunk_count(const struct recompute_policy *policy, const struct recompute_chunk *chunk) {
    if (policy->method == RECOMPUTE_SQRT) return rounded_root(chunk->num_layers);
    if (!policy->per_stage) {
        CHECK(policy->num_layers >= 1, "full recompute of %d layers", policy->num_layers);
        return policy->num_layers;
    }
    CHECK(chunk->stage >= 0 && chunk->stage < policy->num_stages, "stage %d of %lld", chunk->stage,
          (long long)policy->num_stages);
    CHECK(policy->per_stage[chunk->stage] >= 0, "full recompute of %lld layers",
          (long long)policy->per_stage[chunk->stage]);
    return policy->per_stage[chunk->stage];
}

static int planned_groups(const struct recompute_policy *policy, const struct recompute_chunk *chunk,
                          struct recompute_group *groups) {
    int layer = 0, count = 0, covered = 0;
    for (int i = 0; i < policy->num_planned && covered < chunk->num_layers; i++) {
        if (layer >= chunk->first_layer) {
            groups[count++] = policy->planned[i];
            covered += policy->planned[i].num_layers;
        }
        layer += policy->planned[i].num_layers;
    }
    CHECK(covered == chunk->num_layers && (!covered || layer == chunk->first_layer + covered),
          "a planned group crosses an end of chunk %d of stage %d", chunk->chunk, chunk->stage);
    return count;
}

int recompute_groups(const struct recompute_policy *policy, const struct recompute_chunk *chunk,
                     struct recompute_group *groups) {
    if (policy->granularity == RECOMPUTE_PLANNED) return planned_groups(policy, chunk, groups);
    bool full = policy->granularity == RECOMPUTE_FULL, by_id = full && policy->layer_ids;
    int64_t n = full && !by_id ? chunk_count(policy, chunk) : 0;
    bool uniform = full && !by_id && policy->method != RECOMPUTE_BLOCK && n > 0;
    int count = 0;
    for (int layer = 0; layer < chunk->num_layers; layer += groups[count++].num_layers) {
        int left = chunk->num_layers - layer;
        recompute_set selected = policy->granularity == RECOMPUTE_SELECTIVE ? policy->modules : 0;
        bool whole = by_id ? has_layer_id(policy, (int64_t)chunk->first_layer + layer) : uniform || layer < n;
        if (full && whole) selected = RECOMPUTE_BIT(MODULE_layer);
        groups[count] = (struct recompute_group){uniform ? (n < left ? (int)n : left) : 1, selected};
    }
    return count;
}

recompute_set recompute_of_mtp(const struct recompute_policy *policy, int stage, int layer) {
    struct recompute_chunk chunk = {.stage = stage, .first_layer = layer, .num_layers = 1};
    if (policy->granularity == RECOMPUTE_SELECTIVE) return policy->modules;
    if (policy->granularity == RECOMPUTE_NONE || policy->granularity == RECOMPUTE_PLANNED) return 0;
    bool whole = policy->layer_ids ? has_layer_id(policy, layer)
                                   : policy->method != RECOMPUTE_BLOCK && chunk_count(policy, &chunk) > 0;
    return whole ? RECOMPUTE_BIT(MODULE_layer) : 0;
}
