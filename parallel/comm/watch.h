#pragma once
/* Who waits for whom (private to parallel/comm): what a rank says about itself, and the table made of the
 * answers of all ranks. Pure; mpi_watch.c carries the questions and answers. The table has a line for each
 * rank that is not simply waiting for others, because one of them holds everybody up:
 *
 *   who waits for whom, asked by rank 3; 7 of 8 ranks answered
 *     rank 1 (node7, pid 4711) does not answer: it is stopped, dead or out of reach
 *     rank 2 (node7, pid 4712) is not waiting, its last call ended 31 s ago (all-gather #7 of group tensor):
 *       iteration 3, forward of micro-batch 2
 *     6 ranks wait for others: 0 3 4 5 6 7 */
#include "core/base/str.h"
#include "parallel/comm/comm_transport.h"

enum { WATCH_MEMBERS = 64, WATCH_MISSING = 16 };

/* One operation, told so that other ranks can compare it with theirs. */
struct watch_call {
    char group[COMM_NAME_BYTES];
    int group_id, size;
    int members[WATCH_MEMBERS]; /* world ranks, the first WATCH_MEMBERS */
    enum comm_kind kind;
    enum comm_dtype dtype;
    enum comm_reduce reduce;
    int64_t count;
    uint64_t sequence;
    int peer, tag; /* send and receive: a world rank */
    int num_missing;
    int missing[WATCH_MISSING]; /* world ranks that it waits for, the first WATCH_MISSING */
};

/* Plain data: it travels as bytes. */
struct watch_report {
    int rank, pid;
    char host[COMM_HOST_BYTES];
    bool answered;  /* else only rank, pid and host hold */
    bool waiting;   /* else the call is the last that ended */
    bool asking;    /* its own patience is over too */
    double seconds; /* it waits, or has made no call */
    struct watch_call call;
    char note[COMM_NOTE_BYTES];
};

/* "reduce-scatter #812 of group data-parallel [1 3], 1024 f32" */
void watch_print_call(struct str *out, const struct watch_call *call);
/* "rank 3 (host, pid 12) waited 10 s in ... for rank 1" */
void watch_print_wait(struct str *out, const struct watch_report *report);
/* reports[size], by world rank. */
void watch_print_table(struct str *out, const struct watch_report *reports, int size, int asker);
