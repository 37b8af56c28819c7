#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/checkpoint/hf.h"
#include "core/checkpoint/hf_tensors.h"
#include "core/checkpoint/pieces.h"
#include "core/checkpoint/save.h"
#include "core/tensor/dtype.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Files give no alignment: values are copied out. */
static void to_f32(float *out, const char *in, enum safetensors_dtype dtype, int64_t count) {
    if (dtype == SAFETENSORS_F32) memcpy(out, in, (size_t)count * sizeof(float));
    for (int64_t i = 0; i < count && dtype != SAFETENSORS_F32; i++) {
        uint16_t half;
        double wide;
        if (dtype == SAFETENSORS_F64) {
            memcpy(&wide, in + 8 * i, 8);
            out[i] = (float)wide;
        } else {
            memcpy(&half, in + 2 * i, 2);
            out[i] = dtype == SAFETENSORS_BF16 ? bf16_to_f32(half) : f16_to_f32(half);
        }
    }
}

struct import {
    const char *hf_dir;
    struct safetensors **files; /* owned */
    int num_files;
    size_t used; /* tensors that have a place */
    struct err *err;
};

static int open_one(struct import *im, const char *name) {
    struct str path = {0};
    for (int i = 0; i < im->num_files; i++) {
        const char *slash = strrchr(safetensors_path(im->files[i]), '/');
        if (!strcmp(slash + 1, name)) return 0;
    }
    if (strchr(name, '/'))
        return err_set(im->err, "%s/%s: '%s' is no file name", im->hf_dir, HF_INDEX_NAME, name);
    str_printf(&path, "%s/%s", im->hf_dir, name);
    im->files = mem_realloc(im->files, (size_t)(im->num_files + 1) * sizeof(*im->files), "import files");
    im->files[im->num_files] = safetensors_open(path.data, im->err);
    int status = im->files[im->num_files] ? 0 : -1;
    if (!status) im->num_files++;
    str_free(&path);
    return status;
}

static int open_weights(struct import *im) {
    struct str path = {0};
    struct stat st;
    str_printf(&path, "%s/%s", im->hf_dir, HF_INDEX_NAME);
    if (stat(path.data, &st)) {
        str_free(&path);
        return open_one(im, "model.safetensors");
    }
    struct json *json = json_parse_file(path.data, im->err);
    const struct json_node *map = json ? json_get(json_root(json), "weight_map") : NULL;
    int status = json ? 0 : -1;
    if (json && (!map || map->kind != JSON_OBJECT))
        status = err_set(im->err, "%s: no object 'weight_map'", path.data);
    for (size_t i = 0; !status && i < map->count; i++)
        status = map->items[i].kind == JSON_STRING
                     ? open_one(im, map->items[i].string)
                     : err_set(im->err, "%s: '%s' is no file name", path.data, map->keys[i]);
    json_free(json);
    str_free(&path);
    return status;
}

/* Folders of the bare model, without its head, leave out "transformer." or "model.". */
static const struct safetensors_tensor *find_weight(const struct import *im, const char *name,
                                                    const struct safetensors **file_p) {
    const char *dot = strchr(name, '.');
    for (int i = 0; i < im->num_files; i++) {
        const struct safetensors_tensor *t = safetensors_find(im->files[i], name);
        if (!t && (!strncmp(name, "transformer.", 12) || !strncmp(name, "model.", 6)))
            t = safetensors_find(im->files[i], dot + 1);
        if (t) {
            *file_p = im->files[i];
            return t;
        }
    }
    return NULL;
}

static int check_weight(const struct import *im, const struct checkpoint_entry *e) {
    const struct safetensors *file;
    const struct safetensors_tensor *t = find_weight(im, e->name, &file);
    if (!t) return err_set(im->err, "%s: has no tensor '%s'", im->hf_dir, e->name);
    if (t->num_dims != e->num_dims || t->dims[0] != e->dims[0] ||
        (t->num_dims > 1 && t->dims[1] != e->dims[1]))
        return err_set(im->err, "%s: tensor '%s' is [%lld, %lld], config.json makes it [%lld, %lld]",
                       safetensors_path(file), t->name, (long long)(t->num_dims > 0 ? t->dims[0] : 1),
                       (long long)(t->num_dims > 1 ? t->dims[1] : 1), (long long)e->dims[0],
                       (long long)e->dims[1]);
    if (t->dtype != SAFETENSORS_F32 && t->dtype != SAFETENSORS_BF16 && t->dtype != SAFETENSORS_F16 &&
        t->dtype != SAFETENSORS_F64)
        return err_set(im->err, "%s: tensor '%s' is of type %s: F32, BF16, F16 and F64 can be imported",
                       safetensors_path(file), t->name, safetensors_dtype_name(t->dtype));
    return 0;
}

