/* The lowering pass: from the order of compute actions to a list that an interpreter can run as it stands.
 *
 * A receive is started before the compute action that precedes its consumer, so that the message travels
 * while that one computes. A send is started right after its producer. A wait stands right before the first
 * action that writes the buffer again, and takes the buffer whose send is oldest: a stage stands still as
 * late as it can. That this never ends in a ring of stages that wait for each other is not argued here:
 * schedule_simulate finds out for the shape at hand, and the unit test for thousands. */
#include "parallel/schedule.h"
#include "core/base/mem.h"
#include "parallel/comm/comm.h"

enum buffer_state { BUFFER_FREE, BUFFER_HELD, BUFFER_SENDING };

struct pool {
    int count;
    enum buffer_state *state;
    int *sent; /* when its last send began: a running number */
};

struct lowering {
    const struct schedule_shape *shape;
    struct schedule_list *out;
    struct pool receive, send, grad;
    int sends;
    int *slot, *shared_slot, *receive_buffer, *grad_buffer; /* per chunk and micro-batch; -1: none */
    bool *slot_used;                                        /* per chunk and slot */
    bool *shared_used;
};

static void pool_open(struct pool *p, int count) {
    p->count = count;
    p->state = mem_new_array(enum buffer_state, (size_t)count, "schedule buffers");
    p->sent = mem_new_array(int, (size_t)count, "schedule buffers");
}

static void pool_close(struct pool *p) {
    mem_free(p->state);
    mem_free(p->sent);
}

static void emit(struct lowering *l, const struct action *a) {
    l->out->actions[l->out->count++] = *a;
}

static void emit_wait(struct lowering *l, struct pool *p, int buffer) {
    enum action_kind kind = p == &l->send ? ACTION_WAIT_SEND_FORWARD : ACTION_WAIT_SEND_BACKWARD;
    emit(l, &(struct action){.kind = kind, .slot = -1, .shared_slot = -1, .peer = -1, .buffer = buffer});
    p->state[buffer] = BUFFER_FREE;
}

static int oldest_send(const struct pool *p) {
    int best = -1;
    for (int i = 0; i < p->count; i++)
        if (p->state[i] == BUFFER_SENDING && (best < 0 || p->sent[i] < p->sent[best])) best = i;
    return best;
}

/* A free buffer, the lowest; otherwise the one whose send has had most time, behind a wait. */
static int take_buffer(struct lowering *l, struct pool *p) {
    int buffer = 0;
    while (buffer < p->count && p->state[buffer] != BUFFER_FREE) buffer++;
    if (buffer == p->count) {
        buffer = oldest_send(p);
        CHECK(buffer >= 0, "stage %d of %d needs more than %d buffers", l->shape->stage, l->shape->stages,
              p->count);
        emit_wait(l, p, buffer);
    }
    p->state[buffer] = BUFFER_HELD;
    return buffer;
}

/* Two messages that are under way between two stages at the same time are far fewer than there are tags. */
static int message_tag(const struct schedule_shape *s, const struct action *a, int receiving_chunk, bool up) {
    int64_t number = (int64_t)a->micro_batch * s->chunks + receiving_chunk;
    return (int)((number * 2 + up) % (COMM_MAX_TAG + 1));
}

static void emit_send(struct lowering *l, struct pool *p, const struct action *compute, int buffer) {
    int stages = l->shape->stages, stage = l->shape->stage, chunk = compute->chunk;
    bool up = p == &l->send;
    if (up && stage == stages - 1) chunk++; /* round to the first stage */
    if (!up && stage == 0) chunk--;
    emit(l, &(struct action){.kind = up ? ACTION_SEND_FORWARD : ACTION_SEND_BACKWARD,
                             .chunk = compute->chunk,
                             .micro_batch = compute->micro_batch,
                             .slot = -1,
                             .shared_slot = -1,
                             .peer = up ? (stage + 1) % stages : (stage + stages - 1) % stages,
                             .tag = message_tag(l->shape, compute, chunk, up),
                             .buffer = buffer});
    p->state[buffer] = BUFFER_SENDING;
    p->sent[buffer] = l->sends++;
}

static size_t at(const struct lowering *l, const struct action *a) {
    return (size_t)a->chunk * (size_t)l->shape->micro_batches + (size_t)a->micro_batch;
}

/* ---- slots ---- */

static int lowest_free(bool *used, int *count_p) {
    int slot = 0;
    while (used[slot]) slot++;
    used[slot] = true;
    if (slot >= *count_p) *count_p = slot + 1;
    return slot;
}

static bool *used_of_chunk(const struct lowering *l, int chunk) {
    return l->slot_used + (size_t)chunk * (size_t)l->shape->micro_batches;
}

static void take_slots(struct lowering *l, struct action *a) {
    a->slot = lowest_free(used_of_chunk(l, a->chunk), &l->out->num_slots[a->chunk]);
    a->shared_slot = lowest_free(l->shared_used, &l->out->num_shared_slots);
    l->slot[at(l, a)] = a->slot;
    l->shared_slot[at(l, a)] = a->shared_slot;
}

