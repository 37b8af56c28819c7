#include "core/train/settings.h"
#include <math.h>
#include <string.h>

static bool has_all(const struct model *m, recompute_set set) {
    const char *why;
    for (int i = 0; i < MODULE_COUNT; i++)
        if (set >> i & 1 && !model_has_module(m, i, &why)) return false;
    return true;
}

static void add_selective(const struct model *m, recompute_set set, struct recompute_setting *settings,
                          int *count) {
    struct recompute_setting *s = &settings[*count];
    size_t length;
    if (!has_all(m, set)) return;
    *s = (struct recompute_setting){.policy = {.granularity = RECOMPUTE_SELECTIVE, .modules = set}};
    length = (size_t)snprintf(s->flags, sizeof(s->flags), "selective");
    for (int i = 0; i < MODULE_COUNT; i++)
        if (set >> i & 1)
            length += (size_t)snprintf(s->flags + length, sizeof(s->flags) - length, " %s",
                                       recompute_module_info(i)->name);
    ++*count;
}

static void add_full(enum recompute_method method, int n, struct recompute_setting *settings, int *count) {
    struct recompute_setting *s = &settings[(*count)++];
    *s = (struct recompute_setting){
        .policy = {.granularity = RECOMPUTE_FULL, .method = method, .num_layers = n}};
    snprintf(s->flags, sizeof(s->flags), "full %s %d", method == RECOMPUTE_BLOCK ? "block" : "uniform", n);
}

int settings_list(const struct model *m, int layers, struct recompute_setting settings[SETTINGS_MAX]) {
#define BIT(name) RECOMPUTE_BIT(MODULE_##name)
    static const recompute_set sets[] = {BIT(layernorm),
                                         BIT(layernorm) | BIT(mlp_act),
                                         BIT(layernorm) | BIT(moe_act),
                                         BIT(core_attn),
                                         BIT(mla_up_proj),
                                         BIT(layernorm) | BIT(mlp),
                                         BIT(layernorm) | BIT(moe),
                                         BIT(core_attn) | BIT(layernorm) | BIT(mlp)};
#undef BIT
    int count = 0, root = (int)lround(sqrt(layers));
    settings[count++] =
        (struct recompute_setting){.flags = "none", .policy = {.granularity = RECOMPUTE_NONE}};
    for (size_t i = 0; i < ARRAY_COUNT(sets); i++) add_selective(m, sets[i], settings, &count);
    if (layers > 1) add_full(RECOMPUTE_BLOCK, (layers + 1) / 2, settings, &count);
    add_full(RECOMPUTE_UNIFORM, 1, settings, &count);
    if (root > 1) add_full(RECOMPUTE_UNIFORM, root, settings, &count);
    return count;
}

static void set_policy(struct setting_config *out, const struct recompute_policy *p) {
    struct config *c = &out->cfg;
    if (p->granularity == RECOMPUTE_SELECTIVE) {
        int64_t count = 0;
        for (int i = 0; i < MODULE_COUNT; i++)
            if (p->modules >> i & 1) out->modules[count++] = recompute_module_info(i)->name;
        c->recompute_granularity = RECOMPUTE_GRANULARITY_SELECTIVE;
        c->recompute_modules = (struct config_texts){count, out->modules};
    }
    if (p->granularity == RECOMPUTE_FULL) {
        c->recompute_granularity = RECOMPUTE_GRANULARITY_FULL;
        c->recompute_method =
            p->method == RECOMPUTE_UNIFORM ? RECOMPUTE_METHOD_UNIFORM : RECOMPUTE_METHOD_BLOCK;
        c->recompute_num_layers = p->num_layers;
    }
}

void setting_configure(const struct config *cfg, const struct recompute_policy *policy, size_t budget,
                       struct setting_config *out) {
    *out = (struct setting_config){.cfg = *cfg};
    struct config *c = &out->cfg;
    c->save = c->load = c->pretrained_checkpoint = c->tensorboard_dir = c->metrics_file = NULL;
    c->async_save = c->profile = false;
    set_policy(out, policy);
    if (budget) {
        c->recompute_granularity = RECOMPUTE_GRANULARITY_AUTO;
        c->recompute_budget_bytes = (int64_t)budget;
    }
}
