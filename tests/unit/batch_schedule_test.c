#include "core/optim/batch_schedule.h"
#include "tests/golden/schedule_tables.h"
#include "tests/test.h"

static struct batch_schedule rampup(int64_t start, int64_t increment, int64_t samples, int64_t final) {
    return (struct batch_schedule){.kind = BATCH_RAMPUP,
                                   .global_batch_size = final,
                                   .row_samples = 1,
                                   .rampup_start = start,
                                   .rampup_increment = increment,
                                   .rampup_samples = samples};
}

TEST(rampup_sizes_are_those_of_the_formula) {
    for (size_t i = 0; i < ARRAY_COUNT(rampup_table); i++) {
        struct err err = {""};
        struct batch_schedule s = rampup(rampup_table[i].start, rampup_table[i].increment,
                                         rampup_table[i].ramp_samples, rampup_table[i].final);
        EXPECT(batch_schedule_check(&s, &err) == 0, "%s", err.text);
        EXPECT(batch_schedule_at(&s, rampup_table[i].samples).global == rampup_table[i].size,
               "row %zu: %lld is not %d", i, (long long)batch_schedule_at(&s, rampup_table[i].samples).global,
               rampup_table[i].size);
    }
}

TEST(steps_are_read_from_tokens_with_suffixes) {
    struct batch_schedule s = {.row_samples = 4};
    struct err err = {""};
    EXPECT(!batch_schedule_parse_steps(&s, " 0:768  250B:1536,1.5T:3072\t500k:1k ", 2048, &err), "%s",
           err.text);
    EXPECT_EQ(s.kind, BATCH_STEPS);
    EXPECT_EQ(s.num_steps, 4);
    EXPECT_EQ(s.steps[0].threshold_samples, 0);
    EXPECT_EQ(s.steps[1].threshold_samples, 244); /* floor(500,000 / 2048); sorted */
    EXPECT_EQ(s.steps[1].batch_size, 1000);
    EXPECT_EQ(s.steps[2].threshold_samples, 122070312); /* floor(250e9 / 2048) */
    EXPECT_EQ(s.global_batch_size, 3072);
    EXPECT(!batch_schedule_check(&s, &err), "%s", err.text);
    EXPECT_EQ(batch_schedule_at(&s, 0).global, 768);
    EXPECT_EQ(batch_schedule_at(&s, 243).global, 768);
    EXPECT_EQ(batch_schedule_at(&s, 244).global, 1000);
    EXPECT_EQ(batch_schedule_at(&s, 122070312).micro_batches, 384);
    EXPECT_EQ(batch_schedule_at(&s, INT64_MAX).global, 3072);
}

TEST(malformed_steps_are_refused_with_an_example) {
    static const char *const bad[] = {
        "",         "768",     "0:",     ":8",    "0:8 x:16", "0:8 1e3:16",    "0:-8",
        "0:8 4:8G", "0:8 4:B", "0:8:16", "0:inf", "0:1.2.3",  "0:99999999999T"};
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        struct batch_schedule s = {.row_samples = 1};
        struct err err = {""};
        EXPECT(batch_schedule_parse_steps(&s, bad[i], 1, &err) == -1, "'%s' was taken", bad[i]);
        EXPECT_CONTAINS(err.text, "0:768 250B:1536");
    }
}

TEST(too_many_steps_are_refused) {
    char text[BATCH_MAX_STEPS * 12 + 32];
    size_t n = 0;
    struct batch_schedule s = {.row_samples = 1};
    struct err err = {""};
    for (int i = 0; i <= BATCH_MAX_STEPS; i++)
        n += (size_t)snprintf(text + n, sizeof(text) - n, "%d:%d ", i, i + 1);
    EXPECT_EQ(batch_schedule_parse_steps(&s, text, 1, &err), -1);
    EXPECT_CONTAINS(err.text, "64");
}

static int check_steps(const char *text, int64_t row, bool decrease, struct err *err) {
    struct batch_schedule s = {.row_samples = row, .decrease_if_needed = decrease};
    return batch_schedule_parse_steps(&s, text, 10, err) || batch_schedule_check(&s, err);
}

