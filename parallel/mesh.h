#pragma once
/* The mesh: which rank does what. A pure function of the sizes and the rank, so any rank of any world can be
 * looked at without running it.
 *
 * Order (Megatron-LM's tp-cp-ep-dp-pp, leftmost fastest): dense layers see
 *     rank = tp + TP * (cp + CP * (dp + DP * pp)),           DP = world / (TP * CP * PP)
 * and experts see the same ranks as
 *     rank = etp + ETP * (ep + EP * (edp + EDP * pp)),       EDP = world / (ETP * EP * PP).
 * With pp_before_dp (--use-tp-pp-dp-mapping): rank = tp + TP * (cp + CP * (pp + PP * dp)); then both views
 * must have the same pipeline groups. On a dense model (expert 1, expert_tensor = tensor) the expert view is
 * the dense one: edp = cp + CP * dp.
 *
 * A group is a list of world ranks in rising order of the axis that it spans. */
#include "core/base/check.h"
#include <stdbool.h>
#include <stdio.h>

struct mesh_shape {
    int world;
    int tensor, context, pipeline; /* sizes; data parallel follows */
    int expert, expert_tensor;     /* 1 and `tensor` on dense models */
    int optimizer_instances;       /* --num-distributed-optimizer-instances */
    int kv_replicas;               /* tensor / query groups when there are fewer groups than ranks, else 1 */
    bool pp_before_dp;
};

struct mesh {
    struct mesh_shape shape;
    int rank;
    int data, expert_data; /* sizes */
    int tp, cp, dp, pp;    /* this rank's coordinates */
    int ep, etp, edp;
};

enum mesh_group {
    MESH_WORLD,
    MESH_TENSOR,
    MESH_CONTEXT,
    MESH_DATA,
    MESH_DATA_CONTEXT, /* dense gradients are summed here */
    MESH_TENSOR_CONTEXT,
    MESH_TENSOR_DATA_CONTEXT,
    MESH_MODEL, /* tensor x pipeline */
    MESH_PIPELINE,
    MESH_EMBEDDING,       /* first and last stage: tied word embeddings; only this rank when it is neither */
    MESH_KV_REPLICAS,     /* tensor ranks that hold the same key/value head */
    MESH_OPTIMIZER_SHARD, /* the inner part of MESH_DATA_CONTEXT that shards optimizer state */
    MESH_OPTIMIZER_INSTANCES, /* ranks that hold the same shard */
    MESH_EXPERT,
    MESH_EXPERT_TENSOR,
    MESH_EXPERT_TENSOR_MODEL, /* expert x expert tensor: the ranks that exchange tokens */
    MESH_EXPERT_DATA,
    MESH_GROUP_COUNT
};
const char *mesh_group_name(enum mesh_group group); /* "tensor-parallel" */

/* Checks that the sizes fit together: one message that names the flags. */
int mesh_init(struct mesh *mesh, const struct mesh_shape *shape, int rank, struct err *err);
/* Writes the members (at most shape.world) and returns how many; *index_p is this rank's place among them. */
int mesh_group_ranks(const struct mesh *mesh, enum mesh_group group, int *ranks, int *index_p);
/* World rank at the same coordinates in another pipeline stage. */
int mesh_stage_rank(const struct mesh *mesh, int stage);
/* --print-topology: sizes, then every group of every kind with more than one member, one line per kind (of
 * expert groups only where experts exist). The sizes have been accepted by mesh_init. */
void mesh_print(const struct mesh_shape *shape, FILE *out);
