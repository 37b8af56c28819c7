#include "core/base/json.h"
#include "core/base/utf8.h"
#include <math.h>
#include <string.h>

static bool is_plain(unsigned char c) {
    return c >= 0x20 && c < 0x80 && c != '"' && c != '\\';
}

/* A comma is due unless the text stands at a beginning: of all, of a line, of an object or array, or after a
 * name. */
static void put_comma(struct str *out) {
    char last = out->length ? out->data[out->length - 1] : '\n';
    if (last != '\n' && last != '{' && last != '[' && last != ':') str_append(out, ",", 1);
}

void json_begin_object(struct str *out) {
    put_comma(out);
    str_append(out, "{", 1);
}

void json_end_object(struct str *out) {
    str_append(out, "}", 1);
}

void json_begin_array(struct str *out) {
    put_comma(out);
    str_append(out, "[", 1);
}

void json_end_array(struct str *out) {
    str_append(out, "]", 1);
}

void json_key(struct str *out, const char *key) {
    json_string(out, key);
    str_append(out, ":", 1);
}

void json_string(struct str *out, const char *value) {
    if (value)
        json_string_bytes(out, value, strlen(value));
    else
        json_null(out);
}

void json_string_bytes(struct str *out, const char *value, size_t length) {
    static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
    const char *p = value, *end = value + length;
    put_comma(out);
    str_append(out, "\"", 1);
    while (p < end) {
        const char *run = p, *hit;
        while (run < end && is_plain((unsigned char)*run)) run++;
        str_append(out, p, (size_t)(run - p));
        p = run;
        if (p >= end) break;
        size_t n = utf8_length(p, end);
        if (n > 1) {
            str_append(out, p, n);
        } else if (n == 0) {
            n = 1;
            str_append(out, "\xEF\xBF\xBD", 3); /* no UTF-8: the replacement character */
        } else if (*p && (hit = strchr(from, *p))) {
            char escape[2] = {'\\', to[hit - from]};
            str_append(out, escape, 2);
        } else {
            str_printf(out, "\\u%04x", (unsigned)*p);
        }
        p += n;
    }
    str_append(out, "\"", 1);
}

void json_integer(struct str *out, int64_t value) {
    put_comma(out);
    str_printf(out, "%lld", (long long)value);
}

void json_unsigned(struct str *out, uint64_t value) {
    put_comma(out);
    str_printf(out, "%llu", (unsigned long long)value);
}

void json_float(struct str *out, double value) {
    put_comma(out);
    if (isfinite(value))
        str_printf(out, "%.9g", value);
    else
        str_puts(out, "null");
}

void json_double(struct str *out, double value) {
    put_comma(out);
    if (isfinite(value))
        str_printf(out, "%.17g", value);
    else
        str_puts(out, "null");
}

void json_bool(struct str *out, bool value) {
    put_comma(out);
    str_puts(out, value ? "true" : "false");
}

void json_null(struct str *out) {
    put_comma(out);
    str_puts(out, "null");
}
