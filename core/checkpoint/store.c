#include "core/checkpoint/store.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define SAVING       ".saving-"
#define REMOVING     ".removing-"
#define REPLACED     ".replaced-"
#define TRACKER_TEMP "." CHECKPOINT_TRACKER ".new"

enum { NO_TRACKER = -2 };

/* A path joined from up to three pieces: dir "/" prefix name. */
static char *join(struct str *s, const char *dir, const char *prefix, const char *name) {
    str_clear(s);
    str_printf(s, "%s/%s%s", dir, prefix, name);
    return s->data;
}

/* ---- files ---- */

static int write_all(int fd, const char *path, const char *data, size_t length, struct err *err) {
    for (size_t done = 0; done < length;) {
        ssize_t n = write(fd, data + done, length - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0)
            return err_set(err, "%s: cannot write: %s", path, n ? strerror(errno) : "nothing written");
        done += (size_t)n;
    }
    if (fsync(fd)) return err_set(err, "%s: cannot sync: %s", path, strerror(errno));
    return 0;
}

int checkpoint_write_file(const char *dir, const char *name, const char *data, size_t length,
                          struct err *err) {
    struct str path = {0};
    int status, fd = open(join(&path, dir, "", name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0) {
        status = err_set(err, "%s: cannot create: %s", path.data, strerror(errno));
    } else {
        status = write_all(fd, path.data, data, length, err);
        if (close(fd) && !status) status = err_set(err, "%s: cannot close: %s", path.data, strerror(errno));
    }
    str_free(&path);
    return status;
}

int checkpoint_read_file(const char *dir, const char *name, struct str *out, struct err *err) {
    struct str path = {0};
    int status = 0, fd = open(join(&path, dir, "", name), O_RDONLY | O_CLOEXEC);
    if (fd < 0) status = err_set(err, "%s: cannot open: %s", path.data, strerror(errno));
    while (!status) {
        char block[1 << 14];
        ssize_t n = read(fd, block, sizeof(block));
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) status = err_set(err, "%s: cannot read: %s", path.data, strerror(errno));
        if (n <= 0) break;
        str_append(out, block, (size_t)n);
    }
    if (fd >= 0) close(fd);
    str_free(&path);
    return status;
}

static int sync_dir(const char *path, struct err *err) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return err_set(err, "%s: cannot open: %s", path, strerror(errno));
    int status = 0; /* some network file systems cannot sync a directory and say EINVAL */
    if (fsync(fd) && errno != EINVAL) status = err_set(err, "%s: cannot sync: %s", path, strerror(errno));
    close(fd);
    return status;
}

int checkpoint_make_dirs(const char *path, struct err *err) {
    struct str part = {0}, parent = {0};
    struct stat st;
    int status = 0;
    for (size_t i = 1; !status && i <= strlen(path); i++) {
        if (path[i] && path[i] != '/') continue;
        str_clear(&part);
        str_append(&part, path, i);
        if (stat(part.data, &st) == 0) continue;
        if (mkdir(part.data, 0755) && errno != EEXIST) {
            status = err_set(err, "%s: cannot make the directory: %s", part.data, strerror(errno));
        } else {
            const char *slash = strrchr(part.data, '/');
            str_clear(&parent);
            str_append(&parent, slash ? part.data : ".",
                       slash && slash > part.data ? (size_t)(slash - part.data) : 1);
            status = sync_dir(parent.data, err);
        }
    }
    if (!status && (stat(path, &st) || !S_ISDIR(st.st_mode)))
        status = err_set(err, "%s: not a directory", path);
    str_free(&part);
    str_free(&parent);
    return status;
}

/* Removes a checkpoint directory: its files, then itself; the manifest first, so that a half-removed one can
 * never be taken for a complete one. Missing is fine. Returns 0 or -1 with errno. */
static int remove_dir(const char *path) {
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return errno == ENOENT ? 0 : -1;
    unlinkat(fd, CHECKPOINT_MANIFEST, 0);
    DIR *d = fdopendir(fd);
    if (!d) {
        close(fd);
        return -1;
    }
    for (struct dirent *e; (e = readdir(d));)
        if (strcmp(e->d_name, ".") && strcmp(e->d_name, "..")) unlinkat(fd, e->d_name, 0);
    closedir(d);
    return rmdir(path);
}

/* ---- names and the tracker ---- */

void checkpoint_place_name(int64_t iteration, char name[48]) {
    if (iteration == CHECKPOINT_RELEASE)
        snprintf(name, 48, "release");
    else
        snprintf(name, 48, "iter_%07lld", (long long)iteration);
}

/* Digits only, at most 12 of them. */
static int parse_iteration(const char *text, int64_t *iteration_p) {
    size_t n = strspn(text, "0123456789");
    if (!n || n > 12 || text[n]) return -1;
    *iteration_p = strtoll(text, NULL, 10);
    return 0;
}

