#include "core/optim/loss_scale.h"
#include "tests/test.h"

/* Each letter is a step: g good, b bad (Inf found). `expected` are the scales after each step, written down
 * by hand from the rule, with window 3 and hysteresis 2, from 16, not below 2. */
TEST(scale_follows_the_rule_step_by_step) {
    static const char steps[] = "gggbbbgggbbbbbbggg";
    static const double expected[] = {16, 16, 32, 32, 16, 8, 8, 8, 16, 16, 8, 4, 2, 2, 2, 2, 2, 4};
    struct loss_scale s;
    struct err err;
    EXPECT_EQ(loss_scale_init_dynamic(&s, 16, 2, 3, 2, &err), 0);
    for (int i = 0; steps[i]; i++) {
        EXPECT_EQ(loss_scale_update(&s, steps[i] == 'b'), steps[i] == 'b');
        EXPECT(s.scale == expected[i], "step %d: %g is not %g", i, s.scale, expected[i]);
    }
}

TEST(a_bad_step_restarts_the_growth_window_but_does_not_refill_hysteresis) {
    static const char steps[] = "ggbggbggg";
    static const double expected[] = {16, 16, 16, 16, 16, 8, 8, 8, 16};
    struct loss_scale s;
    struct err err;
    EXPECT_EQ(loss_scale_init_dynamic(&s, 16, 2, 3, 2, &err), 0);
    for (int i = 0; steps[i]; i++) {
        loss_scale_update(&s, steps[i] == 'b');
        EXPECT(s.scale == expected[i], "step %d: %g is not %g", i, s.scale, expected[i]);
    }
}

TEST(copying_the_struct_restores_the_state) {
    struct loss_scale a, b;
    struct err err;
    EXPECT_EQ(loss_scale_init_dynamic(&a, 0x1p32, 1, 4, 2, &err), 0);
    for (int i = 0; i < 50; i++) {
        b = a;
        EXPECT_EQ(loss_scale_update(&a, i % 7 == 3), loss_scale_update(&b, i % 7 == 3));
        EXPECT(a.scale == b.scale && a.growth_counter == b.growth_counter, "step %d", i);
    }
}

TEST(a_static_scale_never_changes_and_never_skips) {
    struct loss_scale s;
    struct err err;
    EXPECT_EQ(loss_scale_init_static(&s, 128, &err), 0);
    for (int i = 0; i < 5; i++) EXPECT(!loss_scale_update(&s, true) && s.scale == 128, "step %d", i);
}

TEST(growth_stops_at_the_range_of_float32) {
    struct loss_scale s;
    struct err err;
    EXPECT_EQ(loss_scale_init_dynamic(&s, 0x1p126, 1, 1, 1, &err), 0);
    for (int i = 0; i < 5; i++) loss_scale_update(&s, false);
    EXPECT(s.scale == 0x1p127 && isfinite((float)s.scale), "%g", s.scale);
}

TEST(impossible_settings_are_refused_by_flag) {
    struct loss_scale s;
    struct err err = {""};
    EXPECT_EQ(loss_scale_init_static(&s, 0, &err), -1);
    EXPECT_EQ(loss_scale_init_static(&s, (double)NAN, &err), -1);
    EXPECT_CONTAINS(err.text, "--loss-scale");
    EXPECT_EQ(loss_scale_init_dynamic(&s, 1, 2, 1000, 2, &err), -1);
    EXPECT_CONTAINS(err.text, "--initial-loss-scale");
    EXPECT_EQ(loss_scale_init_dynamic(&s, 1, 0, 1000, 2, &err), -1);
    EXPECT_CONTAINS(err.text, "--min-loss-scale");
    EXPECT_EQ(loss_scale_init_dynamic(&s, 4, 1, 0, 2, &err), -1);
    EXPECT_CONTAINS(err.text, "--loss-scale-window");
    EXPECT_EQ(loss_scale_init_dynamic(&s, 4, 1, 10, 0, &err), -1);
    EXPECT_CONTAINS(err.text, "--hysteresis");
}

RUN_TESTS(CASE(scale_follows_the_rule_step_by_step),
          CASE(a_bad_step_restarts_the_growth_window_but_does_not_refill_hysteresis),
          CASE(copying_the_struct_restores_the_state), CASE(a_static_scale_never_changes_and_never_skips),
          CASE(growth_stops_at_the_range_of_float32), CASE(impossible_settings_are_refused_by_flag))
