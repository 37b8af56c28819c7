/* The transport of a group of one rank. Collectives in place leave the buffer as it is; all-to-all copies; a
 * send and a receive meet each other by tag, in the order of their starts. */
#include "parallel/comm/comm_transport.h"
#include <string.h>

static void finish(struct comm_request *request) {
    request->end_ns = comm_now_ns();
    request->done = true;
}

static void copy_block(struct comm_request *request) {
    size_t bytes = comm_dtype_bytes(request->dtype);
    int64_t count = request->send_counts ? request->send_counts[0] : request->count;
    size_t from = request->send_offsets ? (size_t)request->send_offsets[0] * bytes : 0;
    size_t to = request->receive_offsets ? (size_t)request->receive_offsets[0] * bytes : 0;
    if (count > 0)
        memmove((char *)request->buf + to, (const char *)request->send + from, (size_t)count * bytes);
}

/* Meets the oldest waiting request of the other direction with this tag, or waits itself. */
static void meet(struct comm_request *request) {
    struct comm_request **at = &request->comm->pending;
    while (*at && ((*at)->kind == request->kind || (*at)->tag != request->tag)) at = &(*at)->next;
    struct comm_request *other = *at;
    if (!other) {
        *at = request; /* at the end: requests stay in the order of their starts */
        request->next = NULL;
        return;
    }
    *at = other->next;
    struct comm_request *send = request->kind == COMM_KIND_SEND ? request : other;
    struct comm_request *receive = send == request ? other : request;
    CHECK(send->count == receive->count, "rank sends itself %lld bytes with tag %d and expects %lld",
          (long long)send->count, send->tag, (long long)receive->count);
    if (send->count) memmove(receive->buf, send->send, (size_t)send->count);
    finish(send);
    finish(receive);
}

static void self_start(struct comm_request *request) {
    if (request->kind == COMM_KIND_SEND || request->kind == COMM_KIND_RECEIVE) {
        meet(request);
        return;
    }
    if (request->send_pieces)
        comm_copy_own_pieces(request);
    else if (request->kind == COMM_KIND_ALL_TO_ALL)
        copy_block(request);
    finish(request);
}

static bool self_test(struct comm_request *request) {
    return request->done;
}

static void self_wait(struct comm_request *request) {
    CHECK(request->done,
          "group %s: the rank waits for a message to or from itself (tag %d) that it has not started",
          request->comm->name, request->tag);
}

static void self_close(struct comm *comm) {
    CHECK(!comm->pending, "group %s is closed with a message in flight", comm->name);
}

const struct comm_transport comm_transport_self = {
    .name = "self", .close = self_close, .start = self_start, .test = self_test, .wait = self_wait};
