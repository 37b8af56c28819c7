/* One stage's list, over thousands of shapes: a replay that knows nothing of how lists are made tracks who
 * owns each slot and buffer; the number of frames is that of the papers. */
#include "tests/unit/schedule_shapes.h"

/* ---- one stage's list ---- */

struct owner { /* of slots and buffers: the cell that lives there, or FREE */
    int slot[MAX_CHUNKS][MAX_MICRO], shared[CELLS], receive[64], send[64], grad[64];
    bool send_flies[64], grad_flies[64], received[64];
    int stage_of_cell[CELLS]; /* 1 after forward, 2 after backward, 3 after weight */
    int backwards[MAX_CHUNKS], weights[MAX_CHUNKS];
    int alive, peak_alive; /* frames */
};

#define HOLDS(cond, what)                                                                                    \
    EXPECT(cond, "%s: %s (action %d: kind %d chunk %d micro-batch %d)", describe(s, shape), what, i,         \
           (int)a->kind, a->chunk, a->micro_batch)

static void replay_forward(const struct schedule *s, const struct schedule_shape *shape, struct owner *o,
                           const struct action *a, int i) {
    bool first = shape->stage == 0 && a->chunk == 0;
    bool last = shape->stage == shape->stages - 1 && a->chunk == shape->chunks - 1;
    HOLDS(o->stage_of_cell[cell(a)]++ == 0, "a forward runs once");
    HOLDS((a->receive_buffer < 0) == first, "only the first virtual stage receives nothing");
    HOLDS((a->send_buffer < 0) == last, "only the last virtual stage sends nothing");
    if (!first) {
        HOLDS(o->receive[a->receive_buffer] == cell(a), "the input is in its receive buffer");
        o->receive[a->receive_buffer] = FREE;
    }
    if (!last) {
        HOLDS(o->send[a->send_buffer] == FREE && !o->send_flies[a->send_buffer], "the send buffer is free");
        o->send[a->send_buffer] = cell(a);
    }
    for (int k = 0; k < a->slot; k++) HOLDS(o->slot[a->chunk][k] != FREE, "the lowest free slot is taken");
    HOLDS(o->slot[a->chunk][a->slot] == FREE, "the slot is free");
    for (int k = 0; k < a->shared_slot; k++)
        HOLDS(o->shared[k] != FREE, "the lowest free shared slot is taken");
    HOLDS(o->shared[a->shared_slot] == FREE, "the shared slot is free");
    if (!shape->forward_only) o->shared[a->shared_slot] = cell(a);
    if (!shape->forward_only) o->slot[a->chunk][a->slot] = cell(a), o->alive++;
    if (o->alive > o->peak_alive) o->peak_alive = o->alive;
}

static void free_frame(struct owner *o, const struct action *a) {
    o->slot[a->chunk][a->slot] = o->shared[a->shared_slot] = FREE;
    o->alive--;
}

static void replay_backward(const struct schedule *s, const struct schedule_shape *shape, struct owner *o,
                            const struct action *a, int i) {
    bool first = shape->stage == 0 && a->chunk == 0;
    bool last = shape->stage == shape->stages - 1 && a->chunk == shape->chunks - 1;
    HOLDS(o->stage_of_cell[cell(a)]++ == 1, "a backward runs once, after its forward");
    HOLDS(o->backwards[a->chunk]++ == a->micro_batch,
          "gradients are summed over micro-batches in rising order");
    HOLDS(o->slot[a->chunk][a->slot] == cell(a) && o->shared[a->shared_slot] == cell(a),
          "the frame is still there");
    HOLDS(o->grad[a->buffer] == (last ? FREE : cell(a)) && !o->grad_flies[a->buffer],
          "the gradient is in its buffer, or the buffer is free where backward begins");
    o->grad[a->buffer] = first ? FREE : cell(a);
    if (!s->splits_backward) free_frame(o, a);
}

