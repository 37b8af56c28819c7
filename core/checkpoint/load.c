#include "core/base/mem.h"
#include "core/checkpoint/agree.h"
#include "core/checkpoint/checksum.h"
#include "core/checkpoint/find.h"
#include "core/checkpoint/manifest.h"
#include "core/checkpoint/pieces.h"
#include "core/checkpoint/reader.h"
#include "core/checkpoint/record.h"
#include "core/checkpoint/save.h"
#include <stdio.h>
#include <string.h>

/* Held elements with less than a page of others between them are read in one go. */
enum { READ_GAP = 4096 / sizeof(float) };

/* One tensor of the run's model, on disk. */
struct part {
    const struct checkpoint_entry *entry;
    enum checkpoint_slot slot;
    char name[CHECKPOINT_MAX_SLOT_NAME];
    int file;
    uint64_t want;      /* checksum in the manifest */
    uint64_t sum, seen; /* of the elements that this rank answers for; later of all */
};

struct load {
    struct comm *world;
    const struct checkpoint_load_options *options;
    const struct checkpoint_model *model;
    const struct checkpoint_tensor *tensors;
    int *head, *next; /* lists of tensors by number in `all` */
    struct checkpoint_entry *entries;
    int num_entries;
    bool wants_optimizer; /* and of this checkpoint: */
    struct part *parts;
    int num_parts;
    struct checkpoint_state state;
    struct checkpoint_reader reader;
    struct checkpoint_rects rects;
    float *staging;
    size_t staging_floats;
};

static float *staging(struct load *l, int64_t floats) {
    if ((size_t)floats > l->staging_floats) {
        mem_free(l->staging);
        l->staging_floats = (size_t)floats;
        l->staging = mem_alloc(l->staging_floats * sizeof(float), "checkpoint staging");
    }
    return l->staging;
}

/* ---- reading ---- */

struct read_runs {
    const struct safetensors *file;
    const struct safetensors_tensor *source;
    struct part *part;
    int64_t first; /* element on disk of data[0] */
    float *data;
    struct err *err;
};

static int read_run(void *context, int64_t first, int64_t count) {
    const struct read_runs *r = context;
    return safetensors_read(r->file, r->source, (uint64_t)first * sizeof(float), r->data + (first - r->first),
                            (size_t)count * sizeof(float), r->err);
}

static int sum_run(void *context, int64_t first, int64_t count) {
    const struct read_runs *r = context;
    r->part->sum += checkpoint_checksum(r->data + (first - r->first), first, count);
    r->part->seen += (uint64_t)count;
    return 0;
}

static int read_piece(struct load *l, struct read_runs *r, const struct checkpoint_tensor *tensor) {
    const struct checkpoint_entry *e = r->part->entry;
    float *const slots[] = {tensor->master, tensor->exp_avg, tensor->exp_avg_sq};
    float *held = slots[r->part->slot];
    int64_t max_rows = checkpoint_staging_rows(e);
    struct checkpoint_block block = {0};
    checkpoint_rects_set(&l->rects, e, tensor);
    CHECK(held || !l->rects.count, "%s: not all ranks have optimizer state", tensor->name);
    if (e->vocabulary) checkpoint_rects_limit(&l->rects, r->source->dims[0]);
    while (checkpoint_block_next(&block, &l->rects, e, block.first + block.num_rows, max_rows)) {
        int64_t place = checkpoint_block_in_place(&block);
        r->first = block.first * block.width;
        r->data = place >= 0 ? held + place : staging(l, max_rows * block.width);
        if (checkpoint_block_runs(&block, READ_GAP, read_run, r)) return -1;
        if (tensor->writes) checkpoint_block_runs(&block, 0, sum_run, r);
        if (place < 0) checkpoint_block_scatter(&block, r->data, held);
    }
    return 0;
}

/* Rows of a larger padded vocabulary than ours: nobody holds them, but the checksum covers them. */
static int read_surplus(struct load *l, struct read_runs *r) {
    const struct checkpoint_entry *e = r->part->entry;
    int64_t step = checkpoint_staging_rows(e), width = e->dims[1];
    r->data = staging(l, step * width);
    for (int64_t row = e->dims[0]; row < r->source->dims[0]; row += step) {
        int64_t rows = r->source->dims[0] - row < step ? r->source->dims[0] - row : step;
        r->first = row * width;
        if (read_run(r, r->first, rows * width)) return -1;
        sum_run(r, r->first, rows * width);
    }
    return 0;
}

