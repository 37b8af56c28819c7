#include "parallel/comm/comm.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include "parallel/comm/comm_transport.h"
#include "parallel/comm/launch.h"
#include <stdarg.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- small tables ---- */

size_t comm_dtype_bytes(enum comm_dtype dtype) {
    static const unsigned char bytes[COMM_DTYPE_COUNT] = {4, 2, 2, 8, 4, 8, 1};
    return bytes[dtype];
}

enum comm_dtype comm_dtype_of(enum dtype dtype) {
    static const enum comm_dtype of[DTYPE_COUNT] = {COMM_F32, COMM_BF16, COMM_F16, COMM_I32};
    return of[dtype];
}

const char *comm_kind_name(enum comm_kind kind) {
    static const char *const names[COMM_KIND_COUNT] = {"all-reduce", "reduce-scatter", "all-gather",
                                                       "all-to-all", "broadcast",      "send",
                                                       "receive",    "barrier"};
    return names[kind];
}

uint64_t comm_now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* ---- the world ---- */

static struct comm_world *world_new(const struct comm_transport *transport, int rank, int size) {
    struct comm_world *world = mem_zalloc(sizeof(*world), "communicator world");
    world->transport = transport;
    world->rank = rank;
    world->size = size;
    world->local_size = 1;
    world->timeout_s = 600;
    if (gethostname(world->host, sizeof(world->host) - 1)) snprintf(world->host, sizeof(world->host), "?");
    pthread_mutex_init(&world->note_lock, NULL);
    pthread_mutex_init(&world->pool_lock, NULL);
    for (int i = COMM_MAX_REQUESTS - 1; i >= 0; i--) {
        world->pool[i].index = i;
        world->pool[i].next = world->free_requests;
        world->free_requests = &world->pool[i];
    }
    return world;
}

static void world_free(struct comm_world *world) {
    pthread_mutex_destroy(&world->note_lock);
    pthread_mutex_destroy(&world->pool_lock);
    mem_free(world);
}

int comm_world_open(struct comm_world **world_p, struct err *err) {
    struct launch launch;
    if (launch_detect(launch_environment, NULL, launch_has_mpi(), &launch, err)) return -1;
    struct comm_world *world = world_new(&comm_transport_self, 0, 1);
#ifdef WITH_MPI
    if (launch.with_mpi) {
        if (comm_mpi_world_open(world, err)) {
            world_free(world);
            return -1;
        }
        if (launch_check_size(&launch, world->size, err)) {
            comm_world_close(world);
            return -1;
        }
    }
#endif
    log_set_rank(world->rank, world->size);
    *world_p = world;
    return 0;
}

void comm_world_open_fake(struct comm_world **world_p, int rank, int size) {
    CHECK(size > 0 && rank >= 0 && rank < size, "rank %d of %d", rank, size);
    *world_p = world_new(&comm_transport_fake, rank, size);
    (*world_p)->local_size = size;
    (*world_p)->local_rank = rank;
}

void comm_world_close(struct comm_world *world) {
    if (!world) return;
    CHECK(!world->num_open, "%d communicators are still open", world->num_open);
    if (world->transport->world_close) world->transport->world_close(world);
    world_free(world);
}

int comm_world_rank(const struct comm_world *world) {
    return world->rank;
}

int comm_world_size(const struct comm_world *world) {
    return world->size;
}

int comm_world_local_rank(const struct comm_world *world) {
    return world->local_rank;
}

int comm_world_local_size(const struct comm_world *world) {
    return world->local_size;
}

const char *comm_world_host(const struct comm_world *world) {
    return world->host;
}

const char *comm_world_transport(const struct comm_world *world) {
    return world->transport->name;
}

void comm_world_note(struct comm_world *world, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    pthread_mutex_lock(&world->note_lock);
    vsnprintf(world->note, sizeof(world->note), fmt, args);
    pthread_mutex_unlock(&world->note_lock);
    va_end(args);
}

void comm_world_set_timeout(struct comm_world *world, double seconds) {
    world->timeout_s = seconds;
}

void comm_world_set_alarm(struct comm_world *world, bool (*alarmed)(void)) {
    world->alarmed = alarmed;
}

