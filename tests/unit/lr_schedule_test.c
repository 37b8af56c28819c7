#include "core/optim/lr_schedule.h"
#include "core/optim/wd_schedule.h"
#include "tests/golden/schedule_tables.h"
#include "tests/test.h"

static struct lr_schedule_options base_options(void) {
    return (struct lr_schedule_options){.lr = 1e-3,
                                        .train_iters = 100,
                                        .global_batch_size = 8,
                                        .decay_style = LR_COSINE,
                                        .warmup_fraction = -1};
}

TEST(rates_are_those_of_the_formulas) {
    for (size_t i = 0; i < ARRAY_COUNT(lr_table); i++) {
        struct lr_schedule_options o = base_options();
        struct lr_schedule s;
        struct err err = {""};
        o.min_lr = lr_table[i].min_lr;
        o.warmup_init = lr_table[i].init_lr;
        o.warmup_iters = lr_table[i].warmup_iters;
        o.warmup_fraction = lr_table[i].warmup_fraction;
        o.wsd_decay_iters = 25;
        o.decay_style = (enum lr_decay_style)lr_decay_style_parse(lr_table[i].style);
        o.wsd_style = (enum lr_wsd_style)lr_wsd_style_parse(lr_table[i].wsd_style);
        EXPECT(lr_schedule_init(&s, &o, &err) == 0, "%s", err.text);
        double rate = lr_schedule_at(&s, lr_table[i].samples);
        EXPECT(isfinite(rate) && fabs(rate - lr_table[i].rate) <= 1e-15,
               "row %zu, %s %s at %d: %.17g is not %.17g", i, lr_table[i].style, lr_table[i].wsd_style,
               lr_table[i].samples, rate, lr_table[i].rate);
    }
}

TEST(every_style_is_in_the_table_and_has_its_name) {
    static const char *const styles[] = {"constant", "linear", "cosine", "inverse-square-root", "WSD"};
    static const char *const wsd[] = {"exponential", "linear", "cosine", "minus_sqrt"};
    for (int i = 0; i < 5; i++) EXPECT_EQ(lr_decay_style_parse(styles[i]), i);
    for (int i = 0; i < 4; i++) EXPECT_EQ(lr_wsd_style_parse(wsd[i]), i);
    EXPECT_EQ(lr_decay_style_parse("Cosine"), -1);
    EXPECT_EQ(lr_wsd_style_parse(""), -1);
    EXPECT_EQ(lr_decay_style_parse("inverse-square-root"), LR_INVERSE_SQUARE_ROOT);
    EXPECT_EQ(lr_wsd_style_parse("minus_sqrt"), LR_WSD_MINUS_SQRT);
}

TEST(samples_and_iterations_mean_the_same) {
    struct lr_schedule a, b;
    struct err err;
    struct lr_schedule_options iters = base_options(), samples = base_options();
    iters.warmup_iters = 7, iters.decay_iters = 90;
    samples.train_iters = 0, samples.train_samples = 800;
    samples.warmup_samples = 56, samples.decay_samples = 720;
    EXPECT_EQ(lr_schedule_init(&a, &iters, &err), 0);
    EXPECT_EQ(lr_schedule_init(&b, &samples, &err), 0);
    for (int n = 0; n < 900; n += 8) EXPECT(lr_schedule_at(&a, n) == lr_schedule_at(&b, n), "at %d", n);
}

TEST(first_update_of_a_warmup_has_the_initial_rate) {
    struct lr_schedule s;
    struct err err;
    struct lr_schedule_options o = base_options();
    o.warmup_iters = 5;
    EXPECT_EQ(lr_schedule_init(&s, &o, &err), 0);
    EXPECT(lr_schedule_at(&s, 0) == 0, "not 0");
    EXPECT(lr_schedule_at(&s, 40) == 1e-3, "not the full rate at the end of the warmup");
}

#define REFUSED(part, ...)                                                                                   \
    do {                                                                                                     \
        struct lr_schedule s;                                                                                \
        struct err err = {""};                                                                               \
        struct lr_schedule_options o = base_options();                                                       \
        __VA_ARGS__;                                                                                         \
        EXPECT_EQ(lr_schedule_init(&s, &o, &err), -1);                                                       \
        EXPECT_CONTAINS(err.text, part);                                                                     \
    } while (0)

TEST(impossible_schedules_are_refused_by_flag) {
    REFUSED("--lr ", o.lr = -1);
    REFUSED("--lr ", o.lr = (double)NAN);
    REFUSED("--min-lr", o.min_lr = 1e-2);
    REFUSED("--min-lr", o.min_lr = (double)NAN);
    REFUSED("--lr-warmup-init", o.warmup_init = 1e-2);
    REFUSED("--lr-warmup-iters", o.warmup_iters = 100);
    REFUSED("--lr-warmup-fraction", o.warmup_fraction = 1);
    REFUSED("--lr-warmup-fraction", o.warmup_fraction = 0.1; o.warmup_iters = 1);
    REFUSED("--lr-wsd-decay-iters", o.decay_style = LR_WSD);
    REFUSED("--lr-wsd-decay-iters 101", o.decay_style = LR_WSD; o.wsd_decay_iters = 101);
    REFUSED("--train-iters", o.train_iters = 0);
    REFUSED("--train-samples", o.train_samples = 1);
    REFUSED("--lr-warmup-samples", o.warmup_samples = 8);
    REFUSED("--lr-decay-iters", o.train_iters = 0; o.train_samples = 800; o.decay_iters = 3);
    REFUSED("must not be negative", o.decay_iters = -1);
}

TEST(weight_decay_is_that_of_the_formulas) {
    for (size_t i = 0; i < ARRAY_COUNT(wd_table); i++) {
        struct err err = {""};
        struct wd_schedule s = {.start = wd_table[i].start, .end = wd_table[i].end, .incr_samples = 800};
        s.style = (enum wd_incr_style)wd_incr_style_parse(wd_table[i].style);
        EXPECT(wd_schedule_check(&s, &err) == 0, "%s", err.text);
        EXPECT_NEAR(wd_schedule_at(&s, wd_table[i].samples), wd_table[i].decay, 1e-15);
    }
    EXPECT_EQ(wd_incr_style_parse("none"), -1);
}

TEST(impossible_weight_decays_are_refused) {
    struct err err;
    EXPECT_EQ(wd_schedule_check(&(struct wd_schedule){0.1, 0.01, 8, WD_LINEAR}, &err), -1);
    EXPECT_EQ(wd_schedule_check(&(struct wd_schedule){-0.1, 0.01, 8, WD_LINEAR}, &err), -1);
    EXPECT_EQ(wd_schedule_check(&(struct wd_schedule){0.1, 0.2, 8, WD_CONSTANT}, &err), -1);
    EXPECT_EQ(wd_schedule_check(&(struct wd_schedule){0.1, 0.2, 0, WD_COSINE}, &err), -1);
}

RUN_TESTS(CASE(rates_are_those_of_the_formulas), CASE(every_style_is_in_the_table_and_has_its_name),
          CASE(samples_and_iterations_mean_the_same), CASE(first_update_of_a_warmup_has_the_initial_rate),
          CASE(impossible_schedules_are_refused_by_flag), CASE(weight_decay_is_that_of_the_formulas),
          CASE(impossible_weight_decays_are_refused))