static bool same_shape(const struct checkpoint_entry *entry, const struct safetensors_tensor *t) {
    if (t->dtype != SAFETENSORS_F32 || t->num_dims != entry->num_dims) return false;
    for (int d = 0; d < t->num_dims; d++)
        if (t->dims[d] != entry->dims[d] && !(entry->vocabulary && d == 0)) return false;
    return true;
}

static enum checkpoint_outcome load_part(struct load *l, struct part *part, struct err *err) {
    const struct checkpoint_entry *e = part->entry;
    bool surplus = e->vocabulary && checkpoint_is_first(l->world);
    uint64_t ignored;
    struct read_runs r = {.part = part, .err = err};
    if (l->head[e->tensor] < 0 && !surplus) return CHECKPOINT_USED;
    r.source = checkpoint_reader_find(&l->reader, part->name, &r.file, &ignored, err);
    if (!r.source) return CHECKPOINT_DAMAGED;
    if (!same_shape(e, r.source)) {
        err_set(
            err, "%s: tensor '%s' is %s of %d dimensions [%lld, ...], this run's model has F32 [%lld, %lld]",
            l->reader.manifest->path, part->name, safetensors_dtype_name(r.source->dtype), r.source->num_dims,
            (long long)r.source->dims[0], (long long)e->dims[0], (long long)e->dims[1]);
        return CHECKPOINT_UNFIT;
    }
    for (int i = l->head[e->tensor]; i >= 0; i = l->next[i])
        if (read_piece(l, &r, &l->tensors[i])) return CHECKPOINT_DAMAGED;
    if (surplus && read_surplus(l, &r)) return CHECKPOINT_DAMAGED;
    return CHECKPOINT_USED;
}

/* ---- one checkpoint ---- */

/* Lists the tensors that are to be loaded; all must be there, and no weight that the run's model has not. */
static enum checkpoint_outcome list_parts(struct load *l, bool optimizer, struct err *err) {
    const struct checkpoint_manifest *m = l->reader.manifest;
    enum checkpoint_slot end = optimizer ? CHECKPOINT_SLOTS : CHECKPOINT_EXP_AVG;
    size_t weights = 0;
    l->num_parts = 0;
    for (int i = 0; i < l->num_entries; i++)
        for (enum checkpoint_slot slot = CHECKPOINT_MASTER; slot < end; slot++) {
            if (slot > CHECKPOINT_MASTER && l->entries[i].is_state) continue;
            struct part *p = &l->parts[l->num_parts++];
            *p = (struct part){.entry = &l->entries[i], .slot = slot};
            checkpoint_slot_name(slot, p->entry, p->name);
            if (checkpoint_manifest_tensor(m, p->name, &p->file, &p->want)) {
                err_set(err, "%s: the checkpoint has no tensor '%s', which this run's model has", m->path,
                        p->name);
                return CHECKPOINT_UNFIT;
            }
        }
    for (size_t i = 0; i < m->tensors->count; i++)
        weights +=
            strncmp(m->tensors->keys[i], "exp_avg.", 8) && strncmp(m->tensors->keys[i], "exp_avg_sq.", 11);
    if (weights == (size_t)l->num_entries) return CHECKPOINT_USED;
    err_set(err, "%s: the checkpoint has %zu weight tensors, this run's model %d: it is another model",
            m->path, weights, l->num_entries);
    return CHECKPOINT_UNFIT;
}

static enum checkpoint_outcome read_parts(struct load *l, struct err *err) {
    const struct checkpoint_manifest *m = l->reader.manifest;
    if (checkpoint_is_first(l->world) && /* what it warns of, it says once */
        checkpoint_compare_models(&m->model, l->model, m->path, err))
        return CHECKPOINT_UNFIT;
    bool optimizer = l->wants_optimizer && !m->release;
    if (optimizer && !m->has_optimizer) {
        err_set(err, "%s: was saved without optimizer state: load it with --no-load-optim or --finetune",
                m->path);
        return CHECKPOINT_UNFIT;
    }
    enum checkpoint_outcome outcome = list_parts(l, optimizer, err);
    for (int i = 0; i < l->num_parts && outcome == CHECKPOINT_USED; i++)
        outcome = load_part(l, &l->parts[i], err);
    return outcome;
}

