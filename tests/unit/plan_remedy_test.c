/* Advice about memory is true: holders add up to the peak, remedies fit, and the cheapest is first. */
#include "core/plan_holders.h"
#include "core/plan_remedy.h"
#include "tests/tiny_model.h"

static const struct recompute_policy NONE;

static struct plan_request request_of(struct recompute_policy policy) {
    struct model m = tiny_gpt();
    m.layers = 6, m.micro_batch = 4, m.hidden = 64, m.heads = m.groups = 4, m.head_dim = 16, m.ffn = 256;
    return tiny_request(m, policy);
}

static size_t bytes_of(const struct plan_request *request, double *rerun_p) {
    struct plan plan;
    plan_build(request, &plan);
    size_t bytes = plan.arena_bytes;
    if (rerun_p) *rerun_p = plan.step_rerun_flops;
    plan_free(&plan);
    return bytes;
}

TEST(holders_add_up_to_the_peak) {
    for (int full = 0; full < 2; full++) {
        struct plan_request request =
            request_of(full ? (struct recompute_policy){.granularity = RECOMPUTE_FULL,
                                                        .method = RECOMPUTE_UNIFORM,
                                                        .num_layers = 1}
                            : NONE);
        struct plan plan;
        struct plan_holder *h;
        plan_build(&request, &plan);
        int count = plan_holders(&plan, &h);
        size_t sum = 0, kept = 0, work = 0, fixed = 0;
        for (int i = 0; i < count; i++) {
            bool is_work = !strcmp(h[i].category, "work") || !strcmp(h[i].category, "gradient");
            bool is_kept = !strcmp(h[i].category, "kept") || !strcmp(h[i].category, "layer input");
            EXPECT(i == 0 || h[i - 1].bytes >= h[i].bytes, "row %d is larger than the one before", i);
            EXPECT(h[i].bytes > 0 && h[i].count > 0, "row %d is empty", i);
            sum += h[i].bytes;
            *(is_work ? &work : is_kept ? &kept : &fixed) += h[i].bytes;
        }
        EXPECT_EQ(plan.peak_kind, ACTION_BACKWARD); /* of one micro-batch: every frame is written */
        EXPECT_EQ(fixed, plan.activations);
        EXPECT_EQ(kept, plan.peak_frame_bytes);
        EXPECT(work > 0 && work <= plan.peak_work_bytes && sum <= plan.arena_bytes,
               "work %zu of %zu, all %zu of %zu", work, plan.peak_work_bytes, sum, plan.arena_bytes);
        mem_free(h);
        plan_free(&plan);
    }
}

static const char *flag(const struct plan_remedy *r) {
    return r ? r->flags : "none";
}

/* Against plans made here, and against trying every block. */
TEST(the_cheapest_remedies_come_first_and_fit) {
    struct plan_request request = request_of(NONE);
    size_t none = bytes_of(&request, NULL);
    struct plan_request full = request_of((struct recompute_policy){
        .granularity = RECOMPUTE_FULL, .method = RECOMPUTE_UNIFORM, .num_layers = 1});
    size_t least = bytes_of(&full, NULL);
    for (int step = 0; step < 5; step++) {
        size_t limit = least + (none - least) * (size_t)step / 5;
        struct plan_remedies r;
        plan_find_remedies(
            &(struct plan_remedy_options){
                .stages = &request, .num_stages = 1, .limit = limit, .with_batch = ""},
            &r);
        EXPECT(r.count > 0, "nothing fits in %zu, and full recompute needs %zu", limit, least);
        for (int i = 0; i < r.count; i++) {
            EXPECT(r.at[i].bytes <= limit, "%s needs %zu of %zu", r.at[i].flags, r.at[i].bytes, limit);
            EXPECT(i == 0 || r.at[i - 1].rerun_flops <= r.at[i].rerun_flops, "%s is not in order",
                   r.at[i].flags);
        }
        const struct plan_remedy *best = plan_recompute_remedy(&r);
        EXPECT(best != NULL, "no recompute remedy");
        for (int n = 1; n <= 6 && best; n++) {
            struct plan_request block = request_of((struct recompute_policy){
                .granularity = RECOMPUTE_FULL, .method = RECOMPUTE_BLOCK, .num_layers = n});
            double rerun;
            size_t bytes = bytes_of(&block, &rerun);
            EXPECT(bytes > limit || rerun >= best->rerun_flops, "block %d fits and is cheaper than %s", n,
                   best->flags);
        }
        struct plan_request smaller = request;
        smaller.model.micro_batch = 2, smaller.micro_batches = 6;
        if (bytes_of(&smaller, NULL) <= limit)
            EXPECT_STR(flag(plan_other_remedy(&r)), "--micro-batch-size 2");
    }
}

TEST(changes_are_combined_where_none_alone_fits) {
    struct plan_request request = request_of(NONE), both = request;
    request.model.dtype = both.model.dtype = DTYPE_BF16;
    request.layout = both.layout = (struct plan_layout){.data = 8};
    both.layout.sharding = PLAN_SHARD_OPTIM;
    both.recompute = (struct recompute_policy){
        .granularity = RECOMPUTE_FULL, .method = RECOMPUTE_UNIFORM, .num_layers = 1};
    both.model.micro_batch = 1, both.micro_batches = 12;
    struct plan_remedies r;
    struct plan_remedy_options options = {.stages = &request,
                                          .num_stages = 1,
                                          .limit = bytes_of(&both, NULL),
                                          .may_shard = true,
                                          .with_batch = " --global-batch-size 24"};
    plan_find_remedies(&options, &r);
    EXPECT(
        r.count > 0 && r.at[0].changes_more &&
            strstr(r.at[0].flags, "--use-distributed-optimizer --micro-batch-size 1 --global-batch-size 24"),
        "%s", r.count ? r.at[0].flags : "nothing fits");
    EXPECT(!plan_recompute_remedy(&r), "%s alone", flag(plan_recompute_remedy(&r)));
    options.may_shard = false;
    options.limit = options.limit / 2;
    plan_find_remedies(&options, &r);
    EXPECT_EQ(r.count, 0);
}

RUN_TESTS(CASE(holders_add_up_to_the_peak), CASE(the_cheapest_remedies_come_first_and_fit),
          CASE(changes_are_combined_where_none_alone_fits))
