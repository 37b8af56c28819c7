#pragma once
/* A pipeline schedule is a list of actions for one rank: forward or backward of one micro-batch through one
 * model chunk. Schedules are rows of one table; every list is given slots here: the frame in which a
 * micro-batch keeps its activations from its forward to its backward. The number of slots, so the memory,
 * follows from the list. */
#include "core/base/check.h"
#include <stdbool.h>
#include <stdint.h>

enum action_kind { ACTION_FORWARD, ACTION_BACKWARD };

struct action {
    enum action_kind kind;
    int chunk, micro_batch, slot;
};

struct schedule_shape {
    int stages, stage, chunks, micro_batches;
};

struct schedule {
    const char *name;
    /* NULL when the schedule can run this shape, otherwise what it needs. */
    const char *(*refuses)(const struct schedule_shape *shape);
    /* Appends the actions (2 * chunks * micro_batches of them) without slots. */
    void (*make)(const struct schedule_shape *shape, struct action *actions);
};

const struct schedule *schedule_find(const char *name); /* NULL when there is none */
static inline int schedule_num_actions(const struct schedule_shape *s) {
    return 2 * s->chunks * s->micro_batches;
}
/* Lowest free slot at each forward, freed by its backward. Returns the number of slots. */
int schedule_assign_slots(struct action *actions, int count);
