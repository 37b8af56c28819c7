/* Parameters of experts over real ranks, without a model that runs: initial weights, their hash and norms,
 * the sums of gradients over the ranks that hold the same experts, and gathered weights are those of one rank
 * for any EP and ETP. Gradients are small integers, so that every sum is exact in any order. */
#include "core/train/sync.h"
#include "parallel/mesh.h"
#include "tests/parallel/parallel.h"
#include "tests/tiny_model.h"

struct layout {
    int tp, ep, etp; /* sizes; the other ranks are data parallel */
    enum plan_sharding sharding;
    enum dtype dtype;
};

static const struct layout layouts[] = {
    {1, 1, 1, PLAN_SHARD_NONE, DTYPE_F32},  {1, 2, 1, PLAN_SHARD_NONE, DTYPE_F32},
    {1, 2, 1, PLAN_SHARD_OPTIM, DTYPE_F32}, {1, 1, 2, PLAN_SHARD_OPTIM, DTYPE_BF16},
    {2, 1, 1, PLAN_SHARD_NONE, DTYPE_F32},  {2, 1, 1, PLAN_SHARD_OPTIM, DTYPE_F32},
    {2, 2, 1, PLAN_SHARD_OPTIM, DTYPE_F32}, {2, 1, 2, PLAN_SHARD_NONE, DTYPE_F32},
    {1, 4, 1, PLAN_SHARD_OPTIM, DTYPE_F32}, {2, 2, 2, PLAN_SHARD_OPTIM, DTYPE_BF16},
    {1, 1, 4, PLAN_SHARD_NONE, DTYPE_F32},
};

struct setting {
    struct mesh mesh;
    struct executor_comms comms;
    struct tiny tiny, one; /* this layout; one rank with the whole model */
};

static struct model model_of(const struct layout *l) {
    struct model m = tiny_moe();
    m.moe.experts = 4;
    m.moe.shared_ffn = 0;
    m.fused_loss = false;
    m.dtype = l->dtype;
    return m;
}

static void open_groups(struct setting *s) {
    const enum mesh_group kinds[] = {MESH_WORLD, MESH_TENSOR, MESH_DATA_CONTEXT, MESH_EXPERT_DATA};
    struct comm **const comms[] = {&s->comms.world, &s->comms.tensor, &s->comms.data, &s->comms.expert_data};
    for (size_t i = 0; i < ARRAY_COUNT(kinds); i++) {
        int members[64], index, count = mesh_group_ranks(&s->mesh, kinds[i], members, &index);
        *comms[i] = comm_open(world, mesh_group_name(kinds[i]), members, count);
    }
}

static void open_plain(struct tiny *t, const struct plan_request *request,
                       const struct executor_comms *comms) {
    struct err err;
    *t = (struct tiny){0};
    plan_build(request, &t->plan);
    CHECK(arena_open(&t->arena, t->plan.arena_bytes, &err) == 0, "%s", err.text);
    executor_open(&t->executor, &t->plan, &t->arena, NULL, 1234, comms);
    update_initialize(&t->executor);
    update_compute_copies(&t->executor);
}

/* False: the layout is not one of so many ranks. */
static bool open_setting(struct setting *s, const struct layout *l) {
    struct err err;
    int size = comm_world_size(world);
    *s = (struct setting){0};
    struct mesh_shape shape = {size, l->tp, 1, 1, l->ep, l->etp, 1, 1, false};
    if (size % l->tp || size % (l->ep * l->etp)) return false;
    CHECK(!mesh_init(&s->mesh, &shape, comm_world_rank(world), &err), "%s", err.text);
    open_groups(s);
    struct model m = model_of(l);
    struct plan_request request = tiny_request(m, (struct recompute_policy){0});
    request.kernels = kernels_reference(); /* weights lie in plain form */
    open_plain(&s->one, &request, NULL);
    struct model *mine = &request.model;
    mine->tp = l->tp, mine->tp_rank = s->mesh.tp, mine->sequence_parallel = l->tp > 1;
    mine->ep = l->ep, mine->ep_rank = s->mesh.ep, mine->etp = l->etp, mine->etp_rank = s->mesh.etp;
    request.layout = (struct plan_layout){.data = s->mesh.data,
                                          .data_rank = s->mesh.dp,
                                          .expert_data = s->mesh.expert_data,
                                          .expert_data_rank = s->mesh.edp,
                                          .sharding = l->sharding,
                                          .bucket_elements = 3000};
    open_plain(&s->tiny, &request, &s->comms);
    return true;
}

static void close_setting(struct setting *s) {
    tiny_close(&s->tiny);
    tiny_close(&s->one);
    struct comm *comms[EXECUTOR_MAX_COMMS];
    int count = executor_list_comms(&s->comms, comms);
    for (int i = 0; i < count; i++) comm_close(comms[i]);
}

