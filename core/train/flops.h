#pragma once
/* Model FLOPs of training, by Megatron-LM's formula (num_floating_point_operations): matrix products only,
 * multiply-add = 2, backward = 2 x forward, causal attention counted half. Recompute is not in it: it is the
 * work that the model needs, whatever the program does. Hardware FLOPs come from the plan, which knows what
 * is really run. Norms, softmax, router and embedding look-up count nothing.
 *
 * For a dense GPT layer: 6 tokens (4 h^2 + 2 or 3 h ffn) + 6 batch s^2 h, and 6 tokens h V for the output.
 *
 *     double tflops = flops_of_batch(&shape, batch) / seconds / 1e12; */
#include <stdbool.h>
#include <stdint.h>

struct flops_shape {
    int64_t num_layers, hidden_size, ffn_hidden_size, seq_length, padded_vocab_size;
    int64_t num_attention_heads, num_query_groups, kv_channels;
    bool gated_linear_unit;     /* SwiGLU and kin: three matrices per MLP */
    bool attention_output_gate; /* one more projection of the query's size */
    int64_t mtp_num_layers;     /* counted with the layer type of the last layer */
    /* mixture of experts; 0 = none */
    int64_t num_moe_layers; /* MTP layers included, when the last layer is one */
    int64_t moe_ffn_hidden_size, moe_router_topk, moe_shared_expert_size, moe_latent_size;
    /* multi-latent attention */
    bool multi_latent_attention;
    int64_t q_lora_rank, kv_lora_rank, qk_head_dim, qk_pos_emb_head_dim, v_head_dim;
};

/* FLOPs of forward and backward of `sequences` sequences of seq_length tokens, all ranks together. */
double flops_of_batch(const struct flops_shape *s, double sequences);
