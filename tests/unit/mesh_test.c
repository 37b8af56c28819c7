/* The oracle draws the grid: it counts ranks up through nested loops in the documented order, and a group is
 * the set of ranks whose other coordinates agree. */
#include "parallel/mesh.h"
#include "tests/test.h"

enum { MAX_WORLD = 64, TP = 1, CP = 2, DP = 4, PP = 8, ETP = 16, EP = 32, EDP = 64 };

struct place {
    int tp, cp, dp, pp, etp, ep, edp;
};

static struct mesh_shape shape_of(int world, int tensor, int context, int pipeline) {
    return (struct mesh_shape){.world = world,
                               .tensor = tensor,
                               .context = context,
                               .pipeline = pipeline,
                               .expert = 1,
                               .expert_tensor = tensor,
                               .optimizer_instances = 1,
                               .kv_replicas = 1};
}

static void draw_grid(const struct mesh_shape *s, struct place *grid) {
    int dp = s->world / (s->tensor * s->context * s->pipeline), rank = 0;
    int edp = s->world / (s->expert_tensor * s->expert * s->pipeline);
    for (int a = 0; a < (s->pp_before_dp ? dp : s->pipeline); a++)
        for (int b = 0; b < (s->pp_before_dp ? s->pipeline : dp); b++)
            for (int c = 0; c < s->context; c++)
                for (int t = 0; t < s->tensor; t++, rank++) {
                    grid[rank].tp = t, grid[rank].cp = c;
                    grid[rank].pp = s->pp_before_dp ? b : a, grid[rank].dp = s->pp_before_dp ? a : b;
                }
    rank = 0;
    for (int a = 0; a < (s->pp_before_dp ? edp : s->pipeline); a++)
        for (int b = 0; b < (s->pp_before_dp ? s->pipeline : edp); b++)
            for (int e = 0; e < s->expert; e++)
                for (int t = 0; t < s->expert_tensor; t++, rank++)
                    grid[rank].etp = t, grid[rank].ep = e, grid[rank].edp = s->pp_before_dp ? a : b;
}

/* Which axes may differ within a group. */
static const int group_axes[MESH_GROUP_COUNT] = {
    [MESH_TENSOR] = TP,
    [MESH_CONTEXT] = CP,
    [MESH_DATA] = DP,
    [MESH_DATA_CONTEXT] = DP | CP,
    [MESH_TENSOR_CONTEXT] = TP | CP,
    [MESH_TENSOR_DATA_CONTEXT] = TP | DP | CP,
    [MESH_MODEL] = TP | PP,
    [MESH_PIPELINE] = PP,
    [MESH_EXPERT] = EP,
    [MESH_EXPERT_TENSOR] = ETP,
    [MESH_EXPERT_TENSOR_MODEL] = ETP | EP,
    [MESH_EXPERT_DATA] = EDP,
};

static bool together(const struct mesh_shape *s, enum mesh_group kind, const struct place *a,
                     const struct place *b) {
    int free = group_axes[kind], last = s->pipeline - 1, k = s->kv_replicas;
    bool dense = a->tp == b->tp && a->cp == b->cp && a->dp == b->dp, other = a->cp == b->cp && a->dp == b->dp;
    int shard = s->world / (s->tensor * s->pipeline * s->optimizer_instances);
    int at_a = a->cp + s->context * a->dp, at_b = b->cp + s->context * b->dp;
    switch (kind) {
    case MESH_WORLD:
        return true;
    case MESH_EMBEDDING:
        return dense && (a->pp == b->pp || ((a->pp == 0 || a->pp == last) && (b->pp == 0 || b->pp == last)));
    case MESH_KV_REPLICAS:
        return other && a->pp == b->pp && a->tp / k == b->tp / k;
    case MESH_OPTIMIZER_SHARD:
        return a->tp == b->tp && a->pp == b->pp && at_a / shard == at_b / shard;
    case MESH_OPTIMIZER_INSTANCES:
        return a->tp == b->tp && a->pp == b->pp && at_a % shard == at_b % shard;
    case MESH_EXPERT:
    case MESH_EXPERT_TENSOR:
    case MESH_EXPERT_TENSOR_MODEL:
    case MESH_EXPERT_DATA:
        return ((free & ETP) || a->etp == b->etp) && ((free & EP) || a->ep == b->ep) &&
               ((free & EDP) || a->edp == b->edp) && a->pp == b->pp;
    default:
        return ((free & TP) || a->tp == b->tp) && ((free & CP) || a->cp == b->cp) &&
               ((free & DP) || a->dp == b->dp) && ((free & PP) || a->pp == b->pp);
    }
}

