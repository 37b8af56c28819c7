/* I1: loss and every gradient are bit-equal with recompute on and off, for all granularities, methods, layer
 * counts and all subsets of modules, with dropout, in every dtype and attention; and the re-run ops are those
 * of the closed form, so that equality is not bought by extra or missing work. The oracle of equality is the
 * run with nothing recomputed, whose gradients tests/invariants/gradients_are_right.c proves against finite
 * differences and golden tensors. */
#include "tests/tiny_model.h"

/* What the routers counted in a step: each token once. */
static uint64_t count_of_tokens(const struct tiny *t) {
    uint64_t hash = 0;
    for (int i = 0; i < t->plan.num_routers; i++) {
        const struct router_state *r = &t->executor.routers[i];
        int64_t experts = t->plan.routers[i].experts, sum = 0;
        for (int64_t e = 0; r->tokens && e < experts; e++) {
            hash = hash * 1000003 + (uint64_t)r->tokens[e];
            sum += r->tokens[e];
        }
        for (int64_t e = 0; r->seen && e < experts; e++) hash = hash * 1000003 + (uint64_t)r->seen[e];
        const struct model *m = &t->plan.request.model;
        EXPECT(!r->tokens || (sum > 0 && sum <= 3 * m->seq * m->micro_batch * m->moe.topk),
               "router %d counted %lld tokens", i, (long long)sum);
        EXPECT(!r->seen || r->batches == 3, "router %d saw %d micro-batches", i, r->batches);
    }
    return hash;
}

static void expect_equal(const char *what, struct model m, struct recompute_policy policy, double loss,
                         const struct router_losses *router, uint64_t counts, const float *grads) {
    struct plan_request request = tiny_request(m, policy);
    struct tiny t;
    tiny_open(&t, &request);
    double again = tiny_objective(&t, tiny_step(&t, 5));
    float *mine = tiny_grads(&t);
    EXPECT(tiny_all_finite(mine, t.plan.num_parameters), "%s: not finite", what);
    EXPECT(again == loss, "%s: loss %.17g, without recompute %.17g", what, again, loss);
    EXPECT(!memcmp(&t.executor.router_losses, router, sizeof(*router)), "%s: router losses %.17g and %.17g",
           what, t.executor.router_losses.balance, t.executor.router_losses.z);
    EXPECT(count_of_tokens(&t) == counts, "%s: routers counted otherwise", what);
    int64_t different = 0;
    for (int64_t i = 0; i < t.plan.num_parameters; i++) different += memcmp(&mine[i], &grads[i], 4) != 0;
    EXPECT(different == 0, "%s: %lld of %lld gradients differ", what, (long long)different,
           (long long)t.plan.num_parameters);
    EXPECT(t.executor.high_water == t.plan.arena_bytes, "%s: measured peak %zu, planned %zu", what,
           t.executor.high_water, t.plan.arena_bytes);
    mem_free(mine);
    tiny_close(&t);
}

static bool has_all(const struct model *m, recompute_set set) {
    const char *why;
    for (int i = 0; i < MODULE_COUNT; i++)
        if (set & RECOMPUTE_BIT(i) &&
            (recompute_module_info(i)->is_internal || !model_has_module(m, i, &why)))
            return false;
    return true;
}

static void expect_equal_for_all_policies(const char *name, struct model m) {
    struct plan_request request = tiny_request(m, (struct recompute_policy){.granularity = RECOMPUTE_NONE});
    struct tiny t;
    char what[128];
    tiny_open(&t, &request);
    double loss = tiny_objective(&t, tiny_step(&t, 5));
    float *grads = tiny_grads(&t);
    EXPECT(isfinite(loss) && loss > 0, "%s: loss %g", name, loss);
    EXPECT(tiny_all_finite(grads, t.plan.num_parameters), "%s: reference not finite", name);
    double norm = 0;
    for (int64_t i = 0; i < t.plan.num_parameters; i++) norm += (double)grads[i] * (double)grads[i];
    EXPECT(norm > 0, "%s: gradients are all zero", name);
    struct router_losses router = t.executor.router_losses;
    uint64_t counts = count_of_tokens(&t);
    EXPECT(!m.moe.experts || (router.balance > 0 && isfinite(router.balance)), "%s: balancing loss %g", name,
           router.balance);
    expect_equal(name, m, request.recompute, loss, &router, counts, grads);
    for (recompute_set set = 0; set < RECOMPUTE_BIT(MODULE_COUNT); set++) {
        if (!has_all(&m, set)) continue;
        snprintf(what, sizeof(what), "%s selective %#x", name, set);
        expect_equal(what, m, (struct recompute_policy){.granularity = RECOMPUTE_SELECTIVE, .modules = set},
                     loss, &router, counts, grads);
    }
    for (int method = RECOMPUTE_UNIFORM; method <= RECOMPUTE_BLOCK; method++)
        for (int n = 1; n <= (int)m.layers; n++) {
            snprintf(what, sizeof(what), "%s full %s %d", name,
                     method == RECOMPUTE_UNIFORM ? "uniform" : "block", n);
            expect_equal(what, m,
                         (struct recompute_policy){.granularity = RECOMPUTE_FULL,
                                                   .method = (enum recompute_method)method,
                                                   .num_layers = n},
                         loss, &router, counts, grads);
        }
    for (unsigned classes = 0; classes < 8; classes++) {
        snprintf(what, sizeof(what), "%s op, classes %u kept", name, classes);
        expect_equal(what, m,
                     (struct recompute_policy){.granularity = RECOMPUTE_SELECTIVE,
                                               .modules = RECOMPUTE_OPS | RECOMPUTE_SAVE(classes)},
                     loss, &router, counts, grads);
    }
    snprintf(what, sizeof(what), "%s full sqrt", name);
    expect_equal(what, m, (struct recompute_policy){.granularity = RECOMPUTE_FULL, .method = RECOMPUTE_SQRT},
                 loss, &router, counts, grads);
    mem_free(grads);
    tiny_close(&t);
}