static void replay_weight(const struct schedule *s, const struct schedule_shape *shape, struct owner *o,
                          const struct action *a, int i) {
    HOLDS(s->splits_backward && o->stage_of_cell[cell(a)]++ == 2,
          "weight gradients come once, after backward");
    HOLDS(o->weights[a->chunk]++ == a->micro_batch, "gradients are summed in rising order");
    HOLDS(o->slot[a->chunk][a->slot] == cell(a) && o->shared[a->shared_slot] == cell(a),
          "the frame is still there");
    free_frame(o, a);
}

static void replay_message(const struct schedule *s, const struct schedule_shape *shape, struct owner *o,
                           const struct action *a, int i) {
    switch (a->kind) {
    case ACTION_RECEIVE_FORWARD:
        HOLDS(o->receive[a->buffer] == FREE, "nothing is received over an input that is still needed");
        o->receive[a->buffer] = cell(a);
        break;
    case ACTION_RECEIVE_BACKWARD:
        HOLDS(o->grad[a->buffer] == FREE && !o->grad_flies[a->buffer], "the gradient buffer is free");
        o->grad[a->buffer] = cell(a);
        break;
    case ACTION_SEND_FORWARD:
        HOLDS(o->send[a->buffer] == cell(a), "what is sent is what was computed");
        o->send[a->buffer] = FREE, o->send_flies[a->buffer] = true;
        break;
    case ACTION_SEND_BACKWARD:
        HOLDS(o->grad[a->buffer] == cell(a) && o->stage_of_cell[cell(a)] >= 2, "a finished gradient is sent");
        o->grad[a->buffer] = FREE, o->grad_flies[a->buffer] = true;
        break;
    case ACTION_WAIT_SEND_FORWARD:
        HOLDS(o->send_flies[a->buffer], "a wait has a send to wait for");
        o->send_flies[a->buffer] = false;
        break;
    case ACTION_WAIT_SEND_BACKWARD:
        HOLDS(o->grad_flies[a->buffer], "a wait has a send to wait for");
        o->grad_flies[a->buffer] = false;
        break;
    default:
        HOLDS(false, "a kind of action");
    }
}

static void replay(const struct schedule *s, const struct schedule_shape *shape,
                   const struct schedule_list *list, struct owner *o) {
    memset(o, 0, sizeof(*o));
    memset(o->slot, FREE, sizeof(o->slot));
    memset(o->shared, FREE, sizeof(o->shared));
    memset(o->receive, FREE, sizeof(o->receive));
    memset(o->send, FREE, sizeof(o->send));
    memset(o->grad, FREE, sizeof(o->grad));
    int top[MAX_CHUNKS] = {0}, computed = 0;
    for (int i = 0; i < list->count; i++) {
        const struct action *a = &list->actions[i];
        if (is_compute(a) && a->slot >= top[a->chunk]) top[a->chunk] = a->slot + 1;
        computed += is_compute(a);
        switch (a->kind) {
        case ACTION_FORWARD:
            replay_forward(s, shape, o, a, i);
            break;
        case ACTION_BACKWARD:
            replay_backward(s, shape, o, a, i);
            break;
        case ACTION_WEIGHT:
            replay_weight(s, shape, o, a, i);
            break;
        default:
            replay_message(s, shape, o, a, i);
        }
    }
    int each = shape->forward_only ? 1 : s->splits_backward ? 3 : 2;
    EXPECT(computed == each * shape->chunks * shape->micro_batches, "%s: %d compute actions",
           describe(s, shape), computed);
    for (int c = 0; c < shape->chunks; c++)
        EXPECT(list->num_slots[c] == top[c], "%s: chunk %d uses %d slots of %d", describe(s, shape), c,
               top[c], list->num_slots[c]);
    int frames = shape->forward_only ? 1 : o->peak_alive;
    EXPECT(list->num_shared_slots == frames, "%s: %d shared slots, %d frames alive at once",
           describe(s, shape), list->num_shared_slots, frames);
    for (int b = 0; b < 64; b++) {
        EXPECT(o->receive[b] == FREE && o->send[b] == FREE && o->grad[b] == FREE && !o->send_flies[b] &&
                   !o->grad_flies[b],
               "%s: buffer %d is in use at the end", describe(s, shape), b);
    }
}

