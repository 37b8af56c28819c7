#pragma once
/* Predicted times. plan_cost.c runs every list on the meta kernels; a clock stands beside it and turns what
 * each instruction costs into seconds: kernels one after the other, messages on a link that works beside them
 * from the start of an op to its end. From the times of the lists follow the actions of a stage, and from
 * those of all stages the step, by the same simulation that proves the schedule (bubbles, messages between
 * stages).
 *
 *     struct stage_time *times = ...;                          // of every stage
 *     for each stage: plan_time_stage(&plan_of_stage, &times[stage]);
 *     struct step_time step = plan_time_step(&plan, times);
 *
 * Plans made without request.hardware have no times: all zero. */
#include "core/plan.h"
#include "core/plan_hardware.h"

/* ---- while lists run on the meta kernels ---- */
struct plan_clock {
    const struct hardware *hardware; /* NULL: every call does nothing */
    enum dtype dtype;
    bool dropout;
    double now, link_free;
    double *ends; /* per op: when its forward's and its backward's message is there */
    int num_ops;
    struct kernel_meter seen;
};
void plan_clock_start(struct plan_clock *c, const struct plan_request *request, int num_ops,
                      const struct kernel_meter *meter);
/* An instruction has run on the meta kernels and sent messages that take so many seconds; returns how much
 * later it is now. */
double plan_clock_instr(struct plan_clock *c, const struct op *op, const struct instr *instr,
                        const struct kernel_meter *meter, double message_seconds);
void plan_clock_stop(struct plan_clock *c);

/* ---- of a stage ---- */
struct stage_time {
    double *forward, *backward, *weight; /* seconds of one micro-batch, per chunk of the stage */
    int chunks;
    double rerun;          /* of backward: what recompute costs, all chunks, one micro-batch */
    double exposed_reduce; /* gradients over data-parallel ranks, after the last backward */
    double exposed_gather; /* weights, before the first forward */
    double optimizer;      /* norm, update, copies for compute */
    double send;           /* of hidden states to the next stage */
    double matrix_flops;   /* of a step, recompute included */
};
/* Owned by the caller: stage_time_free. */
void plan_time_stage(const struct plan *plan, struct stage_time *out);
void stage_time_free(struct stage_time *t);

struct step_time {
    double seconds;
    double schedule;  /* from the first forward to the last backward of any stage */
    double bubble;    /* share of it in which the stages stand idle */
    double rerun;     /* seconds of recompute of the stage that has most of them */
    double exposed;   /* data-parallel messages that nothing hides, of the stage where they take longest */
    double optimizer; /* of the slowest stage */
};
/* `times`: one per stage; `plan`: any stage's. */
struct step_time plan_time_step(const struct plan *plan, const struct stage_time *times);
