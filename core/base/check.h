#pragma once
/* Errors come in two kinds and no third.
 *
 * A user error (flags, files, data, cluster) is returned: a function that can meet one takes a `struct err *`
 * as its last argument and returns 0, or -1 with a message written once by the first function that knows it.
 * The message is one line and says what, where, what is allowed and what to do. main() prints it and exits
 * with STATUS_USAGE.
 *
 *     if (n < 1) return err_set(err, "--num-layers %d: must be at least 1", n);
 *
 * A broken invariant or a failed library call ends the whole job: CHECK(cond, fmt, ...) prints file, line,
 * expression and message, runs the abort hook (which takes the other ranks down) and exits with
 * STATUS_FAILED. */
#include <stddef.h>

enum exit_status { STATUS_OK = 0, STATUS_FAILED = 1, STATUS_USAGE = 2, STATUS_OUT_OF_MEMORY = 3 };

struct err {
    char text[2048];
};

/* Writes the message and returns -1, so that `return err_set(...)` is one statement. */
int err_set(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Prints one line to stderr with the rank prefix, runs the abort hook and exits with `status`. Does not
 * return. */
_Noreturn void die(int status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The hook ends the other ranks; it is called once, just before the process exits. NULL removes it. */
void die_set_hook(void (*hook)(int status));

_Noreturn void check_failed(const char *file, int line, const char *expression, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

#define CHECK(cond, ...)                                                                                     \
    do {                                                                                                     \
        if (!(cond)) check_failed(__FILE__, __LINE__, #cond, __VA_ARGS__);                                   \
    } while (0)

#define ARRAY_COUNT(a) (sizeof(a) / sizeof((a)[0]))
