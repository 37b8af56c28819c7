#pragma once
/* The MPI transport (private; built with MPI=1). One engine per world, all of it guarded by one lock:
 *
 *   mpi_world.c         opens and closes, waits, and runs the helper thread that drives progress while the
 * caller computes mpi_flight.c  each operation is a state machine (a flight) of MPI_Isend and MPI_Irecv, so
 * that any number may be under way on any groups and no order of starts or waits between groups can deadlock
 *   mpi_watch.c   who waits for whom when a wait outlasts the patience
 *
 * All groups share one MPI communicator; a message's tag tells group, kind of collective, element type and
 * sequence number apart, so that members that call different things never take each other's data:
 *   bit 16 and up: group id | collectives: 1, kind (3 bits), type (3), sequence (9) | messages: 0, tag (15)
 * Nine bits of sequence suffice: at most COMM_MAX_REQUESTS (256) operations of a rank are under way, and
 * messages with one tag stay in order. */
#include "parallel/comm/comm_transport.h"
#include <mpi.h>
#include <stdatomic.h>

enum {
    MPI_WINDOW = 16,           /* messages in the air per flight and direction */
    MPI_PIECE_BYTES = 1 << 20, /* larger transfers are split */
    MPI_ID_SHIFT = 16,
};

/* Where a flight is in its list of pieces, in one direction. */
struct flight_cursor {
    int phase; /* all-reduce: 0 reduce-scatter, 1 all-gather */
    int64_t piece;
    int step;
    bool over;
};

struct flight_slot { /* a message in the air */
    int64_t bytes, piece;
    int member, phase;
};

struct flight {
    struct comm_request *request;
    struct flight *next; /* in the order of starts */
    bool staged, running;
    uint64_t ticket; /* flights that use the group's staging run one after the other */
    struct flight_cursor send, receive;
    int sends_open, receives_open, reduce_sends_open;
    int64_t chunk_count;                      /* elements per chunk */
    int64_t left[2], summed[2];               /* staging halves: pieces still to come; chunks summed so far */
    bool combined;                            /* small all-reduce: summed */
    struct flight_slot slots[2 * MPI_WINDOW]; /* sends, then receives */
    MPI_Request handles[2 * MPI_WINDOW];
};

struct mpi_group {
    int id;
    char *staging;
    uint64_t tickets, turn;
};

/* A thread that waits; the list lies on the stacks of the waiters. */
struct mpi_waiter {
    struct comm_request *request;
    uint64_t since_ns;
    struct mpi_waiter *next;
};

struct mpi_watch;
struct mpi_engine {
    struct comm_world *world;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    atomic_int callers; /* threads that are about to take the lock */
    pthread_t helper;
    bool stop, helper_sleeps;
    struct mpi_waiter *waiters;
    MPI_Comm data, watch;
    int next_id, max_id;
    int64_t spin_ns;
    uint64_t last_call_ns;         /* a wait ended */
    struct mpi_watch *watch_state; /* NULL with one rank */
    int active;
    struct flight *first, *last;
    struct flight flights[COMM_MAX_REQUESTS];
    struct comm all; /* every rank; only for the barrier at the end */
    struct mpi_group all_group;
};

/* All with the lock held. */
void mpi_flight_start(struct mpi_engine *engine, struct comm_request *request);
int mpi_engine_progress(struct mpi_engine *engine); /* messages and flights that ended */
void mpi_watch_open(struct mpi_engine *engine);
void mpi_watch_close(struct mpi_engine *engine);
void mpi_watch_poll(struct mpi_engine *engine, uint64_t now); /* answers; cheap, does nothing for 100 ms */
void mpi_watch_call_ended(struct mpi_engine *engine, const struct comm_request *request);
/* The wait has outlasted the patience. Ends the job, unless the wait ends or another rank does it. */
/* The wait outlasts the patience, or (`alarmed`) the shorter one that only asks whether all ranks live. */
void mpi_watch_expired(struct mpi_engine *engine, const struct mpi_waiter *waiter, bool alarmed);
_Noreturn void mpi_failed(const char *file, int line, const char *call, int code);

#define MPI_CHECK(call)                                                                                      \
    do {                                                                                                     \
        int mpi_code = (call);                                                                               \
        if (mpi_code != MPI_SUCCESS) mpi_failed(__FILE__, __LINE__, #call, mpi_code);                        \
    } while (0)
