#pragma once
/* What stands behind comm.h (private to parallel/comm). comm.c checks arguments, fills in a request, counts
 * and times; a transport moves the bytes. A transport is one row: a `struct comm_transport`.
 *
 * Every operation, blocking or not, is one `struct comm_request` from a pool of COMM_MAX_REQUESTS that the
 * world owns; a blocking call is start and wait. `start` must not block on other ranks; `wait` returns when
 * request->done is true. Transports need not check arguments. Nothing here allocates after open. */
#include "parallel/comm/comm.h"
#include <pthread.h>

struct comm_request {
    struct comm *comm;
    enum comm_kind kind;
    enum comm_dtype dtype;
    enum comm_reduce reduce;
    void *buf;        /* the buffer that receives; in place where the call is in place; NULL for a send */
    const void *send; /* what is sent where it is not `buf` */
    int64_t count;    /* elements as in the call; bytes for send and receive */
    const int64_t *receive_counts, *receive_offsets, *send_counts,
        *send_offsets;                                     /* all-to-all-v, else NULL */
    const struct comm_piece *receive_pieces, *send_pieces; /* exchange, else NULL: `each` for every member */
    int64_t each, width;
    int peer;          /* send and receive: a member; broadcast: the root */
    int tag;           /* send and receive */
    uint64_t sequence; /* of this collective on its communicator; 0 for send and receive */
    double bytes;      /* by the ring bound, see struct comm_stats */
    uint64_t begin_ns, end_ns;
    uint64_t start_begin_ns, start_end_ns; /* the caller was in the start */
    bool done;
    int index; /* in the pool; a transport keeps its own state in an array beside it */
    struct comm_request *next;
};

struct comm_transport {
    const char *name;
    void (*open)(struct comm *comm);  /* fills in comm->state; NULL: nothing to do */
    void (*close)(struct comm *comm); /* NULL: nothing to do */
    void (*start)(struct comm_request *request);
    bool (*test)(struct comm_request *request);
    void (*wait)(struct comm_request *request);
    void (*world_close)(struct comm_world *world); /* NULL: nothing to do */
};
extern const struct comm_transport comm_transport_self;
extern const struct comm_transport comm_transport_fake;

/* An all-reduce of up to COMM_SMALL_BYTES is one exchange of everything. Of a larger one, a chunk of each
 * member's contribution lies in staging at a time; there are two halves. Chunks are smaller in large groups,
 * so that staging stays below COMM_STAGING_BYTES as long as a small exchange fits. */
enum { COMM_CHUNK_BYTES = 256 << 10, COMM_SMALL_BYTES = 8 << 10, COMM_STAGING_BYTES = 32 << 20 };
static inline int64_t comm_chunk_bytes(int size) {
    int64_t share = COMM_STAGING_BYTES / (2 * (int64_t)size) / COMM_SMALL_BYTES * COMM_SMALL_BYTES;
    if (share > COMM_CHUNK_BYTES) return COMM_CHUNK_BYTES;
    return share < COMM_SMALL_BYTES ? COMM_SMALL_BYTES : share;
}
enum { COMM_NOTE_BYTES = 97, COMM_HOST_BYTES = 65, COMM_NAME_BYTES = 32 };

struct comm_world {
    const struct comm_transport *transport;
    int rank, size, local_rank, local_size, num_open;
    char host[COMM_HOST_BYTES];
    double timeout_s;
    bool (*alarmed)(void);
    pthread_mutex_t note_lock;
    char note[COMM_NOTE_BYTES];
    void (*observe)(void *context, const struct comm_event *event);
    void *observe_context;
    pthread_mutex_t pool_lock;
    struct comm_request pool[COMM_MAX_REQUESTS];
    struct comm_request *free_requests;
    void *state; /* of the transport */
};

struct comm {
    struct comm_world *world;
    const struct comm_transport *transport;
    char name[COMM_NAME_BYTES];
    int size, rank;
    int *ranks;
    uint64_t sequence; /* collectives started so far */
    struct comm_stats stats[COMM_KIND_COUNT];
    struct comm_request *pending; /* self: sends and receives that wait for their partner */
    void *state;                  /* of the transport */
};

uint64_t comm_now_ns(void);
/* Of an exchange: what a member sends to itself. */
void comm_copy_own_pieces(const struct comm_request *request);

/* For the MPI transport, built with MPI=1: opens MPI and fills in rank, size, locals, transport and state. */
int comm_mpi_world_open(struct comm_world *world, struct err *err);
