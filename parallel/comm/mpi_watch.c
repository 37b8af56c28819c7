/* The watchdog. A rank whose wait outlasts the patience asks all others what they do; helper threads and
 * waiters answer, also while their caller computes. Then it prints the table and ends the job. Only one rank
 * prints: who answers a question gives up its own for a while, and of two that ask at once the lower rank
 * goes on. A wait that ends after all while the answers come in is forgiven. */
#include "parallel/comm/mpi_engine.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include "parallel/comm/watch.h"
#include <string.h>
#include <unistd.h>

enum { TAG_QUESTION = 1, TAG_ANSWER = 2, NUM_REPLIES = 8 };
static const double POLL_S = 0.1, COLLECT_S = 2.5, GIVE_WAY_S = 10;

struct question {
    int asker, serial;
};
struct answer {
    int serial;
    struct watch_report report;
};

struct mpi_watch {
    uint64_t polled_ns, give_way_until_ns;
    bool asking;
    int lowest_asker; /* among the others that asked while we did */
    struct question question, heard;
    MPI_Request listening, *asked;
    struct answer replies[NUM_REPLIES], received;
    MPI_Request replying[NUM_REPLIES], receiving;
    struct watch_report *reports; /* of all ranks */
    struct watch_call last;       /* the last call that ended here */
};

static double seconds_since(uint64_t ns, uint64_t now) {
    return now > ns ? (double)(now - ns) * 1e-9 : 0;
}

/* ---- what this rank says ---- */

static void add_missing(struct watch_call *call, int rank) {
    for (int i = 0; i < call->num_missing && i < WATCH_MISSING; i++)
        if (call->missing[i] == rank) return;
    if (call->num_missing < WATCH_MISSING) call->missing[call->num_missing] = rank;
    call->num_missing++;
}

static void describe(struct watch_call *call, const struct comm_request *q) {
    const struct comm *comm = q->comm;
    memset(call, 0, sizeof(*call));
    memcpy(call->group, comm->name, sizeof(call->group));
    call->group_id = ((const struct mpi_group *)comm->state)->id;
    call->size = comm->size;
    for (int i = 0; i < comm->size && i < WATCH_MEMBERS; i++) call->members[i] = comm->ranks[i];
    call->kind = q->kind, call->dtype = q->dtype, call->reduce = q->reduce;
    call->count = q->count, call->sequence = q->sequence;
    call->peer = comm->ranks[q->peer], call->tag = q->tag;
}

/* A reduction that waits for its turn is held up by the one that has it. */
static const struct flight *holder_of(const struct mpi_engine *engine, const struct flight *f) {
    if (f->running) return f;
    for (const struct flight *g = engine->first; g; g = g->next)
        if (g->staged && g->running && g->request->comm == f->request->comm) return g;
    return f;
}

static void describe_wait(const struct mpi_engine *engine, struct watch_call *call,
                          const struct comm_request *q) {
    const struct flight *f = holder_of(engine, &engine->flights[q->index]);
    int begin = f->receives_open ? MPI_WINDOW : 0; /* else the others have not taken what was sent */
    describe(call, f->request);
    for (int i = begin; i < begin + MPI_WINDOW; i++)
        if (f->handles[i] != MPI_REQUEST_NULL) add_missing(call, f->request->comm->ranks[f->slots[i].member]);
}

static void report_self(const struct mpi_engine *engine, struct watch_report *r) {
    struct comm_world *world = engine->world;
    const struct mpi_waiter *oldest = engine->waiters;
    uint64_t now = comm_now_ns();
    memset(r, 0, sizeof(*r));
    while (oldest && oldest->next) oldest = oldest->next;
    *r = (struct watch_report){.rank = world->rank, .pid = (int)getpid(), .answered = true};
    memcpy(r->host, world->host, sizeof(r->host));
    r->asking = engine->watch_state->asking;
    r->waiting = oldest && !oldest->request->done;
    r->seconds = seconds_since(r->waiting ? oldest->since_ns : engine->last_call_ns, now);
    if (r->waiting)
        describe_wait(engine, &r->call, oldest->request);
    else
        r->call = engine->watch_state->last;
    pthread_mutex_lock(&world->note_lock);
    memcpy(r->note, world->note, sizeof(r->note));
    pthread_mutex_unlock(&world->note_lock);
}

void mpi_watch_call_ended(struct mpi_engine *engine, const struct comm_request *request) {
    engine->last_call_ns = comm_now_ns();
    if (engine->watch_state) describe(&engine->watch_state->last, request);
}

/* ---- questions and answers ---- */

static void listen(struct mpi_engine *engine) {
    struct mpi_watch *w = engine->watch_state;
    MPI_CHECK(MPI_Irecv(&w->heard, sizeof(w->heard), MPI_BYTE, MPI_ANY_SOURCE, TAG_QUESTION, engine->watch,
                        &w->listening));
}

static void answer(struct mpi_engine *engine) {
    struct mpi_watch *w = engine->watch_state;
    for (int i = 0; i < NUM_REPLIES; i++) {
        int done;
        MPI_CHECK(MPI_Test(&w->replying[i], &done, MPI_STATUS_IGNORE));
        if (!done) continue;
        w->replies[i].serial = w->heard.serial;
        report_self(engine, &w->replies[i].report);
        MPI_CHECK(MPI_Isend(&w->replies[i], sizeof(w->replies[i]), MPI_BYTE, w->heard.asker, TAG_ANSWER,
                            engine->watch, &w->replying[i]));
        return;
    }
}

