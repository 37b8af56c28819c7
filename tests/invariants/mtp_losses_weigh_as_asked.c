/* What a training step of the whole trainer follows is the gradient of the losses that it reports:
 * lm loss + factor / depths * (sum of the mtp_k losses), with means over micro-batches or over tokens. The
 * oracle is finite differences of the reported losses along the gradient of one parameter. And with factor 0
 * the model trains as if there were no multi-token prediction, to the bit, and evaluation does not see it. */
#include "core/base/mem.h"
#include "core/train/trainer.h"
#include "tests/test.h"
#include <math.h>
#include <string.h>

static struct config cfg;
static struct trainer trainer;

static const char *const base[] = {"pretrain_gpt",
                                   "--num-layers",
                                   "1",
                                   "--hidden-size",
                                   "32",
                                   "--num-attention-heads",
                                   "4",
                                   "--seq-length",
                                   "48",
                                   "--max-position-embeddings",
                                   "48",
                                   "--micro-batch-size",
                                   "1",
                                   "--global-batch-size",
                                   "2",
                                   "--train-iters",
                                   "9",
                                   "--lr",
                                   "1e-3",
                                   "--mock-data",
                                   "--vocab-size",
                                   "100",
                                   "--make-vocab-size-divisible-by",
                                   "4",
                                   "--hidden-dropout",
                                   "0",
                                   "--attention-dropout",
                                   "0",
                                   "--position-embedding-type",
                                   "rope",
                                   "--init-method-std",
                                   "0.1",
                                   "--kernels",
                                   "generic",
                                   "--cpu-threads",
                                   "1",
                                   "--split",
                                   "98,2,0",
                                   "--eval-iters",
                                   "1"};

static void open_trainer(const char *const *extra, int count) {
    const char *argv[64];
    int argc = 0;
    struct config_module modules[MODULE_COUNT];
    struct err err = {{0}};
    for (size_t i = 0; i < ARRAY_COUNT(base); i++) argv[argc++] = base[i];
    for (int i = 0; i < count; i++) argv[argc++] = extra[i];
    for (int i = 0; i < MODULE_COUNT; i++)
        modules[i] = (struct config_module){recompute_module_info(i)->name,
                                            !recompute_module_info(i)->is_internal, "not a module"};
    CHECK(config_parse(argc, argv, &cfg, &err) == 0, "%s", err.text);
    CHECK(config_validate(&cfg, modules, MODULE_COUNT, &err) == 0, "%s", err.text);
    CHECK(trainer_open(&trainer, &cfg, NULL, &err) == 0, "%s", err.text);
}

static void close_trainer(void) {
    trainer_close(&trainer);
    config_free(&cfg);
}

static const struct plan_param *param(const char *name) {
    for (int i = 0; i < trainer.setup.plan.num_params; i++)
        if (!strcmp(trainer.setup.plan.params[i].name, name)) return &trainer.setup.plan.params[i];
    CHECK(false, "no parameter %s", name);
    return NULL;
}

/* Of one step over the first samples, from these weights, which are put back. */
static double objective(const struct plan_param *p, const float *weights, double factor) {
    struct step_result r;
    struct err err = {{0}};
    float *master = executor_at(&trainer.executor, p->master);
    memcpy(master, weights, (size_t)p->count * sizeof(float));
    update_compute_copies(&trainer.executor);
    loader_seek(trainer.train_loader, 0);
    trainer.lr.max_lr = trainer.lr.min_lr = trainer.lr.init_lr = 0;
    trainer.wd.start = trainer.wd.end = 0;
    CHECK(step_run(&trainer, 2, &r, &err) == 0, "%s", err.text);
    memcpy(master, weights, (size_t)p->count * sizeof(float));
    return r.lm_loss + factor / 2 * (trainer.mtp_loss[0] + trainer.mtp_loss[1]);
}

