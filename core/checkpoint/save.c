#include "core/checkpoint/save.h"
#include "core/base/mem.h"
#include "core/checkpoint/agree.h"
#include "core/checkpoint/pieces.h"
#include "core/checkpoint/record.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- one rank's elements ---- */

struct put_runs {
    struct checkpoint_job *job;
    struct safetensors_writer *writer;
    int item;
    int64_t first; /* element on disk of data[0] */
    const float *data;
    struct err *err;
};

static int put_run(void *context, int64_t first, int64_t count) {
    const struct put_runs *p = context;
    return checkpoint_job_put(p->job, p->writer, p->item, first, p->data + (first - p->first), count, p->err);
}

static int write_piece(struct checkpoint_job *job, struct safetensors_writer *writer, int item,
                       const struct checkpoint_tensor *t, struct checkpoint_rects *rects, float *staging,
                       struct err *err) {
    const struct checkpoint_entry *e = job->items[item].entry;
    const float *const slots[] = {t->master, t->exp_avg, t->exp_avg_sq}, *held = slots[job->items[item].slot];
    int64_t max_rows = checkpoint_staging_rows(e);
    struct checkpoint_block block = {0};
    int status = 0;
    checkpoint_rects_set(rects, e, t);
    CHECK(held || !rects->count, "%s: not all ranks have optimizer state", t->name);
    while (!status && checkpoint_block_next(&block, rects, e, block.first + block.num_rows, max_rows)) {
        int64_t place = checkpoint_block_in_place(&block);
        struct put_runs put = {job, writer, item, block.first * block.width, staging, err};
        if (place >= 0)
            put.data = held + place;
        else
            checkpoint_block_gather(&block, held, staging);
        status = checkpoint_block_runs(&block, 0, put_run, &put);
    }
    return status;
}

/* The tensors of each owner as lists: head[owner], then next[tensor]; -1 ends one. */
struct lists {
    int *head, *next;
};

static struct lists list_by_owner(const struct checkpoint_job *job, const int *owner, int count) {
    int owners = job->num_entries ? job->entries[job->num_entries - 1].tensor + 1 : 0;
    struct lists l = {mem_new_array(int, (size_t)owners + 1, "checkpoint lists"),
                      mem_new_array(int, (size_t)count + 1, "checkpoint lists")};
    for (int i = 0; i < owners; i++) l.head[i] = -1;
    for (int i = count - 1; i >= 0; i--) l.next[i] = l.head[owner[i]], l.head[owner[i]] = i;
    return l;
}

int checkpoint_job_write(struct checkpoint_job *job, const struct checkpoint_tensor *tensors,
                         const int *owner, int count, struct err *err) {
    struct lists lists = list_by_owner(job, owner, count);
    struct checkpoint_rects rects = {0};
    float *staging = mem_alloc(job->num_staging * sizeof(float), "checkpoint staging");
    int status = 0, item = 0;
    for (int file = 0; file < job->num_outputs && !status; file++) {
        struct safetensors_writer *writer = NULL;
        struct err ignored;
        for (; item < job->num_items && job->items[item].file == file; item++)
            for (int i = lists.head[job->items[item].entry->tensor]; i >= 0 && !status; i = lists.next[i]) {
                if (!tensors[i].writes || tensors[i].begin == tensors[i].end) continue;
                if (!writer && !(writer = checkpoint_job_attach(job, file, err))) status = -1;
                if (!status) status = write_piece(job, writer, item, &tensors[i], &rects, staging, err);
            }
        if (safetensors_writer_close(writer, status ? &ignored : err)) status = -1;
    }
    checkpoint_rects_free(&rects);
    mem_free(staging);
    mem_free(lists.head);
    mem_free(lists.next);
    return status;
}

/* ---- all ranks ---- */

struct named {
    const char *name;
    int number;
};

static int compare_named(const void *a, const void *b) {
    return strcmp(((const struct named *)a)->name, ((const struct named *)b)->name);
}

static int64_t columns(int num_dims, const int64_t dims[2]) {
    return num_dims > 1 ? dims[1] : 1;
}

int *checkpoint_find_owners(const struct checkpoint_shape *all, int num_all,
                            const struct checkpoint_tensor *tensors, int count) {
    struct named *names = mem_new_array(struct named, (size_t)num_all + 1, "checkpoint names");
    int *owner = mem_new_array(int, (size_t)count + 1, "checkpoint owners");
    for (int i = 0; i < num_all; i++) names[i] = (struct named){all[i].name, i};
    qsort(names, (size_t)num_all, sizeof(*names), compare_named);
    for (int i = 0; i < count; i++) {
        const struct checkpoint_tensor *t = &tensors[i];
        const struct named *found =
            bsearch(&(struct named){t->name, 0}, names, (size_t)num_all, sizeof(*names), compare_named);
        CHECK(found, "%s: not in the list of all tensors", t->name);
        const struct checkpoint_shape *s = &all[found->number];
        CHECK(t->num_dims == s->num_dims && t->dims[0] == s->dims[0] &&
                  columns(t->num_dims, t->dims) == columns(s->num_dims, s->dims),
              "%s: not of the shape that the list of all tensors gives", t->name);
        CHECK(!t->exp_avg == !t->exp_avg_sq, "%s: half an optimizer state", t->name);
        owner[i] = found->number;
    }
    mem_free(names);
    return owner;
}

