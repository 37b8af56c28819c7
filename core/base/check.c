#include "core/base/check.h"
#include "core/base/log.h"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static void (*die_hook)(int status);

int err_set(struct err *err, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    if (err) vsnprintf(err->text, sizeof(err->text), fmt, args);
    va_end(args);
    return -1;
}

void die_set_hook(void (*hook)(int status)) {
    die_hook = hook;
}

static _Noreturn void leave(int status) {
    void (*hook)(int) = die_hook;
    die_hook = NULL; /* a hook that fails must not call itself */
    fflush(stdout);
    if (hook) hook(status);
    exit(status);
}

_Noreturn void die(int status, const char *fmt, ...) {
    char text[2048];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    fflush(stdout);
    log_line(LOG_ERROR, "%s", text);
    leave(status);
}

_Noreturn void check_failed(const char *file, int line, const char *expression, const char *fmt, ...) {
    char text[2048];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    fflush(stdout);
    log_line(LOG_ERROR, "%s:%d: check failed: %s: %s", file, line, expression, text);
    leave(STATUS_FAILED);
}
