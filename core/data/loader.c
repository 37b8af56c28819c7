#include "core/data/loader.h"
#include "core/base/mem.h"
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>

enum { RING = 4 }; /* micro-batches: one in use, the others prepared ahead */

struct slot {
    int32_t *tokens, *labels, *position_ids; /* [b, s] */
    float *loss_mask;                        /* [b, s] */
    int64_t first_sample;
};

struct loader {
    const struct dataset *dataset;
    int64_t micro_batch, seq_length;
    int dp_rank, dp_size;
    int32_t *text; /* [s + 1], the thread's */
    struct slot ring[RING];
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* under the lock */
    int64_t next_sample;  /* first sample of the next micro-batch of all data-parallel ranks */
    int64_t ready, taken; /* micro-batches prepared, handed out; the one in use is taken - 1 */
    uint64_t generation;  /* grows with each seek: work of an older one is thrown away */
    bool failed, closing;
    struct err err;
};

void batch_fill_row(const struct data_options *o, const int32_t *text, int32_t *tokens, int32_t *labels,
                    int32_t *position_ids, float *loss_mask) {
    int32_t position = 0;
    for (int64_t i = 0; i < o->seq_length; i++) {
        int32_t token = text[i], label = text[i + 1];
        bool eod = token == o->eod_id, pad = o->pad_id >= 0 && label == o->pad_id;
        loss_mask[i] = pad || (o->eod_mask_loss && eod) ? 0.0f : 1.0f;
        position_ids[i] = position;
        position = o->reset_position_ids && eod ? 0 : position + 1;
        tokens[i] = o->pad_id >= 0 && token == o->pad_id ? 0 : token;
        labels[i] = pad ? 0 : label;
    }
}

static int fill_slot(struct loader *l, struct slot *slot, int64_t first, struct err *err) {
    int64_t s = l->seq_length, length = dataset_length(l->dataset);
    slot->first_sample = first + l->dp_rank * l->micro_batch;
    /* as in Megatron-LM, an incomplete tail of all ranks together is dropped */
    if (first + l->micro_batch * l->dp_size > length)
        return err_set(err,
                       "the data ends at sample %lld; samples %lld to %lld were asked for: lower "
                       "--train-iters or --train-samples (or the evaluation's), or give more data",
                       (long long)length, (long long)first,
                       (long long)(first + l->micro_batch * l->dp_size - 1));
    for (int64_t row = 0; row < l->micro_batch; row++) {
        if (dataset_sample(l->dataset, slot->first_sample + row, l->text, err)) return -1;
        batch_fill_row(dataset_options(l->dataset), l->text, slot->tokens + row * s, slot->labels + row * s,
                       slot->position_ids + row * s, slot->loss_mask + row * s);
    }
    return 0;
}

static void *loader_main(void *argument) {
    struct loader *l = argument;
    struct err err;
    pthread_mutex_lock(&l->lock);
    while (!l->closing) {
        /* slot `taken - 1` is in use by the caller, so at most RING - 1 lie ahead of `taken` */
        if (l->failed || l->ready - l->taken >= RING - 1) {
            pthread_cond_wait(&l->changed, &l->lock);
            continue;
        }
        uint64_t generation = l->generation;
        int64_t first = l->next_sample;
        struct slot *slot = &l->ring[l->ready % RING];
        pthread_mutex_unlock(&l->lock);
        int failed = fill_slot(l, slot, first, &err);
        pthread_mutex_lock(&l->lock);
        if (generation != l->generation) continue;
        if (failed) {
            l->failed = true;
            l->err = err;
        } else {
            l->next_sample += l->micro_batch * l->dp_size;
            l->ready++;
        }
        pthread_cond_broadcast(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

static void take_memory(struct loader *l) {
    size_t n = mem_array_bytes((size_t)l->micro_batch, (size_t)l->seq_length);
    l->text = mem_new_array(int32_t, (size_t)l->seq_length + 1, "loader sample");
    for (int i = 0; i < RING; i++) {
        l->ring[i].tokens = mem_new_array(int32_t, n, "loader tokens");
        l->ring[i].labels = mem_new_array(int32_t, n, "loader labels");
        l->ring[i].position_ids = mem_new_array(int32_t, n, "loader position ids");
        l->ring[i].loss_mask = mem_new_array(float, n, "loader loss mask");
    }
}

static void release(struct loader *l) {
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->lock);
    for (int i = 0; i < RING; i++) {
        mem_free(l->ring[i].tokens);
        mem_free(l->ring[i].labels);
        mem_free(l->ring[i].position_ids);
        mem_free(l->ring[i].loss_mask);
    }
    mem_free(l->text);
    mem_free(l);
}

int loader_open(const struct dataset *dataset, int64_t micro_batch, int dp_rank, int dp_size,
                int64_t consumed_samples, struct loader **loader_p, struct err *err) {
    CHECK(micro_batch > 0 && dp_size > 0 && dp_rank >= 0 && dp_rank < dp_size && consumed_samples >= 0,
          "micro-batch %lld, data-parallel rank %d of %d, %lld samples consumed", (long long)micro_batch,
          dp_rank, dp_size, (long long)consumed_samples);
    struct loader *l = mem_zalloc(sizeof(*l), "loader");
    l->dataset = dataset;
    l->micro_batch = micro_batch;
    l->seq_length = dataset_options(dataset)->seq_length;
    l->dp_rank = dp_rank;
    l->dp_size = dp_size;
    l->next_sample = consumed_samples;
    take_memory(l);
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    sigset_t all, old; /* signals are for the thread that runs the loop */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int failed = pthread_create(&l->thread, NULL, loader_main, l);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (failed) {
        release(l);
        return err_set(err, "cannot start the data loader's thread: %s", strerror(failed));
    }
    *loader_p = l;
    return 0;
}

int loader_next(struct loader *l, struct batch *view, struct err *err) {
    pthread_mutex_lock(&l->lock);
    while (l->ready == l->taken && !l->failed) pthread_cond_wait(&l->changed, &l->lock);
    if (l->ready == l->taken) {
        if (err) *err = l->err;
        pthread_mutex_unlock(&l->lock);
        return -1;
    }
    const struct slot *slot = &l->ring[l->taken++ % RING];
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    *view = (struct batch){slot->tokens,   slot->labels,  slot->position_ids, slot->loss_mask,
                           l->micro_batch, l->seq_length, slot->first_sample};
    return 0;
}

void loader_seek(struct loader *l, int64_t consumed_samples) {
    pthread_mutex_lock(&l->lock);
    l->generation++;
    l->next_sample = consumed_samples;
    l->ready = l->taken;
    l->failed = false;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
}

void loader_close(struct loader *l) {
    if (!l) return;
    pthread_mutex_lock(&l->lock);
    l->closing = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    pthread_join(l->thread, NULL);
    release(l);
}
