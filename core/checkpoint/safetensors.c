#include "core/checkpoint/safetensors.h"
#include "core/base/json.h"
#include "core/base/mem.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "safetensors data is little-endian");

static const struct {
    const char *name;
    size_t bytes;
} dtypes[SAFETENSORS_DTYPE_COUNT] = {
    [SAFETENSORS_F32] = {"F32", 4},         [SAFETENSORS_BF16] = {"BF16", 2},
    [SAFETENSORS_F16] = {"F16", 2},         [SAFETENSORS_F64] = {"F64", 8},
    [SAFETENSORS_I64] = {"I64", 8},         [SAFETENSORS_I32] = {"I32", 4},
    [SAFETENSORS_I16] = {"I16", 2},         [SAFETENSORS_I8] = {"I8", 1},
    [SAFETENSORS_U64] = {"U64", 8},         [SAFETENSORS_U32] = {"U32", 4},
    [SAFETENSORS_U16] = {"U16", 2},         [SAFETENSORS_U8] = {"U8", 1},
    [SAFETENSORS_BOOL] = {"BOOL", 1},       [SAFETENSORS_F8_E4M3] = {"F8_E4M3", 1},
    [SAFETENSORS_F8_E5M2] = {"F8_E5M2", 1},
};

const char *safetensors_dtype_name(enum safetensors_dtype dtype) {
    return dtypes[dtype].name;
}

size_t safetensors_dtype_bytes(enum safetensors_dtype dtype) {
    return dtypes[dtype].bytes;
}

struct safetensors {
    char *path;
    int fd;            /* -1 when parsed from memory */
    const char *bytes; /* the whole file */
    size_t size;
    uint64_t header_bytes;
    struct json *header;
    struct safetensors_tensor *tensors; /* by offset */
    size_t count;
    uint32_t *by_name; /* open addressing over tensors: 1 + number, 0 is empty */
    size_t mask;
};

/* ---- one tensor's header entry ---- */

static int parse_shape(const struct safetensors *f, const struct json_node *shape,
                       struct safetensors_tensor *t, uint64_t *bytes_p, struct err *err) {
    if (!shape || shape->kind != JSON_ARRAY)
        return err_set(err, "%s: tensor '%s' has no shape array", f->path, t->name);
    if (shape->count > SAFETENSORS_MAX_DIMS)
        return err_set(err, "%s: tensor '%s' has %zu dimensions, at most %d are supported", f->path, t->name,
                       shape->count, SAFETENSORS_MAX_DIMS);
    uint64_t bytes = dtypes[t->dtype].bytes;
    bool overflow = false, zero = false;
    for (size_t i = 0; i < shape->count; i++) {
        const struct json_node *d = &shape->items[i];
        if (d->kind != JSON_NUMBER || !d->is_integer || d->integer < 0)
            return err_set(err, "%s: tensor '%s': dimension %zu is no whole number >= 0", f->path, t->name,
                           i);
        t->dims[i] = d->integer;
        zero = zero || !d->integer;
        overflow = __builtin_mul_overflow(bytes, (uint64_t)d->integer, &bytes) || overflow;
    }
    if (overflow && !zero)
        return err_set(err, "%s: tensor '%s': the product of its shape overflows", f->path, t->name);
    t->num_dims = (int)shape->count;
    *bytes_p = zero ? 0 : bytes;
    return 0;
}

