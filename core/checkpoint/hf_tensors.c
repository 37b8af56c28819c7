#include "core/checkpoint/hf_tensors.h"
#include <stdio.h>
#include <string.h>

struct listing {
    const struct checkpoint_model *model;
    struct checkpoint_entries *out;
    int status;
    struct err *err;
};

static void add_entries(void *context, const char *name, int num_dims, const int64_t dims[2]) {
    struct listing *l = context;
    if (!l->status && checkpoint_entries_of(l->model, name, num_dims, dims, l->out, l->err) < 0)
        l->status = -1;
}

int hf_list_tensors(const struct checkpoint_model *model, struct checkpoint_entries *out, struct err *err) {
    struct listing l = {model, out, 0, err};
    *out = (struct checkpoint_entries){0};
    checkpoint_each_tensor(model, add_entries, &l);
    return l.status;
}

static const char EMBEDDING[] = ".embed_tokens.weight", HEAD[] = ".shared_head.head.weight";

int hf_list_folder(const struct checkpoint_model *model, struct checkpoint_entries *out, struct err *err) {
    struct checkpoint_model m = *model;
    int64_t dims[2] = {m.padded_vocab_size, m.hidden_size};
    if (checkpoint_family(model, NULL) == CHECKPOINT_DEEPSEEK_V3) m.moe_expert_bias = true;
    if (hf_list_tensors(&m, out, err)) return -1;
    for (int64_t i = 0; i < 2 * m.mtp_layers; i++) {
        char name[CHECKPOINT_MAX_NAME];
        snprintf(name, sizeof(name), "model.layers.%lld%s", (long long)(m.num_layers + i / 2),
                 i % 2 ? HEAD : EMBEDDING);
        if (checkpoint_entries_of(&m, name, 2, dims, out, err) < 0) return -1;
        out->list[out->count - 1].vocabulary = true;
    }
    return 0;
}

const char *hf_copy_of(const struct checkpoint_model *model, const char *name) {
    if (strncmp(name, "model.layers.", 13)) return NULL;
    if (hf_ends_with(name, EMBEDDING)) return "model.embed_tokens.weight";
    if (!hf_ends_with(name, HEAD)) return NULL;
    return model->tied ? "model.embed_tokens.weight" : "lm_head.weight";
}

bool hf_ends_with(const char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    return n >= m && !strcmp(name + n - m, end);
}

bool hf_is_router_bias(const char *name) {
    return hf_ends_with(name, ".e_score_correction_bias");
}
