#include "core/train/routers.h"
#include "core/base/hash.h"
#include "core/train/update.h"
#include <string.h>

void routers_update_biases(struct executor *e, float rate) {
    const struct plan *plan = e->plan;
    int64_t experts = plan->request.model.moe.experts;
    struct comm *comm = e->comms.tensor_data_context;
    if (!plan->num_routers || !plan->request.model.moe.expert_bias) return;
    if (comm && comm_size(comm) > 1)
        comm_all_reduce(comm, executor_at(e, plan->router_tokens), plan->num_routers * experts, COMM_I64,
                        COMM_SUM);
    for (int i = 0; i < plan->num_routers; i++) {
        const struct router_state *r = &e->routers[i];
        int64_t sum = 0;
        for (int64_t k = 0; k < experts; k++) sum += r->tokens[k];
        for (int64_t k = 0; k < experts; k++) {
            int64_t missing = sum - r->tokens[k] * experts; /* sign of mean - tokens, without a division */
            r->bias[k] += rate * (float)((missing > 0) - (missing < 0));
        }
    }
}

void routers_sum_layers(struct executor *e, struct router_losses *losses, int64_t layers) {
    memset(losses, 0, (size_t)layers * sizeof(*losses));
    for (int i = 0; i < e->plan->num_routers; i++) {
        int layer = e->plan->routers[i].layer;
        if (layer < layers) losses[layer] = e->routers[i].losses;
    }
    if (e->comms.world) comm_all_reduce(e->comms.world, losses, 2 * layers, COMM_F64, COMM_SUM);
}

uint64_t routers_hash(const struct executor *e) {
    uint64_t sum = 0;
    for (int i = 0; i < e->plan->num_routers; i++) {
        const struct plan_router *r = &e->plan->routers[i];
        if (!r->writes || !e->routers[i].bias) continue;
        sum += update_hash_stretch(e->routers[i].bias, r->experts, hash_bytes(r->name, strlen(r->name)), 0);
    }
    return sum;
}
