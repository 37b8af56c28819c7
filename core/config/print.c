/* A config as text: the table of arguments, JSON, --help and docs/flags.md. */
#include "core/config/flag_table.h"
#include "core/base/hash.h"
#include "core/base/json.h"
#include "core/base/mem.h"
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* The shortest text that reads back as the same number, in Python's manner: 0.1, 1e-05, 3.0. */
static void format_float(double x, struct str *out) {
    char text[40];
    for (int digits = 1; digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, x);
        if (strtod(text, NULL) == x) break;
    }
    if (!strpbrk(text, "einf")) {
        double size = x < 0 ? -x : x;
        if (size >= 1e16) snprintf(text, sizeof(text), "%.16e", x);
        else if (!strchr(text, '.')) snprintf(text, sizeof(text), "%.1f", x);
    } else if (x >= 1e4 && x < 1e16) {
        snprintf(text, sizeof(text), "%.1f", x);
    }
    str_puts(out, text);
}

static const char *choice_word(const struct flag_row *row, int value) {
    for (const struct flag_choice *c = row->choices; c->word; c++) {
        if (!c->why_not && c->value == value) return c->word;
    }
    CHECK(false, "%s: no word for %d", row->field, value);
    return "";
}

void flag_format_value(const struct config *cfg, int flag, struct str *out) {
    const struct flag_row *row = &flag_rows[flag];
    const void *field = flag_field(cfg, flag);
    const struct config_texts *texts = field;
    const struct config_ints *ints = field;
    if (!config_flag_is_set(cfg, flag)) {
        str_puts(out, "None");
        return;
    }
    switch (row->kind) {
    case FLAG_INT:
        str_printf(out, "%lld", (long long)*(const int64_t *)field);
        break;
    case FLAG_SIZE:
        str_printf(out, "%lldB", (long long)*(const int64_t *)field);
        break;
    case FLAG_FLOAT:
        format_float(*(const double *)field, out);
        break;
    case FLAG_ON:
    case FLAG_OFF:
        str_puts(out, *(const bool *)field ? "True" : "False");
        break;
    case FLAG_TEXT:
        str_puts(out, *(const char *const *)field);
        break;
    case FLAG_CHOICE:
        str_puts(out, choice_word(row, *(const int *)field));
        break;
    case FLAG_TEXTS:
        for (int64_t i = 0; i < texts->count; i++) str_printf(out, "%s%s", i ? " " : "", texts->items[i]);
        break;
    case FLAG_INTS:
        for (int64_t i = 0; i < ints->count; i++) str_printf(out, "%s%lld", i ? " " : "", (long long)ints->items[i]);
        break;
    }
    if (!out->data) str_puts(out, "");
}
