#include "core/train/flops.h"
#include "tests/test.h"

static struct flops_shape llama_8b(void) {
    return (struct flops_shape){.num_layers = 32,
                                .hidden_size = 4096,
                                .ffn_hidden_size = 14336,
                                .seq_length = 8192,
                                .padded_vocab_size = 128256,
                                .num_attention_heads = 32,
                                .num_query_groups = 8,
                                .kv_channels = 128,
                                .gated_linear_unit = true};
}

/* A matrix product of m x k by k x n, forward and both of backward. */
static double product(double m, double k, double n) {
    return 3 * 2 * m * k * n;
}

TEST(dense_models_agree_with_a_hand_count_of_matrix_products) {
    struct flops_shape s = llama_8b();
    double t = 2 * 8192; /* two sequences */
    double layer = product(t, 4096, 4096 + 2 * 1024) + product(t, 4096, 4096) + 3 * product(t, 4096, 14336);
    double scores = 2 * 32 * product(8192, 128, 8192 / 2.0) * 2; /* QK^T and PV of 32 heads of 2 sequences */
    double hand = 32 * (layer + scores) + product(t, 4096, 128256);
    EXPECT_NEAR(flops_of_batch(&s, 2) / hand, 1, 1e-12);
    s.gated_linear_unit = false; /* GPT: two matrices */
    EXPECT_NEAR(flops_of_batch(&s, 2) / (hand - 32 * product(t, 4096, 14336)), 1, 1e-12);
}

TEST(llama_3_8b_costs_the_published_51_5_gflop_per_token) {
    struct flops_shape s = llama_8b();
    EXPECT_NEAR(flops_of_batch(&s, 1) / 8192 / 1e9, 51.5, 0.05);
}

TEST(the_paper_formula_of_gpt_3_is_met) {
    /* arXiv 2104.04473: 72 B L s h^2 (1 + s/6h + v/12hL); its attention is not halved, so s/6h becomes s/12h,
     * and its 96 counts recompute, which is left out */
    struct flops_shape s = {.num_layers = 96,
                            .hidden_size = 12288,
                            .ffn_hidden_size = 49152,
                            .seq_length = 2048,
                            .padded_vocab_size = 51200,
                            .num_attention_heads = 96,
                            .num_query_groups = 96,
                            .kv_channels = 128};
    double h = 12288, l = 96, n = 2048, v = 51200;
    EXPECT_NEAR(flops_of_batch(&s, 1536) /
                    (72 * 1536 * l * n * h * h * (1 + n / (12 * h) + v / (12 * h * l))),
                1, 1e-12);
}

TEST(experts_count_what_a_token_visits) {
    struct flops_shape s = llama_8b();
    double dense = flops_of_batch(&s, 1), t = 8192;
    s.num_moe_layers = 30, s.moe_ffn_hidden_size = 2048, s.moe_router_topk = 4,
    s.moe_shared_expert_size = 1024;
    double hand = dense - 30 * 3 * product(t, 4096, 14336) +
                  30 * 3 * (4 * product(t, 4096, 2048) + product(t, 4096, 1024));
    EXPECT_NEAR(flops_of_batch(&s, 1) / hand, 1, 1e-12);
    s.moe_latent_size = 512; /* experts work on 512 columns, between two projections */
    hand = dense - 30 * 3 * product(t, 4096, 14336) + 30 * 3 * product(t, 4096, 1024) +
           30 * (4 * 3 * product(t, 512, 2048) + 2 * product(t, 4096, 512));
    EXPECT_NEAR(flops_of_batch(&s, 1) / hand, 1, 1e-12);
}

TEST(latent_attention_and_further_predicted_tokens_count_their_products) {
    struct flops_shape s = llama_8b();
    double t = 8192, n = 32, h = 4096;
    double mlp = 32 * 3 * product(t, h, 14336), head = product(t, h, 128256);
    s.multi_latent_attention = true, s.kv_lora_rank = 512, s.qk_head_dim = 128, s.qk_pos_emb_head_dim = 64;
    s.v_head_dim = 96;
    double kv = product(t, h, 512 + 64) + product(t, 512, n * (128 + 96)) + product(t, n * 96, h) +
                product(t, 512, 1);
    double scores = n * (product(t, 192, t / 2) + product(t, 96, t / 2));
    EXPECT_NEAR(flops_of_batch(&s, 1) / (mlp + head + 32 * (product(t, h, n * 192) + kv + scores)), 1, 1e-12);
    s.q_lora_rank = 1536;
    double query = product(t, h, 1536) + product(t, 1536, n * 192) + product(t, 1536, 1);
    EXPECT_NEAR(flops_of_batch(&s, 1) / (mlp + head + 32 * (query + kv + scores)), 1, 1e-12);
    s = llama_8b();
    double plain = flops_of_batch(&s, 1), per_layer = (plain - head) / 32;
    s.mtp_num_layers = 1;
    EXPECT_NEAR(flops_of_batch(&s, 1) / (plain + per_layer + head + product(t, 2 * h, h) + product(t, 3, h)),
                1, 1e-12);
    s = llama_8b(), s.attention_output_gate = true;
    EXPECT_NEAR(flops_of_batch(&s, 1) / (plain + 32 * product(t, h, h)), 1, 1e-12);
}

RUN_TESTS(CASE(dense_models_agree_with_a_hand_count_of_matrix_products),
          CASE(llama_3_8b_costs_the_published_51_5_gflop_per_token), CASE(the_paper_formula_of_gpt_3_is_met),
          CASE(experts_count_what_a_token_visits),
          CASE(latent_attention_and_further_predicted_tokens_count_their_products))
