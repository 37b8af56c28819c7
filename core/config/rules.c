/* Every rule between flags, and every value that follows from others. A rule is one REQUIRE: the condition
 * that must hold, and a message that names the flags and the remedy. Sources: Megatron-LM's validate_args and
 * TransformerConfig.__post_init__ where it checks; where it silently changes or ignores a flag, the rule
 * refuses. The layout is in rules_parallel.c, the pipeline in rules_pipeline.c, recompute in
 * rules_recompute.c, multi-latent attention in rules_mla.c, data and tokenizer in rules_data.c, batch sizes,
 * iterations and learning rates in rules_schedule.c.
 */
#include "core/config/rules.h"
#include <string.h>

bool rules_gave(const struct config *cfg, int flag) {
    return cfg->origin[flag] >= CONFIG_YAML;
}

bool rules_plans_only(const struct config *cfg) {
    return cfg->dry_run || cfg->print_topology;
}

/* Does the flag differ from "off"? */
static bool is_active(const struct config *cfg, int flag) {
    const struct flag_row *row = &flag_rows[flag];
    if (row->kind == FLAG_ON) return *(const bool *)flag_field(cfg, flag);
    if (row->kind == FLAG_OFF) return !*(const bool *)flag_field(cfg, flag);
    return config_flag_is_set(cfg, flag);
}

static int rules_required(const struct config *cfg, struct err *err) {
    static const int required[] = {CONFIG_FLAG_num_layers,
                                   CONFIG_FLAG_hidden_size,
                                   CONFIG_FLAG_num_attention_heads,
                                   CONFIG_FLAG_seq_length,
                                   CONFIG_FLAG_max_position_embeddings,
                                   CONFIG_FLAG_micro_batch_size};
    for (size_t i = 0; i < ARRAY_COUNT(required); i++) {
        REQUIRE(config_flag_is_set(cfg, required[i]), "%s is required: give the %s",
                config_flag_name(required[i]), flag_rows[required[i]].help);
    }
    return 0;
}

