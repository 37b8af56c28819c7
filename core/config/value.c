/* One value from words, and back to words. */
#include "core/config/flag_table.h"
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* "[1,inf)": bounds of a number; a round bracket leaves the bound itself out. Empty: no bounds. */
struct interval {
    double low, high;
    bool low_open, high_open, any;
};

static struct interval interval_parse(const char *text) {
    struct interval range = {-INFINITY, INFINITY, true, true, true};
    const char *at = strpbrk(text, "[(");
    if (!at) return range;
    char *end;
    range.any = false;
    range.low_open = *at == '(';
    range.low = strtod(at + 1, &end);
    CHECK(*end == ',', "flags.def: bad interval '%s'", text);
    range.high = strtod(end + 1, &end);
    CHECK(*end == ']' || *end == ')', "flags.def: bad interval '%s'", text);
    range.high_open = *end == ')';
    return range;
}

static bool interval_has(const struct interval *range, double x) {
    if (range->any) return true;
    return (range->low_open ? x > range->low : x >= range->low) &&
           (range->high_open ? x < range->high : x <= range->high);
}

/* "of at least 1", "from 0 (included) to 1 (excluded)" */
static void interval_describe(const struct interval *range, struct str *out) {
    if (range->any) return;
    if (isinf(range->high)) {
        str_printf(out, range->low_open ? " greater than %.17g" : " of at least %.17g", range->low);
    } else if (range->low == range->high) {
        str_printf(out, ": only %.17g", range->low);
    } else {
        str_printf(out, " from %.17g%s to %.17g%s", range->low, range->low_open ? " (excluded)" : "",
                   range->high, range->high_open ? " (excluded)" : "");
    }
}

/* How many words a list takes: 0 for "*" (any number), -1 for "+" (one or more), else the exact count. */
static int64_t list_length(const struct flag_row *row) {
    if (row->limits[0] == '*') return 0;
    if (row->limits[0] == '+') return -1;
    return strtol(row->limits, NULL, 10);
}

void flag_describe_values(const struct flag_row *row, struct str *out) {
    struct interval range = row->limits ? interval_parse(row->limits) : (struct interval){.any = true};
    int64_t length;
    switch (row->kind) {
    case FLAG_INT:
        str_puts(out, "a whole number");
        interval_describe(&range, out);
        break;
    case FLAG_FLOAT:
        str_puts(out, "a number");
        interval_describe(&range, out);
        break;
    case FLAG_SIZE:
        str_puts(out, "a size with its unit, as 1.5GiB or 800MiB");
        break;
    case FLAG_ON:
    case FLAG_OFF:
        str_puts(out, "true or false");
        break;
    case FLAG_TEXT:
        str_puts(out, "a word");
        break;
    case FLAG_CHOICE:
        for (const struct flag_choice *c = row->choices; c->word; c++) {
            if (c->why_not) continue;
            bool last = true;
            for (const struct flag_choice *d = c + 1; d->word; d++) last = last && d->why_not;
            str_printf(out, "%s%s", c == row->choices ? "" : last ? " or " : ", ", c->word);
        }
        break;
    case FLAG_TEXTS:
    case FLAG_INTS:
        length = list_length(row);
        if (length > 0)
            str_printf(out, "%d ", (int)length);
        else
            str_puts(out, length ? "one or more " : "zero or more ");
        str_puts(out, row->kind == FLAG_TEXTS ? "words" : "whole numbers");
        if (row->kind == FLAG_INTS) interval_describe(&range, out);
        break;
    }
}

static int bad_value(const struct flag_row *row, const char *word, const char *shown, struct err *err) {
    struct str allowed = {0};
    flag_describe_values(row, &allowed);
    err_set(err, "%s %s: takes %s", shown, *word ? word : "''", allowed.data);
    str_free(&allowed);
    return -1;
}

/* Whole numbers are written with digits only; 1e6 and 1_000 are not, as in Python's int(). */
static int parse_int(const struct flag_row *row, const char *word, const char *shown, int64_t *value_p,
                     struct err *err) {
    struct interval range = interval_parse(row->limits);
    char *end;
    errno = 0;
    long long value = strtoll(word, &end, 10);
    if (end == word || *end || errno || isspace((unsigned char)*word) || value == CONFIG_UNSET_INT ||
        !interval_has(&range, (double)value)) {
        return bad_value(row, word, shown, err);
    }
    *value_p = value;
    return 0;
}

static int parse_float(const struct flag_row *row, const char *word, const char *shown, double *value_p,
                       struct err *err) {
    struct interval range = interval_parse(row->limits);
    char *end;
    double value = strtod(word, &end);
    if (end == word || *end || isspace((unsigned char)*word) || !isfinite(value) || strpbrk(word, "xXpP") ||
        !interval_has(&range, value)) {
        return bad_value(row, word, shown, err);
    }
    *value_p = value;
    return 0;
}

static int parse_choice(const struct flag_row *row, const char *word, const char *shown, int *value_p,
                        struct err *err) {
    for (const struct flag_choice *c = row->choices; c->word; c++) {
        if (strcmp(c->word, word)) continue;
        if (c->why_not) return err_set(err, "%s %s: %s", shown, word, c->why_not);
        *value_p = c->value;
        return 0;
    }
    return bad_value(row, word, shown, err);
}

