#!/bin/sh
# Every FLAG row of core/config/flags.def must be read somewhere outside core/config, else the flag would be silently
# ignored. Fields that act only through a value that core/config derives from them are listed here.
set -eu
cd "$(dirname "$0")/.."
derived="group_query_attention use_rotary_position_embeddings add_position_embedding swiglu squared_relu quick_geglu
openai_gelu bias_gelu_fusion add_qkv_bias attention_backend bf16 rampup_batch_size
step_batch_size_schedule decrease_batch_size_if_needed train_samples lr_decay_iters lr_decay_samples lr_wsd_decay_iters
lr_wsd_decay_samples lr_warmup_fraction lr_warmup_iters lr_warmup_samples make_vocab_size_divisible_by pad_vocab_size
padded_vocab_size recompute_activations recompute_memory_budget weight_decay split dataloader_type yaml_cfg help
help_recompute help_markdown expert_model_parallel_size expert_tensor_parallel_size
num_layers_per_virtual_pipeline_stage num_virtual_stages_per_pipeline_rank use_distributed_optimizer
num_distributed_optimizer_instances use_megatron_fsdp data_parallel_sharding_strategy cp_comm_type
eval_micro_batch_size moe_layer_freq data_args_path per_split_data_args_path"
status=0
for field in $(sed -n 's/^FLAG([A-Z]*, *\([A-Za-z0-9_]*\),.*/\1/p' core/config/flags.def); do
    case " $(echo $derived) " in *" $field "*) continue ;; esac
    if ! grep -rqE "(->|\.|, |CONFIG_FLAG_)$field\b" --include='*.c' --include='*.cu' cmd recompute kernels parallel \
        core/base core/tensor core/model core/data core/optim core/checkpoint core/train core/plan*.c; then
        echo "core/config/flags.def: nothing reads $field: use it, or move the flag to megatron_flags.def"
        status=1
    fi
done
exit $status
