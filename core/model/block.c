/* The architecture on one screen. Legend in ops.h. */
#include "core/model/ops.h"

int build_input(struct program *p, const struct model *m) {
    return p->input = program_tensor(p, "hidden", m->dtype, 3,
                                     (int64_t[]){model_rows(m), m->micro_batch, m->hidden});
}

static int build_norm(struct program *p, const struct model *m, int x, const char *name, const char *prefix) {
    int outer = program_begin(p, MODULE_layernorm);
    int y = op_add_norm(p, m, x, name, prefix, true);
    program_end(p, outer);
    return y;
}

/* What a column-split layer reads. Kept by nobody: where the sequence is split, backward gathers it again. */
int build_gather(struct program *p, const struct model *m, int x) {
    int outer = program_begin(p, MODULE_tensor_gather);
    int y = op_add_gather(p, m, x);
    program_end(p, outer);
    return y;
}

int build_layer(struct program *p, const struct model *m, int x, int64_t layer) {
    int n1 = build_norm(p, m, x, "input_layernorm", "decoder.layers.%d.input_layernorm");
    int attention =
        model_has_latents(m) ? build_mla(p, m, n1) : build_attention(p, m, build_gather(p, m, n1));
    int x1 = op_add_residual(p, m, x, attention, "residual_attention");
    int n2 = build_norm(p, m, x1, "pre_mlp_layernorm", "decoder.layers.%d.pre_mlp_layernorm");
    int y = model_layer_is_moe(m, layer) ? build_moe(p, m, n2) : build_mlp(p, m, build_gather(p, m, n2));
    return op_add_residual(p, m, x1, y, "residual_mlp");
}

bool model_layers_are_alike(const struct model *m, int first, int other, int count) {
    for (int i = 0; i < count; i++)
        if (model_layer_is_moe(m, first + i) != model_layer_is_moe(m, other + i)) return false;
    return true;
}

int64_t model_num_moe_layers(const struct model *m) {
    int64_t count = 0;
    for (int64_t i = 0; i < m->layers; i++) count += model_layer_is_moe(m, i);
    if (m->mtp_layers && model_layer_is_moe(m, m->layers - 1)) count += m->mtp_layers;
    return count;
}

void build_layers(struct program *p, const struct model *m, int first, int count) {
    int x = build_input(p, m);
    int outer = program_begin(p, MODULE_layer);
    for (int i = 0; i < count; i++) {
        x = build_layer(p, m, x, first + i);
        program_next_layer(p);
    }
    program_end(p, outer);
    p->output = x;
}

int build_words(struct program *p, const struct model *m) {
    int x = op_add_embedding(p, m);
    return m->hidden_dropout > 0 ? op_add_dropout(p, m, x, "embedding_dropout") : x;
}

void build_embedding(struct program *p, const struct model *m) {
    p->output = build_words(p, m);
}

/* What is passed on comes first, so that backward adds its gradient last: to one that is complete, after the
 * sum over tensor-parallel ranks. */
void build_output(struct program *p, const struct model *m, int x, bool passes_on) {
    if (passes_on) p->output = op_add_pass(p, m, x);
    if (m->fused_loss) { /* writes the gradient over its input, so that is kept */
        op_add_linear_cross_entropy(p, m, op_add_gather(p, m, x));
        return;
    }
    int logits =
        op_add_linear(p, m, build_gather(p, m, x),
                      &(struct linear_spec){.name = "output_layer",
                                            .prefix = m->tied ? "embedding.word_embeddings" : "output_layer",
                                            .split = m->tp > 1 ? LINEAR_COLUMN : LINEAR_WHOLE,
                                            .shard = shard_rows(m, m->vocab, m->hidden),
                                            .out_features = model_vocab(m),
                                            .init_std = m->tied ? m->embedding_init_std : m->init_std});
    op_add_cross_entropy(p, m, logits);
}

void build_head(struct program *p, const struct model *m) {
    int x = op_add_norm(p, m, build_input(p, m), "final_layernorm", "decoder.final_layernorm", false);
    build_output(p, m, x, m->mtp_layers > 0);
}

bool model_has_module(const struct model *m, int module, const char **why_p) {
    bool any_moe = m->moe.experts > 0 && (!m->layers || model_num_moe_layers(m) > 0);
    bool any_dense = !any_moe || !m->layers || model_num_moe_layers(m) < m->layers + m->mtp_layers;
    *why_p = "it is a part of multi-latent attention; add --multi-latent-attention or drop it";
    if (module == MODULE_mla_up_proj) return model_has_latents(m);
    *why_p = "this model has no experts: add --num-experts or drop it";
    if (module == MODULE_moe || module == MODULE_moe_act) return any_moe;
    if (module == MODULE_shared_experts && any_moe)
        *why_p = "this model has no shared experts: add --moe-shared-expert-intermediate-size or drop it";
    if (module == MODULE_shared_experts) return any_moe && m->moe.shared_ffn > 0;
    *why_p = "every layer of this model has experts: use moe or moe_act";
    return (module != MODULE_mlp && module != MODULE_mlp_act) || any_dense;
}
