#include "core/train/trace.h"
#include "core/train/timers.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum {
    BUFFER_BYTES = 1 << 18,
    EVENT_BYTES = 4096, /* the longest event: names are cut so that it fits */
    NAME_BYTES = 120,
};

static const char closing[] = "\n]}\n";

struct trace {
    int fd, rank;
    bool failed, any_event;
    uint64_t begin_ns, events, max_events, dropped;
    off_t tail; /* where the closing brackets begin in the file */
    size_t used;
    char path[1024];
    char buffer[BUFFER_BYTES];
};

static void put_text(struct trace *t, const char *text) {
    size_t length = strlen(text);
    memcpy(t->buffer + t->used, text, length);
    t->used += length;
}

/* A JSON string, cut to NAME_BYTES source bytes; control characters, which names do not have, become '?'. */
static void put_string(struct trace *t, const char *text) {
    size_t length = strnlen(text, NAME_BYTES + 1);
    if (length > NAME_BYTES)
        for (length = NAME_BYTES; length && ((unsigned char)text[length] & 0xC0) == 0x80;) length--;
    t->buffer[t->used++] = '"';
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') t->buffer[t->used++] = '\\';
        t->buffer[t->used++] = c < 0x20 ? '?' : (char)c;
    }
    t->buffer[t->used++] = '"';
}

static void put_number(struct trace *t, double value) {
    char text[40];
    if (!isfinite(value))
        put_text(t, "null");
    else {
        bool whole = fabs(value) <= 0x1p53 && value == floor(value);
        snprintf(text, sizeof(text), whole ? "%.0f" : "%.9g", value);
        put_text(t, text);
    }
}

/* Microseconds since the trace began, with three decimals; what began earlier is shown at zero. */
static void put_time(struct trace *t, const char *key, uint64_t ns) {
    char text[64];
    snprintf(text, sizeof(text), ",\"%s\":%llu.%03u", key, (unsigned long long)(ns / 1000),
             (unsigned)(ns % 1000));
    put_text(t, text);
}

static void put_args(struct trace *t, int count, const struct trace_arg *args) {
    put_text(t, ",\"args\":{");
    for (int i = 0; i < count && i < TRACE_MAX_ARGS; i++) {
        if (i) put_text(t, ",");
        put_string(t, args[i].name);
        put_text(t, ":");
        put_number(t, args[i].value);
    }
    put_text(t, "}");
}

/* Opens an event object: false when it must be dropped. Metadata is never dropped. */
static bool begin_event(struct trace *t, char phase, const char *name, int track, bool counted) {
    char text[96];
    if (t->failed) return false;
    if (counted && t->events >= t->max_events) {
        t->dropped++;
        return false;
    }
    t->events += counted;
    if (t->used + EVENT_BYTES > BUFFER_BYTES) trace_flush(t);
    put_text(t, t->any_event ? ",\n{\"name\":" : "\n{\"name\":");
    t->any_event = true;
    put_string(t, name);
    snprintf(text, sizeof(text), ",\"ph\":\"%c\",\"pid\":%d,\"tid\":%d", phase, t->rank, track);
    put_text(t, text);
    return true;
}

static void name_something(struct trace *t, const char *what, int track, const char *name) {
    if (!begin_event(t, 'M', what, track, false)) return;
    put_text(t, ",\"args\":{\"name\":");
    put_string(t, name);
    put_text(t, "}}");
}

struct trace *trace_open(const char *path, int rank, uint64_t max_events, struct err *err) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    char name[32];
    if (fd < 0) {
        err_set(err, "trace file %s: cannot be written: %s", path, strerror(errno));
        return NULL;
    }
    struct trace *t = mem_new_array(struct trace, 1, "trace");
    t->fd = fd;
    t->rank = rank;
    t->max_events = max_events;
    t->begin_ns = clock_now_ns();
    snprintf(t->path, sizeof(t->path), "%s", path);
    put_text(t, "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[");
    snprintf(name, sizeof(name), "rank %d", rank);
    name_something(t, "process_name", 0, name);
    trace_flush(t);
    if (t->failed) {
        err_set(err, "trace file %s: cannot be written", path);
        trace_close(t);
        return NULL;
    }
    return t;
}

void trace_name_track(struct trace *t, int track, const char *name) {
    name_something(t, "thread_name", track, name);
}

void trace_span(struct trace *t, const struct trace_event *e) {
    if (!begin_event(t, 'X', e->name, e->track, true)) return;
    uint64_t begin = e->begin_ns > t->begin_ns ? e->begin_ns : t->begin_ns;
    if (e->category) {
        put_text(t, ",\"cat\":");
        put_string(t, e->category);
    }
    put_time(t, "ts", begin - t->begin_ns);
    put_time(t, "dur", e->end_ns > begin ? e->end_ns - begin : 0);
    if (e->num_args) put_args(t, e->num_args, e->args);
    put_text(t, "}");
}

void trace_counter(struct trace *t, const char *name, uint64_t time_ns, int count,
                   const struct trace_arg *values) {
    if (!begin_event(t, 'C', name, 0, true)) return;
    put_time(t, "ts", time_ns > t->begin_ns ? time_ns - t->begin_ns : 0);
    put_args(t, count, values);
    put_text(t, "}");
}

/* After a failed write: closes the array where the last whole flush ended; those bytes exist already, so
 * that this works on a full disk too. */
static void fail(struct trace *t, const char *reason) {
    log_error("trace file %s: %s: no more events are recorded; the training goes on", t->path, reason);
    t->failed = true;
    if (!t->tail) return;
    if (pwrite(t->fd, closing, sizeof(closing) - 1, t->tail) != (ssize_t)sizeof(closing) - 1 ||
        ftruncate(t->fd, t->tail + (off_t)sizeof(closing) - 1))
        log_error("trace file %s: could not be closed properly: %s", t->path, strerror(errno));
}

void trace_flush(struct trace *t) {
    size_t length = t->used + sizeof(closing) - 1, done = 0;
    if (t->failed) return;
    memcpy(t->buffer + t->used, closing, sizeof(closing) - 1); /* EVENT_BYTES of room are always left */
    while (done < length) {
        ssize_t n = pwrite(t->fd, t->buffer + done, length - done, t->tail + (off_t)done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            fail(t, n ? strerror(errno) : "nothing could be written");
            break;
        }
        done += (size_t)n;
    }
    if (!t->failed) t->tail += (off_t)t->used;
    t->used = 0;
}

void trace_close(struct trace *t) {
    if (!t) return;
    trace_flush(t);
    if (t->dropped)
        log_warn("trace file %s: holds the first %llu events; %llu later ones were left out", t->path,
                 (unsigned long long)t->max_events, (unsigned long long)t->dropped);
    close(t->fd);
    mem_free(t);
}
