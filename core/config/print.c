/* Values as text, the table of arguments, and the hash. */
#include "core/config/flag_table.h"
#include "core/base/hash.h"
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
    if (!strchr(text, 'e')) {
        if (!strchr(text, '.')) snprintf(text, sizeof(text), "%.1f", x);
    } else if (x >= 1e4 && x < 1e16) {
        snprintf(text, sizeof(text), "%.1f",
                 x); /* a whole number, as fewer digits than its size were enough */
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

const char *config_choice_name(const struct config *cfg, enum config_flag flag) {
    CHECK(flag_rows[flag].kind == FLAG_CHOICE, "%s is not a choice", flag_rows[flag].field);
    return choice_word(&flag_rows[flag], *(const int *)flag_field(cfg, flag));
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
        for (int64_t i = 0; i < ints->count; i++)
            str_printf(out, "%s%lld", i ? " " : "", (long long)ints->items[i]);
        break;
    }
    if (!out->data) str_puts(out, "");
}

/* ---- the table of arguments ---- */

void config_format_origin(const struct config *cfg, int flag, struct str *out) {
    static const char *const names[] = {"default", "derived", "checkpoint", "yaml", "command line"};
    str_puts(out, names[cfg->origin[flag]]);
    if (cfg->origin[flag] == CONFIG_DERIVED) str_printf(out, " from %s", cfg->derived_from[flag]);
}

static int compare_lines(const void *a, const void *b) {
    const char *const *x = a, *const *y = b;
    int order = strcasecmp(*x, *y);
    return order ? order : strcmp(*x, *y);
}

/* Lists in Python's manner, so that readers of Megatron-LM's table read this one. */
static void format_shown(const struct config *cfg, int flag, struct str *out) {
    const struct config_texts *texts = flag_field(cfg, flag);
    const struct config_ints *ints = flag_field(cfg, flag);
    bool is_texts = flag_rows[flag].kind == FLAG_TEXTS;
    if (!flag_is_list(&flag_rows[flag]) || !config_flag_is_set(cfg, flag)) {
        flag_format_value(cfg, flag, out);
        return;
    }
    int64_t count = is_texts ? texts->count : ints->count;
    str_puts(out, "[");
    for (int64_t i = 0; i < count; i++) {
        if (is_texts)
            str_printf(out, "%s'%s'", i ? ", " : "", texts->items[i]);
        else
            str_printf(out, "%s%lld", i ? ", " : "", (long long)ints->items[i]);
    }
    str_puts(out, "]");
}

void config_print_resolved(FILE *out, const struct config *cfg) {
    struct str lines[CONFIG_FLAG_COUNT] = {{0}};
    const char *sorted[CONFIG_FLAG_COUNT];
    for (int flag = 0; flag < CONFIG_FLAG_COUNT; flag++) {
        struct str *line = &lines[flag];
        int name_length = (int)strlen(flag_rows[flag].field), dots = name_length < 48 ? 48 - name_length : 1;
        str_printf(line, "  %s ", flag_rows[flag].field);
        while (dots--) str_puts(line, ".");
        str_puts(line, " ");
        format_shown(cfg, flag, line);
        str_puts(line, "  (");
        config_format_origin(cfg, flag, line);
        str_puts(line, ")");
        sorted[flag] = line->data;
    }
    qsort(sorted, CONFIG_FLAG_COUNT, sizeof(*sorted), compare_lines);
    fprintf(out, "------------------------ arguments ------------------------\n");
    for (int i = 0; i < CONFIG_FLAG_COUNT; i++) fprintf(out, "%s\n", sorted[i]);
    fprintf(out, "-------------------- end of arguments ---------------------\n");
    for (int flag = 0; flag < CONFIG_FLAG_COUNT; flag++) str_free(&lines[flag]);
}

void config_print_notes(FILE *out, const struct config *cfg) {
    if (cfg->notes.data) fputs(cfg->notes.data, out);
}

/* ---- hash ---- */

uint64_t config_hash(const struct config *cfg) {
    struct hash hash;
    hash_init(&hash);
    for (int flag = 0; flag < CONFIG_FLAG_COUNT; flag++) {
        struct str value = {0};
        if (!flag_group_of(flag)->shapes_result) continue;
        str_printf(&value, "%s=", flag_rows[flag].field);
        flag_format_value(cfg, flag, &value);
        hash_update(&hash, value.data, value.length + 1);
        str_free(&value);
    }
    return hash_final(&hash);
}
