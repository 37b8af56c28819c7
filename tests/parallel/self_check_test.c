/* --self-check must pass on a layout that is right, and name what is wrong where it is not. What is wrong is
 * put into the arena, the plan or the step's result of one rank by the test; the judge is the one that users
 * run. */
#include "core/train/self_check.h"
#include "tests/parallel/parallel.h"

static const char *const model_flags[] = {"pretrain_gpt",
                                          "--num-layers",
                                          "8",
                                          "--hidden-size",
                                          "256",
                                          "--num-attention-heads",
                                          "8",
                                          "--seq-length",
                                          "64",
                                          "--max-position-embeddings",
                                          "64",
                                          "--micro-batch-size",
                                          "2",
                                          "--global-batch-size",
                                          "16",
                                          "--train-iters",
                                          "4",
                                          "--mock-data",
                                          "--vocab-size",
                                          "512",
                                          "--cpu-threads",
                                          "1",
                                          "--qk-layernorm",
                                          "--lr",
                                          "1e-3"};

/* By number of ranks. Each ends with NULL. */
static const char *const layouts[][8] = {
    [1] = {NULL},
    [2] = {"--tensor-model-parallel-size", "2", "--sequence-parallel", NULL},
    [4] = {"--tensor-model-parallel-size", "2", "--use-distributed-optimizer", "--overlap-grad-reduce",
           NULL}};

struct setting {
    struct config cfg;
    struct ranks ranks;
    struct self_check check;
    struct step_result layout, reference;
    FILE *out;
    char *text; /* what was printed on this rank */
    size_t length;
};

static void open_setting(struct setting *s) {
    struct err err = {""};
    const char *argv[64];
    int argc = 0;
    *s = (struct setting){
        .ranks = {.world = world, .rank = comm_world_rank(world), .size = comm_world_size(world)}};
    for (size_t i = 0; i < ARRAY_COUNT(model_flags); i++) argv[argc++] = model_flags[i];
    for (const char *const *flag = layouts[s->ranks.size]; *flag; flag++) argv[argc++] = *flag;
    CHECK(!config_parse(argc, argv, &s->cfg, &err), "%s", err.text);
    s->cfg.running_ranks = s->ranks.size;
    CHECK(!config_validate(&s->cfg, NULL, 0, &err), "%s", err.text);
    CHECK(!ranks_open_groups(&s->ranks, &s->cfg, &err), "%s", err.text);
    CHECK(!self_check_open(&s->check, &s->cfg, &s->ranks, &err), "%s", err.text);
    CHECK(!self_check_train(&s->check, &s->layout, &s->reference, &err), "%s", err.text);
    s->out = open_memstream(&s->text, &s->length);
}

static void close_setting(struct setting *s) {
    fclose(s->out);
    free(s->text);
    self_check_close(&s->check);
    s->ranks.world = NULL; /* parallel.h's */
    ranks_close(&s->ranks);
    config_free(&s->cfg);
}

static void judge(struct setting *s) {
    self_check_judge(&s->check, &s->layout, &s->reference, s->out);
    fflush(s->out);
}

static bool is_last(const struct setting *s) {
    return s->ranks.rank == s->ranks.size - 1;
}

static struct plan_param *victim(struct setting *s, const char *name) {
    struct plan *plan = &s->check.layout.setup.plan;
    for (int i = 0; i < plan->num_params; i++)
        if (!strcmp(plan->params[i].name, name)) return &plan->params[i];
    CHECK(false, "no parameter %s", name);
    return NULL;
}

/* The highest rank that holds elements of it: one rank alone is made wrong. */
static bool is_victim(const struct setting *s, const struct plan_param *p) {
    return ranks_max(&s->ranks, p->held_count ? s->ranks.rank : -1) == s->ranks.rank;
}

static void expect_failure(struct setting *s, const char *named) {
    EXPECT(s->check.failed, "the check passed with a wrong %s", named);
    if (s->ranks.rank == 0) EXPECT_CONTAINS(s->text, named);
}

#define FC1 "decoder.layers.1.mlp.linear_fc1.weight"

/* ---- */

TEST(a_right_layout_passes) {
    struct setting s;
    struct err err;
    open_setting(&s);
    judge(&s);
    EXPECT(!s.check.failed, "%s", s.text);
    CHECK(!self_check_train(&s.check, &s.layout, &s.reference, &err), "%s", err.text);
    judge(&s);
    EXPECT(!s.check.failed, "%s", s.text);
    EXPECT(s.reference.lm_loss > 3 && s.reference.lm_loss < 6, "loss %g", s.reference.lm_loss);
    EXPECT(s.check.num_entries == 52, "%d parameters", s.check.num_entries);
    if (s.ranks.rank == 0) EXPECT_CONTAINS(s.text, "self-check step 2: loss ");
    close_setting(&s);
}

/* The small model is not degenerate: every gradient but the keys' norm bias (zero in theory) has a size that
 * the tolerance can see. */
