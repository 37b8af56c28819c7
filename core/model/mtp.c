/* Multi-token prediction (DeepSeek-V3, 2024, section 2.2): depth k = 1 .. D predicts the token k + 1 places
 * on, from the hidden states of depth k - 1 (depth 0: of the head) and the tokens k places on. Legend in
 * ops.h.
 *
 *     x = [enorm(embedding(tokens rolled by k)) | hnorm(hidden)] W [h, 2 h]
 *     hidden = final_layernorm(layer(x)) -> the next depth, and the output layer with labels rolled by k
 *
 * The layer is of the kind of the model's last one. Embedding and output layer are the model's own. Rolling
 * is the executor's: the segment reads a micro-batch that is k tokens on, where what lies behind the end of a
 * sequence counts in no loss. The projection is whole on every tensor-parallel rank, and works on its rows
 * where the sequence is split.
 *
 * Full recompute re-runs everything up to the layer's result, the embedding too; the module layernorm
 * discards the joined norms, which are wider than all else here. */
#include "core/base/check.h"
#include "core/base/mem.h"
#include "core/model/ops.h"
#include <stdio.h>
#include <string.h>

#define LAYER_PREFIX "decoder.layers.%d."
#define PREFIX       "mtp.layers.%d."

bool model_mtp_passes_on(const struct model *m, int layer) {
    return layer + 1 < m->mtp_layers;
}

/* The layer's parameters (or routers) from `first` on belong to this depth. */
static void rename_params(struct param_info *params, int first, int count) {
    for (int i = first; i < count; i++) {
        struct param_info *info = &params[i];
        char name[192];
        CHECK(!strncmp(info->name, LAYER_PREFIX, strlen(LAYER_PREFIX)), "%s is not of a layer", info->name);
        snprintf(name, sizeof(name), "%s%s", PREFIX "transformer_layer.", info->name + strlen(LAYER_PREFIX));
        mem_free((void *)(uintptr_t)info->name);
        info->name = mem_strdup(name, "parameter name");
    }
}

static int build_joined_norms(struct program *p, const struct model *m, int words, int hidden) {
    int outer = program_begin(p, MODULE_layernorm);
    int e = op_add_norm(p, m, words, "enorm", PREFIX "enorm", true);
    int h = op_add_norm(p, m, hidden, "hnorm", PREFIX "hnorm", true);
    int x = op_add_concat(p, m, e, h);
    program_end(p, outer);
    return x;
}

void build_mtp(struct program *p, const struct model *m, int layer) {
    CHECK(!m->learned_positions, "positions are not rolled with the tokens");
    int hidden = build_input(p, m), outer = program_begin(p, MODULE_layer);
    int x = build_joined_norms(p, m, build_words(p, m), hidden);
    x = op_add_linear(p, m, x,
                      &(struct linear_spec){.name = "eh_proj",
                                            .prefix = PREFIX "eh_proj",
                                            .per_layer = true,
                                            .shard.full = {m->hidden, 2 * m->hidden},
                                            .out_features = m->hidden,
                                            .init_std = m->init_std});
    int first = p->num_params, first_router = p->num_routers;
    x = build_layer(p, m, x, m->layers - 1);
    rename_params(p->params, first, p->num_params);
    rename_params(p->routers, first_router, p->num_routers);
    program_end(p, outer);
    x = op_add_norm(p, m, x, "final_layernorm", PREFIX "final_layernorm", true);
    build_output(p, m, x, model_mtp_passes_on(m, layer));
}