static const struct plan_param *param_of(const struct tiny *t, const char *name) {
    for (int i = 0; i < t->plan.num_params; i++)
        if (!strcmp(t->plan.params[i].name, name)) return &t->plan.params[i];
    CHECK(false, "no parameter %s", name);
    return NULL;
}

TEST(initial_weights_their_hash_and_their_norm_do_not_depend_on_the_layout) {
    for (size_t n = 0; n < ARRAY_COUNT(layouts); n++) {
        struct setting s;
        if (!open_setting(&s, &layouts[n])) continue;
        EXPECT_EQ(update_params_hash(&s.tiny.executor), update_params_hash(&s.one.executor));
        double norm = update_params_norm(&s.tiny.executor), truth = update_params_norm(&s.one.executor);
        EXPECT(fabs(norm - truth) < 1e-12 * truth, "layout %zu: norm %.17g, one rank %.17g", n, norm, truth);
        close_setting(&s);
    }
}

static bool is_plain_sum(const struct plan_param *p) {
    return !p->sum_over_tensor && (p->shard.num_runs || p->family == FAMILY_EXPERT);
}

static float value_at(int64_t global) {
    return (float)(global * 2654435761u >> 5 & 15);
}

/* Each rank makes value * (its number in the group + 1): the sum is value * n (n + 1) / 2. */
TEST(gradients_are_sums_over_the_ranks_that_hold_the_same_experts) {
    for (size_t n = 0; n < ARRAY_COUNT(layouts); n++) {
        struct setting s;
        if (!open_setting(&s, &layouts[n])) continue;
        const struct plan *plan = &s.tiny.plan;
        executor_begin_step(&s.tiny.executor, 1);
        for (int k = 0; k < plan->num_params; k++) {
            const struct plan_param *p = &plan->params[k];
            float *grad = executor_at(&s.tiny.executor, p->grad);
            int part = p->family == FAMILY_EXPERT ? s.mesh.edp : s.mesh.dp;
            for (int64_t i = 0, count; i < p->count; i++)
                grad[i] = value_at(update_global_element(p, i, &count)) * (float)(part + 1);
        }
        sync_finish_grads(&s.tiny.executor);
        int64_t wrong = 0, held = 0;
        for (int k = 0; k < plan->num_params; k++) {
            const struct plan_param *p = &plan->params[k];
            const float *grad = executor_at(&s.tiny.executor, p->held_grad);
            int ranks = p->family == FAMILY_EXPERT ? s.mesh.expert_data : s.mesh.data;
            float times = (float)(ranks * (ranks + 1) / 2);
            for (int64_t i = 0, count; i < p->held_count && is_plain_sum(p); i++, held++)
                wrong += grad[i] != value_at(update_global_element(p, p->held_begin + i, &count)) * times;
        }
        EXPECT(!wrong && held, "layout %zu: %lld of %lld elements", n, (long long)wrong, (long long)held);
        close_setting(&s);
    }
}

/* What the kernels read, on every rank, against the whole model's of one rank; after the masters have moved.
 */
TEST(gathered_weights_are_those_of_one_rank) {
    for (size_t n = 0; n < ARRAY_COUNT(layouts); n++) {
        struct setting s;
        if (!open_setting(&s, &layouts[n])) continue;
        const struct plan *plan = &s.tiny.plan;
        int64_t wrong = 0;
        for (int k = 0; k < plan->num_params; k++) {
            const struct plan_param *p = &plan->params[k];
            float *master = executor_at(&s.tiny.executor, p->master);
            for (int64_t i = 0; i < p->held_count; i++) master[i] *= 2;
        }
        sync_weights_changed(&s.tiny.executor);
        for (int k = 0; k < plan->num_params; k++) {
            const struct plan_param *p = &plan->params[k], *whole = param_of(&s.one, p->name);
            const void *mine = s.tiny.executor.views[k].plain;
            const void *theirs = s.one.executor.views[whole - s.one.plan.params].plain;
            for (int64_t i = 0, count; i < p->count; i++) {
                int64_t at = update_global_element(p, i, &count);
                enum dtype dtype = layouts[n].dtype;
                wrong += load_f32(mine, dtype, i) != 2 * load_f32(theirs, dtype, at);
            }
        }
        EXPECT(!wrong, "layout %zu: %lld elements", n, (long long)wrong);
        close_setting(&s);
    }
}

RUN_PARALLEL_TESTS("2 4", CASE(initial_weights_their_hash_and_their_norm_do_not_depend_on_the_layout),
                   CASE(gradients_are_sums_over_the_ranks_that_hold_the_same_experts),
                   CASE(gathered_weights_are_those_of_one_rank))
