#pragma once
/* Communicators: buffers between ranks. A `struct comm` is one group of ranks on one transport; it knows
 * buffers, counts and element types, and nothing of models, layouts or schedules. Transports are rows of one
 * table (comm_transport.h): `self` (one rank, no MPI), `mpi` (host buffers), `fake` (any size; moves nothing,
 * counts everything: plans and dry runs), `nccl`. A group of one rank is always `self`: this is the only
 * place where size one is special.
 *
 *     struct comm_world *world;
 *     if (comm_world_open(&world, err)) ...exit 2...        // self, or MPI when a launcher started us
 *     struct comm *tp = comm_open(world, "tensor", ranks, count);
 *     comm_all_reduce(tp, x, n, COMM_F32, COMM_SUM);                    // blocking
 *     struct comm_request *r = comm_start_reduce_scatter(dp, buffer, n, COMM_F32);   // runs beside compute
 *     ... comm_wait(r);
 *
 * Order and bits: every reduction adds the members' contributions in rank order, element by element, in
 * float32 (in double for COMM_F64, integers in their own type), and rounds once. In MAX and MIN a NaN wins.
 * So a result depends on the group and its inputs only: not on timing, message size or algorithm, and every
 * member gets the same bits.
 *
 * Calls on one communicator must be made in the same order by all members. Up to COMM_MAX_REQUESTS requests
 * may be in flight on a rank, on one or several communicators; they make progress on a helper thread while
 * the caller computes. A buffer belongs to the request until comm_wait. One thread at a time may use a
 * communicator; different ones may be used by different threads. Send and receive match by (communicator,
 * peer, tag), in the order of their starts; tags 0 to COMM_MAX_TAG. Sizes may exceed 2^31 bytes. Reductions
 * on one communicator run one after the other, everything else runs at once.
 *
 * Memory: comm_open takes what it will ever need; nothing is allocated later. Staging for reductions is
 * comm_staging_bytes(size) per communicator, a number that the plan can know before launch.
 *
 * Failure: there are no error codes. A failed library call, a peer that died or a call that takes longer than
 * the patience ends the whole job (die, STATUS_FAILED) with one line; on a time-out the first rank that
 * noticed prints who waits for whom. die() on any rank takes all ranks down at once. */
#include "core/base/check.h"
#include "core/tensor/dtype.h"
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum comm_dtype { COMM_F32, COMM_BF16, COMM_F16, COMM_F64, COMM_I32, COMM_I64, COMM_U8, COMM_DTYPE_COUNT };
enum comm_reduce { COMM_SUM, COMM_MAX, COMM_MIN };
enum { COMM_MAX_TAG = 32767, COMM_MAX_REQUESTS = 256 };

size_t comm_dtype_bytes(enum comm_dtype dtype);
enum comm_dtype comm_dtype_of(enum dtype dtype);

struct comm_world;
struct comm;
struct comm_request;

/* ---- the world ---- */

/* Finds out who started this process. Under mpirun or srun --mpi=... (seen from the variables that they set)
 * MPI is opened; otherwise the world is one rank and MPI is not touched. Refuses, with the working command,
 * when a launcher started several tasks that this binary could only run as "rank 0 of 1" each (srun without
 * PMI, or a binary without MPI). Sets the log's rank and the die hook. */
int comm_world_open(struct comm_world **world_p, struct err *err);
/* A world of `size` ranks seen as `rank`, on the fake transport. */
void comm_world_open_fake(struct comm_world **world_p, int rank, int size);
/* Collective. Every communicator must have been closed. NULL is fine. */
void comm_world_close(struct comm_world *world);
int comm_world_rank(const struct comm_world *world);
int comm_world_size(const struct comm_world *world);
/* Rank on this machine and ranks on this machine, from the launcher; 0 and 1 on `self`. */
int comm_world_local_rank(const struct comm_world *world);
int comm_world_local_size(const struct comm_world *world);
const char *comm_world_host(const struct comm_world *world);
const char *comm_world_transport(const struct comm_world *world); /* "self", "mpi", "fake", "nccl" */

/* What this rank is doing, for the watchdog's table: "iteration 12, backward of micro-batch 3". Copied, at
 * most 96 characters; cheap enough to call once per action. */
