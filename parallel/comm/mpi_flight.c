/* The operations as state machines. A flight has two lists of pieces, what it sends and what it receives,
 * each issued strictly in order with at most MPI_WINDOW in the air. Both lists have one order that all
 * members share, (phase, piece, step): in step s a member sends to rank + s and receives from rank - s. So
 * the first piece of the whole group that is not yet delivered has always been issued on both sides: no
 * deadlock.
 *
 *   reduce-scatter  member r receives the other members' parts of slice r, chunk by chunk, into one of two
 *                   halves of the staging, sums them in rank order and writes its slice
 *   all-reduce      the same, then every member sends its slice to all; small ones send all to all at once
 *   all-to-all      one block for each member, or (comm_exchange) a list of pieces, in the order of the lists
 *   broadcast       a binomial tree, piece by piece
 *   barrier         rounds at distance 1, 2, 4, ... */
#include "parallel/comm/mpi_engine.h"
#include "parallel/comm/sum.h"
#include <string.h>

enum next { NEXT_OVER, NEXT_LATER, NEXT_PIECE };

struct piece {
    char *data;
    int64_t bytes, index; /* the cursor's piece */
    int member;
};

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static struct mpi_group *group_of(const struct flight *f) {
    return f->request->comm->state;
}

static bool is_small(const struct comm_request *q) {
    return q->kind == COMM_KIND_ALL_REDUCE &&
           q->count * (int64_t)comm_dtype_bytes(q->dtype) <= COMM_SMALL_BYTES;
}

static int partner(const struct comm *comm, int step, bool send) {
    return (comm->rank + (send ? step : comm->size - step)) % comm->size;
}

/* Slice `member` of the buffer: the part that this member reduces, or gives. */
struct slice {
    int64_t begin, count;
};
static struct slice slice_of(const struct comm_request *q, int member) {
    if (q->kind != COMM_KIND_ALL_REDUCE) return (struct slice){member * q->count, q->count};
    int size = q->comm->size;
    int64_t each = (q->count + size - 1) / size, begin = least(member * each, q->count);
    return (struct slice){begin, least(each, q->count - begin)};
}

static char *staging_of(const struct flight *f, int64_t half, int member) {
    return group_of(f)->staging +
           (half * f->request->comm->size + member) * comm_chunk_bytes(f->request->comm->size);
}

static void cursor_step(struct flight_cursor *c, int size) {
    if (++c->step < size) return;
    c->step = 1;
    c->piece++;
}

/* The smallest index of a piece that has not arrived yet. */
static int64_t arrived(const struct flight *f) {
    int64_t first = f->receive.over ? INT64_MAX : f->receive.piece;
    for (int i = MPI_WINDOW; i < 2 * MPI_WINDOW; i++)
        if (f->handles[i] != MPI_REQUEST_NULL) first = least(first, f->slots[i].piece);
    return first;
}

/* ---- the lists of pieces ---- */

static enum next next_small(struct flight *f, struct flight_cursor *c, bool send, struct piece *p) {
    struct comm_request *q = f->request;
    if (c->piece > 0 || !q->count) return NEXT_OVER;
    p->member = partner(q->comm, c->step, send);
    p->data = staging_of(f, 0, send ? q->comm->rank : p->member);
    p->bytes = q->count * (int64_t)comm_dtype_bytes(q->dtype);
    p->index = c->piece;
    cursor_step(c, q->comm->size);
    return NEXT_PIECE;
}

static enum next next_reduce(struct flight *f, struct flight_cursor *c, bool send, struct piece *p) {
    struct comm_request *q = f->request;
    size_t bytes = comm_dtype_bytes(q->dtype);
    int64_t longest = slice_of(q, 0).count;
    for (;; cursor_step(c, q->comm->size)) {
        int64_t begin = c->piece * f->chunk_count;
        if (begin >= longest) return NEXT_OVER;
        p->member = partner(q->comm, c->step, send);
        struct slice slice = slice_of(q, send ? p->member : q->comm->rank);
        int64_t n = least(f->chunk_count, slice.count - begin);
        if (n <= 0) continue; /* the last slices may be shorter */
        if (!send && f->summed[c->piece & 1] != c->piece / 2) return NEXT_LATER;
        p->data = send ? (char *)q->buf + (size_t)(slice.begin + begin) * bytes
                       : staging_of(f, c->piece & 1, p->member);
        p->bytes = n * (int64_t)bytes;
        p->index = c->piece;
        cursor_step(c, q->comm->size);
        return NEXT_PIECE;
    }
}

