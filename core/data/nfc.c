/* Normalisation form C: decompose canonically, sort combining marks by class, compose (Unicode Standard Annex
 * 15). Hangul is arithmetic (section 3.12 of the Unicode standard). */
#include "core/base/check.h"
#include "core/base/mem.h"
#include "core/base/utf8.h"
#include "core/data/nfc_table.h"
#include "core/data/utf8.h"

enum {
    S_BASE = 0xAC00,
    L_BASE = 0x1100,
    V_BASE = 0x1161,
    T_BASE = 0x11A7,
    L_COUNT = 19,
    V_COUNT = 21,
    T_COUNT = 28,
    S_COUNT = L_COUNT * V_COUNT * T_COUNT
};

#define ROWS(table, width) (sizeof(table) / sizeof((table)[0]) / (width))

/* Row whose range [first, last] holds c, or NULL. `width` is the number of columns. */
static const uint32_t *find_range(const uint32_t *table, size_t rows, size_t width, uint32_t c) {
    size_t low = 0, high = rows;
    while (low < high) {
        size_t middle = (low + high) / 2;
        const uint32_t *row = table + middle * width;
        if (c < row[0])
            high = middle;
        else if (c > row[1])
            low = middle + 1;
        else
            return row;
    }
    return NULL;
}

static uint32_t combining_class(uint32_t c) {
    const uint32_t *row = c < 0x300 ? NULL : find_range(nfc_classes, ROWS(nfc_classes, 3), 3, c);
    return row ? row[2] : 0;
}

bool utf8_is_nfc(const char *text, size_t length) {
    const char *p = text, *end = text + length;
    while (p < end) {
        uint32_t c = utf8_next(&p);
        if (c >= 0x300 && find_range(nfc_unsure, ROWS(nfc_unsure, 2), 2, c)) return false;
    }
    return true;
}

static const uint32_t *find_parts(uint32_t c) {
    size_t low = 0, high = ROWS(nfc_parts, 4);
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (nfc_parts[4 * middle] < c)
            low = middle + 1;
        else
            high = middle;
    }
    return low < ROWS(nfc_parts, 4) && nfc_parts[4 * low] == c ? nfc_parts + 4 * low : NULL;
}

struct points {
    uint32_t *data;
    size_t count, capacity;
};

static void push(struct points *out, uint32_t c) {
    if (out->count == out->capacity) {
        out->capacity = out->capacity ? 2 * out->capacity : 256;
        out->data = mem_realloc(out->data, mem_array_bytes(out->capacity, 4), "code points");
    }
    out->data[out->count++] = c;
}

/* Full canonical decomposition; a first part is decomposed again, a second part never needs it. */
static void push_decomposed(struct points *out, uint32_t c) {
    uint32_t tail[8];
    int tails = 0;
    if (c >= S_BASE && c < S_BASE + S_COUNT) {
        uint32_t s = c - S_BASE;
        push(out, L_BASE + s / (V_COUNT * T_COUNT));
        push(out, V_BASE + s % (V_COUNT * T_COUNT) / T_COUNT);
        if (s % T_COUNT) push(out, T_BASE + s % T_COUNT);
        return;
    }
    for (const uint32_t *row; tails < 8 && (row = find_parts(c)); c = row[1])
        if (row[2]) tail[tails++] = row[2];
    push(out, c);
    while (tails) push(out, tail[--tails]);
}

/* Stable insertion sort of each run of marks; a run of 30 is already unusual text, so long runs are cut into
 * a counting sort by class. */
static void sort_run(uint32_t *run, size_t count) {
    if (count <= 32) {
        for (size_t i = 1; i < count; i++) {
            uint32_t c = run[i], class = combining_class(c);
            size_t j = i;
            for (; j && combining_class(run[j - 1]) > class; j--) run[j] = run[j - 1];
            run[j] = c;
        }
        return;
    }
    size_t start[257] = {0};
    uint32_t *sorted = mem_alloc(mem_array_bytes(count, 4), "code points");
    for (size_t i = 0; i < count; i++) start[combining_class(run[i]) + 1]++;
    for (int k = 0; k < 256; k++) start[k + 1] += start[k];
    for (size_t i = 0; i < count; i++) sorted[start[combining_class(run[i])]++] = run[i];
    for (size_t i = 0; i < count; i++) run[i] = sorted[i];
    mem_free(sorted);
}

static void sort_marks(struct points *v) {
    for (size_t i = 0; i < v->count;) {
        size_t end = i;
        while (end < v->count && combining_class(v->data[end])) end++;
        if (end - i > 1) sort_run(v->data + i, end - i);
        i = end + 1;
    }
}

/* The composition of a and b, or 0. The table is walked whole: it is small, and only text that is not in form
 * C comes here. */
static uint32_t compose(uint32_t a, uint32_t b) {
    if (a >= L_BASE && a < L_BASE + L_COUNT && b >= V_BASE && b < V_BASE + V_COUNT)
        return S_BASE + ((a - L_BASE) * V_COUNT + (b - V_BASE)) * T_COUNT;
    if (a >= S_BASE && a < S_BASE + S_COUNT && (a - S_BASE) % T_COUNT == 0 && b > T_BASE &&
        b < T_BASE + T_COUNT)
        return a + (b - T_BASE);
    if (!find_range(nfc_unsure, ROWS(nfc_unsure, 2), 2, b)) return 0;
    for (const uint32_t *row = nfc_parts, *end = row + ARRAY_COUNT(nfc_parts); row < end; row += 4)
        if (row[1] == a && row[2] == b && row[3]) return row[0];
    return 0;
}

static void compose_all(struct points *v) {
    size_t starter = SIZE_MAX, out = 0;
    uint32_t last_class = 0;
    for (size_t i = 0; i < v->count; i++) {
        uint32_t c = v->data[i], class = combining_class(c), joined = 0;
        /* a mark reaches its starter unless one of the same or a higher class stands between */
        bool reaches = starter != SIZE_MAX && (out == starter + 1 || (last_class && last_class < class));
        if (reaches) joined = compose(v->data[starter], c);
        if (joined) {
            v->data[starter] = joined;
            continue;
        }
        if (!class) starter = out;
        last_class = class;
        v->data[out++] = c;
    }
    v->count = out;
}

void utf8_to_nfc(const char *text, size_t length, struct str *out) {
    if (utf8_is_nfc(text, length)) {
        str_append(out, text, length);
        return;
    }
    struct points v = {0};
    char bytes[4];
    for (const char *p = text, *end = text + length; p < end;) push_decomposed(&v, utf8_next(&p));
    sort_marks(&v);
    compose_all(&v);
    for (size_t i = 0; i < v.count; i++) str_append(out, bytes, (size_t)(utf8_put(bytes, v.data[i]) - bytes));
    mem_free(v.data);
}
