/* I5: no host allocation in the step after iteration 1, live bytes between iterations constant, and
 * evaluation takes nothing either. The whole trainer runs, from flags. */
#include "core/base/mem.h"
#include "core/train/trainer.h"
#include "tests/test.h"

static void run_trainer(const char *const *extra, int count) {
    static const char *const base[] = {"pretrain_gpt",
                                       "--num-layers",
                                       "2",
                                       "--hidden-size",
                                       "32",
                                       "--num-attention-heads",
                                       "4",
                                       "--seq-length",
                                       "32",
                                       "--max-position-embeddings",
                                       "32",
                                       "--micro-batch-size",
                                       "2",
                                       "--global-batch-size",
                                       "4",
                                       "--train-iters",
                                       "8",
                                       "--lr",
                                       "1e-3",
                                       "--mock-data",
                                       "--vocab-size",
                                       "128",
                                       "--eval-iters",
                                       "2",
                                       "--eval-interval",
                                       "4"};
    const char *argv[64];
    int argc = 0;
    for (size_t i = 0; i < ARRAY_COUNT(base); i++) argv[argc++] = base[i];
    for (int i = 0; i < count; i++) argv[argc++] = extra[i];
    struct config_module modules[MODULE_COUNT];
    for (int i = 0; i < MODULE_COUNT; i++)
        modules[i] = (struct config_module){recompute_module_info(i)->name,
                                            !recompute_module_info(i)->is_internal, "not a module"};
    struct config cfg;
    struct err err = {{0}};
    struct trainer t;
    struct mem_stats start = mem_stats();
    EXPECT(config_parse(argc, argv, &cfg, &err) == 0, "%s", err.text);
    EXPECT(config_validate(&cfg, modules, MODULE_COUNT, &err) == 0, "%s", err.text);
    EXPECT(trainer_open(&t, &cfg, NULL, &err) == 0, "%s", err.text);
    struct step_result r;
    uint64_t allocations = 0, live = 0;
    for (int i = 0; i < 6; i++) {
        double loss = 0, tokens = 0;
        EXPECT(step_run(&t, 4, &r, &err) == 0, "%s", err.text);
        t.state.iteration++;
        t.state.consumed_samples += 4;
        if (i % 2) EXPECT(step_evaluate(&t, t.valid_loader, &loss, &tokens, &err) == 0, "%s", err.text);
        struct mem_stats now = mem_stats();
        if (i >= 2) {
            EXPECT_EQ(now.allocations, allocations);
            EXPECT_EQ(now.live_bytes, live);
        }
        allocations = now.allocations, live = now.live_bytes;
    }
    trainer_close(&t);
    config_free(&cfg);
    struct mem_stats end = mem_stats();
    EXPECT_EQ(end.live_blocks, start.live_blocks); /* and everything is given back */
}

TEST(steps_allocate_nothing) {
    run_trainer(NULL, 0);
}

TEST(steps_with_recompute_allocate_nothing) {
    static const char *const full[] = {"--bf16",  "--recompute-granularity", "full", "--recompute-method",
                                       "uniform", "--recompute-num-layers",  "2"};
    static const char *const selective[] = {
        "--fp16",   "--recompute-granularity", "selective", "--recompute-modules", "core_attn", "mlp",
        "layernorm"};
    run_trainer(full, (int)ARRAY_COUNT(full));
    run_trainer(selective, (int)ARRAY_COUNT(selective));
}

RUN_TESTS(CASE(steps_allocate_nothing), CASE(steps_with_recompute_allocate_nothing))
