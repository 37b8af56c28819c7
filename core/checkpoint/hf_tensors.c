#include "core/checkpoint/hf_tensors.h"
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

int hf_list_tensors(const struct checkpoint_model *model, bool router_bias, struct checkpoint_entries *out,
                    struct err *err) {
    struct checkpoint_model m = *model;
    struct listing l = {&m, out, 0, err};
    m.moe_expert_bias = router_bias;
    *out = (struct checkpoint_entries){0};
    checkpoint_each_tensor(&m, add_entries, &l);
    return l.status;
}

bool hf_folder_has_router_bias(const struct checkpoint_model *model) {
    return checkpoint_family(model, NULL) == CHECKPOINT_DEEPSEEK_V3;
}

bool hf_ends_with(const char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    return n >= m && !strcmp(name + n - m, end);
}

bool hf_is_router_bias(const char *name) {
    return hf_ends_with(name, ".e_score_correction_bias");
}
