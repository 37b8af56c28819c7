/* All stages of a schedule run against each other: every action gets the time at which it ends. A send ends
 * when it and its receive have both been started, so nothing is carried that no one asked for. */
#include "parallel/schedule.h"
#include "core/base/mem.h"

struct message {
    int sent, received; /* when the two sides were started; -1: not yet */
};

struct stage_run {
    struct schedule_list list;
    int next, now, busy;
    int *begins;                 /* per action */
    struct message **sending[2]; /* per direction and buffer: what was sent from it last */
};

struct simulation {
    const struct schedule *schedule;
    struct schedule_shape shape;
    struct stage_run *stages;
    struct message *messages[2]; /* forward, backward: per receiving virtual stage and micro-batch */
    bool finishes;
    int length;
};

static int max(int a, int b) {
    return a > b ? a : b;
}

/* The message that (stage, chunk) receives in the direction, or that it sends when `sends`. */
static struct message *message_of(struct simulation *s, int stage, const struct action *a, bool up,
                                  bool sends) {
    int virtual_stage = a->chunk * s->shape.stages + stage + (sends ? (up ? 1 : -1) : 0);
    return &s->messages[!up][(size_t)virtual_stage * (size_t)s->shape.micro_batches + (size_t)a->micro_batch];
}

static int arrival(const struct message *m) {
    return m->sent < 0 || m->received < 0 ? -1 : max(m->sent, m->received);
}

static int units(const struct simulation *s, enum action_kind kind) {
    return kind == ACTION_BACKWARD && !s->schedule->splits_backward ? 2 : 1;
}

/* Runs the next action of the stage; false when it has to wait for another stage. */
static bool advance(struct simulation *s, int stage) {
    struct stage_run *r = &s->stages[stage];
    const struct action *a = &r->list.actions[r->next];
    bool up = a->kind == ACTION_FORWARD || a->kind == ACTION_RECEIVE_FORWARD ||
              a->kind == ACTION_SEND_FORWARD || a->kind == ACTION_WAIT_SEND_FORWARD;
    struct schedule_shape shape = s->shape;
    shape.stage = stage;
    int arrived = r->now;
    r->begins[r->next] = r->now;
    switch (a->kind) {
    case ACTION_FORWARD:
    case ACTION_BACKWARD:
    case ACTION_WEIGHT:
        if (schedule_receives(&shape, a)) arrived = arrival(message_of(s, stage, a, up, false));
        if (arrived < 0) return false;
        r->begins[r->next] = max(r->now, arrived);
        r->now = r->begins[r->next] + units(s, a->kind);
        r->busy += units(s, a->kind);
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
        arrived = arrival(r->sending[!up][a->buffer]);
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
        r->begins = mem_new_array(int, (size_t)r->list.count, "schedule simulation");
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

void schedule_simulate(const struct schedule *schedule, const struct schedule_shape *shape,
                       struct schedule_report *out) {
    struct simulation s;
    simulation_open(&s, schedule, shape);
    simulation_run(&s);
    *out = (struct schedule_report){
        .finishes = s.finishes, .length = s.length, .stuck_stage = -1, .stuck_action = -1};
    double busy = 0;
    for (int i = 0; i < shape->stages; i++) {
        busy += s.stages[i].busy;
        if (out->stuck_stage < 0 && s.stages[i].next < s.stages[i].list.count)
            out->stuck_stage = i, out->stuck_action = s.stages[i].next;
    }
    if (s.length) out->bubble = 1 - busy / ((double)s.length * shape->stages);
    simulation_close(&s);
}