static enum next next_gather(struct flight *f, struct flight_cursor *c, bool send, struct piece *p) {
    struct comm_request *q = f->request;
    int64_t bytes = (int64_t)comm_dtype_bytes(q->dtype), longest = slice_of(q, 0).count * bytes;
    for (;; cursor_step(c, q->comm->size)) {
        int64_t begin = c->piece * MPI_PIECE_BYTES;
        if (begin >= longest) return NEXT_OVER;
        p->member = partner(q->comm, c->step, send);
        struct slice slice = slice_of(q, send ? q->comm->rank : p->member);
        p->bytes = least(MPI_PIECE_BYTES, slice.count * bytes - begin);
        if (p->bytes <= 0) continue;
        p->data = (char *)q->buf + slice.begin * bytes + begin;
        p->index = c->piece;
        cursor_step(c, q->comm->size);
        return NEXT_PIECE;
    }
}

static bool is_reduced(const struct flight *f) {
    int64_t own = slice_of(f->request, f->request->comm->rank).count;
    return f->summed[0] + f->summed[1] == (own + f->chunk_count - 1) / f->chunk_count;
}

static enum next next_all_reduce(struct flight *f, struct flight_cursor *c, bool send, struct piece *p) {
    if (is_small(f->request)) return next_small(f, c, send, p);
    if (c->phase == 0) {
        enum next next = next_reduce(f, c, send, p);
        if (next != NEXT_OVER) return next;
        *c = (struct flight_cursor){.phase = 1, .step = 1};
    }
    /* a slice is sent when it is summed, and arrives where what lay there has been sent */
    if (send ? !is_reduced(f) : f->send.phase == 0 || f->reduce_sends_open) return NEXT_LATER;
    return next_gather(f, c, send, p);
}

static int64_t block_count(const struct comm_request *q, int member, bool send) {
    const int64_t *counts = send ? q->send_counts : q->receive_counts;
    return counts ? counts[member] : q->count;
}

static char *block_at(const struct comm_request *q, int member, bool send) {
    const int64_t *offsets = send ? q->send_offsets : q->receive_offsets;
    int64_t begin = offsets ? offsets[member] : member * q->count;
    const char *base = send ? q->send : q->buf;
    return (char *)(uintptr_t)base + begin * (int64_t)comm_dtype_bytes(q->dtype);
}

static enum next next_exchange(struct flight *f, struct flight_cursor *c, bool send, struct piece *p) {
    struct comm_request *q = f->request;
    int64_t bytes = (int64_t)comm_dtype_bytes(q->dtype), longest = 0;
    for (int i = 0; i < q->comm->size; i++)
        if (i != q->comm->rank && block_count(q, i, send) > longest) longest = block_count(q, i, send);
    for (;; cursor_step(c, q->comm->size)) {
        int64_t begin = c->piece * MPI_PIECE_BYTES;
        if (begin >= longest * bytes) return NEXT_OVER;
        p->member = partner(q->comm, c->step, send);
        p->bytes = least(MPI_PIECE_BYTES, block_count(q, p->member, send) * bytes - begin);
        if (p->bytes <= 0) continue;
        p->data = block_at(q, p->member, send) + begin;
        p->index = c->piece;
        cursor_step(c, q->comm->size);
        return NEXT_PIECE;
    }
}

/* The cursor counts messages of a piece in the low half, pieces in the high half. */
static enum next next_of_pieces(struct flight *f, struct flight_cursor *c, bool send, struct piece *p) {
    struct comm_request *q = f->request;
    const struct comm_piece *list = send ? q->send_pieces : q->receive_pieces;
    int64_t unit = q->width * (int64_t)comm_dtype_bytes(q->dtype);
    for (;;) {
        int64_t i = c->piece >> 32, begin = (c->piece & UINT32_MAX) * MPI_PIECE_BYTES, longest = 0;
        if (i >= q->each) return NEXT_OVER;
        for (int m = 0; m < q->comm->size; m++)
            if (m != q->comm->rank && list[m * q->each + i].count > longest)
                longest = list[m * q->each + i].count;
        if (begin >= longest * unit) {
            *c = (struct flight_cursor){.piece = (i + 1) << 32, .step = 1};
            continue;
        }
        p->member = partner(q->comm, c->step, send);
        const struct comm_piece *piece = &list[p->member * q->each + i];
        const char *base = send ? q->send : q->buf;
        p->bytes = least(MPI_PIECE_BYTES, piece->count * unit - begin);
        p->data = (char *)(uintptr_t)base + piece->offset * unit + begin;
        p->index = c->piece;
        cursor_step(c, q->comm->size);
        if (p->bytes > 0) return NEXT_PIECE;
    }
}

