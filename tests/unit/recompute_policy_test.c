/* Which layers a policy recomputes, and in which groups, is what the flags say: checked layer by layer
 * against Megatron-LM's rules written as a predicate (full recompute walks a chunk in steps of N, or takes
 * its first N layers), over every chunk of every layout of a few small models. */
#include "recompute/policy.h"
#include "tests/test.h"
#include <stdbool.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX_LAYERS = 64, LAYER = RECOMPUTE_BIT(MODULE_layer) };

/* What happened to each layer of the model. */
struct picture {
    int seen[MAX_LAYERS];     /* how often a group held it */
    int group[MAX_LAYERS];    /* first layer of its group */
    uint32_t set[MAX_LAYERS]; /* what its group recomputes */
};

/* Runs the policy on all chunks of an even layout: stage `s` holds chunk v at (v * stages + s) * each. */
static void draw(const struct recompute_policy *policy, int stages, int chunks, int each, struct picture *p) {
    struct recompute_group groups[MAX_LAYERS];
    *p = (struct picture){0};
    for (int s = 0; s < stages; s++)
        for (int v = 0; v < chunks; v++) {
            struct recompute_chunk chunk = {s, v, (v * stages + s) * each, each};
            int count = recompute_groups(policy, &chunk, groups), at = chunk.first_layer;
            EXPECT(count <= each, "%d groups for %d layers", count, each);
            for (int g = 0; g < count; g++) {
                int first = at;
                EXPECT(groups[g].num_layers > 0, "an empty group");
                for (int i = 0; i < groups[g].num_layers && at < MAX_LAYERS; i++, at++) {
                    p->seen[at]++;
                    p->group[at] = first;
                    p->set[at] = groups[g].selected;
                }
            }
            EXPECT_EQ(at, chunk.first_layer + each);
        }
}

/* Where the layer stands in its chunk, from its number alone. */
static int place_in_chunk(int layer, int each) {
    while (layer >= each) layer -= each;
    return layer;
}

static int stage_of(int layer, int stages, int each) {
    int virtual_stage = 0;
    for (; layer >= each; layer -= each) virtual_stage++;
    while (virtual_stage >= stages) virtual_stage -= stages;
    return virtual_stage;
}

/* The first layer of the group that holds this place: N, N, N, ... and what is left. */
static int group_start(int place, int n) {
    int start = 0;
    while (start + n <= place) start += n;
    return start;
}

#define EACH_LAYOUT(stages, chunks, each)                                                                    \
    for (int stages = 1; stages <= 4; stages *= 2)                                                           \
        for (int chunks = 1; chunks <= 2; chunks++)                                                          \
            for (int each = 1; each <= 6; each++)

TEST(uniform_makes_groups_of_n_in_every_chunk) {
    EACH_LAYOUT(stages, chunks, each) {
        for (int n = 1; n <= each + 1; n++) {
            struct recompute_policy policy = {
                .granularity = RECOMPUTE_FULL, .method = RECOMPUTE_UNIFORM, .num_layers = n};
            struct picture p;
            draw(&policy, stages, chunks, each, &p);
            for (int l = 0; l < stages * chunks * each; l++) {
                int place = place_in_chunk(l, each);
                EXPECT_EQ(p.seen[l], 1);
                EXPECT_EQ(p.set[l], LAYER);
                EXPECT_EQ(p.group[l], l - place + group_start(place, n));
            }
        }
    }
}

TEST(block_recomputes_the_first_n_layers_of_every_chunk_each_by_itself) {
    EACH_LAYOUT(stages, chunks, each) {
        for (int n = 1; n <= each + 1; n++) {
            struct recompute_policy policy = {
                .granularity = RECOMPUTE_FULL, .method = RECOMPUTE_BLOCK, .num_layers = n};
            struct picture p;
            int recomputed = 0;
            draw(&policy, stages, chunks, each, &p);
            for (int l = 0; l < stages * chunks * each; l++) {
                EXPECT_EQ(p.seen[l], 1);
                EXPECT_EQ(p.group[l], l);
                EXPECT_EQ(p.set[l], place_in_chunk(l, each) < n ? LAYER : 0);
                recomputed += p.set[l] != 0;
            }
            EXPECT_EQ(recomputed, (n < each ? n : each) * stages * chunks);
        }
    }
}

