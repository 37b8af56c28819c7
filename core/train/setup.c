#include "core/base/log.h"
#include "core/train/trainer.h"
#include <stdio.h>

static const struct kernels *kernels_from_config(const struct config *cfg, struct err *err) {
    static const char *const names[] = {[KERNELS_GENERIC] = "generic",
                                        [KERNELS_AVX2] = "avx2",
                                        [KERNELS_AVX512] = "avx512",
                                        [KERNELS_AMX] = "amx"};
    if (cfg->kernels == KERNELS_AUTO) return kernels_cpu();
    if (cfg->kernels == KERNELS_REFERENCE) return kernels_reference();
    const struct kernels *k = kernels_cpu_isa(names[cfg->kernels]);
    if (!k)
        err_set(err, "--kernels %s: this processor or build does not have it; use auto, reference or generic",
                names[cfg->kernels]);
    return k;
}

static struct recompute_policy policy_from_config(const struct config *cfg) {
    struct recompute_policy p = {.granularity = RECOMPUTE_NONE};
    if (!config_is_set(cfg, recompute_granularity)) return p;
    if (cfg->recompute_granularity == RECOMPUTE_GRANULARITY_FULL) {
        p.granularity = RECOMPUTE_FULL;
        p.method = cfg->recompute_method == RECOMPUTE_METHOD_UNIFORM ? RECOMPUTE_UNIFORM : RECOMPUTE_BLOCK;
        if (config_is_set(cfg, recompute_num_layers)) p.num_layers = (int)cfg->recompute_num_layers;
        p.per_stage = cfg->recompute_num_layers_per_stage.items; /* NULL when unset */
        p.num_stages = cfg->recompute_num_layers_per_stage.count;
        p.layer_ids = cfg->recompute_layer_ids.items;
        p.num_layer_ids = cfg->recompute_layer_ids.count;
        return p;
    }
    p.granularity = RECOMPUTE_SELECTIVE;
    for (int64_t i = 0; i < cfg->recompute_modules.count; i++)
        p.modules |= RECOMPUTE_BIT(recompute_module_find(cfg->recompute_modules.items[i]));
    return p;
}

static int64_t largest_batch(const struct config *cfg) {
    int64_t largest = cfg->eval_global_batch_size;
    for (int64_t i = 0; i < cfg->batch_stage_count; i++)
        if (cfg->batch_stages[i].global_batch_size > largest)
            largest = cfg->batch_stages[i].global_batch_size;
    return largest;
}

static int find_vocabulary(struct setup *s, const struct config *cfg, struct err *err) {
    if (tokenizer_open_from_config(cfg, &s->tokenizer, err)) return -1;
    s->vocab_size = s->tokenizer ? tokenizer_vocab_size(s->tokenizer) : cfg->vocab_size;
    if (config_is_set(cfg, vocab_size) && cfg->vocab_size > s->vocab_size) s->vocab_size = cfg->vocab_size;
    s->vocab_size += cfg->vocab_extra_ids;
    s->padded_vocab_size = config_padded_vocab_size(cfg, s->vocab_size, err);
    return s->padded_vocab_size < 0 ? -1 : 0;
}

int setup_open(struct setup *s, const struct config *cfg, struct err *err) {
    *s = (struct setup){0};
    struct plan_request request = {.forward_only = cfg->skip_train};
    request.kernels = kernels_from_config(cfg, err);
    if (!request.kernels) return -1;
    if (cfg->device == DEVICE_CUDA)
        return err_set(err, "--device cuda: this build has no CUDA backend; use --device cpu or auto");
    if (find_vocabulary(s, cfg, err)) return -1;
    s->threads = threads_open(config_is_set(cfg, cpu_threads) ? (int)cfg->cpu_threads : 0);
    request.threads = s->threads;
    model_from_config(cfg, s->padded_vocab_size, &request.model);
    request.recompute = policy_from_config(cfg);
    request.micro_batches = (int)(largest_batch(cfg) / cfg->micro_batch_size);
    plan_build(&request, &s->plan);
    return 0;
}

void setup_close(struct setup *s) {
    plan_free(&s->plan);
    threads_close(s->threads);
    tokenizer_close(s->tokenizer);
    *s = (struct setup){0};
}