static enum next next_broadcast(struct flight *f, struct flight_cursor *c, bool send, struct piece *p) {
    struct comm_request *q = f->request;
    int size = q->comm->size, place = (q->comm->rank - q->peer + size) % size, children = 0;
    int64_t total = q->count * (int64_t)comm_dtype_bytes(q->dtype), begin = c->piece * MPI_PIECE_BYTES;
    /* place's parent has its lowest set bit cleared; its children have one lower bit set */
    int low = place ? place & -place : 1 << 30;
    while ((1 << children) < low && place + (1 << children) < size) children++;
    if (begin >= total || (send ? !children : !place)) return NEXT_OVER;
    if (send && c->piece >= arrived(f)) return NEXT_LATER;
    int other = send ? place + (1 << (children - c->step)) : place - low;
    p->member = (other + q->peer) % size;
    p->data = (char *)q->buf + begin;
    p->bytes = least(MPI_PIECE_BYTES, total - begin);
    p->index = c->piece;
    cursor_step(c, send ? children + 1 : 2);
    return NEXT_PIECE;
}

static enum next next_barrier(struct flight *f, struct flight_cursor *c, bool send, struct piece *p) {
    int size = f->request->comm->size;
    int64_t distance = (int64_t)1 << c->piece;
    if (distance >= size) return NEXT_OVER;
    if (send && c->piece > arrived(f)) return NEXT_LATER;
    p->member = partner(f->request->comm, (int)distance, send);
    p->data = NULL;
    p->bytes = 0;
    p->index = c->piece++;
    return NEXT_PIECE;
}

/* Messages with one tag between two ranks stay in order only when each is wholly issued before the next. */
static bool is_behind_another(const struct mpi_engine *engine, const struct flight *f) {
    const struct comm_request *q = f->request;
    bool send = q->kind == COMM_KIND_SEND;
    for (const struct flight *g = engine->first; g != f && g; g = g->next)
        if (g->request->comm == q->comm && g->request->kind == q->kind && g->request->peer == q->peer &&
            g->request->tag == q->tag && !(send ? g->send.over : g->receive.over))
            return true;
    return false;
}

static enum next next_message(const struct mpi_engine *engine, struct flight *f, struct flight_cursor *c,
                              bool send, struct piece *p) {
    struct comm_request *q = f->request;
    int64_t begin = c->piece * MPI_PIECE_BYTES;
    bool over = c->piece && begin >= q->count; /* an empty message is sent too */
    if (send != (q->kind == COMM_KIND_SEND) || over) return NEXT_OVER;
    if (!c->piece && is_behind_another(engine, f)) return NEXT_LATER;
    p->member = q->peer;
    p->data = (char *)(uintptr_t)(send ? q->send : q->buf) + begin;
    p->bytes = least(MPI_PIECE_BYTES, q->count - begin);
    p->index = c->piece++;
    return NEXT_PIECE;
}

static enum next next_piece(const struct mpi_engine *engine, struct flight *f, bool send, struct piece *p) {
    struct flight_cursor *c = send ? &f->send : &f->receive;
    switch (f->request->kind) {
    case COMM_KIND_ALL_REDUCE:
        return next_all_reduce(f, c, send, p);
    case COMM_KIND_REDUCE_SCATTER:
        return next_reduce(f, c, send, p);
    case COMM_KIND_ALL_GATHER:
        return next_gather(f, c, send, p);
    case COMM_KIND_ALL_TO_ALL:
        return f->request->send_pieces ? next_of_pieces(f, c, send, p) : next_exchange(f, c, send, p);
    case COMM_KIND_BROADCAST:
        return next_broadcast(f, c, send, p);
    case COMM_KIND_BARRIER:
        return next_barrier(f, c, send, p);
    default:
        return next_message(engine, f, c, send, p);
    }
}

/* ---- sums ---- */

