/* The small copy of the user's configuration, and the one-rank reference of that copy. Switches stay; sizes
 * become the smallest that still have every cut of the layout in them. */
#include "core/base/mem.h"
#include "core/train/self_check.h"
#include <string.h>

enum {
    HIDDEN = 64,
    FFN = 96,
    HEAD_DIM = 16,
    LATENT = 24,
    EXPERT_FFN = 40,
    SHARED_FFN = 24,
    TOKENS = 36,   /* of a sequence, at least */
    WORDS = 61,    /* odd: the vocabulary needs padding */
    PAD_WORD = 7,  /* one label in 61 does not count */
    MAX_RATIO = 8, /* query heads per key/value head */
    MICRO_BATCH = 2,
    BUCKET_ELEMENTS = 20000 /* several buckets per chunk */
};

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static int64_t common_multiple(int64_t a, int64_t b) {
    int64_t n = larger(a, b);
    while (n % a || n % b) n += larger(a, b);
    return n;
}

/* Layers of one chunk. Alone it has three: buffers that come in pairs are then used again while what they
 * held would still be needed, and a value that should have been brought anew is not right by accident. In a
 * pipeline other micro-batches see to that: two, so that a layer follows another one, and one in a long
 * pipeline. A layout that is spelled out stays as it is, with all its layers. */
static int64_t layers_per_chunk(const struct config *cfg) {
    bool uneven = config_is_set(cfg, decoder_first_pipeline_num_layers) ||
                  config_is_set(cfg, decoder_last_pipeline_num_layers) ||
                  cfg->account_for_embedding_in_pipeline_split || cfg->account_for_loss_in_pipeline_split;
    int64_t chunks = cfg->pipeline_model_parallel_size * cfg->virtual_stages;
    return chunks == 1 ? 3 : uneven || chunks <= 4 ? 2 : 1;
}

static void shrink_layers(const struct config *cfg, struct config *c) {
    int64_t stages = cfg->pipeline_model_parallel_size, chunks = cfg->virtual_stages;
    if (cfg->pipeline_model_parallel_layout) return;
    c->num_layers = stages * chunks * layers_per_chunk(cfg) - cfg->account_for_embedding_in_pipeline_split -
                    cfg->account_for_loss_in_pipeline_split;
    /* uneven: one layer per chunk in the first or last stage, two in the others */
    if (config_is_set(cfg, decoder_first_pipeline_num_layers))
        c->decoder_first_pipeline_num_layers = chunks, c->num_layers -= chunks;
    if (config_is_set(cfg, decoder_last_pipeline_num_layers))
        c->decoder_last_pipeline_num_layers = chunks, c->num_layers -= chunks;
}

/* The same part of a chunk's layers: all of them, or one of two. */
static int64_t shrink_count(const struct config *cfg, const struct config *c, int64_t n) {
    int64_t chunks = cfg->pipeline_model_parallel_size * cfg->virtual_stages;
    int64_t layers = round_up(cfg->num_layers, chunks) / chunks, left = layers_per_chunk(cfg);
    if (n == 0 || c->num_layers == cfg->num_layers) return n;
    if (n >= layers) return left;
    return cfg->recompute_method == RECOMPUTE_METHOD_UNIFORM ? smaller(n, left) : 1;
}