static void check_stages(const struct schedule *s, struct schedule_shape shape) {
    static struct owner o;
    for (shape.stage = 0; shape.stage < shape.stages; shape.stage++) {
        struct schedule_list list;
        schedule_lower(s, &shape, &list);
        replay(s, &shape, &list, &o);
        int extra = shape.chunks > 1 && shape.group > shape.stages ? shape.group - shape.stages : 0;
        if (shape.forward_only && extra > shape.micro_batches) extra = shape.micro_batches;
        EXPECT(list.send_buffers == SCHEDULE_SEND_BUFFERS &&
                   list.receive_buffers <= SCHEDULE_RECEIVE_BUFFERS + (shape.stage == 0 ? extra : 0) &&
                   list.grad_buffers <= SCHEDULE_GRAD_BUFFERS + (shape.stage == shape.stages - 1 ? extra : 0),
               "%s: more buffers than the header says", describe(s, &shape));
        for (int i = 0; i < list.count; i++) {
            const struct action *a = &list.actions[i];
            bool is_send = a->kind == ACTION_SEND_FORWARD || a->kind == ACTION_WAIT_SEND_FORWARD;
            int count = a->kind == ACTION_RECEIVE_FORWARD ? list.receive_buffers
                        : is_send                         ? list.send_buffers
                                                          : list.grad_buffers;
            if (a->kind != ACTION_FORWARD && a->kind != ACTION_WEIGHT)
                EXPECT(a->buffer >= 0 && a->buffer < count, "%s: buffer %d", describe(s, &shape), a->buffer);
            if (a->kind == ACTION_FORWARD)
                EXPECT(a->receive_buffer < list.receive_buffers && a->send_buffer < list.send_buffers,
                       "%s: buffers %d %d", describe(s, &shape), a->receive_buffer, a->send_buffer);
        }
        schedule_free(&list);
    }
}

TEST(each_action_runs_once_in_order_and_nothing_alive_is_overwritten) {
    EXPECT(for_each_shape(check_stages) > 5000, "too few shapes were tried");
}

/* ---- the closed forms of memory ---- */

static int least(int a, int b) {
    return a < b ? a : b;
}

static void check_frames(const struct schedule *s, struct schedule_shape shape) {
    static struct owner o;
    for (shape.stage = 0; shape.stage < shape.stages; shape.stage++) {
        struct schedule_list list;
        schedule_lower(s, &shape, &list);
        replay(s, &shape, &list, &o);
        int m = shape.micro_batches, ahead = shape.stages - shape.stage, slots = 0;
        int group = shape.group ? shape.group : shape.stages;
        for (int c = 0; c < shape.chunks; c++) slots += list.num_slots[c];
        if (shape.forward_only)
            EXPECT(slots == shape.chunks, "%s: %d slots in evaluation", describe(s, &shape), slots);
        else if (!strcmp(s->name, "1f1b"))
            EXPECT(slots == least(ahead, m), "%s: %d slots", describe(s, &shape), slots);
        else if (!strcmp(s->name, "zero-bubble"))
            EXPECT(slots == least(shape.stages, m), "%s: %d slots", describe(s, &shape), slots);
        else /* Megatron-LM: warm-up of 2 (p - r - 1) + (v - 1) g, and the one that comes before a backward */
            EXPECT(o.peak_alive == least(2 * (ahead - 1) + (shape.chunks - 1) * group + 1, m * shape.chunks),
                   "%s: %d frames alive", describe(s, &shape), o.peak_alive);
        schedule_free(&list);
    }
}

TEST(frames_in_flight_are_those_of_the_papers) {
    for_each_shape(check_frames);
}

