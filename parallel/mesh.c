#include "parallel/mesh.h"
#include "core/base/mem.h"
#include <stdint.h>
#include <string.h>

/* ---- coordinates ---- */

static int dense_stride(const struct mesh *m) {
    return m->shape.tensor * m->shape.context;
}
static int data_stride(const struct mesh *m) {
    return dense_stride(m) * (m->shape.pp_before_dp ? m->shape.pipeline : 1);
}
static int pipeline_stride(const struct mesh *m) {
    return dense_stride(m) * (m->shape.pp_before_dp ? 1 : m->data);
}
/* In the order tp-cp-ep-pp-dp, experts' data ranks are as far apart as dense ones: mesh_init saw to it. */
static int expert_data_stride(const struct mesh *m) {
    return m->shape.expert_tensor * m->shape.expert * (m->shape.pp_before_dp ? m->shape.pipeline : 1);
}
/* A dense model: its expert view is the dense one, expert data parallel spanning context and data. */
static bool has_no_experts(const struct mesh_shape *s) {
    return s->expert == 1 && s->expert_tensor == s->tensor;
}

static int check_dense(const struct mesh_shape *s, struct err *err) {
    int64_t model = (int64_t)s->tensor * s->context;
    if (s->world < 1 || s->tensor < 1 || s->context < 1 || s->pipeline < 1 || s->expert < 1 ||
        s->expert_tensor < 1 || s->optimizer_instances < 1 || s->kv_replicas < 1)
        return err_set(err, "the number of ranks and every parallel size must be at least 1");
    if (model > s->world || model * s->pipeline > s->world || s->world % (model * s->pipeline))
        return err_set(err,
                       "%d ranks are not a multiple of --tensor-model-parallel-size %d * "
                       "--context-parallel-size %d * --pipeline-model-parallel-size %d: change the number of "
                       "ranks or one of the sizes",
                       s->world, s->tensor, s->context, s->pipeline);
    if (s->tensor % s->kv_replicas)
        return err_set(err,
                       "--tensor-model-parallel-size %d is not a multiple of the %d ranks that share a "
                       "key/value head: make it a multiple of --num-query-groups, or a divisor",
                       s->tensor, s->kv_replicas);
    int64_t shards = s->world / ((int64_t)s->tensor * s->pipeline);
    if (shards % s->optimizer_instances)
        return err_set(err,
                       "--num-distributed-optimizer-instances %d does not divide data parallel size * "
                       "--context-parallel-size = %d: give a divisor of it",
                       s->optimizer_instances, (int)shards);
    return 0;
}

static int check_experts(const struct mesh_shape *s, struct err *err) {
    if (has_no_experts(s)) return 0;
    int64_t model = (int64_t)s->expert_tensor * s->expert;
    if (model > s->world || model * s->pipeline > s->world || s->world % (model * s->pipeline))
        return err_set(err,
                       "%d ranks are not a multiple of --expert-tensor-parallel-size %d * "
                       "--expert-model-parallel-size %d * --pipeline-model-parallel-size %d: change the "
                       "number of ranks or one of the sizes",
                       s->world, s->expert_tensor, s->expert, s->pipeline);
    if (s->pp_before_dp && s->pipeline > 1 && model != (int64_t)s->tensor * s->context)
        return err_set(
            err,
            "--use-tp-pp-dp-mapping needs --expert-tensor-parallel-size %d * "
            "--expert-model-parallel-size %d to equal --tensor-model-parallel-size %d * "
            "--context-parallel-size %d, so that experts and dense layers have the same pipelines: "
            "change a size, or drop --use-tp-pp-dp-mapping",
            s->expert_tensor, s->expert, s->tensor, s->context);
    return 0;
}

int mesh_init(struct mesh *mesh, const struct mesh_shape *shape, int rank, struct err *err) {
    if (check_dense(shape, err) || check_experts(shape, err)) return -1;
    CHECK(rank >= 0 && rank < shape->world, "rank %d of a world of %d", rank, shape->world);
    struct mesh m = {.shape = *shape, .rank = rank};
    m.data = shape->world / (shape->tensor * shape->context * shape->pipeline);
    m.expert_data = shape->world / (shape->expert_tensor * shape->expert * shape->pipeline);
    m.tp = rank % shape->tensor;
    m.cp = rank / shape->tensor % shape->context;
    m.dp = rank / data_stride(&m) % m.data;
    m.pp = rank / pipeline_stride(&m) % shape->pipeline;
    m.etp = rank % shape->expert_tensor;
    m.ep = rank / shape->expert_tensor % shape->expert;
    m.edp =
        has_no_experts(shape) ? m.cp + shape->context * m.dp : rank / expert_data_stride(&m) % m.expert_data;
    *mesh = m;
    return 0;
}

