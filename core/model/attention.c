#include "core/model/ops.h"

int build_core_attention(struct program *p, const struct model *m, const int qkv[3]) {
    int outer = program_begin(p, MODULE_core_attn);
    int o = m->cp > 1  ? op_add_attention_context(p, m, qkv)
            : m->flash ? op_add_attention(p, m, qkv)
                       : op_add_attention_unfused(p, m, qkv);
    program_end(p, outer);
    return o;
}

/* Self-attention: fused projection to q, k, v, attention proper, output projection. */
int build_attention(struct program *p, const struct model *m, int x) {
    int64_t width = model_heads(m) * m->head_dim;
    bool split = m->tp > 1;
    int qkv = op_add_linear(p, m, x,
                            &(struct linear_spec){.name = "linear_qkv",
                                                  .prefix = "decoder.layers.%d.self_attention.linear_qkv",
                                                  .per_layer = true,
                                                  .bias = m->qkv_bias,
                                                  .split = split ? LINEAR_COLUMN : LINEAR_WHOLE,
                                                  .shard = shard_qkv_rows(m, m->hidden),
                                                  .out_features = width + 2 * model_groups(m) * m->head_dim,
                                                  .init_std = m->init_std});
    int parts[3];
    op_add_qkv_split(p, m, qkv, parts);
    int o = build_core_attention(p, m, parts);
    int y = op_add_linear(p, m, o,
                          &(struct linear_spec){.name = "linear_proj",
                                                .prefix = "decoder.layers.%d.self_attention.linear_proj",
                                                .per_layer = true,
                                                .bias = m->linear_bias,
                                                .split = split ? LINEAR_ROW : LINEAR_WHOLE,
                                                .shard = shard_cols(m, m->hidden, m->heads * m->head_dim),
                                                .out_features = m->hidden,
                                                .init_std = m->output_init_std});
    return op_add_reduce_scatter(p, m, y);
}
