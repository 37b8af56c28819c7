#include "core/model/ops.h"

/* The dense MLP: up projection (twice as wide when gated), activation, down projection. */
int build_mlp(struct program *p, const struct model *m, int x) {
    bool gated = activation_is_gated(m->activation), split = m->tp > 1;
    int outer = program_begin(p, MODULE_mlp);
    int u = op_add_linear(p, m, x,
                          &(struct linear_spec){.name = "linear_fc1",
                                                .prefix = "decoder.layers.%d.mlp.linear_fc1",
                                                .per_layer = true,
                                                .bias = m->linear_bias,
                                                .split = split ? LINEAR_COLUMN : LINEAR_WHOLE,
                                                .shard = gated ? shard_gated_rows(m, m->ffn, m->hidden)
                                                               : shard_rows(m, m->ffn, m->hidden),
                                                .out_features = (gated ? 2 : 1) * model_ffn(m),
                                                .init_std = m->init_std});
    int act = program_begin(p, MODULE_mlp_act);
    int a = op_add_activation(p, m, u, model_ffn(m));
    program_end(p, act);
    int y = op_add_linear(p, m, a,
                          &(struct linear_spec){.name = "linear_fc2",
                                                .prefix = "decoder.layers.%d.mlp.linear_fc2",
                                                .per_layer = true,
                                                .bias = m->linear_bias,
                                                .split = split ? LINEAR_ROW : LINEAR_WHOLE,
                                                .shard = shard_cols(m, m->hidden, m->ffn),
                                                .out_features = m->hidden,
                                                .init_std = m->output_init_std});
    y = op_add_reduce_scatter(p, m, y);
    program_end(p, outer);
    return y;
}
