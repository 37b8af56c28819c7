#include "parallel/schedule.h"
#include <stddef.h>
#include <string.h>

/* ---- 1f1b ---- */

static const char *refuses_chunks(const struct schedule_shape *s) {
    return s->chunks == 1 ? NULL : "one model chunk per stage: drop the virtual stages";
}

static struct action compute(enum action_kind kind, int chunk, int micro_batch) {
    return (struct action){.kind = kind, .chunk = chunk, .micro_batch = micro_batch};
}

/* One forward, one backward: stage r of p runs p - r - 1 forwards ahead, then alternates, then drains. With
 * one stage this is forward, backward for each micro-batch. (Narayanan et al. 2021, section 2.2) */
static int make_1f1b(const struct schedule_shape *s, struct action *actions) {
    int n = 0, f = 0, warmup = s->stages - s->stage - 1;
    while (f < warmup && f < s->micro_batches) actions[n++] = compute(ACTION_FORWARD, 0, f++);
    for (int b = 0; b < s->micro_batches; b++) {
        if (f < s->micro_batches) actions[n++] = compute(ACTION_FORWARD, 0, f++);
        actions[n++] = compute(ACTION_BACKWARD, 0, b);
    }
    return n;
}

/* ---- interleaved ---- */

int schedule_group(const struct schedule_shape *s) {
    int group = s->group ? s->group : s->stages;
    return group < s->micro_batches ? group : s->micro_batches;
}

/* Evaluation runs any number of micro-batches: no backward waits for a full group. */
static const char *refuses_interleaved(const struct schedule_shape *s) {
    int group = s->group ? s->group : s->stages, rest = s->micro_batches % group;
    if (s->stages < 2) return "--pipeline-model-parallel-size of at least 2";
    if (s->chunks < 2)
        return "at least 2 model chunks per stage: raise --num-virtual-stages-per-pipeline-rank";
    if (group < s->stages)
        return "--microbatch-group-size-per-virtual-pipeline-stage of at least "
               "--pipeline-model-parallel-size";
    if (s->forward_only) return NULL;
    if (group > s->micro_batches)
        return "as many micro-batches as --microbatch-group-size-per-virtual-pipeline-stage (by default "
               "--pipeline-model-parallel-size): raise --global-batch-size";
    if (rest && rest < s->stages)
        return "whole groups of --microbatch-group-size-per-virtual-pipeline-stage micro-batches (by default "
               "--pipeline-model-parallel-size), or a last one of at least --pipeline-model-parallel-size: "
               "change --global-batch-size";
    return NULL;
}

/* The k-th forward of a stage: groups of micro-batches go through chunk 0, then the same group through chunk
 * 1, and so on. The k-th backward takes the chunks from the last to the first. */
static struct action interleaved_at(const struct schedule_shape *s, enum action_kind kind, int k) {
    int group = schedule_group(s), first = k / (group * s->chunks) * group;
    int size =
        s->micro_batches - first < group ? s->micro_batches - first : group; /* the last may be short */
    int place = k - first * s->chunks, chunk = place / size;
    return compute(kind, kind == ACTION_FORWARD ? chunk : s->chunks - 1 - chunk, first + place % size);
}

/* Stage r runs 2 (p - r - 1) + (chunks - 1) * group forwards ahead: twice the distance to the last stage,
 * because a neighbour may be ahead by a forward on the way up and on the way down; and all but the last chunk
 * of the first group, which come before the first backward anyway. (Narayanan et al. 2021, section 2.2, with
 * Megatron-LM's group size) */
static int make_interleaved(const struct schedule_shape *s, struct action *actions) {
    int n = 0, f = 0, total = s->micro_batches * s->chunks;
    int warmup = 2 * (s->stages - s->stage - 1) + (s->chunks - 1) * schedule_group(s);
    while (f < warmup && f < total) actions[n++] = interleaved_at(s, ACTION_FORWARD, f++);
    for (int b = 0; b < total; b++) {
        if (f < total) actions[n++] = interleaved_at(s, ACTION_FORWARD, f++);
        actions[n++] = interleaved_at(s, ACTION_BACKWARD, b);
    }
    return n;
}

/* ---- zero-bubble ---- */

/* ZB-H1 of Qi et al. 2023, "Zero Bubble Pipeline Parallelism", section 3: the order of 1f1b with backward
 * split in two. The gradient of the activations is what the stage below waits for, so it goes first; the
 * gradient of the weights waits until it fills a gap: stage r puts r of them off, and has all of them left
 * when nothing else is to be done. Frames of forwards run ahead (p - r) and of put-off weight gradients (r)
 * add up to p on every stage, the number that 1f1b has on its first. */
static int make_zero_bubble(const struct schedule_shape *s, struct action *actions) {
    int n = 0, f = 0, w = 0, warmup = s->stages - s->stage - 1;
    while (f < warmup && f < s->micro_batches) actions[n++] = compute(ACTION_FORWARD, 0, f++);
    for (int b = 0; b < s->micro_batches; b++) {
        if (f < s->micro_batches) actions[n++] = compute(ACTION_FORWARD, 0, f++);
        actions[n++] = compute(ACTION_BACKWARD, 0, b);
        if (b + 1 - w > s->stage) actions[n++] = compute(ACTION_WEIGHT, 0, w++);
    }
    while (w < s->micro_batches) actions[n++] = compute(ACTION_WEIGHT, 0, w++);
    return n;
}

/* ---- the table ---- */

static const struct schedule schedules[] = {
    {"1f1b", false, refuses_chunks, make_1f1b},
    {"interleaved", false, refuses_interleaved, make_interleaved},
    {"zero-bubble", true, refuses_chunks, make_zero_bubble},
};

const struct schedule *schedule_at(int index) {
    return index >= 0 && (size_t)index < ARRAY_COUNT(schedules) ? &schedules[index] : NULL;
}

const struct schedule *schedule_find(const char *name) {
    for (size_t i = 0; i < ARRAY_COUNT(schedules); i++)
        if (!strcmp(schedules[i].name, name)) return &schedules[i];
    return NULL;
}
