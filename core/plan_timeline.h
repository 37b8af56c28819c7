#pragma once
/* What lies where in the arena, at every instruction of one step: the plan unrolled, for pictures and for
 * reports about memory. A pure function of the plan, which it points to and which must outlive it.
 *
 * Time is counted in instructions. A step is a row of runs: an action of the schedule walks the segments of
 * its chunk, and each of those is one run of the segment's forward, backward or weight list. Equal segments
 * share their lists, so what happens inside a run is described once per list:
 *
 *     area of list        offset in the frame, the hold area or the work area; instructions first to last
 *     frame               the kept tensors of one segment and micro-batch: from a forward run to the run that
 *                         ends them; a tensor in it begins at the instruction that writes it
 *     run                 where its list's work area begins
 *
 * So the description of a step of 96 layers and hundreds of micro-batches is small, and is unrolled only
 * where somebody looks. timeline_areas gives everything that one run sees alive.
 *
 *     struct timeline t;
 *     timeline_open(&t, &plan);
 *     struct str page = {0};
 *     timeline_write_json(&t, NULL, &page);
 *     timeline_close(&t); */
#include "core/plan.h"

struct timeline_area {
    int tensor; /* of the segment's program; -1: what the head of the frame holds, the segment's input */
    bool is_grad;
    size_t offset, bytes;
    int first, last; /* instructions of the list, inclusive */
};

struct timeline_areas {
    struct timeline_area *at;
    int count;
};

enum { TIMELINE_LISTS = 3 }; /* forward, backward, weight: as the first action kinds */

/* Of one compiled segment. */
struct timeline_lists {
    struct timeline_areas keep;                 /* in the frame; `first`: of the forward list; last INT_MAX */
    struct timeline_areas hold;                 /* in the hold area; `first`: of the backward list */
    struct timeline_areas work[TIMELINE_LISTS]; /* in the work area; none for weight lists */
    int output_first; /* instruction of the forward list that begins the next segment's input */
};

struct timeline_run {
    int action; /* of timeline.list */
    int segment;
    int64_t begin; /* number of the first instruction in the step */
    size_t work;   /* arena offset of the work area */
};

struct timeline_frame {
    int birth; /* run of the segment's forward; its input is older, see timeline_lists.output_first */
    int held;  /* run of its backward in schedules that split it, else -1 */
    int death; /* the last run in which it is alive */
};

struct timeline {
    const struct plan *plan;
    const struct schedule_list *list; /* the longest that reaches the plan's peak */
    struct timeline_lists *lists;     /* per compiled segment */
    struct timeline_run *runs;
    struct timeline_frame *frames;
    int num_runs, num_frames;
    int64_t num_instrs;
    int peak_run; /* the first that reaches the peak */
};

void timeline_open(struct timeline *t, const struct plan *plan);
void timeline_close(struct timeline *t);
/* The list that a run walks. */
const struct code *timeline_code(const struct timeline *t, int run);
/* Arena offset of the slot that a run works in. */
size_t timeline_slot(const struct timeline *t, int run);
/* Everything of the activations that is alive at some instruction of a run: arena offsets, and instructions
 * of this run. The frame and segment of each come to `segments` and `micro_batches`. Owned by the caller. */
struct timeline_alive {
    struct timeline_area area;
    int segment, micro_batch;
    bool is_work;
};
int timeline_alive_in(const struct timeline *t, int run, struct timeline_alive **alive_p);

/* The innermost module of a tensor of a program that is not the layer itself, or "". */
const char *timeline_module(const struct program *p, int tensor);

/* One object for the page. `measured` holds num_runs ends of what a real run touched (arena offsets), or is
 * NULL. */
void timeline_write_json(const struct timeline *t, const size_t *measured, struct str *out);