/* "iter_0000020" or "release"; anything else, other spellings of the same number too, is no checkpoint. */
static int parse_name(const char *name, int64_t *iteration_p) {
    char again[48];
    if (!strcmp(name, "release")) {
        *iteration_p = CHECKPOINT_RELEASE;
        return 0;
    }
    if (strncmp(name, "iter_", 5) || parse_iteration(name + 5, iteration_p)) return -1;
    checkpoint_place_name(*iteration_p, again);
    return strcmp(again, name) ? -1 : 0;
}

/* *text gets what the file says; returns the iteration, CHECKPOINT_RELEASE or NO_TRACKER. */
static int64_t read_tracker(const char *dir, struct str *text) {
    struct err ignored;
    int64_t iteration;
    if (checkpoint_read_file(dir, CHECKPOINT_TRACKER, text, &ignored)) return NO_TRACKER;
    while (text->length && strchr(" \t\r\n", text->data[text->length - 1])) text->data[--text->length] = 0;
    if (!text->length) return NO_TRACKER;
    if (!strcmp(text->data, "release")) return CHECKPOINT_RELEASE;
    return parse_iteration(text->data, &iteration) ? NO_TRACKER : iteration;
}

int64_t checkpoint_tracker_read(const char *dir) {
    struct str text = {0};
    int64_t iteration = read_tracker(dir, &text);
    str_free(&text);
    return iteration;
}

static int write_tracker(const char *dir, int64_t iteration, struct err *err) {
    char text[32];
    struct str from = {0}, to = {0};
    int n = iteration == CHECKPOINT_RELEASE ? snprintf(text, sizeof(text), "release")
                                            : snprintf(text, sizeof(text), "%lld", (long long)iteration);
    int status = checkpoint_write_file(dir, TRACKER_TEMP, text, (size_t)n, err);
    join(&from, dir, "", TRACKER_TEMP);
    join(&to, dir, "", CHECKPOINT_TRACKER);
    if (!status && rename(from.data, to.data))
        status = err_set(err, "%s: cannot replace: %s", to.data, strerror(errno));
    if (status) unlink(from.data);
    str_free(&from);
    str_free(&to);
    return status ? status : sync_dir(dir, err);
}

/* ---- listing ---- */

static void list_add(struct checkpoint_list *list, int64_t iteration, bool replaced) {
    char name[48];
    if (list->count == list->capacity) {
        list->capacity = list->capacity ? list->capacity * 2 : 16;
        list->places =
            mem_realloc(list->places, (size_t)list->capacity * sizeof(*list->places), "checkpoints");
    }
    struct checkpoint_place *p = &list->places[list->count++];
    p->iteration = iteration;
    checkpoint_place_name(iteration, name);
    snprintf(p->name, sizeof(p->name), "%s%.32s", replaced ? REPLACED : "", name);
}

/* Newest first; of the same iteration the complete one (whose name starts with 'i') before the replaced. */
static int compare_places(const void *a, const void *b) {
    const struct checkpoint_place *x = a, *y = b;
    if (x->iteration != y->iteration) return x->iteration > y->iteration ? -1 : 1;
    return strcmp(y->name, x->name);
}

static void put_tracked_first(const char *dir, struct checkpoint_list *list) {
    struct str text = {0};
    int64_t tracked = read_tracker(dir, &text);
    int at = 0;
    while (at < list->count && (tracked == NO_TRACKER || list->places[at].iteration != tracked)) at++;
    if (!list->count) {
        /* nothing to choose from */
    } else if (at < list->count) {
        struct checkpoint_place tracked_place = list->places[at];
        memmove(list->places + 1, list->places, (size_t)at * sizeof(tracked_place));
        list->places[0] = tracked_place;
    } else if (tracked != NO_TRACKER) {
        snprintf(list->tracker_fault, sizeof(list->tracker_fault), "%s names '%.40s', which is not there",
                 CHECKPOINT_TRACKER, text.data);
    } else if (text.length) {
        snprintf(list->tracker_fault, sizeof(list->tracker_fault), "%s says '%.40s', which is no iteration",
                 CHECKPOINT_TRACKER, text.data);
    } else {
        snprintf(list->tracker_fault, sizeof(list->tracker_fault), "%s is missing or empty",
                 CHECKPOINT_TRACKER);
    }
    str_free(&text);
}

int checkpoint_list_open(const char *dir, struct checkpoint_list *list_p, struct err *err) {
    *list_p = (struct checkpoint_list){0};
    DIR *d = opendir(dir);
    if (!d) return errno == ENOENT ? 0 : err_set(err, "%s: cannot open: %s", dir, strerror(errno));
    for (struct dirent *e; (e = readdir(d));) {
        int64_t iteration;
        size_t prefix = sizeof(REPLACED) - 1;
        bool replaced = !strncmp(e->d_name, REPLACED, prefix);
        if (!parse_name(replaced ? e->d_name + prefix : e->d_name, &iteration))
            list_add(list_p, iteration, replaced);
    }
    closedir(d);
    if (list_p->count) qsort(list_p->places, (size_t)list_p->count, sizeof(*list_p->places), compare_places);
    put_tracked_first(dir, list_p);
    return 0;
}

