#include "core/data/text_files.h"
#include "core/base/mem.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BATCH_BYTES = 256 << 10, BATCH_FILES = 64, READ_BYTES = 1 << 20, PROBE_BYTES = 8192, MOST_DEPTH = 64 };

/* ---- finding ---- */

static bool has_suffix(const char *path, const char *suffix) {
    size_t n = strlen(path), m = strlen(suffix);
    return n > m && !strcmp(path + n - m, suffix);
}

static void add_file(struct text_files *f, const char *path, uint64_t bytes, enum text_format format,
                     bool found) {
    if (f->count == f->capacity) {
        f->capacity = f->capacity ? 2 * f->capacity : 256;
        f->files = mem_realloc(f->files, mem_array_bytes(f->capacity, sizeof(*f->files)), "input files");
    }
    bool named =
        has_suffix(path, ".jsonl") || has_suffix(path, ".ndjson") || (!found && has_suffix(path, ".json"));
    f->files[f->count++] = (struct text_file){
        .path = mem_strdup(path, "input file"),
        .bytes = bytes,
        .jsonl = format == TEXT_FORMAT_JSONL || (format == TEXT_FORMAT_AUTO && named),
        .found = found,
    };
    f->bytes += bytes;
}

/* Depth is bounded, links are not followed, so this ends. */
static int add_folder(struct text_files *f, const char *path, enum text_format format, int depth,
                      struct err *err) {
    DIR *dir = opendir(path);
    if (!dir) {
        if (depth) return 0; /* found below a named folder: unreadable, so left out */
        return err_set(err, "--input %s: cannot list: %s", path, strerror(errno));
    }
    struct str name = {0};
    int status = 0;
    for (struct dirent *e; !status && (e = readdir(dir));) {
        struct stat s;
        if (e->d_name[0] == '.') continue;
        str_clear(&name);
        str_printf(&name, "%s/%s", path, e->d_name);
        if (lstat(name.data, &s)) continue;
        if (S_ISDIR(s.st_mode) && depth < MOST_DEPTH)
            status = add_folder(f, name.data, format, depth + 1, err);
        if (S_ISREG(s.st_mode) && !access(name.data, R_OK))
            add_file(f, name.data, (uint64_t)s.st_size, format, true);
    }
    str_free(&name);
    closedir(dir);
    return status;
}

static int by_path(const void *a, const void *b) {
    return strcmp(((const struct text_file *)a)->path, ((const struct text_file *)b)->path);
}

static int add_pattern(struct text_files *f, const char *word, enum text_format format, struct err *err) {
    glob_t found;
    int code = glob(word, 0, NULL, &found);
    if (code)
        return err_set(err, "--input %s: %s", word,
                       code == GLOB_NOMATCH ? "no such file, folder or match of the pattern"
                                            : "cannot expand the pattern");
    size_t before = f->count;
    for (size_t i = 0; i < found.gl_pathc; i++) {
        struct stat s;
        if (!stat(found.gl_pathv[i], &s) && S_ISREG(s.st_mode))
            add_file(f, found.gl_pathv[i], (uint64_t)s.st_size, format, true);
    }
    globfree(&found);
    return f->count > before ? 0 : err_set(err, "--input %s: the pattern matches no file", word);
}

int text_files_find(const char *const *words, int count, enum text_format format, struct text_files *files,
                    struct err *err) {
    struct text_files f = {.descriptor = -1};
    int status = 0;
    for (int i = 0; i < count && !status; i++) {
        struct stat s;
        size_t before = f.count;
        if (stat(words[i], &s))
            status = add_pattern(&f, words[i], format, err);
        else if (S_ISDIR(s.st_mode))
            status = add_folder(&f, words[i], format, 0, err);
        else if (S_ISREG(s.st_mode))
            add_file(&f, words[i], (uint64_t)s.st_size, format, false);
        else
            status = err_set(err, "--input %s: is neither a file nor a folder", words[i]);
        if (!status && f.count > before) qsort(f.files + before, f.count - before, sizeof(*f.files), by_path);
    }
    if (!status && !f.count) status = err_set(err, "--input: no file in the given folders");
    if (status)
        text_files_free(&f);
    else
        *files = f;
    return status;
}

/* ---- reading ---- */

static int read_some(int descriptor, const char *path, struct str *out, size_t most, struct err *err) {
    char piece[16384];
    ssize_t n;
    do n = read(descriptor, piece, most < sizeof(piece) ? most : sizeof(piece));
    while (n < 0 && errno == EINTR);
    if (n < 0) return err_set(err, "%s: cannot read: %s", path, strerror(errno));
    str_append(out, piece, (size_t)n);
    return n > 0;
}

