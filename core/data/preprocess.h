#pragma once
/* Text to indexed datasets: what tools/preprocess_data.py of Megatron-LM does, with threads. Batches of
 * documents are read in order, encoded by whichever thread is free, and written in order; so the output does
 * not depend on the number of threads. The output of key K is PREFIX_K_document.bin and .idx (text files: K
 * is the first of the keys), 16 bits per token below 65500 ids.
 *
 * Policy: CRLF and CR become LF in text files; a byte order mark is dropped; bytes that are not UTF-8 become
 * U+FFFD and are counted; a document without tokens is counted and adds an empty document, as in Megatron-LM.
 * A bad JSON line stops the run, naming file and line, unless skip_bad_lines. On an error nothing is left
 * under the final names.
 *
 *     struct preprocess_options o = {...};
 *     struct preprocess_counts counts;
 *     if (preprocess_run(&o, &counts, err)) ... */
#include "core/base/check.h"
#include "core/data/text_files.h"
#include "core/data/tokenizer.h"
#include <stdbool.h>
#include <stdint.h>

struct preprocess_counts {
    uint64_t documents, tokens; /* of all keys */
    uint64_t empty;             /* documents that became no tokens */
    uint64_t repaired;          /* places that were not UTF-8 */
    uint64_t skipped_lines, skipped_files;
    uint64_t bytes, bytes_total; /* of input */
};

struct preprocess_options {
    struct tokenizer_options tokenizer;
    const char *const *inputs; /* [num_inputs] files, folders, patterns */
    int num_inputs;
    const char *const *json_keys; /* [num_keys]; none: "text" */
    int num_keys;
    const char *output_prefix;
    enum text_format format;
    bool append_eod, skip_bad_lines;
    int workers; /* 0: one per processor */
    /* Called after each written batch, by one thread at a time; may be NULL. */
    void (*progress)(void *context, const struct preprocess_counts *counts);
    void *progress_context;
};

int preprocess_run(const struct preprocess_options *options, struct preprocess_counts *counts,
                   struct err *err);
