#include "core/data/indexed_writer.h"
#include "core/base/mem.h"
#include "core/base/str.h"
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <unistd.h>

enum { BUFFER_BYTES = 1 << 20 };

/* One output file: buffered, under its temporary name until renamed. */
struct output {
    char *path, *temporary;
    int file;
    size_t used;
    unsigned char *buffer;
};

struct indexed_writer {
    enum indexed_type type;
    struct output bin, idx;
    int32_t *lengths;   /* [sequences] */
    int64_t *documents; /* [num_documents]: sequences after each */
    int64_t sequences, sequences_capacity, num_documents, documents_capacity;
};

static int output_open(struct output *o, const char *prefix, const char *suffix, struct err *err) {
    struct str s = {0};
    str_printf(&s, "%s%s", prefix, suffix);
    o->path = s.data;
    s = (struct str){0};
    str_printf(&s, "%s%s.tmp", prefix, suffix);
    o->temporary = s.data;
    o->buffer = mem_alloc(BUFFER_BYTES, "dataset output buffer");
    o->file = open(o->temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (o->file < 0)
        return err_set(err, "%s: cannot create: %s; check --output-prefix", o->temporary, strerror(errno));
    return 0;
}

static int output_flush(struct output *o, struct err *err) {
    size_t done = 0;
    while (done < o->used) {
        ssize_t n = write(o->file, o->buffer + done, o->used - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return err_set(err, "%s: cannot write: %s%s", o->temporary, strerror(errno),
                           errno == ENOSPC ? "; free space or choose another --output-prefix" : "");
        done += (size_t)n;
    }
    o->used = 0;
    return 0;
}

static int output_write(struct output *o, const void *data, size_t bytes, struct err *err) {
    const unsigned char *from = data;
    while (bytes) {
        size_t n = BUFFER_BYTES - o->used;
        if (n > bytes) n = bytes;
        memcpy(o->buffer + o->used, from, n);
        o->used += n, from += n, bytes -= n;
        if (o->used == BUFFER_BYTES && output_flush(o, err)) return -1;
    }
    return 0;
}

static int output_settle(struct output *o, struct err *err) {
    if (output_flush(o, err)) return -1;
    if (fsync(o->file)) return err_set(err, "%s: cannot flush to disk: %s", o->temporary, strerror(errno));
    int failed = close(o->file);
    o->file = -1;
    if (failed) return err_set(err, "%s: cannot close: %s", o->temporary, strerror(errno));
    return 0;
}

static int output_rename(struct output *o, struct err *err) {
    if (rename(o->temporary, o->path))
        return err_set(err, "%s: cannot rename to %s: %s", o->temporary, o->path, strerror(errno));
    mem_free(o->temporary);
    o->temporary = NULL;
    return 0;
}

static void output_close(struct output *o) {
    if (o->file >= 0) close(o->file);
    if (o->temporary) unlink(o->temporary);
    mem_free(o->temporary);
    mem_free(o->path);
    mem_free(o->buffer);
}

enum indexed_type indexed_writer_type(int64_t vocab_size) {
    return vocab_size < 65500 ? INDEXED_U16 : INDEXED_I32;
}

int indexed_writer_open(const char *prefix, enum indexed_type type, struct indexed_writer **writer_p,
                        struct err *err) {
    CHECK(type == INDEXED_U16 || type == INDEXED_I32, "the writer stores 16 or 32 bits, not type %d", type);
    struct indexed_writer *w = mem_zalloc(sizeof(*w), "dataset writer");
    w->type = type;
    w->bin.file = w->idx.file = -1;
    if (output_open(&w->bin, prefix, ".bin", err) || output_open(&w->idx, prefix, ".idx", err)) {
        indexed_writer_close(w);
        return -1;
    }
    *writer_p = w;
    return 0;
}

static int write_tokens(struct indexed_writer *w, const int32_t *tokens, int64_t count, struct err *err) {
    uint16_t narrow[1024];
    if (w->type == INDEXED_I32) return output_write(&w->bin, tokens, 4 * (size_t)count, err);
    while (count > 0) {
        int64_t n = count < (int64_t)ARRAY_COUNT(narrow) ? count : (int64_t)ARRAY_COUNT(narrow);
        for (int64_t i = 0; i < n; i++) narrow[i] = (uint16_t)tokens[i];
        if (output_write(&w->bin, narrow, 2 * (size_t)n, err)) return -1;
        tokens += n, count -= n;
    }
    return 0;
}

int indexed_writer_sequence(struct indexed_writer *w, const int32_t *tokens, int64_t count, struct err *err) {
    if (!count) return 0;
    if (count > INT32_MAX)
        return err_set(err, "%s: document %lld has %lld tokens; at most %d fit the format: split it",
                       w->bin.path, (long long)w->num_documents, (long long)count, INT32_MAX);
    if (w->sequences == w->sequences_capacity) {
        w->sequences_capacity = w->sequences_capacity ? 2 * w->sequences_capacity : 4096;
        w->lengths = mem_realloc(w->lengths, mem_array_bytes((size_t)w->sequences_capacity, 4), "lengths");
    }
    w->lengths[w->sequences++] = (int32_t)count;
    return write_tokens(w, tokens, count, err);
}

void indexed_writer_end_document(struct indexed_writer *w) {
    if (w->num_documents == w->documents_capacity) {
        w->documents_capacity = w->documents_capacity ? 2 * w->documents_capacity : 4096;
        w->documents =
            mem_realloc(w->documents, mem_array_bytes((size_t)w->documents_capacity, 8), "documents");
    }
    w->documents[w->num_documents++] = w->sequences;
}

int indexed_writer_document(struct indexed_writer *w, const int32_t *tokens, int64_t count, struct err *err) {
    if (indexed_writer_sequence(w, tokens, count, err)) return -1;
    indexed_writer_end_document(w);
    return 0;
}

static int write_idx(struct indexed_writer *w, struct err *err) {
    unsigned char header[INDEXED_HEADER_BYTES] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0, 1};
    int64_t entries = w->num_documents + 1, at = 0;
    header[17] = (unsigned char)w->type;
    memcpy(header + 18, &w->sequences, 8);
    memcpy(header + 26, &entries, 8);
    if (output_write(&w->idx, header, sizeof(header), err)) return -1;
    if (output_write(&w->idx, w->lengths, 4 * (size_t)w->sequences, err)) return -1;
    for (int64_t i = 0; i < w->sequences; i++) {
        if (output_write(&w->idx, &at, 8, err)) return -1;
        at += w->lengths[i] * indexed_type_bytes(w->type);
    }
    at = 0;
    if (output_write(&w->idx, &at, 8, err)) return -1;
    return output_write(&w->idx, w->documents, 8 * (size_t)w->num_documents, err);
}

int indexed_writer_finish(struct indexed_writer *w, struct err *err) {
    if (write_idx(w, err)) return -1;
    if (output_settle(&w->bin, err) || output_settle(&w->idx, err)) return -1;
    unlink(w->idx.path); /* an old index must not be seen beside the new tokens */
    return output_rename(&w->bin, err) || output_rename(&w->idx, err) ? -1 : 0;
}

void indexed_writer_close(struct indexed_writer *w) {
    if (!w) return;
    output_close(&w->bin);
    output_close(&w->idx);
    mem_free(w->lengths);
    mem_free(w->documents);
    mem_free(w);
}
