#include "core/data/indexed.h"
#include "core/base/mem.h"
#include "core/base/str.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const unsigned char magic[9] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0};

int64_t indexed_type_bytes(int code) {
    static const int64_t bytes[INDEXED_TYPES] = {0, 1, 1, 2, 4, 8, 8, 4, 2};
    return code > 0 && code < INDEXED_TYPES ? bytes[code] : 0;
}

static int64_t load_i64(const unsigned char *p) {
    int64_t v;
    memcpy(&v, p, 8);
    return v;
}

/* ---- checking the .idx ---- */

static int check_header(struct indexed *d, const char *name, struct err *err) {
    if (d->idx_bytes < INDEXED_HEADER_BYTES)
        return err_set(err,
                       "%s: %zu bytes are too few for an index (its header takes %d); the file is truncated",
                       name, d->idx_bytes, INDEXED_HEADER_BYTES);
    if (memcmp(d->idx, magic, sizeof(magic)))
        return err_set(err,
                       "%s: byte 0: not an index of Megatron-LM (no 'MMIDIDX' there); make the data with "
                       "preprocess_data",
                       name);
    int64_t version = load_i64(d->idx + 9);
    if (version != 1)
        return err_set(err, "%s: byte 9: version %lld; only version 1 is known", name, (long long)version);
    d->type = d->idx[17];
    d->element_bytes = indexed_type_bytes(d->idx[17]);
    if (!d->element_bytes)
        return err_set(err, "%s: byte 17: element type %d is unknown; 1 to 8 are allowed", name, d->idx[17]);
    int64_t sequences = load_i64(d->idx + 18), entries = load_i64(d->idx + 26);
    /* also keeps the sums below from overflowing */
    if (sequences < 0 || (uint64_t)sequences > d->idx_bytes / 12)
        return err_set(err,
                       "%s: byte 18: %lld sequences do not fit into a file of %zu bytes; it is truncated or "
                       "corrupt",
                       name, (long long)sequences, d->idx_bytes);
    if (entries < 1 || (uint64_t)entries > d->idx_bytes / 8)
        return err_set(err,
                       "%s: byte 26: %lld document entries do not fit into a file of %zu bytes; it is "
                       "truncated or corrupt",
                       name, (long long)entries, d->idx_bytes);
    size_t need = INDEXED_HEADER_BYTES + 12 * (size_t)sequences + 8 * (size_t)entries;
    if (d->idx_bytes != need && d->idx_bytes != need + (size_t)sequences)
        return err_set(err,
                       "%s: %zu bytes, but %lld sequences and %lld document entries take %zu; the file is %s",
                       name, d->idx_bytes, (long long)sequences, (long long)entries, need,
                       d->idx_bytes < need ? "truncated" : "corrupt");
    d->sequences = sequences;
    d->documents = entries - 1;
    return 0;
}

static int check_sequences(struct indexed *d, const char *name, struct err *err) {
    int64_t at = 0, S = d->sequences;
    for (int64_t i = 0; i < S; i++) {
        int32_t length = indexed_length(d, i);
        int64_t offset = indexed_offset(d, i), bytes = length * d->element_bytes;
        if (length < 0)
            return err_set(err, "%s: byte %lld: sequence %lld has length %d; the file is corrupt", name,
                           (long long)(INDEXED_HEADER_BYTES + 4 * i), (long long)i, length);
        if (offset != at)
            return err_set(err,
                           "%s: byte %lld: sequence %lld starts at byte %lld of the .bin, but the sequences "
                           "before it end at %lld; the file is corrupt",
                           name, (long long)(INDEXED_HEADER_BYTES + 4 * S + 8 * i), (long long)i,
                           (long long)offset, (long long)at);
        if (bytes > d->bin_bytes - at)
            return err_set(err,
                           "%s: byte %lld: sequence %lld ends at byte %lld of the .bin, which has only %lld; "
                           "the .bin is truncated, or belongs to another .idx",
                           name, (long long)(INDEXED_HEADER_BYTES + 4 * i), (long long)i,
                           (long long)(at + bytes), (long long)d->bin_bytes);
        at += bytes;
        d->tokens += length;
    }
    return 0;
}

