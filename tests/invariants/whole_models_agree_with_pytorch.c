/* Whole tiny models against PyTorch in float64 (tests/golden): loss and the gradient of every weight, for
 * `reference` and every instruction set, fused and unfused attention, plain and fused loss, with and without
 * recompute. The oracle shares no code with the subject.
 *
 * Bound: a gradient is a sum of at most 24 tokens x a few hundred products, each rounded in fp32 (2^-24),
 * over a depth of about 20 ops: 1e-4 of the tensor's largest value is generous for rounding and far below any
 * wrong formula. */
#include "core/checkpoint/safetensors.h"
#include "tests/tiny_model.h"

static const struct safetensors_tensor *golden(const struct safetensors *file, const char *name) {
    const struct safetensors_tensor *t = safetensors_find(file, name);
    CHECK(t, "no golden tensor %s", name);
    return t;
}

static double golden_value(const struct safetensors_tensor *t, int64_t i) {
    const char *p = t->data;
    double d;
    float f;
    if (t->dtype == SAFETENSORS_F64) {
        memcpy(&d, p + 8 * i, 8);
        return d;
    }
    memcpy(&f, p + 4 * i, 4);
    return (double)f;
}

static void golden_ids(const struct safetensors_tensor *t, int32_t *out, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        int64_t id;
        memcpy(&id, (const char *)t->data + 8 * i, 8);
        out[i] = (int32_t)id;
    }
}

enum golden { GPT, LLAMA, MOE, MOE_SIGMOID, MTP, MLA, MLA_DIRECT };
static const char *const files[] = {"tiny_gpt", "tiny_llama", "tiny_moe",       "tiny_moe_sigmoid",
                                    "tiny_mtp", "tiny_mla",   "tiny_mla_direct"};

static struct model golden_model(enum golden which) {
    struct model m = which == GPT           ? tiny_gpt()
                     : which == LLAMA       ? tiny_llama()
                     : which == MOE         ? tiny_moe()
                     : which == MOE_SIGMOID ? tiny_moe_sigmoid()
                     : which == MTP         ? tiny_moe_mtp()
                                            : tiny_mla();
    m.moe.ffn = 24;
    m.layers = 2;
    m.hidden_dropout = m.attention_dropout = 0;
    m.fused_loss = false;
    m.qk_norm = which >= MLA; /* of the latents */
    if (which == MLA_DIRECT) m.q_rank = 0;
    if (which == MTP) {
        m.moe.experts = 4, m.moe.ffn = 16, m.moe.shared_ffn = 0, m.moe.shared_gate = false;
        m.moe.balance_coeff = m.moe.z_coeff = 0;
    }
    m.ffn = which == GPT ? 64 : 48;
    return m;
}

static void load_weights(struct tiny *t, const struct safetensors *file) {
    for (int i = 0; i < t->plan.num_params; i++) {
        const struct plan_param *p = &t->plan.params[i];
        const struct safetensors_tensor *g = golden(file, p->name);
        float *master = executor_at(&t->executor, p->master);
        for (int64_t k = 0; k < p->count; k++) master[k] = (float)golden_value(g, k);
    }
    update_compute_copies(&t->executor);
}

enum { SEQUENCE = 12, TOKENS = 24, MTP_LAYERS = 2 };
static const double mtp_factor = 0.3;

/* Labels that count and are `depth` places on, or more. */
static double counted(const float *mask, int depth) {
    double n = 0;
    for (int i = 0; i < TOKENS; i++) n += i % SEQUENCE < depth ? 0 : (double)mask[i];
    return n;
}

/* losses[0] is the next token's; then those of multi-token prediction. */
static void run_step(struct tiny *t, const struct safetensors *file, double losses[1 + MTP_LAYERS]) {
    int32_t tokens[TOKENS], labels[TOKENS], positions[TOKENS];
    float mask[TOKENS];
    const struct safetensors_tensor *masked = safetensors_find(file, "mask");
    golden_ids(golden(file, "tokens"), tokens, TOKENS);
    golden_ids(golden(file, "labels"), labels, TOKENS);
    for (int i = 0; i < TOKENS; i++) {
        positions[i] = i % SEQUENCE;
        mask[i] = masked ? (float)golden_value(masked, i) : 1;
    }
    struct micro_batch micro = {tokens, labels, positions, mask, (float)(1 / counted(mask, 0)),
                                0,      true,   1,         {0}};
    for (int k = 0; k < MTP_LAYERS; k++)
        micro.mtp_grad_scale[k] = (float)(mtp_factor / MTP_LAYERS / counted(mask, k + 1));
    executor_begin_step(&t->executor, 0);
    const struct schedule_list *list = plan_actions(&t->plan, 1);
    for (int i = 0; i < list->count; i++) executor_run(&t->executor, &list->actions[i], &micro);
    losses[0] = t->executor.loss_sum / counted(mask, 0);
    for (int k = 0; k < MTP_LAYERS; k++) losses[1 + k] = t->executor.mtp_loss_sum[k] / counted(mask, k + 1);
}