static int parse_size(const struct flag_row *row, const char *word, const char *shown, int64_t *value_p,
                      struct err *err) {
    uint64_t bytes;
    size_t length = strlen(word);
    if (!length || isdigit((unsigned char)word[length - 1]) || str_parse_bytes(word, &bytes) || !bytes ||
        bytes > INT64_MAX) {
        return bad_value(row, word, shown, err);
    }
    *value_p = (int64_t)bytes;
    return 0;
}

static int parse_switch(const struct flag_row *row, const char *word, const char *shown, bool *value_p,
                        struct err *err) {
    static const char *const yes[] = {"true", "True", "yes", "on"}, *const no[] = {"false", "False", "no",
                                                                                   "off"};
    for (size_t i = 0; i < ARRAY_COUNT(yes); i++) {
        if (!strcmp(word, yes[i])) return *value_p = true, 0;
        if (!strcmp(word, no[i])) return *value_p = false, 0;
    }
    return bad_value(row, word, shown, err);
}

/* Whole numbers may also be separated by commas: "4,2" is "4 2". */
static const char *const *split_commas(struct config *cfg, const char *const *words, int64_t *count_p) {
    int64_t count = 0, most = 0;
    for (int64_t i = 0; i < *count_p; i++) most += (int64_t)strlen(words[i]) + 1;
    const char **pieces = config_keep(cfg, (size_t)most * sizeof(*pieces));
    for (int64_t i = 0; i < *count_p; i++) {
        const char *at = words[i];
        do {
            size_t length = strcspn(at, ",");
            pieces[count++] = config_keep_text(cfg, at, length);
            at += length;
        } while (*at++ && *at);
    }
    *count_p = count;
    return pieces;
}

static int parse_list(struct config *cfg, int flag, const char *const *words, int64_t count,
                      const char *shown, struct err *err) {
    const struct flag_row *row = &flag_rows[flag];
    int64_t length = list_length(row);
    if (row->kind == FLAG_INTS) words = split_commas(cfg, words, &count);
    if ((length > 0 && count != length) || (length < 0 && count < 1)) {
        struct str allowed = {0};
        flag_describe_values(row, &allowed);
        err_set(err, "%s: takes %s, %lld given", shown, allowed.data, (long long)count);
        str_free(&allowed);
        return -1;
    }
    if (row->kind == FLAG_TEXTS) {
        const char **items = config_keep(cfg, (size_t)count * sizeof(*items));
        for (int64_t i = 0; i < count; i++) items[i] = config_keep_text(cfg, words[i], strlen(words[i]));
        *(struct config_texts *)flag_field(cfg, flag) = (struct config_texts){count, items};
    } else {
        int64_t *items = config_keep(cfg, (size_t)count * sizeof(*items));
        for (int64_t i = 0; i < count; i++) {
            if (parse_int(row, words[i], shown, &items[i], err)) return -1;
        }
        *(struct config_ints *)flag_field(cfg, flag) = (struct config_ints){count, items};
    }
    return 0;
}

/* Only a flag whose default is None can be unset: no reader of another one expects it. */
static int set_unset(struct config *cfg, int flag, const char *shown, struct err *err) {
    void *field = flag_field(cfg, flag);
    if (strcmp(flag_rows[flag].default_text, "None")) return bad_value(&flag_rows[flag], "None", shown, err);
    switch (flag_rows[flag].kind) {
    case FLAG_INT:
    case FLAG_SIZE:
        *(int64_t *)field = CONFIG_UNSET_INT;
        return 0;
    case FLAG_FLOAT:
        *(double *)field = NAN;
        return 0;
    case FLAG_TEXT:
        *(const char **)field = NULL;
        return 0;
    case FLAG_CHOICE:
        *(int *)field = CONFIG_UNSET_CHOICE;
        return 0;
    case FLAG_TEXTS:
        *(struct config_texts *)field = (struct config_texts){-1, NULL};
        return 0;
    case FLAG_INTS:
        *(struct config_ints *)field = (struct config_ints){-1, NULL};
        return 0;
    case FLAG_ON:
    case FLAG_OFF:
        break;
    }
    return bad_value(&flag_rows[flag], "None", shown, err);
}

int flag_set_words(struct config *cfg, int flag, const char *const *words, int64_t count, const char *shown,
                   struct err *err) {
    const struct flag_row *row = &flag_rows[flag];
    void *field = flag_field(cfg, flag);
    if (count == 1 && !strcmp(words[0], "None")) return set_unset(cfg, flag, shown, err);
    if (flag_is_list(row)) {
        if (!count && cfg->origin[flag] == CONFIG_DEFAULT) { /* the default [] */
            if (row->kind == FLAG_TEXTS)
                *(struct config_texts *)field = (struct config_texts){0, NULL};
            else
                *(struct config_ints *)field = (struct config_ints){0, NULL};
            return 0;
        }
        return parse_list(cfg, flag, words, count, shown, err);
    }
    CHECK(count == 1, "%s: one word expected", shown);
    switch (row->kind) {
    case FLAG_INT:
        return parse_int(row, words[0], shown, field, err);
    case FLAG_SIZE:
        return parse_size(row, words[0], shown, field, err);
    case FLAG_FLOAT:
        return parse_float(row, words[0], shown, field, err);
    case FLAG_CHOICE:
        return parse_choice(row, words[0], shown, field, err);
    case FLAG_ON:
    case FLAG_OFF:
        return parse_switch(row, words[0], shown, field, err);
    default:
        *(const char **)field = config_keep_text(cfg, words[0], strlen(words[0]));
        return 0;
    }
}
