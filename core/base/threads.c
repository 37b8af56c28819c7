#include "core/base/threads.h"
#include "core/base/check.h"
#include "core/base/hash.h"
#include "core/base/mem.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

enum { SPINS_BEFORE_SLEEP = 20000, MAX_THREADS = 256 };

struct threads {
    int count;
    pthread_t worker[MAX_THREADS];
    int index[MAX_THREADS];
    threads_fn fn;
    void *context;
    int64_t size, grain;
    _Alignas(64) _Atomic int64_t next;    /* first element not yet taken */
    _Alignas(64) _Atomic uint64_t ticket; /* number of the current loop; workers wait for it to change */
    _Alignas(64) _Atomic int busy;        /* workers that have not finished the current loop */
    _Atomic int sleepers;
    _Atomic int closing;
    pthread_mutex_t lock;
    pthread_cond_t wake;
};

struct worker_start {
    struct threads *team;
    int index;
};

static inline void pause_cpu(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static void run_chunks(struct threads *t, int thread) {
    for (;;) {
        int64_t begin = atomic_fetch_add_explicit(&t->next, t->grain, memory_order_relaxed);
        if (begin >= t->size) return;
        int64_t end = begin + t->grain < t->size ? begin + t->grain : t->size;
        t->fn(t->context, begin, end, thread);
    }
}

static uint64_t wait_for_loop(struct threads *t, uint64_t seen) {
    for (int i = 0; i < SPINS_BEFORE_SLEEP; i++) {
        uint64_t now = atomic_load_explicit(&t->ticket, memory_order_acquire);
        if (now != seen) return now;
        pause_cpu();
    }
    pthread_mutex_lock(&t->lock);
    atomic_fetch_add(&t->sleepers, 1);
    uint64_t now;
    while ((now = atomic_load(&t->ticket)) == seen) pthread_cond_wait(&t->wake, &t->lock);
    atomic_fetch_sub(&t->sleepers, 1);
    pthread_mutex_unlock(&t->lock);
    return now;
}

static void *worker_main(void *argument) {
    struct worker_start *start = argument;
    struct threads *t = start->team;
    int thread = start->index;
    mem_free(start);
    uint64_t seen = 0;
    for (;;) {
        seen = wait_for_loop(t, seen);
        if (atomic_load(&t->closing)) return NULL;
        run_chunks(t, thread);
        atomic_fetch_sub_explicit(&t->busy, 1, memory_order_release);
    }
}

int threads_processors(uint64_t *set_p) {
    cpu_set_t set;
    *set_p = 0;
    if (sched_getaffinity(0, sizeof(set), &set)) return 1;
    *set_p = hash_bytes(&set, sizeof(set));
    int n = CPU_COUNT(&set);
    return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n;
}

struct threads *threads_open(int count) {
    uint64_t set;
    struct threads *t = mem_zalloc(sizeof(*t), "thread team");
    t->count = count > 0 ? (count < MAX_THREADS ? count : MAX_THREADS) : threads_processors(&set);
    pthread_mutex_init(&t->lock, NULL);
    pthread_cond_init(&t->wake, NULL);
    for (int i = 1; i < t->count; i++) {
        struct worker_start *start = mem_alloc(sizeof(*start), "thread start");
        *start = (struct worker_start){t, i};
        CHECK(pthread_create(&t->worker[i], NULL, worker_main, start) == 0,
              "cannot start thread %d of %d; raise the process limit or lower --cpu-threads", i, t->count);
    }
    return t;
}

static void announce(struct threads *t) {
    atomic_fetch_add_explicit(&t->ticket, 1, memory_order_seq_cst);
    if (atomic_load_explicit(&t->sleepers, memory_order_seq_cst)) {
        pthread_mutex_lock(&t->lock);
        pthread_cond_broadcast(&t->wake);
        pthread_mutex_unlock(&t->lock);
    }
}

void threads_close(struct threads *t) {
    if (!t) return;
    atomic_store(&t->closing, 1);
    announce(t);
    pthread_mutex_lock(&t->lock); /* a worker about to sleep re-checks the ticket under this lock */
    pthread_cond_broadcast(&t->wake);
    pthread_mutex_unlock(&t->lock);
    for (int i = 1; i < t->count; i++) pthread_join(t->worker[i], NULL);
    pthread_cond_destroy(&t->wake);
    pthread_mutex_destroy(&t->lock);
    mem_free(t);
}

int threads_count(const struct threads *t) {
    return t ? t->count : 1;
}

void threads_for(struct threads *t, int64_t size, int64_t grain, threads_fn fn, void *context) {
    CHECK(grain > 0, "a loop needs a positive grain");
    if (size <= 0) return;
    if (!t || t->count == 1 || size <= grain) {
        for (int64_t i = 0; i < size; i += grain) fn(context, i, i + grain < size ? i + grain : size, 0);
        return;
    }
    t->fn = fn, t->context = context, t->size = size, t->grain = grain;
    atomic_store_explicit(&t->next, 0, memory_order_relaxed);
    atomic_store_explicit(&t->busy, t->count - 1, memory_order_relaxed);
    announce(t);
    run_chunks(t, 0);
    for (int spins = 0; atomic_load_explicit(&t->busy, memory_order_acquire); spins++) {
        if (spins < SPINS_BEFORE_SLEEP)
            pause_cpu();
        else
            sched_yield();
    }
}
