/* All stages' lists against each other, over thousands of shapes: a run with tokens for messages, which knows
 * nothing of how the lists were made, and closed forms of length and idle time from the papers. */
#include "parallel/comm/comm.h"
#include "tests/unit/schedule_shapes.h"

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

static void print_to_text(const struct schedule *s, struct schedule_shape shape, char *text,
                          size_t capacity) {
    FILE *f = tmpfile();
    schedule_print(s, &shape, f);
    rewind(f);
    text[fread(text, 1, capacity - 1, f)] = 0;
    fclose(f);
}

static void expect_printed(const char *name, struct schedule_shape shape, const char *expected) {
    char text[4096];
    print_to_text(schedule_find(name), shape, text, sizeof(text));
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
                   "stage 0: F0a F1a F0b F1b .   | 1 frame\n"
                   "stage 1: .   F0a F1a F0b F1b | 1 frame\n");
    struct schedule crossed = {"crossed", false, accepts, make_crossed};
    struct schedule_shape shape = {2, 0, 1, 2, 0, false, false};
    char text[4096];
    print_to_text(&crossed, shape, text, sizeof(text));
    EXPECT_CONTAINS(text, "stuck: stage 0 waits for ever at action 3, backward of micro-batch 0, chunk 0\n");
}

/* From the repository's root, where the tests run. */
TEST(the_grids_in_the_manual_are_those_that_are_printed) {
    static char manual[40000], text[8192];
    static const struct schedule_shape shapes[] = {{4, 0, 1, 8, 0, false, false},
                                                   {4, 0, 2, 8, 0, false, false}};
    FILE *f = fopen("docs/schedules.md", "r");
    EXPECT(f != NULL, "docs/schedules.md cannot be opened");
    if (!f) return;
    manual[fread(manual, 1, sizeof(manual) - 1, f)] = 0;
    fclose(f);
    for (int row = 0; schedule_at(row); row++) {
        print_to_text(schedule_at(row), shapes[!strcmp(schedule_at(row)->name, "interleaved")], text,
                      sizeof(text));
        EXPECT_CONTAINS(manual, text);
    }
}

RUN_TESTS(CASE(no_shape_deadlocks_when_a_send_ends_only_with_its_receive),
          CASE(messages_between_two_stages_keep_their_order_and_tags),
          CASE(lengths_and_bubbles_are_those_of_the_papers),
          CASE(a_schedule_that_waits_for_ever_is_reported_with_its_place),
          CASE(rows_are_found_by_name_and_refuse_what_they_cannot_run),
          CASE(the_grid_shows_what_each_stage_does_at_each_unit_of_time),
          CASE(the_grids_in_the_manual_are_those_that_are_printed))
