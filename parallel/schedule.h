#pragma once
/* Pipeline schedules: rows of one table. A schedule gives, for one stage, the order of its compute actions:
 * forward and backward of micro-batches through model chunks. One lowering pass, the same for all schedules,
 * adds slots, buffers, receives and sends; one simulation runs all stages' lists against each other and
 * proves that they finish; one interpreter (core/train/step.c) runs them.
 *
 * Model chunk v of stage r is virtual stage v * stages + r of stages * chunks; activations flow up, gradients
 * down. A message goes to the rank that holds the next virtual stage, which is another rank as stages > 1.
 *
 * Slots: the frame of activations that a micro-batch holds in a chunk from its forward to its backward (to
 * its weight gradient in schedules that split backward). Slots are numbered per chunk from 0; how many a
 * chunk needs follows from the list and is what the pipeline costs in memory. Slot 0 is taken first, the
 * lowest free one after. Chunks reach their peaks at different times, so slots that all chunks share, each
 * large enough for any chunk, are fewer than the sum over chunks (interleaved, 4 stages, 2 chunks, 8
 * micro-batches: 11 9 7 5 instead of 12 12 10 6): actions carry both numbers.
 *
 * Buffers: activations are received into one of SCHEDULE_RECEIVE_BUFFERS and sent from one of
 * SCHEDULE_SEND_BUFFERS; a gradient is received into, worked on in, and sent from one of
 * SCHEDULE_GRAD_BUFFERS (it is the boundary buffer of the backward list). */
#include "core/base/check.h"
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { SCHEDULE_RECEIVE_BUFFERS = 2, SCHEDULE_SEND_BUFFERS = 2, SCHEDULE_GRAD_BUFFERS = 3 };

enum action_kind {
    ACTION_FORWARD,         /* waits for its receive, if any, and computes */
    ACTION_BACKWARD,        /* the same; all gradients, or in split schedules those of activations only */
    ACTION_WEIGHT,          /* split schedules: the weight gradients of an earlier backward */
    ACTION_RECEIVE_FORWARD, /* starts receiving the input of (chunk, micro_batch) from `peer` into `buffer` */
    ACTION_RECEIVE_BACKWARD,  /* starts receiving the gradient of its output into gradient `buffer` */
    ACTION_SEND_FORWARD,      /* starts sending its output from `buffer` to `peer` */
    ACTION_SEND_BACKWARD,     /* starts sending the gradient of its input from gradient `buffer` */
    ACTION_WAIT_SEND_FORWARD, /* `buffer` is about to be written: wait until its last send has ended */
    ACTION_WAIT_SEND_BACKWARD,
    ACTION_KIND_COUNT
};

struct action {
    enum action_kind kind;
    int chunk, micro_batch; /* the chunk is one of this stage also in sends and receives */
    int slot;               /* compute actions: of the chunk */
    int shared_slot;        /* the same frame, numbered over all chunks */
    int peer;               /* sends and receives: the other stage */
    int tag;                /* sends and receives: the same number on both sides, 0 to COMM_MAX_TAG */
    int buffer;             /* communication: which; BACKWARD: the gradient buffer it works in */
    int receive_buffer;     /* FORWARD: where its input was received, -1 on the first virtual stage */
    int send_buffer;        /* FORWARD: where its output goes, -1 on the last virtual stage */
    bool last_of_chunk;     /* compute: no later action of this step touches this chunk's weight gradients */
};

struct schedule_shape {
    int stages, stage, chunks, micro_batches;
    int group;         /* micro-batches per group of interleaving; 0 means stages */
    bool forward_only; /* evaluation: forwards only, in the same order as training would need them */
    bool late_receive; /* --no-overlap-p2p-communication: a receive is started by the action that needs it */
};

struct schedule {
    const char *name; /* "1f1b", "interleaved", "zero-bubble" */
    bool splits_backward;
    /* NULL when the schedule can run this shape, otherwise what it needs (a fragment for an error message).
     */
    const char *(*refuses)(const struct schedule_shape *shape);
    /* Writes the compute actions in order (kind, chunk and micro_batch only); returns how many. */
    int (*make)(const struct schedule_shape *shape, struct action *actions);
};

const struct schedule *schedule_find(const char *name); /* NULL when there is none */
const struct schedule *schedule_at(int index);          /* NULL after the last: for tests and help */

/* Whether a compute action needs a message from another stage, and whether its result goes to one. */
bool schedule_receives(const struct schedule_shape *shape, const struct action *action);
bool schedule_sends(const struct schedule_shape *shape, const struct action *action);
/* Micro-batches per group of interleaving: as asked or `stages`, at most micro_batches. */
int schedule_group(const struct schedule_shape *shape);

/* A lowered list, owned: schedule_free. It ends with a wait for each send that has not been waited for. */
struct schedule_list {
    struct action *actions;
    int count;
    int *num_slots; /* per chunk */
    int num_shared_slots;
    int chunks;
    /* The constants above; the first stage has group - stages more receive buffers and the last stage as many
     * more gradient buffers when the group of interleaving is larger than the number of stages. */
    int receive_buffers, send_buffers, grad_buffers;
};
/* Makes and lowers the list of shape->stage. The shape has been accepted by refuses(). */
void schedule_lower(const struct schedule *schedule, const struct schedule_shape *shape,
                    struct schedule_list *out);
void schedule_free(struct schedule_list *list);

/* What a run of all stages would look like, each forward taking 1, backward 2 (split: 1 and 1) units. */
struct schedule_report {
    bool finishes; /* no stage waits for ever, with sends that end only when their receive was started */
    int length;    /* time until the last stage is done */
    double bubble; /* share of stages * length in which nothing is computed */
    int stuck_stage, stuck_action; /* when it does not finish */
};
void schedule_simulate(const struct schedule *schedule, const struct schedule_shape *shape,
                       struct schedule_report *out);
/* The same with seconds instead of units: per action of (chunk, stage), at chunk * stages + stage; `message`:
 * from one stage to the next. Returns the time until the last stage is done; it never shrinks when an action
 * takes longer. */
struct schedule_times {
    const double *forward, *backward, *weight;
    double message;
};
double schedule_simulate_times(const struct schedule *schedule, const struct schedule_shape *shape,
                               const struct schedule_times *times, struct schedule_report *out);
/* The grid: a row per stage, a column per unit of time: "F0 F1 .  B0 B0"; with several chunks "F0a" is chunk
 * 0 and "F0b" chunk 1. Says so when the schedule does not finish. */
void schedule_print(const struct schedule *schedule, const struct schedule_shape *shape, FILE *out);