static int parse_tensor(const struct safetensors *f, const char *name, const struct json_node *node,
                        struct safetensors_tensor *t, struct err *err) {
    uint64_t bytes = 0, room = f->size - f->header_bytes;
    *t = (struct safetensors_tensor){.name = name};
    if (node->kind != JSON_OBJECT) return err_set(err, "%s: header entry '%s' is no object", f->path, name);
    const struct json_node *dtype = json_get(node, "dtype");
    if (!dtype || dtype->kind != JSON_STRING)
        return err_set(err, "%s: tensor '%s' has no dtype", f->path, name);
    int d = 0;
    while (d < SAFETENSORS_DTYPE_COUNT && strcmp(dtypes[d].name, dtype->string)) d++;
    if (d == SAFETENSORS_DTYPE_COUNT)
        return err_set(err, "%s: tensor '%s' has dtype '%.32s', which this program does not know", f->path,
                       name, dtype->string);
    t->dtype = (enum safetensors_dtype)d;
    if (parse_shape(f, json_get(node, "shape"), t, &bytes, err)) return -1;
    const struct json_node *range = json_get(node, "data_offsets");
    if (!range || range->kind != JSON_ARRAY || range->count != 2 || !range->items[0].is_integer ||
        !range->items[1].is_integer || range->items[0].integer < 0 ||
        range->items[1].integer < range->items[0].integer)
        return err_set(err, "%s: tensor '%s': data_offsets must be [begin, end] with 0 <= begin <= end",
                       f->path, name);
    t->begin = (uint64_t)range->items[0].integer, t->end = (uint64_t)range->items[1].integer;
    if (t->end > room)
        return err_set(
            err, "%s: tensor '%s' ends at byte %llu of the data, but the file holds %llu: it is cut short",
            f->path, name, (unsigned long long)t->end, (unsigned long long)room);
    if (t->end - t->begin != bytes)
        return err_set(
            err, "%s: tensor '%s' takes bytes %llu to %llu, but its shape and dtype need %llu bytes", f->path,
            name, (unsigned long long)t->begin, (unsigned long long)t->end, (unsigned long long)bytes);
    t->data = f->bytes + f->header_bytes + t->begin;
    return 0;
}

/* ---- the whole header ---- */

static int compare_offsets(const void *a, const void *b) {
    const struct safetensors_tensor *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    return (x->end > y->end) - (x->end < y->end);
}

static int check_tiling(const struct safetensors *f, struct err *err) {
    uint64_t at = 0, room = f->size - f->header_bytes;
    for (size_t i = 0; i < f->count; i++) {
        const struct safetensors_tensor *t = &f->tensors[i];
        if (t->begin < at)
            return err_set(err, "%s: tensors '%s' and '%s' overlap at byte %llu of the data", f->path,
                           f->tensors[i - 1].name, t->name, (unsigned long long)t->begin);
        if (t->begin > at)
            return err_set(err, "%s: bytes %llu to %llu of the data, before tensor '%s', belong to no tensor",
                           f->path, (unsigned long long)at, (unsigned long long)t->begin, t->name);
        at = t->end;
    }
    if (at != room)
        return err_set(err, "%s: bytes %llu to %llu of the data, after the last tensor, belong to no tensor",
                       f->path, (unsigned long long)at, (unsigned long long)room);
    return 0;
}

static size_t name_slot(const struct safetensors *f, const char *name) {
    uint64_t h = 0xCBF29CE484222325u;
    for (const char *p = name; *p; p++) h = (h ^ (unsigned char)*p) * 0x100000001B3u;
    size_t s = (size_t)(h ^ h >> 32) & f->mask;
    while (f->by_name[s] && strcmp(f->tensors[f->by_name[s] - 1].name, name)) s = (s + 1) & f->mask;
    return s;
}

static int index_names(struct safetensors *f, struct err *err) {
    f->mask = 15;
    while (f->mask + 1 < f->count * 2) f->mask = f->mask * 2 + 1;
    f->by_name = mem_new_array(uint32_t, f->mask + 1, "safetensors index");
    for (size_t i = 0; i < f->count; i++) {
        size_t s = name_slot(f, f->tensors[i].name);
        if (f->by_name[s])
            return err_set(err, "%s: tensor '%s' is listed twice", f->path, f->tensors[i].name);
        f->by_name[s] = (uint32_t)i + 1;
    }
    return 0;
}

static int parse_header(struct safetensors *f, struct err *err) {
    if (f->size < 8)
        return err_set(err, "%s: %zu bytes are too few for a safetensors file", f->path, f->size);
    uint64_t length;
    memcpy(&length, f->bytes, 8);
    if (length > SAFETENSORS_MAX_HEADER || length > f->size - 8)
        return err_set(err,
                       "%s: the header's length at offset 0 says %llu bytes, but the file has %zu behind it: "
                       "no safetensors file, or cut short",
                       f->path, (unsigned long long)length, f->size - 8);
    f->header_bytes = 8 + length;
    struct str name = {0};
    str_printf(&name, "%s: header", f->path);
    f->header = json_parse(f->bytes + 8, (size_t)length, name.data, err);
    str_free(&name);
    if (!f->header) return -1;
    const struct json_node *root = json_root(f->header);
    if (root->kind != JSON_OBJECT) return err_set(err, "%s: the header is no JSON object", f->path);
    f->tensors = mem_new_array(struct safetensors_tensor, root->count, "safetensors tensors");
    for (size_t i = 0; i < root->count; i++) {
        if (strlen(root->keys[i]) != json_key_length(root, i))
            return err_set(err, "%s: header entry %zu has a NUL in its name", f->path, i);
        if (!strcmp(root->keys[i], "__metadata__")) continue;
        if (parse_tensor(f, root->keys[i], &root->items[i], &f->tensors[f->count], err)) return -1;
        f->count++;
    }
    if (f->count) qsort(f->tensors, f->count, sizeof(f->tensors[0]), compare_offsets);
    if (index_names(f, err)) return -1;
    return check_tiling(f, err);
}