void comm_world_set_observer(struct comm_world *world,
                             void (*observe)(void *context, const struct comm_event *event), void *context) {
    world->observe = observe;
    world->observe_context = context;
}

/* ---- groups ---- */

struct comm *comm_open(struct comm_world *world, const char *name, const int *ranks, int count) {
    struct comm *comm = mem_zalloc(sizeof(*comm), "communicator");
    comm->world = world;
    comm->size = count;
    comm->rank = -1;
    comm->ranks = mem_new_array(int, (size_t)count, "ranks of a communicator");
    snprintf(comm->name, sizeof(comm->name), "%s", name);
    for (int i = 0; i < count; i++) {
        CHECK(ranks[i] >= 0 && ranks[i] < world->size, "group %s: rank %d of a world of %d", name, ranks[i],
              world->size);
        CHECK(!i || ranks[i] > ranks[i - 1], "group %s: its ranks do not rise", name);
        comm->ranks[i] = ranks[i];
        if (ranks[i] == world->rank) comm->rank = i;
    }
    CHECK(comm->rank >= 0, "rank %d opens the group %s, of which it is no member", world->rank, name);
    bool alone = count == 1 && world->transport != &comm_transport_fake;
    comm->transport = alone ? &comm_transport_self : world->transport;
    if (comm->transport->open) comm->transport->open(comm);
    world->num_open++;
    return comm;
}

void comm_close(struct comm *comm) {
    if (!comm) return;
    if (comm->transport->close) comm->transport->close(comm);
    comm->world->num_open--;
    mem_free(comm->ranks);
    mem_free(comm);
}

int comm_size(const struct comm *comm) {
    return comm->size;
}

int comm_rank(const struct comm *comm) {
    return comm->rank;
}

int comm_world_rank_of(const struct comm *comm, int member) {
    return comm->ranks[member];
}

const char *comm_name(const struct comm *comm) {
    return comm->name;
}

size_t comm_staging_bytes(int size) {
    return size > 1 ? (size_t)2 * (size_t)size * (size_t)comm_chunk_bytes(size) : 0;
}

const struct comm_stats *comm_stats(const struct comm *comm, enum comm_kind kind) {
    return &comm->stats[kind];
}

void comm_reset_stats(struct comm *comm) {
    memset(comm->stats, 0, sizeof(comm->stats));
}

/* ---- requests ---- */

static struct comm_request *request_new(struct comm *comm, enum comm_kind kind, void *buf, int64_t count,
                                        enum comm_dtype dtype) {
    struct comm_world *world = comm->world;
    CHECK(count >= 0 && count <= INT64_MAX / 8 / comm->size, "%s of %lld elements", comm_kind_name(kind),
          (long long)count);
    pthread_mutex_lock(&world->pool_lock);
    struct comm_request *request = world->free_requests;
    if (request) world->free_requests = request->next;
    pthread_mutex_unlock(&world->pool_lock);
    CHECK(request, "%s on group %s: %d requests are in flight already; comm_wait some first",
          comm_kind_name(kind), comm->name, COMM_MAX_REQUESTS);
    int index = request->index;
    *request = (struct comm_request){
        .comm = comm, .kind = kind, .dtype = dtype, .buf = buf, .count = count, .index = index};
    return request;
}

/* Counts and starts a request that is filled in, except for its bytes: `bytes` of them are sent. */
static struct comm_request *request_start(struct comm_request *request, double bytes) {
    struct comm *comm = request->comm;
    request->bytes = bytes;
    if (request->kind != COMM_KIND_SEND && request->kind != COMM_KIND_RECEIVE)
        request->sequence = ++comm->sequence;
    comm->stats[request->kind].calls++;
    comm->stats[request->kind].bytes += bytes;
    request->begin_ns = request->start_begin_ns = comm_now_ns();
    comm->transport->start(request);
    request->start_end_ns = comm_now_ns();
    comm->stats[request->kind].wait_seconds +=
        (double)(request->start_end_ns - request->start_begin_ns) * 1e-9;
    return request;
}

