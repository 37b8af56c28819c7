/* device.h by the CUDA runtime. Not part of the emulation. */
#ifndef CUDA_EMULATION
#include "kernels/cuda/cuda.cuh"
#include <cstdio>
extern "C" {
#include "kernels/cuda/device.h"
}

static void must(cudaError_t status, const char *what) {
    CHECK(status == cudaSuccess, "CUDA: %s: %s", what, cudaGetErrorString(status));
}

static cudaStream_t native(struct device_stream *stream) {
    return reinterpret_cast<cudaStream_t>(stream);
}

static cudaEvent_t native(struct device_event *event) {
    return reinterpret_cast<cudaEvent_t>(event);
}

int device_count(void) {
    int count = 0;
    if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
    (void)cudaGetLastError();
    return 0;
}

static __global__ void nothing_kernel(void) {}

int device_open(int index, char *name, size_t name_bytes, struct err *err) {
    cudaDeviceProp properties;
    cudaFuncAttributes attributes;
    if (index < 0 || index >= device_count())
        return err_set(err,
                       "GPU %d: this machine has %d that CUDA can use (is the driver installed, and "
                       "CUDA_VISIBLE_DEVICES right?)",
                       index, device_count());
    must(cudaGetDeviceProperties(&properties, index), "cudaGetDeviceProperties");
    must(cudaSetDevice(index), "cudaSetDevice");
    snprintf(name, name_bytes, "%s", properties.name);
    if (cudaFuncGetAttributes(&attributes, nothing_kernel) != cudaSuccess) {
        (void)cudaGetLastError();
        return err_set(
            err, "GPU %d is a %s (sm_%d%d), for which this build has no code: build with CUDA_ARCHS=%d%d",
            index, properties.name, properties.major, properties.minor, properties.major, properties.minor);
    }
    return 0;
}

void device_memory(size_t *free_p, size_t *total_p) {
    must(cudaMemGetInfo(free_p, total_p), "cudaMemGetInfo");
}

/* Out of memory is an answer; anything else is not. */
static void *taken(cudaError_t status, void *p, const char *what) {
    if (status == cudaErrorMemoryAllocation) {
        (void)cudaGetLastError();
        return nullptr;
    }
    must(status, what);
    return p;
}

void *device_alloc(size_t bytes) {
    void *p = nullptr;
    const cudaError_t status = cudaMalloc(&p, bytes);
    return taken(status, p, "cudaMalloc");
}

void device_free(void *p) {
    must(cudaFree(p), "cudaFree");
}

void *device_alloc_host(size_t bytes) {
    void *p = nullptr;
    const cudaError_t status = cudaMallocHost(&p, bytes);
    return taken(status, p, "cudaMallocHost");
}

void device_free_host(void *p) {
    if (p) must(cudaFreeHost(p), "cudaFreeHost");
}

struct device_stream *device_stream_open(void) {
    cudaStream_t stream;
    must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    return reinterpret_cast<struct device_stream *>(stream);
}

void device_stream_close(struct device_stream *stream) {
    must(cudaStreamDestroy(native(stream)), "cudaStreamDestroy");
}

void device_stream_sync(struct device_stream *stream) {
    must(cudaStreamSynchronize(native(stream)), "work on the device");
}

void device_copy(struct device_stream *stream, void *dst, const void *src, size_t bytes) {
    must(cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDefault, native(stream)), "cudaMemcpyAsync");
}

void device_set(struct device_stream *stream, void *dst, int byte, size_t bytes) {
    must(cudaMemsetAsync(dst, byte, bytes, native(stream)), "cudaMemsetAsync");
}

struct device_event *device_event_open(bool timed) {
    cudaEvent_t event;
    must(cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming),
         "cudaEventCreate");
    return reinterpret_cast<struct device_event *>(event);
}

void device_event_close(struct device_event *event) {
    must(cudaEventDestroy(native(event)), "cudaEventDestroy");
}

void device_event_record(struct device_event *event, struct device_stream *stream) {
    must(cudaEventRecord(native(event), native(stream)), "cudaEventRecord");
}

void device_stream_wait(struct device_stream *stream, struct device_event *event) {
    must(cudaStreamWaitEvent(native(stream), native(event), 0), "cudaStreamWaitEvent");
}

double device_event_seconds(struct device_event *from, struct device_event *to) {
    float milliseconds = 0;
    must(cudaEventElapsedTime(&milliseconds, native(from), native(to)), "cudaEventElapsedTime");
    return (double)milliseconds * 1e-3;
}
#endif
