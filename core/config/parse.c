/* The command line: words to flags, and the messages for words that are none. */
#include "core/config/flag_table.h"
#include <ctype.h>
#include <string.h>

/* ---- flags of Megatron-LM that are not in flags.def ---- */

#define MISSING(id, name)
#define GONE(name, text)
#define MAPPED(name, field, text)
#define REASON(id, text) static const char reason_##id[] = text;
#include "core/config/megatron_flags.def"
#undef REASON
#undef MISSING
#undef GONE
#undef MAPPED

static const struct missing_flag {
    const char *name, *text;
    enum { NOT_BUILT, GONE_FLAG, MAPPED_FLAG } kind;
    int maps_to; /* flag, for MAPPED_FLAG */
} missing_flags[] = {
#define REASON(id, text)
#define MISSING(id, name)         {name, reason_##id, NOT_BUILT, -1},
#define GONE(name, text)          {name, text, GONE_FLAG, -1},
#define MAPPED(name, field, text) {name, text, MAPPED_FLAG, CONFIG_FLAG_##field},
#include "core/config/megatron_flags.def"
#undef REASON
#undef MISSING
#undef GONE
#undef MAPPED
};

static const struct missing_flag *missing_find(const char *name) {
    for (size_t i = 0; i < ARRAY_COUNT(missing_flags); i++) {
        if (!strcmp(missing_flags[i].name, name)) return &missing_flags[i];
    }
    return NULL;
}

static int flag_find(const char *name) {
    for (int flag = 0; flag < CONFIG_FLAG_COUNT; flag++) {
        if (flag_has_name(&flag_rows[flag], name)) return flag;
    }
    return -1;
}

/* The nearest spelling among this program's flags and Megatron-LM's, or NULL when nothing is near. */
static const char *flag_nearest(const char *name) {
    int best = 1 + (int)strlen(name) / 5;
    const char *nearest = NULL;
    if (best > 4) best = 4;
    best++;
    for (int flag = 0; flag < CONFIG_FLAG_COUNT; flag++) {
        for (const char *n = flag_rows[flag].names; *n; n += strlen(n) + 1) {
            int distance = str_edit_distance(name, n, best);
            if (distance < best) best = distance, nearest = n;
        }
    }
    for (size_t i = 0; i < ARRAY_COUNT(missing_flags); i++) {
        int distance = str_edit_distance(name, missing_flags[i].name, best);
        if (distance < best) best = distance, nearest = missing_flags[i].name;
    }
    return nearest;
}

int flag_lookup(struct config *cfg, const char *name, const char *shown, const char *where, struct err *err) {
    int flag = flag_find(name);
    if (flag >= 0) return flag;
    const struct missing_flag *missing = missing_find(name);
    if (missing && missing->kind == MAPPED_FLAG) {
        config_note(cfg, "%s%s: %s", where, shown, missing->text);
        return missing->maps_to;
    }
    if (missing && missing->kind == NOT_BUILT) {
        return err_set(err, "%s%s is a Megatron-LM flag that this program does not have yet: %s", where,
                       shown, missing->text);
    }
    if (missing)
        return err_set(err, "%s%s is no longer a flag of Megatron-LM: %s", where, shown, missing->text);
    const char *nearest = flag_nearest(name);
    if (nearest) return err_set(err, "%s%s is not a flag; did you mean %s?", where, shown, nearest);
    return err_set(err, "%s%s is not a flag; --help lists all of them", where, shown);
}

bool flag_is_missing(const char *name) {
    const struct missing_flag *missing = missing_find(name);
    return missing && missing->kind != MAPPED_FLAG;
}

/* ---- the command line ---- */

/* A word that starts a flag: "--x" or "-x" with a letter. "-1" and "-.5e3" are values. */
static bool is_flag_word(const char *word) {
    return word[0] == '-' && (word[1] == '-' || isalpha((unsigned char)word[1]));
}

/* Python spells flags with dashes; "--num_layers" is a common slip, worth its own message. */
static void dashes_for_underscores(char *name) {
    for (; *name; name++) {
        if (*name == '_') *name = '-';
    }
}

static int parse_stray(const char *word, int last, const char *last_name, struct err *err) {
    if (last < 0) return err_set(err, "'%s' is not a flag: flags start with --", word);
    if (!flag_takes_value(&flag_rows[last])) {
        return err_set(err, "'%s' after %s: %s is a switch and takes no value; drop '%s'", word, last_name,
                       last_name, word);
    }
    return err_set(err, "'%s' after %s: %s takes one value; quote it if it holds spaces, drop '%s' if not",
                   word, last_name, last_name, word);
}

/* Splits "--name=value"; the name goes to the config's memory, value is NULL without '='. */
static const char *split_word(struct config *cfg, const char *word, const char **value_p) {
    const char *equals = strchr(word, '=');
    *value_p = equals ? equals + 1 : NULL;
    return config_keep_text(cfg, word, equals ? (size_t)(equals - word) : strlen(word));
}