static void check_groups(const struct mesh *m, const struct place *grid) {
    int ranks[MAX_WORLD], index;
    for (int kind = 0; kind < MESH_GROUP_COUNT; kind++) {
        int count = mesh_group_ranks(m, (enum mesh_group)kind, ranks, &index), expected = 0;
        bool same = true;
        for (int r = 0; r < m->shape.world; r++)
            if (together(&m->shape, (enum mesh_group)kind, &grid[m->rank], &grid[r])) {
                same = same && expected < count && ranks[expected] == r;
                expected++;
            }
        EXPECT(same && expected == count,
               "world %d tp %d cp %d pp %d ep %d etp %d order %d rank %d: %s group", m->shape.world,
               m->shape.tensor, m->shape.context, m->shape.pipeline, m->shape.expert, m->shape.expert_tensor,
               m->shape.pp_before_dp, m->rank, mesh_group_name((enum mesh_group)kind));
        EXPECT(index >= 0 && index < count && ranks[index] == m->rank, "index of rank %d in its %s group",
               m->rank, mesh_group_name((enum mesh_group)kind));
    }
}

/* The documented formulas, both ways. */
static void check_formula(const struct mesh *m, const struct place *p) {
    const struct mesh_shape *s = &m->shape;
    EXPECT(m->tp == p->tp && m->cp == p->cp && m->dp == p->dp && m->pp == p->pp, "rank %d: dense place",
           m->rank);
    int dense = s->pp_before_dp ? m->tp + s->tensor * (m->cp + s->context * (m->pp + s->pipeline * m->dp))
                                : m->tp + s->tensor * (m->cp + s->context * (m->dp + m->data * m->pp));
    EXPECT_EQ(dense, m->rank);
    EXPECT_EQ(m->data * s->tensor * s->context * s->pipeline, s->world);
    EXPECT_EQ(m->expert_data * s->expert_tensor * s->expert * s->pipeline, s->world);
    if (s->pp_before_dp && s->expert == 1) return; /* a dense model: its expert view is not that grid */
    EXPECT(m->etp == p->etp && m->ep == p->ep && m->edp == p->edp, "rank %d: expert place", m->rank);
    int experts = s->pp_before_dp
                      ? m->etp + s->expert_tensor * (m->ep + s->expert * (m->pp + s->pipeline * m->edp))
                      : m->etp + s->expert_tensor * (m->ep + s->expert * (m->edp + m->expert_data * m->pp));
    EXPECT_EQ(experts, m->rank);
}

static int check_world(const struct mesh_shape *s) {
    struct place grid[MAX_WORLD];
    struct mesh m;
    struct err err;
    for (int rank = 0; rank < s->world; rank++) {
        if (mesh_init(&m, s, rank, &err)) return 0;
        if (!rank) draw_grid(s, grid);
        if (s->pp_before_dp && s->expert == 1) /* dense: data and context together are expert-data */
            for (int r = 0; r < s->world; r++)
                grid[r].etp = grid[r].tp, grid[r].ep = 0, grid[r].edp = grid[r].cp + s->context * grid[r].dp;
        check_formula(&m, &grid[rank]);
        check_groups(&m, grid);
        for (int stage = 0; stage < s->pipeline; stage++) {
            int peer = mesh_stage_rank(&m, stage);
            EXPECT(peer >= 0 && peer < s->world && grid[peer].pp == stage && grid[peer].tp == m.tp &&
                       grid[peer].cp == m.cp && grid[peer].dp == m.dp,
                   "stage %d of rank %d is not rank %d", stage, rank, peer);
        }
    }
    return 1;
}

TEST(groups_are_the_ranks_that_share_all_other_coordinates) {
    int worlds = 0;
    for (int world = 1; world <= 32; world++)
        for (int tp = 1; tp <= world; tp++)
            for (int cp = 1; cp <= world / tp; cp++)
                for (int pp = 1; pp <= world / (tp * cp); pp++)
                    for (int order = 0; order < 2; order++) {
                        struct mesh_shape s = shape_of(world, tp, cp, pp);
                        s.pp_before_dp = order;
                        int fits = check_world(&s);
                        EXPECT(fits == (world % (tp * cp * pp) == 0), "world %d tp %d cp %d pp %d", world, tp,
                               cp, pp);
                        worlds += fits;
                    }
    EXPECT_EQ(worlds, 1244); /* twice the sum of d4(n), n to 32: ways to write n as a product of four */
}