/* Buffers that old folders carry, and the second copy of a tied embedding. */
static bool may_ignore(const struct checkpoint_model *model, const char *name) {
    return hf_ends_with(name, ".attn.bias") || hf_ends_with(name, ".attn.masked_bias") ||
           hf_ends_with(name, ".rotary_emb.inv_freq") || (model->tied && !strcmp(name, "lm_head.weight"));
}

/* DeepSeek's layers of multi-token prediction follow the model's last; more than config.json tells of? */
static bool predicts_more_tokens(const struct checkpoint_model *model, const char *name) {
    static const char prefix[] = "model.layers.";
    size_t n = sizeof(prefix) - 1;
    return checkpoint_family(model, NULL) == CHECKPOINT_DEEPSEEK_V3 && !strncmp(name, prefix, n) &&
           strtoll(name + n, NULL, 10) >= model->num_layers + model->mtp_layers;
}

static int compare_places(const void *a, const void *b) {
    const char *x = *(const char *const *)a, *y = *(const char *const *)b;
    return x < y ? -1 : x > y;
}

static int check_all_used(const struct import *im, const struct checkpoint_model *model,
                          const struct checkpoint_entries *es) {
    const char **used = mem_new_array(const char *, (size_t)es->count + 1, "import plan");
    const struct safetensors *file;
    int status = 0, ignored = 0;
    size_t count = 0;
    for (int e = 0; e < es->count; e++) {
        const struct safetensors_tensor *t = find_weight(im, es->list[e].name, &file);
        if (t) used[count++] = t->name;
    }
    qsort(used, count, sizeof(*used), compare_places);
    for (int f = 0; f < im->num_files; f++)
        for (size_t i = 0; i < safetensors_count(im->files[f]) && !status; i++) {
            const struct safetensors_tensor *t = safetensors_at(im->files[f], i);
            if (bsearch(&t->name, used, count, sizeof(*used), compare_places)) continue;
            if (predicts_more_tokens(model, t->name))
                ignored++;
            else if (!may_ignore(model, t->name))
                status =
                    err_set(im->err, "%s: tensor '%s' has no place in the model that config.json describes",
                            safetensors_path(im->files[f]), t->name);
        }
    if (ignored && !status)
        log_warn("%s: %d tensors of multi-token prediction are not imported", im->hf_dir, ignored);
    mem_free(used);
    return status;
}

/* Whether any router's bias is other than zero: a bias of zero is none. */
static int find_router_bias(const struct import *im, const struct checkpoint_entries *es, bool *found_p) {
    int status = 0;
    *found_p = false;
    for (int i = 0; i < es->count && !status; i++) {
        const struct checkpoint_entry *e = &es->list[i];
        const struct safetensors *file;
        const struct safetensors_tensor *t =
            hf_is_router_bias(e->name) ? find_weight(im, e->name, &file) : NULL;
        if (!t) continue;
        size_t bytes = (size_t)(t->end - t->begin);
        char *data = mem_alloc(bytes + 1, "import staging");
        status = safetensors_read(file, t, 0, data, bytes, im->err);
        for (size_t k = 0; k < bytes && !status; k++) *found_p |= data[k] != 0;
        mem_free(data);
    }
    return status;
}

