#include "core/train/flops.h"

/* One layer's attention projections: multiply-adds per token. */
static double attention_projections(const struct flops_shape *s) {
    double h = (double)s->hidden_size, n = (double)s->num_attention_heads;
    if (s->multi_latent_attention) {
        double query = n * (double)(s->qk_head_dim + s->qk_pos_emb_head_dim), rank = (double)s->q_lora_rank;
        double kv_rank = (double)s->kv_lora_rank;
        return (rank > 0 ? rank * (h + query + 1) : h * query) +
               kv_rank * (h + n * (double)(s->qk_head_dim + s->v_head_dim) + 1) +
               h * (double)s->qk_pos_emb_head_dim + n * (double)s->v_head_dim * h;
    }
    double query = (double)s->kv_channels * n, kv = (double)s->kv_channels * (double)s->num_query_groups;
    return h * (query + 2 * kv + (s->attention_output_gate ? query : 0)) + query * h;
}

/* Scores and their product with the values, halved because causal: multiply-adds per token and position. */
static double attention_core(const struct flops_shape *s) {
    double n = (double)s->num_attention_heads;
    if (s->multi_latent_attention)
        return n * (double)(s->qk_head_dim + s->qk_pos_emb_head_dim) / 2 + n * (double)s->v_head_dim / 2;
    return (double)s->kv_channels * n; /* two products of half the positions */
}

double flops_of_batch(const struct flops_shape *s, double sequences) {
    double h = (double)s->hidden_size, v = (double)s->padded_vocab_size, mtp = (double)s->mtp_num_layers;
    double layers = (double)(s->num_layers + s->mtp_num_layers), moe = (double)s->num_moe_layers;
    double matrices = s->gated_linear_unit ? 3 : 2, length = (double)s->seq_length,
           tokens = sequences * length;
    double routed = (double)s->moe_ffn_hidden_size * (double)s->moe_router_topk * matrices;
    double latent = (double)s->moe_latent_size;
    if (latent > 0) routed = routed * latent / h + 2 * latent;
    double mlp = h * ((double)s->ffn_hidden_size * matrices * (layers - moe) +
                      (routed + (double)s->moe_shared_expert_size * matrices) * moe);
    double ends = mtp * (3 * h + 2 * h * h) + h * v * (mtp + 1);
    /* 6 = (forward + two backward products) * (multiply + add) */
    return 6 * (tokens * (mlp + attention_projections(s) * layers + ends) +
                tokens * length * attention_core(s) * layers);
}