TEST(the_first_frames_are_the_same_for_any_number_of_micro_batches) {
    const struct schedule *s = schedule_find("1f1b");
    for (int micro = 1; micro < MAX_MICRO; micro++) {
        struct schedule_shape shape = {4, 1, 1, micro, 0, false, false},
                              larger = {4, 1, 1, micro + 1, 0, false, false};
        struct schedule_list a, b;
        int slot_a[MAX_MICRO + 1], slot_b[MAX_MICRO + 1];
        schedule_lower(s, &shape, &a);
        schedule_lower(s, &larger, &b);
        for (int i = 0; i < a.count; i++)
            if (a.actions[i].kind == ACTION_FORWARD) slot_a[a.actions[i].micro_batch] = a.actions[i].slot;
        for (int i = 0; i < b.count; i++)
            if (b.actions[i].kind == ACTION_FORWARD) slot_b[b.actions[i].micro_batch] = b.actions[i].slot;
        for (int i = 0; i < micro; i++) EXPECT_EQ(slot_a[i], slot_b[i]);
        EXPECT(a.num_slots[0] <= b.num_slots[0], "more micro-batches, fewer slots");
        schedule_free(&a);
        schedule_free(&b);
    }
}

static void check_receive_place(const struct schedule *s, struct schedule_shape shape) {
    if (shape.group > shape.stages) return; /* then the first and last stage receive even earlier */
    for (shape.stage = 0; shape.stage < shape.stages; shape.stage++) {
        struct schedule_list list;
        schedule_lower(s, &shape, &list);
        for (int i = 0, computed = 0; i < list.count; i++) {
            const struct action *a = &list.actions[i];
            computed += is_compute(a);
            if (a->kind != ACTION_RECEIVE_FORWARD && a->kind != ACTION_RECEIVE_BACKWARD) continue;
            enum action_kind consumer = a->kind == ACTION_RECEIVE_FORWARD ? ACTION_FORWARD : ACTION_BACKWARD;
            int between = 0, j = i + 1;
            while (j < list.count && !(list.actions[j].kind == consumer && cell(&list.actions[j]) == cell(a)))
                between += is_compute(&list.actions[j++]);
            EXPECT(between == (shape.late_receive || (!computed && between == 0) ? 0 : 1),
                   "%s: %d compute actions between a receive and its use", describe(s, &shape), between);
        }
        schedule_free(&list);
    }
}

TEST(a_receive_starts_one_compute_action_ahead_or_late_as_asked) {
    for_each_shape(check_receive_place);
}

static void check_marks(const struct schedule *s, struct schedule_shape shape) {
    for (shape.stage = 0; shape.stage < shape.stages; shape.stage++) {
        struct schedule_list list;
        int left[MAX_CHUNKS], marks = 0;
        schedule_lower(s, &shape, &list);
        for (int c = 0; c < shape.chunks; c++) left[c] = shape.micro_batches;
        enum action_kind kind = s->splits_backward ? ACTION_WEIGHT : ACTION_BACKWARD;
        for (int i = 0; i < list.count; i++) {
            const struct action *a = &list.actions[i];
            marks += a->last_of_chunk;
            if (a->kind == kind)
                EXPECT(a->last_of_chunk == (--left[a->chunk] == 0), "%s: the mark of chunk %d",
                       describe(s, &shape), a->chunk);
        }
        EXPECT(marks == (shape.forward_only ? 0 : shape.chunks), "%s: %d marks", describe(s, &shape), marks);
        schedule_free(&list);
    }
}

TEST(the_last_touch_of_each_chunk_is_marked) {
    for_each_shape(check_marks);
}

RUN_TESTS(CASE(each_action_runs_once_in_order_and_nothing_alive_is_overwritten),
          CASE(frames_in_flight_are_those_of_the_papers),
          CASE(the_first_frames_are_the_same_for_any_number_of_micro_batches),
          CASE(a_receive_starts_one_compute_action_ahead_or_late_as_asked),
          CASE(the_last_touch_of_each_chunk_is_marked))
