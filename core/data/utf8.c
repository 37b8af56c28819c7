#include "core/data/utf8.h"
#include "core/base/utf8.h"
#include <string.h>

size_t utf8_check(const char *text, size_t length) {
    const char *p = text, *end = text + length;
    while (p < end) {
        uint64_t eight;
        if (end - p >= 8) { /* eight ASCII bytes at a time */
            memcpy(&eight, p, 8);
            if (!(eight & 0x8080808080808080u)) {
                p += 8;
                continue;
            }
        }
        size_t n = utf8_length(p, end);
        if (!n) break;
        p += n;
    }
    return (size_t)(p - text);
}

/* Length of the longest prefix of a well-formed sequence at p, at least 1: what one U+FFFD stands for. */
static size_t subpart_length(const char *p, const char *end) {
    static const unsigned char fill[2] = {0x80, 0xBF};
    char probe[4];
    size_t left = (size_t)(end - p);
    for (size_t n = left < 3 ? left : 3; n > 1; n--) {
        /* a prefix of n bytes is good when some continuation completes it */
        for (size_t total = n + 1; total <= 4; total++) {
            memcpy(probe, p, n);
            for (int f = 0; f < 2; f++) {
                memset(probe + n, fill[f], total - n);
                if (utf8_length(probe, probe + total) == total) return n;
            }
        }
    }
    return 1;
}

size_t utf8_repair(const char *text, size_t length, struct str *out) {
    const char *p = text, *end = text + length;
    size_t repairs = 0;
    for (;;) {
        size_t good = utf8_check(p, (size_t)(end - p));
        str_append(out, p, good);
        p += good;
        if (p == end) return repairs;
        str_append(out, "\xEF\xBF\xBD", 3);
        repairs++;
        p += subpart_length(p, end);
    }
}

uint32_t utf8_next(const char **text) {
    const unsigned char *p = (const unsigned char *)*text;
    uint32_t c = p[0];
    int more = c < 0x80 ? 0 : c < 0xE0 ? 1 : c < 0xF0 ? 2 : 3;
    if (more) c &= 0x3Fu >> more;
    for (int i = 1; i <= more; i++) c = c << 6 | (p[i] & 0x3Fu);
    *text += 1 + more;
    return c;
}

bool utf8_is_space(uint32_t c) {
    return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
           c == 0x3000;
}