void comm_wait(struct comm_request *request) {
    if (!request) return;
    struct comm *comm = request->comm;
    struct comm_world *world = comm->world;
    uint64_t start = comm_now_ns();
    comm->transport->wait(request);
    uint64_t end = comm_now_ns();
    comm->stats[request->kind].wait_seconds += (double)(end - start) * 1e-9;
    if (world->observe) {
        struct comm_event event = {comm->name,
                                   request->kind,
                                   request->begin_ns,
                                   request->end_ns,
                                   request->start_begin_ns,
                                   request->start_end_ns,
                                   start,
                                   end,
                                   request->bytes};
        world->observe(world->observe_context, &event);
    }
    pthread_mutex_lock(&world->pool_lock);
    request->next = world->free_requests;
    world->free_requests = request;
    pthread_mutex_unlock(&world->pool_lock);
}

bool comm_is_done(struct comm_request *request) {
    return !request || request->comm->transport->test(request);
}

/* Bytes of `count` elements for each of `members` members. */
static double bytes_of(int64_t count, enum comm_dtype dtype, int members) {
    return (double)count * (double)comm_dtype_bytes(dtype) * members;
}

struct comm_request *comm_start_all_reduce(struct comm *comm, void *buf, int64_t count, enum comm_dtype dtype,
                                           enum comm_reduce op) {
    struct comm_request *request = request_new(comm, COMM_KIND_ALL_REDUCE, buf, count, dtype);
    request->reduce = op;
    return request_start(request, 2 * bytes_of(count, dtype, comm->size - 1) / comm->size);
}

struct comm_request *comm_start_reduce_scatter(struct comm *comm, void *buf, int64_t count,
                                               enum comm_dtype dtype) {
    return request_start(request_new(comm, COMM_KIND_REDUCE_SCATTER, buf, count, dtype),
                         bytes_of(count, dtype, comm->size - 1));
}

struct comm_request *comm_start_all_gather(struct comm *comm, void *buf, int64_t count,
                                           enum comm_dtype dtype) {
    return request_start(request_new(comm, COMM_KIND_ALL_GATHER, buf, count, dtype),
                         bytes_of(count, dtype, comm->size - 1));
}

struct comm_request *comm_start_all_to_all(struct comm *comm, void *receive, const void *send, int64_t count,
                                           enum comm_dtype dtype) {
    struct comm_request *request = request_new(comm, COMM_KIND_ALL_TO_ALL, receive, count, dtype);
    request->send = send;
    return request_start(request, bytes_of(count, dtype, comm->size - 1));
}

static struct comm_request *start_message(struct comm *comm, enum comm_kind kind, void *buf, const void *send,
                                          int64_t bytes, int peer, int tag) {
    CHECK(peer >= 0 && peer < comm->size, "group %s has %d members and no member %d", comm->name, comm->size,
          peer);
    CHECK(tag >= 0 && tag <= COMM_MAX_TAG, "tag %d: 0 to %d", tag, COMM_MAX_TAG);
    struct comm_request *request = request_new(comm, kind, buf, bytes, COMM_U8);
    request->send = send;
    request->peer = peer;
    request->tag = tag;
    return request_start(request, kind == COMM_KIND_SEND ? (double)bytes : 0);
}

struct comm_request *comm_start_send(struct comm *comm, const void *buf, int64_t bytes, int peer, int tag) {
    return start_message(comm, COMM_KIND_SEND, NULL, buf, bytes, peer, tag);
}

struct comm_request *comm_start_receive(struct comm *comm, void *buf, int64_t bytes, int peer, int tag) {
    return start_message(comm, COMM_KIND_RECEIVE, buf, NULL, bytes, peer, tag);
}

/* The pieces that a member keeps for itself. */
void comm_copy_own_pieces(const struct comm_request *request) {
    size_t bytes = comm_dtype_bytes(request->dtype) * (size_t)request->width;
    for (int64_t i = request->comm->rank * request->each; i < (request->comm->rank + 1) * request->each; i++)
        if (request->send_pieces[i].count)
            memmove((char *)request->buf + (size_t)request->receive_pieces[i].offset * bytes,
                    (const char *)request->send + (size_t)request->send_pieces[i].offset * bytes,
                    (size_t)request->send_pieces[i].count * bytes);
}

