#include "core/base/log.h"
#include <stdarg.h>
#include <stdio.h>

static struct {
    enum log_level level;
    int rank, world_size;
} logger = {LOG_INFO, 0, 1};

void log_set_level(enum log_level level) {
    logger.level = level;
}

void log_set_rank(int rank, int world_size) {
    logger.rank = rank;
    logger.world_size = world_size;
}

void log_line(enum log_level level, const char *fmt, ...) {
    static const char *const prefix[] = {"error: ", "warning: ", "", "debug: "};
    char text[4096];
    va_list args;
    if (level > logger.level || (level > LOG_WARN && logger.rank != 0)) return;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    if (level <= LOG_WARN) fflush(stdout); /* so that an error is the last line where both go to one file */
    if (logger.world_size > 1)
        fprintf(stderr, "[rank %d] %s%s\n", logger.rank, prefix[level], text);
    else
        fprintf(stderr, "%s%s\n", prefix[level], text);
}
