#include "core/base/mem.h"
#include "core/checkpoint/hf.h"
#include "core/checkpoint/hf_tensors.h"
#include "core/checkpoint/reader.h"
#include "core/checkpoint/record.h"
#include "core/checkpoint/save.h"
#include "core/checkpoint/store.h"
#include "core/tensor/dtype.h"
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_SHARD_BYTES ((uint64_t)5000000000)

static void from_f32(void *out, enum safetensors_dtype dtype, const float *in, int64_t count) {
    if (dtype == SAFETENSORS_F32)
        memcpy(out, in, (size_t)count * sizeof(float));
    else if (dtype == SAFETENSORS_BF16)
        for (int64_t i = 0; i < count; i++) ((uint16_t *)out)[i] = f32_to_bf16(in[i]);
    else
        for (int64_t i = 0; i < count; i++) ((uint16_t *)out)[i] = f32_to_f16(in[i]);
}

struct export {
    const char *out_dir;
    enum safetensors_dtype dtype;
    const struct checkpoint_model *model;
    struct checkpoint_entries entries;
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
    return e->vocabulary ? x->model->vocab_size : e->dims[0];
}

static enum safetensors_dtype dtype_of(const struct export *x, const struct checkpoint_entry *e) {
    return hf_is_router_bias(e->name) ? SAFETENSORS_F32 : x->dtype;
}

static void plan_shards(struct export *x) {
    x->shard_of = mem_new_array(int, (size_t)x->entries.count, "export plan");
    x->number_of = mem_new_array(int, (size_t)x->entries.count, "export plan");
    for (int i = 0; i < x->entries.count; i++) {
        const struct checkpoint_entry *e = &x->entries.list[i];
        int64_t dims[2] = {real_rows(x, e), e->dims[1]};
        uint64_t bytes = (uint64_t)(dims[0] * dims[1]) * safetensors_dtype_bytes(dtype_of(x, e));
        struct safetensors_layout *last = x->num_shards ? &x->shards[x->num_shards - 1] : NULL;
        if (!last || (last->count && last->data_bytes + bytes > MAX_SHARD_BYTES)) {
            x->shards =
                mem_realloc(x->shards, (size_t)(x->num_shards + 1) * sizeof(*x->shards), "export shards");
            last = &x->shards[x->num_shards++];
            *last = (struct safetensors_layout){0};
            safetensors_layout_metadata(last, "format", "pt");
        }
        x->shard_of[i] = x->num_shards - 1;
        x->number_of[i] = safetensors_layout_add(last, e->name, dtype_of(x, e), e->num_dims, dims);
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
    enum safetensors_dtype dtype = dtype_of(x, e);
    size_t row_bytes = (size_t)e->dims[1] * safetensors_dtype_bytes(dtype);
    (void)t;
    if (keep <= 0 || x->status) return;
    from_f32(x->converted, dtype, rows, keep * e->dims[1]);
    x->status = safetensors_write(x->writer, x->number_of[x->entry], (uint64_t)first * row_bytes,
                                  x->converted, (size_t)keep * row_bytes, x->err);
}

/* A model without the bias is one whose bias is zero. */
static int write_zero_bias(struct export *x, int entry) {
    size_t bytes = (size_t)x->entries.list[entry].dims[0] * sizeof(float);
    float *zeros = mem_zalloc(bytes, "export staging");
    int status = safetensors_write(x->writer, x->number_of[entry], 0, zeros, bytes, x->err);
    mem_free(zeros);
    return status;
}

static int copy_tensor(struct export *x, int entry) {
    const struct safetensors *file;
    uint64_t checksum;
    const struct checkpoint_entry *e = &x->entries.list[entry];
    if (hf_is_router_bias(e->name) && !x->model->moe_expert_bias) return write_zero_bias(x, entry);
    const char *copied = hf_copy_of(x->model, e->name);
    const struct safetensors_tensor *t =
        checkpoint_reader_find(&x->reader, copied ? copied : e->name, &file, &checksum, x->err);
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
    int status = checkpoint_write_file(x->out_dir, HF_INDEX_NAME, out.data, out.length, x->err);
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
    x.model = &m->model;
    int status = 0;
    if (checkpoint_family(&m->model, &why) == CHECKPOINT_MEGATRON ||
        (why = checkpoint_unlike_family(&m->model)) != NULL)
        status = err_set(err, "%s: Hugging Face has no such model: %s", m->path, why);
    if (!status) status = hf_list_folder(&m->model, &x.entries, err);
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
