#include "core/train/sync.h"
#include "core/base/mem.h"
#include "core/train/timers.h"
#include "core/train/trace.h"

enum { NOBODY = -1 };

/* A gather under way, or ended and not unpacked: the staging buffer holds the bucket in the compute dtype. */
struct staging {
    int bucket;
    struct comm_request *request;
};

/* A unit's reduction under way in a gradient unit buffer. */
struct unit_grads {
    int bucket;
    struct comm_request *request;
};

/* The buffers of a family; both families pass through theirs side by side. */
struct passage {
    struct staging staging[2];
    int unit_weights[2]; /* bucket whose weights lie in the buffer */
    int next_weights;    /* buffer to be overwritten next */
    struct unit_grads unit_grads[2];
    int next_grads;
    int running_grads; /* buffer of the segment whose backward runs */
};

struct sync {
    bool overlap_grads, overlap_gather;
    struct comm_request **reductions; /* per bucket */
    bool *reduced;                    /* per bucket: started in this step */
    bool *shard_written;              /* per unit bucket: its gradient shard holds something of this step */
    bool *stale;                      /* per bucket: masters are newer than the copies */
    struct passage passages[FAMILY_COUNT];
};

struct sync *sync_open(struct executor *e) {
    size_t n = (size_t)e->plan->num_buckets;
    struct sync *s = mem_new_array(struct sync, 1, "sync");
    s->reductions = mem_new_array(struct comm_request *, n, "sync");
    s->reduced = mem_new_array(bool, n, "sync");
    s->shard_written = mem_new_array(bool, n, "sync");
    s->stale = mem_new_array(bool, n, "sync");
    for (int f = 0; f < FAMILY_COUNT; f++) {
        struct passage *p = &s->passages[f];
        for (int i = 0; i < 2; i++)
            p->staging[i].bucket = p->unit_weights[i] = p->unit_grads[i].bucket = NOBODY;
        p->running_grads = NOBODY;
    }
    return s;
}

void sync_close(struct sync *s) {
    if (!s) return;
    for (int f = 0; f < FAMILY_COUNT; f++)
        for (int i = 0; i < 2; i++)
            comm_wait(s->passages[f].staging[i].request); /* gathered ahead for a step that never came */
    mem_free(s->reductions);
    mem_free(s->reduced);
    mem_free(s->shard_written);
    mem_free(s->stale);
    mem_free(s);
}

void sync_set_overlap(struct sync *s, bool grad_reduce, bool param_gather) {
    s->overlap_grads = grad_reduce;
    s->overlap_gather = param_gather;
}

static bool is_sharded(const struct plan_bucket *b) {
    return b->shard_elements < b->elements;
}

static const struct plan_sharing *sharing_of(const struct executor *e, const struct plan_bucket *b) {
    return &e->plan->sharing[b->family];
}

static struct comm *comm_of(const struct executor *e, const struct plan_bucket *b) {
    return b->family == FAMILY_EXPERT ? e->comms.expert_data : e->comms.data;
}

static struct passage *passage_of(const struct executor *e, int bucket) {
    return &e->sync->passages[e->plan->buckets[bucket].family];
}

/* ---- weights ---- */

/* The forms that matrix products read, from a row-major matrix. */
static void pack(struct executor *e, const struct plan_param *p, const void *src, enum dtype src_dtype,
                 const struct param_view *view) {
    const struct kernels *k = e->plan->request.kernels;
    enum dtype dtype = e->plan->request.model.dtype;
    int64_t rows = p->dims[0] / p->groups, cols = p->dims[1];
    for (int g = 0; g < p->groups; g++) {
        const char *from = (const char *)src + (size_t)(g * rows * cols) * dtype_bytes(src_dtype);
        if (view->packed_forward)
            KERNEL_CALL(gemm_pack, &e->stream, .src = from, .k = cols, .n = rows, .trans = true,
                        .dst = (char *)(uintptr_t)view->packed_forward +
                               (size_t)g * k->gemm_packed_bytes(dtype, cols, rows),
                        .dtype = dtype, .src_dtype = src_dtype);
        if (view->packed_backward)
            KERNEL_CALL(gemm_pack, &e->stream, .src = from, .k = rows, .n = cols,
                        .dst = (char *)(uintptr_t)view->packed_backward +
                               (size_t)g * k->gemm_packed_bytes(dtype, rows, cols),
                        .dtype = dtype, .src_dtype = src_dtype);
    }
}

