#pragma once
/* Files that hold data paths instead of the command line: --data-args-path (the words of --data-path, white
 * space between) and --per-split-data-args-path (JSON: {"train": [...], "valid": [...], "test": [...]}, each
 * a list of words or one text of words; a split left out or null has no data). The words belong to struct
 * path_file.
 *
 *     struct path_file file;
 *     if (path_file_read("blend.txt", &file, err)) return -1;          // file.words
 *     if (path_file_read_splits("blend.json", &file, err)) return -1;  // file.split_words[DATA_SPLITS]
 *     path_file_free(&file); */
#include "core/data/datasets.h"

struct path_file {
    struct data_words words, split_words[DATA_SPLITS];
    char *text;         /* all words, NUL-separated */
    const char **items; /* into text */
};

int path_file_read(const char *path, struct path_file *file, struct err *err);
int path_file_read_splits(const char *path, struct path_file *file, struct err *err);
void path_file_free(struct path_file *file);
