#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/checkpoint/manifest.h"
#include "core/checkpoint/reader.h"
#include "core/checkpoint/record.h"
#include "core/checkpoint/rows.h"
#include "core/checkpoint/save.h"
#include "core/checkpoint/store.h"
#include <stdio.h>
#include <string.h>

/* A damaged checkpoint is a reason to try an older one; one that does not fit this run is not. */
enum outcome { LOADED = 0, DAMAGED = 1, UNFIT = -1 };

/* ---- which checkpoint ---- */

typedef enum outcome (*try_fn)(void *context, const char *path, struct err *err);

static void say_fallback(const char *dir, const struct checkpoint_list *list, int used, const char *fault) {
    if (used > 0)
        log_warn("%s: %s cannot be used (%s); going back to %s, the newest valid checkpoint", dir,
                 list->places[0].name, fault, list->places[used].name);
    else if (list->tracker_fault[0])
        log_warn("%s: %s; taking %s, the newest valid checkpoint", dir, list->tracker_fault,
                 list->places[0].name);
}

/* Tries the checkpoints of a directory, the best first, until one is not damaged. Returns the place tried
 * last, or -1 with a message; *found_p is false when there is none to try. */
static int try_places(const char *dir, int64_t step, try_fn fn, void *context, bool speak, bool *found_p,
                      struct err *err) {
    struct checkpoint_list list;
    struct str path = {0}, first_fault = {0};
    enum outcome outcome = DAMAGED;
    if (checkpoint_list_open(dir, &list, err)) return -1;
    *found_p = false;
    for (int i = 0; i < list.count && outcome == DAMAGED; i++) {
        if (step > 0 && list.places[i].iteration != step) continue;
        struct err fault;
        *found_p = true;
        str_clear(&path);
        str_printf(&path, "%s/%s", dir, list.places[i].name);
        outcome = fn(context, path.data, &fault);
        if (outcome == UNFIT)
            err_set(err, "%s", fault.text);
        else if (outcome == DAMAGED && !first_fault.length)
            str_puts(&first_fault, fault.text);
        else if (outcome == LOADED && speak && step <= 0)
            say_fallback(dir, &list, i, first_fault.data);
    }
    if (outcome == DAMAGED && *found_p)
        err_set(err, "%s: no valid checkpoint%s: %.1500s", dir, step > 0 ? " of the iteration asked for" : "",
                first_fault.data);
    checkpoint_list_free(&list);
    str_free(&path);
    str_free(&first_fault);
    return outcome == LOADED || !*found_p ? 0 : -1;
}

static int nothing_there(const char *dir, int64_t step, struct err *err) {
    if (step <= 0) return err_set(err, "%s: there is no checkpoint", dir);
    return err_set(err, "%s: there is no checkpoint of iteration %lld ('checkpoint_tool list %s' shows them)",
                   dir, (long long)step, dir);
}

/* ---- loading ---- */

struct load {
    const struct checkpoint_load_options *options;
    const struct checkpoint_model *model;
    const struct checkpoint_tensor *tensors;
    int count;
    struct checkpoint_state state;
    struct checkpoint_reader reader;
    bool optimizer;
    float *staging;
    size_t staging_bytes;
    int64_t used; /* weight tensors found in the checkpoint */
};

struct place_rows {
    const struct checkpoint_entry *entry;
    const struct checkpoint_tensor *tensor;
    float *data;
};

/* Rows of a larger padded vocabulary than ours are dropped. */
static void place_rows(void *context, const struct safetensors_tensor *tensor, const void *rows,
                       int64_t first, int64_t num_rows) {
    const struct place_rows *p = context;
    const struct checkpoint_tensor *t = p->tensor;
    (void)tensor;
    if (num_rows > p->entry->dims[0] - first) num_rows = p->entry->dims[0] - first;
    if (num_rows > 0)
        checkpoint_scatter_rows(p->entry, rows, first, num_rows, p->data, t->num_dims > 1 ? t->dims[1] : 1,
                                t->first_row, t->num_rows);
}

static bool same_shape(const struct checkpoint_entry *entry, const struct safetensors_tensor *t) {
    if (t->dtype != SAFETENSORS_F32 || t->num_dims != entry->num_dims) return false;
    for (int d = 0; d < t->num_dims; d++)
        if (t->dims[d] != entry->dims[d] && !(entry->vocabulary && d == 0)) return false;
    return true;
}