TEST(experts_see_the_same_ranks_in_their_own_grid) {
    int worlds = 0, refused = 0;
    for (int world = 2; world <= 24; world++)
        for (int ep = 2; ep <= world; ep++)
            for (int etp = 1; etp <= world; etp++)
                for (int tp = 1; tp <= 4; tp++)
                    for (int cp = 1; cp <= 2; cp++)
                        for (int pp = 1; pp <= 4; pp++)
                            for (int order = 0; order < 2; order++) {
                                struct mesh_shape s = shape_of(world, tp, cp, pp);
                                s.expert = ep, s.expert_tensor = etp, s.pp_before_dp = order;
                                bool fits = world % (tp * cp * pp) == 0 && world % (ep * etp * pp) == 0 &&
                                            (!order || pp == 1 || tp * cp == ep * etp);
                                EXPECT(check_world(&s) == fits, "world %d tp %d cp %d pp %d ep %d etp %d %d",
                                       world, tp, cp, pp, ep, etp, order);
                                worlds += fits, refused += !fits;
                            }
    EXPECT(worlds > 500 && refused > 500, "%d worlds, %d refused", worlds, refused);
}

TEST(optimizer_instances_and_key_value_replicas_split_their_parents) {
    for (int instances = 1; instances <= 8; instances++)
        for (int order = 0; order < 2; order++)
            for (int replicas = 1; replicas <= 4; replicas *= 2) {
                struct mesh_shape s = shape_of(48, 4, 3, 2);
                s.optimizer_instances = instances, s.kv_replicas = replicas, s.pp_before_dp = order;
                EXPECT_EQ(check_world(&s), 6 % instances == 0);
            }
}

static void expect_group(const struct mesh_shape *s, int rank, enum mesh_group kind, int count,
                         const int *expected) {
    struct mesh m;
    struct err err;
    int ranks[MAX_WORLD], index;
    EXPECT_EQ(mesh_init(&m, s, rank, &err), 0);
    EXPECT_EQ(mesh_group_ranks(&m, kind, ranks, &index), count);
    for (int i = 0; i < count; i++) EXPECT_EQ(ranks[i], expected[i]);
}
#define GROUP(rank, kind, ...)                                                                               \
    expect_group(&s, rank, kind, (int)(sizeof((int[]){__VA_ARGS__}) / sizeof(int)), (int[]){__VA_ARGS__})

/* 16 GPUs, tensor 2, pipeline 4: the example that Megatron-LM's users know. */
TEST(the_sixteen_rank_example_is_laid_out_as_in_megatron) {
    struct mesh_shape s = shape_of(16, 2, 1, 4);
    GROUP(0, MESH_TENSOR, 0, 1);
    GROUP(13, MESH_TENSOR, 12, 13);
    GROUP(0, MESH_DATA, 0, 2);
    GROUP(15, MESH_DATA, 13, 15);
    GROUP(5, MESH_PIPELINE, 1, 5, 9, 13);
    GROUP(0, MESH_MODEL, 0, 1, 4, 5, 8, 9, 12, 13);
    GROUP(7, MESH_MODEL, 2, 3, 6, 7, 10, 11, 14, 15);
    GROUP(2, MESH_EMBEDDING, 2, 14);
    GROUP(6, MESH_EMBEDDING, 6);
    s.pp_before_dp = true;
    GROUP(0, MESH_PIPELINE, 0, 2, 4, 6);
    GROUP(1, MESH_DATA, 1, 9);
    s = shape_of(16, 2, 2, 2);
    GROUP(0, MESH_CONTEXT, 0, 2);
    GROUP(0, MESH_DATA, 0, 4);
    GROUP(1, MESH_DATA_CONTEXT, 1, 3, 5, 7);
    s.optimizer_instances = 2;
    GROUP(5, MESH_OPTIMIZER_SHARD, 5, 7);
    GROUP(5, MESH_OPTIMIZER_INSTANCES, 1, 5);
    s.kv_replicas = 2;
    GROUP(3, MESH_KV_REPLICAS, 2, 3);
}

static void expect_refused(struct mesh_shape s, const char *flag, const char *value) {
    struct mesh m;
    struct err err = {""};
    EXPECT(mesh_init(&m, &s, 0, &err) == -1, "accepted: %s", flag);
    EXPECT_CONTAINS(err.text, flag);
    EXPECT_CONTAINS(err.text, value);
    EXPECT(!strchr(err.text, '\n'), "'%s' is more than one line", err.text);
}