int mesh_stage_rank(const struct mesh *mesh, int stage) {
    CHECK(stage >= 0 && stage < mesh->shape.pipeline, "stage %d of %d", stage, mesh->shape.pipeline);
    return mesh->rank + (stage - mesh->pp) * pipeline_stride(mesh);
}

/* ---- groups ---- */

/* A group is a part of a box: the box spans up to three axes, the first fastest; the part takes every
 * step-th of `count` members from `first` on. */
struct axis {
    int size, stride, at;
};
struct group {
    struct axis axes[3];
    int num_axes;
    int first, step, count, index; /* index of this rank in the group */
};

static void span(struct group *g, int size, int stride, int at) {
    g->axes[g->num_axes++] = (struct axis){size, stride, at};
    g->index += at * g->count;
    g->count *= size;
}

static void take(struct group *g, int first, int step, int count) {
    g->index = (g->index - first) / step;
    g->first = first, g->step = step, g->count = count;
}

static void span_data_context(struct group *g, const struct mesh *m) {
    span(g, m->shape.context, m->shape.tensor, m->cp);
    span(g, m->data, data_stride(m), m->dp);
}

static struct group group_of(const struct mesh *m, enum mesh_group kind) {
    const struct mesh_shape *s = &m->shape;
    struct group g = {.step = 1, .count = 1};
    int shard;
    bool tensor = kind == MESH_TENSOR || kind == MESH_TENSOR_CONTEXT || kind == MESH_TENSOR_DATA_CONTEXT ||
                  kind == MESH_MODEL || kind == MESH_KV_REPLICAS;
    if (tensor) span(&g, s->tensor, 1, m->tp);
    switch (kind) {
    case MESH_WORLD:
        span(&g, s->world, 1, m->rank);
        break;
    case MESH_TENSOR:
        break;
    case MESH_TENSOR_CONTEXT:
    case MESH_CONTEXT:
        span(&g, s->context, s->tensor, m->cp);
        break;
    case MESH_DATA:
        span(&g, m->data, data_stride(m), m->dp);
        break;
    case MESH_TENSOR_DATA_CONTEXT:
    case MESH_DATA_CONTEXT:
        span_data_context(&g, m);
        break;
    case MESH_MODEL:
    case MESH_PIPELINE:
        span(&g, s->pipeline, pipeline_stride(m), m->pp);
        break;
    case MESH_EMBEDDING:
        span(&g, s->pipeline, pipeline_stride(m), m->pp);
        if (s->pipeline > 1 && (m->pp == 0 || m->pp == s->pipeline - 1))
            take(&g, 0, s->pipeline - 1, 2);
        else
            take(&g, m->pp, 1, 1);
        break;
    case MESH_KV_REPLICAS:
        take(&g, m->tp / s->kv_replicas * s->kv_replicas, 1, s->kv_replicas);
        break;
    case MESH_OPTIMIZER_SHARD:
    case MESH_OPTIMIZER_INSTANCES:
        span_data_context(&g, m);
        shard = g.count / s->optimizer_instances;
        if (kind == MESH_OPTIMIZER_SHARD)
            take(&g, g.index / shard * shard, 1, shard);
        else
            take(&g, g.index % shard, shard, s->optimizer_instances);
        break;
    case MESH_EXPERT:
        span(&g, s->expert, s->expert_tensor, m->ep);
        break;
    case MESH_EXPERT_TENSOR:
        span(&g, s->expert_tensor, 1, m->etp);
        break;
    case MESH_EXPERT_TENSOR_MODEL:
        span(&g, s->expert_tensor, 1, m->etp);
        span(&g, s->expert, s->expert_tensor, m->ep);
        break;
    case MESH_EXPERT_DATA:
        if (has_no_experts(s))
            span_data_context(&g, m);
        else
            span(&g, m->expert_data, expert_data_stride(m), m->edp);
        break;
    case MESH_GROUP_COUNT:
        CHECK(false, "no such group");
    }
    return g;
}

