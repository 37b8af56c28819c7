/* Experts over expert-parallel (EP) and expert-tensor-parallel (ETP) ranks: who holds which element, who
 * counts it, and in whose bucket it lies, by the plans of all ranks of many worlds. The oracle is the rule
 * spelled out: rank `ep` has experts [ep E / EP, (ep + 1) E / EP), of each rank `etp` has an even part of the
 * rows of gate and up (fc1) or of the columns (fc2); places among ranks are the mesh's, which has tests of
 * its own. */
#include "core/train/update.h"
#include "parallel/mesh.h"
#include "tests/tiny_model.h"

struct world {
    int tp, cp, dp, ep, etp; /* sizes */
    int experts;
    bool gated;
    enum plan_sharding sharding;
};

static const struct world worlds[] = {
    {1, 1, 1, 1, 1, 6, true, PLAN_SHARD_NONE},    {1, 1, 2, 2, 1, 6, true, PLAN_SHARD_NONE},
    {1, 1, 3, 3, 1, 6, false, PLAN_SHARD_OPTIM},  {1, 1, 4, 2, 1, 8, true, PLAN_SHARD_OPTIM},
    {1, 1, 4, 1, 2, 5, true, PLAN_SHARD_GRADS},   {1, 1, 4, 2, 2, 4, true, PLAN_SHARD_PARAMS},
    {1, 1, 4, 4, 1, 4, false, PLAN_SHARD_PARAMS}, {1, 1, 6, 2, 1, 4, true, PLAN_SHARD_PARAMS},
    {2, 1, 1, 1, 1, 6, true, PLAN_SHARD_OPTIM},   {2, 1, 1, 2, 1, 6, true, PLAN_SHARD_NONE},
    {2, 1, 2, 2, 2, 6, true, PLAN_SHARD_OPTIM},   {2, 1, 2, 1, 4, 6, false, PLAN_SHARD_OPTIM},
    {2, 1, 2, 2, 1, 6, true, PLAN_SHARD_GRADS},   {2, 2, 2, 4, 2, 8, true, PLAN_SHARD_NONE},
    {4, 1, 2, 2, 2, 4, true, PLAN_SHARD_PARAMS},  {1, 2, 2, 4, 1, 8, true, PLAN_SHARD_OPTIM},
    {2, 1, 4, 8, 1, 8, false, PLAN_SHARD_GRADS},  {4, 1, 1, 1, 1, 2, true, PLAN_SHARD_PARAMS},
};

static int size_of(const struct world *w) {
    return w->tp * w->cp * w->dp;
}

static struct mesh mesh_of(const struct world *w, int rank) {
    struct mesh mesh;
    struct err err = {""};
    struct mesh_shape shape = {size_of(w), w->tp, w->cp, 1, w->ep, w->etp, 1, w->tp > 2 ? w->tp / 2 : 1,
                               false};
    CHECK(!mesh_init(&mesh, &shape, rank, &err), "%s", err.text);
    return mesh;
}

static struct model model_of(const struct world *w) {
    struct model m = tiny_moe();
    m.layers = 2;
    m.moe.experts = w->experts;
    m.moe.shared_ffn = 0;
    m.moe.pattern = NULL;
    m.fused_loss = false;
    if (!w->gated) m.activation = ACTIVATION_GELU_TANH;
    return m;
}

static void build(const struct world *w, int rank, struct plan *plan) {
    struct mesh mesh = mesh_of(w, rank);
    struct model m = model_of(w);
    m.tp = w->tp, m.tp_rank = mesh.tp, m.cp = w->cp, m.cp_rank = mesh.cp;
    m.ep = w->ep, m.ep_rank = mesh.ep, m.etp = w->etp, m.etp_rank = mesh.etp;
    m.sequence_parallel = w->tp > 1;
    struct plan_request request = tiny_request(m, (struct recompute_policy){0});
    request.layout = (struct plan_layout){.data = mesh.data * w->cp,
                                          .data_rank = mesh.dp * w->cp + mesh.cp,
                                          .expert_data = mesh.expert_data,
                                          .expert_data_rank = mesh.edp,
                                          .sharding = w->sharding,
                                          .bucket_elements = 1200};
    plan_build(&request, plan);
}

