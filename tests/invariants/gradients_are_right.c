/* The oracle of the other invariants: gradients of the whole model against finite differences of the loss.
 * For each parameter tensor, the derivative of the loss along its own gradient must be the gradient's squared
 * norm. Dropout is on: masks are functions, so the perturbed runs draw the same. */
#include "tests/tiny_model.h"

static double loss_along(struct tiny *t, const struct plan_param *p, const float *base, const float *grad,
                         double h) {
    float *master = executor_at(&t->executor, p->master);
    for (int64_t i = 0; i < p->count; i++) master[i] = (float)((double)base[i] + h * (double)grad[i]);
    update_compute_copies(&t->executor);
    double loss_sum = tiny_step(t, 7);
    return tiny_objective(t, loss_sum);
}

static void expect_derivatives(const char *name, struct model m) {
    if (m.layers > 2) m.layers = 2;
    struct plan_request request = tiny_request(m, (struct recompute_policy){0});
    struct tiny t;
    request.kernels = kernels_reference();
    request.micro_batches = 2;
    tiny_open(&t, &request);
    tiny_step(&t, 7);
    float *grads = tiny_grads(&t), *at = grads;
    for (int i = 0; i < t.plan.num_params; at += t.plan.params[i++].count) {
        const struct plan_param *p = &t.plan.params[i];
        float *base = mem_new_array(float, (size_t)p->count, "test"),
              *master = executor_at(&t.executor, p->master);
        double square = 0;
        memcpy(base, master, (size_t)p->count * sizeof(float));
        for (int64_t k = 0; k < p->count; k++) square += (double)at[k] * (double)at[k];
        /* A step that moves the loss by about 1e-3: above float rounding of the loss (1e-6), below curvature.
         * Fourth-order differences, so that curvature costs h^4. Adding a constant to all keys moves no
         * softmax: that bias has no gradient but rounding. */
        if (square > 1e-7) {
            double h = 2e-3 / square;
            if (h * sqrt(square) > 0.02) h = 0.02 / sqrt(square);
            double d1 = loss_along(&t, p, base, at, h) - loss_along(&t, p, base, at, -h);
            double d2 = loss_along(&t, p, base, at, 2 * h) - loss_along(&t, p, base, at, -2 * h);
            double derivative = (8 * d1 - d2) / (12 * h);
            EXPECT(fabs(derivative - square) <= 5e-3 * square + 1e-6 / h * 0.3,
                   "%s %s: derivative %.9g, gradient %.9g", name, p->name, derivative, square);
        }
        memcpy(master, base, (size_t)p->count * sizeof(float));
        mem_free(base);
    }
    mem_free(grads);
    tiny_close(&t);
}

TEST(gpt) {
    expect_derivatives("gpt", tiny_gpt());
}
TEST(llama) {
    expect_derivatives("llama", tiny_llama());
}

/* Where the routing changes the loss jumps and finite differences mean nothing, so every token goes to all
 * experts here; tests/kernels/moe_test.c and the golden models have the selection. */
TEST(mixture_of_experts) {
    struct model m = tiny_moe(), s = tiny_moe_sigmoid();
    m.moe.topk = m.moe.experts;
    expect_derivatives("moe", m);
    m.moe.pre_softmax = true;
    m.moe.pattern = NULL;
    m.activation = ACTIVATION_GELU_TANH;
    expect_derivatives("moe pre-softmax", m);
    s.moe.topk = s.moe.experts;
    s.moe.group_topk = s.moe.group_count;
    s.moe.z_coeff = 0.03f;
    expect_derivatives("moe sigmoid", s);
    /* Dropped by position, so that the choice does not depend on the weights; jitter is a function. */
    struct model l = tiny_moe_limited();
    l.moe.topk = l.moe.experts;
    l.moe.drops_by_position = true;
    expect_derivatives("moe with capacity, jitter and the balance of the batch", l);
}

TEST(multi_token_prediction) {
    struct model m = tiny_mtp();
    m.layers = 1;
    expect_derivatives("mtp with fused loss", m);
    m.fused_loss = false, m.tied = true;
    expect_derivatives("mtp tied", m);
    m = tiny_moe_mtp();
    m.moe.topk = m.moe.experts;
    m.layers = 1, m.moe.pattern = NULL, m.mtp_layers = 1;
    expect_derivatives("mtp with experts", m);
}

TEST(latent_attention) {
    struct model m = tiny_mla();
    expect_derivatives("mla", m);
    m.flash = m.fused_loss = m.qk_norm = false;
    m.q_rank = 0, m.yarn_factor = 0;
    expect_derivatives("mla unfused without query latent and norms", m);
}

TEST(gpt_unfused_with_plain_loss) {
    struct model m = tiny_gpt();
    m.flash = false;
    expect_derivatives("gpt unfused", m);
}

TEST(every_activation) {
    for (int a = 0; a < ACTIVATION_COUNT; a++) {
        struct model m = tiny_llama();
        m.activation = (enum activation)a;
        m.layers = 1; /* finite differences run the model four times per parameter */
        m.zero_centered = a & 1;
        m.tied = a & 1;
        m.rotary_interleaved = a & 1;
        expect_derivatives("activation", m);
    }
}

/* Every parameter learns: no gradient is zero (except the key bias, which moves no softmax). */
TEST(no_parameter_is_left_out) {
    struct model models[] = {tiny_gpt(), tiny_llama(),       tiny_mla(),
                             tiny_moe(), tiny_moe_sigmoid(), tiny_moe_mtp()};
    for (int k = 0; k < 6; k++) {
        struct plan_request request = tiny_request(models[k], (struct recompute_policy){0});
        struct tiny t;
        tiny_open(&t, &request);
        tiny_step(&t, 3);
        for (int i = 0; i < t.plan.num_params; i++) {
            const float *g = executor_at(&t.executor, t.plan.params[i].grad);
            double square = 0;
            for (int64_t j = 0; j < t.plan.params[i].count; j++) square += (double)g[j] * (double)g[j];
            EXPECT(square > 0, "%s has no gradient", t.plan.params[i].name);
        }
        tiny_close(&t);
    }
}

RUN_TESTS(CASE(gpt), CASE(llama), CASE(mixture_of_experts), CASE(multi_token_prediction),
          CASE(latent_attention), CASE(gpt_unfused_with_plain_loss), CASE(every_activation),
          CASE(no_parameter_is_left_out))
