#include "core/checkpoint/find.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/checkpoint/agree.h"
#include "core/checkpoint/manifest.h"
#include "core/checkpoint/reader.h"
#include "core/checkpoint/store.h"
#include <stdio.h>
#include <string.h>

/* ---- which checkpoint ---- */

static void say_fallback(const char *dir, const struct checkpoint_list *list, int used, const char *fault) {
    if (used > 0)
        log_warn("%s: %s cannot be used (%s); going back to %s, the newest valid checkpoint", dir,
                 list->places[0].name, fault, list->places[used].name);
    else if (list->tracker_fault[0])
        log_warn("%s: %s; taking %s, the newest valid checkpoint", dir, list->tracker_fault,
                 list->places[0].name);
}

/* The lowest rank's list, on all. */
static int open_list(struct comm *world, const char *dir, struct checkpoint_list *list, struct err *err) {
    int status = 0;
    bool first = checkpoint_is_first(world);
    *list = (struct checkpoint_list){0};
    if (first) status = checkpoint_list_open(dir, list, err);
    if (checkpoint_agree(world, status != 0, err)) return -1;
    checkpoint_share(world, &list->count, sizeof(list->count));
    if (!first) {
        list->places = mem_new_array(struct checkpoint_place, (size_t)list->count, "checkpoint list");
        list->capacity = list->count;
    }
    checkpoint_share(world, list->places, (size_t)list->count * sizeof(*list->places));
    return 0;
}

int checkpoint_try_places(struct comm *world, const char *dir, int64_t step, checkpoint_try_fn fn,
                          void *context, bool speak, bool *found_p, struct err *err) {
    struct checkpoint_list list;
    struct str path = {0}, first_fault = {0};
    enum checkpoint_outcome outcome = CHECKPOINT_DAMAGED;
    if (open_list(world, dir, &list, err)) return -1;
    *found_p = false;
    for (int i = 0; i < list.count && outcome == CHECKPOINT_DAMAGED; i++) {
        if (step > 0 && list.places[i].iteration != step) continue;
        struct err fault;
        *found_p = true;
        str_clear(&path);
        str_printf(&path, "%s/%s", dir, list.places[i].name);
        outcome = fn(context, path.data, &fault);
        if (outcome == CHECKPOINT_UNFIT)
            err_set(err, "%s", fault.text);
        else if (outcome == CHECKPOINT_DAMAGED && !first_fault.length)
            str_puts(&first_fault, fault.text);
        else if (outcome == CHECKPOINT_USED && speak && step <= 0 && checkpoint_is_first(world))
            say_fallback(dir, &list, i, first_fault.data);
    }
    if (outcome == CHECKPOINT_DAMAGED && *found_p)
        err_set(err, "%s: no valid checkpoint%s: %.1500s", dir, step > 0 ? " of the iteration asked for" : "",
                first_fault.data);
    checkpoint_list_free(&list);
    str_free(&path);
    str_free(&first_fault);
    return outcome == CHECKPOINT_USED || !*found_p ? 0 : -1;
}

int checkpoint_say_nothing_there(const char *dir, int64_t step, struct err *err) {
    if (step <= 0) return err_set(err, "%s: there is no checkpoint", dir);
    return err_set(err, "%s: there is no checkpoint of iteration %lld ('checkpoint_tool list %s' shows them)",
                   dir, (long long)step, dir);
}

/* ---- looking ---- */

static enum checkpoint_outcome try_find(void *context, const char *path, struct err *err) {
    struct checkpoint_info *info = context;
    struct str config = {0};
    struct checkpoint_manifest *m = checkpoint_manifest_open(path, err);
    if (!m) return CHECKPOINT_DAMAGED;
    enum checkpoint_outcome outcome =
        checkpoint_manifest_config(m, &config, err) ? CHECKPOINT_DAMAGED : CHECKPOINT_USED;
    if (outcome == CHECKPOINT_USED) {
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
    if (checkpoint_try_places(NULL, dir, step, try_find, &info, false, &found, err)) return -1;
    if (!found && step > 0) return checkpoint_say_nothing_there(dir, step, err);
    *info_p = info;
    return 0;
}

int checkpoint_find_together(struct comm *world, const char *dir, int64_t step,
                             struct checkpoint_info *info_p, struct err *err) {
    struct checkpoint_info info = {.found = false};
    bool first = checkpoint_is_first(world);
    int status = first ? checkpoint_find(dir, step, &info, err) : 0;
    if (checkpoint_agree(world, status != 0, err)) return -1;
    char *config = info.config_json;
    int64_t length = config ? (int64_t)strlen(config) : -1;
    checkpoint_share(world, &info, sizeof(info));
    checkpoint_share(world, &length, sizeof(length));
    if (!first) config = length < 0 ? NULL : mem_zalloc((size_t)length + 1, "checkpoint config");
    if (length > 0) checkpoint_share(world, config, (size_t)length);
    info.config_json = config;
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

static enum checkpoint_outcome try_verify(void *context, const char *path, struct err *err) {
    struct checkpoint_reader reader;
    struct str config = {0};
    size_t tensors = 0;
    (void)context;
    struct checkpoint_manifest *m = checkpoint_manifest_open(path, err);
    if (!m) return CHECKPOINT_UNFIT;
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
    return status ? CHECKPOINT_UNFIT
                  : CHECKPOINT_USED; /* the first one tried is the one asked for: no going on */
}

int checkpoint_verify(const char *dir, int64_t iteration, struct err *err) {
    bool found;
    if (checkpoint_try_places(NULL, dir, iteration, try_verify, NULL, false, &found, err)) return -1;
    return found ? 0 : checkpoint_say_nothing_there(dir, iteration, err);
}
