#include "core/base/mem.h"
#include "core/base/check.h"
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Each block is preceded by one 64-byte line that holds its size, so frees are counted exactly. */
enum { HEADER_BYTES = 64 };
struct header {
    size_t bytes;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct mem_stats stats;
static uint64_t fail_countdown;

static void count(int64_t blocks, size_t taken, size_t given) {
    pthread_mutex_lock(&lock);
    if (taken) stats.allocations++;
    stats.live_blocks = (uint64_t)((int64_t)stats.live_blocks + blocks);
    stats.live_bytes += taken;
    stats.live_bytes -= given;
    if (stats.live_bytes > stats.peak_bytes) stats.peak_bytes = stats.live_bytes;
    pthread_mutex_unlock(&lock);
}

static int must_fail(void) {
    pthread_mutex_lock(&lock);
    int fail = fail_countdown && --fail_countdown == 0;
    pthread_mutex_unlock(&lock);
    return fail;
}

void *mem_alloc(size_t bytes, const char *name) {
    if (!bytes) return NULL;
    void *p = NULL;
    if (must_fail() || bytes > SIZE_MAX - HEADER_BYTES ||
        posix_memalign(&p, HEADER_BYTES, bytes + HEADER_BYTES))
        die(STATUS_OUT_OF_MEMORY, "out of host memory: %zu bytes for %s", bytes, name);
    ((struct header *)p)->bytes = bytes;
    count(1, bytes, 0);
    return (char *)p + HEADER_BYTES;
}

void *mem_zalloc(size_t bytes, const char *name) {
    void *p = mem_alloc(bytes, name);
    if (p) memset(p, 0, bytes);
    return p;
}

void *mem_realloc(void *p, size_t bytes, const char *name) {
    if (!p) return mem_alloc(bytes, name);
    size_t old = ((struct header *)((char *)p - HEADER_BYTES))->bytes;
    void *q = mem_alloc(bytes, name);
    if (q) memcpy(q, p, old < bytes ? old : bytes);
    mem_free(p);
    return q;
}

void mem_free(void *p) {
    if (!p) return;
    struct header *h = (struct header *)((char *)p - HEADER_BYTES);
    count(-1, 0, h->bytes);
    free(h);
}

char *mem_strdup(const char *s, const char *name) {
    size_t n = strlen(s) + 1;
    return memcpy(mem_alloc(n, name), s, n);
}

size_t mem_array_bytes(size_t n, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(n, size, &bytes))
        die(STATUS_OUT_OF_MEMORY, "out of host memory: an array of %zu times %zu bytes", n, size);
    return bytes;
}

struct mem_stats mem_stats(void) {
    pthread_mutex_lock(&lock);
    struct mem_stats copy = stats;
    pthread_mutex_unlock(&lock);
    return copy;
}

void mem_fail_nth(uint64_t n) {
    pthread_mutex_lock(&lock);
    fail_countdown = n;
    pthread_mutex_unlock(&lock);
}