TEST(gpt_with_fused_attention) {
    expect_equal_for_all_policies("gpt flash", tiny_gpt());
}
TEST(llama_with_fused_loss) {
    expect_equal_for_all_policies("llama flash", tiny_llama());
}

TEST(mixture_of_experts) {
    expect_equal_for_all_policies("moe", tiny_moe());
    expect_equal_for_all_policies("moe sigmoid", tiny_moe_sigmoid());
    for (int dtype = DTYPE_BF16; dtype <= DTYPE_F16; dtype++) {
        struct model m = dtype == DTYPE_BF16 ? tiny_moe() : tiny_moe_sigmoid();
        m.dtype = (enum dtype)dtype;
        expect_equal_for_all_policies(dtype_name(m.dtype), m);
    }
}

TEST(experts_with_bias_capacity_and_jitter) {
    struct model m = tiny_moe_padded();
    expect_equal_for_all_policies("moe limited", tiny_moe_limited());
    m.dtype = DTYPE_BF16;
    expect_equal_for_all_policies("moe padded", m);
}

/* As DeepSeek-V3: latent attention before experts. */
TEST(experts_behind_latent_attention) {
    struct model m = tiny_mla(), moe = tiny_moe_sigmoid();
    m.moe = moe.moe;
    m.layers = 2;
    m.dtype = DTYPE_BF16;
    expect_equal_for_all_policies("mla moe", m);
}

/* A depth is a group of its own under uniform; block does not reach it. */
TEST(multi_token_prediction) {
    struct model m = tiny_mtp();
    m.layers = 2;
    expect_equal_for_all_policies("mtp", m);
    m.fused_loss = false, m.tied = true, m.qk_norm = false, m.dtype = DTYPE_BF16;
    expect_equal_for_all_policies("mtp tied bf16", m);
    m = tiny_moe_mtp();
    m.layers = 2, m.mtp_layers = 1;
    expect_equal_for_all_policies("mtp moe", m);
    struct model mla = tiny_mla();
    mla.layers = 1, mla.mtp_layers = 1, mla.flash = false;
    expect_equal_for_all_policies("mtp mla", mla);
}

TEST(latent_attention) {
    struct model m = tiny_mla();
    expect_equal_for_all_policies("mla flash", m);
    m.flash = false;
    expect_equal_for_all_policies("mla unfused", m);
    m.q_rank = 0, m.qk_norm = false, m.rms = false, m.linear_bias = true;
    expect_equal_for_all_policies("mla without query latent and norms", m);
}

TEST(latent_attention_in_sixteen_bits) {
    for (int dtype = DTYPE_BF16; dtype <= DTYPE_F16; dtype++) {
        struct model m = tiny_mla();
        m.dtype = (enum dtype)dtype;
        expect_equal_for_all_policies(dtype_name(m.dtype), m);
    }
}

TEST(gpt_with_unfused_attention) {
    struct model m = tiny_gpt();
    m.flash = false;
    expect_equal_for_all_policies("gpt unfused", m);
}

TEST(every_dtype) {
    for (int dtype = DTYPE_BF16; dtype <= DTYPE_F16; dtype++) {
        struct model gpt = tiny_gpt(), llama = tiny_llama();
        gpt.dtype = llama.dtype = (enum dtype)dtype;
        expect_equal_for_all_policies(dtype_name(gpt.dtype), gpt);
        expect_equal_for_all_policies(dtype_name(gpt.dtype), llama);
        gpt.flash = false;
        expect_equal_for_all_policies(dtype_name(gpt.dtype), gpt);
    }
}

