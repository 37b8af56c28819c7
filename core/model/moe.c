#include "core/model/ops.h"

/* A dense MLP beside the experts, of every token; split over the tensor-parallel ranks as any other. The gate
 * has one row: each rank makes its own tokens'. */
static int build_shared(struct program *p, const struct model *m, int x) {
    bool gated = activation_is_gated(m->activation), split = m->tp > 1;
    int64_t ffn = m->moe.shared_ffn / model_tp(m);
    int outer = program_begin(p, MODULE_shared_experts);
    int u =
        op_add_linear(p, m, build_gather(p, m, x),
                      &(struct linear_spec){.name = "shared_fc1",
                                            .prefix = "decoder.layers.%d.mlp.shared_experts.linear_fc1",
                                            .per_layer = true,
                                            .split = split ? LINEAR_COLUMN : LINEAR_WHOLE,
                                            .shard = gated ? shard_gated_rows(m, m->moe.shared_ffn, m->hidden)
                                                           : shard_rows(m, m->moe.shared_ffn, m->hidden),
                                            .out_features = (gated ? 2 : 1) * ffn,
                                            .init_std = m->init_std});
    int a = op_add_activation(p, m, u, ffn);
    int y = op_add_linear(p, m, a,
                          &(struct linear_spec){.name = "shared_fc2",
                                                .prefix = "decoder.layers.%d.mlp.shared_experts.linear_fc2",
                                                .per_layer = true,
                                                .split = split ? LINEAR_ROW : LINEAR_WHOLE,
                                                .shard = shard_cols(m, m->hidden, m->moe.shared_ffn),
                                                .out_features = m->hidden,
                                                .init_std = m->output_init_std});
    y = op_add_reduce_scatter(p, m, y);
    if (m->moe.shared_gate) {
        int g =
            op_add_linear(p, m, x,
                          &(struct linear_spec){.name = "shared_gate",
                                                .weight = "decoder.layers.%d.mlp.shared_experts.gate_weight",
                                                .per_layer = true,
                                                .shard = {.full = {1, m->hidden}},
                                                .out_features = 1,
                                                .init_std = m->init_std});
        y = op_add_gate(p, m, y, g);
    }
    program_end(p, outer);
    return y;
}

/* The experts of this rank on rows in their order: results[0] of fc1, results[1] of fc2. */
static void build_experts(struct program *p, const struct model *m, int rows, struct routing r,
                          int results[2]) {
    bool gated = activation_is_gated(m->activation);
    results[0] = op_add_grouped_linear(
        p, m, rows, r,
        &(struct linear_spec){.name = "experts_fc1",
                              .prefix = "decoder.layers.%d.mlp.experts.linear_fc1",
                              .shard = shard_expert_rows(m, gated ? 2 : 1, m->moe.ffn, m->hidden),
                              .out_features = (gated ? 2 : 1) * model_expert_ffn(m),
                              .init_std = m->init_std});
    int act = program_begin(p, MODULE_moe_act);
    int a = op_add_scaled_activation(p, m, results[0], r);
    program_end(p, act);
    results[1] =
        op_add_grouped_linear(p, m, a, r,
                              &(struct linear_spec){.name = "experts_fc2",
                                                    .prefix = "decoder.layers.%d.mlp.experts.linear_fc2",
                                                    .shard = shard_expert_cols(m, m->hidden, m->moe.ffn),
                                                    .out_features = m->hidden,
                                                    .init_std = m->output_init_std});
}

/* x to the sum of the results of each token's experts. Where experts are split over ranks, rows travel to
 * them and back, or all tokens to all ranks. */
static int build_dispatch(struct program *p, const struct model *m, int x, struct routing r) {
    int results[2];
    if (model_expert_ranks(m) > 1 && m->moe.gathers) {
        struct expert_gathered e = op_add_expert_gather(p, m, x, r);
        build_experts(p, m, e.rows, e.local, results);
        return op_add_expert_combine(p, m, &e, results);
    }
    bool travels = model_expert_ranks(m) > 1;
    int permute = program_begin(p, MODULE_moe_permute);
    int rows = op_add_permute(p, m, x, r), probs = travels ? op_add_row_probs(p, m, r) : -1;
    program_end(p, permute);
    if (travels) {
        struct expert_rows e = op_add_expert_exchange(p, m, rows, probs, r);
        build_experts(p, m, e.rows, e.local, results);
        struct expert_return from = {results[0], results[1], rows, probs, x, r};
        results[1] = op_add_expert_return(p, m, &e, &from);
    } else {
        build_experts(p, m, rows, r, results);
    }
    return op_add_unpermute(p, m, results[1], r);
}

/* The mixture of experts: the router sends each token to a few experts, whose results are added up. Rows are
 * brought into the order of experts, so that each expert's product is one matrix product. */
int build_moe(struct program *p, const struct model *m, int x) {
    int outer = program_begin(p, MODULE_moe);
    int shared = m->moe.shared_ffn ? build_shared(p, m, x) : -1;
    struct routing r = op_add_route(p, m, op_add_router(p, m, x));
    int y = build_dispatch(p, m, x, r);
    if (shared >= 0) y = op_add_sum(p, m, shared, y, "shared_sum");
    program_end(p, outer);
    return y;
}