/* Of a later action of the same micro-batch. */
static void find_slots(const struct lowering *l, struct action *a) {
    a->slot = l->slot[at(l, a)];
    a->shared_slot = l->shared_slot[at(l, a)];
    CHECK(a->slot >= 0, "backward of micro-batch %d comes before its forward", a->micro_batch);
}

static void free_slots(struct lowering *l, const struct action *a) {
    used_of_chunk(l, a->chunk)[a->slot] = false;
    l->shared_used[a->shared_slot] = false;
}

/* ---- receives ---- */

bool schedule_receives(const struct schedule_shape *s, const struct action *a) {
    if (a->kind == ACTION_FORWARD) return s->stage > 0 || a->chunk > 0;
    return a->kind == ACTION_BACKWARD && (s->stage < s->stages - 1 || a->chunk < s->chunks - 1);
}

bool schedule_sends(const struct schedule_shape *s, const struct action *a) {
    if (a->kind == ACTION_FORWARD) return s->stage < s->stages - 1 || a->chunk < s->chunks - 1;
    return a->kind == ACTION_BACKWARD && (s->stage > 0 || a->chunk > 0);
}

/* Starts receiving what `consumer` needs. */
static void emit_receive(struct lowering *l, const struct action *consumer) {
    int stages = l->shape->stages, stage = l->shape->stage;
    bool up = consumer->kind == ACTION_FORWARD;
    int buffer = take_buffer(l, up ? &l->receive : &l->grad);
    (up ? l->receive_buffer : l->grad_buffer)[at(l, consumer)] = buffer;
    emit(l, &(struct action){.kind = up ? ACTION_RECEIVE_FORWARD : ACTION_RECEIVE_BACKWARD,
                             .chunk = consumer->chunk,
                             .micro_batch = consumer->micro_batch,
                             .slot = -1,
                             .shared_slot = -1,
                             .peer = up ? (stage + stages - 1) % stages : (stage + 1) % stages,
                             .tag = message_tag(l->shape, consumer, consumer->chunk, up),
                             .buffer = buffer});
}

/* Messages from the last stage to the first (and gradients back) belong to the next chunk. They are made
 * group - stages actions of their kind before they are needed, and wait in buffers of the receiver: with more
 * than a few of them the sender would stand still, or for ever. */
static int early(const struct schedule_shape *s, enum action_kind kind) {
    bool wraps = s->chunks > 1 && s->stage == (kind == ACTION_FORWARD ? 0 : s->stages - 1);
    int group = schedule_group(s);
    return wraps && group > s->stages ? group - s->stages : 0;
}

/* For each compute action the one before which its receive is started: the action of its kind `early` places
 * ahead, and one compute action ahead of that unless receives are late. */
static void place_receives(const struct schedule_shape *s, const struct action *compute, int count,
                           int *before) {
    int *of_kind = mem_new_array(int, (size_t)count, "schedule receives");
    for (int kind = ACTION_FORWARD; kind <= ACTION_BACKWARD; kind++) {
        int n = 0, ahead = early(s, (enum action_kind)kind);
        for (int i = 0; i < count; i++) {
            if (compute[i].kind != (enum action_kind)kind) continue;
            of_kind[n] = i;
            int place = of_kind[n > ahead ? n - ahead : 0];
            before[i] = s->late_receive || place == 0 ? place : place - 1;
            n++;
        }
    }
    mem_free(of_kind);
}

/* ---- the pass ---- */

static void lower_forward(struct lowering *l, struct action a) {
    int buffer = l->receive_buffer[at(l, &a)];
    bool sends = schedule_sends(l->shape, &a);
    a.receive_buffer = buffer;
    if (sends) a.send_buffer = take_buffer(l, &l->send);
    take_slots(l, &a);
    if (l->shape->forward_only) free_slots(l, &a);
    emit(l, &a);
    if (buffer >= 0) l->receive.state[buffer] = BUFFER_FREE;
    if (sends) emit_send(l, &l->send, &a, a.send_buffer);
}

static void lower_backward(struct lowering *l, struct action a, bool splits) {
    int *buffer = &l->grad_buffer[at(l, &a)];
    if (*buffer < 0) *buffer = take_buffer(l, &l->grad); /* the last virtual stage makes the first gradient */
    a.buffer = *buffer;
    find_slots(l, &a);
    if (!splits) free_slots(l, &a);
    emit(l, &a);
    if (schedule_sends(l->shape, &a))
        emit_send(l, &l->grad, &a, a.buffer);
    else
        l->grad.state[a.buffer] = BUFFER_FREE;
}

static void lower_weight(struct lowering *l, struct action a) {
    find_slots(l, &a);
    free_slots(l, &a);
    emit(l, &a);
}

