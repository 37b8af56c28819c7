/* The batch size as a function of consumed samples, against an independent statement of the ramp-up rule. */
#include "core/config/config.h"
#include "tests/golden/schedule_tables.h"
#include "tests/test.h"

TEST(ramp_up_follows_the_rule) {
    char start[16], increment[16], samples[16], final[16];
    int checked = 0;
    for (size_t i = 0; i < ARRAY_COUNT(rampup_table); i++) {
        if (rampup_table[i].ramp_samples == 0) continue; /* the flag wants at least one sample */
        snprintf(start, sizeof(start), "%d", rampup_table[i].start);
        snprintf(increment, sizeof(increment), "%d", rampup_table[i].increment);
        snprintf(samples, sizeof(samples), "%d", rampup_table[i].ramp_samples);
        snprintf(final, sizeof(final), "%d", rampup_table[i].final);
        const char *argv[] = {"pretrain_gpt",
                              "--num-layers",
                              "1",
                              "--hidden-size",
                              "32",
                              "--num-attention-heads",
                              "4",
                              "--seq-length",
                              "8",
                              "--max-position-embeddings",
                              "8",
                              "--micro-batch-size",
                              "1",
                              "--train-samples",
                              "100000",
                              "--lr",
                              "1e-3",
                              "--mock-data",
                              "--vocab-size",
                              "64",
                              "--rampup-batch-size",
                              start,
                              increment,
                              samples,
                              "--global-batch-size",
                              final};
        struct config cfg;
        struct err err;
        int parsed = config_parse((int)ARRAY_COUNT(argv), argv, &cfg, &err);
        EXPECT(parsed == 0, "%s", err.text);
        if (parsed) continue;
        int valid = config_validate(&cfg, NULL, 0, &err);
        EXPECT(valid == 0, "%s", err.text);
        if (!valid) EXPECT_EQ(config_batch_size_at(&cfg, rampup_table[i].samples), rampup_table[i].size);
        checked++;
        config_free(&cfg);
    }
    EXPECT(checked > 40, "only %d rows", checked);
}

RUN_TESTS(CASE(ramp_up_follows_the_rule))
