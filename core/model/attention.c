#include "core/model/ops.h"

/* Self-attention: fused projection to q, k, v, attention proper, output projection. */
int build_attention(struct program *p, const struct model *m, int x) {
    int64_t qkv_features = (m->heads + 2 * m->groups) * m->head_dim;
    int qkv = op_add_linear(p, m, x, "linear_qkv", "decoder.layers.%d.self_attention.linear_qkv", true,
                            qkv_features, m->init_std, m->qkv_bias);
    int parts[3];
    op_add_qkv_split(p, m, qkv, parts);
    int outer = program_begin(p, MODULE_core_attn);
    int o = m->flash ? op_add_attention(p, m, parts) : op_add_attention_unfused(p, m, parts);
    program_end(p, outer);
    return op_add_linear(p, m, o, "linear_proj", "decoder.layers.%d.self_attention.linear_proj", true,
                         m->hidden, m->output_init_std, m->linear_bias);
}