/* The whole number nearest to the root, found from the outside: no other is nearer. */
static int nearest_root(int n) {
    static const int last[] = {2, 6, 12, 20, 30, 42, 56, 72}; /* the largest n of each root from 1 */
    int root = 1;
    while (n > last[root - 1]) root++;
    return root;
}

TEST(sqrt_makes_groups_of_the_rounded_root_of_each_chunk) {
    static const int roots[][2] = {{1, 1},  {2, 1},  {3, 2},  {6, 2}, {7, 3},
                                   {12, 3}, {13, 4}, {32, 6}, {64, 8}};
    for (int each = 1; each <= MAX_LAYERS; each++)
        for (int stages = 1; stages * each <= MAX_LAYERS && stages <= 3; stages++) {
            struct recompute_policy policy = {.granularity = RECOMPUTE_FULL, .method = RECOMPUTE_SQRT};
            struct picture p;
            int n = nearest_root(each);
            draw(&policy, stages, 1, each, &p);
            for (int l = 0; l < stages * each; l++) {
                int place = place_in_chunk(l, each);
                EXPECT_EQ(p.seen[l], 1);
                EXPECT_EQ(p.set[l], LAYER);
                EXPECT_EQ(p.group[l], l - place + group_start(place, n));
            }
        }
    for (size_t i = 0; i < ARRAY_COUNT(roots); i++) {
        struct recompute_policy policy = {.granularity = RECOMPUTE_FULL, .method = RECOMPUTE_SQRT};
        struct recompute_chunk chunk = {.num_layers = roots[i][0]};
        struct recompute_group groups[MAX_LAYERS];
        recompute_groups(&policy, &chunk, groups);
        EXPECT_EQ(groups[0].num_layers, roots[i][1]);
    }
}

TEST(each_stage_may_have_its_own_n_and_zero_is_nothing) {
    static const int64_t counts[] = {3, 0, 1, 9};
    for (int method = RECOMPUTE_UNIFORM; method <= RECOMPUTE_BLOCK; method++)
        EACH_LAYOUT(stages, chunks, each) {
            struct recompute_policy policy = {.granularity = RECOMPUTE_FULL,
                                              .method = (enum recompute_method)method,
                                              .per_stage = counts,
                                              .num_stages = stages};
            struct picture p;
            draw(&policy, stages, chunks, each, &p);
            for (int l = 0; l < stages * chunks * each; l++) {
                int n = (int)counts[stage_of(l, stages, each)], place = place_in_chunk(l, each);
                bool uniform = method == RECOMPUTE_UNIFORM && n;
                EXPECT_EQ(p.seen[l], 1);
                EXPECT_EQ(p.set[l], uniform || place < n ? LAYER : 0);
                EXPECT_EQ(p.group[l], uniform ? l - place + group_start(place, n) : l);
            }
        }
}

TEST(named_layers_are_recomputed_and_no_others) {
    static const int64_t lists[][4] = {{0, 1, 2, 3}, {5, 6, 11, 40}, {47, 48, 60, 63}, {1, 3, 5, 7}};
    for (size_t k = 0; k < ARRAY_COUNT(lists); k++)
        for (int length = 1; length <= 4; length++) EACH_LAYOUT(stages, chunks, each) {
                struct recompute_policy policy = {
                    .granularity = RECOMPUTE_FULL, .layer_ids = lists[k], .num_layer_ids = length};
                struct picture p;
                draw(&policy, stages, chunks, each, &p);
                for (int l = 0; l < stages * chunks * each; l++) {
                    bool named = false;
                    for (int i = 0; i < length; i++) named = named || lists[k][i] == l;
                    EXPECT_EQ(p.seen[l], 1);
                    EXPECT_EQ(p.group[l], l);
                    EXPECT_EQ(p.set[l], named ? LAYER : 0);
                }
            }
}

TEST(selective_and_none_treat_every_layer_alike_whatever_the_lists_say) {
    static const int64_t lists[] = {0, 0, 0, 0};
    const recompute_set set = RECOMPUTE_BIT(MODULE_core_attn) | RECOMPUTE_BIT(MODULE_mlp);
    for (int selective = 0; selective < 2; selective++) EACH_LAYOUT(stages, chunks, each) {
            struct recompute_policy policy = {.granularity = selective ? RECOMPUTE_SELECTIVE : RECOMPUTE_NONE,
                                              .modules = set,
                                              .per_stage = lists,
                                              .num_stages = 4};
            struct picture p;
            draw(&policy, stages, chunks, each, &p);
            for (int l = 0; l < stages * chunks * each; l++) {
                EXPECT_EQ(p.seen[l], 1);
                EXPECT_EQ(p.group[l], l);
                EXPECT_EQ(p.set[l], selective ? set : 0);
            }
        }
}