struct checkpoint_shape *checkpoint_shapes_of(const struct checkpoint_tensor *tensors, int count) {
    struct checkpoint_shape *all = mem_new_array(struct checkpoint_shape, (size_t)count + 1, "shapes");
    for (int i = 0; i < count; i++)
        all[i] = (struct checkpoint_shape){tensors[i].name,
                                           tensors[i].num_dims,
                                           {tensors[i].dims[0], tensors[i].dims[1]},
                                           tensors[i].is_state};
    return all;
}

bool checkpoint_have_optimizer(struct comm *world, const struct checkpoint_tensor *tensors, int count) {
    bool here = false;
    for (int i = 0; i < count && !here; i++) here = tensors[i].begin < tensors[i].end && tensors[i].exp_avg;
    return checkpoint_any(world, here);
}

static int plan(struct checkpoint_saving *s, struct checkpoint_job_request *request,
                const struct checkpoint_group *group, const struct checkpoint_tensor *tensors, int count,
                struct err *err) {
    struct checkpoint_shape *own = group->all ? NULL : checkpoint_shapes_of(tensors, count);
    const struct checkpoint_shape *all = group->all ? group->all : own;
    int num_all = group->all ? group->num_all : count;
    int status = checkpoint_check_model(request->model, request->dir, err);
    if (!status) {
        request->entries =
            checkpoint_entries_of_all(request->model, all, num_all, &request->num_entries, err);
        if (!request->entries) status = -1;
    }
    if (!status) {
        s->owner = checkpoint_find_owners(all, num_all, tensors, count);
        checkpoint_job_open(&s->job, request);
    }
    mem_free(own);
    return status;
}

/* After an error that all ranks know. */
static int fail(struct checkpoint_saving *s, bool started, struct err *err) {
    if (started) {
        size_t used = strlen(err->text);
        snprintf(err->text + used, sizeof(err->text) - used,
                 "; the checkpoint was not saved, earlier ones are untouched");
        if (checkpoint_is_first(s->world)) checkpoint_job_abort(&s->job);
        checkpoint_job_close(&s->job);
    }
    mem_free(s->owner);
    *s = (struct checkpoint_saving){0};
    return -1;
}

int checkpoint_saving_begin(struct checkpoint_saving *saving, const char *dir,
                            const struct checkpoint_save_options *options,
                            const struct checkpoint_model *model, const struct checkpoint_tensor *tensors,
                            int count, const struct checkpoint_state *state, const char *config_json,
                            struct err *err) {
    static const struct checkpoint_save_options defaults = {0};
    if (!options) options = &defaults;
    struct comm *world = options->group.world;
    *saving = (struct checkpoint_saving){.world = world};
    struct checkpoint_job_request request = {.dir = dir,
                                             .config_json = config_json,
                                             .options = options,
                                             .model = model,
                                             .state = state,
                                             .optimizer = checkpoint_have_optimizer(world, tensors, count) &&
                                                          !options->no_optimizer};
    int status = plan(saving, &request, &options->group, tensors, count, err);
    bool planned = !status;
    if (checkpoint_agree(world, status != 0, err)) {
        if (planned) checkpoint_job_close(&saving->job);
        return fail(saving, false, err);
    }
    if (checkpoint_is_first(world)) status = checkpoint_job_create(&saving->job, err);
    return checkpoint_agree(world, status != 0, err) ? fail(saving, true, err) : 0;
}

static int commit(struct checkpoint_saving *s, struct err *err) {
    struct checkpoint_job *job = &s->job;
    uint64_t *sums = mem_new_array(uint64_t, 2 * (size_t)job->num_items + 1, "checkpoint sums");
    for (int i = 0; i < job->num_items; i++)
        sums[2 * i] = job->items[i].checksum, sums[2 * i + 1] = job->items[i].written;
    checkpoint_add_up(s->world, sums, 2 * job->num_items);
    for (int i = 0; i < job->num_items; i++)
        job->items[i].checksum = sums[2 * i], job->items[i].written = sums[2 * i + 1];
    mem_free(sums);
    int status = 0;
    if (checkpoint_is_first(s->world))
        status = checkpoint_job_is_complete(job, err) ? checkpoint_job_commit(job, err) : -1;
    return checkpoint_agree(s->world, status != 0, err);
}

int checkpoint_saving_end(struct checkpoint_saving *saving, int status, struct err *err) {
    if (checkpoint_agree(saving->world, status != 0, err) || commit(saving, err))
        return fail(saving, true, err);
    checkpoint_job_close(&saving->job);
    mem_free(saving->owner);
    *saving = (struct checkpoint_saving){0};
    return 0;
}

int checkpoint_save(const char *dir, const struct checkpoint_save_options *options,
                    const struct checkpoint_model *model, const struct checkpoint_tensor *tensors, int count,
                    const struct checkpoint_state *state, const char *config_json, struct err *err) {
    struct checkpoint_saving saving;
    if (checkpoint_saving_begin(&saving, dir, options, model, tensors, count, state, config_json, err))
        return -1;
    int status = checkpoint_job_write(&saving.job, tensors, saving.owner, count, err);
    return checkpoint_saving_end(&saving, status, err);
}