static void answer_questions(struct mpi_engine *engine) {
    struct mpi_watch *w = engine->watch_state;
    for (;;) {
        int heard;
        MPI_CHECK(MPI_Test(&w->listening, &heard, MPI_STATUS_IGNORE));
        if (!heard) return;
        answer(engine);
        if (!w->asking)
            w->give_way_until_ns = comm_now_ns() + (uint64_t)(GIVE_WAY_S * 1e9);
        else if (w->heard.asker < w->lowest_asker)
            w->lowest_asker = w->heard.asker;
        listen(engine);
    }
}

void mpi_watch_poll(struct mpi_engine *engine, uint64_t now) {
    struct mpi_watch *w = engine->watch_state;
    if (!w || seconds_since(w->polled_ns, now) < POLL_S) return;
    w->polled_ns = now;
    answer_questions(engine);
}

/* ---- asking ---- */

static void ask(struct mpi_engine *engine) {
    struct mpi_watch *w = engine->watch_state;
    struct comm_world *world = engine->world;
    w->asking = true;
    w->lowest_asker = world->rank;
    w->question = (struct question){world->rank, w->question.serial + 1};
    for (int i = 0; i < world->size; i++) {
        w->reports[i].answered = false;
        if (i == world->rank) continue;
        if (w->asked[i] != MPI_REQUEST_NULL) MPI_CHECK(MPI_Request_free(&w->asked[i]));
        MPI_CHECK(MPI_Isend(&w->question, sizeof(w->question), MPI_BYTE, i, TAG_QUESTION, engine->watch,
                            &w->asked[i]));
    }
}

/* Returns how many ranks have answered. */
static int take_answers(struct mpi_engine *engine) {
    struct mpi_watch *w = engine->watch_state;
    for (;;) {
        int got;
        if (w->receiving == MPI_REQUEST_NULL)
            MPI_CHECK(MPI_Irecv(&w->received, sizeof(w->received), MPI_BYTE, MPI_ANY_SOURCE, TAG_ANSWER,
                                engine->watch, &w->receiving));
        MPI_CHECK(MPI_Test(&w->receiving, &got, MPI_STATUS_IGNORE));
        if (!got) break;
        struct watch_report *r = &w->received.report;
        if (w->received.serial != w->question.serial) continue; /* of an earlier question */
        w->reports[r->rank] = *r;
        if (r->asking && r->rank < w->lowest_asker) w->lowest_asker = r->rank;
    }
    int answers = 0;
    for (int i = 0; i < engine->world->size; i++) answers += w->reports[i].answered;
    return answers;
}

/* Lets time pass until `seconds` are over, all have answered (where asked for) or the wait is over (true). */
static bool collect(struct mpi_engine *engine, const struct comm_request *request, double seconds,
                    bool until_all) {
    uint64_t start = comm_now_ns();
    while (seconds_since(start, comm_now_ns()) < seconds) {
        mpi_engine_progress(engine);
        if (request->done) return true;
        answer_questions(engine);
        if (take_answers(engine) == engine->world->size - 1 && until_all) return false;
        pthread_mutex_unlock(&engine->lock);
        usleep(1000);
        pthread_mutex_lock(&engine->lock);
    }
    return false;
}

void mpi_watch_expired(struct mpi_engine *engine, const struct mpi_waiter *waiter, bool alarmed) {
    struct mpi_watch *w = engine->watch_state;
    struct comm_world *world = engine->world;
    if (!w || comm_now_ns() < w->give_way_until_ns) return; /* another rank is asking */
    ask(engine);
    bool over = collect(engine, waiter->request, COLLECT_S, true);
    if (!over && w->lowest_asker < world->rank) over = collect(engine, waiter->request, GIVE_WAY_S, false);
    if (!over && alarmed && take_answers(engine) == world->size - 1) { /* all live: ask again in a while */
        w->give_way_until_ns = comm_now_ns() + (uint64_t)(GIVE_WAY_S * 1e9);
        over = true;
    }
    if (over) {
        w->asking = false;
        return;
    }
    struct str table = {0}, line = {0};
    report_self(engine, &w->reports[world->rank]);
    watch_print_table(&table, w->reports, world->size, world->rank);
    fputs(table.data, stderr);
    watch_print_wait(&line, &w->reports[world->rank]);
    die(STATUS_FAILED, "%s (--distributed-timeout-minutes is how long a wait may last)", line.data);
}

/* ---- opening and closing ---- */

void mpi_watch_open(struct mpi_engine *engine) {
    struct comm_world *world = engine->world;
    size_t size = (size_t)world->size;
    if (world->size == 1) return;
    struct mpi_watch *w = mem_zalloc(sizeof(*w), "communication watchdog");
    engine->watch_state = w;
    w->reports = mem_new_array(struct watch_report, size, "communication watchdog");
    w->asked = mem_new_array(MPI_Request, size, "communication watchdog");
    w->receiving = MPI_REQUEST_NULL;
    for (int i = 0; i < NUM_REPLIES; i++) w->replying[i] = MPI_REQUEST_NULL;
    for (int i = 0; i < world->size; i++) w->asked[i] = MPI_REQUEST_NULL;
    /* so that also a rank that does not answer can be named by host and process */
    struct watch_report self;
    report_self(engine, &self);
    MPI_CHECK(
        MPI_Allgather(&self, sizeof(self), MPI_BYTE, w->reports, sizeof(self), MPI_BYTE, engine->watch));
    listen(engine);
}

static void drop(MPI_Request *request) {
    if (*request == MPI_REQUEST_NULL) return;
    MPI_CHECK(MPI_Cancel(request));
    MPI_CHECK(MPI_Request_free(request));
}

void mpi_watch_close(struct mpi_engine *engine) {
    struct mpi_watch *w = engine->watch_state;
    if (!w) return;
    drop(&w->listening);
    drop(&w->receiving);
    mem_free(w->reports);
    mem_free(w->asked);
    mem_free(w);
    engine->watch_state = NULL;
}
