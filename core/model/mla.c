/* Multi-latent attention (DeepSeek-V2, 2024, section 2.1). Legend in ops.h; rank: width of a latent.
 *
 *     kv_down = x W [rank + dr] -> latent, k_pe       q_down = x W [q_rank]
 *     kv = norm(latent) W [a (dn + dv)]               q = norm(q_down) W [a (dn + dr)]
 *     q, k, v = assemble(q, kv, k_pe) -> attention -> output projection
 *
 * The norms are there with --qk-layernorm. The down projections are whole on every tensor-parallel rank and,
 * as in Megatron-LM, work on its rows of the sequence where that is split; the latents, which are narrow, are
 * then gathered instead of the hidden states. The up projections are split by heads. No bias but that of the
 * output projection. The module mla_up_proj holds what lies between the latents and attention: with it
 * recomputed, q_down, latent and k_pe are all that stays. */
#include "core/model/ops.h"

#define PREFIX "decoder.layers.%d.self_attention."

static int build_down(struct program *p, const struct model *m, int x, const char *name, const char *prefix,
                      int64_t features) {
    return op_add_linear(p, m, x,
                         &(struct linear_spec){.name = name,
                                               .prefix = prefix,
                                               .per_layer = true,
                                               .split = LINEAR_WHOLE,
                                               .shard.full = {features, m->hidden},
                                               .out_features = features,
                                               .init_std = m->init_std});
}

/* Rows of x to a * head_width columns, of which this rank makes those of its heads. */
static int build_up(struct program *p, const struct model *m, int x, const char *name, const char *prefix,
                    int64_t head_width) {
    int64_t width = p->tensors[x].dims[2];
    return op_add_linear(p, m, build_gather(p, m, x),
                         &(struct linear_spec){.name = name,
                                               .prefix = prefix,
                                               .per_layer = true,
                                               .split = m->tp > 1 ? LINEAR_COLUMN : LINEAR_WHOLE,
                                               .shard = shard_rows(m, m->heads * head_width, width),
                                               .out_features = model_heads(m) * head_width,
                                               .init_std = m->init_std});
}

static int build_latent_norm(struct program *p, const struct model *m, int x, const char *name,
                             const char *prefix) {
    return m->qk_norm ? op_add_norm(p, m, x, name, prefix, true) : x;
}

static int build_queries(struct program *p, const struct model *m, int x) {
    if (!m->q_rank) return build_up(p, m, x, "linear_q_proj", PREFIX "linear_q_proj", m->head_dim);
    int latent = build_latent_norm(p, m, x, "q_layernorm", PREFIX "q_layernorm");
    return build_up(p, m, latent, "linear_q_up_proj", PREFIX "linear_q_up_proj", m->head_dim);
}

int build_mla(struct program *p, const struct model *m, int x) {
    int latents[2], parts[3], q_down = x;
    int kv_down =
        build_down(p, m, x, "linear_kv_down_proj", PREFIX "linear_kv_down_proj", m->kv_rank + m->rotary_dim);
    op_add_latent_split(p, m, kv_down, latents);
    if (m->q_rank) {
        q_down = build_down(p, m, x, "linear_q_down_proj", PREFIX "linear_q_down_proj", m->q_rank);
    }
    int outer = program_begin(p, MODULE_mla_up_proj);
    int q = build_queries(p, m, q_down);
    int latent = build_latent_norm(p, m, latents[0], "kv_layernorm", PREFIX "kv_layernorm");
    int kv =
        build_up(p, m, latent, "linear_kv_up_proj", PREFIX "linear_kv_up_proj", m->plain_dim + m->value_dim);
    op_add_mla_assemble(p, m, q, kv, build_gather(p, m, latents[1]), parts);
    program_end(p, outer);
    int o = build_core_attention(p, m, parts);
    int y = op_add_linear(p, m, o,
                          &(struct linear_spec){.name = "linear_proj",
                                                .prefix = PREFIX "linear_proj",
                                                .per_layer = true,
                                                .bias = m->linear_bias,
                                                .split = m->tp > 1 ? LINEAR_ROW : LINEAR_WHOLE,
                                                .shard = shard_cols(m, m->hidden, m->heads * m->value_dim),
                                                .out_features = m->hidden,
                                                .init_std = m->output_init_std});
    return op_add_reduce_scatter(p, m, y);
}