/* Flags that Megatron-LM ignores without another one: the user meant something, so say it. */
static int rules_without_effect(const struct config *cfg, struct err *err) {
#define NEEDS(flag, other)                                                                                   \
    { CONFIG_FLAG_##flag, CONFIG_FLAG_##other }
    static const struct {
        int flag, other;
    } needs[] = {
        NEEDS(rope_scaling_factor, use_rope_scaling),
        NEEDS(apply_wd_to_qk_layernorm, qk_layernorm),
        NEEDS(q_lora_rank, multi_latent_attention),
        NEEDS(kv_lora_rank, multi_latent_attention),
        NEEDS(qk_head_dim, multi_latent_attention),
        NEEDS(qk_pos_emb_head_dim, multi_latent_attention),
        NEEDS(v_head_dim, multi_latent_attention),
        NEEDS(rotary_scaling_factor, multi_latent_attention),
        NEEDS(mscale, multi_latent_attention),
        NEEDS(mscale_all_dim, multi_latent_attention),
        NEEDS(exit_signal, exit_signal_handler),
        NEEDS(cross_entropy_fusion_impl, cross_entropy_loss_fusion),
        NEEDS(decoupled_min_lr, decoupled_lr),
        NEEDS(start_eval_at_iter, eval_interval),
        NEEDS(save_interval, save),
        NEEDS(save_retain_interval, save),
        NEEDS(no_save_optim, save),
        NEEDS(no_save_rng, save),
        NEEDS(ckpt_step, load),
        NEEDS(exit_on_missing_checkpoint, load),
        NEEDS(tensorboard_log_interval, tensorboard_dir),
        NEEDS(log_timers_to_tensorboard, tensorboard_dir),
        NEEDS(log_validation_ppl_to_tensorboard, tensorboard_dir),
        NEEDS(log_memory_to_tensorboard, tensorboard_dir),
        NEEDS(log_world_size_to_tensorboard, tensorboard_dir),
        NEEDS(profile_step_start, profile),
        NEEDS(profile_step_end, profile),
        NEEDS(profile_ranks, profile),
        NEEDS(profile_trace_file, profile),
        NEEDS(memory_timeline_stages, memory_timeline),
        NEEDS(use_pytorch_profiler, profile),
        NEEDS(log_params_hash, metrics_file),
        NEEDS(async_save, save),
        NEEDS(async_strategy, async_save),
        NEEDS(use_persistent_ckpt_worker, async_save),
        NEEDS(straggler_minmax_count, log_straggler),
        NEEDS(self_check_steps, self_check),
        NEEDS(ddp_bucket_size, overlap_grad_reduce),
        NEEDS(ddp_num_buckets, overlap_grad_reduce),
        NEEDS(data_parallel_sharding_strategy, use_megatron_fsdp),
        NEEDS(megatron_fsdp_version, use_megatron_fsdp),
    };
    for (size_t i = 0; i < ARRAY_COUNT(needs); i++) {
        const char *flag = config_flag_name(needs[i].flag), *other = config_flag_name(needs[i].other);
        REQUIRE(!rules_gave(cfg, needs[i].flag) || !is_active(cfg, needs[i].flag) ||
                    is_active(cfg, needs[i].other),
                "%s has no effect without %s: add %s or drop %s", flag, other, other, flag);
    }
    static const int loading[] = {CONFIG_FLAG_no_load_optim, CONFIG_FLAG_no_load_rng, CONFIG_FLAG_finetune,
                                  CONFIG_FLAG_use_checkpoint_args};
    for (size_t i = 0; i < ARRAY_COUNT(loading); i++) {
        const char *flag = config_flag_name(loading[i]);
        REQUIRE(!rules_gave(cfg, loading[i]) || !is_active(cfg, loading[i]) || cfg->load ||
                    cfg->pretrained_checkpoint,
                "%s has no effect without a checkpoint: add --load or --pretrained-checkpoint, or drop %s",
                flag, flag);
    }
    return 0;
}

/* ---- model ---- */

static int rules_heads(struct config *cfg, struct err *err) {
    long long heads = cfg->num_attention_heads, groups = cfg->num_query_groups, hidden = cfg->hidden_size;
    if (!config_is_set(cfg, kv_channels)) {
        REQUIRE(
            hidden % heads == 0,
            "--hidden-size %lld is not a multiple of --num-attention-heads %lld: change one of them or give "
            "--kv-channels",
            hidden, heads);
        cfg->kv_channels = cfg->hidden_size / cfg->num_attention_heads;
        config_derive(cfg, CONFIG_FLAG_kv_channels, "--hidden-size / --num-attention-heads");
    }
    if (cfg->group_query_attention) {
        REQUIRE(groups <= heads && heads % groups == 0,
                "--num-query-groups %lld does not divide --num-attention-heads %lld: give a divisor of it",
                groups, heads);
    } else {
        REQUIRE(!GAVE(num_query_groups) || groups == heads,
                "--num-query-groups %lld has no effect without --group-query-attention: add "
                "--group-query-attention "
                "or drop --num-query-groups",
                groups);
        cfg->num_query_groups = cfg->num_attention_heads;
        config_derive(cfg, CONFIG_FLAG_num_query_groups, "--num-attention-heads");
    }
    return 0;
}

static int rules_positions(struct config *cfg, struct err *err) {
    static const int rotary[] = {
        CONFIG_FLAG_rotary_base,        CONFIG_FLAG_rotary_percent,
        CONFIG_FLAG_rotary_interleaved, CONFIG_FLAG_rotary_seq_len_interpolation_factor,
        CONFIG_FLAG_use_rope_scaling,   CONFIG_FLAG_rope_scaling_factor,
        CONFIG_FLAG_rope_type};
    REQUIRE(
        cfg->seq_length <= cfg->max_position_embeddings,
        "--seq-length %lld is longer than --max-position-embeddings %lld: raise --max-position-embeddings",
        (long long)cfg->seq_length, (long long)cfg->max_position_embeddings);
    if (cfg->use_rotary_position_embeddings) {
        REQUIRE(
            !GAVE(position_embedding_type) || cfg->position_embedding_type == POSITION_EMBEDDING_TYPE_ROPE,
            "--use-rotary-position-embeddings and --position-embedding-type other than rope contradict each "
            "other: drop one of them");
        cfg->position_embedding_type = POSITION_EMBEDDING_TYPE_ROPE;
        config_derive(cfg, CONFIG_FLAG_position_embedding_type, "--use-rotary-position-embeddings");
    }
    bool rope = cfg->position_embedding_type == POSITION_EMBEDDING_TYPE_ROPE;
    REQUIRE(cfg->add_position_embedding || rope, "--no-position-embedding is valid with rotary positions "
                                                 "only: add --position-embedding-type rope, or give "
                                                 "--position-embedding-type none for no positions at all");
    for (size_t i = 0; i < ARRAY_COUNT(rotary) && !rope; i++) {
        const char *flag = config_flag_name(rotary[i]);
        REQUIRE(!rules_gave(cfg, rotary[i]) || !is_active(cfg, rotary[i]),
                "%s has no effect without rotary positions: add --position-embedding-type rope or drop %s",
                flag, flag);
    }
    if (cfg->multi_latent_attention) return 0; /* rules_mla has the rest */
    cfg->rotary_dim = rope ? (int64_t)((double)cfg->kv_channels * cfg->rotary_percent) : 0;
    REQUIRE(!rope || (cfg->rotary_dim > 0 && cfg->rotary_dim % 2 == 0),
            "--rotary-percent %g of --kv-channels %lld is %lld rotated dimensions: they must be even and at "
            "least 2; "
            "change one of them",
            cfg->rotary_percent, (long long)cfg->kv_channels, (long long)cfg->rotary_dim);
    return 0;
}

static int rules_mlp(struct config *cfg, struct err *err) {
    int chosen = cfg->swiglu + cfg->squared_relu + cfg->quick_geglu + cfg->openai_gelu;
    REQUIRE(chosen <= 1,
            "--swiglu, --squared-relu, --quick-geglu and --openai-gelu exclude each other: keep one");
    if (cfg->swiglu)
        cfg->mlp_activation = MLP_ACTIVATION_SWIGLU;
    else if (cfg->squared_relu)
        cfg->mlp_activation = MLP_ACTIVATION_SQUARED_RELU;
    else if (cfg->quick_geglu)
        cfg->mlp_activation = MLP_ACTIVATION_QUICK_GEGLU;
    else if (cfg->openai_gelu || (cfg->bias_gelu_fusion && cfg->add_bias_linear)) {
        cfg->mlp_activation = MLP_ACTIVATION_GELU_TANH;
    } else {
        cfg->mlp_activation = MLP_ACTIVATION_GELU_ERF;
    }
    if (GAVE(bias_gelu_fusion) && chosen) {
        config_note(
            cfg, "--no-bias-gelu-fusion: it selects the form of plain GELU, which this model does not use");
    }
    if (!config_is_set(cfg, ffn_hidden_size)) {
        cfg->ffn_hidden_size = cfg->swiglu ? cfg->hidden_size * 4 * 2 / 3 / 64 * 64 : cfg->hidden_size * 4;
        config_derive(cfg, CONFIG_FLAG_ffn_hidden_size,
                      cfg->swiglu ? "--hidden-size and --swiglu" : "--hidden-size");
        REQUIRE(cfg->ffn_hidden_size > 0,
                "--hidden-size %lld with --swiglu leaves an MLP of width 0: give "
                "--ffn-hidden-size",
                (long long)cfg->hidden_size);
    }
    return 0;
}

static int rules_model(struct config *cfg, struct err *err) {
    if (rules_heads(cfg, err) || rules_positions(cfg, err) || rules_mla(cfg, err) || rules_mlp(cfg, err))
        return -1;
    cfg->qkv_bias = cfg->add_bias_linear || cfg->add_qkv_bias;
    REQUIRE(!cfg->use_flash_attn || cfg->attention_backend != ATTENTION_BACKEND_UNFUSED,
            "--use-flash-attn and --attention-backend unfused contradict each other: drop one of them");
    if (cfg->attention_backend == ATTENTION_BACKEND_FUSED) {
        config_note(cfg, "--attention-backend fused: it is the blockwise kernel here, the same as flash");
    }
    if (cfg->attention_backend == ATTENTION_BACKEND_AUTO) {
        cfg->attention_backend = ATTENTION_BACKEND_FLASH;
        config_derive(cfg, CONFIG_FLAG_attention_backend, "--attention-backend auto");
    }
    cfg->attention_blockwise = cfg->attention_backend != ATTENTION_BACKEND_UNFUSED;
    REQUIRE(cfg->attention_blockwise || !cfg->apply_query_key_layer_scaling || !cfg->fp16,
            "--apply-query-key-layer-scaling with --fp16 and --attention-backend unfused is not built: use "
            "--attention-backend flash, whose scores cannot overflow");
    if (!config_is_set(cfg, embedding_init_method_std)) {
        cfg->embedding_init_method_std = cfg->init_method_std;
        config_derive(cfg, CONFIG_FLAG_embedding_init_method_std, "--init-method-std");
    }
    cfg->output_init_std = cfg->init_method_std / sqrt(2.0 * (double)cfg->num_layers);
    REQUIRE(cfg->pad_vocab_size || !GAVE(padded_vocab_size),
            "--padded-vocab-size and --no-pad-vocab-size contradict each other: drop one of them");
    if ((!config_is_given(cfg, hidden_dropout) && cfg->hidden_dropout > 0) ||
        (!config_is_given(cfg, attention_dropout) && cfg->attention_dropout > 0)) {
        config_note(cfg,
                    "dropout is on: --hidden-dropout %g, --attention-dropout %g (0.1 is the default, as in "
                    "Megatron-LM); give 0 to switch it off",
                    cfg->hidden_dropout, cfg->attention_dropout);
    }
    return 0;
}

/* ---- precision ---- */

static int rules_precision(struct config *cfg, struct err *err) {
    static const int scaling[] = {CONFIG_FLAG_initial_loss_scale, CONFIG_FLAG_min_loss_scale,
                                  CONFIG_FLAG_loss_scale_window, CONFIG_FLAG_hysteresis};
    REQUIRE(!cfg->bf16 || !cfg->fp16, "--bf16 and --fp16 contradict each other: drop one of them");
    cfg->params_dtype = cfg->bf16 ? PARAMS_DTYPE_BF16 : cfg->fp16 ? PARAMS_DTYPE_FP16 : PARAMS_DTYPE_FP32;
    REQUIRE(cfg->fp16 || !config_is_set(cfg, loss_scale),
            "--loss-scale is for --fp16: drop it, bf16 and fp32 need no loss scale");
    cfg->dynamic_loss_scale = cfg->fp16 && !config_is_set(cfg, loss_scale);
    REQUIRE(!cfg->dynamic_loss_scale || cfg->min_loss_scale <= cfg->initial_loss_scale,
            "--min-loss-scale %g is above --initial-loss-scale %g: lower it", cfg->min_loss_scale,
            cfg->initial_loss_scale);
    for (size_t i = 0; i < ARRAY_COUNT(scaling) && !cfg->dynamic_loss_scale; i++) {
        if (rules_gave(cfg, scaling[i])) {
            config_note(cfg, "%s: without effect, as the loss scale is not dynamic (in Megatron-LM too)",
                        config_flag_name(scaling[i]));
        }
    }
    REQUIRE(!cfg->grad_reduce_in_bf16 || cfg->bf16,
            "--grad-reduce-in-bf16 needs --bf16: add it or drop the flag");
    REQUIRE(!cfg->grad_reduce_in_bf16 || !cfg->accumulate_allreduce_grads_in_fp32,
            "--grad-reduce-in-bf16 and --accumulate-allreduce-grads-in-fp32 contradict each other: drop one "
            "of them");
    REQUIRE(cfg->check_for_nan_in_loss_and_grad || !GAVE(on_nan),
            "--on-nan has no effect with --no-check-for-nan-in-loss-and-grad: drop one of them");
    return 0;
}

/* ---- checkpoints, logging, device ---- */

static int rules_output(struct config *cfg, struct err *err) {
    REQUIRE(!cfg->save || config_is_set(cfg, save_interval),
            "--save needs --save-interval: give the iterations between "
            "checkpoints");
    REQUIRE(!config_is_set(cfg, save_retain_interval) || cfg->save_retain_interval % cfg->save_interval == 0,
            "--save-retain-interval %lld is not a multiple of --save-interval %lld: make it one",
            (long long)cfg->save_retain_interval, (long long)cfg->save_interval);
    REQUIRE(!config_is_set(cfg, log_memory_interval) || cfg->log_memory_interval % cfg->log_interval == 0,
            "--log-memory-interval %lld is not a multiple of --log-interval %lld: make it one",
            (long long)cfg->log_memory_interval, (long long)cfg->log_interval);
    REQUIRE(!cfg->profile || cfg->profile_step_end > cfg->profile_step_start,
            "--profile-step-end %lld is not after --profile-step-start %lld: raise it",
            (long long)cfg->profile_step_end, (long long)cfg->profile_step_start);
    for (int64_t i = 0; i < cfg->profile_ranks.count; i++) {
        REQUIRE(cfg->profile_ranks.items[i] < cfg->world_size,
                "--profile-ranks %lld: there is no such rank, the ranks are 0 to %lld; drop it",
                (long long)cfg->profile_ranks.items[i], (long long)cfg->world_size - 1);
    }
    for (int64_t i = 0; i < cfg->memory_timeline_stages.count; i++)
        REQUIRE(cfg->memory_timeline_stages.items[i] < cfg->pipeline_model_parallel_size,
                "--memory-timeline-stages %lld: there is no such stage, the stages are 0 to %lld; drop it",
                (long long)cfg->memory_timeline_stages.items[i],
                (long long)cfg->pipeline_model_parallel_size - 1);
    REQUIRE(!cfg->memory_timeline || (!cfg->print_topology && !cfg->self_check),
            "--memory-timeline has no effect with %s: drop one of them",
            cfg->self_check ? "--self-check" : "--print-topology");
    REQUIRE(!cfg->self_check || !rules_plans_only(cfg),
            "--self-check trains, and %s stops before training: drop one of them",
            cfg->dry_run ? "--dry-run" : "--print-topology");
    REQUIRE(
        cfg->device != DEVICE_CUDA || !GAVE(kernels),
        "--kernels chooses among the CPU's kernels and has no effect with --device cuda: drop one of them");
    if (cfg->skip_train && !cfg->no_load_optim) {
        cfg->no_load_optim = true;
        config_derive(cfg, CONFIG_FLAG_no_load_optim, "--skip-train");
    }
    return 0;
}

int config_validate(struct config *cfg, const struct config_module *modules, int module_count,
                    struct err *err) {
    if (cfg->find_max_micro_batch_size && !cfg->dry_run && !cfg->verify) {
        cfg->dry_run = true;
        config_derive(cfg, CONFIG_FLAG_dry_run, "--find-max-micro-batch-size");
    }
    if (cfg->dry_run_json && !cfg->dry_run) {
        cfg->dry_run = true;
        config_derive(cfg, CONFIG_FLAG_dry_run, "--dry-run-json");
    }
    if (rules_required(cfg, err) || rules_without_effect(cfg, err) || rules_parallel(cfg, err)) return -1;
    if (rules_pipeline(cfg, err) || rules_model(cfg, err) || rules_parallel_model(cfg, err)) return -1;
    if (rules_moe(cfg, err) || rules_recompute(cfg, modules, module_count, err) || rules_precision(cfg, err))
        return -1;
    if (rules_mtp(cfg, err)) return -1;
    if (rules_data(cfg, err) || rules_output(cfg, err)) return -1;
    return rules_schedule(cfg, err) || rules_micro_batches(cfg, err) ? -1 : 0;
}

int64_t config_padded_vocab_size(const struct config *cfg, int64_t vocab_size, struct err *err) {
    int64_t tp = cfg->tensor_model_parallel_size, multiple = cfg->make_vocab_size_divisible_by * tp;
    if (config_is_set(cfg, padded_vocab_size)) {
        REQUIRE(cfg->padded_vocab_size >= vocab_size,
                "--padded-vocab-size %lld is smaller than the vocabulary of %lld: raise it or drop it",
                (long long)cfg->padded_vocab_size, (long long)vocab_size);
        REQUIRE(cfg->padded_vocab_size % tp == 0,
                "--padded-vocab-size %lld is not a multiple of --tensor-model-parallel-size %lld: change one "
                "of them",
                (long long)cfg->padded_vocab_size, (long long)tp);
        return cfg->padded_vocab_size;
    }
    if (!cfg->pad_vocab_size) {
        REQUIRE(vocab_size % tp == 0,
                "--no-pad-vocab-size: the vocabulary of %lld is not a multiple of "
                "--tensor-model-parallel-size %lld; drop the flag",
                (long long)vocab_size, (long long)tp);
        return vocab_size;
    }
    return (vocab_size + multiple - 1) / multiple * multiple;
}
