#pragma once
/* The shapes over which every row of the table is tested. */
#include "parallel/schedule.h"
#include "tests/test.h"

enum { MAX_STAGES = 8, MAX_CHUNKS = 4, MAX_MICRO = 24, CELLS = MAX_CHUNKS * MAX_MICRO, FREE = -1 };

static char shape_text[160];
static inline const char *describe(const struct schedule *s, const struct schedule_shape *p) {
    snprintf(shape_text, sizeof(shape_text), "%s stages %d stage %d chunks %d micro %d group %d%s%s", s->name,
             p->stages, p->stage, p->chunks, p->micro_batches, p->group, p->forward_only ? " forward" : "",
             p->late_receive ? " late" : "");
    return shape_text;
}

/* Calls `check` for each shape that the row accepts, stage 0. */
static inline int for_each_shape(void (*check)(const struct schedule *s, struct schedule_shape shape)) {
    int shapes = 0;
    for (int row = 0; schedule_at(row); row++)
        for (int stages = 1; stages <= MAX_STAGES; stages++)
            for (int chunks = 1; chunks <= MAX_CHUNKS; chunks++)
                for (int micro = 1; micro <= MAX_MICRO; micro++)
                    for (int group = 0; group <= (chunks > 1 ? micro : 0); group += group ? 3 : stages)
                        for (int mode = 0; mode < 4; mode++) {
                            struct schedule_shape shape = {stages, 0,        chunks,   micro,
                                                           group,  mode & 1, mode >> 1};
                            if (schedule_at(row)->refuses(&shape)) continue;
                            check(schedule_at(row), shape);
                            shapes++;
                        }
    return shapes;
}

static inline bool is_compute(const struct action *a) {
    return a->kind == ACTION_FORWARD || a->kind == ACTION_BACKWARD || a->kind == ACTION_WEIGHT;
}
static inline int cell(const struct action *a) {
    return a->chunk * MAX_MICRO + a->micro_batch;
}
