#include "core/base/str.h"
#include "core/base/check.h"
#include "core/base/mem.h"
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void reserve(struct str *s, size_t extra) {
    size_t need = s->length + extra + 1;
    if (need <= s->capacity) return;
    size_t capacity = s->capacity ? s->capacity * 2 : 64;
    if (capacity < need) capacity = need;
    s->data = mem_realloc(s->data, capacity, "string");
    s->capacity = capacity;
}

void str_append(struct str *s, const char *bytes, size_t length) {
    reserve(s, length);
    if (length) memcpy(s->data + s->length, bytes, length);
    s->length += length;
    s->data[s->length] = 0;
}

void str_puts(struct str *s, const char *text) {
    str_append(s, text, strlen(text));
}

void str_printf(struct str *s, const char *fmt, ...) {
    va_list args, again;
    va_start(args, fmt);
    va_copy(again, args);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n > 0) {
        reserve(s, (size_t)n);
        vsnprintf(s->data + s->length, (size_t)n + 1, fmt, again);
        s->length += (size_t)n;
    }
    va_end(again);
}

void str_clear(struct str *s) {
    s->length = 0;
    if (s->data) s->data[0] = 0;
}

void str_free(struct str *s) {
    mem_free(s->data);
    *s = (struct str){0};
}

int str_edit_distance(const char *a, const char *b, int limit) {
    enum { LONGEST = 96 };
    int rows[3][LONGEST + 1], n = (int)strlen(a), m = (int)strlen(b);
    if (n > LONGEST || m > LONGEST || abs(n - m) > limit) return limit + 1;
    int *before = rows[0], *last = rows[1], *now = rows[2];
    for (int j = 0; j <= m; j++) last[j] = j;
    for (int i = 1; i <= n; i++) {
        now[0] = i;
        for (int j = 1; j <= m; j++) {
            int best = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < best) best = last[j] + 1;
            if (now[j - 1] + 1 < best) best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = best;
        }
        int *free_row = before;
        before = last, last = now, now = free_row;
    }
    return last[m] < limit + 1 ? last[m] : limit + 1;
}

static const struct {
    const char *suffix;
    double bytes;
} size_units[] = {{"TiB", 0x1p40}, {"GiB", 0x1p30}, {"MiB", 0x1p20}, {"KiB", 0x1p10}, {"B", 1}, {"", 1}};

int str_parse_bytes(const char *text, uint64_t *bytes_p) {
    char *end;
    double value = strtod(text, &end);
    if (end == text || !(value >= 0)) return -1;
    for (size_t i = 0; i < sizeof(size_units) / sizeof(size_units[0]); i++) {
        if (strcmp(end, size_units[i].suffix)) continue;
        double bytes = value * size_units[i].bytes;
        if (bytes >= 0x1p63) return -1;
        *bytes_p = (uint64_t)llround(bytes);
        return 0;
    }
    return -1;
}

const char *str_format_bytes(char *buffer, size_t capacity, double bytes) {
    for (size_t i = 0; i < 4; i++)
        if (fabs(bytes) >= size_units[i].bytes) {
            snprintf(buffer, capacity, "%.2f %s", bytes / size_units[i].bytes, size_units[i].suffix);
            return buffer;
        }
    snprintf(buffer, capacity, "%.0f B", bytes);
    return buffer;
}

int str_write_file(const struct str *s, const char *path, struct err *err) {
    FILE *f = fopen(path, "w");
    bool failed = !f || fwrite(s->data, 1, s->length, f) != s->length || fputc('\n', f) == EOF;
    if ((f && fclose(f)) || failed)
        return err_set(err, "%s: cannot be written; check the folder and the space on the disk", path);
    return 0;
}