/* ---- blocking calls ---- */

void comm_all_reduce(struct comm *comm, void *buf, int64_t count, enum comm_dtype dtype,
                     enum comm_reduce op) {
    comm_wait(comm_start_all_reduce(comm, buf, count, dtype, op));
}

void comm_reduce_scatter(struct comm *comm, void *buf, int64_t count, enum comm_dtype dtype) {
    comm_wait(comm_start_reduce_scatter(comm, buf, count, dtype));
}

void comm_all_gather(struct comm *comm, void *buf, int64_t count, enum comm_dtype dtype) {
    comm_wait(comm_start_all_gather(comm, buf, count, dtype));
}

void comm_all_to_all(struct comm *comm, void *receive, const void *send, int64_t count,
                     enum comm_dtype dtype) {
    comm_wait(comm_start_all_to_all(comm, receive, send, count, dtype));
}

void comm_all_to_all_v(struct comm *comm, void *receive, const int64_t *receive_counts,
                       const int64_t *receive_offsets, const void *send, const int64_t *send_counts,
                       const int64_t *send_offsets, enum comm_dtype dtype) {
    int64_t sent = 0;
    for (int i = 0; i < comm->size; i++) {
        CHECK(send_counts[i] >= 0 && receive_counts[i] >= 0, "all-to-all on group %s: a count below 0",
              comm->name);
        if (i != comm->rank) sent += send_counts[i];
    }
    CHECK(send_counts[comm->rank] == receive_counts[comm->rank],
          "all-to-all on group %s: %lld elements to itself, %lld from itself", comm->name,
          (long long)send_counts[comm->rank], (long long)receive_counts[comm->rank]);
    struct comm_request *request = request_new(comm, COMM_KIND_ALL_TO_ALL, receive, 0, dtype);
    request->send = send;
    request->receive_counts = receive_counts;
    request->receive_offsets = receive_offsets;
    request->send_counts = send_counts;
    request->send_offsets = send_offsets;
    comm_wait(request_start(request, bytes_of(sent, dtype, 1)));
}

void comm_exchange(struct comm *comm, void *receive, const struct comm_piece *receive_pieces,
                   const void *send, const struct comm_piece *send_pieces, int64_t each, int64_t width,
                   enum comm_dtype dtype) {
    int64_t sent = 0;
    CHECK(each >= 0 && width >= 0, "exchange on group %s: %lld pieces of width %lld", comm->name,
          (long long)each, (long long)width);
    for (int64_t i = 0; i < each * comm->size; i++) {
        CHECK(send_pieces[i].count >= 0 && receive_pieces[i].count >= 0,
              "exchange on group %s: a count below 0", comm->name);
        if (i / each != comm->rank)
            sent += send_pieces[i].count;
        else
            CHECK(send_pieces[i].count == receive_pieces[i].count,
                  "exchange on group %s: %lld elements to itself, %lld from itself", comm->name,
                  (long long)send_pieces[i].count, (long long)receive_pieces[i].count);
    }
    struct comm_request *request = request_new(comm, COMM_KIND_ALL_TO_ALL, receive, 0, dtype);
    request->send = send;
    request->receive_pieces = receive_pieces;
    request->send_pieces = send_pieces;
    request->each = each;
    request->width = width;
    comm_wait(request_start(request, bytes_of(sent * width, dtype, 1)));
}

void comm_broadcast(struct comm *comm, void *buf, int64_t count, enum comm_dtype dtype, int root) {
    CHECK(root >= 0 && root < comm->size, "group %s has %d members and no member %d", comm->name, comm->size,
          root);
    struct comm_request *request = request_new(comm, COMM_KIND_BROADCAST, buf, count, dtype);
    request->peer = root;
    comm_wait(request_start(request, comm->rank == root ? bytes_of(count, dtype, comm->size > 1) : 0));
}

void comm_barrier(struct comm *comm) {
    comm_wait(request_start(request_new(comm, COMM_KIND_BARRIER, NULL, 0, COMM_U8), 0));
}