/* Global number of local element `i` of an expert weight. */
static int64_t place_of(const struct world *w, const struct mesh *mesh, const char *name, int64_t i) {
    int64_t hidden = 32, ffn = 40, parts = w->gated ? 2 : 1, part = ffn / w->etp;
    if (strstr(name, "linear_fc1")) {
        int64_t rows = parts * part, col = i % hidden, row = i / hidden % rows, expert = i / hidden / rows;
        expert += mesh->ep * (w->experts / w->ep);
        int64_t of_expert = row / part * ffn + mesh->etp * part + row % part;
        return (expert * parts * ffn + of_expert) * hidden + col;
    }
    int64_t col = i % part, row = i / part % hidden, expert = i / part / hidden;
    expert += mesh->ep * (w->experts / w->ep);
    return (expert * hidden + row) * ffn + mesh->etp * part + col;
}

TEST(every_element_of_the_experts_is_where_the_rule_puts_it) {
    for (size_t n = 0; n < ARRAY_COUNT(worlds); n++) {
        const struct world *w = &worlds[n];
        for (int rank = 0; rank < size_of(w); rank++) {
            struct mesh mesh = mesh_of(w, rank);
            struct plan plan;
            int64_t wrong = 0, experts = 0;
            build(w, rank, &plan);
            for (int k = 0; k < plan.num_params; k++) {
                const struct plan_param *p = &plan.params[k];
                EXPECT_EQ(p->family == FAMILY_EXPERT, strstr(p->name, ".experts.") != NULL);
                if (p->family != FAMILY_EXPERT) continue;
                EXPECT_EQ(p->groups, w->experts / w->ep);
                experts += p->count;
                for (int64_t i = 0, count; i < p->count; i += count) {
                    int64_t first = update_global_element(p, i, &count);
                    if (count < 1 || i + count > p->count) count = 1, wrong++;
                    for (int64_t j = 0; j < count; j++)
                        wrong += first + j != place_of(w, &mesh, p->name, i + j);
                }
            }
            EXPECT_EQ(wrong, 0);
            EXPECT_EQ(plan.num_expert_parameters, experts);
            EXPECT_EQ(experts, 2 * w->experts / w->ep * (w->gated ? 3 : 2) * 32 * 40 / w->etp);
            plan_free(&plan);
        }
    }
}

/* Held elements: without sharding by every rank that holds these experts, with it by one of them. */
static void count_rank(const struct plan *plan, const struct plan_tensor *all, int num_all, uint8_t **counted,
                       uint8_t **held) {
    for (int k = 0; k < plan->num_params; k++) {
        const struct plan_param *p = &plan->params[k];
        int t = 0;
        while (t < num_all && strcmp(all[t].name, p->name)) t++;
        EXPECT(t < num_all, "%s is in no list", p->name);
        EXPECT(p->shard.full[0] == all[t].dims[0], "%s has %lld rows, of %lld", p->name,
               (long long)p->shard.full[0], (long long)all[t].dims[0]);
        for (int64_t i = 0; i < p->held_count; i++) {
            int64_t count, at = update_global_element(p, p->held_begin + i, &count);
            held[t][at]++;
            counted[t][at] += i < p->counted;
        }
    }
}

TEST(all_ranks_together_count_each_element_once_and_hold_it_as_often_as_it_is_replicated) {
    for (size_t n = 0; n < ARRAY_COUNT(worlds); n++) {
        const struct world *w = &worlds[n];
        struct model m = model_of(w);
        struct plan_tensor *all;
        int num_all = plan_all_tensors(&m, &all);
        uint8_t **counted = mem_new_array(uint8_t *, 2 * (size_t)num_all, "test"), **held = counted + num_all;
        for (int t = 0; t < num_all; t++) {
            size_t elements = (size_t)(all[t].dims[0] * all[t].dims[1]);
            counted[t] = mem_new_array(uint8_t, elements, "test");
            held[t] = mem_new_array(uint8_t, elements, "test");
        }
        for (int rank = 0; rank < size_of(w); rank++) {
            struct plan plan;
            build(w, rank, &plan);
            count_rank(&plan, all, num_all, counted, held);
            plan_free(&plan);
        }
        int replicas = w->sharding == PLAN_SHARD_NONE ? size_of(w) / w->ep / w->etp : 1;
        for (int t = 0; t < num_all; t++) {
            int64_t elements = all[t].dims[0] * all[t].dims[1], wrong = 0;
            bool is_expert = strstr(all[t].name, ".experts.");
            for (int64_t i = 0; i < elements; i++)
                wrong += counted[t][i] != 1 || (is_expert && held[t][i] != replicas);
            EXPECT(!wrong, "world %zu: %lld of %lld elements of %s", n, (long long)wrong, (long long)elements,
                   all[t].name);
            mem_free(counted[t]), mem_free(held[t]), mem_free(all[t].name);
        }
        mem_free(counted), mem_free(all);
    }
}

