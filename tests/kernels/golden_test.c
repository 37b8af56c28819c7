/* Every kernel against PyTorch's float64 numbers (tests/golden/README.md), in float32, for the reference and
 * for each instruction set. Tolerance: the roundings on the way to a result, times 2^-24, times the largest
 * magnitude in the expected tensor. */
#include "core/checkpoint/safetensors.h"
#include "tests/kernels/compare.h"

static struct safetensors *file;

static bool open_golden(void) {
    struct err err;
    if (!file) file = safetensors_open("tests/golden/kernels.safetensors", &err);
    EXPECT(file, "%s (run from the top of the source tree)", err.text);
    return file;
}

/* "case.name"; a missing tensor fails the test by way of n = 0. */
static const struct safetensors_tensor *find(const char *case_name, const char *name) {
    char full[128];
    snprintf(full, sizeof(full), "%s.%s", case_name, name);
    const struct safetensors_tensor *t = safetensors_find(file, full);
    EXPECT(t, "%s is not in the file", full);
    return t;
}

static int64_t elements(const struct safetensors_tensor *t) {
    int64_t n = 1;
    for (int i = 0; i < t->num_dims; i++) n *= t->dims[i];
    return n;
}

static double golden_at(const struct safetensors_tensor *t, int64_t i) {
    if (t->dtype == SAFETENSORS_F64) return ((const double *)t->data)[i];
    if (t->dtype == SAFETENSORS_F32) return (double)((const float *)t->data)[i];
    return (double)((const int64_t *)t->data)[i];
}

/* A float32 copy of a golden tensor: an input, or an output buffer of the right size filled with NaN. */
static struct tensor load(const char *case_name, const char *name, bool as_input) {
    const struct safetensors_tensor *t = find(case_name, name);
    struct tensor out = tensor_new(DTYPE_F32, t ? elements(t) : 0, false);
    for (int64_t i = 0; as_input && i < out.n; i++) ((float *)out.data)[i] = (float)golden_at(t, i);
    return out;
}
#define INPUT(name)  struct tensor name = load(c, #name, true)
#define OUTPUT(name) struct tensor name = load(c, #name, false)

static int32_t *load_ids(const char *case_name, const char *name) {
    const struct safetensors_tensor *t = find(case_name, name);
    int32_t *ids = mem_new_array(int32_t, (size_t)elements(t), "test ids");
    for (int64_t i = 0; i < elements(t); i++) ids[i] = (int32_t)golden_at(t, i);
    return ids;
}

/* Compares and frees. */
static void expect_golden(const struct kernels *k, const char *case_name, const char *name,
                          struct tensor *got, double roundings) {
    const struct safetensors_tensor *t = find(case_name, name);
    double largest = 0, worst = 0;
    EXPECT(t && elements(t) == got->n && got->n > 0, "%s.%s: size", case_name, name);
    for (int64_t i = 0; i < got->n; i++) largest = fmax(largest, fabs(golden_at(t, i)));
    for (int64_t i = 0; i < got->n; i++) {
        double difference = fabs(tensor_at(got, i) - golden_at(t, i));
        worst = difference <= worst ? worst : difference; /* a NaN is kept */
    }
    EXPECT(isfinite(worst) && worst <= roundings * 0x1p-24 * largest,
           "%s: %s.%s is off by %.3g of %.3g, %.1f roundings", k->backend, case_name, name, worst, largest,
           worst / largest * 0x1p24);
    tensor_free(got);
}

static void check_norm(const struct kernels *k, const char *c, bool rms) {
    INPUT(x);
    INPUT(dy);
    INPUT(weight);
    OUTPUT(y);
    OUTPUT(dx);
    OUTPUT(dweight);
    struct tensor bias = rms ? tensor_new(DTYPE_F32, 0, false) : load(c, "bias", true);
    struct tensor dbias = rms ? tensor_new(DTYPE_F32, 0, false) : load(c, "dbias", false);
    RUN(k, norm_forward, .y = y.data, .x = x.data, .weight = weight.data, .bias = rms ? NULL : bias.data,
        .rows = 5, .cols = 37, .epsilon = 1e-5f, .rms = rms);
    RUN(k, norm_backward, .dx = dx.data, .dweight = dweight.data, .dbias = rms ? NULL : dbias.data,
        .dy = dy.data, .x = x.data, .weight = weight.data, .rows = 5, .cols = 37, .epsilon = 1e-5f,
        .rms = rms);
    expect_golden(k, c, "y", &y, 16);
    expect_golden(k, c, "dx", &dx, 32);
    expect_golden(k, c, "dweight", &dweight, 32);
    if (!rms)
        expect_golden(k, c, "dbias", &dbias, 8);
    else
        tensor_free(&dbias);
    tensor_free(&x), tensor_free(&dy), tensor_free(&weight), tensor_free(&bias);
}