static enum outcome load_entry(struct load *l, const struct checkpoint_entry *entry,
                               const struct checkpoint_tensor *tensor, enum checkpoint_slot slot,
                               struct err *err) {
    char name[CHECKPOINT_MAX_SLOT_NAME];
    const struct safetensors *file;
    uint64_t checksum;
    int ignored;
    float *const data[] = {tensor->master, tensor->exp_avg, tensor->exp_avg_sq};
    const char *path = l->reader.manifest->path;
    checkpoint_slot_name(slot, entry, name);
    if (checkpoint_manifest_tensor(l->reader.manifest, name, &ignored, &checksum)) {
        err_set(err, "%s: the checkpoint has no tensor '%s', which this run's model has", path, name);
        return UNFIT;
    }
    const struct safetensors_tensor *t = checkpoint_reader_find(&l->reader, name, &file, &checksum, err);
    if (!t) return DAMAGED;
    if (!same_shape(entry, t)) {
        err_set(err,
                "%s: tensor '%s' is %s of %d dimensions [%lld, ...], this run's model has F32 [%lld, %lld]",
                path, name, safetensors_dtype_name(t->dtype), t->num_dims, (long long)t->dims[0],
                (long long)entry->dims[0], (long long)entry->dims[1]);
        return UNFIT;
    }
    size_t need = checkpoint_reader_staging(t);
    if (need > l->staging_bytes) {
        mem_free(l->staging);
        l->staging = mem_alloc(need, "checkpoint staging");
        l->staging_bytes = need;
    }
    struct place_rows place = {entry, tensor, data[slot]};
    if (checkpoint_reader_stream(file, t, checksum, l->staging, place_rows, &place, err)) return DAMAGED;
    l->used += slot == CHECKPOINT_MASTER;
    return LOADED;
}

static enum outcome load_tensor(struct load *l, const struct checkpoint_tensor *tensor, struct err *err) {
    struct checkpoint_entry entries[CHECKPOINT_MAX_PARTS];
    enum outcome outcome = LOADED;
    int n = checkpoint_entries_of(l->model, tensor->name, tensor->num_dims, tensor->dims, entries, err);
    enum checkpoint_slot end = l->optimizer && tensor->exp_avg ? CHECKPOINT_SLOTS : CHECKPOINT_EXP_AVG;
    if (n < 0) return UNFIT;
    for (enum checkpoint_slot slot = CHECKPOINT_MASTER; slot < end; slot++)
        for (int i = 0; i < n && outcome == LOADED; i++)
            outcome = load_entry(l, &entries[i], tensor, slot, err);
    return outcome;
}

/* Whether the checkpoint has weights that the run's model has not. */
static enum outcome check_unused(const struct load *l, struct err *err) {
    const struct json_node *names = l->reader.manifest->tensors;
    int64_t weights = 0;
    for (size_t i = 0; i < names->count; i++)
        weights += strncmp(names->keys[i], "exp_avg.", 8) && strncmp(names->keys[i], "exp_avg_sq.", 11);
    if (weights == l->used) return LOADED;
    err_set(err, "%s: the checkpoint has %lld weight tensors, this run's model %lld: it is another model",
            l->reader.manifest->path, (long long)weights, (long long)l->used);
    return UNFIT;
}

static enum outcome load_tensors(struct load *l, struct err *err) {
    const struct checkpoint_manifest *m = l->reader.manifest;
    bool wanted = l->count && l->tensors[0].exp_avg && !l->options->no_optimizer && !l->options->finetune;
    if (checkpoint_compare_models(&m->model, l->model, m->path, err)) return UNFIT;
    l->optimizer = wanted && !m->release;
    if (l->optimizer && !m->has_optimizer) {
        err_set(err, "%s: was saved without optimizer state: load it with --no-load-optim or --finetune",
                m->path);
        return UNFIT;
    }
    l->used = 0;
    for (int i = 0; i < l->count; i++) {
        enum outcome outcome = load_tensor(l, &l->tensors[i], err);
        if (outcome != LOADED) return outcome;
    }
    return check_unused(l, err);
}

static enum outcome try_load(void *context, const char *path, struct err *err) {
    struct load *l = context;
    struct checkpoint_manifest *m = checkpoint_manifest_open(path, err);
    if (!m) return DAMAGED;
    checkpoint_reader_init(&l->reader, m);
    enum outcome outcome = load_tensors(l, err);
    checkpoint_reader_free(&l->reader);
    l->state = m->state;
    if (m->release || l->options->finetune) l->state = (struct checkpoint_state){.seed = m->state.seed};
    checkpoint_manifest_close(m);
    return outcome;
}

