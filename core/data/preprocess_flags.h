#pragma once
/* The command line of preprocess_data: Megatron-LM's flags of tools/preprocess_data.py where it has them. The
 * words stay argv's; preprocess_flags_free releases the lists.
 *
 *     struct preprocess_flags flags;
 *     if (preprocess_flags_parse(argc, argv, &flags, err)) ...exit 2
 *     if (flags.help) preprocess_flags_help(stdout); */
#include "core/data/preprocess.h"
#include <stdio.h>

struct preprocess_flags {
    struct preprocess_options options;
    const char **inputs, **keys; /* the lists in options */
    int64_t log_interval;
    bool help;
};

int preprocess_flags_parse(int argc, char **argv, struct preprocess_flags *flags, struct err *err);
void preprocess_flags_free(struct preprocess_flags *flags);
void preprocess_flags_help(FILE *out);

/* Progress on a stream: a bar on a terminal, otherwise a line every log_interval documents. */
struct preprocess_show {
    FILE *out;
    bool terminal;
    int64_t log_interval;
    double started, shown; /* seconds */
    uint64_t next_line;    /* documents at which the next line is due */
};
void preprocess_show_begin(struct preprocess_show *show, FILE *out, bool terminal, int64_t log_interval);
/* Has the type of preprocess_options.progress; context is a struct preprocess_show. */
void preprocess_show_progress(void *context, const struct preprocess_counts *counts);
/* The closing lines: counts, speed, and the flags to train with. */
void preprocess_show_end(const struct preprocess_show *show, const struct preprocess_flags *flags,
                         const struct preprocess_counts *counts);
