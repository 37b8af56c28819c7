#include "core/checkpoint/hf.h"
#include "core/base/mem.h"
#include "core/checkpoint/pieces.h"
#include "core/checkpoint/reader.h"
#include "core/checkpoint/record.h"
#include "core/checkpoint/save.h"
#include "core/checkpoint/store.h"
#include "core/tensor/dtype.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_SHARD_BYTES ((uint64_t)5000000000)
#define INDEX_NAME      "model.safetensors.index.json"

/* ---- the tensors of a model on disk ---- */

struct entries {
    const struct checkpoint_model *model;
    struct checkpoint_entry *list; /* owned */
    int count, capacity, status;
    struct err *err;
};

static void add_entries(void *context, const char *name, int num_dims, const int64_t dims[2]) {
    struct entries *es = context;
    if (es->count + CHECKPOINT_MAX_PARTS > es->capacity) {
        es->capacity = es->capacity * 2 + 64;
        es->list = mem_realloc(es->list, (size_t)es->capacity * sizeof(*es->list), "checkpoint entries");
    }
    int n = es->status
                ? 0
                : checkpoint_entries_of(es->model, name, num_dims, dims, es->list + es->count, es->err);
    if (n < 0)
        es->status = -1;
    else
        es->count += n;
}

static int entries_open(struct entries *es, const struct checkpoint_model *model, struct err *err) {
    *es = (struct entries){.model = model, .err = err};
    checkpoint_each_tensor(model, add_entries, es);
    return es->status;
}

/* ---- number formats ---- */

static void from_f32(void *out, enum safetensors_dtype dtype, const float *in, int64_t count) {
    if (dtype == SAFETENSORS_F32)
        memcpy(out, in, (size_t)count * sizeof(float));
    else if (dtype == SAFETENSORS_BF16)
        for (int64_t i = 0; i < count; i++) ((uint16_t *)out)[i] = f32_to_bf16(in[i]);
    else
        for (int64_t i = 0; i < count; i++) ((uint16_t *)out)[i] = f32_to_f16(in[i]);
}

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

/* ---- export ---- */

struct export {
    const char *out_dir;
    enum safetensors_dtype dtype;
    struct entries entries;
    struct checkpoint_reader reader;
    struct safetensors_layout *shards; /* owned */
    int num_shards;
    int *shard_of, *number_of; /* by entry */
    /* of the tensor being copied */
    struct safetensors_writer *writer;
    int entry, status;
    void *staging, *converted;
    struct err *err;
};

static int64_t real_rows(const struct export *x, const struct checkpoint_entry *e) {
    return e->vocabulary ? x->entries.model->vocab_size : e->dims[0];
}

static void plan_shards(struct export *x) {
    x->shard_of = mem_new_array(int, (size_t)x->entries.count, "export plan");
    x->number_of = mem_new_array(int, (size_t)x->entries.count, "export plan");
    for (int i = 0; i < x->entries.count; i++) {
        const struct checkpoint_entry *e = &x->entries.list[i];
        int64_t dims[2] = {real_rows(x, e), e->dims[1]};
        uint64_t bytes = (uint64_t)(dims[0] * dims[1]) * safetensors_dtype_bytes(x->dtype);
        struct safetensors_layout *last = x->num_shards ? &x->shards[x->num_shards - 1] : NULL;
        if (!last || (last->count && last->data_bytes + bytes > MAX_SHARD_BYTES)) {
            x->shards =
                mem_realloc(x->shards, (size_t)(x->num_shards + 1) * sizeof(*x->shards), "export shards");
            last = &x->shards[x->num_shards++];
            *last = (struct safetensors_layout){0};
            safetensors_layout_metadata(last, "format", "pt");
        }
        x->shard_of[i] = x->num_shards - 1;
        x->number_of[i] = safetensors_layout_add(last, e->name, x->dtype, e->num_dims, dims);
    }
}

static void shard_name(const struct export *x, int shard, char name[64]) {
    if (x->num_shards == 1)
        snprintf(name, 64, "model.safetensors");
    else
        snprintf(name, 64, "model-%05d-of-%05d.safetensors", shard + 1, x->num_shards);
}

