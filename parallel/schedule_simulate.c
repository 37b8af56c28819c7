/* All stages of a schedule run against each other: every action gets the time at which it ends. A send ends
 * when it and its receive have both been started, so nothing is carried that no one asked for. */
#include "parallel/schedule.h"
#include "core/base/mem.h"
#include "core/base/str.h"

struct message {
    double sent, received; /* when the two sides were started; -1: not yet */
};

struct stage_run {
    struct schedule_list list;
    int next;
    double now, busy;
    double *begins;              /* per action */
    struct message **sending[2]; /* per direction and buffer: what was sent from it last */
};

struct simulation {
    const struct schedule *schedule;
    struct schedule_shape shape;
    const struct schedule_times *times; /* NULL: units */
    struct stage_run *stages;
    struct message *messages[2]; /* forward, backward: per receiving virtual stage and micro-batch */
    bool finishes;
    double length;
};

static double max(double a, double b) {
    return a > b ? a : b;
}

/* The message that (stage, chunk) receives in the direction, or that it sends when `sends`. */
static struct message *message_of(struct simulation *s, int stage, const struct action *a, bool up,
                                  bool sends) {
    int virtual_stage = a->chunk * s->shape.stages + stage + (sends ? (up ? 1 : -1) : 0);
    return &s->messages[!up][(size_t)virtual_stage * (size_t)s->shape.micro_batches + (size_t)a->micro_batch];
}

static int units(const struct simulation *s, enum action_kind kind) {
    return kind == ACTION_BACKWARD && !s->schedule->splits_backward ? 2 : 1;
}

static double arrival(const struct simulation *s, const struct message *m) {
    if (m->sent < 0 || m->received < 0) return -1;
    return max(m->sent, m->received) + (s->times ? s->times->message : 0);
}

static double duration(const struct simulation *s, int stage, const struct action *a) {
    int at = a->chunk * s->shape.stages + stage;
    if (!s->times) return units(s, a->kind);
    return a->kind == ACTION_FORWARD    ? s->times->forward[at]
           : a->kind == ACTION_BACKWARD ? s->times->backward[at]
                                        : s->times->weight[at];
}

/* Runs the next action of the stage; false when it has to wait for another stage. */
static bool advance(struct simulation *s, int stage) {
    struct stage_run *r = &s->stages[stage];
    const struct action *a = &r->list.actions[r->next];
    bool up = a->kind == ACTION_FORWARD || a->kind == ACTION_RECEIVE_FORWARD ||
              a->kind == ACTION_SEND_FORWARD || a->kind == ACTION_WAIT_SEND_FORWARD;
    struct schedule_shape shape = s->shape;
    shape.stage = stage;
    double arrived = r->now;
    r->begins[r->next] = r->now;
    switch (a->kind) {
    case ACTION_FORWARD:
    case ACTION_BACKWARD:
    case ACTION_WEIGHT:
        if (schedule_receives(&shape, a)) arrived = arrival(s, message_of(s, stage, a, up, false));
        if (arrived < 0) return false;
        r->begins[r->next] = max(r->now, arrived);
        r->now = r->begins[r->next] + duration(s, stage, a);
        r->busy += duration(s, stage, a);
        break;
    case ACTION_RECEIVE_FORWARD:
    case ACTION_RECEIVE_BACKWARD:
        message_of(s, stage, a, up, false)->received = r->now;
        break;
    case ACTION_SEND_FORWARD:
    case ACTION_SEND_BACKWARD:
        r->sending[!up][a->buffer] = message_of(s, stage, a, up, true);
        r->sending[!up][a->buffer]->sent = r->now;
        break;
    case ACTION_WAIT_SEND_FORWARD:
    case ACTION_WAIT_SEND_BACKWARD:
        arrived = arrival(s, r->sending[!up][a->buffer]);
        if (arrived < 0) return false;
        r->now = max(r->now, arrived);
        break;
    case ACTION_KIND_COUNT:
        CHECK(false, "no such action");
    }
    r->next++;
    return true;
}

static void simulation_open(struct simulation *s, const struct schedule *schedule,
                            const struct schedule_shape *shape) {
    size_t cells = (size_t)shape->stages * (size_t)shape->chunks * (size_t)shape->micro_batches;
    *s = (struct simulation){.schedule = schedule, .shape = *shape};
    for (int up = 0; up < 2; up++) {
        s->messages[up] = mem_new_array(struct message, cells, "schedule simulation");
        for (size_t i = 0; i < cells; i++) s->messages[up][i] = (struct message){-1, -1};
    }
    s->stages = mem_new_array(struct stage_run, (size_t)shape->stages, "schedule simulation");
    for (int i = 0; i < shape->stages; i++) {
        struct stage_run *r = &s->stages[i];
        s->shape.stage = i;
        schedule_lower(schedule, &s->shape, &r->list);
        r->begins = mem_new_array(double, (size_t)r->list.count, "schedule simulation");
        r->sending[0] = mem_new_array(struct message *, (size_t)r->list.send_buffers, "schedule simulation");
        r->sending[1] = mem_new_array(struct message *, (size_t)r->list.grad_buffers, "schedule simulation");
    }
}