/* All forms of one parameter. */
static void make_forms(struct executor *e, int param, const void *src, enum dtype src_dtype) {
    const struct plan_param *p = &e->plan->params[param];
    const struct param_view *view = &e->views[param];
    if (p->plain != SIZE_MAX)
        KERNEL_CALL(cast, &e->stream, .dst = (void *)(uintptr_t)view->plain, .src = src, .n = p->count,
                    .dst_dtype = e->plan->request.model.dtype, .src_dtype = src_dtype);
    pack(e, p, src, src_dtype, view);
}

static void make_bucket_forms(struct executor *e, int bucket, const char *staging) {
    const struct plan *plan = e->plan;
    enum dtype dtype = plan->request.model.dtype;
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        if (p->bucket != bucket) continue;
        make_forms(e, i, staging + (size_t)p->offset * dtype_bytes(dtype), dtype);
    }
}

static void start_gather(struct executor *e, int bucket, int buffer) {
    const struct plan_bucket *b = &e->plan->buckets[bucket];
    const struct plan_sharing *sharing = sharing_of(e, b);
    struct staging *st = &passage_of(e, bucket)->staging[buffer];
    enum dtype dtype = e->plan->request.model.dtype;
    char *whole = executor_at(e, sharing->gather[buffer]);
    size_t own = (size_t)(b->shard_elements * sharing->shard) * dtype_bytes(dtype);
    comm_wait(st->request);
    KERNEL_CALL(cast, &e->stream, .dst = whole + own, .src = executor_at(e, b->master),
                .n = b->shard_elements, .dst_dtype = dtype, .src_dtype = DTYPE_F32);
    st->bucket = bucket;
    st->request = comm_start_all_gather(comm_of(e, b), whole, b->shard_elements, comm_dtype_of(dtype));
}

/* A unit's views point into the buffer where its weights are about to lie. */
static void place_unit(struct executor *e, int bucket) {
    const struct plan *plan = e->plan;
    struct passage *passage = passage_of(e, bucket);
    int buffer = passage->next_weights;
    char *base = executor_at(e, sharing_of(e, &plan->buckets[bucket])->unit_weights[buffer]);
    passage->next_weights = !buffer;
    passage->unit_weights[buffer] = bucket;
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        if (p->bucket != bucket) continue;
        e->views[i].plain = p->plain == SIZE_MAX ? NULL : base + p->plain;
        e->views[i].packed_forward = p->packed_forward == SIZE_MAX ? NULL : base + p->packed_forward;
        e->views[i].packed_backward = p->packed_backward == SIZE_MAX ? NULL : base + p->packed_backward;
    }
}

static void prefetch(struct executor *e, int bucket) {
    if (bucket == NOBODY) return;
    const struct plan_sharing *sharing = sharing_of(e, &e->plan->buckets[bucket]);
    const struct staging *staging = passage_of(e, bucket)->staging;
    if (sharing->gather[0] == sharing->gather[1]) return;
    for (int i = 0; i < 2; i++)
        if (staging[i].bucket == bucket) return;
    for (int i = 0; i < 2; i++)
        if (staging[i].bucket == NOBODY) {
            start_gather(e, bucket, i);
            return;
        }
}

/* Waits until the bucket lies in a staging buffer, where it is on its way or where it comes by a gather of
 * its own. */
static int arrive(struct executor *e, int bucket) {
    struct staging *staging = passage_of(e, bucket)->staging;
    int buffer = 0;
    while (buffer < 2 && staging[buffer].bucket != bucket) buffer++;
    if (buffer == 2) {
        buffer = staging[0].bucket == NOBODY ? 0 : 1;
        start_gather(e, bucket, buffer);
    }
    comm_wait(staging[buffer].request);
    staging[buffer].request = NULL;
    if (e->plan->buckets[bucket].gathers_weights) place_unit(e, bucket);
    e->sync->stale[bucket] = false;
    return buffer;
}

