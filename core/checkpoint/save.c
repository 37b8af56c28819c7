#include "core/checkpoint/save.h"
#include "core/base/hash.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/checkpoint/manifest.h"
#include "core/checkpoint/record.h"
#include "core/checkpoint/rows.h"
#include "core/checkpoint/safetensors.h"
#include "core/checkpoint/store.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_SHARD_BYTES ((int64_t)5000000000)
#define SPARE_BYTES         ((uint64_t)1 << 20) /* manifest, tracker, directory blocks */

/* One tensor on disk. */
struct item {
    const struct checkpoint_entry *entry;
    enum checkpoint_slot slot;
    int file, number; /* in the file's layout */
    uint64_t checksum;
};

struct output {
    char name[64];
    struct safetensors_layout layout;
    uint64_t header_hash;
};

/* The whole checkpoint, known before the first byte is written: a pure function of entries and options. */
struct save {
    const struct checkpoint_source *source;
    struct item *items;
    int num_items;
    struct output *outputs;
    int num_outputs;
    float *staging;
    size_t staging_floats;
};

void checkpoint_slot_name(enum checkpoint_slot slot, const struct checkpoint_entry *entry,
                          char name[CHECKPOINT_MAX_SLOT_NAME]) {
    static const char *const prefixes[] = {"", "exp_avg.", "exp_avg_sq."};
    snprintf(name, CHECKPOINT_MAX_SLOT_NAME, "%s%.*s", prefixes[slot], CHECKPOINT_MAX_NAME - 1, entry->name);
}

/* ---- planning ---- */

static void add_item(struct save *s, const struct checkpoint_entry *entry, enum checkpoint_slot slot,
                     int file) {
    char name[CHECKPOINT_MAX_SLOT_NAME];
    struct item *item = &s->items[s->num_items++];
    checkpoint_slot_name(slot, entry, name);
    *item = (struct item){.entry = entry, .slot = slot, .file = file};
    item->number =
        safetensors_layout_add(&s->outputs[file].layout, name, SAFETENSORS_F32, entry->num_dims, entry->dims);
    size_t floats = (size_t)(checkpoint_staging_rows(entry) * entry->dims[1]);
    if (floats > s->staging_floats) s->staging_floats = floats;
}

static int new_output(struct save *s) {
    s->outputs = mem_realloc(s->outputs, mem_array_bytes((size_t)s->num_outputs + 1, sizeof(*s->outputs)),
                             "checkpoint files");
    s->outputs[s->num_outputs] = (struct output){.name = ""};
    safetensors_layout_metadata(&s->outputs[s->num_outputs].layout, "format", "pt");
    return s->num_outputs++;
}

/* Places the entries' slots [from, to) into as many files as the shard size asks for. */
static void plan_files(struct save *s, const char *stem, enum checkpoint_slot from, enum checkpoint_slot to,
                       int64_t max_bytes) {
    int first = s->num_outputs, file = new_output(s);
    for (int i = 0; i < s->source->count; i++) {
        const struct checkpoint_entry *e = &s->source->entries[i];
        int64_t bytes = e->dims[0] * e->dims[1] * (int64_t)sizeof(float) * (int64_t)(to - from);
        if (s->outputs[file].layout.count && (int64_t)s->outputs[file].layout.data_bytes + bytes > max_bytes)
            file = new_output(s);
        for (enum checkpoint_slot slot = from; slot < to; slot++) add_item(s, e, slot, file);
    }
    for (int f = first; f < s->num_outputs; f++)
        snprintf(s->outputs[f].name, sizeof(s->outputs[f].name), "%s-%05d-of-%05d.safetensors", stem,
                 f - first + 1, s->num_outputs - first);
}