static bool is_compressed(const char *text, size_t length) {
    static const struct {
        const char *bytes;
        size_t length;
    } magic[] = {{"\x1F\x8B", 2}, {"\x28\xB5\x2F\xFD", 4}, {"BZh", 3}, {"\xFD\x37zXZ", 5}};
    for (size_t i = 0; i < ARRAY_COUNT(magic); i++)
        if (length >= magic[i].length && !memcmp(text, magic[i].bytes, magic[i].length)) return true;
    return false;
}

/* 1: text; 0: leave it out; -1: error. */
static int probe(const struct text_file *file, const struct str *text, struct err *err) {
    size_t n = text->length < PROBE_BYTES ? text->length : PROBE_BYTES;
    if (!n) return 1;
    bool packed = is_compressed(text->data, n), binary = packed || memchr(text->data, 0, n);
    if (!binary) return 1;
    if (file->found) return 0;
    return err_set(err, "%s: is %s; %s", file->path, packed ? "compressed" : "not text (it holds NUL bytes)",
                   packed ? "decompress it first" : "give text files");
}

int text_file_read(const struct text_file *file, struct str *text, bool *skip_p, struct err *err) {
    int descriptor = open(file->path, O_RDONLY | O_CLOEXEC), more = 1;
    *skip_p = false;
    str_clear(text);
    if (descriptor < 0) return err_set(err, "%s: cannot open: %s", file->path, strerror(errno));
    while (more > 0) more = read_some(descriptor, file->path, text, READ_BYTES, err);
    close(descriptor);
    if (more < 0) return -1;
    int is_text = probe(file, text, err);
    *skip_p = !is_text;
    return is_text < 0 ? -1 : 0;
}

/* Fills `pending` until it holds BATCH_BYTES and a line end, or the file ends. */
static int fill_pending(struct text_files *f, const struct text_file *file, struct err *err) {
    size_t searched = 0;
    while (!f->at_end) {
        if (f->pending.length >= BATCH_BYTES) {
            if (memchr(f->pending.data + searched, '\n', f->pending.length - searched)) return 0;
            searched = f->pending.length;
        }
        int more = read_some(f->descriptor, file->path, &f->pending, READ_BYTES, err);
        if (more < 0) return -1;
        f->at_end = !more;
    }
    return 0;
}

static int next_lines(struct text_files *f, struct text_batch *batch, struct err *err) {
    const struct text_file *file = &f->files[f->next];
    if (f->descriptor < 0) {
        f->descriptor = open(file->path, O_RDONLY | O_CLOEXEC);
        if (f->descriptor < 0) return err_set(err, "%s: cannot open: %s", file->path, strerror(errno));
        f->line = 1;
        f->at_end = false;
    }
    bool start = f->line == 1;
    if (fill_pending(f, file, err)) return -1;
    int is_text = start ? probe(file, &f->pending, err) : 1;
    if (is_text < 0) return -1;
    if (!is_text) {
        f->skipped++;
        f->at_end = true;
        str_clear(&f->pending);
    }
    char *data = f->pending.data, *last = data && !f->at_end ? memrchr(data, '\n', f->pending.length) : NULL;
    size_t n = last ? (size_t)(last + 1 - data) : f->pending.length;
    *batch = (struct text_batch){.number = batch->number,
                                 .first = f->next,
                                 .jsonl = true,
                                 .first_line = f->line,
                                 .lines = batch->lines};
    str_clear(&batch->lines);
    str_append(&batch->lines, n ? data : "", n);
    for (size_t i = 0; i < n; i++) f->line += data[i] == '\n';
    if (n) {
        memmove(data, data + n, f->pending.length - n);
        f->pending.length -= n;
    }
    if (f->at_end) {
        close(f->descriptor);
        f->descriptor = -1;
        f->next++;
    }
    return 1;
}

int text_files_next(struct text_files *f, struct text_batch *batch, struct err *err) {
    uint64_t bytes = 0;
    if (f->next == f->count) return 0;
    if (f->files[f->next].jsonl) return next_lines(f, batch, err);
    batch->jsonl = false;
    batch->first = f->next;
    batch->count = 0;
    while (f->next < f->count && !f->files[f->next].jsonl && batch->count < BATCH_FILES &&
           bytes < BATCH_BYTES) {
        bytes += f->files[f->next++].bytes;
        batch->count++;
    }
    return 1;
}

void text_batch_free(struct text_batch *batch) {
    str_free(&batch->lines);
}

void text_files_free(struct text_files *f) {
    for (size_t i = 0; i < f->count; i++) mem_free(f->files[i].path);
    if (f->descriptor >= 0) close(f->descriptor);
    mem_free(f->files);
    str_free(&f->pending);
    *f = (struct text_files){.descriptor = -1};
}
