#include "recompute/policy.h"

int recompute_groups(const struct recompute_policy *policy, int chunk_layers,
                     struct recompute_group *groups) {
    int count = 0;
    bool full = policy->granularity == RECOMPUTE_FULL;
    bool uniform = full && policy->method == RECOMPUTE_UNIFORM;
    for (int layer = 0; layer < chunk_layers; layer += groups[count++].num_layers) {
        int left = chunk_layers - layer;
        recompute_set selected = policy->granularity == RECOMPUTE_SELECTIVE ? policy->modules : 0;
        if (uniform || (full && layer < policy->num_layers)) selected = RECOMPUTE_BIT(MODULE_layer);
        int size = uniform ? (policy->num_layers < left ? policy->num_layers : left) : 1;
        groups[count] = (struct recompute_group){size, selected};
    }
    return count;
}