TEST(sizes_that_do_not_fit_are_refused_by_flag) {
    expect_refused(shape_of(6, 4, 1, 1), "--tensor-model-parallel-size 4", "6 ranks");
    expect_refused(shape_of(6, 1, 4, 1), "--context-parallel-size 4", "6 ranks");
    expect_refused(shape_of(6, 1, 1, 4), "--pipeline-model-parallel-size 4", "6 ranks");
    expect_refused(shape_of(2, 2, 2, 1), "--context-parallel-size 2", "2 ranks");
    expect_refused(shape_of(8, 65536, 65536, 65536), "--tensor-model-parallel-size 65536", "8 ranks");
    struct mesh_shape s = shape_of(8, 2, 1, 2);
    s.expert = 3;
    expect_refused(s, "--expert-model-parallel-size 3", "8 ranks");
    s.expert = 4;
    expect_refused(s, "--expert-tensor-parallel-size 2", "--expert-model-parallel-size 4");
    s.expert = 2, s.pp_before_dp = true;
    expect_refused(s, "--use-tp-pp-dp-mapping", "--expert-model-parallel-size 2");
    s = shape_of(8, 2, 1, 2), s.optimizer_instances = 3;
    expect_refused(s, "--num-distributed-optimizer-instances 3", "= 2");
    s = shape_of(8, 2, 1, 2), s.kv_replicas = 3;
    expect_refused(s, "--num-query-groups", "--tensor-model-parallel-size 2");
    s = shape_of(8, 2, 1, 0);
    expect_refused(s, "at least 1", "parallel size");
}

static void printed(const struct mesh_shape *s, char *text, size_t capacity) {
    FILE *f = tmpfile();
    mesh_print(s, f);
    rewind(f);
    text[fread(text, 1, capacity - 1, f)] = 0;
    fclose(f);
}

TEST(print_topology_shows_sizes_and_groups_with_more_than_one_member) {
    char text[4096];
    struct mesh_shape s = shape_of(8, 2, 1, 2);
    printed(&s, text, sizeof(text));
    EXPECT_STR(text, "8 ranks = tensor 2 * context 1 * data 2 * pipeline 2, in the order tp-cp-ep-dp-pp\n"
                     "world: [0 1 2 3 4 5 6 7]\n"
                     "tensor-parallel: [0 1] [2 3] [4 5] [6 7]\n"
                     "data-parallel: [0 2] [1 3] [4 6] [5 7]\n"
                     "data-context-parallel: [0 2] [1 3] [4 6] [5 7]\n"
                     "tensor-context-parallel: [0 1] [2 3] [4 5] [6 7]\n"
                     "tensor-data-context-parallel: [0 1 2 3] [4 5 6 7]\n"
                     "model-parallel: [0 1 4 5] [2 3 6 7]\n"
                     "pipeline-parallel: [0 4] [1 5] [2 6] [3 7]\n"
                     "embedding: [0 4] [1 5] [2 6] [3 7]\n"
                     "optimizer-shard: [0 2] [1 3] [4 6] [5 7]\n");
    s = shape_of(1, 1, 1, 1);
    printed(&s, text, sizeof(text));
    EXPECT_STR(text, "1 rank = tensor 1 * context 1 * data 1 * pipeline 1, in the order tp-cp-ep-dp-pp\n");
    s = shape_of(4, 1, 1, 1), s.expert = 2;
    printed(&s, text, sizeof(text));
    EXPECT_CONTAINS(text, "experts: expert-tensor 1 * expert 2 * expert-data 2 * pipeline 1\n");
    EXPECT_CONTAINS(text, "expert-parallel: [0 1] [2 3]\nexpert-tensor-model-parallel: [0 1] [2 3]\n"
                          "expert-data-parallel: [0 2] [1 3]\n");
}

RUN_TESTS(CASE(groups_are_the_ranks_that_share_all_other_coordinates),
          CASE(experts_see_the_same_ranks_in_their_own_grid),
          CASE(optimizer_instances_and_key_value_replicas_split_their_parents),
          CASE(the_sixteen_rank_example_is_laid_out_as_in_megatron),
          CASE(sizes_that_do_not_fit_are_refused_by_flag),
          CASE(print_topology_shows_sizes_and_groups_with_more_than_one_member))
