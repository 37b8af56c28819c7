#pragma once
/* Megatron-LM's indexed dataset: PREFIX.bin holds raw tokens, one sequence after another, and PREFIX.idx says
 * where each sequence starts, how long it is and which sequences form a document (little endian, packed):
 *
 *     0   "MMIDIDX\0\0"           34         i32 length[S], in tokens
 *     9   u64 version, 1          34 + 4S    i64 byte offset[S] in the .bin
 *     17  u8  element type        34 + 12S   i64 documents[D], first sequence of each; the last is S
 *     18  u64 S, sequences        34 + 12S + 8D   i8 mode[S], multimodal files only (not read)
 *     26  u64 D, documents + 1
 *
 * Opening maps both files and checks every entry of the .idx against the size of the .bin, so that a reader
 * can trust it; a fault is reported with file, byte offset and sequence or document. A .bin that is truncated
 * or replaced in place later is noticed by indexed_check, which the loader calls before each sample. The
 * handle owns the mappings.
 *
 *     struct indexed *data;
 *     if (indexed_open("corpus_text_document", true, &data, err)) return -1;
 *     indexed_read(data, sequence, 0, indexed_length(data, sequence), tokens);
 *     indexed_close(data); */
#include "core/base/check.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

enum indexed_type {
    INDEXED_U8 = 1,
    INDEXED_I8,
    INDEXED_I16,
    INDEXED_I32,
    INDEXED_I64,
    INDEXED_F64,
    INDEXED_F32,
    INDEXED_U16,
    INDEXED_TYPES
};
enum { INDEXED_HEADER_BYTES = 34 };

struct indexed {
    char *prefix;
    enum indexed_type type;
    int64_t element_bytes;
    int64_t sequences, documents; /* documents = D - 1 */
    int64_t tokens;               /* sum of all lengths */
    int64_t bin_bytes;            /* size of the .bin at open */
    const unsigned char *idx;     /* the mapped .idx, idx_bytes long */
    size_t idx_bytes;
    const unsigned char *bin; /* the mapped .bin; NULL when it is empty or read with pread */
    int bin_file;             /* for pread; -1 when mapped */
    dev_t bin_device;
    ino_t bin_inode;
    bool owns_idx;
};

/* Bytes per token of a type code, 0 for an unknown one. */
int64_t indexed_type_bytes(int code);
/* `map` false reads the .bin with pread instead (--no-mmap-bin-files). */
int indexed_open(const char *prefix, bool map, struct indexed **data_p, struct err *err);
/* Checks an .idx image in memory against a .bin of bin_bytes (for tests and fuzzing; the image stays the
 * caller's, and nothing can be read). */
int indexed_open_image(const void *idx, size_t idx_bytes, int64_t bin_bytes, const char *name,
                       struct indexed **data_p, struct err *err);
void indexed_close(struct indexed *data); /* NULL is fine */

/* The three arrays are not aligned in the file, hence memcpy. */
static inline int32_t indexed_length(const struct indexed *d, int64_t sequence) {
    int32_t v;
    memcpy(&v, d->idx + INDEXED_HEADER_BYTES + 4 * sequence, 4);
    return v;
}
static inline int64_t indexed_offset(const struct indexed *d, int64_t sequence) {
    int64_t v;
    memcpy(&v, d->idx + INDEXED_HEADER_BYTES + 4 * d->sequences + 8 * sequence, 8);
    return v;
}
/* First sequence of document 0 .. documents (the last one is `sequences`). */
static inline int64_t indexed_document(const struct indexed *d, int64_t document) {
    int64_t v;
    memcpy(&v, d->idx + INDEXED_HEADER_BYTES + 12 * d->sequences + 8 * document, 8);
    return v;
}

/* Document that a sequence belongs to (binary search; for messages). */
int64_t indexed_find_document(const struct indexed *data, int64_t sequence);
/* 0 while the .bin is as large as it was at open. */
int indexed_check(const struct indexed *data, struct err *err);
/* Tokens [first, first + count) of a sequence as int32. A token that is no integer in int32 becomes -1, which
 * no vocabulary contains. The range must lie inside the sequence. Fails only with pread. */
int indexed_read(const struct indexed *data, int64_t sequence, int64_t first, int64_t count, int32_t *tokens,
                 struct err *err);