static void compare(const char *what, const struct tiny *t, const struct safetensors *file,
                    const double losses[1 + MTP_LAYERS]) {
    bool is_mtp = t->plan.request.model.mtp_layers > 0;
    for (int k = 0; k <= (is_mtp ? MTP_LAYERS : 0); k++)
        EXPECT_NEAR(losses[k], golden_value(golden(file, is_mtp ? "losses" : "loss"), k), 1e-5);
    if (t->plan.request.model.moe.balance_coeff != 0) {
        const struct router_losses *l = &t->executor.router_losses;
        double z = t->plan.request.model.moe.z_coeff != 0 ? golden_value(golden(file, "z"), 0) : 0;
        EXPECT_NEAR(l->balance, golden_value(golden(file, "balance"), 0), 1e-5);
        EXPECT_NEAR(l->z, z, 1e-4);
    }
    for (int i = 0; i < t->plan.num_params; i++) {
        const struct plan_param *p = &t->plan.params[i];
        char name[200];
        snprintf(name, sizeof(name), "%s.grad", p->name);
        const struct safetensors_tensor *g = golden(file, name);
        const float *grad = executor_at(&t->executor, p->grad);
        double worst = 0, largest = 0;
        for (int64_t k = 0; k < p->count; k++) {
            double want = golden_value(g, k), off = fabs((double)grad[k] - want);
            if (!(off <= worst)) worst = off;
            if (fabs(want) > largest) largest = fabs(want);
        }
        EXPECT(worst <= 1e-4 * largest + 1e-7, "%s %s: off by %.3g of %.3g", what, p->name, worst, largest);
    }
}

static void check(const char *what, enum golden which, const struct kernels *kernels, bool flash,
                  bool fused_loss, struct recompute_policy policy) {
    struct err err;
    char path[64];
    snprintf(path, sizeof(path), "tests/golden/%s.safetensors", files[which]);
    struct safetensors *file = safetensors_open(path, &err);
    CHECK(file, "%s", err.text);
    struct model m = golden_model(which);
    m.flash = flash;
    m.fused_loss = fused_loss;
    struct plan_request request = tiny_request(m, policy);
    request.kernels = kernels;
    request.micro_batches = 1;
    struct tiny t;
    tiny_open(&t, &request);
    load_weights(&t, file);
    double losses[1 + MTP_LAYERS];
    run_step(&t, file, losses);
    compare(what, &t, file, losses);
    tiny_close(&t);
    safetensors_close(file);
}

static void check_everywhere(enum golden which) {
    static const char *const isas[] = {"reference", "generic", "avx2", "avx512", "amx"};
    struct recompute_policy none = {0}, full = {.granularity = RECOMPUTE_FULL,
                                                .method = RECOMPUTE_UNIFORM,
                                                .num_layers = 2};
    for (size_t i = 0; i < ARRAY_COUNT(isas); i++) {
        const struct kernels *k = i ? kernels_cpu_isa(isas[i]) : kernels_reference();
        if (!k) continue;
        for (int way = 0; way < 4; way++) check(isas[i], which, k, way & 1, way & 2, none);
        check(isas[i], which, k, true, true, full);
    }
}

TEST(gpt) {
    check_everywhere(GPT);
}
TEST(llama) {
    check_everywhere(LLAMA);
}

TEST(mixture_of_experts) {
    check_everywhere(MOE);
    check_everywhere(MOE_SIGMOID);
}
TEST(multi_token_prediction) {
    check_everywhere(MTP);
}
TEST(latent_attention_with_yarn) {
    check_everywhere(MLA);
}
TEST(latent_attention_without_query_latent) {
    check_everywhere(MLA_DIRECT);
}

/* At sizes of DeepSeek-V3, where the golden models are too small to tell: the published rule, written as a
 * sum over wavelengths instead of pairs. */
TEST(yarn_tables_and_scale_are_those_of_deepseek_v3) {
    struct model m = tiny_mla();
    enum { DR = 64, HALF = 32, SEQ = 300 };
    static float cos_table[SEQ * HALF], sin_table[SEQ * HALF];
    m.rotary_dim = DR, m.plain_dim = 128, m.head_dim = 192, m.seq = SEQ, m.yarn_mscale_all_dim = 1;
    model_fill_rotary(&m, cos_table, sin_table);
    double pi = 3.14159265358979323846;
    int first = 10, last = 23; /* floor of 10.47 and ceiling of 22.51 */
    for (int i = 0; i < HALF; i++) {
        double wavelength = 2 * pi * exp(log(10000.0) * i / HALF);
        double turns = 1 / wavelength, slow = turns / 40;
        double share = i <= first ? 1 : i >= last ? 0 : (double)(last - i) / (last - first);
        for (int s = 0; s < SEQ; s += 13) {
            double angle = 2 * pi * s * (share * turns + (1 - share) * slow);
            EXPECT_NEAR(cos_table[s * HALF + i], cos(angle), 1e-6);
            EXPECT_NEAR(sin_table[s * HALF + i], sin(angle), 1e-6);
        }
    }
    EXPECT_NEAR(model_softmax_scale(&m), 0.1352337788, 1e-9); /* (0.1 ln 40 + 1)^2 / sqrt(192) */
    m.yarn_mscale = 0, m.yarn_mscale_all_dim = 0;
    EXPECT_NEAR(model_softmax_scale(&m), 1 / sqrt(192.0), 1e-12);
    m.yarn_mscale = 1;
    model_fill_rotary(&m, cos_table, sin_table);
    EXPECT_NEAR(cos_table[0], 1 + 0.1 * log(40.0), 1e-6); /* the concentration at position 0 */
}

RUN_TESTS(CASE(gpt), CASE(llama), CASE(mixture_of_experts), CASE(multi_token_prediction),
          CASE(latent_attention_with_yarn), CASE(latent_attention_without_query_latent),
          CASE(yarn_tables_and_scale_are_those_of_deepseek_v3))