TEST(impossible_schedules_are_refused) {
    struct err err = {""};
    struct batch_schedule s;
    EXPECT(check_steps("10:8", 1, false, &err), "no start at 0");
    EXPECT(check_steps("0:8 100:16 109:32", 1, false, &err), "equal in samples");
    EXPECT(check_steps("0:8 100:18", 8, false, &err), "not divisible");
    EXPECT_CONTAINS(err.text, "18");
    EXPECT(check_steps("0:0", 1, false, &err), "zero");
    EXPECT(check_steps("0:8", 1, true, &err), "decrease");
    EXPECT(!check_steps("0:8 100:16", 8, false, &err), "%s", err.text);
    s = rampup(16, 8, 100, 8);
    EXPECT(batch_schedule_check(&s, &err), "start beyond the end");
    s = rampup(8, 5, 100, 32);
    EXPECT(batch_schedule_check(&s, &err), "increment does not divide");
    s = rampup(8, 0, 100, 32);
    EXPECT(batch_schedule_check(&s, &err), "no increment");
    s = rampup(8, 4, 100, 32), s.row_samples = 8;
    EXPECT(batch_schedule_check(&s, &err), "12 is no multiple of 8");
    EXPECT_CONTAINS(err.text, "12");
    s = rampup(8, 8, 100, 32), s.row_samples = 8;
    EXPECT(!batch_schedule_check(&s, &err), "%s", err.text);
    s = (struct batch_schedule){.global_batch_size = 9, .row_samples = 4};
    EXPECT(batch_schedule_check(&s, &err), "9 is no multiple of 4");
    EXPECT_CONTAINS(err.text, "--decrease-batch-size-if-needed");
    s.global_batch_size = 3, s.decrease_if_needed = true;
    EXPECT(batch_schedule_check(&s, &err), "nothing would remain");
    s.row_samples = 0;
    EXPECT(batch_schedule_check(&s, &err), "no row");
}

TEST(decrease_rounds_down_what_is_trained_only) {
    struct batch_schedule s = {.global_batch_size = 10, .row_samples = 4, .decrease_if_needed = true};
    struct err err = {""};
    EXPECT(!batch_schedule_check(&s, &err), "%s", err.text);
    struct batch_size size = batch_schedule_at(&s, 0);
    EXPECT_EQ(size.global, 10);
    EXPECT_EQ(size.running, 8);
    EXPECT_EQ(size.micro_batches, 2);
    EXPECT_EQ(batch_schedule_samples(&s, 5), 40);
}

/* The oracle: one iteration after the other. */
static void expect_counts(const struct batch_schedule *s) {
    int64_t samples = 0;
    for (int64_t i = 0; i < 300; i++) {
        int64_t next = samples + batch_schedule_at(s, samples).running;
        EXPECT_EQ(batch_schedule_samples(s, i), samples);
        EXPECT_EQ(batch_schedule_iterations(s, samples), i);
        EXPECT_EQ(batch_schedule_iterations(s, next - 1), i);
        samples = next;
    }
}

TEST(counting_agrees_with_walking) {
    struct batch_schedule s = rampup(4, 4, 500, 32);
    struct err err;
    expect_counts(&s);
    s = (struct batch_schedule){.global_batch_size = 8, .row_samples = 4};
    expect_counts(&s);
    EXPECT(!batch_schedule_parse_steps(&s, "0:8 1000:16 5000:64", 10, &err), "%s", err.text);
    expect_counts(&s);
    s = (struct batch_schedule){.global_batch_size = 1, .row_samples = 1};
    EXPECT_EQ(batch_schedule_iterations(&s, (int64_t)1 << 60), (int64_t)1 << 60); /* at once */
}

RUN_TESTS(CASE(rampup_sizes_are_those_of_the_formula), CASE(steps_are_read_from_tokens_with_suffixes),
          CASE(malformed_steps_are_refused_with_an_example), CASE(too_many_steps_are_refused),
          CASE(impossible_schedules_are_refused), CASE(decrease_rounds_down_what_is_trained_only),
          CASE(counting_agrees_with_walking))
