/* How a plan sees experts that are split over ranks: how many rows a rank takes at a time, what is kept of
 * them under each setting, where scratch lies, and that FLOPs are those of balanced load. */
#include "core/plan.h"
#include "tests/tiny_model.h"

static struct model split_model(int ep, int etp, bool gathers, float capacity) {
    struct model m = tiny_moe();
    m.layers = 1;
    m.moe.pattern = NULL;
    m.moe.experts = 8;
    m.moe.shared_ffn = 0;
    m.moe.gathers = gathers;
    m.moe.rank_capacity = capacity;
    m.seq = 512;
    m.hidden = 64;
    m.dtype = DTYPE_BF16;
    m.ep = ep, m.etp = etp;
    return m;
}

static void compile(struct compiled *c, const struct model *m, recompute_set selected) {
    struct program p;
    program_init(&p);
    build_layers(&p, m, 0, 1);
    recompute_compile(&p, selected | RECOMPUTE_BIT(MODULE_tensor_gather) | RECOMPUTE_BIT(MODULE_moe_permute),
                      false, c);
}

static const struct tensor_info *tensor_of(const struct compiled *c, const char *name) {
    for (int i = 0; i < c->program.num_tensors; i++)
        if (!strcmp(c->program.tensors[i].name, name)) return &c->program.tensors[i];
    CHECK(false, "no tensor %s", name);
    return NULL;
}

/* s b = 1024 tokens, k = 2: 2048 rows of each rank. */
TEST(a_rank_takes_a_multiple_of_balanced_load_but_never_more_than_can_come) {
    static const struct {
        int ep, etp;
        float capacity;
        int64_t rows;
    } cases[] = {
        {2, 1, 0, 2560},                      /* 1.25 * 2048 */
        {2, 1, 1, 2048},   {2, 1, 0.01f, 32}, /* 20.48, in sixteens */
        {2, 1, 100, 4096},                    /* 2 ranks * 1024 tokens * 2 experts of each */
        {8, 1, 100, 8192},                    /* of 1 expert of each: the owner has one */
        {4, 2, 0, 5120},                      /* 1.25 * 2 * 2048: two ranks for each expert */
        {1, 2, 0, 4096},                      /* everything, on both */
    };
    for (size_t i = 0; i < 2 * ARRAY_COUNT(cases); i++) {
        struct compiled c;
        struct model m = split_model(cases[i / 2].ep, cases[i / 2].etp, i % 2, cases[i / 2].capacity);
        compile(&c, &m, 0);
        EXPECT_EQ(tensor_of(&c, "experts_fc1")->dims[0], cases[i / 2].rows);
        recompute_free(&c);
    }
}

TEST(rows_that_came_are_kept_unless_the_module_is_recomputed_and_counts_always) {
    for (int i = 0; i < 4; i++) {
        struct compiled c;
        bool gathers = i % 2, moe = i / 2;
        struct model m = split_model(2, 1, gathers, 0);
        compile(&c, &m, moe ? RECOMPUTE_BIT(MODULE_moe) : 0);
        enum tensor_home kept = moe ? HOME_WORK : HOME_KEEP;
        EXPECT_EQ(tensor_of(&c, "experts_fc1")->home, kept);
        EXPECT_EQ(tensor_of(&c, "moe_act")->home, kept);
        EXPECT_EQ(tensor_of(&c, "expert_rows")->home, HOME_WORK);
        EXPECT_EQ(tensor_of(&c, "expert_dispatch")->home, HOME_KEEP);
        if (gathers) {
            EXPECT_EQ(tensor_of(&c, "gathered_tokens")->home, HOME_WORK);
            EXPECT_EQ(tensor_of(&c, "expert_offsets")->home, HOME_KEEP);
        } else {
            EXPECT_EQ(tensor_of(&c, "exchanged_rows")->home, kept);
            EXPECT_EQ(tensor_of(&c, "expert_counts")->home, HOME_KEEP);
        }
        recompute_free(&c);
    }
}

static size_t scratch_bytes(bool gathers, float capacity) {
    struct compiled c, one;
    struct model m = split_model(2, 1, gathers, capacity), whole = split_model(1, 1, false, 0);
    compile(&c, &m, 0);
    compile(&one, &whole, 0);
    EXPECT_EQ(c.program.num_params, one.program.num_params);
    const struct tensor_info *scratch = tensor_of(&c, gathers ? "combine_scratch" : "return_scratch");
    size_t bytes = scratch->bytes;
    EXPECT_EQ(scratch->home, HOME_WORK);
    recompute_free(&c);
    recompute_free(&one);
    return bytes;
}

/* The rounds read the layer's own weights: no parameter is there twice. Forward has room for a quarter of
 * 2560 rows of fc1's result, of the activation and of fc2's; and without rounds none at all. */
TEST(rounds_share_the_weights_and_have_room_for_a_quarter_of_the_rows) {
    size_t window = (size_t)640 * (80 + 40 + 64) * 2;
    for (int gathers = 0; gathers < 2; gathers++) {
        size_t room = scratch_bytes(gathers, 0) - scratch_bytes(gathers, 100);
        EXPECT(room >= window && room < window + window / 8, "%zu bytes, a window has %zu", room, window);
    }
}

/* docs/memory.md: 512 rows more than one rank has (120 columns), rows and scales that came, the order of
 * rows, and counts of 2 ranks; or probabilities and order of all rows of 2 ranks. */
TEST(what_is_kept_is_what_the_manual_says) {
    static const size_t more[2] = {512 * 120 * 2 + 2560 * 64 * 2 + 12 * 2560 + 64 + 4 * 2 * 8,
                                   512 * 120 * 2 + 12 * 4096 + 64 + 64};
    struct compiled one;
    struct model whole = split_model(1, 1, false, 0);
    compile(&one, &whole, 0);
    for (int gathers = 0; gathers < 2; gathers++) {
        struct compiled c;
        struct model m = split_model(2, 1, gathers, 0);
        compile(&c, &m, 0);
        EXPECT_EQ(c.frame_bytes, one.frame_bytes + more[gathers]);
        recompute_free(&c);
    }
    recompute_free(&one);
}

/* With balanced load as many rows come as go, whatever there is room for. */
TEST(flops_are_those_of_balanced_load) {
    double flops[3];
    for (int i = 0; i < 3; i++) {
        struct plan plan;
        struct model m = split_model(i ? 2 : 1, 1, i == 2, 0);
        struct plan_request request = tiny_request(m, (struct recompute_policy){0});
        plan_build(&request, &plan);
        flops[i] = plan.step_gemm_flops;
        plan_free(&plan);
    }
    EXPECT(flops[1] == flops[0] && flops[2] == flops[0], "%.0f, %.0f, one rank %.0f", flops[1], flops[2],
           flops[0]);
}

RUN_TESTS(CASE(a_rank_takes_a_multiple_of_balanced_load_but_never_more_than_can_come),
          CASE(rows_that_came_are_kept_unless_the_module_is_recomputed_and_counts_always),
          CASE(rounds_share_the_weights_and_have_room_for_a_quarter_of_the_rows),
          CASE(what_is_kept_is_what_the_manual_says), CASE(flops_are_those_of_balanced_load))
