#include "core/base/mem.h"
#include "core/checkpoint/save.h"
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

struct checkpoint_async {
    float *snapshot;
    uint64_t snapshot_bytes;
    struct checkpoint_tensor *tensors; /* those that write, pointing into the snapshot */
    int *owner, count;
    struct checkpoint_saving saving;
    struct err err; /* the thread's */
    pthread_t thread;
    bool has_thread;
    _Atomic int progress; /* enum checkpoint_progress */
};

static uint64_t tensor_floats(const struct checkpoint_tensor *t) {
    return t->writes ? (uint64_t)(t->end - t->begin) * (t->exp_avg ? CHECKPOINT_SLOTS : 1) : 0;
}

uint64_t checkpoint_async_bytes(const struct checkpoint_tensor *tensors, int count) {
    uint64_t floats = 0;
    for (int i = 0; i < count; i++) floats += tensor_floats(&tensors[i]);
    return floats * sizeof(float);
}

struct checkpoint_async *checkpoint_async_open(uint64_t snapshot_bytes) {
    struct checkpoint_async *a = mem_zalloc(sizeof(*a), "background save");
    a->snapshot_bytes = snapshot_bytes;
    a->snapshot = mem_alloc(snapshot_bytes, "snapshot of the background save");
    return a;
}

static void wait_for_thread(struct checkpoint_async *a) {
    if (a->has_thread) pthread_join(a->thread, NULL);
    a->has_thread = false;
}

static void forget(struct checkpoint_async *a) {
    mem_free(a->tensors);
    mem_free(a->owner);
    a->tensors = NULL, a->owner = NULL, a->count = 0;
    atomic_store(&a->progress, CHECKPOINT_IDLE);
}

void checkpoint_async_close(struct checkpoint_async *async) {
    if (!async) return;
    wait_for_thread(async);
    if (checkpoint_async_poll(async) != CHECKPOINT_IDLE) {
        checkpoint_job_close(&async->saving.job);
        mem_free(async->saving.owner);
    }
    forget(async);
    mem_free(async->snapshot);
    mem_free(async);
}

static float *copy(float **to, const float *from, int64_t count) {
    float *at = *to;
    if (!from) return NULL;
    memcpy(at, from, (size_t)count * sizeof(float));
    *to += count;
    return at;
}

static void take_snapshot(struct checkpoint_async *a, const struct checkpoint_tensor *tensors, int count) {
    float *to = a->snapshot;
    bool optimizer = a->saving.job.optimizer;
    a->tensors = mem_new_array(struct checkpoint_tensor, (size_t)count + 1, "background save");
    a->owner = mem_new_array(int, (size_t)count + 1, "background save");
    CHECK(checkpoint_async_bytes(tensors, count) <= a->snapshot_bytes,
          "the snapshot has %llu bytes, the tensors %llu", (unsigned long long)a->snapshot_bytes,
          (unsigned long long)checkpoint_async_bytes(tensors, count));
    for (int i = 0; i < count; i++) {
        if (!tensor_floats(&tensors[i])) continue;
        struct checkpoint_tensor *t = &a->tensors[a->count];
        int64_t floats = tensors[i].end - tensors[i].begin;
        a->owner[a->count++] = a->saving.owner[i];
        *t = tensors[i];
        t->master = copy(&to, tensors[i].master, floats);
        t->exp_avg = copy(&to, optimizer ? tensors[i].exp_avg : NULL, floats);
        t->exp_avg_sq = copy(&to, optimizer ? tensors[i].exp_avg_sq : NULL, floats);
    }
}

static void *write_snapshot(void *context) {
    struct checkpoint_async *a = context;
    int status = checkpoint_job_write(&a->saving.job, a->tensors, a->owner, a->count, &a->err);
    atomic_store(&a->progress, status ? CHECKPOINT_FAILED : CHECKPOINT_WRITTEN);
    return NULL;
}

int checkpoint_async_begin(struct checkpoint_async *async, const char *dir,
                           const struct checkpoint_save_options *options,
                           const struct checkpoint_model *model, const struct checkpoint_tensor *tensors,
                           int count, const struct checkpoint_state *state, const char *config_json,
                           struct err *err) {
    CHECK(checkpoint_async_poll(async) == CHECKPOINT_IDLE, "a background save is under way");
    if (checkpoint_saving_begin(&async->saving, dir, options, model, tensors, count, state, config_json, err))
        return -1;
    take_snapshot(async, tensors, count);
    atomic_store(&async->progress, CHECKPOINT_WRITING);
    sigset_t all, before; /* signals are for the caller's thread */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    async->has_thread = pthread_create(&async->thread, NULL, write_snapshot, async) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (!async->has_thread) write_snapshot(async); /* no thread to be had: then not in the background */
    return 0;
}

enum checkpoint_progress checkpoint_async_poll(const struct checkpoint_async *async) {
    return (enum checkpoint_progress)atomic_load(&async->progress);
}

int64_t checkpoint_async_iteration(const struct checkpoint_async *async) {
    return checkpoint_async_poll(async) == CHECKPOINT_IDLE ? -1 : async->saving.job.iteration;
}

int checkpoint_async_finish(struct checkpoint_async *async, struct err *err) {
    if (checkpoint_async_poll(async) == CHECKPOINT_IDLE) return 0;
    wait_for_thread(async);
    bool failed = checkpoint_async_poll(async) == CHECKPOINT_FAILED;
    if (failed) *err = async->err;
    int status = checkpoint_saving_end(&async->saving, failed ? -1 : 0, err);
    forget(async);
    return status;
}
