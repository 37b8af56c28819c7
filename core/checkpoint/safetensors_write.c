#include "core/base/hash.h"
#include "core/base/json.h"
#include "core/base/mem.h"
#include "core/checkpoint/safetensors.h"
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

enum { WRITE_BACK_BYTES = 32 << 20 };

struct safetensors_entry {
    char *name;
    enum safetensors_dtype dtype;
    int num_dims;
    int64_t dims[SAFETENSORS_MAX_DIMS];
    uint64_t begin, end;
};

int safetensors_layout_add(struct safetensors_layout *layout, const char *name, enum safetensors_dtype dtype,
                           int num_dims, const int64_t *dims) {
    CHECK(num_dims >= 0 && num_dims <= SAFETENSORS_MAX_DIMS, "%s has %d dimensions", name, num_dims);
    if (layout->count == layout->capacity) {
        layout->capacity = layout->capacity ? layout->capacity * 2 : 32;
        layout->entries =
            mem_realloc(layout->entries, mem_array_bytes((size_t)layout->capacity, sizeof(*layout->entries)),
                        "safetensors layout");
    }
    struct safetensors_entry *e = &layout->entries[layout->count];
    *e = (struct safetensors_entry){.dtype = dtype, .num_dims = num_dims};
    e->name = mem_strdup(name, "safetensors name");
    uint64_t bytes = safetensors_dtype_bytes(dtype);
    for (int i = 0; i < num_dims; i++) {
        e->dims[i] = dims[i];
        CHECK(dims[i] >= 0 && !__builtin_mul_overflow(bytes, (uint64_t)dims[i], &bytes),
              "%s: impossible shape", name);
    }
    e->begin = layout->data_bytes;
    CHECK(!__builtin_add_overflow(e->begin, bytes, &e->end), "%s: impossible shape", name);
    layout->data_bytes = e->end;
    return layout->count++;
}

void safetensors_layout_metadata(struct safetensors_layout *layout, const char *key, const char *value) {
    if (layout->metadata.length) str_puts(&layout->metadata, ",");
    struct str pair = {0};
    json_key(&pair, key);
    json_string(&pair, value);
    str_append(&layout->metadata, pair.data, pair.length);
    str_free(&pair);
}

void safetensors_layout_header(const struct safetensors_layout *layout, struct str *out) {
    struct str json = {0};
    json_begin_object(&json);
    if (layout->metadata.length) {
        json_key(&json, "__metadata__");
        str_printf(&json, "{%s}", layout->metadata.data);
    }
    for (int i = 0; i < layout->count; i++) {
        const struct safetensors_entry *e = &layout->entries[i];
        json_key(&json, e->name);
        json_begin_object(&json);
        json_key(&json, "dtype");
        json_string(&json, safetensors_dtype_name(e->dtype));
        json_key(&json, "shape");
        json_begin_array(&json);
        for (int d = 0; d < e->num_dims; d++) json_integer(&json, e->dims[d]);
        json_end_array(&json);
        json_key(&json, "data_offsets");
        json_begin_array(&json);
        json_unsigned(&json, e->begin);
        json_unsigned(&json, e->end);
        json_end_array(&json);
        json_end_object(&json);
    }
    json_end_object(&json);
    while (json.length % 8) str_append(&json, " ", 1);
    uint64_t length = json.length;
    str_append(out, (const char *)&length, sizeof(length));
    str_append(out, json.data, json.length);
    str_free(&json);
}

uint64_t safetensors_layout_bytes(const struct safetensors_layout *layout) {
    struct str header = {0};
    safetensors_layout_header(layout, &header);
    uint64_t bytes = header.length + layout->data_bytes;
    str_free(&header);
    return bytes;
}

void safetensors_layout_free(struct safetensors_layout *layout) {
    for (int i = 0; i < layout->count; i++) mem_free(layout->entries[i].name);
    mem_free(layout->entries);
    str_free(&layout->metadata);
    *layout = (struct safetensors_layout){0};
}

struct safetensors_writer {
    const struct safetensors_layout *layout;
    char *path;
    int fd;
    uint64_t header_bytes, header_hash;
    uint64_t unsynced; /* bytes written since writing back was last started */
};

static int write_at(struct safetensors_writer *w, uint64_t offset, const void *data, size_t bytes,
                    struct err *err) {
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pwrite(w->fd, (const char *)data + done, bytes - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return err_set(err, "%s: cannot write at offset %llu: %s", w->path,
                           (unsigned long long)(offset + done), n ? strerror(errno) : "nothing was written");
        done += (size_t)n;
    }
    w->unsynced += bytes;
    if (w->unsynced >= WRITE_BACK_BYTES) { /* the disk works while the next tensors are gathered */
        sync_file_range(w->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
        w->unsynced = 0;
    }
    return 0;
}

static struct safetensors_writer *open_writer(const char *path, const struct safetensors_layout *layout,
                                              int flags, struct str *header, struct err *err) {
    struct safetensors_writer *w = mem_zalloc(sizeof(*w), "safetensors writer");
    w->layout = layout;
    w->path = mem_strdup(path, "safetensors path");
    safetensors_layout_header(layout, header);
    w->header_bytes = header->length;
    w->header_hash = hash_bytes(header->data, header->length);
    w->fd = open(path, flags | O_CLOEXEC, 0644);
    if (w->fd >= 0) return w;
    err_set(err, "%s: cannot create: %s", path, strerror(errno));
    mem_free(w->path);
    mem_free(w);
    return NULL;
}

struct safetensors_writer *safetensors_writer_open(const char *path, const struct safetensors_layout *layout,
                                                   struct err *err) {
    struct str header = {0};
    struct safetensors_writer *w = open_writer(path, layout, O_WRONLY | O_CREAT | O_TRUNC, &header, err);
    int status = w ? 0 : -1;
    if (w && ftruncate(w->fd, (off_t)(header.length + layout->data_bytes)))
        status = err_set(err, "%s: cannot extend to %llu bytes: %s", path,
                         (unsigned long long)(header.length + layout->data_bytes), strerror(errno));
    if (!status) status = write_at(w, 0, header.data, header.length, err);
    str_free(&header);
    if (!status) return w;
    struct err ignored;
    safetensors_writer_close(w, &ignored);
    return NULL;
}

struct safetensors_writer *
safetensors_writer_attach(const char *path, const struct safetensors_layout *layout, struct err *err) {
    struct str header = {0};
    struct safetensors_writer *w = open_writer(path, layout, O_WRONLY, &header, err);
    str_free(&header);
    return w;
}

int safetensors_write(struct safetensors_writer *writer, int tensor, uint64_t offset, const void *data,
                      size_t bytes, struct err *err) {
    CHECK(tensor >= 0 && tensor < writer->layout->count, "tensor %d of %d", tensor, writer->layout->count);
    const struct safetensors_entry *e = &writer->layout->entries[tensor];
    CHECK(offset <= e->end - e->begin && bytes <= e->end - e->begin - offset, "write outside tensor %s",
          e->name);
    return write_at(writer, writer->header_bytes + e->begin + offset, data, bytes, err);
}

int safetensors_writer_close(struct safetensors_writer *writer, struct err *err) {
    int status = 0;
    if (!writer) return 0;
    if (fsync(writer->fd)) status = err_set(err, "%s: cannot sync: %s", writer->path, strerror(errno));
    if (close(writer->fd) && !status)
        status = err_set(err, "%s: cannot close: %s", writer->path, strerror(errno));
    mem_free(writer->path);
    mem_free(writer);
    return status;
}

uint64_t safetensors_writer_header_hash(const struct safetensors_writer *writer) {
    return writer->header_hash;
}