static void mark_last_of_chunk(struct schedule_list *list, enum action_kind kind) {
    for (int chunk = 0; chunk < list->chunks; chunk++)
        for (int i = list->count - 1; i >= 0; i--)
            if (list->actions[i].kind == kind && list->actions[i].chunk == chunk) {
                list->actions[i].last_of_chunk = true;
                break;
            }
}

/* Compute actions of the schedule, without those that evaluation leaves out. */
static int make_compute(const struct schedule *schedule, const struct schedule_shape *shape,
                        struct action *actions) {
    int made = schedule->make(shape, actions), count = 0;
    for (int i = 0; i < made; i++) {
        if (shape->forward_only && actions[i].kind != ACTION_FORWARD) continue;
        struct action a = actions[i];
        a.slot = a.shared_slot = a.peer = a.buffer = a.receive_buffer = a.send_buffer = -1;
        actions[count++] = a;
    }
    return count;
}

static void lower_all(struct lowering *l, const struct schedule *schedule, const struct action *compute,
                      int count) {
    int *before = mem_new_array(int, (size_t)count, "schedule receives");
    place_receives(l->shape, compute, count, before);
    int posted[2] = {0, 0}; /* per kind: actions whose receive was looked at */
    for (int i = 0; i < count; i++) {
        /* receives of one kind are started in the order of their consumers, which `before` keeps */
        for (int kind = ACTION_FORWARD; kind <= ACTION_BACKWARD; kind++) {
            int *j = &posted[kind];
            for (; *j < count; ++*j) {
                if (compute[*j].kind != (enum action_kind)kind) continue;
                if (before[*j] > i) break;
                if (schedule_receives(l->shape, &compute[*j])) emit_receive(l, &compute[*j]);
            }
        }
        switch (compute[i].kind) {
        case ACTION_FORWARD:
            lower_forward(l, compute[i]);
            break;
        case ACTION_BACKWARD:
            lower_backward(l, compute[i], schedule->splits_backward);
            break;
        default:
            lower_weight(l, compute[i]);
        }
    }
    mem_free(before);
    while (oldest_send(&l->send) >= 0) emit_wait(l, &l->send, oldest_send(&l->send));
    while (oldest_send(&l->grad) >= 0) emit_wait(l, &l->grad, oldest_send(&l->grad));
}

void schedule_lower(const struct schedule *schedule, const struct schedule_shape *shape,
                    struct schedule_list *out) {
    const char *refused = schedule->refuses(shape);
    CHECK(!refused, "%s needs %s", schedule->name, refused);
    size_t cells = (size_t)shape->chunks * (size_t)shape->micro_batches;
    struct action *compute = mem_new_array(struct action, cells * 3 + 1, "schedule actions");
    int count = make_compute(schedule, shape, compute);
    *out = (struct schedule_list){.chunks = shape->chunks};
    out->receive_buffers = SCHEDULE_RECEIVE_BUFFERS + early(shape, ACTION_FORWARD);
    out->send_buffers = SCHEDULE_SEND_BUFFERS;
    out->grad_buffers = SCHEDULE_GRAD_BUFFERS + early(shape, ACTION_BACKWARD);
    /* each compute action brings at most a receive, a send and two waits; each buffer a last wait */
    size_t room = (size_t)count * 5 + (size_t)(out->send_buffers + out->grad_buffers);
    out->actions = mem_new_array(struct action, room, "schedule actions");
    out->num_slots = mem_new_array(int, (size_t)shape->chunks, "schedule slots");
    struct lowering l = {.shape = shape, .out = out};
    pool_open(&l.receive, out->receive_buffers);
    pool_open(&l.send, out->send_buffers);
    pool_open(&l.grad, out->grad_buffers);
    l.slot = mem_new_array(int, cells, "schedule slots");
    l.receive_buffer = mem_new_array(int, cells, "schedule buffers");
    l.grad_buffer = mem_new_array(int, cells, "schedule buffers");
    l.shared_slot = mem_new_array(int, cells, "schedule slots");
    l.slot_used = mem_new_array(bool, cells, "schedule slots");
    l.shared_used = mem_new_array(bool, cells, "schedule slots");
    for (size_t i = 0; i < cells; i++) l.slot[i] = l.receive_buffer[i] = l.grad_buffer[i] = -1;
    lower_all(&l, schedule, compute, count);
    if (!shape->forward_only)
        mark_last_of_chunk(out, schedule->splits_backward ? ACTION_WEIGHT : ACTION_BACKWARD);
    pool_close(&l.receive);
    pool_close(&l.send);
    pool_close(&l.grad);
    mem_free(l.slot);
    mem_free(l.receive_buffer);
    mem_free(l.grad_buffer);
    mem_free(l.shared_slot);
    mem_free(l.slot_used);
    mem_free(l.shared_used);
    mem_free(compute);
}

void schedule_free(struct schedule_list *list) {
    mem_free(list->actions);
    mem_free(list->num_slots);
    *list = (struct schedule_list){0};
}