TEST(a_chunk_without_layers_has_no_groups) {
    struct recompute_group groups[1];
    struct recompute_policy policy = {.granularity = RECOMPUTE_FULL, .num_layers = 1};
    for (int method = RECOMPUTE_UNIFORM; method <= RECOMPUTE_BLOCK; method++) {
        struct recompute_chunk chunk = {.stage = 1, .first_layer = 3};
        policy.method = (enum recompute_method)method;
        EXPECT_EQ(recompute_groups(&policy, &chunk, groups), 0);
    }
}

/* Exit status of a process that asks for groups. */
static int status_of(const struct recompute_policy *policy) {
    fflush(NULL);
    pid_t child = fork();
    if (!child) {
        struct recompute_group groups[4];
        struct recompute_chunk chunk = {.num_layers = 4};
        if (!freopen("/dev/null", "w", stderr)) _exit(9);
        recompute_groups(policy, &chunk, groups);
        _exit(0);
    }
    int status = -1;
    EXPECT_EQ(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(an_n_below_one_and_a_stage_without_its_n_end_the_job) {
    static const int64_t negative[] = {-1};
    for (int method = RECOMPUTE_UNIFORM; method <= RECOMPUTE_BLOCK; method++) {
        for (int n = -1; n <= 1; n++) {
            struct recompute_policy policy = {
                .granularity = RECOMPUTE_FULL, .method = (enum recompute_method)method, .num_layers = n};
            EXPECT_EQ(status_of(&policy), n == 1 ? STATUS_OK : STATUS_FAILED);
        }
        struct recompute_policy minus = {
            .granularity = RECOMPUTE_FULL, .per_stage = negative, .num_stages = 1};
        struct recompute_policy missing = {.granularity = RECOMPUTE_FULL, .per_stage = negative};
        EXPECT_EQ(status_of(&minus), STATUS_FAILED);
        EXPECT_EQ(status_of(&missing), STATUS_FAILED);
    }
}

TEST(multi_token_prediction_follows_uniform_and_its_ids_alone) {
    static const int64_t counts[] = {2, 0}, ids[] = {0, 9};
    struct recompute_policy none = {.granularity = RECOMPUTE_NONE},
                            modules = {.granularity = RECOMPUTE_SELECTIVE, .modules = 6},
                            full = {
                                .granularity = RECOMPUTE_FULL, .method = RECOMPUTE_UNIFORM, .num_layers = 5};
    EXPECT_EQ(recompute_of_mtp(&none, 1, 8), 0);
    EXPECT_EQ(recompute_of_mtp(&modules, 1, 8), 6);
    EXPECT_EQ(recompute_of_mtp(&full, 1, 8), LAYER);
    full.per_stage = counts, full.num_stages = 2;
    EXPECT_EQ(recompute_of_mtp(&full, 0, 8), LAYER);
    EXPECT_EQ(recompute_of_mtp(&full, 1, 8), 0);
    full.per_stage = NULL, full.method = RECOMPUTE_SQRT;
    EXPECT_EQ(recompute_of_mtp(&full, 1, 8), LAYER);
    full.method = RECOMPUTE_BLOCK;
    EXPECT_EQ(recompute_of_mtp(&full, 1, 8), 0);
    full.layer_ids = ids, full.num_layer_ids = 2;
    EXPECT_EQ(recompute_of_mtp(&full, 1, 8), 0);
    EXPECT_EQ(recompute_of_mtp(&full, 1, 9), LAYER);
}

RUN_TESTS(CASE(multi_token_prediction_follows_uniform_and_its_ids_alone),
          CASE(uniform_makes_groups_of_n_in_every_chunk),
          CASE(sqrt_makes_groups_of_the_rounded_root_of_each_chunk),
          CASE(block_recomputes_the_first_n_layers_of_every_chunk_each_by_itself),
          CASE(each_stage_may_have_its_own_n_and_zero_is_nothing),
          CASE(named_layers_are_recomputed_and_no_others),
          CASE(selective_and_none_treat_every_layer_alike_whatever_the_lists_say),
          CASE(a_chunk_without_layers_has_no_groups),
          CASE(an_n_below_one_and_a_stage_without_its_n_end_the_job))