static void copy_rows(void *context, const struct safetensors_tensor *t, const void *rows, int64_t first,
                      int64_t num_rows) {
    struct export *x = context;
    const struct checkpoint_entry *e = &x->entries.list[x->entry];
    int64_t keep = real_rows(x, e) - first < num_rows ? real_rows(x, e) - first : num_rows;
    size_t row_bytes = (size_t)e->dims[1] * safetensors_dtype_bytes(x->dtype);
    (void)t;
    if (keep <= 0 || x->status) return;
    from_f32(x->converted, x->dtype, rows, keep * e->dims[1]);
    x->status = safetensors_write(x->writer, x->number_of[x->entry], (uint64_t)first * row_bytes,
                                  x->converted, (size_t)keep * row_bytes, x->err);
}

static int copy_tensor(struct export *x, int entry) {
    const struct safetensors *file;
    uint64_t checksum;
    const struct checkpoint_entry *e = &x->entries.list[entry];
    const struct safetensors_tensor *t =
        checkpoint_reader_find(&x->reader, e->name, &file, &checksum, x->err);
    if (!t) return -1;
    if (t->dtype != SAFETENSORS_F32 || t->num_dims != e->num_dims || t->dims[0] != e->dims[0] ||
        (t->num_dims > 1 && t->dims[1] != e->dims[1]))
        return err_set(x->err, "%s: tensor '%s' has not the shape that the manifest's model gives it",
                       safetensors_path(file), e->name);
    size_t bytes = checkpoint_reader_staging(t);
    x->entry = entry, x->status = 0;
    x->staging = mem_realloc(x->staging, bytes, "export staging");
    x->converted = mem_realloc(x->converted, bytes, "export staging");
    if (checkpoint_reader_stream(file, t, checksum, x->staging, copy_rows, x, x->err)) return -1;
    return x->status;
}

static int write_shard(struct export *x, int shard) {
    char name[64];
    struct str path = {0};
    struct err ignored;
    shard_name(x, shard, name);
    str_printf(&path, "%s/%s", x->out_dir, name);
    x->writer = safetensors_writer_open(path.data, &x->shards[shard], x->err);
    int status = x->writer ? 0 : -1;
    for (int i = 0; i < x->entries.count && !status; i++)
        if (x->shard_of[i] == shard) status = copy_tensor(x, i);
    if (safetensors_writer_close(x->writer, status ? &ignored : x->err)) status = -1;
    str_free(&path);
    return status;
}

static int write_index(const struct export *x) {
    struct str out = {0};
    char name[64];
    uint64_t bytes = 0;
    if (x->num_shards == 1) return 0;
    for (int i = 0; i < x->num_shards; i++) bytes += x->shards[i].data_bytes;
    json_begin_object(&out);
    json_key(&out, "metadata");
    json_begin_object(&out);
    json_key(&out, "total_size");
    json_unsigned(&out, bytes);
    json_end_object(&out);
    json_key(&out, "weight_map");
    json_begin_object(&out);
    for (int i = 0; i < x->entries.count; i++) {
        shard_name(x, x->shard_of[i], name);
        json_key(&out, x->entries.list[i].name);
        json_string(&out, name);
    }
    json_end_object(&out);
    json_end_object(&out);
    int status = checkpoint_write_file(x->out_dir, INDEX_NAME, out.data, out.length, x->err);
    str_free(&out);
    return status;
}

static int check_out_dir(const char *out_dir, struct err *err) {
    struct str path = {0};
    struct stat st;
    int status = checkpoint_make_dirs(out_dir, err);
    str_printf(&path, "%s/config.json", out_dir);
    if (!status && stat(path.data, &st) == 0)
        status = err_set(err, "%s: is there already: give a folder that holds no model", path.data);
    str_free(&path);
    return status;
}

static void remove_shards(const struct export *x) {
    struct str path = {0};
    char name[64];
    for (int i = 0; i < x->num_shards; i++) {
        shard_name(x, i, name);
        str_clear(&path);
        str_printf(&path, "%s/%s", x->out_dir, name);
        unlink(path.data);
    }
    str_free(&path);
}

