#pragma once
/* Writer of Chrome trace files (chrome://tracing, ui.perfetto.dev): spans with arguments, and counter tracks
 * such as memory. The file on disk is valid JSON after every flush, also when the process is killed
 * afterwards: each flush writes its events followed by the closing brackets, and the next one overwrites the
 * brackets.
 *
 * Events go to a fixed buffer that is written out when full; nothing is allocated after open. After
 * `max_events` further events are counted and dropped; close says how many. Not thread safe: one thread
 * records, `track` tells apart what it records about. Times are clock_now_ns values.
 *
 *     struct trace *t = trace_open("trace.json", 0, 1 << 20, err);
 *     trace_name_track(t, 0, "compute");
 *     trace_span(t, &(struct trace_event){.name = "qkv_linear", .category = "forward", .begin_ns = a,
 *                .end_ns = b, .num_args = 2, .args = {{"layer", 3}, {"micro_batch", 0}}});
 *     trace_counter(t, "memory", clock_now_ns(), 1, &(struct trace_arg){"allocated_bytes", bytes});
 *     trace_close(t); */
#include "core/base/check.h"
#include <stdint.h>

enum { TRACE_MAX_ARGS = 8 };
enum { TRACK_COMPUTE, TRACK_COMMUNICATION, TRACK_WAITING }; /* the tracks of a training run */

struct trace_arg {
    const char *name;
    double value; /* whole numbers up to 2^53 are printed exactly */
};

struct trace_event {
    const char *name;
    const char
        *category; /* "forward", "backward", "recompute", ...; NULL for none; colours the span's filter */
    int track;     /* shown as a thread */
    uint64_t begin_ns, end_ns;
    int num_args;
    struct trace_arg args[TRACE_MAX_ARGS];
};

struct trace;
/* `rank` becomes the process of the trace, so that the files of several ranks can be joined. NULL on
 * error. */
struct trace *trace_open(const char *path, int rank, uint64_t max_events, struct err *err);
void trace_name_track(struct trace *t, int track, const char *name);
void trace_span(struct trace *t, const struct trace_event *event);
/* One counter track per name; each value is one series of it (at most TRACE_MAX_ARGS). */
void trace_counter(struct trace *t, const char *name, uint64_t time_ns, int count,
                   const struct trace_arg *values);
void trace_flush(struct trace *t);
void trace_close(struct trace *t); /* NULL is fine */
