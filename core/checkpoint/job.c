#include "core/base/hash.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/checkpoint/checksum.h"
#include "core/checkpoint/manifest.h"
#include "core/checkpoint/pieces.h"
#include "core/checkpoint/save.h"
#include "core/checkpoint/store.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_SHARD_BYTES ((int64_t)5000000000)
#define SPARE_BYTES         ((uint64_t)1 << 20) /* manifest, tracker, directory blocks */

void checkpoint_slot_name(enum checkpoint_slot slot, const struct checkpoint_entry *entry,
                          char name[CHECKPOINT_MAX_SLOT_NAME]) {
    static const char *const prefixes[] = {"", "exp_avg.", "exp_avg_sq."};
    snprintf(name, CHECKPOINT_MAX_SLOT_NAME, "%s%.*s", prefixes[slot], CHECKPOINT_MAX_NAME - 1, entry->name);
}

/* ---- planning ---- */

struct checkpoint_entry *checkpoint_entries_of_all(const struct checkpoint_model *model,
                                                   const struct checkpoint_shape *all, int num_all,
                                                   int *count_p, struct err *err) {
    struct checkpoint_entries entries = {mem_new_array(struct checkpoint_entry, 64, "checkpoint entries"), 0,
                                         64};
    for (int i = 0; i < num_all; i++) {
        int n = checkpoint_entries_of(model, all[i].name, all[i].num_dims, all[i].dims, &entries, err);
        if (n < 0) {
            mem_free(entries.list);
            return NULL;
        }
        for (int k = entries.count - n; k < entries.count; k++)
            entries.list[k].tensor = i, entries.list[k].is_state = all[i].is_state;
    }
    *count_p = entries.count;
    return entries.list;
}

static void add_item(struct checkpoint_job *job, const struct checkpoint_entry *entry,
                     enum checkpoint_slot slot, int file) {
    char name[CHECKPOINT_MAX_SLOT_NAME];
    struct checkpoint_item *item = &job->items[job->num_items++];
    checkpoint_slot_name(slot, entry, name);
    *item = (struct checkpoint_item){.entry = entry, .slot = slot, .file = file};
    item->number = safetensors_layout_add(&job->outputs[file].layout, name, SAFETENSORS_F32, entry->num_dims,
                                          entry->dims);
    size_t floats = (size_t)(checkpoint_staging_rows(entry) * entry->dims[1]);
    if (floats > job->num_staging) job->num_staging = floats;
}

static int new_output(struct checkpoint_job *job) {
    job->outputs =
        mem_realloc(job->outputs, mem_array_bytes((size_t)job->num_outputs + 1, sizeof(*job->outputs)),
                    "checkpoint files");
    job->outputs[job->num_outputs] = (struct checkpoint_output){.name = ""};
    safetensors_layout_metadata(&job->outputs[job->num_outputs].layout, "format", "pt");
    return job->num_outputs++;
}

