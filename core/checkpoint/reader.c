#include "core/checkpoint/reader.h"
#include "core/base/hash.h"
#include "core/base/mem.h"
#include "core/checkpoint/checksum.h"
#include <string.h>

void checkpoint_reader_init(struct checkpoint_reader *reader, const struct checkpoint_manifest *manifest) {
    reader->manifest = manifest;
    reader->files = mem_new_array(struct safetensors *, (size_t)manifest->num_files, "checkpoint files");
}

void checkpoint_reader_free(struct checkpoint_reader *reader) {
    for (int i = 0; reader->files && i < reader->manifest->num_files; i++)
        safetensors_close(reader->files[i]);
    mem_free(reader->files);
    *reader = (struct checkpoint_reader){0};
}

bool checkpoint_reader_is_tensor_file(const struct checkpoint_reader *reader, int file) {
    static const char suffix[] = ".safetensors";
    const char *name = reader->manifest->files[file].name;
    size_t n = strlen(name), m = sizeof(suffix) - 1;
    return n > m && !strcmp(name + n - m, suffix);
}

static int check_header(const struct safetensors *file, const struct checkpoint_file *expect,
                        struct err *err) {
    uint64_t bytes = safetensors_header_bytes(file);
    if (bytes != expect->head_bytes)
        return err_set(err, "%s: the header takes %llu bytes, the manifest says %llu", safetensors_path(file),
                       (unsigned long long)bytes, (unsigned long long)expect->head_bytes);
    void *header = mem_alloc((size_t)bytes, "safetensors header");
    int status = safetensors_read_header(file, header, err);
    if (!status && hash_bytes(header, (size_t)bytes) != expect->checksum)
        status =
            err_set(err, "%s: the header's checksum differs: the file was changed", safetensors_path(file));
    mem_free(header);
    return status;
}

const struct safetensors *checkpoint_reader_file(struct checkpoint_reader *reader, int file,
                                                 struct err *err) {
    const struct checkpoint_file *expect = &reader->manifest->files[file];
    if (reader->files[file]) return reader->files[file];
    struct str path = {0};
    str_printf(&path, "%s/%s", reader->manifest->path, expect->name);
    struct safetensors *f = safetensors_open(path.data, err);
    str_free(&path);
    if (f && check_header(f, expect, err)) {
        safetensors_close(f);
        f = NULL;
    }
    return reader->files[file] = f;
}

const struct safetensors_tensor *checkpoint_reader_find(struct checkpoint_reader *reader, const char *name,
                                                        const struct safetensors **file_p,
                                                        uint64_t *checksum_p, struct err *err) {
    int file;
    const char *path = reader->manifest->path;
    if (checkpoint_manifest_tensor(reader->manifest, name, &file, checksum_p) ||
        !checkpoint_reader_is_tensor_file(reader, file)) {
        err_set(err, "%s: the manifest has no tensor '%s'", path, name);
        return NULL;
    }
    if (!(*file_p = checkpoint_reader_file(reader, file, err))) return NULL;
    const struct safetensors_tensor *t = safetensors_find(*file_p, name);
    if (!t)
        err_set(err, "%s: has no tensor '%s', though the manifest says so", safetensors_path(*file_p), name);
    return t;
}

/* Rows of a block; a tensor of no dimensions is one row. */
static int64_t block_rows(const struct safetensors_tensor *t, int64_t *rows_p, size_t *row_bytes_p) {
    int64_t rows = t->num_dims ? t->dims[0] : 1;
    size_t bytes = (size_t)(t->end - t->begin), row_bytes = rows ? bytes / (size_t)rows : 0;
    *rows_p = rows, *row_bytes_p = row_bytes;
    int64_t fit = row_bytes ? (int64_t)(CHECKPOINT_STAGING_BYTES / row_bytes) : rows;
    if (fit > rows) fit = rows;
    return fit ? fit : 1;
}

size_t checkpoint_reader_staging(const struct safetensors_tensor *tensor) {
    int64_t rows;
    size_t row_bytes;
    return (size_t)block_rows(tensor, &rows, &row_bytes) * row_bytes;
}

int checkpoint_reader_stream(const struct safetensors *file, const struct safetensors_tensor *tensor,
                             uint64_t checksum, void *staging, checkpoint_rows_fn fn, void *context,
                             struct err *err) {
    int64_t rows;
    size_t row_bytes;
    int64_t step = block_rows(tensor, &rows, &row_bytes);
    uint64_t sum = 0;
    if (tensor->dtype != SAFETENSORS_F32)
        return err_set(err, "%s: tensor '%s' is of type %s, checkpoints hold F32", safetensors_path(file),
                       tensor->name, safetensors_dtype_name(tensor->dtype));
    for (int64_t first = 0; first < rows && row_bytes; first += step) {
        int64_t n = rows - first < step ? rows - first : step, cols = (int64_t)(row_bytes / sizeof(float));
        if (safetensors_read(file, tensor, (uint64_t)first * row_bytes, staging, (size_t)n * row_bytes, err))
            return -1;
        sum += checkpoint_checksum(staging, first * cols, n * cols);
        if (fn) fn(context, tensor, staging, first, n);
    }
    if (sum == checksum) return 0;
    return err_set(err,
                   "%s: the checksum of tensor '%s' (offset %llu) differs: the file was changed or is bad",
                   safetensors_path(file), tensor->name,
                   (unsigned long long)(safetensors_header_bytes(file) + tensor->begin));
}