static void shrink_recompute(const struct config *cfg, struct self_check_configs *out) {
    struct config *c = &out->layout;
    const struct config_ints *counts = &cfg->recompute_num_layers_per_stage;
    const struct config_ints *ids = &cfg->recompute_layer_ids;
    if (cfg->recompute_granularity == RECOMPUTE_GRANULARITY_AUTO) {
        /* a plan is for its own number of layers and sizes: whole layers instead */
        c->recompute_granularity = RECOMPUTE_GRANULARITY_FULL;
        c->recompute_method = RECOMPUTE_METHOD_UNIFORM;
        c->recompute_num_layers = 1;
        return;
    }
    if (config_is_set(cfg, recompute_num_layers))
        c->recompute_num_layers = shrink_count(cfg, c, cfg->recompute_num_layers);
    if (counts->count > 0) {
        out->recompute_numbers = mem_new_array(int64_t, (size_t)counts->count, "self-check");
        for (int64_t i = 0; i < counts->count; i++)
            out->recompute_numbers[i] = shrink_count(cfg, c, counts->items[i]);
        c->recompute_num_layers_per_stage.items = out->recompute_numbers;
    }
    if (ids->count <= 0) return;
    out->recompute_numbers = mem_new_array(int64_t, (size_t)ids->count, "self-check");
    int64_t n = 0;
    for (int64_t i = 0; i < ids->count; i++) {
        int64_t id = ids->items[i] * c->num_layers / cfg->num_layers;
        if (!n || id > out->recompute_numbers[n - 1]) out->recompute_numbers[n++] = id;
    }
    c->recompute_layer_ids = (struct config_ints){n, out->recompute_numbers};
}

/* Heads: as many key/value heads as ranks that split them, or fewer where the user has fewer. */
static void shrink_heads(const struct config *cfg, struct config *c) {
    int64_t tp = cfg->tensor_model_parallel_size, cp = cfg->context_parallel_size;
    int64_t ratio = cfg->num_attention_heads / cfg->num_query_groups;
    if (cfg->num_query_groups < tp) {
        int64_t replicas = tp / cfg->num_query_groups; /* ratio is a multiple of it */
        ratio = replicas * smaller(ratio / replicas, 2);
    } else {
        c->num_query_groups = tp * (cfg->cp_comm == CP_COMM_A2A ? cp : 1);
        if (c->num_query_groups == 1 && cfg->num_query_groups > 1) c->num_query_groups = 2;
        ratio = smaller(ratio, MAX_RATIO);
    }
    c->num_attention_heads = c->num_query_groups * ratio;
    c->kv_channels = HEAD_DIM;
    if (cfg->multi_latent_attention) {
        c->qk_head_dim = c->v_head_dim = HEAD_DIM;
        c->qk_pos_emb_head_dim = c->rotary_dim = HEAD_DIM / 2;
        c->kv_lora_rank = LATENT;
        if (config_is_set(cfg, q_lora_rank)) c->q_lora_rank = LATENT;
        return;
    }
    if (!cfg->rotary_dim) return;
    c->rotary_dim = (int64_t)(HEAD_DIM * cfg->rotary_percent) / 2 * 2;
    if (c->rotary_dim < 2) c->rotary_dim = 2;
}

/* Few experts, of which as many are chosen as of the user's; where the user has more, of all or of a group,
 * than are chosen, and more than one on each rank, so has the copy. The user's number fits all that, so there
 * is one that is not larger. */
static int64_t shrink_experts(const struct config *cfg) {
    int64_t experts = cfg->num_experts, topk = cfg->moe_router_topk, ranks = cfg->expert_model_parallel_size;
    int64_t multiple = ranks, least = larger(smaller(topk + 1, experts), smaller(2 * ranks, experts));
    if (config_is_set(cfg, moe_router_num_groups)) {
        int64_t groups = cfg->moe_router_num_groups, chosen = topk / cfg->moe_router_group_topk;
        multiple = common_multiple(ranks, groups);
        least = larger(least, groups * smaller(chosen + 1, experts / groups));
    }
    return round_up(least, multiple);
}

/* Which layers have experts: each as the user's layer at the same depth, but both kinds stay. */
static void shrink_layer_pattern(const struct config *cfg, struct self_check_configs *out) {
    struct config *c = &out->layout;
    int64_t n = c->num_layers;
    out->layer_pattern = mem_new_array(char, (size_t)n + 1, "self-check");
    for (int64_t i = 0; i < n; i++) out->layer_pattern[i] = cfg->moe_layer_pattern[i * cfg->num_layers / n];
    if (!strchr(out->layer_pattern, '1')) out->layer_pattern[n - 1] = '1';
    if (n > 1 && !strchr(out->layer_pattern, '0') && strchr(cfg->moe_layer_pattern, '0'))
        out->layer_pattern[0] = '0';
    c->moe_layer_pattern = out->layer_pattern;
}

