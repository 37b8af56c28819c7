/* The flag table as data, defaults, and the memory of a config. */
#include "core/config/flag_table.h"
#include "core/base/mem.h"
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#define CHOICES(set)          static const struct flag_choice choices_##set[] = {
#define VALUE(constant, text) {text, constant, NULL},
#define NUMBER(number, text)  {text, number, NULL},
#define REFUSED(text, why)    {text, CONFIG_UNSET_CHOICE, why},
#define END(set)                                                                                             \
    { NULL, 0, NULL }                                                                                        \
    }                                                                                                        \
    ;
/* the sets that no flag uses are not tables but names of derived values */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-variable"
#include "core/config/choices.def"
#pragma GCC diagnostic pop
#undef CHOICES
#undef VALUE
#undef NUMBER
#undef REFUSED
#undef END

/* A group is known by its first row: the enum counts the rows, and steps back after each group. */
enum {
#define GROUP(id, title, from_checkpoint, shapes_result) FIRST_##id, BACK_##id = FIRST_##id - 1,
#define FLAG(kind, field, names, def, limits, help)      ROW_##field,
#define SAME(kind, field, names, def, limits, help)      ROW_##field,
#include "core/config/flags.def"
#undef GROUP
#undef FLAG
#undef SAME
};

const struct flag_group flag_groups[] = {
#define GROUP(id, title, from_checkpoint, shapes_result) {title, from_checkpoint, shapes_result, FIRST_##id},
#define FLAG(kind, field, names, def, limits, help)
#define SAME(kind, field, names, def, limits, help)
#include "core/config/flags.def"
#undef GROUP
#undef FLAG
#undef SAME
};
const int flag_group_count = ARRAY_COUNT(flag_groups);

#define LIMITS_INT(x)    .limits = (x)
#define LIMITS_SIZE(x)   .limits = (x)
#define LIMITS_FLOAT(x)  .limits = (x)
#define LIMITS_ON(x)     .limits = (x)
#define LIMITS_OFF(x)    .limits = (x)
#define LIMITS_TEXT(x)   .limits = (x)
#define LIMITS_TEXTS(x)  .limits = (x)
#define LIMITS_INTS(x)   .limits = (x)
#define LIMITS_CHOICE(x) .limits = "", .choices = choices_##x

#define ROW(kind_, field_, names_, default_, limits_, help_, same_)                                          \
    {.kind = FLAG_##kind_,                                                                                   \
     .field = #field_,                                                                                       \
     .names = names_ "\0",                                                                                   \
     .default_text = (default_),                                                                             \
     LIMITS_##kind_(limits_),                                                                                \
     .help = (help_),                                                                                        \
     .offset = offsetof(struct config, field_),                                                              \
     .same = (same_)},

const struct flag_row flag_rows[CONFIG_FLAG_COUNT] = {
#define GROUP(id, title, from_checkpoint, shapes_result)
#define FLAG(kind, field, names, def, limits, help) ROW(kind, field, names, def, limits, help, false)
#define SAME(kind, field, names, def, limits, help) ROW(kind, field, names, def, limits, help, true)
#include "core/config/flags.def"
#undef GROUP
#undef FLAG
#undef SAME
};

/* ---- memory ---- */

struct config_block {
    struct config_block *next;
};

void *config_keep(struct config *cfg, size_t bytes) {
    struct config_block *block = mem_zalloc(sizeof(*block) + 64 + bytes, "config value");
    block->next = cfg->blocks;
    cfg->blocks = block;
    return (char *)block + 64;
}

const char *config_keep_text(struct config *cfg, const char *text, size_t length) {
    char *copy = config_keep(cfg, length + 1);
    if (length) memcpy(copy, text, length);
    return copy;
}

void config_free(struct config *cfg) {
    struct config_block *next;
    for (struct config_block *block = cfg->blocks; block; block = next) {
        next = block->next;
        mem_free(block);
    }
    cfg->blocks = NULL;
    str_free(&cfg->notes);
}

/* ---- rows ---- */

void *flag_field(const struct config *cfg, int flag) {
    return (char *)(uintptr_t)cfg + flag_rows[flag].offset;
}

bool flag_has_name(const struct flag_row *row, const char *name) {
    for (const char *n = row->names; *n; n += strlen(n) + 1) {
        if (!strcmp(n, name)) return true;
    }
    return false;
}

const char *config_flag_name(enum config_flag flag) {
    return flag_rows[flag].names;
}

bool flag_takes_value(const struct flag_row *row) {
    return row->kind != FLAG_ON && row->kind != FLAG_OFF;
}

bool flag_is_list(const struct flag_row *row) {
    return row->kind == FLAG_TEXTS || row->kind == FLAG_INTS;
}

const struct flag_group *flag_group_of(int flag) {
    int g = flag_group_count - 1;
    while (flag_groups[g].first > flag) g--;
    return &flag_groups[g];
}

bool config_flag_is_set(const struct config *cfg, enum config_flag flag) {
    const void *field = flag_field(cfg, flag);
    switch (flag_rows[flag].kind) {
    case FLAG_INT:
    case FLAG_SIZE:
        return *(const int64_t *)field != CONFIG_UNSET_INT;
    case FLAG_FLOAT:
        return !isnan(*(const double *)field);
    case FLAG_ON:
    case FLAG_OFF:
        return true;
    case FLAG_TEXT:
        return *(const char *const *)field != NULL;
    case FLAG_CHOICE:
        return *(const int *)field != CONFIG_UNSET_CHOICE;
    case FLAG_TEXTS:
        return ((const struct config_texts *)field)->count >= 0;
    case FLAG_INTS:
        return ((const struct config_ints *)field)->count >= 0;
    }
    return false;
}

bool config_flag_is_given(const struct config *cfg, enum config_flag flag) {
    return cfg->origin[flag] >= CONFIG_CHECKPOINT;
}

void config_init(struct config *cfg) {
    *cfg = (struct config){0};
    struct err err;
    for (int flag = 0; flag < CONFIG_FLAG_COUNT; flag++) {
        const char *text = flag_rows[flag].default_text;
        bool empty = !strcmp(text, "[]");
        CHECK(!flag_set_words(cfg, flag, &text, empty ? 0 : 1, flag_rows[flag].field, &err), "%s", err.text);
    }
}

void config_note(struct config *cfg, const char *fmt, ...) {
    va_list args;
    char line[1024];
    va_start(args, fmt);
    vsnprintf(line, sizeof(line), fmt, args);
    va_end(args);
    str_puts(&cfg->notes, line);
    str_puts(&cfg->notes, "\n");
}

void config_derive(struct config *cfg, enum config_flag flag, const char *from) {
    cfg->origin[flag] = CONFIG_DERIVED;
    cfg->derived_from[flag] = from;
}