void comm_world_note(struct comm_world *world, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Patience of every wait, in seconds; 0 waits for ever. Default 600. */
void comm_world_set_timeout(struct comm_world *world, double seconds);
/* While `alarmed` is true (this rank was told to end: perhaps because another one is gone, and the launcher
 * now ends the rest), a wait of a few seconds already asks whether all ranks live. One that does not answer
 * ends the job; ranks that answer are waited for with the usual patience. Called from any thread. NULL
 * removes it. */
void comm_world_set_alarm(struct comm_world *world, bool (*alarmed)(void));

/* ---- groups ---- */

/* Collective over the members, which call their opens in the same order. `ranks` are world ranks, rising in
 * the group's own order; the caller must be one of them (on `fake` it is). `name` is copied:
 * "tensor-parallel". */
struct comm *comm_open(struct comm_world *world, const char *name, const int *ranks, int count);
void comm_close(struct comm *comm); /* NULL is fine */
int comm_size(const struct comm *comm);
int comm_rank(const struct comm *comm); /* of the caller, in the group */
int comm_world_rank_of(const struct comm *comm, int member);
const char *comm_name(const struct comm *comm);
/* Bytes of staging that a communicator of this size takes; 0 for one rank. */
size_t comm_staging_bytes(int size);

/* ---- blocking calls ---- */

/* buf[count] on every member becomes the reduction over the members. */
void comm_all_reduce(struct comm *comm, void *buf, int64_t count, enum comm_dtype dtype, enum comm_reduce op);
/* Member r gets the sum of slice r. buf holds size * count elements; the result lies at buf + r * count (in
 * place); the rest of buf is destroyed. */
void comm_reduce_scatter(struct comm *comm, void *buf, int64_t count, enum comm_dtype dtype);
/* Member r gives buf + r * count; afterwards buf holds all size * count elements. */
void comm_all_gather(struct comm *comm, void *buf, int64_t count, enum comm_dtype dtype);
/* Block j of `send` (count elements) goes to member j; block j of `receive` comes from member j. */
void comm_all_to_all(struct comm *comm, void *receive, const void *send, int64_t count,
                     enum comm_dtype dtype);
/* With a count and an offset (in elements) for each member; counts[i] may be 0. */
void comm_all_to_all_v(struct comm *comm, void *receive, const int64_t *receive_counts,
                       const int64_t *receive_offsets, const void *send, const int64_t *send_counts,
                       const int64_t *send_offsets, enum comm_dtype dtype);
/* With lists of pieces: member m is sent send_pieces[m * each .. (m + 1) * each) in this order, and fills
 * receive_pieces[m * each ..) likewise. Offsets and counts are in units of `width` elements; the counts that
 * two members have for each other must be equal, piece by piece; a count may be 0. */
struct comm_piece {
    int64_t offset, count;
};
void comm_exchange(struct comm *comm, void *receive, const struct comm_piece *receive_pieces,
                   const void *send, const struct comm_piece *send_pieces, int64_t each, int64_t width,
                   enum comm_dtype dtype);
void comm_broadcast(struct comm *comm, void *buf, int64_t count, enum comm_dtype dtype, int root);
void comm_barrier(struct comm *comm);

/* ---- calls that run beside compute ---- */

struct comm_request *comm_start_all_reduce(struct comm *comm, void *buf, int64_t count, enum comm_dtype dtype,
                                           enum comm_reduce op);
struct comm_request *comm_start_reduce_scatter(struct comm *comm, void *buf, int64_t count,
                                               enum comm_dtype dtype);
struct comm_request *comm_start_all_gather(struct comm *comm, void *buf, int64_t count,
                                           enum comm_dtype dtype);
struct comm_request *comm_start_all_to_all(struct comm *comm, void *receive, const void *send, int64_t count,
                                           enum comm_dtype dtype);
struct comm_request *comm_start_send(struct comm *comm, const void *buf, int64_t bytes, int peer, int tag);
struct comm_request *comm_start_receive(struct comm *comm, void *buf, int64_t bytes, int peer, int tag);
/* Returns when the request is done and frees it. NULL is fine. */
void comm_wait(struct comm_request *request);
/* True when comm_wait would return at once. Does not free it. */
bool comm_is_done(struct comm_request *request);

/* ---- what was communicated ---- */

enum comm_kind {
    COMM_KIND_ALL_REDUCE,
    COMM_KIND_REDUCE_SCATTER,
    COMM_KIND_ALL_GATHER,
    COMM_KIND_ALL_TO_ALL,
    COMM_KIND_BROADCAST,
    COMM_KIND_SEND,
    COMM_KIND_RECEIVE,
    COMM_KIND_BARRIER,
    COMM_KIND_COUNT
};
const char *comm_kind_name(enum comm_kind kind); /* "all-reduce" */

struct comm_stats {
    int64_t calls;
    double bytes; /* that this rank sends, by the ring bound: all-reduce 2 (n-1)/n, gather and scatter (n-1)/n
                     of the whole buffer, all-to-all its off-rank part, send its size */
    double wait_seconds; /* the caller stood still, in starts and waits: exposed communication */
};
/* Since the last reset; also counted on `fake`. */
const struct comm_stats *comm_stats(const struct comm *comm, enum comm_kind kind);
void comm_reset_stats(struct comm *comm);

/* Called on the waiting thread after each request ends: when the operation ran, and when the caller was
 * in its start and in its wait. For traces; NULL removes it. */
struct comm_event {
    const char *group;
    enum comm_kind kind;
    uint64_t begin_ns, end_ns; /* from its start, or its turn, to its last byte */
    uint64_t start_begin_ns, start_end_ns, wait_begin_ns, wait_end_ns; /* the caller's two calls: exposed */
    double bytes;
};
void comm_world_set_observer(struct comm_world *world,
                             void (*observe)(void *context, const struct comm_event *event), void *context);