static int lookup_word(struct config *cfg, const char *name, struct err *err) {
    if (strcmp(name, "--") == 0) return err_set(err, "'--' is not a flag: flags start with -- and a name");
    if (strchr(name, '_') && flag_find(name) < 0 && !missing_find(name)) {
        char *dashed = (char *)(uintptr_t)config_keep_text(cfg, name, strlen(name));
        dashes_for_underscores(dashed);
        if (flag_find(dashed) >= 0 || missing_find(dashed)) {
            return err_set(err, "%s is not a flag; it is spelt %s, with dashes", name, dashed);
        }
    }
    if (name[1] != '-' && flag_find(name) < 0) {
        const char *doubled = flag_nearest(name);
        return err_set(err, "%s is not a flag: flags start with --%s%s%s", name,
                       doubled ? "; did you mean " : "", doubled ? doubled : "", doubled ? "?" : "");
    }
    return flag_lookup(cfg, name, name, "", err);
}

/* The words of one flag; returns how many were taken, or -1. */
static int take_words(struct config *cfg, int flag, const char *name, const char *inline_value, int argc,
                      const char *const *argv, struct err *err) {
    const struct flag_row *row = &flag_rows[flag];
    int count = 0;
    if (!flag_takes_value(row)) {
        if (inline_value) return err_set(err, "%s=%s: it is a switch and takes no value", name, inline_value);
        *(bool *)flag_field(cfg, flag) = row->kind == FLAG_ON;
    } else if (inline_value) {
        if (flag_set_words(cfg, flag, &inline_value, 1, name, err)) return -1;
    } else {
        int most = flag_is_list(row) ? argc : 1;
        while (count < argc && count < most && !is_flag_word(argv[count])) count++;
        if (!count && !flag_is_list(row)) {
            struct str allowed = {0};
            flag_describe_values(row, &allowed);
            err_set(err, "%s: needs a value: %s%s%s", name, allowed.data, argc ? "; the next word is " : "",
                    argc ? argv[0] : "");
            str_free(&allowed);
            return -1;
        }
        if (flag_set_words(cfg, flag, argv, count, name, err)) return -1;
    }
    cfg->origin[flag] = CONFIG_COMMAND_LINE;
    return count;
}

static int parse_words(int argc, const char *const *argv, struct config *cfg, struct err *err) {
    const char *name = NULL;
    int last = -1;
    for (int i = 1; i < argc; i++) {
        const char *inline_value;
        if (!is_flag_word(argv[i])) return parse_stray(argv[i], last, name, err);
        name = split_word(cfg, argv[i], &inline_value);
        last = lookup_word(cfg, name, err);
        if (last < 0) return -1;
        /* argv[argc] need not be NULL, so the words left are counted */
        cfg->origin[last] = CONFIG_COMMAND_LINE;
        int count = take_words(cfg, last, name, inline_value, argc - i - 1, argv + i + 1, err);
        if (count < 0) return -1;
        i += count;
    }
    return 0;
}

/* What a flag of the "same" class means here, once each, whoever gave it. */
static void note_same(struct config *cfg) {
    for (int flag = 0; flag < CONFIG_FLAG_COUNT; flag++) {
        const struct flag_row *row = &flag_rows[flag];
        if (!row->same || !config_flag_is_given(cfg, flag) || cfg->origin[flag] == CONFIG_CHECKPOINT)
            continue;
        struct str value = {0};
        if (flag_takes_value(row)) str_puts(&value, " "), flag_format_value(cfg, flag, &value);
        config_note(cfg, "%s%s: %s", row->names, value.data ? value.data : "", row->help);
        str_free(&value);
    }
}

int config_parse(int argc, const char *const *argv, struct config *cfg, struct err *err) {
    config_init(cfg);
    if (parse_words(argc, argv, cfg, err) || (cfg->yaml_cfg && config_load_yaml(cfg, cfg->yaml_cfg, err))) {
        config_free(cfg);
        return -1;
    }
    note_same(cfg);
    return 0;
}

/* ---- documentation ---- */

void config_write_missing_markdown(FILE *out) {
    fprintf(out, "\n## Older spellings\n\n| flag | here |\n|---|---|\n");
    for (size_t i = 0; i < ARRAY_COUNT(missing_flags); i++) {
        const struct missing_flag *m = &missing_flags[i];
        if (m->kind == MAPPED_FLAG) fprintf(out, "| `%s` | %s |\n", m->name, m->text);
    }
    for (size_t i = 0; i < ARRAY_COUNT(missing_flags); i++) {
        const struct missing_flag *m = &missing_flags[i];
        if (m->kind == GONE_FLAG) fprintf(out, "| `%s` | refused: %s |\n", m->name, m->text);
    }
    fprintf(out, "\n## Flags of Megatron-LM that this program does not have yet\n\n"
                 "They are refused by name, exit status 2, with the reason given here.\n");
    const char *text = NULL;
    for (size_t i = 0; i < ARRAY_COUNT(missing_flags); i++) {
        const struct missing_flag *m = &missing_flags[i];
        if (m->kind != NOT_BUILT) continue;
        if (m->text != text) fprintf(out, "%s\n* %s: ", text ? "\n" : "", m->text);
        fprintf(out, "%s`%s`", m->text == text ? ", " : "", m->name);
        text = m->text;
    }
    fprintf(out, "\n");
}