static void check_activation(const struct kernels *k, const char *c, enum activation kind) {
    INPUT(x);
    INPUT(dy);
    OUTPUT(y);
    OUTPUT(dx);
    RUN(k, activation_forward, .y = y.data, .x = x.data, .rows = 4, .cols = 27, .kind = kind);
    RUN(k, activation_backward, .dx = dx.data, .dy = dy.data, .x = x.data, .rows = 4, .cols = 27,
        .kind = kind);
    expect_golden(k, c, "y", &y, 8);
    expect_golden(k, c, "dx", &dx, 16);
    tensor_free(&x), tensor_free(&dy);
}

static void check_cross_entropy(const struct kernels *k) {
    const char *c = "cross_entropy";
    INPUT(logits);
    INPUT(mask);
    OUTPUT(loss);
    OUTPUT(lse);
    OUTPUT(dlogits);
    int32_t *labels = load_ids(c, "labels");
    RUN(k, cross_entropy_forward, .loss = loss.data, .lse = lse.data, .logits = logits.data, .labels = labels,
        .mask = mask.data, .rows = 6, .vocab = 83);
    RUN(k, cross_entropy_backward, .dlogits = dlogits.data, .logits = logits.data, .lse = lse.data,
        .labels = labels, .mask = mask.data, .rows = 6, .vocab = 83, .grad_scale = 0.125f);
    expect_golden(k, c, "loss", &loss, 8);
    expect_golden(k, c, "lse", &lse, 8);
    expect_golden(k, c, "dlogits", &dlogits, 32);
    tensor_free(&logits), tensor_free(&mask);
    mem_free(labels);
}

static void check_embedding(const struct kernels *k) {
    const char *c = "embedding";
    enum { S = 7, B = 2, H = 10, VOCAB = 5 };
    INPUT(weight);
    INPUT(position_weight);
    INPUT(dy);
    OUTPUT(y);
    OUTPUT(dweight);
    OUTPUT(dposition_weight);
    int32_t *tokens = load_ids(c, "tokens"), positions[B * S];
    for (int i = 0; i < B * S; i++) positions[i] = i % S;
    memset(dweight.data, 0, VOCAB * H * 4);
    memset(dposition_weight.data, 0, S * H * 4);
    RUN(k, embedding_forward, .y = y.data, .weight = weight.data, .position_weight = position_weight.data,
        .tokens = tokens, .positions = positions, .s = S, .b = B, .h = H, .vocab = VOCAB, .max_positions = S);
    RUN(k, embedding_backward, .dweight = dweight.data, .dposition_weight = dposition_weight.data,
        .dy = dy.data, .tokens = tokens, .positions = positions, .s = S, .b = B, .h = H, .vocab = VOCAB,
        .max_positions = S);
    expect_golden(k, c, "y", &y, 1);
    expect_golden(k, c, "dweight", &dweight, 14);
    expect_golden(k, c, "dposition_weight", &dposition_weight, 2);
    tensor_free(&weight), tensor_free(&position_weight), tensor_free(&dy);
    mem_free(tokens);
}

static void check_adamw(const struct kernels *k) {
    const char *c = "adamw";
    INPUT(master);
    INPUT(grads);
    OUTPUT(m);
    OUTPUT(v);
    memset(m.data, 0, 50 * 4);
    memset(v.data, 0, 50 * 4);
    for (int step = 1; step <= 4; step++) {
        char name[32];
        RUN(k, adamw, .master = master.data, .m = m.data, .v = v.data,
            .grad = (float *)grads.data + (step - 1) * 50, .n = 50, .learning_rate = 1e-2f, .beta1 = 0.9f,
            .beta2 = 0.95f, .epsilon = 1e-8f, .weight_decay = 0.1f,
            .bias_correction1 = (float)(1 - pow(0.9, step)), .bias_correction2 = (float)(1 - pow(0.95, step)),
            .grad_scale = 1);
        struct tensor now = tensor_copy(&master);
        snprintf(name, sizeof(name), "master.%d", step);
        expect_golden(k, c, name, &now, 2 * step);
    }
    expect_golden(k, c, "m", &m, 16);
    expect_golden(k, c, "v", &v, 16);
    tensor_free(&master), tensor_free(&grads);
}