TEST(every_parameter_has_a_gradient) {
    struct setting s;
    double largest = 0;
    open_setting(&s);
    judge(&s);
    for (int i = 0; i < s.check.num_entries; i++) largest = fmax(largest, s.check.entries[i].magnitude);
    for (int i = 0; i < s.check.num_entries; i++) {
        const struct self_check_entry *e = &s.check.entries[i];
        if (strstr(e->name, "k_layernorm.bias")) continue;
        EXPECT(e->magnitude > 3e-3 * largest, "%s: %g of %g", e->name, e->magnitude, largest);
    }
    close_setting(&s);
}

/* One element of one gradient on one rank, off by `parts` of the tolerance. */
static void disturb(struct setting *s, double parts) {
    struct plan_param *p = victim(s, FC1);
    double scale = 0;
    judge(s);
    for (int i = 0; i < s->check.num_entries; i++)
        if (!strcmp(s->check.entries[i].name, FC1)) scale = s->check.entries[i].magnitude;
    EXPECT(!s->check.failed && scale > 0, "undisturbed: %s", s->text);
    if (is_victim(s, p)) {
        float *grad = executor_at(&s->check.layout.executor, p->held_grad);
        grad[p->held_count / 2] += (float)(parts * s->check.tolerance * scale);
    }
    judge(s);
}

TEST(one_wrong_element_of_one_rank_fails_by_name) {
    struct setting s;
    open_setting(&s);
    disturb(&s, 3);
    expect_failure(&s, "in " FC1);
    close_setting(&s);
}

TEST(an_element_within_the_tolerance_passes) {
    struct setting s;
    open_setting(&s);
    disturb(&s, 0.5);
    EXPECT(!s.check.failed, "%s", s.text);
    close_setting(&s);
}

TEST(a_gradient_that_is_not_finite_fails_by_name) {
    static const float bad[] = {NAN, INFINITY};
    for (int i = 0; i < 2; i++) {
        struct setting s;
        open_setting(&s);
        const struct plan_param *p = victim(&s, FC1);
        float *grad = executor_at(&s.check.layout.executor, p->held_grad);
        if (is_victim(&s, p)) grad[0] = bad[i];
        judge(&s);
        expect_failure(&s, "inf in " FC1);
        close_setting(&s);
    }
}

/* A gradient that was summed over too few ranks, or too often. */
TEST(a_gradient_of_the_wrong_size_fails) {
    static const char *const names[] = {"decoder.final_layernorm.weight", "embedding.word_embeddings.weight",
                                        "decoder.layers.0.mlp.linear_fc2.bias"};
    for (size_t k = 0; k < ARRAY_COUNT(names); k++) {
        struct setting s;
        open_setting(&s);
        const struct plan_param *p = victim(&s, names[k]);
        float *grad = executor_at(&s.check.layout.executor, p->held_grad);
        for (int64_t i = 0; i < p->held_count; i++) grad[i] *= 0.5f;
        judge(&s);
        expect_failure(&s, names[k]);
        close_setting(&s);
    }
}

/* A part of the model that is on no rank, or on two: nobody holds the elements, so no difference is seen. */
TEST(elements_that_no_rank_counts_fail) {
    struct setting s;
    open_setting(&s);
    struct plan_param *p = victim(&s, FC1);
    int64_t counted = p->counted;
    p->counted = 0;
    judge(&s);
    expect_failure(&s, "elements are on no rank");
    p->counted = counted;
    close_setting(&s);
}

TEST(another_loss_or_norm_fails) {
    for (int i = 0; i < 4; i++) {
        struct setting s;
        open_setting(&s);
        double *value = i % 2 ? &s.layout.lm_loss : &s.layout.grad_norm;
        if (is_last(&s)) *value = i < 2 ? *value * 1.001 : NAN;
        judge(&s);
        EXPECT(s.check.failed, "the check passed");
        close_setting(&s);
    }
}

/* The whole of it: exit status and text. */
TEST(a_right_layout_exits_0) {
    struct setting s;
    struct err err = {""};
    open_setting(&s);
    EXPECT_EQ(self_check_run(&s.cfg, &s.ranks, s.out, &err), STATUS_OK);
    fflush(s.out);
    if (s.ranks.rank == 0) {
        EXPECT_CONTAINS(s.text, "initial weights are bit-equal");
        EXPECT_CONTAINS(s.text, "the layout agrees with one rank");
    } else {
        EXPECT_EQ(s.length, 0);
    }
    close_setting(&s);
}

RUN_PARALLEL_TESTS("1 2 4", CASE(a_right_layout_passes), CASE(every_parameter_has_a_gradient),
                   CASE(one_wrong_element_of_one_rank_fails_by_name),
                   CASE(an_element_within_the_tolerance_passes),
                   CASE(a_gradient_that_is_not_finite_fails_by_name),
                   CASE(a_gradient_of_the_wrong_size_fails), CASE(elements_that_no_rank_counts_fail),
                   CASE(another_loss_or_norm_fails), CASE(a_right_layout_exits_0))
