#include "parallel/schedule.h"
#include "core/base/mem.h"
#include <string.h>

static const char *needs_one_chunk(const struct schedule_shape *s) {
    return s->chunks == 1 ? NULL : "1f1b runs one model chunk per stage";
}

/* One forward, one backward: stage r of p runs p - r - 1 forwards ahead, then alternates, then drains. With
 * one stage this is forward, backward for each micro-batch. (Narayanan et al. 2021, section 2.2) */
static void one_forward_one_backward(const struct schedule_shape *s, struct action *actions) {
    int warmup = s->stages - s->stage - 1, n = 0;
    if (warmup > s->micro_batches) warmup = s->micro_batches;
    for (int f = 0; f < warmup; f++) actions[n++] = (struct action){ACTION_FORWARD, 0, f, -1};
    for (int b = 0, f = warmup; b < s->micro_batches; b++) {
        if (f < s->micro_batches) actions[n++] = (struct action){ACTION_FORWARD, 0, f++, -1};
        actions[n++] = (struct action){ACTION_BACKWARD, 0, b, -1};
    }
}

static const struct schedule schedules[] = {
    {"1f1b", needs_one_chunk, one_forward_one_backward},
};

const struct schedule *schedule_find(const char *name) {
    for (size_t i = 0; i < ARRAY_COUNT(schedules); i++)
        if (!strcmp(schedules[i].name, name)) return &schedules[i];
    return NULL;
}

int schedule_assign_slots(struct action *actions, int count) {
    bool *used = mem_new_array(bool, (size_t)count, "schedule slots");
    int num_slots = 0;
    for (int i = 0; i < count; i++) {
        struct action *a = &actions[i];
        if (a->kind == ACTION_FORWARD) {
            a->slot = 0;
            while (used[a->slot]) a->slot++;
            used[a->slot] = true;
            if (a->slot + 1 > num_slots) num_slots = a->slot + 1;
            continue;
        }
        for (int j = i - 1; j >= 0 && a->slot < 0; j--) /* the matching forward is a few actions back */
            if (actions[j].kind == ACTION_FORWARD && actions[j].chunk == a->chunk &&
                actions[j].micro_batch == a->micro_batch)
                a->slot = actions[j].slot;
        CHECK(a->slot >= 0, "backward of micro-batch %d comes before its forward", a->micro_batch);
        used[a->slot] = false;
    }
    mem_free(used);
    return num_slots;
}
