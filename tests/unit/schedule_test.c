/* Every row of the table, over thousands of shapes. Three oracles, none of which knows how lists are made: a
 * replay of one stage's list that tracks who owns each slot and buffer; a run of all stages' lists with
 * tokens for messages; and closed forms of length and memory from the papers. */
#include "parallel/schedule.h"
#include "parallel/comm/comm.h"
#include "tests/test.h"

enum { MAX_STAGES = 8, MAX_CHUNKS = 4, MAX_MICRO = 24, CELLS = MAX_CHUNKS * MAX_MICRO, FREE = -1 };

static char shape_text[160];
static const char *describe(const struct schedule *s, const struct schedule_shape *p) {
    snprintf(shape_text, sizeof(shape_text), "%s stages %d stage %d chunks %d micro %d group %d%s%s", s->name,
             p->stages, p->stage, p->chunks, p->micro_batches, p->group, p->forward_only ? " forward" : "",
             p->late_receive ? " late" : "");
    return shape_text;
}

/* Calls `check` for each shape that the row accepts, stage 0. */
static int for_each_shape(void (*check)(const struct schedule *s, struct schedule_shape shape)) {
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

static bool is_compute(const struct action *a) {
    return a->kind == ACTION_FORWARD || a->kind == ACTION_BACKWARD || a->kind == ACTION_WEIGHT;
}
static int cell(const struct action *a) {
    return a->chunk * MAX_MICRO + a->micro_batch;
}

/* ---- one stage's list ---- */

struct owner { /* of slots and buffers: the cell that lives there, or FREE */
    int slot[MAX_CHUNKS][MAX_MICRO], receive[64], send[64], grad[64];
    bool send_flies[64], grad_flies[64], received[64];
    int stage_of_cell[CELLS]; /* 1 after forward, 2 after backward, 3 after weight */
    int alive, peak_alive;    /* frames */
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
    if (!shape->forward_only) o->slot[a->chunk][a->slot] = cell(a), o->alive++;
    if (o->alive > o->peak_alive) o->peak_alive = o->alive;
}

static void free_frame(struct owner *o, const struct action *a) {
    o->slot[a->chunk][a->slot] = FREE;
    o->alive--;
}

static void replay_backward(const struct schedule *s, const struct schedule_shape *shape, struct owner *o,
                            const struct action *a, int i) {
    bool first = shape->stage == 0 && a->chunk == 0;
    bool last = shape->stage == shape->stages - 1 && a->chunk == shape->chunks - 1;
    HOLDS(o->stage_of_cell[cell(a)]++ == 1, "a backward runs once, after its forward");
    HOLDS(o->slot[a->chunk][a->slot] == cell(a), "the frame is still there");
    HOLDS(o->grad[a->buffer] == (last ? FREE : cell(a)) && !o->grad_flies[a->buffer],
          "the gradient is in its buffer, or the buffer is free where backward begins");
    o->grad[a->buffer] = first ? FREE : cell(a);
    if (!s->splits_backward) free_frame(o, a);
}

static void replay_weight(const struct schedule *s, const struct schedule_shape *shape, struct owner *o,
                          const struct action *a, int i) {
    HOLDS(s->splits_backward && o->stage_of_cell[cell(a)]++ == 2,
          "weight gradients come once, after backward");
    HOLDS(o->slot[a->chunk][a->slot] == cell(a), "the frame is still there");
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

/* ---- all stages against each other ---- */

/* Messages as tokens: [up][chunk of the receiver][receiver][micro-batch]. */
struct token {
    bool posted, sent;
};
static struct token tokens[2][MAX_CHUNKS][MAX_STAGES][MAX_MICRO];

static struct token *token_of(const struct schedule_shape *p, int stage, const struct action *a, bool sends) {
    bool up =
        a->kind == ACTION_FORWARD || a->kind == ACTION_SEND_FORWARD || a->kind == ACTION_RECEIVE_FORWARD;
    int chunk = a->chunk, to = stage;
    if (sends) {
        to = up ? stage + 1 : stage - 1;
        if (to == p->stages) to = 0, chunk++;
        if (to < 0) to = p->stages - 1, chunk--;
        EXPECT(chunk >= 0 && chunk < p->chunks, "a message leaves the model");
        EXPECT_EQ(a->peer, to);
    }
    return &tokens[up][chunk][to][a->micro_batch];
}

/* Whether the action can run now; runs it. `flying` holds the token last sent from each buffer. */
static bool try_action(const struct schedule_shape *p, int stage, const struct action *a,
                       struct token *flying[2][64]) {
    bool up = a->kind == ACTION_WAIT_SEND_FORWARD || a->kind == ACTION_SEND_FORWARD, needs;
    struct token *t;
    switch (a->kind) {
    case ACTION_FORWARD:
    case ACTION_BACKWARD:
        needs = a->kind == ACTION_FORWARD ? stage > 0 || a->chunk > 0
                                          : stage < p->stages - 1 || a->chunk < p->chunks - 1;
        t = token_of(p, stage, a, false);
        return !needs || (t->posted && t->sent);
    case ACTION_WEIGHT:
        return true;
    case ACTION_RECEIVE_FORWARD:
    case ACTION_RECEIVE_BACKWARD:
        t = token_of(p, stage, a, false);
        EXPECT(!t->posted, "a message is received twice");
        return t->posted = true;
    case ACTION_SEND_FORWARD:
    case ACTION_SEND_BACKWARD:
        t = flying[up][a->buffer] = token_of(p, stage, a, true);
        EXPECT(!t->sent, "a message is sent twice");
        return t->sent = true;
    default:
        t = flying[up][a->buffer];
        return t && t->posted && t->sent;
    }
}

/* Runs the lists, the last stage first; returns how many actions are left over. */
static int run_tokens(const struct schedule_shape *p, const struct schedule_list *lists) {
    struct token *flying[MAX_STAGES][2][64];
    int next[MAX_STAGES] = {0}, left = 0;
    bool moved = true;
    memset(tokens, 0, sizeof(tokens));
    memset(flying, 0, sizeof(flying));
    while (moved) {
        moved = false;
        for (int r = p->stages - 1; r >= 0; r--)
            while (next[r] < lists[r].count && try_action(p, r, &lists[r].actions[next[r]], flying[r]))
                next[r]++, moved = true;
    }
    for (int r = 0; r < p->stages; r++) left += lists[r].count - next[r];
    return left;
}

static void check_run(const struct schedule *s, struct schedule_shape shape) {
    struct schedule_list lists[MAX_STAGES];
    struct schedule_report report;
    for (shape.stage = 0; shape.stage < shape.stages; shape.stage++)
        schedule_lower(s, &shape, &lists[shape.stage]);
    shape.stage = 0;
    int left = run_tokens(&shape, lists), unpaired = 0;
    for (size_t i = 0; i < sizeof(tokens) / sizeof(struct token); i++) {
        const struct token *t = (const struct token *)tokens + i;
        unpaired += t->posted != t->sent;
    }
    EXPECT(left == 0, "%s: %d actions never run", describe(s, &shape), left);
    EXPECT(unpaired == 0, "%s: %d messages have one side only", describe(s, &shape), unpaired);
    schedule_simulate(s, &shape, &report);
    EXPECT(report.finishes && report.stuck_stage == -1, "%s: simulated as stuck", describe(s, &shape));
    for (int r = 0; r < shape.stages; r++) schedule_free(&lists[r]);
}

TEST(no_shape_deadlocks_when_a_send_ends_only_with_its_receive) {
    for_each_shape(check_run);
}

/* What stage `from` sends to stage `to` in one direction comes off the wire in the order in which it went on,
 * under the same tag: transports that cannot look for a tag work too. */
static void check_order(const struct schedule *s, struct schedule_shape shape) {
    struct schedule_list lists[MAX_STAGES];
    for (shape.stage = 0; shape.stage < shape.stages; shape.stage++)
        schedule_lower(s, &shape, &lists[shape.stage]);
    for (int from = 0; from < shape.stages; from++)
        for (int up = 0; up < 2; up++) {
            int to = up ? (from + 1) % shape.stages : (from + shape.stages - 1) % shape.stages, i = 0,
                pairs = 0;
            enum action_kind sends = up ? ACTION_SEND_FORWARD : ACTION_SEND_BACKWARD;
            enum action_kind receives = up ? ACTION_RECEIVE_FORWARD : ACTION_RECEIVE_BACKWARD;
            for (int j = 0; j < lists[to].count; j++) {
                const struct action *r = &lists[to].actions[j], *t = NULL;
                if (r->kind != receives) continue;
                while (i < lists[from].count && lists[from].actions[i].kind != sends) i++;
                if (i < lists[from].count) t = &lists[from].actions[i++];
                EXPECT(t && t->micro_batch == r->micro_batch && t->tag == r->tag && t->peer == to &&
                           r->peer == from && r->tag >= 0 && r->tag <= COMM_MAX_TAG,
                       "%s: message %d from %d to %d", describe(s, &shape), pairs, from, to);
                pairs++;
            }
            while (i < lists[from].count && lists[from].actions[i].kind != sends) i++;
            EXPECT(i == lists[from].count, "%s: %d sends more than it is asked for", describe(s, &shape),
                   from);
        }
    for (int r = 0; r < shape.stages; r++) schedule_free(&lists[r]);
}

TEST(messages_between_two_stages_keep_their_order_and_tags) {
    for_each_shape(check_order);
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

/* ---- the closed forms of time ---- */

static void check_length(const struct schedule *s, struct schedule_shape shape) {
    struct schedule_report report, plain;
    if (shape.forward_only) return;
    int p = shape.stages, m = shape.micro_batches, v = shape.chunks, expected = 3 * m * v + 3 * (p - 1);
    schedule_simulate(s, &shape, &report);
    if (s->splits_backward) { /* ZB-H1; with fewer micro-batches than stages the way down and up is longer */
        schedule_simulate(schedule_find("1f1b"), &shape, &plain);
        expected = 3 * m + p - 1 > 2 * m + 2 * p - 1 ? 3 * m + p - 1 : 2 * m + 2 * p - 1;
        EXPECT(p == 1 || report.bubble < plain.bubble, "%s: bubble %.3f, 1f1b %.3f", describe(s, &shape),
               report.bubble, plain.bubble);
    }
    EXPECT(report.length == expected, "%s: length %d is not %d", describe(s, &shape), report.length,
           expected);
    EXPECT_NEAR(report.bubble, 1 - 3.0 * m * v / expected, 1e-12);
}

TEST(lengths_and_bubbles_are_those_of_the_papers) {
    for_each_shape(check_length);
}

/* ---- the simulation finds what is wrong ---- */

static const char *accepts(const struct schedule_shape *shape) {
    (void)shape;
    return NULL;
}

static int write_order(struct action *out, const char *order) {
    int n = 0;
    for (; *order; order += 2)
        out[n++] = (struct action){.kind = *order == 'F' ? ACTION_FORWARD : ACTION_BACKWARD,
                                   .micro_batch = order[1] - '0'};
    return n;
}
/* Stage 0 wants the gradient of micro-batch 0 before it makes micro-batch 1; stage 1 the other way round. */
static int make_crossed(const struct schedule_shape *s, struct action *out) {
    return write_order(out, s->stage == 0 ? "F0B0F1B1" : "F0F1B0B1");
}
/* Each order is fine by itself and for eager sends, but two buffers do not hold what stage 1 leaves lying. */
static int make_reversed(const struct schedule_shape *s, struct action *out) {
    return write_order(out, s->stage == 0 ? "F0F1F2F3F4B0B1B2B3B4" : "F4F3F2F1F0B0B1B2B3B4");
}

TEST(a_schedule_that_waits_for_ever_is_reported_with_its_place) {
    struct schedule crossed = {"crossed", false, accepts, make_crossed};
    struct schedule reversed = {"reversed", false, accepts, make_reversed};
    struct schedule_shape shape = {2, 0, 1, 2, 0, false, false};
    struct schedule_report report;
    struct schedule_list list;
    schedule_simulate(&crossed, &shape, &report);
    EXPECT(!report.finishes && report.stuck_stage == 0, "stuck at %d", report.stuck_stage);
    schedule_lower(&crossed, &shape, &list);
    const struct action *a = &list.actions[report.stuck_action];
    EXPECT(a->kind == ACTION_BACKWARD && a->micro_batch == 0, "kind %d of %d", (int)a->kind, a->micro_batch);
    schedule_free(&list);
    shape.micro_batches = 5;
    schedule_simulate(&reversed, &shape, &report);
    EXPECT(!report.finishes && report.stuck_stage == 0, "stuck at %d", report.stuck_stage);
}

/* ---- names, refusals, printing ---- */

TEST(rows_are_found_by_name_and_refuse_what_they_cannot_run) {
    static const char *const names[] = {"1f1b", "interleaved", "zero-bubble"};
    for (int i = 0; i < 3; i++)
        EXPECT(schedule_find(names[i]) && schedule_find(names[i]) == schedule_at(i), "%s", names[i]);
    EXPECT(!schedule_at(3) && !schedule_at(-1) && !schedule_find("gpipe"), "rows that are not there");
    static const struct {
        int row;
        struct schedule_shape shape;
        const char *needs; /* NULL: accepted */
    } cases[] = {
        {0, {4, 0, 2, 8, 0, false, false}, "one model chunk"},
        {2, {4, 0, 2, 8, 0, false, false}, "one model chunk"},
        {0, {1, 0, 1, 1, 0, false, false}, NULL},
        {1, {1, 0, 2, 8, 0, false, false}, "--pipeline-model-parallel-size of at least 2"},
        {1, {4, 0, 1, 8, 0, false, false}, "--num-virtual-stages-per-pipeline-rank"},
        {1, {4, 0, 2, 3, 0, false, false}, "--global-batch-size"},
        {1, {4, 0, 2, 3, 0, true, false}, NULL},
        {1, {4, 0, 2, 9, 0, false, false}, "--global-batch-size"},
        {1, {4, 0, 2, 8, 3, false, false}, "--microbatch-group-size-per-virtual-pipeline-stage"},
        {1, {4, 0, 2, 8, 9, false, false}, "--microbatch-group-size-per-virtual-pipeline-stage"},
        {1, {4, 0, 2, 9, 5, false, false}, NULL},
        {1, {4, 0, 2, 8, 5, false, false}, "a last one of at least --pipeline-model-parallel-size"},
        {1, {2, 0, 4, 7, 5, false, false}, NULL},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        const char *needs = schedule_at(cases[i].row)->refuses(&cases[i].shape);
        EXPECT(!needs == !cases[i].needs, "case %zu: %s", i, needs ? needs : "accepted");
        if (needs && cases[i].needs) EXPECT_CONTAINS(needs, cases[i].needs);
    }
}

static void expect_printed(const char *name, struct schedule_shape shape, const char *expected) {
    char text[4096];
    FILE *f = tmpfile();
    schedule_print(schedule_find(name), &shape, f);
    rewind(f);
    text[fread(text, 1, sizeof(text) - 1, f)] = 0;
    fclose(f);
    EXPECT_STR(text, expected);
}

TEST(the_grid_shows_what_each_stage_does_at_each_unit_of_time) {
    expect_printed("1f1b", (struct schedule_shape){2, 0, 1, 3, 0, false, false},
                   "1f1b, 2 stages, 1 chunk, 3 micro-batches: 12 units of time, 25.0% idle\n"
                   "stage 0: F0 F1 .  .  B0 B0 F2 B1 B1 .  B2 B2 | 2 frames\n"
                   "stage 1: .  F0 B0 B0 F1 B1 B1 F2 B2 B2 .  .  | 1 frame\n");
    expect_printed("zero-bubble", (struct schedule_shape){2, 0, 1, 3, 0, false, false},
                   "zero-bubble, 2 stages, 1 chunk, 3 micro-batches: 10 units of time, 10.0% idle\n"
                   "stage 0: F0 F1 .  B0 W0 F2 B1 W1 B2 W2 | 2 frames\n"
                   "stage 1: .  F0 B0 F1 B1 W0 F2 B2 W1 W2 | 2 frames\n");
    expect_printed("interleaved", (struct schedule_shape){2, 0, 2, 2, 0, true, false},
                   "interleaved, 2 stages, 2 chunks, 2 micro-batches: 5 units of time, 20.0% idle\n"
                   "stage 0: F0a F1a F0b F1b .   | 2 frames\n"
                   "stage 1: .   F0a F1a F0b F1b | 2 frames\n");
    struct schedule crossed = {"crossed", false, accepts, make_crossed};
    struct schedule_shape shape = {2, 0, 1, 2, 0, false, false};
    char text[4096];
    FILE *f = tmpfile();
    schedule_print(&crossed, &shape, f);
    rewind(f);
    text[fread(text, 1, sizeof(text) - 1, f)] = 0;
    fclose(f);
    EXPECT_CONTAINS(text, "stuck: stage 0 waits for ever at action 3, backward of micro-batch 0, chunk 0\n");
}

RUN_TESTS(CASE(each_action_runs_once_in_order_and_nothing_alive_is_overwritten),
          CASE(frames_in_flight_are_those_of_the_papers),
          CASE(the_first_frames_are_the_same_for_any_number_of_micro_batches),
          CASE(no_shape_deadlocks_when_a_send_ends_only_with_its_receive),
          CASE(messages_between_two_stages_keep_their_order_and_tags),
          CASE(a_receive_starts_one_compute_action_ahead_or_late_as_asked),
          CASE(the_last_touch_of_each_chunk_is_marked), CASE(lengths_and_bubbles_are_those_of_the_papers),
          CASE(a_schedule_that_waits_for_ever_is_reported_with_its_place),
          CASE(rows_are_found_by_name_and_refuse_what_they_cannot_run),
          CASE(the_grid_shows_what_each_stage_does_at_each_unit_of_time))