static void simulation_run(struct simulation *s) {
    bool moved = true;
    while (moved) {
        moved = false;
        for (int i = 0; i < s->shape.stages; i++)
            while (s->stages[i].next < s->stages[i].list.count && advance(s, i)) moved = true;
    }
    s->finishes = true;
    for (int i = 0; i < s->shape.stages; i++) {
        s->finishes = s->finishes && s->stages[i].next == s->stages[i].list.count;
        s->length = max(s->length, s->stages[i].now);
    }
}

static void simulation_close(struct simulation *s) {
    for (int i = 0; i < s->shape.stages; i++) {
        schedule_free(&s->stages[i].list);
        mem_free(s->stages[i].begins);
        mem_free(s->stages[i].sending[0]);
        mem_free(s->stages[i].sending[1]);
    }
    mem_free(s->stages);
    mem_free(s->messages[0]);
    mem_free(s->messages[1]);
}

static struct schedule_report report_of(const struct simulation *s) {
    struct schedule_report report = {s->finishes, s->times ? 0 : (int)s->length, 0, -1, -1};
    double busy = 0;
    for (int i = s->shape.stages - 1; i >= 0; i--) {
        const struct stage_run *r = &s->stages[i];
        busy += r->busy;
        if (r->next < r->list.count) report.stuck_stage = i, report.stuck_action = r->next;
    }
    if (s->length > 0) report.bubble = 1 - busy / (s->length * s->shape.stages);
    return report;
}

double schedule_simulate_times(const struct schedule *schedule, const struct schedule_shape *shape,
                               const struct schedule_times *times, struct schedule_report *out) {
    struct simulation s;
    simulation_open(&s, schedule, shape);
    s.times = times;
    simulation_run(&s);
    *out = report_of(&s);
    double length = s.length;
    simulation_close(&s);
    return length;
}

void schedule_simulate(const struct schedule *schedule, const struct schedule_shape *shape,
                       struct schedule_report *out) {
    schedule_simulate_times(schedule, shape, NULL, out);
}

/* ---- the grid ---- */

static void print_cells(struct str *line, int *time, int until, const char *label, int width) {
    for (; *time < until; ++*time) str_printf(line, " %-*s", width, label);
}

static void print_stage(const struct simulation *s, int stage, FILE *out) {
    const struct stage_run *r = &s->stages[stage];
    struct str line = {0};
    char label[40];
    int time = 0, frames = r->list.num_shared_slots, micro = s->shape.micro_batches - 1;
    int width = snprintf(label, sizeof(label), "F%d", micro) + (s->shape.chunks > 1);
    str_printf(&line, "stage %d:", stage);
    for (int i = 0; i < r->next; i++) {
        const struct action *a = &r->list.actions[i];
        if (a->kind != ACTION_FORWARD && a->kind != ACTION_BACKWARD && a->kind != ACTION_WEIGHT) continue;
        char kind = a->kind == ACTION_FORWARD ? 'F' : a->kind == ACTION_BACKWARD ? 'B' : 'W';
        if (s->shape.chunks > 1)
            snprintf(label, sizeof(label), "%c%d%c", kind, a->micro_batch, 'a' + a->chunk % 26);
        else
            snprintf(label, sizeof(label), "%c%d", kind, a->micro_batch);
        print_cells(&line, &time, (int)r->begins[i], ".", width);
        print_cells(&line, &time, time + units(s, a->kind), label, width);
    }
    print_cells(&line, &time, (int)s->length, ".", width);
    fprintf(out, "%s | %d frame%s\n", line.data, frames, frames == 1 ? "" : "s");
    str_free(&line);
}

void schedule_print(const struct schedule *schedule, const struct schedule_shape *shape, FILE *out) {
    static const char *const kinds[ACTION_KIND_COUNT] = {
        "forward",      "backward",      "weight gradient",       "receive forward",       "receive backward",
        "send forward", "send backward", "wait for send forward", "wait for send backward"};
    struct simulation s;
    simulation_open(&s, schedule, shape);
    simulation_run(&s);
    struct schedule_report report = report_of(&s);
    fprintf(out, "%s, %d stage%s, %d chunk%s, %d micro-batch%s: %d units of time, %.1f%% idle\n",
            schedule->name, shape->stages, shape->stages == 1 ? "" : "s", shape->chunks,
            shape->chunks == 1 ? "" : "s", shape->micro_batches, shape->micro_batches == 1 ? "" : "es",
            report.length, 100 * report.bubble);
    for (int i = 0; i < shape->stages; i++) print_stage(&s, i, out);
    if (!report.finishes) {
        const struct action *a = &s.stages[report.stuck_stage].list.actions[report.stuck_action];
        fprintf(out, "stuck: stage %d waits for ever at action %d, %s of micro-batch %d, chunk %d\n",
                report.stuck_stage, report.stuck_action, kinds[a->kind], a->micro_batch, a->chunk);
    }
    simulation_close(&s);
}