/* One tensor, block by block, through `raw` as it is in the folder and `converted`. */
static int import_tensor(struct import *im, struct checkpoint_job *job, struct safetensors_writer *writer,
                         int item) {
    const struct checkpoint_entry *e = job->items[item].entry;
    const struct safetensors *file;
    const struct safetensors_tensor *t = find_weight(im, e->name, &file);
    size_t row_bytes = (size_t)e->dims[1] * safetensors_dtype_bytes(t->dtype);
    int64_t step = checkpoint_staging_rows(e);
    void *raw = mem_alloc((size_t)step * row_bytes, "import staging");
    float *converted = mem_alloc((size_t)(step * e->dims[1]) * sizeof(float), "import staging");
    int status = 0;
    for (int64_t first = 0; first < e->dims[0] && !status; first += step) {
        int64_t rows = e->dims[0] - first < step ? e->dims[0] - first : step;
        status =
            safetensors_read(file, t, (uint64_t)first * row_bytes, raw, (size_t)rows * row_bytes, im->err);
        if (status) break;
        to_f32(converted, raw, t->dtype, rows * e->dims[1]);
        status =
            checkpoint_job_put(job, writer, item, first * e->dims[1], converted, rows * e->dims[1], im->err);
    }
    mem_free(raw);
    mem_free(converted);
    return status;
}

static int import_files(struct import *im, struct checkpoint_job *job) {
    int status = checkpoint_job_create(job, im->err), item = 0;
    for (int file = 0; file < job->num_outputs && !status; file++) {
        struct err ignored;
        struct safetensors_writer *writer = checkpoint_job_attach(job, file, im->err);
        if (!writer) status = -1;
        for (; !status && item < job->num_items && job->items[item].file == file; item++)
            status = import_tensor(im, job, writer, item);
        if (safetensors_writer_close(writer, status ? &ignored : im->err)) status = -1;
    }
    if (!status) status = checkpoint_job_commit(job, im->err);
    if (status) checkpoint_job_abort(job);
    return status;
}

/* Some folders tell of depths of multi-token prediction and have none. */
static void choose_depths(const struct import *im, struct checkpoint_model *model) {
    const struct safetensors *file;
    char name[CHECKPOINT_MAX_NAME];
    snprintf(name, sizeof(name), "model.layers.%lld.eh_proj.weight", (long long)model->num_layers);
    if (!find_weight(im, name, &file)) model->mtp_layers = 0;
}

/* Every tensor of the model is in the folder, with its shape, and the folder has no others. */
static int check_folder(struct import *im, struct checkpoint_model *model) {
    struct checkpoint_entries es;
    const struct safetensors *file;
    bool has_bias = false;
    choose_depths(im, model);
    int status = hf_list_folder(model, &es, im->err);
    for (int i = 0; i < es.count && !status; i++) {
        const struct checkpoint_entry *e = &es.list[i];
        bool optional = hf_is_router_bias(e->name) || hf_copy_of(model, e->name);
        if (!optional || find_weight(im, e->name, &file)) status = check_weight(im, e);
    }
    if (!status) status = check_all_used(im, model, &es);
    if (!status) status = find_router_bias(im, &es, &has_bias);
    model->moe_expert_bias = has_bias;
    mem_free(es.list);
    return status;
}

static int import_weights(struct import *im, const char *out_dir, struct checkpoint_model *model) {
    struct checkpoint_entries es;
    struct str flags = {0};
    struct checkpoint_state state = {0};
    struct checkpoint_job job;
    if (open_weights(im) || check_folder(im, model)) return -1;
    int status = hf_list_tensors(model, &es, im->err);
    if (!status) {
        checkpoint_write_model_flags(&flags, model);
        struct checkpoint_job_request request = {.dir = out_dir,
                                                 .config_json = flags.data,
                                                 .model = model,
                                                 .state = &state,
                                                 .entries = es.list,
                                                 .num_entries = es.count,
                                                 .release = true};
        es.list = NULL;
        checkpoint_job_open(&job, &request);
        status = import_files(im, &job);
        checkpoint_job_close(&job);
    }
    str_free(&flags);
    mem_free(es.list);
    return status;
}

int checkpoint_import_hf(const char *hf_dir, const char *out_dir, struct checkpoint_model *model_p,
                         struct err *err) {
    struct str path = {0};
    struct import im = {.hf_dir = hf_dir, .err = err};
    struct checkpoint_model model;
    str_printf(&path, "%s/config.json", hf_dir);
    struct json *json = json_parse_file(path.data, err);
    int status = json ? checkpoint_read_hf_config(json_root(json), path.data, &model, err) : -1;
    if (!status) status = import_weights(&im, out_dir, &model);
    if (!status) *model_p = model;
    for (int i = 0; i < im.num_files; i++) safetensors_close(im.files[i]);
    mem_free(im.files);
    json_free(json);
    str_free(&path);
    return status;
}