static void unpack(struct executor *e, int bucket, int buffer) {
    const struct plan_sharing *sharing = sharing_of(e, &e->plan->buckets[bucket]);
    uint64_t begin = clock_now_ns();
    make_bucket_forms(e, bucket, executor_at(e, sharing->gather[buffer]));
    passage_of(e, bucket)->staging[buffer].bucket = NOBODY;
    if (e->trace)
        trace_span(e->trace, &(struct trace_event){.name = "pack_gathered_weights",
                                                   .category = "weights",
                                                   .begin_ns = begin,
                                                   .end_ns = clock_now_ns()});
}

static bool has_unit_weights(const struct executor *e, int bucket) {
    const struct passage *p = passage_of(e, bucket);
    return p->unit_weights[0] == bucket || p->unit_weights[1] == bucket;
}

/* The unit of this family that this action will need after `segment`. */
static int next_unit(const struct executor *e, const struct action *a, int segment, enum plan_family family) {
    const struct plan_chunk *c = &e->plan->chunks[a->chunk];
    int step = a->kind == ACTION_FORWARD ? 1 : -1;
    bool training = e->slots[frames_slot(e->plan, a)].training;
    for (int i = segment + step; i >= c->first_segment && i < c->first_segment + c->num_segments; i += step) {
        int unit = e->plan->segments[i].unit[family];
        if (!plan_runs_segment(e->plan, i, training)) continue;
        if (unit >= 0 && e->plan->buckets[unit].gathers_weights && !has_unit_weights(e, unit)) return unit;
    }
    return NOBODY;
}

static int next_stale(const struct executor *e, enum plan_family family) {
    for (int i = e->plan->num_buckets - 1; i >= 0; i--)
        if (e->sync->stale[i] && e->plan->buckets[i].family == family) return i;
    return NOBODY;
}

/* The next gather starts before this one is unpacked, and runs beside that too. */
static void need_fresh(struct executor *e, int segment) {
    const struct plan_segment *seg = &e->plan->segments[segment];
    const struct program *program = &e->plan->compiled[seg->compiled].program;
    for (int k = 0; k < program->num_params; k++) {
        int bucket = e->plan->params[seg->params[k]].bucket;
        if (!e->sync->stale[bucket]) continue;
        int buffer = arrive(e, bucket);
        prefetch(e, next_stale(e, e->plan->buckets[bucket].family));
        unpack(e, bucket, buffer);
    }
}

static bool gathers_unit(const struct executor *e, int unit) {
    return unit >= 0 && e->plan->buckets[unit].gathers_weights;
}

/* Gathers of both families are under way before the first is waited for. */
static void need_weights(struct executor *e, const struct action *a, int segment) {
    const int *units = e->plan->segments[segment].unit;
    int buffers[FAMILY_COUNT];
    need_fresh(e, segment);
    if (a->kind == ACTION_WEIGHT) return;
    for (int f = 0; f < FAMILY_COUNT; f++)
        if (gathers_unit(e, units[f]) && !has_unit_weights(e, units[f])) prefetch(e, units[f]);
    for (int f = 0; f < FAMILY_COUNT; f++) {
        struct passage *passage = &e->sync->passages[f];
        buffers[f] = NOBODY;
        if (!gathers_unit(e, units[f])) continue;
        if (!has_unit_weights(e, units[f])) buffers[f] = arrive(e, units[f]);
        passage->next_weights = passage->unit_weights[0] == units[f] ? 1 : 0; /* this one is in use */
        prefetch(e, next_unit(e, a, segment, (enum plan_family)f));
    }
    for (int f = 0; f < FAMILY_COUNT; f++)
        if (buffers[f] != NOBODY) unpack(e, units[f], buffers[f]);
}

bool sync_is_local(const struct executor *e, int param) {
    return !is_sharded(&e->plan->buckets[e->plan->params[param].bucket]);
}

void sync_pack_local(struct executor *e, int param) {
    const struct plan_param *p = &e->plan->params[param];
    pack(e, p, executor_at(e, p->master), DTYPE_F32, &e->views[param]);
}

