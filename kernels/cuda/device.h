#pragma once
/* The device below the kernels: memory, copies, streams, events. Real builds use the CUDA runtime
 * (device.cu); the emulation has host memory under the same functions (tests/cuda_emulation/device.cc), where
 * every call is done when it returns. A call that fails ends the job, but for device_open, which a user can
 * cause to fail.
 *
 *     if (device_open(local_rank, &err)) return -1;
 *     void *arena = device_alloc(bytes);
 *     struct device_stream *copies = device_stream_open();
 *     device_copy(copies, arena, host, n);            // host memory from device_alloc_host: truly
 * asynchronous device_event_record(done, copies);  device_stream_wait(compute, done);
 *
 * Memory is taken before the first step and given back at the end: nothing here is called by a kernel. */
#include <stdbool.h>
#include <stddef.h>

struct err;
struct device_stream; /* a cudaStream_t, as struct stream's device_stream */
struct device_event;

int device_count(void); /* 0 when there is none, or no driver */
/* Makes device `index` this process's own and names it in `name`. -1 with a message when there is no such
 * device, or this build has no code for it. */
int device_open(int index, char *name, size_t name_bytes, struct err *err);
void device_memory(size_t *free_p, size_t *total_p);

void *device_alloc(size_t bytes);      /* NULL when the device has not that much left */
void device_free(void *p);             /* NULL is fine */
void *device_alloc_host(size_t bytes); /* pinned; NULL when there is not that much */
void device_free_host(void *p);

struct device_stream *device_stream_open(void);
void device_stream_close(struct device_stream *stream);
void device_stream_sync(struct device_stream *stream); /* waits, and reports what went wrong on the device */
/* In the order of the stream; either side may be the host or the device. NULL: the default stream. */
void device_copy(struct device_stream *stream, void *dst, const void *src, size_t bytes);
void device_set(struct device_stream *stream, void *dst, int byte, size_t bytes);

struct device_event *device_event_open(bool timed);
void device_event_close(struct device_event *event);
void device_event_record(struct device_event *event, struct device_stream *stream);
void device_stream_wait(struct device_stream *stream, struct device_event *event);
double device_event_seconds(struct device_event *from, struct device_event *to); /* both timed and done */
