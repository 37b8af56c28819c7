/* device.h in host memory: one device, whose work is done when a call returns. Allocations are separate
 * blocks, so that AddressSanitizer sees what runs over their ends. Events remember the order they were
 * recorded in: waiting for one that was never recorded, or asking for a time that was not taken, ends the
 * job. */
#define _Noreturn [[noreturn]]
extern "C" {
#include "core/base/check.h"
#include "kernels/cuda/device.h"
}
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>

struct device_stream {
    int unused;
};

struct device_event {
    bool timed, recorded;
    double seconds;
};

template <typename T> static T *zeroed() {
    void *p = calloc(1, sizeof(T));
    if (!p) die(STATUS_OUT_OF_MEMORY, "no memory for the emulated device");
    return static_cast<T *>(p);
}

int device_count(void) {
    return 1;
}

int device_open(int index, char *name, size_t name_bytes, struct err *err) {
    if (index != 0) return err_set(err, "GPU %d: the emulation has one, number 0", index);
    snprintf(name, name_bytes, "emulated device");
    return 0;
}

void device_memory(size_t *free_p, size_t *total_p) {
    *free_p = *total_p = (size_t)16 << 30;
}

void *device_alloc(size_t bytes) {
    void *p = nullptr;
    if (posix_memalign(&p, 256, bytes ? bytes : 1)) return nullptr;
    memset(p, 0xFF, bytes);
    return p;
}

void device_free(void *p) {
    free(p);
}

void *device_alloc_host(size_t bytes) {
    return device_alloc(bytes);
}

void device_free_host(void *p) {
    free(p);
}

struct device_stream *device_stream_open(void) {
    return zeroed<device_stream>();
}

void device_stream_close(struct device_stream *stream) {
    free(stream);
}

void device_stream_sync(struct device_stream *) {}

void device_copy(struct device_stream *, void *dst, const void *src, size_t bytes) {
    memmove(dst, src, bytes);
}

void device_set(struct device_stream *, void *dst, int byte, size_t bytes) {
    memset(dst, byte, bytes);
}

struct device_event *device_event_open(bool timed) {
    device_event *event = zeroed<device_event>();
    event->timed = timed;
    return event;
}

void device_event_close(struct device_event *event) {
    free(event);
}

void device_event_record(struct device_event *event, struct device_stream *) {
    timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    event->recorded = true;
    event->seconds = (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

void device_stream_wait(struct device_stream *, struct device_event *event) {
    CHECK(event->recorded, "a stream waits for an event that was never recorded");
}

double device_event_seconds(struct device_event *from, struct device_event *to) {
    CHECK(from->timed && to->timed && from->recorded && to->recorded, "the events hold no time");
    return to->seconds - from->seconds;
}
