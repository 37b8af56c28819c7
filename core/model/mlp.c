#include "core/model/ops.h"

/* The dense MLP: up projection (twice as wide when gated), activation, down projection. */
int build_mlp(struct program *p, const struct model *m, int x) {
    int64_t wide = activation_is_gated(m->activation) ? 2 * m->ffn : m->ffn;
    int outer = program_begin(p, MODULE_mlp);
    int u = op_add_linear(p, m, x, "linear_fc1", "decoder.layers.%d.mlp.linear_fc1", true, wide, m->init_std,
                          m->linear_bias);
    int act = program_begin(p, MODULE_mlp_act);
    int a = op_add_activation(p, m, u);
    program_end(p, act);
    int y = op_add_linear(p, m, a, "linear_fc2", "decoder.layers.%d.mlp.linear_fc2", true, m->hidden,
                          m->output_init_std, m->linear_bias);
    program_end(p, outer);
    return y;
}
