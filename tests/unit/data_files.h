#pragma once
/* Whole files for the tests of core/data, in a temporary folder that the first case makes and the last
 * removes. */
#include "core/base/mem.h"
#include "tests/temp_dir.h"

static inline void files_make_folder(char *folder, size_t capacity) {
    struct temp_dir d;
    temp_dir_make(&d);
    snprintf(folder, capacity, "%s", d.path);
}

static inline void files_remove_folder(const char *folder) {
    struct temp_dir d;
    snprintf(d.path, sizeof(d.path), "%s", folder);
    temp_dir_remove(&d);
}

static inline void files_write(const char *path, const void *data, size_t bytes) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(data, 1, bytes, f) != bytes || fclose(f)) {
        perror(path);
        exit(1);
    }
}

/* The whole file plus a NUL; mem_free it. */
static inline void *files_read(const char *path, size_t *bytes_p) {
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
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