static const struct attention_shape shape = {.s = 11, .b = 2, .a = 6, .g = 2, .d = 8};
static const float scale = 0.353553391f;

/* Splits and rotates, then attends with the golden q, k, v as rounded to float32, so that each is judged
 * alone. */
static void check_attention_forward(const struct kernels *k) {
    const char *c = "attention";
    INPUT(qkv);
    INPUT(cos);
    INPUT(sin);
    OUTPUT(o);
    OUTPUT(lse);
    struct tensor query = load(c, "q", false), key = load(c, "k", false), value = load(c, "v", false);
    RUN(k, qkv_split_forward, .q = query.data, .k = key.data, .v = value.data, .qkv = qkv.data,
        .shape = shape, .cos = cos.data, .sin = sin.data, .rotary_dim = 6);
    RUN(k, attention_forward, .o = o.data, .lse = lse.data, .q = query.data, .k = key.data, .v = value.data,
        .shape = shape, .scale = scale, .causal = true);
    expect_golden(k, c, "q", &query, 2);
    expect_golden(k, c, "k", &key, 2);
    expect_golden(k, c, "v", &value, 0);
    expect_golden(k, c, "o", &o, 24);
    expect_golden(k, c, "lse", &lse, 8);
    tensor_free(&qkv), tensor_free(&cos), tensor_free(&sin);
}

static void check_attention_backward(const struct kernels *k) {
    const char *c = "attention";
    INPUT(cos);
    INPUT(sin);
    INPUT(o);
    INPUT(lse);
    INPUT(d_o);
    OUTPUT(dq);
    OUTPUT(dk);
    OUTPUT(dv);
    OUTPUT(dqkv);
    struct tensor query = load(c, "q", true), key = load(c, "k", true), value = load(c, "v", true);
    RUN(k, attention_backward, .dq = dq.data, .dk = dk.data, .dv = dv.data, .d_o = d_o.data, .o = o.data,
        .lse = lse.data, .q = query.data, .k = key.data, .v = value.data, .shape = shape, .scale = scale,
        .causal = true);
    RUN(k, qkv_split_backward, .dqkv = dqkv.data, .dq = dq.data, .dk = dk.data, .dv = dv.data, .shape = shape,
        .cos = cos.data, .sin = sin.data, .rotary_dim = 6);
    expect_golden(k, c, "dq", &dq, 64);
    expect_golden(k, c, "dk", &dk, 64);
    expect_golden(k, c, "dv", &dv, 64);
    expect_golden(k, c, "dqkv", &dqkv, 64);
    struct tensor *inputs[] = {&cos, &sin, &o, &lse, &d_o, &query, &key, &value};
    for (int i = 0; i < 8; i++) tensor_free(inputs[i]);
}

/* The chain that keeps the scores must agree with the same numbers. */
static void check_unfused_attention(const struct kernels *k) {
    const char *c = "attention";
    int64_t n = shape.b * shape.a * shape.s * shape.s, rows = shape.b * shape.a * shape.s;
    INPUT(d_o);
    OUTPUT(o);
    OUTPUT(dq);
    OUTPUT(dk);
    OUTPUT(dv);
    struct tensor query = load(c, "q", true), key = load(c, "k", true), value = load(c, "v", true);
    struct tensor probs = tensor_new(DTYPE_F32, n, false), dprobs = tensor_new(DTYPE_F32, n, false);
    RUN(k, attention_scores_forward, .scores = probs.data, .q = query.data, .k = key.data, .shape = shape,
        .scale = scale, .causal = true);
    RUN(k, softmax_forward, .y = probs.data, .x = probs.data, .rows = rows, .cols = shape.s, .causal = true);
    RUN(k, attention_context_forward, .o = o.data, .probs = probs.data, .v = value.data, .shape = shape,
        .causal = true);
    RUN(k, attention_context_backward, .dprobs = dprobs.data, .dv = dv.data, .d_o = d_o.data,
        .probs = probs.data, .v = value.data, .shape = shape, .causal = true);
    RUN(k, softmax_backward, .dx = dprobs.data, .dy = dprobs.data, .y = probs.data, .rows = rows,
        .cols = shape.s, .causal = true);
    RUN(k, attention_scores_backward, .dq = dq.data, .dk = dk.data, .dscores = dprobs.data, .q = query.data,
        .k = key.data, .shape = shape, .scale = scale, .causal = true);
    expect_golden(k, c, "o", &o, 24);
    expect_golden(k, c, "dq", &dq, 64);
    expect_golden(k, c, "dk", &dk, 64);
    expect_golden(k, c, "dv", &dv, 64);
    struct tensor *inputs[] = {&d_o, &query, &key, &value, &probs, &dprobs};
    for (int i = 0; i < 6; i++) tensor_free(inputs[i]);
}