static int check_documents(const struct indexed *d, const char *name, struct err *err) {
    int64_t before = 0, base = INDEXED_HEADER_BYTES + 12 * d->sequences;
    for (int64_t i = 0; i <= d->documents; i++) {
        int64_t first = indexed_document(d, i);
        if (first < before || first > d->sequences || (i == 0 && first))
            return err_set(err,
                           "%s: byte %lld: document %lld starts at sequence %lld, allowed are %lld to %lld; "
                           "the file is corrupt",
                           name, (long long)(base + 8 * i), (long long)i, (long long)first, (long long)before,
                           i ? (long long)d->sequences : 0);
        before = first;
    }
    if (before != d->sequences)
        return err_set(err, "%s: byte %lld: the documents end at sequence %lld of %lld; the file is corrupt",
                       name, (long long)(base + 8 * d->documents), (long long)before,
                       (long long)d->sequences);
    return 0;
}

static int check_idx(struct indexed *d, const char *name, struct err *err) {
    if (check_header(d, name, err)) return -1;
    if (check_sequences(d, name, err)) return -1;
    return check_documents(d, name, err);
}

/* ---- files ---- */

/* Maps a file whole, read-only. An empty file gives NULL and size 0. */
static int map_file(const char *path, int file, size_t bytes, const unsigned char **data_p, struct err *err) {
    *data_p = NULL;
    if (!bytes) return 0;
    void *p = mmap(NULL, bytes, PROT_READ, MAP_SHARED, file, 0);
    if (p == MAP_FAILED) return err_set(err, "%s: cannot map %zu bytes: %s", path, bytes, strerror(errno));
    *data_p = p;
    return 0;
}

/* The usual slips: the suffix given too, or preprocess_data's --output-prefix instead of what it wrote. */
static int report_missing(const char *prefix, const char *path, struct err *err) {
    const char *why = strerror(errno);
    size_t n = strlen(prefix);
    bool suffixed = n > 4 && (!strcmp(prefix + n - 4, ".bin") || !strcmp(prefix + n - 4, ".idx"));
    struct str likely = {0};
    str_printf(&likely, "%s_text_document.idx", prefix);
    if (suffixed)
        err_set(err, "%s: %s; a data path is the name without .bin and .idx: leave the suffix out", path,
                why);
    else if (!access(likely.data, R_OK))
        err_set(err, "%s: %s; did you mean %s_text_document?", path, why, prefix);
    else
        err_set(err, "%s: %s; a data path is the name without .bin and .idx, such as corpus_text_document",
                path, why);
    str_free(&likely);
    return -1;
}

static int open_file(const char *prefix, const char *path, struct stat *status, struct err *err) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return report_missing(prefix, path, err);
    if (fstat(file, status) || !S_ISREG(status->st_mode)) {
        close(file);
        return err_set(err, "%s: is not a regular file", path);
    }
    return file;
}

static int open_idx(struct indexed *d, const char *path, struct err *err) {
    struct stat status;
    int file = open_file(d->prefix, path, &status, err);
    if (file < 0) return -1;
    d->idx_bytes = (size_t)status.st_size;
    int failed = map_file(path, file, d->idx_bytes, &d->idx, err);
    close(file);
    d->owns_idx = true;
    return failed;
}

static int open_bin(struct indexed *d, const char *path, bool map, struct err *err) {
    struct stat status;
    int file = open_file(d->prefix, path, &status, err);
    if (file < 0) return -1;
    d->bin_bytes = status.st_size;
    d->bin_device = status.st_dev;
    d->bin_inode = status.st_ino;
    if (!map) {
        d->bin_file = file;
        return 0;
    }
    int failed = map_file(path, file, (size_t)status.st_size, &d->bin, err);
    close(file);
    if (!failed && d->bin) madvise((void *)(uintptr_t)d->bin, (size_t)d->bin_bytes, MADV_RANDOM);
    return failed;
}

int indexed_open(const char *prefix, bool map, struct indexed **data_p, struct err *err) {
    struct indexed *d = mem_zalloc(sizeof(*d), "indexed dataset");
    struct str idx = {0}, bin = {0};
    d->bin_file = -1;
    d->prefix = mem_strdup(prefix, "indexed dataset prefix");
    str_printf(&idx, "%s.idx", prefix);
    str_printf(&bin, "%s.bin", prefix);
    int failed = open_idx(d, idx.data, err) || open_bin(d, bin.data, map, err) || check_idx(d, idx.data, err);
    str_free(&idx);
    str_free(&bin);
    if (failed) {
        indexed_close(d);
        return -1;
    }
    *data_p = d;
    return 0;
}

int indexed_open_image(const void *idx, size_t idx_bytes, int64_t bin_bytes, const char *name,
                       struct indexed **data_p, struct err *err) {
    struct indexed *d = mem_zalloc(sizeof(*d), "indexed dataset");
    d->bin_file = -1;
    d->prefix = mem_strdup(name, "indexed dataset prefix");
    d->idx = idx;
    d->idx_bytes = idx_bytes;
    d->bin_bytes = bin_bytes;
    if (check_idx(d, name, err)) {
        indexed_close(d);
        return -1;
    }
    *data_p = d;
    return 0;
}