bool self_check_lifts_capacity(const struct config *cfg) {
    bool splits_sequences =
        cfg->context_parallel_size > 1 || (cfg->sequence_parallel && cfg->tensor_model_parallel_size > 1);
    return splits_sequences && config_is_set(cfg, moe_expert_capacity_factor) &&
           cfg->moe_expert_capacity_factor >= 0;
}

bool self_check_replaces_balance(const struct config *cfg) {
    return cfg->data_parallel_size > 1 &&
           cfg->moe_router_load_balancing_type == MOE_ROUTER_LOAD_BALANCING_TYPE_GLOBAL_AUX_LOSS;
}

static void shrink_moe(const struct config *cfg, struct self_check_configs *out) {
    struct config *c = &out->layout;
    int64_t tp = cfg->tensor_model_parallel_size;
    bool own_split = config_is_set(cfg, expert_tensor_parallel_size);
    if (!config_is_set(cfg, num_experts) || !cfg->num_experts) return;
    c->num_experts = shrink_experts(cfg);
    c->moe_ffn_hidden_size = round_up(EXPERT_FFN, own_split ? cfg->expert_tensor_parallel_size : tp);
    if (config_is_set(cfg, moe_shared_expert_intermediate_size))
        c->moe_shared_expert_intermediate_size = round_up(SHARED_FFN, tp);
    shrink_layer_pattern(cfg, out);
    if (self_check_replaces_balance(cfg))
        c->moe_router_load_balancing_type = MOE_ROUTER_LOAD_BALANCING_TYPE_AUX_LOSS;
    if (self_check_lifts_capacity(cfg)) {
        c->moe_expert_capacity_factor = NAN;
        c->moe_pad_expert_input_to_capacity = false;
    }
}

static void shrink_sizes(const struct config *cfg, struct config *c) {
    int64_t tp = cfg->tensor_model_parallel_size;
    shrink_heads(cfg, c);
    c->hidden_size = HIDDEN;
    c->ffn_hidden_size = round_up(FFN, tp);
    c->seq_length = round_up(TOKENS, 2 * cfg->context_parallel_size * tp);
    c->max_position_embeddings = c->seq_length;
    c->micro_batch_size = smaller(cfg->micro_batch_size, MICRO_BATCH);
    /* large enough that every part of the model has a say in the loss */
    c->init_method_std = c->embedding_init_method_std = c->output_init_std = 0.1;
    c->bf16 = c->fp16 = c->dynamic_loss_scale = false;
    c->loss_scale = NAN;
    c->params_dtype = PARAMS_DTYPE_FP32;
    if (!config_is_set(cfg, ddp_num_buckets)) c->ddp_bucket_size = BUCKET_ELEMENTS;
}

static void shrink_vocabulary(const struct config *cfg, struct config *c) {
    int64_t tp = cfg->tensor_model_parallel_size;
    c->tokenizer_type = TOKENIZER_TYPE_NULL;
    c->null_tokenizer_eod_id = CONFIG_UNSET_INT;
    c->null_tokenizer_pad_id = PAD_WORD;
    c->vocab_extra_ids = 0;
    c->padded_vocab_size = CONFIG_UNSET_INT;
    c->make_vocab_size_divisible_by = 8;
    c->vocab_size = 8 * tp - 3 > WORDS ? 8 * tp - 3 : WORDS;
    if (!cfg->pad_vocab_size) c->vocab_size = round_up(WORDS, tp);
}

/* Enough micro-batches for every stage to be busy, and for two groups of interleaving in a short pipeline. */
static void shrink_batch(const struct config *cfg, struct self_check_configs *out) {
    struct config *c = &out->layout;
    int64_t stages = cfg->pipeline_model_parallel_size, count = stages == 1 ? 3 : stages + 2;
    if (cfg->virtual_stages > 1) {
        c->microbatch_group_size_per_vp_stage = smaller(cfg->microbatch_group_size_per_vp_stage, stages + 1);
        count = c->microbatch_group_size_per_vp_stage * (stages <= 4 ? 2 : 1);
    }
    c->global_batch_size = count * c->micro_batch_size * cfg->data_parallel_size;
    c->eval_global_batch_size = c->global_batch_size;
    out->batch = (struct config_batch_stage){0, c->global_batch_size};
    c->batch_stages = &out->batch;
    c->batch_stage_count = 1;
}

