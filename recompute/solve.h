#pragma once
/* Which option each layer takes: all the best trades of memory against time, by dynamic programming. Knows
 * nothing of models: an option covers `length` consecutive layers of one kind, takes `seconds` per
 * micro-batch, keeps `kept` bytes per micro-batch in flight and needs `work` bytes while it runs. Memory is
 * one of two formulas, after what the activations of a pipeline stage look like (docs/auto.md):
 *
 *   stack    one micro-batch in flight, backward takes the frames down one after the other: an option has its
 * work on top of what it and those below it keep.   peak = max over i of (kept_1 + ... + kept_i + work_i)
 *   flat     several in flight, the others' frames stay:    peak = sum of weight_i * kept_i + max of work_i
 *
 * A front is every (bytes, seconds) that no other choice beats in both, by rising bytes and so falling
 * seconds. It does not depend on a budget: the best choice for one is the last point that fits, so more
 * memory never costs time.
 *
 *     struct solve_front front;
 *     solve_open(&problem, &front);
 *     for each point from the last: if (fits(front.points[i].choice)) ...
 *     solve_close(&front);
 *
 * Exact while fewer than SOLVE_MAX_POINTS trades survive at every layer (small problems always); beyond that
 * only the fastest of each of SOLVE_MAX_POINTS equal stretches of bytes goes on. Cannot fail: every layer
 * needs an option. */
#include <stdbool.h>
#include <stdint.h>

enum { SOLVE_MAX_POINTS = 1024 };

struct solve_option {
    int kind;   /* of the layers that it may cover */
    int length; /* how many of them, at least 1 */
    int64_t kept, work;
    double seconds;
};

struct solve_layer {
    int kind;
    bool first;     /* of a chunk: no option reaches across */
    int64_t weight; /* flat: micro-batches in flight */
};

struct solve_problem {
    const struct solve_layer *layers;
    int num_layers;
    const struct solve_option *options;
    int num_options;
    bool flat;
    int64_t below; /* stack: kept below the first layer */
    int64_t above; /* stack: the peak above the last layer's frame: head's frame and work */
    int64_t work;  /* flat: the largest work beside the layers' */
};

struct solve_point {
    int64_t bytes;
    double seconds;
    const int *choice; /* per layer: the option that starts there, -1 inside one */
};

struct solve_front {
    struct solve_point *points;
    int count;
    int *choices; /* of all points */
};

void solve_open(const struct solve_problem *problem, struct solve_front *out);
void solve_close(struct solve_front *front);