void sync_weights_changed(struct executor *e) {
    for (int i = 0; i < e->plan->num_params; i++)
        if (sync_is_local(e, i)) make_forms(e, i, executor_at(e, e->plan->params[i].master), DTYPE_F32);
    sync_shards_changed(e);
}

void sync_shards_changed(struct executor *e) {
    struct sync *s = e->sync;
    for (int f = 0; f < FAMILY_COUNT; f++)
        for (int i = 0; i < 2; i++) s->passages[f].unit_weights[i] = NOBODY;
    for (int i = e->plan->num_buckets - 1; i >= 0; i--) {
        const struct plan_bucket *b = &e->plan->buckets[i];
        if (is_sharded(b) && !b->gathers_weights) s->stale[i] = true;
    }
    for (int i = e->plan->num_buckets - 1; i >= 0 && !s->overlap_gather; i--)
        if (s->stale[i]) unpack(e, i, arrive(e, i));
    for (int f = 0; f < FAMILY_COUNT && s->overlap_gather; f++)
        prefetch(e, next_stale(e, (enum plan_family)f));
}

/* ---- gradients ---- */

/* Ends the reduction in a unit buffer: the own slice joins the unit's gradient shard. */
static void fold_unit(struct executor *e, enum plan_family family, int buffer) {
    struct sync *s = e->sync;
    struct unit_grads *u = &s->passages[family].unit_grads[buffer];
    if (u->bucket == NOBODY) return;
    const struct plan_bucket *b = &e->plan->buckets[u->bucket];
    const struct plan_sharing *sharing = &e->plan->sharing[family];
    comm_wait(u->request);
    float *shard = executor_at(e, b->grad_shard);
    const float *sum =
        (const float *)executor_at(e, sharing->unit_grads[buffer]) + b->shard_elements * sharing->shard;
    if (s->shard_written[u->bucket])
        KERNEL_CALL(add, &e->stream, .y = shard, .a = shard, .b = sum, .n = b->shard_elements,
                    .dtype = DTYPE_F32);
    else
        KERNEL_CALL(cast, &e->stream, .dst = shard, .src = sum, .n = b->shard_elements,
                    .dst_dtype = DTYPE_F32, .src_dtype = DTYPE_F32);
    s->shard_written[u->bucket] = true;
    *u = (struct unit_grads){NOBODY, NULL};
}

/* Gradients of a unit's parameters go to a buffer of their own, for this micro-batch alone. With the fused
 * loss they are written by forward already. */
static void need_unit_grads(struct executor *e, int bucket) {
    const struct plan *plan = e->plan;
    enum plan_family family = plan->buckets[bucket].family;
    struct passage *passage = &e->sync->passages[family];
    int buffer = passage->next_grads;
    fold_unit(e, family, buffer);
    char *base = executor_at(e, plan->sharing[family].unit_grads[buffer]);
    KERNEL_CALL(fill, &e->stream, .y = base, .n = plan->buckets[bucket].elements, .value = 0,
                .dtype = DTYPE_F32);
    for (int i = 0; i < plan->num_params; i++) {
        if (plan->params[i].bucket != bucket) continue;
        e->views[i].grad = (float *)(void *)(base + plan->params[i].grad);
        e->grad_written[i] = false;
    }
    passage->running_grads = buffer;
    passage->next_grads = !buffer;
}

static void start_reduction(struct executor *e, int bucket) {
    const struct plan_bucket *b = &e->plan->buckets[bucket];
    struct sync *s = e->sync;
    float *grad = executor_at(e, b->grad);
    s->reduced[bucket] = true;
    if (sharing_of(e, b)->ranks == 1) return;
    s->reductions[bucket] = is_sharded(b)
                                ? comm_start_reduce_scatter(comm_of(e, b), grad, b->shard_elements, COMM_F32)
                                : comm_start_all_reduce(comm_of(e, b), grad, b->elements, COMM_F32, COMM_SUM);
}

static bool makes_grads(const struct executor *e, const struct action *a) {
    return a->kind == (e->plan->schedule->splits_backward ? ACTION_WEIGHT : ACTION_BACKWARD);
}

/* Of a unit: with multi-token prediction the output layer is none, as several segments read it. */
static bool writes_grads_in_forward(const struct executor *e, int segment) {
    const struct model *m = &e->plan->request.model;
    return e->plan->segments[segment].kind == SEGMENT_HEAD && m->fused_loss && !m->mtp_layers;
}

