#pragma once
/* The safetensors file format: 8 bytes little-endian header length, a JSON header {"name": {"dtype": "F32",
 * "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {...}}, then the data buffer, which the
 * tensors tile without holes (huggingface.co/docs/safetensors).
 *
 * Reader: the file is mapped and its header fully checked before a tensor can be seen: lengths, JSON, names
 * not repeated, dtype, shape product against the byte range, ranges inside the file, no overlap, no hole.
 * Messages name file, tensor and offset. Pointers live until safetensors_close. A file that is cut while it
 * is mapped kills a reader of `data`; safetensors_read returns an error instead.
 *
 * Writer: the layout is known before the first byte. The header goes first, then tensors may be written in
 * any order and in pieces at their offsets, so several writers can share one file.
 *
 *     struct safetensors_layout layout = {0};
 *     int w = safetensors_layout_add(&layout, "w", SAFETENSORS_F32, 2, (int64_t[]){2, 3});
 *     struct safetensors_writer *out = safetensors_writer_open("a.safetensors", &layout, &err);
 *     safetensors_write(out, w, 0, data, 24, &err);
 *     safetensors_writer_close(out, &err); // syncs; also call it after an error */
#include "core/base/check.h"
#include "core/base/str.h"
#include <stdint.h>

enum { SAFETENSORS_MAX_DIMS = 8, SAFETENSORS_MAX_HEADER = 100 << 20 };

enum safetensors_dtype {
    SAFETENSORS_F32,
    SAFETENSORS_BF16,
    SAFETENSORS_F16,
    SAFETENSORS_F64,
    SAFETENSORS_I64,
    SAFETENSORS_I32,
    SAFETENSORS_I16,
    SAFETENSORS_I8,
    SAFETENSORS_U64,
    SAFETENSORS_U32,
    SAFETENSORS_U16,
    SAFETENSORS_U8,
    SAFETENSORS_BOOL,
    SAFETENSORS_F8_E4M3,
    SAFETENSORS_F8_E5M2,
    SAFETENSORS_DTYPE_COUNT
};
const char *safetensors_dtype_name(enum safetensors_dtype dtype); /* "F32" */
size_t safetensors_dtype_bytes(enum safetensors_dtype dtype);

struct safetensors_tensor {
    const char *name;
    enum safetensors_dtype dtype;
    int num_dims;
    int64_t dims[SAFETENSORS_MAX_DIMS];
    uint64_t begin, end; /* in the data buffer */
    const void *data;    /* mapped; not aligned beyond what the file gives */
};

struct safetensors;
struct safetensors *safetensors_open(const char *path, struct err *err); /* NULL on error */
/* The same over bytes in memory, which must outlive it. */
struct safetensors *safetensors_parse(const void *bytes, size_t size, const char *name, struct err *err);
void safetensors_close(struct safetensors *file); /* NULL is fine */
size_t safetensors_count(const struct safetensors *file);
/* In the order of the data. */
const struct safetensors_tensor *safetensors_at(const struct safetensors *file, size_t i);
const struct safetensors_tensor *safetensors_find(const struct safetensors *file, const char *name);
const char *safetensors_metadata(const struct safetensors *file, const char *key); /* NULL: not there */
uint64_t safetensors_header_bytes(const struct safetensors *file); /* offset of the data buffer */
const char *safetensors_path(const struct safetensors *file);
/* Copies bytes [offset, offset + bytes) of a tensor, or the header, through the file, not the map. */
int safetensors_read(const struct safetensors *file, const struct safetensors_tensor *tensor, uint64_t offset,
                     void *buffer, size_t bytes, struct err *err);
int safetensors_read_header(const struct safetensors *file, void *buffer, struct err *err);

struct safetensors_layout {
    struct safetensors_entry *entries; /* owned */
    int count, capacity;
    uint64_t data_bytes;
    struct str metadata; /* "key":"value" pairs */
};
/* Returns the tensor's number. Tensors lie in the order of the calls. */
int safetensors_layout_add(struct safetensors_layout *layout, const char *name, enum safetensors_dtype dtype,
                           int num_dims, const int64_t *dims);
void safetensors_layout_metadata(struct safetensors_layout *layout, const char *key, const char *value);
/* Appends the 8 length bytes and the JSON, padded with spaces so that the data starts at a multiple of 8. */
void safetensors_layout_header(const struct safetensors_layout *layout, struct str *out);
/* Bytes of the whole file. */
uint64_t safetensors_layout_bytes(const struct safetensors_layout *layout);
void safetensors_layout_free(struct safetensors_layout *layout);

struct safetensors_writer;
/* Makes the file, at its final length, and writes the header. The layout must outlive the writer. NULL on
 * error. */
struct safetensors_writer *safetensors_writer_open(const char *path, const struct safetensors_layout *layout,
                                                   struct err *err);
/* Opens a file that safetensors_writer_open has made from the same layout, to write more of its tensors. */
struct safetensors_writer *
safetensors_writer_attach(const char *path, const struct safetensors_layout *layout, struct err *err);
/* Writes bytes [offset, offset + bytes) of tensor number `tensor`. */
int safetensors_write(struct safetensors_writer *writer, int tensor, uint64_t offset, const void *data,
                      size_t bytes, struct err *err);
/* Syncs and closes; frees the writer in any case. NULL is fine and returns 0. */
int safetensors_writer_close(struct safetensors_writer *writer, struct err *err);
uint64_t safetensors_writer_header_hash(const struct safetensors_writer *writer);
