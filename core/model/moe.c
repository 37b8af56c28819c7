#include "core/model/ops.h"

/* A dense MLP beside the experts, of every token. */
static int build_shared(struct program *p, const struct model *m, int x) {
    bool gated = activation_is_gated(m->activation);
    int outer = program_begin(p, MODULE_shared_experts);
    int u = op_add_linear(
        p, m, x,
        &(struct linear_spec){.name = "shared_fc1",
                              .prefix = "decoder.layers.%d.mlp.shared_experts.linear_fc1",
                              .per_layer = true,
                              .shard = shard_rows(m, (gated ? 2 : 1) * m->moe.shared_ffn, m->hidden),
                              .out_features = (gated ? 2 : 1) * m->moe.shared_ffn,
                              .init_std = m->init_std});
    int a = op_add_activation(p, m, u, m->moe.shared_ffn);
    int y = op_add_linear(p, m, a,
                          &(struct linear_spec){.name = "shared_fc2",
                                                .prefix = "decoder.layers.%d.mlp.shared_experts.linear_fc2",
                                                .per_layer = true,
                                                .shard = shard_cols(m, m->hidden, m->moe.shared_ffn),
                                                .out_features = m->hidden,
                                                .init_std = m->output_init_std});
    if (m->moe.shared_gate) {
        int g =
            op_add_linear(p, m, x,
                          &(struct linear_spec){.name = "shared_gate",
                                                .weight = "decoder.layers.%d.mlp.shared_experts.gate_weight",
                                                .per_layer = true,
                                                .shard = shard_rows(m, 1, m->hidden),
                                                .out_features = 1,
                                                .init_std = m->init_std});
        y = op_add_gate(p, m, y, g);
    }
    program_end(p, outer);
    return y;
}

/* The mixture of experts: the router sends each token to a few experts, whose results are added up. Rows are
 * brought into the order of experts, so that each expert's product is one matrix product. */
int build_moe(struct program *p, const struct model *m, int x) {
    bool gated = activation_is_gated(m->activation);
    int outer = program_begin(p, MODULE_moe);
    int shared = m->moe.shared_ffn ? build_shared(p, m, x) : -1;
    struct routing r = op_add_route(p, m, op_add_router(p, m, x));
    int permute = program_begin(p, MODULE_moe_permute);
    int rows = op_add_permute(p, m, x, r);
    program_end(p, permute);
    int u = op_add_grouped_linear(
        p, m, rows, r,
        &(struct linear_spec){.name = "experts_fc1",
                              .prefix = "decoder.layers.%d.mlp.experts.linear_fc1",
                              .shard = shard_expert_rows(m, gated ? 2 : 1, m->moe.ffn, m->hidden),
                              .out_features = (gated ? 2 : 1) * model_expert_ffn(m),
                              .init_std = m->init_std});
    int act = program_begin(p, MODULE_moe_act);
    int a = op_add_scaled_activation(p, m, u, r);
    program_end(p, act);
    int y = op_add_grouped_linear(p, m, a, r,
                                  &(struct linear_spec){.name = "experts_fc2",
                                                        .prefix = "decoder.layers.%d.mlp.experts.linear_fc2",
                                                        .shard = shard_expert_cols(m, m->hidden, m->moe.ffn),
                                                        .out_features = m->hidden,
                                                        .init_std = m->output_init_std});
    y = op_add_unpermute(p, m, y, r);
    if (shared >= 0) y = op_add_sum(p, m, shared, y, "shared_sum");
    program_end(p, outer);
    return y;
}