/* AdamW with an epsilon that is not small against the gradients: its step is then a smooth function of them.
 * With the usual one the first step is the gradient's sign, and an element that is zero but for rounding
 * would move by a whole learning rate either way. However many steps there are, together they go as far as
 * FAR steps of LEARNING_RATE: a model that knows the data by heart has gradients that are mostly rounding. */
#define LEARNING_RATE 0.01
enum { FAR = 5 };
static void set_optimizer(const struct config *cfg, struct config *c) {
    double steps = (double)cfg->self_check_steps;
    c->lr = c->min_lr = steps > FAR ? LEARNING_RATE * FAR / steps : LEARNING_RATE;
    c->adam_eps = 0.01;
    c->lr_decay_style = LR_DECAY_STYLE_CONSTANT;
    c->lr_warmup_steps = c->lr_warmup_init = 0;
    if (config_is_set(cfg, decoupled_lr)) c->decoupled_lr = c->decoupled_min_lr = 2 * c->lr;
}

/* Nothing is read from or written to files, nothing stops the steps. */
static void cut_off(const struct config *cfg, struct config *c) {
    c->skip_train = c->exit_signal_handler = c->async_save = c->profile = c->finetune = false;
    c->save = c->load = c->pretrained_checkpoint = c->tensorboard_dir = c->metrics_file = NULL;
    c->mock_data = true;
    c->split = NULL;
    c->train_iters = cfg->self_check_steps;
    c->train_samples = CONFIG_UNSET_INT;
    c->eval_iters = 0;
    c->iterations_to_skip.count = -1;
    c->device_memory_limit = CONFIG_UNSET_INT;
}

/* One rank, plain loops, plain loss, nothing recomputed. */
static void make_reference(const struct config *layout, struct config *c) {
    *c = *layout;
    c->world_size = c->data_parallel_size = c->virtual_stages = 1;
    c->tensor_model_parallel_size = c->pipeline_model_parallel_size = c->context_parallel_size = 1;
    c->expert_model_parallel_size = c->expert_tensor_parallel_size = 1;
    c->pipeline_schedule = PIPELINE_SCHEDULE_1F1B;
    c->microbatch_group_size_per_vp_stage = CONFIG_UNSET_INT;
    c->pipeline_model_parallel_layout = NULL;
    c->decoder_first_pipeline_num_layers = c->decoder_last_pipeline_num_layers = CONFIG_UNSET_INT;
    c->account_for_embedding_in_pipeline_split = c->account_for_loss_in_pipeline_split = false;
    c->sequence_parallel = c->distribute_saved_activations = c->use_tp_pp_dp_mapping = false;
    c->overlap_grad_reduce = c->overlap_param_gather = false;
    c->sharding = SHARDING_NONE;
    c->recompute_granularity = CONFIG_UNSET_CHOICE;
    c->pad_vocab_size = false;
    c->cross_entropy_loss_fusion = false;
    c->kernels = KERNELS_REFERENCE;
}

void self_check_shrink(const struct config *cfg, struct self_check_configs *out) {
    *out = (struct self_check_configs){.layout = *cfg};
    shrink_layers(cfg, &out->layout);
    shrink_recompute(cfg, out);
    shrink_sizes(cfg, &out->layout);
    shrink_moe(cfg, out);
    shrink_vocabulary(cfg, &out->layout);
    shrink_batch(cfg, out);
    set_optimizer(cfg, &out->layout);
    cut_off(cfg, &out->layout);
    make_reference(&out->layout, &out->reference);
}

void self_check_free_configs(struct self_check_configs *configs) {
    mem_free(configs->recompute_numbers);
    mem_free(configs->layer_pattern);
    *configs = (struct self_check_configs){0};
}