static void expect_derivative(const char *name, double factor, double grad_scale) {
    const struct plan_param *p = param(name);
    size_t n = (size_t)p->count;
    float *weights = mem_new_array(float, n, "test"), *moved = mem_new_array(float, n, "test");
    float *grad = mem_new_array(float, n, "test");
    double square = 0, d[2];
    memcpy(weights, executor_at(&trainer.executor, p->master), n * sizeof(float));
    objective(p, weights, factor);
    memcpy(grad, executor_at(&trainer.executor, p->grad), n * sizeof(float));
    for (size_t i = 0; i < n; i++) {
        grad[i] *= (float)grad_scale;
        square += (double)grad[i] * (double)grad[i];
    }
    CHECK(square > 0 && isfinite(square), "%s has no gradient", name);
    double h = 4e-3 / square;
    if (h * sqrt(square) > 0.05) h = 0.05 / sqrt(square);
    for (int k = 0; k < 2; k++) { /* fourth order */
        double both[2];
        for (int sign = 0; sign < 2; sign++) {
            for (size_t i = 0; i < n; i++)
                moved[i] = (float)((double)weights[i] + (sign ? -h : h) * (k + 1) * (double)grad[i]);
            both[sign] = objective(p, moved, factor);
        }
        d[k] = both[0] - both[1];
    }
    double derivative = (8 * d[0] - d[1]) / (12 * h);
    EXPECT(fabs(derivative - square) <= 5e-3 * square + 1e-7 / h, "%s: derivative %.9g, gradient %.9g", name,
           derivative, square);
    memcpy(executor_at(&trainer.executor, p->master), weights, n * sizeof(float));
    mem_free(weights);
    mem_free(moved);
    mem_free(grad);
}

static void expect_derivatives(const char *const *extra, int count, double factor, double grad_scale) {
    static const char *const names[] = {"embedding.word_embeddings.weight",
                                        "decoder.layers.0.mlp.linear_fc2.weight",
                                        "mtp.layers.0.eh_proj.weight", "mtp.layers.1.hnorm.weight",
                                        "mtp.layers.1.transformer_layer.self_attention.linear_qkv.weight"};
    open_trainer(extra, count);
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) expect_derivative(names[i], factor, grad_scale);
    close_trainer();
}

TEST(the_gradient_is_that_of_the_reported_losses) {
    static const char *const mean[] = {"--mtp-num-layers", "2", "--mtp-loss-scaling-factor", "0.8"};
    static const char *const default_factor[] = {"--mtp-num-layers", "2"};
    static const char *const by_token[] = {"--mtp-num-layers", "2", "--mtp-loss-scaling-factor", "0.8",
                                           "--calculate-per-token-loss"};
    expect_derivatives(mean, 4, 0.8, 1);
    expect_derivatives(default_factor, 2, 0.1, 1);
    expect_derivatives(by_token, 5, 0.8, 1.0 / 96);
}

struct course {
    double loss[4], eval;
};

static struct course train(const char *const *extra, int count) {
    struct course c = {.eval = 0};
    struct step_result r;
    struct err err = {{0}};
    double tokens = 0;
    open_trainer(extra, count);
    for (int i = 0; i < 4; i++) {
        CHECK(step_run(&trainer, 2, &r, &err) == 0, "%s", err.text);
        trainer.state.iteration++;
        c.loss[i] = r.lm_loss;
    }
    CHECK(step_evaluate(&trainer, trainer.valid_loader, &c.eval, &tokens, &err) == 0, "%s", err.text);
    close_trainer();
    return c;
}

TEST(factor_zero_trains_as_without) {
    static const char *const zero[] = {"--mtp-num-layers", "2", "--mtp-loss-scaling-factor", "0"};
    static const char *const tenth[] = {"--mtp-num-layers", "2"};
    struct course without = train(NULL, 0), with = train(zero, 4), other = train(tenth, 2);
    EXPECT(isfinite(without.eval) && without.loss[3] < without.loss[0], "losses %g to %g", without.loss[0],
           without.loss[3]);
    EXPECT(!memcmp(&without, &with, sizeof(with)), "loss %.17g and %.17g, evaluated %.17g and %.17g",
           without.loss[3], with.loss[3], without.eval, with.eval);
    EXPECT(other.loss[0] == without.loss[0] && other.loss[3] != without.loss[3], "loss %.17g and %.17g",
           without.loss[3], other.loss[3]);
}

RUN_TESTS(CASE(the_gradient_is_that_of_the_reported_losses), CASE(factor_zero_trains_as_without))