/* config.json comes last: a folder without it is no model. */
static int export_files(struct export *x, const struct checkpoint_manifest *m, uint64_t *bytes_p) {
    struct str config = {0};
    uint64_t bytes = 0;
    int status = 0;
    for (int i = 0; i < x->num_shards; i++) bytes += safetensors_layout_bytes(&x->shards[i]);
    if (checkpoint_store_need_space(x->out_dir, bytes, x->err)) return -1;
    for (int i = 0; i < x->num_shards && !status; i++) status = write_shard(x, i);
    if (!status) status = write_index(x);
    checkpoint_write_hf_config(&config, &m->model, &m->state, x->dtype);
    if (!status)
        status = checkpoint_write_file(x->out_dir, "config.json", config.data, config.length, x->err);
    str_free(&config);
    if (status) remove_shards(x);
    *bytes_p = bytes;
    return status;
}

int checkpoint_export_hf(const char *dir, int64_t iteration, const char *out_dir,
                         enum safetensors_dtype dtype, uint64_t *bytes_p, struct err *err) {
    struct checkpoint_info info;
    const char *why;
    if (checkpoint_find(dir, iteration, &info, err)) return -1;
    if (!info.found) return err_set(err, "%s: there is no checkpoint", dir);
    struct export x = {.out_dir = out_dir, .dtype = dtype, .err = err};
    struct checkpoint_manifest *m = checkpoint_manifest_open(info.path, err);
    checkpoint_info_free(&info);
    if (!m) return -1;
    checkpoint_reader_init(&x.reader, m);
    int status = entries_open(&x.entries, &m->model, err);
    if (!status && checkpoint_family(&m->model, &why) == CHECKPOINT_MEGATRON)
        status = err_set(err, "%s: Hugging Face has no such model: %s", m->path, why);
    if (!status) status = check_out_dir(out_dir, err);
    if (!status) plan_shards(&x);
    if (!status) status = export_files(&x, m, bytes_p);
    for (int i = 0; i < x.num_shards; i++) safetensors_layout_free(&x.shards[i]);
    mem_free(x.shards);
    mem_free(x.shard_of);
    mem_free(x.number_of);
    mem_free(x.staging);
    mem_free(x.converted);
    mem_free(x.entries.list);
    checkpoint_reader_free(&x.reader);
    checkpoint_manifest_close(m);
    return status;
}

/* ---- import ---- */

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
        return err_set(im->err, "%s/%s: '%s' is no file name", im->hf_dir, INDEX_NAME, name);
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
    str_printf(&path, "%s/%s", im->hf_dir, INDEX_NAME);
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

static bool ends_with(const char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    return n >= m && !strcmp(name + n - m, end);
}

/* Buffers that old folders carry, and the second copy of a tied embedding. */
static bool may_ignore(const struct checkpoint_model *model, const char *name) {
    return ends_with(name, ".attn.bias") || ends_with(name, ".attn.masked_bias") ||
           ends_with(name, ".rotary_emb.inv_freq") || (model->tied && !strcmp(name, "lm_head.weight"));
}

static int check_all_used(const struct import *im, const struct entries *es) {
    for (int f = 0; f < im->num_files; f++)
        for (size_t i = 0; i < safetensors_count(im->files[f]); i++) {
            const struct safetensors_tensor *t = safetensors_at(im->files[f], i);
            const struct safetensors *file;
            bool used = may_ignore(es->model, t->name);
            for (int e = 0; e < es->count && !used; e++)
                used = ends_with(es->list[e].name, t->name) && find_weight(im, es->list[e].name, &file) == t;
            if (!used)
                return err_set(im->err,
                               "%s: tensor '%s' has no place in the model that config.json describes",
                               safetensors_path(im->files[f]), t->name);
        }
    return 0;
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

static int import_weights(struct import *im, const char *out_dir, const struct checkpoint_model *model) {
    struct entries es;
    struct str flags = {0};
    struct checkpoint_state state = {0};
    struct checkpoint_job job;
    int status = entries_open(&es, model, im->err);
    if (!status) status = open_weights(im);
    for (int i = 0; i < es.count && !status; i++) status = check_weight(im, &es.list[i]);
    if (!status) status = check_all_used(im, &es);
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
