#pragma once
/* Temporary files for the tests of core/data. The folder is made by the test's first case and removed by its
 * last. */
#include "core/base/mem.h"
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static inline void files_make_folder(char *folder, size_t capacity) {
    snprintf(folder, capacity, "/tmp/pretrain-data-XXXXXX");
    if (!mkdtemp(folder)) exit(1);
}

static inline void files_remove_folder(const char *folder) {
    DIR *dir = opendir(folder);
    for (struct dirent *e; dir && (e = readdir(dir));) {
        char path[1024];
        snprintf(path, sizeof(path), "%s/%s", folder, e->d_name);
        if (e->d_name[0] != '.') unlink(path);
    }
    if (dir) closedir(dir);
    rmdir(folder);
}

static inline void files_write(const char *path, const void *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes, f) != bytes || fclose(f)) exit(1);
}

/* The whole file plus a NUL; mem_free it. */
static inline void *files_read(const char *path, size_t *bytes_p) {
    FILE *f = fopen(path, "rb");
    if (!f) {
        printf("# cannot read %s\n", path);
        exit(1);
    }
    fseek(f, 0, SEEK_END);
    size_t n = (size_t)ftell(f);
    rewind(f);
    char *data = (char *)mem_zalloc(n + 1, "test file");
    if (fread(data, 1, n, f) != n) exit(1);
    fclose(f);
    if (bytes_p) *bytes_p = n;
    return data;
}