TEST(without_dropout) {
    struct model m = tiny_gpt();
    m.hidden_dropout = m.attention_dropout = 0;
    expect_equal_for_all_policies("gpt without dropout", m);
    m = tiny_llama();
    m.hidden_dropout = m.attention_dropout = 0;
    m.fused_loss = m.qk_norm = false;
    expect_equal_for_all_policies("llama without dropout", m);
}

/* ---- the work done is the work intended ---- */

static int count_reruns(const struct plan *plan, const char *op) {
    int n = 0;
    for (int s = 0; s < plan->num_segments; s++) {
        const struct compiled *c = &plan->compiled[plan->segments[s].compiled];
        for (int i = 0; i < c->backward.num_instrs; i++)
            n += c->backward.at[i].kind == INSTR_RERUN &&
                 (!op || !strcmp(c->program.ops[c->backward.at[i].op].name, op));
    }
    return n;
}

static void expect_reruns(struct model m, struct recompute_policy policy, const char *const *ops, int total) {
    struct plan_request request = tiny_request(m, policy);
    struct plan plan;
    plan_build(&request, &plan);
    int layers =
        policy.granularity == RECOMPUTE_FULL && policy.method == RECOMPUTE_BLOCK ? policy.num_layers : 3;
    int named = 0;
    for (; *ops; ops++, named++) EXPECT_EQ(count_reruns(&plan, *ops), layers);
    EXPECT_EQ(count_reruns(&plan, NULL), total < 0 ? layers * named : total);
    plan_free(&plan);
}

#define OPS(...) ((const char *const[]){__VA_ARGS__, NULL})

TEST(reruns_are_those_of_the_closed_form) {
    struct model flash = tiny_gpt(), unfused = tiny_gpt();
    unfused.flash = false;
    recompute_set attn = RECOMPUTE_BIT(MODULE_core_attn), mlp = RECOMPUTE_BIT(MODULE_mlp);
    recompute_set norm = RECOMPUTE_BIT(MODULE_layernorm), act = RECOMPUTE_BIT(MODULE_mlp_act);
    expect_reruns(flash, (struct recompute_policy){.granularity = RECOMPUTE_NONE}, OPS(NULL), 0);
    expect_reruns(flash, (struct recompute_policy){.granularity = RECOMPUTE_SELECTIVE, .modules = attn},
                  OPS("attention"), -1);
    expect_reruns(unfused, (struct recompute_policy){.granularity = RECOMPUTE_SELECTIVE, .modules = attn},
                  OPS("attention_scores", "softmax", "attention_dropout"),
                  -1); /* the product with V is not re-run */
    expect_reruns(flash, (struct recompute_policy){.granularity = RECOMPUTE_SELECTIVE, .modules = mlp},
                  OPS("linear_fc1", "activation"), -1);
    expect_reruns(flash, (struct recompute_policy){.granularity = RECOMPUTE_SELECTIVE, .modules = norm},
                  OPS("input_layernorm", "pre_mlp_layernorm"), -1);
    expect_reruns(flash, (struct recompute_policy){.granularity = RECOMPUTE_SELECTIVE, .modules = act},
                  OPS("activation"), -1);
    expect_reruns(flash,
                  (struct recompute_policy){.granularity = RECOMPUTE_SELECTIVE, .modules = act | mlp | norm},
                  OPS("input_layernorm", "pre_mlp_layernorm", "linear_fc1", "activation"), -1);
    /* full: all but the last linear and the last addition, which no backward reads */
    expect_reruns(flash,
                  (struct recompute_policy){
                      .granularity = RECOMPUTE_FULL, .method = RECOMPUTE_UNIFORM, .num_layers = 1},
                  OPS("input_layernorm", "linear_qkv", "qkv_split", "attention", "linear_proj",
                      "residual_attention", "pre_mlp_layernorm", "linear_fc1", "activation"),
                  -1 * 1);
    expect_reruns(
        flash,
        (struct recompute_policy){.granularity = RECOMPUTE_FULL, .method = RECOMPUTE_BLOCK, .num_layers = 2},
        OPS("attention", "linear_fc1"), 18);
    /* a group of three re-runs the last linear and addition of its first two layers */
    expect_reruns(flash,
                  (struct recompute_policy){
                      .granularity = RECOMPUTE_FULL, .method = RECOMPUTE_UNIFORM, .num_layers = 3},
                  OPS("attention", "linear_fc1"), 3 * 9 + 2 * 2);
}

