#pragma once
/* A temporary directory for a test: made under $TMPDIR or /tmp, removed with all that is in it (one level) by
 * temp_dir_remove. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct temp_dir {
    char path[256];
    char file[600]; /* the last path that temp_dir_file made */
};

static inline void temp_dir_make(struct temp_dir *d) {
    extern char **environ;
    const char *base = "/tmp";
    for (char **e = environ; *e; e++)
        if (!strncmp(*e, "TMPDIR=", 7) && (*e)[7]) base = *e + 7;
    snprintf(d->path, sizeof(d->path), "%s/pretrain-test-XXXXXX", base);
    if (!mkdtemp(d->path)) {
        perror(d->path);
        exit(1);
    }
}

static inline const char *temp_dir_file(struct temp_dir *d, const char *name) {
    snprintf(d->file, sizeof(d->file), "%s/%s", d->path, name);
    return d->file;
}

static inline void temp_dir_remove(struct temp_dir *d) {
    DIR *dir = opendir(d->path);
    struct dirent *entry;
    while (dir && (entry = readdir(dir)))
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            unlink(temp_dir_file(d, entry->d_name));
    if (dir) closedir(dir);
    rmdir(d->path);
}
