#pragma once
/* A growing byte string, and the few string functions that the standard library lacks. The buffer is owned by
 * the struct and always NUL-terminated once something was appended. Zero-initialise, str_free at the end. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

struct str {
    char *data; /* NULL while empty */
    size_t length, capacity;
};

void str_append(struct str *s, const char *bytes, size_t length);
void str_puts(struct str *s, const char *text);
void str_printf(struct str *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void str_clear(struct str *s); /* keeps the buffer */
void str_free(struct str *s);
/* Writes the text and a line feed; -1 with a message that names the path. */
struct err;
int str_write_file(const struct str *s, const char *path, struct err *err);

/* Number of single-character edits (insert, delete, replace, swap of neighbours) between a and b, at most
 * `limit`+1. */
int str_edit_distance(const char *a, const char *b, int limit);
/* "1.5GiB", "512MiB", "2KiB", "100" (bytes). Returns 0, or -1 when the text is no size. */
int str_parse_bytes(const char *text, uint64_t *bytes_p);
/* Writes e.g. "1.50 GiB" and returns buffer. */
const char *str_format_bytes(char *buffer, size_t capacity, double bytes);