static void sum_chunk(struct flight *f, int64_t chunk) {
    struct comm_request *q = f->request;
    struct slice own = slice_of(q, q->comm->rank);
    int64_t begin = chunk * f->chunk_count, half = chunk & 1;
    char *at = (char *)q->buf + (size_t)(own.begin + begin) * comm_dtype_bytes(q->dtype);
    struct comm_sum sum = {q->dtype,
                           q->reduce,
                           q->comm->size,
                           q->comm->rank,
                           at,
                           staging_of(f, half, 0),
                           comm_chunk_bytes(q->comm->size)};
    comm_sum_run(&sum, at, least(f->chunk_count, own.count - begin));
    f->left[half] = q->comm->size - 1;
    f->summed[half]++;
}

static void sum_small(struct flight *f) {
    struct comm_request *q = f->request;
    struct comm_sum sum = {q->dtype,
                           q->reduce,
                           q->comm->size,
                           q->comm->rank,
                           staging_of(f, 0, q->comm->rank),
                           staging_of(f, 0, 0),
                           comm_chunk_bytes(q->comm->size)};
    comm_sum_run(&sum, q->buf, q->count);
    f->combined = true;
}

/* ---- driving a flight ---- */

static int tag_of(const struct comm_request *q) {
    int base = ((const struct mpi_group *)q->comm->state)->id << MPI_ID_SHIFT;
    if (q->kind == COMM_KIND_SEND || q->kind == COMM_KIND_RECEIVE) return base | q->tag;
    return base | 0x8000 | (int)q->kind << 12 | (int)q->dtype << 9 | (int)(q->sequence & 511);
}

static void issue(struct mpi_engine *engine, struct flight *f, bool send) {
    struct flight_cursor *c = send ? &f->send : &f->receive;
    int *open = send ? &f->sends_open : &f->receives_open, slot = send ? 0 : MPI_WINDOW;
    while (!c->over && *open < MPI_WINDOW) {
        struct piece p;
        enum next next = next_piece(engine, f, send, &p);
        if (next == NEXT_OVER) c->over = true;
        if (next != NEXT_PIECE) return;
        while (f->handles[slot] != MPI_REQUEST_NULL) slot++;
        f->slots[slot] = (struct flight_slot){p.bytes, p.index, p.member, c->phase};
        int peer = f->request->comm->ranks[p.member], tag = tag_of(f->request);
        if (send)
            MPI_CHECK(MPI_Isend(p.data, (int)p.bytes, MPI_BYTE, peer, tag, engine->data, &f->handles[slot]));
        else
            MPI_CHECK(MPI_Irecv(p.data, (int)p.bytes, MPI_BYTE, peer, tag, engine->data, &f->handles[slot]));
        ++*open;
        if (send && c->phase == 0) f->reduce_sends_open++;
    }
}

static void check_size(const struct flight *f, const struct flight_slot *slot, const MPI_Status *status,
                       int code) {
    const struct comm_request *q = f->request;
    int bytes = 0;
    if (code == MPI_SUCCESS) MPI_CHECK(MPI_Get_count(status, MPI_BYTE, &bytes));
    if (code == MPI_SUCCESS && bytes == slot->bytes) return;
    char which[32];
    bool message = q->kind == COMM_KIND_RECEIVE;
    snprintf(which, sizeof(which), "%s%lld", message ? "with tag " : "#",
             message ? (long long)q->tag : (long long)q->sequence);
    die(STATUS_FAILED,
        "%s %s of group %s: rank %d sent %s than the %lld bytes that are due here: the members disagree on "
        "the count",
        comm_kind_name(q->kind), which, q->comm->name, q->comm->ranks[slot->member],
        code == MPI_SUCCESS ? "less" : "more", (long long)slot->bytes);
}

static void landed(struct flight *f, int i, const MPI_Status *status, int code) {
    struct flight_slot *slot = &f->slots[i];
    enum comm_kind kind = f->request->kind;
    if (i < MPI_WINDOW) {
        if (code != MPI_SUCCESS) mpi_failed(__FILE__, __LINE__, "MPI_Isend", code);
        f->sends_open--;
        if (slot->phase == 0) f->reduce_sends_open--;
        return;
    }
    f->receives_open--;
    int class = MPI_SUCCESS;
    if (code != MPI_SUCCESS) MPI_Error_class(code, &class);
    if (code != MPI_SUCCESS && class != MPI_ERR_TRUNCATE) mpi_failed(__FILE__, __LINE__, "MPI_Irecv", code);
    check_size(f, slot, status, code);
    bool reduces = kind == COMM_KIND_REDUCE_SCATTER || (kind == COMM_KIND_ALL_REDUCE && slot->phase == 0);
    if (reduces && !is_small(f->request) && --f->left[slot->piece & 1] == 0) sum_chunk(f, slot->piece);
}