TEST(reruns_of_latent_attention_are_those_of_the_closed_form) {
    struct model m = tiny_mla(), plain = tiny_mla();
    recompute_set up = RECOMPUTE_BIT(MODULE_mla_up_proj), attn = RECOMPUTE_BIT(MODULE_core_attn);
    plain.qk_norm = false, plain.q_rank = 0;
#define UP "q_layernorm", "linear_q_up_proj", "kv_layernorm", "linear_kv_up_proj", "mla_assemble"
    expect_reruns(m, (struct recompute_policy){.granularity = RECOMPUTE_SELECTIVE, .modules = up}, OPS(UP),
                  -1);
    expect_reruns(m, (struct recompute_policy){.granularity = RECOMPUTE_SELECTIVE, .modules = up | attn},
                  OPS(UP, "attention"), -1);
    expect_reruns(plain, (struct recompute_policy){.granularity = RECOMPUTE_SELECTIVE, .modules = up},
                  OPS("linear_q_proj", "linear_kv_up_proj", "mla_assemble"), -1);
    expect_reruns(m,
                  (struct recompute_policy){
                      .granularity = RECOMPUTE_FULL, .method = RECOMPUTE_UNIFORM, .num_layers = 1},
                  OPS("input_layernorm", "linear_kv_down_proj", "latent_split", "linear_q_down_proj", UP,
                      "attention", "linear_proj", "residual_attention", "pre_mlp_layernorm", "linear_fc1",
                      "activation"),
                  -1);
}

TEST(reruns_of_multi_token_prediction_are_those_of_the_closed_form) {
    struct model m = tiny_mtp();
    m.layers = 1, m.qk_norm = false, m.hidden_dropout = 0;
    recompute_set norm = RECOMPUTE_BIT(MODULE_layernorm);
#define LAYER "input_layernorm", "linear_qkv", "attention", "linear_proj", "residual_attention", "linear_fc1"
    expect_reruns(m, (struct recompute_policy){.granularity = RECOMPUTE_NONE}, OPS(NULL), 0);
    /* in the layer and in both depths the two norms; in the depths the joined norms too */
    expect_reruns(m, (struct recompute_policy){.granularity = RECOMPUTE_SELECTIVE, .modules = norm},
                  OPS("input_layernorm", "pre_mlp_layernorm"), 3 * 2 + 2 * 3);
    /* a layer re-runs 9 ops; a depth the embedding, two norms, their join and the projection more */
    expect_reruns(m,
                  (struct recompute_policy){
                      .granularity = RECOMPUTE_FULL, .method = RECOMPUTE_UNIFORM, .num_layers = 1},
                  OPS(LAYER), 3 * 9 + 2 * 5);
    struct plan_request request = tiny_request(
        m,
        (struct recompute_policy){.granularity = RECOMPUTE_FULL, .method = RECOMPUTE_BLOCK, .num_layers = 1});
    struct plan plan;
    plan_build(&request, &plan);
    EXPECT_EQ(count_reruns(&plan, NULL), 9);
    plan_free(&plan);
    static const int64_t second_depth[] = {2};
    request.recompute.layer_ids = second_depth, request.recompute.num_layer_ids = 1;
    plan_build(&request, &plan);
    EXPECT_EQ(count_reruns(&plan, NULL), 14);
    EXPECT_EQ(count_reruns(&plan, "eh_proj"), 1);
    plan_free(&plan);
}

TEST(full_recompute_costs_about_22_percent) {
    struct model m = tiny_gpt();
    m.seq = 16, m.hidden = 256, m.head_dim = 64, m.ffn = 1024, m.vocab = 64;
    struct plan_request request =
        tiny_request(m, (struct recompute_policy){
                            .granularity = RECOMPUTE_FULL, .method = RECOMPUTE_UNIFORM, .num_layers = 1});
    struct plan plan;
    plan_build(&request, &plan);
    double share = plan.step_rerun_gemm_flops / (plan.step_gemm_flops - plan.step_rerun_gemm_flops);
    EXPECT(share > 0.20 && share < 0.23, "re-run share %.3f; 8 of 36 units of h^2 are 22%%", share);
    plan_free(&plan);
}

RUN_TESTS(CASE(gpt_with_fused_attention), CASE(llama_with_fused_loss), CASE(mixture_of_experts),
          CASE(experts_with_bias_capacity_and_jitter), CASE(experts_behind_latent_attention),
          CASE(multi_token_prediction), CASE(gpt_with_unfused_attention), CASE(latent_attention),
          CASE(latent_attention_in_sixteen_bits), CASE(every_dtype), CASE(without_dropout),
          CASE(reruns_are_those_of_the_closed_form),
          CASE(reruns_of_latent_attention_are_those_of_the_closed_form),
          CASE(reruns_of_multi_token_prediction_are_those_of_the_closed_form),
          CASE(full_recompute_costs_about_22_percent))