#define FOR_REFERENCE_AND_EACH_ISA(k)                                                                        \
    for (int k##_index = -1; open_golden() && k##_index < ISA_COUNT; k##_index++)                            \
        for (const struct kernels *k = k##_index < 0 ? kernels_reference()                                   \
                                                     : table_named(isa_names[k##_index]);                    \
             k; k = NULL)

TEST(norms_agree_with_pytorch) {
    FOR_REFERENCE_AND_EACH_ISA(k) {
        check_norm(k, "layernorm", false);
        check_norm(k, "rmsnorm", true);
    }
}

TEST(activations_agree_with_pytorch) {
    static const char *const names[ACTIVATION_COUNT] = {
        [ACTIVATION_GELU_TANH] = "gelu_tanh",       [ACTIVATION_GELU_ERF] = "gelu_erf",
        [ACTIVATION_SQUARED_RELU] = "squared_relu", [ACTIVATION_SWIGLU] = "swiglu",
        [ACTIVATION_GEGLU_QUICK] = "geglu_quick",   [ACTIVATION_GEGLU] = "geglu"};
    FOR_REFERENCE_AND_EACH_ISA(k)
    for (int kind = 0; kind < ACTIVATION_COUNT; kind++)
        check_activation(k, names[kind], (enum activation)kind);
}

TEST(cross_entropy_agrees_with_pytorch) {
    FOR_REFERENCE_AND_EACH_ISA(k) check_cross_entropy(k);
}

TEST(embedding_agrees_with_pytorch) {
    FOR_REFERENCE_AND_EACH_ISA(k) check_embedding(k);
}

TEST(adamw_agrees_with_pytorch) {
    FOR_REFERENCE_AND_EACH_ISA(k) check_adamw(k);
}

TEST(attention_agrees_with_pytorch) {
    FOR_REFERENCE_AND_EACH_ISA(k) {
        check_attention_forward(k);
        check_attention_backward(k);
    }
}

TEST(unfused_attention_agrees_with_pytorch) {
    FOR_REFERENCE_AND_EACH_ISA(k) check_unfused_attention(k);
}

static void own(const struct kernels *k, const char *name, bool is_own) {
    EXPECT(is_own, "%s: %s is the reference", k->backend, name);
}

/* A kernel that fell out of the link would be the reference under another name, and agree with itself. */
TEST(the_tables_hold_kernels_of_their_own) {
    const struct kernels *reference = kernels_reference();
    FOR_EACH_ISA(k) {
#define OWN(name) own(k, #name, k->name != reference->name)
        OWN(norm_forward), OWN(norm_backward), OWN(activation_forward), OWN(activation_backward),
            OWN(dropout);
        OWN(residual_forward), OWN(residual_backward), OWN(embedding_forward), OWN(embedding_backward);
        OWN(cross_entropy_forward), OWN(cross_entropy_backward), OWN(adamw), OWN(sum_squares), OWN(cast),
            OWN(add);
        OWN(fill), OWN(normal_init), OWN(attention_forward), OWN(attention_backward), OWN(gemm);
    }
}

TEST(every_tensor_of_the_file_is_finite) {
    if (!open_golden()) return;
    int64_t bad = 0;
    for (size_t i = 0; i < safetensors_count(file); i++)
        for (int64_t j = 0; j < elements(safetensors_at(file, i)); j++)
            bad += !isfinite(golden_at(safetensors_at(file, i), j));
    EXPECT_EQ(bad, 0);
    EXPECT(safetensors_count(file) > 60, "%zu tensors", safetensors_count(file));
    safetensors_close(file);
    file = NULL;
}

RUN_TESTS(CASE(norms_agree_with_pytorch), CASE(activations_agree_with_pytorch),
          CASE(cross_entropy_agrees_with_pytorch), CASE(embedding_agrees_with_pytorch),
          CASE(adamw_agrees_with_pytorch), CASE(attention_agrees_with_pytorch),
          CASE(unfused_attention_agrees_with_pytorch), CASE(the_tables_hold_kernels_of_their_own),
          CASE(every_tensor_of_the_file_is_finite))