/* Adds up what the ranks have seen and compares it with the manifest. */
static enum checkpoint_outcome check_sums(struct load *l, struct err *err) {
    const struct checkpoint_manifest *m = l->reader.manifest;
    uint64_t *sums = mem_new_array(uint64_t, 2 * (size_t)l->num_parts + 1, "checkpoint sums");
    enum checkpoint_outcome outcome = CHECKPOINT_USED;
    for (int i = 0; i < l->num_parts; i++) sums[2 * i] = l->parts[i].sum, sums[2 * i + 1] = l->parts[i].seen;
    checkpoint_add_up(l->world, sums, 2 * l->num_parts);
    for (int i = 0; i < l->num_parts && outcome == CHECKPOINT_USED; i++) {
        const struct part *p = &l->parts[i];
        uint64_t elements = (uint64_t)(p->entry->dims[0] * p->entry->dims[1]);
        CHECK(p->entry->vocabulary || sums[2 * i + 1] == elements,
              "%s: the ranks answer for %llu of %llu elements", p->name, (unsigned long long)sums[2 * i + 1],
              (unsigned long long)elements);
        if (sums[2 * i] == p->want) continue;
        err_set(err, "%s/%s: the checksum of tensor '%s' differs: the file was changed or is bad", m->path,
                m->files[p->file].name, p->name);
        outcome = CHECKPOINT_DAMAGED;
    }
    mem_free(sums);
    return outcome;
}

static enum checkpoint_outcome try_load(void *context, const char *path, struct err *err) {
    struct load *l = context;
    struct checkpoint_manifest *m = checkpoint_manifest_open(path, err);
    enum checkpoint_outcome outcome = m ? CHECKPOINT_USED : CHECKPOINT_DAMAGED;
    if (m) {
        checkpoint_reader_init(&l->reader, m);
        outcome = read_parts(l, err);
    }
    outcome = (enum checkpoint_outcome)checkpoint_agree(l->world, (int)outcome, err);
    if (outcome == CHECKPOINT_USED) { /* the sums are the same everywhere: so is the outcome */
        outcome = check_sums(l, err);
        checkpoint_share(l->world, &outcome, sizeof(outcome));
    }
    if (outcome == CHECKPOINT_USED) {
        l->state = m->state;
        if (m->release || l->options->finetune) l->state = (struct checkpoint_state){.seed = m->state.seed};
        checkpoint_share(l->world, &l->state, sizeof(l->state));
    }
    if (m) checkpoint_reader_free(&l->reader);
    checkpoint_manifest_close(m);
    return outcome;
}

/* ---- the call ---- */

static int open_load(struct load *l, const struct checkpoint_group *group, int count, struct err *err) {
    struct checkpoint_shape *own = group->all ? NULL : checkpoint_shapes_of(l->tensors, count);
    const struct checkpoint_shape *all = group->all ? group->all : own;
    int num_all = group->all ? group->num_all : count;
    l->entries = checkpoint_entries_of_all(l->model, all, num_all, &l->num_entries, err);
    if (l->entries) {
        int *owner = checkpoint_find_owners(all, num_all, l->tensors, count);
        l->parts = mem_new_array(struct part, (size_t)l->num_entries * CHECKPOINT_SLOTS + 1, "load plan");
        l->head = mem_new_array(int, (size_t)num_all + 1, "load plan");
        l->next = mem_new_array(int, (size_t)count + 1, "load plan");
        for (int i = 0; i < num_all; i++) l->head[i] = -1;
        for (int i = count - 1; i >= 0; i--) l->next[i] = l->head[owner[i]], l->head[owner[i]] = i;
        mem_free(owner);
    }
    mem_free(own);
    return l->entries ? 0 : -1;
}

static void close_load(struct load *l) {
    mem_free(l->entries);
    mem_free(l->parts);
    mem_free(l->head);
    mem_free(l->next);
    mem_free(l->staging);
    checkpoint_rects_free(&l->rects);
}

int checkpoint_load(const char *dir, const struct checkpoint_load_options *options,
                    const struct checkpoint_model *model, const struct checkpoint_tensor *tensors, int count,
                    struct checkpoint_state *state_p, struct err *err) {
    static const struct checkpoint_load_options defaults = {0};
    bool found = false;
    if (!options) options = &defaults;
    struct comm *world = options->group.world;
    struct load l = {.world = world, .options = options, .model = model, .tensors = tensors};
    l.wants_optimizer =
        checkpoint_have_optimizer(world, tensors, count) && !options->no_optimizer && !options->finetune;
    int status = open_load(&l, &options->group, count, err);
    status = checkpoint_agree(world, status != 0, err);
    if (!status) status = checkpoint_try_places(world, dir, options->step, try_load, &l, true, &found, err);
    close_load(&l);
    if (status) return -1;
    if (!found) return checkpoint_say_nothing_there(dir, options->step, err);
    *state_p = l.state;
    return 0;
}