/* ---- buckets ---- */

static void expect_buckets(const struct world *w, const struct plan *plan) {
    int ranks[] = {size_of(w) / w->tp, size_of(w) / w->ep / w->etp}, of_family[2] = {0, 0};
    bool sharded = w->sharding != PLAN_SHARD_NONE, units = w->sharding >= PLAN_SHARD_GRADS;
    for (int i = 0; i < plan->num_buckets; i++) {
        const struct plan_bucket *b = &plan->buckets[i];
        of_family[b->family]++;
        EXPECT_EQ(b->elements, b->shard_elements * (sharded ? ranks[b->family] : 1));
        EXPECT_EQ(b->is_unit, units && ranks[b->family] > 1);
        if (b->is_unit) EXPECT_EQ(plan->segments[b->segment].unit[b->family], i);
        for (int k = 0; k < plan->num_params; k++) {
            const struct plan_param *p = &plan->params[k];
            if (p->bucket != i) continue;
            EXPECT_EQ(p->family, b->family);
            EXPECT(p->offset + p->count <= b->elements, "%s does not fit", p->name);
            for (int j = 0; j < k; j++)
                EXPECT(plan->params[j].bucket != i || plan->params[j].offset >= p->offset + p->count,
                       "%s lies on %s", p->name, plan->params[j].name);
        }
    }
    EXPECT(of_family[FAMILY_DENSE] >= 2 && of_family[FAMILY_EXPERT] >= 2, "%d and %d buckets", of_family[0],
           of_family[1]);
    for (int i = 0; i < plan->num_segments; i++)
        for (int f = 0; f < FAMILY_COUNT; f++) {
            bool has_params = f == FAMILY_DENSE || plan->segments[i].kind == SEGMENT_LAYERS;
            EXPECT_EQ(plan->segments[i].unit[f] >= 0, units && ranks[f] > 1 && has_params);
        }
}

/* Units pass through two buffers of their family, each as large as its largest; nothing overlaps in the arena
 * (every take is beyond the one before), and all ranks have the same plan. */
TEST(dense_parameters_and_experts_never_share_a_bucket_and_each_is_cut_by_its_own_group) {
    for (size_t n = 0; n < ARRAY_COUNT(worlds); n++) {
        const struct world *w = &worlds[n];
        uint64_t hash = 0;
        for (int rank = 0; rank < size_of(w); rank++) {
            struct plan plan;
            build(w, rank, &plan);
            expect_buckets(w, &plan);
            if (rank) EXPECT(plan.hash == hash, "world %zu: rank %d has another plan than rank 0", n, rank);
            hash = plan.hash;
            for (int f = 0; f < FAMILY_COUNT; f++) {
                size_t grads = 0, weights = 0, gather = 0;
                for (int i = 0; i < plan.num_buckets; i++) {
                    const struct plan_bucket *b = &plan.buckets[i];
                    if ((int)b->family != f || b->shard_elements == b->elements) continue;
                    size_t bytes = 4 * (size_t)b->elements; /* fp32 */
                    if (bytes > gather) gather = bytes;
                    if (b->is_unit && bytes > grads) grads = bytes;
                    if (b->weight_bytes > weights) weights = b->weight_bytes;
                }
                EXPECT_EQ(plan.sharing[f].unit_grad_bytes, grads);
                EXPECT_EQ(plan.sharing[f].unit_weight_bytes, weights);
                EXPECT_EQ(plan.sharing[f].gather_bytes, gather);
                EXPECT_EQ(weights > 0, w->sharding == PLAN_SHARD_PARAMS && plan.sharing[f].shards > 1);
            }
            plan_free(&plan);
        }
    }
}

RUN_TESTS(CASE(every_element_of_the_experts_is_where_the_rule_puts_it),
          CASE(all_ranks_together_count_each_element_once_and_hold_it_as_often_as_it_is_replicated),
          CASE(dense_parameters_and_experts_never_share_a_bucket_and_each_is_cut_by_its_own_group))
