/* preprocess_data: text to the .bin and .idx files that pretrain_gpt reads. See docs/data.md. */
#include "core/base/log.h"
#include "core/data/preprocess_flags.h"
#include <unistd.h>

int main(int argc, char **argv) {
    struct preprocess_flags flags;
    struct preprocess_show show;
    struct preprocess_counts counts;
    struct err err;
    if (preprocess_flags_parse(argc, argv, &flags, &err)) {
        log_error("%s", err.text);
        return STATUS_USAGE;
    }
    if (flags.help) {
        preprocess_flags_help(stdout);
        preprocess_flags_free(&flags);
        return STATUS_OK;
    }
    preprocess_show_begin(&show, stderr, isatty(STDERR_FILENO), flags.log_interval);
    flags.options.progress = preprocess_show_progress;
    flags.options.progress_context = &show;
    int failed = preprocess_run(&flags.options, &counts, &err);
    if (failed) {
        if (show.terminal) fprintf(stderr, "\n");
        log_error("%s", err.text);
    } else {
        preprocess_show_end(&show, &flags, &counts);
    }
    preprocess_flags_free(&flags);
    return failed ? STATUS_USAGE : STATUS_OK;
}