void sync_before_segment(struct executor *e, const struct action *a, int segment) {
    bool training = e->slots[frames_slot(e->plan, a)].training;
    const int *units = e->plan->segments[segment].unit;
    need_weights(e, a, segment);
    if (!training || e->plan->request.forward_only) return;
    bool in_forward = writes_grads_in_forward(e, segment);
    if (in_forward ? a->kind != ACTION_FORWARD : !makes_grads(e, a)) return;
    for (int f = 0; f < FAMILY_COUNT; f++)
        if (units[f] >= 0) need_unit_grads(e, units[f]);
}

static void reduce_unit(struct executor *e, int unit) {
    const struct plan_bucket *b = &e->plan->buckets[unit];
    struct passage *passage = passage_of(e, unit);
    float *grads = executor_at(e, sharing_of(e, b)->unit_grads[passage->running_grads]);
    passage->unit_grads[passage->running_grads] = (struct unit_grads){
        unit, comm_start_reduce_scatter(comm_of(e, b), grads, b->shard_elements, COMM_F32)};
}

void sync_after_segment(struct executor *e, const struct action *a, int segment) {
    struct sync *s = e->sync;
    const struct plan *plan = e->plan;
    if (!makes_grads(e, a)) return;
    for (int f = 0; f < FAMILY_COUNT; f++)
        if (plan->segments[segment].unit[f] >= 0) reduce_unit(e, plan->segments[segment].unit[f]);
    if (!a->last_of_chunk || !s->overlap_grads) return;
    for (int i = 0; i < plan->num_buckets; i++)
        if (!plan->buckets[i].is_unit && plan->buckets[i].segment == segment) start_reduction(e, i);
}

/* Sums of held gradients over another group, for parameters of which each member makes a part; a few at a
 * time in flight. */
enum { IN_FLIGHT = 64 };
struct sums {
    struct comm_request *requests[IN_FLIGHT];
    int count;
};

static void sums_wait(struct sums *sums) {
    for (int i = 0; i < sums->count; i++) comm_wait(sums->requests[i]);
    sums->count = 0;
}

static void sums_add(struct sums *sums, struct comm *comm, void *data, int64_t count) {
    if (count <= 0 || !comm || comm_size(comm) == 1) return;
    if (sums->count == IN_FLIGHT) sums_wait(sums);
    sums->requests[sums->count++] = comm_start_all_reduce(comm, data, count, COMM_F32, COMM_SUM);
}

static void sum_parts(struct executor *e) {
    const struct plan *plan = e->plan;
    struct sums sums = {.count = 0};
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        float *grad = executor_at(e, p->held_grad);
        if (p->sum_over_tensor) sums_add(&sums, e->comms.tensor, grad, p->held_count);
        if (!p->shard.shared_from_row) continue;
        int64_t shared = p->shard.shared_from_row * p->dims[1] - p->held_begin;
        if (shared < 0) shared = 0;
        sums_add(&sums, e->comms.kv, grad + shared, p->held_count - shared);
    }
    sums_wait(&sums);
    for (int i = 0; i < plan->num_params; i++)
        if (plan->params[i].is_tied_copy) {
            const struct plan_bucket *b = &plan->buckets[plan->params[i].bucket];
            sums_add(&sums, e->comms.embedding, executor_at(e, b->grad_shard), b->shard_elements);
        }
    sums_wait(&sums);
}

void sync_finish_grads(struct executor *e) {
    struct sync *s = e->sync;
    for (int i = 0; i < e->plan->num_buckets; i++)
        if (!e->plan->buckets[i].is_unit && !s->reduced[i]) start_reduction(e, i);
    for (int f = 0; f < FAMILY_COUNT; f++)
        for (int i = 0; i < 2; i++) fold_unit(e, (enum plan_family)f, i);
    for (int i = 0; i < e->plan->num_buckets; i++) {
        comm_wait(s->reductions[i]);
        s->reductions[i] = NULL;
        s->reduced[i] = s->shard_written[i] = false;
    }
    sum_parts(e);
}