static struct safetensors *new_file(const char *path) {
    struct safetensors *f = mem_zalloc(sizeof(*f), "safetensors file");
    f->path = mem_strdup(path, "safetensors path");
    f->fd = -1;
    return f;
}

struct safetensors *safetensors_parse(const void *bytes, size_t size, const char *name, struct err *err) {
    struct safetensors *f = new_file(name);
    f->bytes = bytes, f->size = size;
    if (!parse_header(f, err)) return f;
    safetensors_close(f);
    return NULL;
}

static int map_file(struct safetensors *f, struct err *err) {
    struct stat st;
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC);
    if (f->fd < 0) return err_set(err, "%s: cannot open: %s", f->path, strerror(errno));
    if (fstat(f->fd, &st)) return err_set(err, "%s: %s", f->path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return err_set(err, "%s: not a regular file", f->path);
    if (!st.st_size) return err_set(err, "%s: the file is empty", f->path);
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, f->fd, 0);
    if (map == MAP_FAILED) return err_set(err, "%s: cannot map: %s", f->path, strerror(errno));
    f->bytes = map, f->size = (size_t)st.st_size;
    return 0;
}

struct safetensors *safetensors_open(const char *path, struct err *err) {
    struct safetensors *f = new_file(path);
    if (!map_file(f, err) && !parse_header(f, err)) return f;
    safetensors_close(f);
    return NULL;
}

void safetensors_close(struct safetensors *file) {
    if (!file) return;
    if (file->fd >= 0) {
        if (file->bytes) munmap((void *)(uintptr_t)file->bytes, file->size);
        close(file->fd);
    }
    json_free(file->header);
    mem_free(file->tensors);
    mem_free(file->by_name);
    mem_free(file->path);
    mem_free(file);
}

size_t safetensors_count(const struct safetensors *file) {
    return file->count;
}

const struct safetensors_tensor *safetensors_at(const struct safetensors *file, size_t i) {
    CHECK(i < file->count, "tensor %zu of %zu", i, file->count);
    return &file->tensors[i];
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name) {
    uint32_t i = file->by_name[name_slot(file, name)];
    return i ? &file->tensors[i - 1] : NULL;
}

const char *safetensors_metadata(const struct safetensors *file, const char *key) {
    const struct json_node *value = json_get(json_get(json_root(file->header), "__metadata__"), key);
    return value && value->kind == JSON_STRING ? value->string : NULL;
}

uint64_t safetensors_header_bytes(const struct safetensors *file) {
    return file->header_bytes;
}

const char *safetensors_path(const struct safetensors *file) {
    return file->path;
}

static int read_at(const struct safetensors *f, uint64_t offset, void *buffer, size_t bytes,
                   struct err *err) {
    CHECK(offset <= f->size && bytes <= f->size - offset, "%s: read outside the file", f->path);
    if (f->fd < 0) {
        memcpy(buffer, f->bytes + offset, bytes);
        return 0;
    }
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pread(f->fd, (char *)buffer + done, bytes - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return err_set(err, "%s: cannot read %zu bytes at offset %llu: %s", f->path, bytes - done,
                           (unsigned long long)(offset + done), n ? strerror(errno) : "the file ends here");
        done += (size_t)n;
    }
    return 0;
}

int safetensors_read(const struct safetensors *file, const struct safetensors_tensor *tensor, uint64_t offset,
                     void *buffer, size_t bytes, struct err *err) {
    CHECK(offset <= tensor->end - tensor->begin && bytes <= tensor->end - tensor->begin - offset,
          "%s: read outside tensor %s", file->path, tensor->name);
    return read_at(file, file->header_bytes + tensor->begin + offset, buffer, bytes, err);
}

int safetensors_read_header(const struct safetensors *file, void *buffer, struct err *err) {
    return read_at(file, 0, buffer, (size_t)file->header_bytes, err);
}