static int compare_names(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void check_names_differ(const struct checkpoint_source *source) {
    const char **names = mem_new_array(const char *, (size_t)source->count + 1, "checkpoint names");
    for (int i = 0; i < source->count; i++) names[i] = source->entries[i].name;
    qsort(names, (size_t)source->count, sizeof(*names), compare_names);
    for (int i = 1; i < source->count; i++)
        CHECK(strcmp(names[i - 1], names[i]), "two tensors are named '%s'", names[i]);
    mem_free(names);
}

static void save_plan(struct save *s, const struct checkpoint_save_options *options) {
    int64_t max_bytes = options->max_shard_bytes ? options->max_shard_bytes : DEFAULT_SHARD_BYTES;
    check_names_differ(s->source);
    s->items = mem_new_array(struct item, (size_t)s->source->count * CHECKPOINT_SLOTS + 1, "checkpoint plan");
    plan_files(s, "model", CHECKPOINT_MASTER, CHECKPOINT_EXP_AVG, max_bytes);
    if (s->source->optimizer) plan_files(s, "optimizer", CHECKPOINT_EXP_AVG, CHECKPOINT_SLOTS, max_bytes);
    s->staging = mem_alloc(s->staging_floats * sizeof(float), "checkpoint staging");
}

static void save_free(struct save *s) {
    for (int i = 0; i < s->num_outputs; i++) safetensors_layout_free(&s->outputs[i].layout);
    mem_free(s->outputs);
    mem_free(s->items);
    mem_free(s->staging);
}

/* ---- writing ---- */

static int write_item(struct save *s, struct safetensors_writer *writer, struct item *item, struct err *err) {
    const struct checkpoint_entry *e = item->entry;
    int64_t step = checkpoint_staging_rows(e);
    size_t row_bytes = (size_t)e->dims[1] * sizeof(float);
    struct hash hash;
    hash_init(&hash);
    for (int64_t first = 0; first < e->dims[0]; first += step) {
        int64_t rows = e->dims[0] - first < step ? e->dims[0] - first : step;
        const float *data = NULL;
        if (s->source->fill(s->source->context, e, item->slot, first, rows, s->staging, &data, err))
            return -1;
        hash_update(&hash, data, (size_t)rows * row_bytes);
        if (safetensors_write(writer, item->number, (uint64_t)first * row_bytes, data,
                              (size_t)rows * row_bytes, err))
            return -1;
    }
    item->checksum = hash_final(&hash);
    return 0;
}

static int write_output(struct save *s, int file, const char *dir, struct err *err) {
    struct output *out = &s->outputs[file];
    struct str path = {0};
    struct err ignored;
    str_printf(&path, "%s/%s", dir, out->name);
    struct safetensors_writer *writer = safetensors_writer_open(path.data, &out->layout, err);
    int status = writer ? 0 : -1;
    if (writer) out->header_hash = safetensors_writer_header_hash(writer);
    for (int i = 0; i < s->num_items && !status; i++)
        if (s->items[i].file == file) status = write_item(s, writer, &s->items[i], err);
    if (safetensors_writer_close(writer, status ? &ignored : err)) status = -1;
    str_free(&path);
    return status;
}

static int write_manifest(const struct save *s, const char *dir, const struct checkpoint_model *model,
                          const struct checkpoint_state *state, const char *config_json, struct err *err) {
    struct str text = {0};
    char name[CHECKPOINT_MAX_SLOT_NAME];
    checkpoint_manifest_begin(&text, model, state, s->source->release, s->source->optimizer);
    for (int f = 0; f < s->num_outputs; f++) {
        const struct output *out = &s->outputs[f];
        uint64_t bytes = safetensors_layout_bytes(&out->layout);
        checkpoint_manifest_add_file(
            &text,
            &(struct checkpoint_file){out->name, bytes, bytes - out->layout.data_bytes, out->header_hash});
    }
    size_t config = strlen(config_json);
    checkpoint_manifest_add_file(
        &text, &(struct checkpoint_file){CHECKPOINT_CONFIG, config, config, hash_bytes(config_json, config)});
    checkpoint_manifest_begin_tensors(&text);
    for (int i = 0; i < s->num_items; i++) {
        const struct item *item = &s->items[i];
        checkpoint_slot_name(item->slot, item->entry, name);
        checkpoint_manifest_add_tensor(&text, name, item->file, item->checksum);
    }
    checkpoint_manifest_end(&text);
    int status = checkpoint_write_file(dir, CHECKPOINT_MANIFEST, text.data, text.length, err);
    str_free(&text);
    return status;
}

static uint64_t bytes_needed(const struct save *s, const char *config_json) {
    uint64_t bytes = SPARE_BYTES + strlen(config_json) + (uint64_t)s->num_items * (CHECKPOINT_MAX_NAME + 64);
    for (int f = 0; f < s->num_outputs; f++) bytes += safetensors_layout_bytes(&s->outputs[f].layout);
    return bytes;
}

static int write_all(struct save *s, const char *dir, int64_t iteration, const struct checkpoint_model *model,
                     const struct checkpoint_state *state, const char *config_json, struct err *err) {
    struct str path = {0};
    if (checkpoint_store_need_space(dir, bytes_needed(s, config_json), err)) return -1;
    int status = checkpoint_store_begin(dir, iteration, &path, err);
    for (int f = 0; f < s->num_outputs && !status; f++) status = write_output(s, f, path.data, err);
    if (!status)
        status = checkpoint_write_file(path.data, CHECKPOINT_CONFIG, config_json, strlen(config_json), err);
    if (!status) status = write_manifest(s, path.data, model, state, config_json, err);
    if (!status) status = checkpoint_store_commit(dir, iteration, err);
    if (status) {
        size_t used = strlen(err->text);
        snprintf(err->text + used, sizeof(err->text) - used,
                 "; the checkpoint was not saved, earlier ones are untouched");
        checkpoint_store_abort(dir, iteration);
    }
    str_free(&path);
    return status;
}

/* As Megatron-LM does: only the checkpoint that was the latest until now is looked at. */
static void retire(const char *dir, int64_t previous, int64_t iteration, int64_t retain_interval) {
    struct err err;
    if (retain_interval <= 0 || previous < 1 || previous == iteration || previous % retain_interval == 0)
        return;
    if (checkpoint_store_remove(dir, previous, &err)) log_warn("%s", err.text);
}

int checkpoint_write(const char *dir, const struct checkpoint_save_options *options,
                     const struct checkpoint_model *model, const struct checkpoint_source *source,
                     const struct checkpoint_state *state, const char *config_json, struct err *err) {
    static const struct checkpoint_save_options defaults = {0};
    struct save s = {.source = source};
    int64_t iteration = source->release ? CHECKPOINT_RELEASE : state->iteration;
    if (!options) options = &defaults;
    if (checkpoint_store_prepare(dir, err)) return -1;
    int64_t previous = checkpoint_tracker_read(dir);
    save_plan(&s, options);
    int status = write_all(&s, dir, iteration, model, state, config_json, err);
    if (!status) retire(dir, previous, iteration, options->retain_interval);
    save_free(&s);
    return status;
}

/* ---- from the run's tensors ---- */

static int fill_from_tensors(void *context, const struct checkpoint_entry *entry, enum checkpoint_slot slot,
                             int64_t first, int64_t num_rows, float *staging, const float **rows_p,
                             struct err *err) {
    const struct checkpoint_tensor *t = &((const struct checkpoint_tensor *)context)[entry->tensor];
    const float *const data[] = {t->master, t->exp_avg, t->exp_avg_sq};
    (void)err;
    *rows_p =
        checkpoint_gather_rows(entry, data[slot], t->num_dims > 1 ? t->dims[1] : 1, first, num_rows, staging);
    return 0;
}

int checkpoint_save(const char *dir, const struct checkpoint_save_options *options,
                    const struct checkpoint_model *model, const struct checkpoint_tensor *tensors, int count,
                    const struct checkpoint_state *state, const char *config_json, struct err *err) {
    int status = 0, used = 0, with_optimizer = 0;
    if (checkpoint_check_model(model, dir, err)) return -1;
    struct checkpoint_entry *entries =
        mem_new_array(struct checkpoint_entry, (size_t)count * CHECKPOINT_MAX_PARTS, "checkpoint entries");
    for (int i = 0; i < count && !status; i++) {
        const struct checkpoint_tensor *t = &tensors[i];
        CHECK(t->first_row == 0 && t->num_rows == t->dims[0], "%s: one rank saves whole tensors", t->name);
        CHECK(!t->exp_avg == !t->exp_avg_sq, "%s: half an optimizer state", t->name);
        int n = checkpoint_entries_of(model, t->name, t->num_dims, t->dims, entries + used, err);
        for (int k = 0; k < n; k++) entries[used + k].tensor = i;
        if (n < 0)
            status = -1;
        else
            used += n;
        with_optimizer += t->exp_avg != NULL;
    }
    CHECK(!with_optimizer || with_optimizer == count, "%d of %d tensors have optimizer state", with_optimizer,
          count);
    struct checkpoint_source source = {.fill = fill_from_tensors,
                                       .context = (void *)(uintptr_t)tensors,
                                       .entries = entries,
                                       .count = used,
                                       .optimizer = with_optimizer && !(options && options->no_optimizer)};
    if (!status) status = checkpoint_write(dir, options, model, &source, state, config_json, err);
    mem_free(entries);
    return status;
}