static int member_rank(const struct mesh *m, const struct group *g, int member) {
    int rank = m->rank, place = g->first + member * g->step;
    for (int i = 0; i < g->num_axes; i++) {
        rank += (place % g->axes[i].size - g->axes[i].at) * g->axes[i].stride;
        place /= g->axes[i].size;
    }
    return rank;
}

int mesh_group_ranks(const struct mesh *mesh, enum mesh_group group, int *ranks, int *index_p) {
    struct group g = group_of(mesh, group);
    for (int i = 0; i < g.count; i++) ranks[i] = member_rank(mesh, &g, i);
    CHECK(ranks[g.index] == mesh->rank, "rank %d is not in its own %s group", mesh->rank,
          mesh_group_name(group));
    *index_p = g.index;
    return g.count;
}

const char *mesh_group_name(enum mesh_group group) {
    static const char *const names[MESH_GROUP_COUNT] = {
        [MESH_WORLD] = "world",
        [MESH_TENSOR] = "tensor-parallel",
        [MESH_CONTEXT] = "context-parallel",
        [MESH_DATA] = "data-parallel",
        [MESH_DATA_CONTEXT] = "data-context-parallel",
        [MESH_TENSOR_CONTEXT] = "tensor-context-parallel",
        [MESH_TENSOR_DATA_CONTEXT] = "tensor-data-context-parallel",
        [MESH_MODEL] = "model-parallel",
        [MESH_PIPELINE] = "pipeline-parallel",
        [MESH_EMBEDDING] = "embedding",
        [MESH_KV_REPLICAS] = "key-value-replicas",
        [MESH_OPTIMIZER_SHARD] = "optimizer-shard",
        [MESH_OPTIMIZER_INSTANCES] = "optimizer-instances",
        [MESH_EXPERT] = "expert-parallel",
        [MESH_EXPERT_TENSOR] = "expert-tensor-parallel",
        [MESH_EXPERT_TENSOR_MODEL] = "expert-tensor-model-parallel",
        [MESH_EXPERT_DATA] = "expert-data-parallel",
    };
    CHECK(group >= 0 && group < MESH_GROUP_COUNT, "no such group");
    return names[group];
}

/* ---- printing ---- */

static void print_groups(const struct mesh_shape *shape, enum mesh_group kind, FILE *out) {
    bool began = false;
    for (int rank = 0; rank < shape->world; rank++) {
        struct mesh m;
        struct err err;
        CHECK(!mesh_init(&m, shape, rank, &err), "%s", err.text);
        struct group g = group_of(&m, kind);
        if (g.count == 1 || g.index) continue;
        if (!began) fprintf(out, "%s:", mesh_group_name(kind));
        began = true;
        for (int i = 0; i < g.count; i++) fprintf(out, "%s%d", i ? " " : " [", member_rank(&m, &g, i));
        fputc(']', out);
    }
    if (began) fputc('\n', out);
}

void mesh_print(const struct mesh_shape *shape, FILE *out) {
    struct mesh m;
    struct err err;
    CHECK(!mesh_init(&m, shape, 0, &err), "%s", err.text);
    fprintf(out, "%d rank%s = tensor %d * context %d * data %d * pipeline %d, in the order %s\n",
            shape->world, shape->world == 1 ? "" : "s", shape->tensor, shape->context, m.data,
            shape->pipeline, shape->pp_before_dp ? "tp-cp-ep-pp-dp" : "tp-cp-ep-dp-pp");
    if (!has_no_experts(shape))
        fprintf(out, "experts: expert-tensor %d * expert %d * expert-data %d * pipeline %d\n",
                shape->expert_tensor, shape->expert, m.expert_data, shape->pipeline);
    for (int kind = 0; kind < MESH_GROUP_COUNT; kind++) {
        bool of_experts = kind >= MESH_EXPERT && kind <= MESH_EXPERT_DATA;
        if (!of_experts || !has_no_experts(shape)) print_groups(shape, (enum mesh_group)kind, out);
    }
}