/* Places the entries' slots [from, to) into as many files as the shard size asks for. */
static void plan_files(struct checkpoint_job *job, const char *stem, enum checkpoint_slot from,
                       enum checkpoint_slot to, int64_t max_bytes) {
    int first = job->num_outputs, file = new_output(job);
    for (int i = 0; i < job->num_entries; i++) {
        const struct checkpoint_entry *e = &job->entries[i];
        if (from > CHECKPOINT_MASTER && e->is_state) continue;
        int64_t bytes = e->dims[0] * e->dims[1] * (int64_t)sizeof(float) * (int64_t)(to - from);
        const struct safetensors_layout *layout = &job->outputs[file].layout;
        if (layout->count && (int64_t)layout->data_bytes + bytes > max_bytes) file = new_output(job);
        for (enum checkpoint_slot slot = from; slot < to; slot++) add_item(job, e, slot, file);
    }
    for (int f = first; f < job->num_outputs; f++)
        snprintf(job->outputs[f].name, sizeof(job->outputs[f].name), "%s-%05d-of-%05d.safetensors", stem,
                 f - first + 1, job->num_outputs - first);
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void check_names_differ(const struct checkpoint_job *job) {
    const char **names = mem_new_array(const char *, (size_t)job->num_entries + 1, "checkpoint names");
    for (int i = 0; i < job->num_entries; i++) names[i] = job->entries[i].name;
    qsort(names, (size_t)job->num_entries, sizeof(*names), compare_names);
    for (int i = 1; i < job->num_entries; i++)
        CHECK(strcmp(names[i - 1], names[i]), "two tensors are named '%s'", names[i]);
    mem_free(names);
}

void checkpoint_job_open(struct checkpoint_job *job, const struct checkpoint_job_request *request) {
    static const struct checkpoint_save_options defaults = {0};
    const struct checkpoint_save_options *options = request->options ? request->options : &defaults;
    int64_t max_bytes = options->max_shard_bytes ? options->max_shard_bytes : DEFAULT_SHARD_BYTES;
    *job = (struct checkpoint_job){
        .iteration = request->release ? CHECKPOINT_RELEASE : request->state->iteration,
        .retain_interval = options->retain_interval,
        .model = *request->model,
        .state = *request->state,
        .entries = request->entries,
        .num_entries = request->num_entries,
        .optimizer = request->optimizer,
    };
    str_puts(&job->dir, request->dir);
    str_puts(&job->config_json, request->config_json);
    checkpoint_store_path(request->dir, job->iteration, &job->path);
    check_names_differ(job);
    job->items = mem_new_array(struct checkpoint_item, (size_t)job->num_entries * CHECKPOINT_SLOTS + 1,
                               "checkpoint plan");
    plan_files(job, "model", CHECKPOINT_MASTER, CHECKPOINT_EXP_AVG, max_bytes);
    if (job->optimizer) plan_files(job, "optimizer", CHECKPOINT_EXP_AVG, CHECKPOINT_SLOTS, max_bytes);
}

void checkpoint_job_close(struct checkpoint_job *job) {
    for (int i = 0; i < job->num_outputs; i++) safetensors_layout_free(&job->outputs[i].layout);
    mem_free(job->outputs);
    mem_free(job->items);
    mem_free(job->entries);
    str_free(&job->dir);
    str_free(&job->path);
    str_free(&job->config_json);
    *job = (struct checkpoint_job){0};
}

/* ---- files ---- */

static void output_path(const struct checkpoint_job *job, int file, struct str *path) {
    str_clear(path);
    str_printf(path, "%s/%s", job->path.data, job->outputs[file].name);
}

static uint64_t bytes_needed(const struct checkpoint_job *job) {
    uint64_t bytes =
        SPARE_BYTES + job->config_json.length + (uint64_t)job->num_items * (CHECKPOINT_MAX_NAME + 64);
    for (int f = 0; f < job->num_outputs; f++) bytes += safetensors_layout_bytes(&job->outputs[f].layout);
    return bytes;
}

int checkpoint_job_create(struct checkpoint_job *job, struct err *err) {
    struct str path = {0};
    if (checkpoint_store_prepare(job->dir.data, err)) return -1;
    job->previous = checkpoint_tracker_read(job->dir.data);
    int status = checkpoint_store_need_space(job->dir.data, bytes_needed(job), err);
    if (!status) status = checkpoint_store_begin(job->dir.data, job->iteration, err);
    for (int f = 0; f < job->num_outputs && !status; f++) {
        output_path(job, f, &path);
        struct safetensors_writer *writer = safetensors_writer_open(path.data, &job->outputs[f].layout, err);
        if (writer) job->outputs[f].header_hash = safetensors_writer_header_hash(writer);
        if (!writer || safetensors_writer_close(writer, err)) status = -1;
    }
    str_free(&path);
    return status;
}

void checkpoint_job_abort(const struct checkpoint_job *job) {
    checkpoint_store_abort(job->dir.data, job->iteration);
}

struct safetensors_writer *checkpoint_job_attach(const struct checkpoint_job *job, int file,
                                                 struct err *err) {
    struct str path = {0};
    output_path(job, file, &path);
    struct safetensors_writer *writer = safetensors_writer_attach(path.data, &job->outputs[file].layout, err);
    str_free(&path);
    return writer;
}

int checkpoint_job_put(struct checkpoint_job *job, struct safetensors_writer *writer, int item, int64_t first,
                       const float *data, int64_t count, struct err *err) {
    struct checkpoint_item *it = &job->items[item];
    it->checksum += checkpoint_checksum(data, first, count);
    it->written += (uint64_t)count;
    return safetensors_write(writer, it->number, (uint64_t)first * sizeof(float), data,
                             (size_t)count * sizeof(float), err);
}

bool checkpoint_job_is_complete(const struct checkpoint_job *job, struct err *err) {
    for (int i = 0; i < job->num_items; i++) {
        const struct checkpoint_item *item = &job->items[i];
        uint64_t want = (uint64_t)(item->entry->dims[0] * item->entry->dims[1]);
        if (item->written == want) continue;
        err_set(err, "%s: the ranks wrote %llu of %llu elements", item->entry->name,
                (unsigned long long)item->written, (unsigned long long)want);
        return false;
    }
    return true;
}

/* ---- the end ---- */

static int write_manifest(const struct checkpoint_job *job, struct err *err) {
    struct str text = {0};
    char name[CHECKPOINT_MAX_SLOT_NAME];
    checkpoint_manifest_begin(&text, &job->model, &job->state, job->iteration == CHECKPOINT_RELEASE,
                              job->optimizer);
    for (int f = 0; f < job->num_outputs; f++) {
        const struct checkpoint_output *out = &job->outputs[f];
        uint64_t bytes = safetensors_layout_bytes(&out->layout);
        checkpoint_manifest_add_file(
            &text,
            &(struct checkpoint_file){out->name, bytes, bytes - out->layout.data_bytes, out->header_hash});
    }
    size_t config = job->config_json.length;
    uint64_t hash = hash_bytes(job->config_json.data, config);
    checkpoint_manifest_add_file(&text, &(struct checkpoint_file){CHECKPOINT_CONFIG, config, config, hash});
    checkpoint_manifest_begin_tensors(&text);
    for (int i = 0; i < job->num_items; i++) {
        const struct checkpoint_item *item = &job->items[i];
        checkpoint_slot_name(item->slot, item->entry, name);
        checkpoint_manifest_add_tensor(&text, name, item->file, item->checksum);
    }
    checkpoint_manifest_end(&text);
    int status = checkpoint_write_file(job->path.data, CHECKPOINT_MANIFEST, text.data, text.length, err);
    str_free(&text);
    return status;
}

/* As Megatron-LM does: only the checkpoint that was the latest until now is looked at. */
static void retire(const struct checkpoint_job *job) {
    struct err err;
    int64_t previous = job->previous, retain = job->retain_interval;
    if (retain <= 0 || previous < 1 || previous == job->iteration || previous % retain == 0) return;
    if (checkpoint_store_remove(job->dir.data, previous, &err)) log_warn("%s", err.text);
}

int checkpoint_job_commit(struct checkpoint_job *job, struct err *err) {
    const char *config = job->config_json.data ? job->config_json.data : "";
    int status =
        checkpoint_write_file(job->path.data, CHECKPOINT_CONFIG, config, job->config_json.length, err);
    if (!status) status = write_manifest(job, err);
    if (!status) status = checkpoint_store_commit(job->dir.data, job->iteration, err);
    if (!status) retire(job);
    return status;
}