void checkpoint_list_free(struct checkpoint_list *list) {
    mem_free(list->places);
    *list = (struct checkpoint_list){0};
}

/* ---- saving ---- */

/* Puts one leftover right. */
static void mend(const char *dir, const char *name) {
    struct str path = {0}, original = {0};
    struct stat st;
    join(&path, dir, "", name);
    if (!strncmp(name, REPLACED, sizeof(REPLACED) - 1)) {
        join(&original, dir, "", name + sizeof(REPLACED) - 1);
        if (stat(original.data, &st))
            rename(path.data, original.data); /* the new one never came */
        else
            remove_dir(path.data);
    } else if (!strncmp(name, SAVING, sizeof(SAVING) - 1) || !strncmp(name, REMOVING, sizeof(REMOVING) - 1)) {
        remove_dir(path.data);
    } else if (!strcmp(name, TRACKER_TEMP)) {
        unlink(path.data);
    }
    str_free(&path);
    str_free(&original);
}

int checkpoint_store_prepare(const char *dir, struct err *err) {
    if (checkpoint_make_dirs(dir, err)) return -1;
    DIR *d = opendir(dir);
    if (!d) return err_set(err, "%s: cannot open: %s", dir, strerror(errno));
    for (struct dirent *e; (e = readdir(d));) mend(dir, e->d_name);
    closedir(d);
    return 0;
}

int checkpoint_store_need_space(const char *dir, uint64_t bytes, struct err *err) {
    struct statvfs fs;
    char need[32], have[32];
    if (statvfs(dir, &fs)) return err_set(err, "%s: cannot ask for free space: %s", dir, strerror(errno));
    uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (room >= bytes) return 0;
    return err_set(
        err,
        "%s: a checkpoint needs %s, the file system has %s free: nothing was written; make room, or "
        "keep fewer with --save-retain-interval",
        dir, str_format_bytes(need, sizeof(need), (double)bytes),
        str_format_bytes(have, sizeof(have), (double)room));
}

void checkpoint_store_path(const char *dir, int64_t iteration, struct str *path) {
    char name[48];
    checkpoint_place_name(iteration, name);
    join(path, dir, SAVING, name);
}

int checkpoint_store_begin(const char *dir, int64_t iteration, struct err *err) {
    struct str path = {0};
    int status = 0;
    checkpoint_store_path(dir, iteration, &path);
    remove_dir(path.data);
    if (mkdir(path.data, 0755))
        status = err_set(err, "%s: cannot make the directory: %s", path.data, strerror(errno));
    str_free(&path);
    return status;
}

void checkpoint_store_abort(const char *dir, int64_t iteration) {
    struct str path = {0};
    checkpoint_store_path(dir, iteration, &path);
    remove_dir(path.data);
    str_free(&path);
}

/* A checkpoint of this iteration is there already: the names are swapped in one step, or, where the file
 * system cannot, in two with the old one still findable in between. Its old content is removed last. */
static int replace_dir(const char *dir, const char *name, const char *from, const char *to, struct err *err) {
    struct str aside = {0};
    int status = 0;
    if (renameat2(AT_FDCWD, from, AT_FDCWD, to, RENAME_EXCHANGE) == 0) {
        status = sync_dir(dir, err);
        if (!status) remove_dir(from);
        return status;
    }
    join(&aside, dir, REPLACED, name);
    if (rename(to, aside.data) || rename(from, to)) {
        status = err_set(err, "%s: cannot replace: %s", to, strerror(errno));
        rename(aside.data, to); /* put the old one back, if it was moved */
    }
    if (!status) status = sync_dir(dir, err);
    if (!status) remove_dir(aside.data);
    str_free(&aside);
    return status;
}

int checkpoint_store_commit(const char *dir, int64_t iteration, struct err *err) {
    char name[48];
    struct str from = {0}, to = {0};
    struct stat st;
    checkpoint_place_name(iteration, name);
    join(&from, dir, SAVING, name);
    join(&to, dir, "", name);
    int status = sync_dir(from.data, err);
    if (!status && stat(to.data, &st) == 0) {
        status = replace_dir(dir, name, from.data, to.data, err);
    } else if (!status) {
        if (rename(from.data, to.data))
            status = err_set(err, "%s: cannot rename to %s: %s", from.data, name, strerror(errno));
        else
            status = sync_dir(dir, err);
    }
    if (!status) status = write_tracker(dir, iteration, err);
    str_free(&from);
    str_free(&to);
    return status;
}

int checkpoint_store_remove(const char *dir, int64_t iteration, struct err *err) {
    char name[48];
    struct str from = {0}, to = {0};
    int status = 0;
    checkpoint_place_name(iteration, name);
    join(&from, dir, "", name);
    join(&to, dir, REMOVING, name);
    if (rename(from.data, to.data)) {
        if (errno != ENOENT) status = err_set(err, "%s: cannot remove: %s", from.data, strerror(errno));
    } else if (remove_dir(to.data)) {
        status = err_set(err, "%s: cannot remove: %s", to.data, strerror(errno));
    }
    str_free(&from);
    str_free(&to);
    return status;
}