void indexed_close(struct indexed *d) {
    if (!d) return;
    if (d->owns_idx && d->idx) munmap((void *)(uintptr_t)d->idx, d->idx_bytes);
    if (d->bin) munmap((void *)(uintptr_t)d->bin, (size_t)d->bin_bytes);
    if (d->bin_file >= 0) close(d->bin_file);
    mem_free(d->prefix);
    mem_free(d);
}

int64_t indexed_find_document(const struct indexed *d, int64_t sequence) {
    int64_t low = 0, high = d->documents; /* document(low) <= sequence < document(high) */
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (indexed_document(d, middle) <= sequence)
            low = middle;
        else
            high = middle;
    }
    return low;
}

int indexed_check(const struct indexed *d, struct err *err) {
    struct stat status;
    char path[4096];
    if (!d->bin) return 0; /* pread reports a short file by itself */
    int n = snprintf(path, sizeof(path), "%s.bin", d->prefix);
    if (n < 0 || (size_t)n >= sizeof(path) || stat(path, &status))
        return 0; /* the mapping outlives the name */
    bool same = status.st_dev == d->bin_device && status.st_ino == d->bin_inode;
    if (same && status.st_size < d->bin_bytes)
        return err_set(err,
                       "%s: was truncated from %lld to %lld bytes while in use; restore the file and resume",
                       path, (long long)d->bin_bytes, (long long)status.st_size);
    return 0;
}

/* ---- tokens ---- */

static int32_t integer_id(double value) {
    return value >= 0 && value <= INT32_MAX && value == floor(value) ? (int32_t)value : -1;
}

static void widen(const unsigned char *from, enum indexed_type type, int64_t count, int32_t *to) {
    for (int64_t i = 0; i < count; i++) {
        uint16_t u16;
        int16_t i16;
        int64_t i64;
        float f32;
        double f64;
        switch (type) {
        case INDEXED_U8:
            to[i] = from[i];
            break;
        case INDEXED_I8:
            to[i] = (signed char)from[i];
            break;
        case INDEXED_I16:
            memcpy(&i16, from + 2 * i, 2);
            to[i] = i16;
            break;
        case INDEXED_U16:
            memcpy(&u16, from + 2 * i, 2);
            to[i] = u16;
            break;
        case INDEXED_I32:
            memcpy(&to[i], from + 4 * i, 4);
            break;
        case INDEXED_F32:
            memcpy(&f32, from + 4 * i, 4);
            to[i] = integer_id((double)f32);
            break;
        case INDEXED_F64:
            memcpy(&f64, from + 8 * i, 8);
            to[i] = integer_id(f64);
            break;
        default:
            memcpy(&i64, from + 8 * i, 8);
            to[i] = i64 < 0 || i64 > INT32_MAX ? -1 : (int32_t)i64;
        }
    }
}

static int read_file(const struct indexed *d, int64_t at, unsigned char *to, int64_t bytes, struct err *err) {
    while (bytes > 0) {
        ssize_t n = pread(d->bin_file, to, (size_t)bytes, at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return err_set(err, "%s.bin: byte %lld: %s", d->prefix, (long long)at,
                           n ? strerror(errno) : "the file ends here; it was truncated while in use");
        at += n, to += n, bytes -= n;
    }
    return 0;
}

int indexed_read(const struct indexed *d, int64_t sequence, int64_t first, int64_t count, int32_t *tokens,
                 struct err *err) {
    CHECK(sequence >= 0 && sequence < d->sequences && first >= 0 && count >= 0 &&
              first + count <= indexed_length(d, sequence),
          "%s: tokens %lld to %lld of sequence %lld do not exist", d->prefix, (long long)first,
          (long long)(first + count), (long long)sequence);
    int64_t at = indexed_offset(d, sequence) + first * d->element_bytes;
    if (!count) return 0;
    if (d->bin) {
        widen(d->bin + at, d->type, count, tokens);
        return 0;
    }
    CHECK(d->bin_file >= 0, "%s: an index image has no tokens", d->prefix);
    unsigned char piece[8192];
    while (count > 0) {
        int64_t n = (int64_t)sizeof(piece) / d->element_bytes;
        if (n > count) n = count;
        if (read_file(d, at, piece, n * d->element_bytes, err)) return -1;
        widen(piece, d->type, n, tokens);
        at += n * d->element_bytes, tokens += n, count -= n;
    }
    return 0;
}