static int collect(struct flight *f) {
    int done, indices[2 * MPI_WINDOW];
    MPI_Status statuses[2 * MPI_WINDOW];
    if (!f->sends_open && !f->receives_open) return 0;
    int code = MPI_Testsome(2 * MPI_WINDOW, f->handles, &done, indices, statuses);
    if (code != MPI_SUCCESS && code != MPI_ERR_IN_STATUS)
        mpi_failed(__FILE__, __LINE__, "MPI_Testsome", code);
    if (done == MPI_UNDEFINED) return 0;
    for (int i = 0; i < done; i++)
        landed(f, indices[i], &statuses[i], code == MPI_SUCCESS ? MPI_SUCCESS : statuses[i].MPI_ERROR);
    return done;
}

static void begin(struct flight *f) {
    struct comm_request *q = f->request;
    f->running = true;
    if (f->staged) q->begin_ns = comm_now_ns();
    if (is_small(q) && q->count)
        memcpy(staging_of(f, 0, q->comm->rank), q->buf, (size_t)q->count * comm_dtype_bytes(q->dtype));
}

static bool may_run(const struct flight *f) {
    return f->running || !f->staged || f->ticket == group_of(f)->turn;
}

/* Issues what can be issued now, and ends the flight when nothing is left of it. True when it ended. */
static bool go_on(struct mpi_engine *engine, struct flight *f) {
    struct mpi_group *group = group_of(f);
    if (!may_run(f)) return false;
    if (!f->running) begin(f);
    issue(engine, f, false);
    issue(engine, f, true);
    if (!f->send.over || !f->receive.over || f->sends_open || f->receives_open) return false;
    if (is_small(f->request)) sum_small(f);
    if (f->staged) group->turn++;
    f->request->end_ns = comm_now_ns();
    f->request->done = true;
    return true;
}

/* Goes as far as it can without waiting, or until a thread asks for the lock. Returns what ended. */
static int advance(struct mpi_engine *engine, struct flight *f) {
    int events = 0, round;
    if (go_on(engine, f)) return 1;
    if (!f->running) return 0;
    do {
        round = collect(f);
        events += round;
        if (round && go_on(engine, f)) return events + 1;
    } while (round && !atomic_load(&engine->callers));
    return events;
}

int mpi_engine_progress(struct mpi_engine *engine) {
    int events = 0;
    struct flight **at = &engine->first, *last = NULL;
    while (*at) {
        struct flight *f = *at;
        events += advance(engine, f);
        if (f->request->done) {
            *at = f->next;
            engine->active--;
        } else {
            last = f;
            at = &f->next;
        }
    }
    engine->last = last;
    return events;
}

void mpi_flight_start(struct mpi_engine *engine, struct comm_request *q) {
    struct flight *f = &engine->flights[q->index];
    struct mpi_group *group = q->comm->state;
    *f = (struct flight){.request = q, .send = {.step = 1}, .receive = {.step = 1}};
    for (int i = 0; i < 2 * MPI_WINDOW; i++) f->handles[i] = MPI_REQUEST_NULL;
    f->staged = q->kind == COMM_KIND_ALL_REDUCE || q->kind == COMM_KIND_REDUCE_SCATTER;
    if (f->staged) f->ticket = group->tickets++;
    f->chunk_count = comm_chunk_bytes(q->comm->size) / (int64_t)comm_dtype_bytes(q->dtype);
    f->left[0] = f->left[1] = q->comm->size - 1;
    if (q->send_pieces)
        comm_copy_own_pieces(q);
    else if (q->kind == COMM_KIND_ALL_TO_ALL && block_count(q, q->comm->rank, true))
        memcpy(block_at(q, q->comm->rank, false), block_at(q, q->comm->rank, true),
               (size_t)block_count(q, q->comm->rank, true) * comm_dtype_bytes(q->dtype));
    if (go_on(engine, f)) return; /* moves no data: that is for the helper, or for the wait */
    if (engine->last)
        engine->last->next = f;
    else
        engine->first = f;
    engine->last = f;
    engine->active++;
}