int checkpoint_load(const char *dir, const struct checkpoint_load_options *options,
                    const struct checkpoint_model *model, const struct checkpoint_tensor *tensors, int count,
                    struct checkpoint_state *state_p, struct err *err) {
    static const struct checkpoint_load_options defaults = {0};
    bool found;
    if (!options) options = &defaults;
    struct load l = {.options = options, .model = model, .tensors = tensors, .count = count};
    int status = try_places(dir, options->step, try_load, &l, true, &found, err);
    mem_free(l.staging);
    if (status) return -1;
    if (!found) return nothing_there(dir, options->step, err);
    *state_p = l.state;
    return 0;
}

/* ---- looking ---- */

static enum outcome try_find(void *context, const char *path, struct err *err) {
    struct checkpoint_info *info = context;
    struct str config = {0};
    struct checkpoint_manifest *m = checkpoint_manifest_open(path, err);
    if (!m) return DAMAGED;
    enum outcome outcome = checkpoint_manifest_config(m, &config, err) ? DAMAGED : LOADED;
    if (outcome == LOADED) {
        *info = (struct checkpoint_info){.found = true,
                                         .release = m->release,
                                         .iteration = m->release ? 0 : m->iteration,
                                         .has_optimizer = m->has_optimizer,
                                         .model = m->model,
                                         .state = m->state};
        snprintf(info->path, sizeof(info->path), "%s", path);
        info->config_json = mem_strdup(config.data ? config.data : "", "checkpoint config");
    }
    str_free(&config);
    checkpoint_manifest_close(m);
    return outcome;
}

int checkpoint_find(const char *dir, int64_t step, struct checkpoint_info *info_p, struct err *err) {
    struct checkpoint_info info = {.found = false};
    bool found;
    if (try_places(dir, step, try_find, &info, false, &found, err)) return -1;
    if (!found && step > 0) return nothing_there(dir, step, err);
    *info_p = info;
    return 0;
}

void checkpoint_info_free(struct checkpoint_info *info) {
    mem_free(info->config_json);
    *info = (struct checkpoint_info){.found = false};
}

/* ---- verifying ---- */

static int verify_file(struct checkpoint_reader *r, int file, struct err *err) {
    const struct safetensors *f = checkpoint_reader_file(r, file, err);
    int status = f ? 0 : -1, listed;
    size_t most = 0;
    uint64_t checksum;
    for (size_t i = 0; f && i < safetensors_count(f); i++) {
        size_t need = checkpoint_reader_staging(safetensors_at(f, i));
        most = need > most ? need : most;
    }
    void *staging = mem_alloc(most, "checkpoint staging");
    for (size_t i = 0; f && i < safetensors_count(f) && !status; i++) {
        const struct safetensors_tensor *t = safetensors_at(f, i);
        if (checkpoint_manifest_tensor(r->manifest, t->name, &listed, &checksum) || listed != file)
            status = err_set(err, "%s: tensor '%s' is not in the manifest", safetensors_path(f), t->name);
        else
            status = checkpoint_reader_stream(f, t, checksum, staging, NULL, NULL, err);
    }
    mem_free(staging);
    return status;
}

static enum outcome try_verify(void *context, const char *path, struct err *err) {
    struct checkpoint_reader reader;
    struct str config = {0};
    size_t tensors = 0;
    (void)context;
    struct checkpoint_manifest *m = checkpoint_manifest_open(path, err);
    if (!m) return UNFIT;
    int status = checkpoint_manifest_config(m, &config, err);
    checkpoint_reader_init(&reader, m);
    for (int i = 0; i < m->num_files && !status; i++) {
        if (!checkpoint_reader_is_tensor_file(&reader, i)) continue;
        status = verify_file(&reader, i, err);
        if (!status) tensors += safetensors_count(reader.files[i]);
    }
    if (!status && tensors != m->tensors->count)
        status = err_set(err, "%s: the manifest lists %zu tensors, the files hold %zu", path,
                         m->tensors->count, tensors);
    checkpoint_reader_free(&reader);
    checkpoint_manifest_close(m);
    str_free(&config);
    return status ? UNFIT : LOADED; /* the first one tried is the one asked for: no going on */
}

int checkpoint_verify(const char *dir, int64_t iteration, struct err *err) {
    bool found;
    if (try_places(dir, iteration, try_verify, NULL, false, &found, err)) return -1;
    return found ? 0 : nothing_there(dir, iteration, err);
}
