#pragma once
/* Expert parallelism, private to core/model/ops: rows travel to the ranks that hold their experts, and back.
 *
 * N = ETP * EP ranks (group run_comms.expert, etp fastest) have tokens of their own. Rank r of EP owns
 * experts r E / EP .. (r + 1) E / EP; each of its ETP ranks has a part of every one of them, so all of those
 * get the row and each gives back a part of a sum. A source has its rows in the order of the experts; the
 * owner has them in the order (expert, source). EP = 2, E = 4, counts by [source][expert]:
 *
 *     source 0: 2 1 | 3 0       rank 0 gets  e0: 2 of 0, 1 of 1    e1: 1 of 0, 1 of 1
 *     source 1: 1 1 | 2 2       rank 1 gets  e2: 3 of 0, 2 of 1    e3: 2 of 1
 *
 * The counts of all sources are gathered once, in the first forward, and pinned: every rank derives every
 * size from them, in recomputation as well. Memory cannot follow them. An owner takes first_rows rows at a
 * time (window 0), a stated multiple of balanced load; the rest passes in further windows of more_rows rows
 * inside the op that returns rows (expert_rounds.c), in buffers that the plan holds whether they are needed
 * or not. Nothing is dropped. first_rows is never more than the rows that can come at worst; where it is all
 * of them there are no further windows.
 *
 * On meta there are no counts: messages and FLOPs are those of balanced load. */
#include "core/model/ops/moe.h"
#include "core/model/run.h"

struct expert_group {
    int ranks, rank, ep, ep_rank, etp;
    int64_t experts; /* of each owner */
    int64_t rows;    /* of each source */
    int64_t first_rows, more_rows, balanced /* what an owner gets on average */;
    int64_t hidden;
    enum dtype dtype;
};

struct expert_group expert_group_of(const struct model *m);

/* The owner's rows of window 0, as ops see them that take the router's dispatch. */
static inline struct router_shape expert_local_shape(const struct expert_group *g) {
    return (struct router_shape){.tokens = g->first_rows, .experts = g->experts, .topk = 1};
}

/* Rows [begin, begin + count) of what each owner gets. */
struct expert_window {
    int64_t begin, count;
};
static inline struct expert_window expert_window_at(const struct expert_group *g, int64_t i) {
    return (struct expert_window){i ? g->first_rows + (i - 1) * g->more_rows : 0,
                                  i ? g->more_rows : g->first_rows};
}
/* Windows until nothing is left on any rank: at least 1. */
int64_t expert_windows(const struct expert_group *g, const int32_t *counts);

/* offsets[experts + 1] and index[window.count] of this owner's rows in a window: index[i] = i where there is
 * a row, else -1. */
void expert_window_rows(const struct expert_group *g, const int32_t *counts, struct expert_window w,
                        int32_t *offsets, int32_t *index);

/* Cuts `bytes` off a stretch of scratch; starting from 0 it measures. */
static inline void *expert_carve(uintptr_t *at, int64_t count, size_t element) {
    uintptr_t begin = *at;
    *at += align_up((size_t)count * element);
    return (void *)begin;
}

/* What a window's exchanges need: the pieces that travel, by member, as comm_exchange reads them; and with
 * etp > 1 room for the parts of a sum. */
struct expert_paths {
    struct comm_piece *out;   /* [ranks, experts]: of this source's rows, by destination */
    struct comm_piece *in;    /* [ranks, experts]: of the window, by source */
    struct comm_piece *parts; /* as out, in the parts: [etp, rows, width] */
    void *sums;
    int32_t *index; /* [rows, etp] */
};
/* `collects`: with room for parts. */
void expert_paths_carve(struct expert_paths *x, const struct expert_group *g, uintptr_t *at, bool collects);
void expert_paths_fill(const struct expert_paths *x, const struct expert_group *g, const int32_t *counts,
                       struct expert_window w);

/* Rows of `width` elements from the sources to the owners of the window. */
void expert_send(struct run *r, const struct expert_group *g, const struct expert_paths *x, void *window,
                 const void *rows, int64_t width, enum dtype dtype);
/* And back, to where they came from: the other rows are left alone. Parts are summed in float32. */
void expert_collect(struct run *r, const struct expert_group *g, const struct expert_paths *x, void *rows,
                    const void *window, int64_t width, enum dtype dtype);

/* ---- the experts on a window of rows, apart from the layer's own ops; expert_mlp.c ---- */

struct expert_mlp {
    int64_t experts, rows, hidden, up, ffn; /* rows: room; up: columns of fc1's result */
    enum activation kind;
    enum dtype dtype;
};
struct expert_mlp_buffers {
    int32_t *offsets;     /* [experts + 1] */
    const float *scales;  /* scales[index[i]] is row i's probability; the caller sets these three */
    const int32_t *index; /* [rows] */
    float *d_scales;
    void *rows, *up, *act;         /* [rows, hidden], [rows, up], [rows, ffn] */
    void *d_result, *d_act, *d_up; /* as rows, act, up */
};
struct expert_mlp expert_mlp_of(const struct program *p, const struct model *m, int fc1);
void expert_mlp_carve(struct expert_mlp_buffers *b, const struct expert_mlp *a, uintptr_t *at, bool backward);
/* b->rows becomes the experts' result. */
void expert_mlp_forward(struct run *r, const struct expert_mlp *a, const struct expert_mlp_buffers *b,
                        const struct param_view *fc1, const struct param_view *fc2);
/* b->d_result becomes the gradient of b->rows; d_scales and the gradients of the weights follow. Makes the
 * intermediates again, whatever is recomputed. */
void expert_mlp_backward(struct run *r, const struct expert_mlp *a, const struct expert_mlp_buffers *b,
                         const struct param_view *fc1, const struct param_view *fc2);
