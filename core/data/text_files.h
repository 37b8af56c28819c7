#pragma once
/* Input of preprocess_data: from --input words to a sorted list of files, and from files to batches of raw
 * documents. A word is a file, a folder (all files below it, hidden ones and links left out) or a pattern
 * with
 * * ? [ ]. Files that a folder or pattern brought and that are not text (a NUL byte or a compressed file) are
 * left out and counted; a file named outright must be readable text. By its name a file is JSON lines when it
 * ends in .jsonl or .ndjson, or in .json and was named outright.
 *
 *     text_files_find(words, count, TEXT_FORMAT_AUTO, &files, err);
 *     while ((n = text_files_next(&files, &batch, err)) > 0) ...
 *     text_batch_free(&batch), text_files_free(&files); */
#include "core/base/check.h"
#include "core/base/str.h"
#include <stdbool.h>
#include <stdint.h>

enum text_format { TEXT_FORMAT_AUTO, TEXT_FORMAT_JSONL, TEXT_FORMAT_TEXT };

struct text_file {
    char *path;
    uint64_t bytes;
    bool jsonl;
    bool found; /* by a folder or a pattern */
};

struct text_files {
    struct text_file *files; /* [count], in the order of the words, each word's files sorted */
    size_t count, capacity;
    uint64_t bytes;     /* of all files */
    uint64_t skipped;   /* not text */
    size_t next;        /* first file not handed out whole */
    int descriptor;     /* of the JSON lines file being read, -1: none */
    uint64_t line;      /* of the next line in it, from 1 */
    struct str pending; /* bytes read and not handed out */
    bool at_end;
};

/* Either `count` whole files from `first` on, one document each, or the lines in `lines`. */
struct text_batch {
    uint64_t number; /* 0, 1, 2 ... */
    size_t first, count;
    bool jsonl;
    uint64_t first_line;
    struct str lines;
};

int text_files_find(const char *const *words, int count, enum text_format format, struct text_files *files,
                    struct err *err);
/* 1: a batch; 0: no more; -1: error. */
int text_files_next(struct text_files *files, struct text_batch *batch, struct err *err);
/* Reads a whole file for a document. *skip_p is set instead when it was found and is not text. */
int text_file_read(const struct text_file *file, struct str *text, bool *skip_p, struct err *err);
void text_batch_free(struct text_batch *batch);
void text_files_free(struct text_files *files);
