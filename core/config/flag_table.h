#pragma once
/* The rows of flags.def and choices.def as data, and typed access to the fields behind them. Private to
 * core/config. Strings made here belong to the config's own blocks. */
#include "core/config/config.h"

enum flag_kind {
    FLAG_INT,
    FLAG_SIZE,
    FLAG_FLOAT,
    FLAG_ON,
    FLAG_OFF,
    FLAG_TEXT,
    FLAG_CHOICE,
    FLAG_TEXTS,
    FLAG_INTS,
};

struct flag_choice {
    const char *word; /* NULL ends a set */
    int value;
    const char *why_not; /* NULL: available */
};

struct flag_row {
    enum flag_kind kind;
    const char *field; /* "layernorm_epsilon" */
    const char *names; /* "--save-interval\0--persistent-save-interval\0": C strings up to an empty one */
    const char *default_text; /* "None" is unset */
    const char *limits;       /* interval, or list length and interval */
    const struct flag_choice *choices;
    const char *help;
    size_t offset; /* in struct config */
    bool same;     /* an implementation choice: tell the meaning when it is given */
};

struct flag_group {
    const char *title;
    bool from_checkpoint, shapes_result;
    int first; /* row */
};

extern const struct flag_row flag_rows[CONFIG_FLAG_COUNT];
extern const struct flag_group flag_groups[];
extern const int flag_group_count;
const struct flag_group *flag_group_of(int flag);

/* Does `name` (with its dashes) spell this row? */
bool flag_has_name(const struct flag_row *row, const char *name);
bool flag_takes_value(const struct flag_row *row);
bool flag_is_list(const struct flag_row *row);
/* What is allowed, in words: "a whole number of at least 1", "full or selective". */
void flag_describe_values(const struct flag_row *row, struct str *out);

/* Parses one value, or the words of a list, into the field. `shown` names the flag in messages ("--lr", or
 * "file.yaml, line 3: lr"). Sets no origin. Switches take "true" or "false" for the field itself. */
int flag_set_words(struct config *cfg, int flag, const char *const *words, int64_t count, const char *shown,
                   struct err *err);
/* The value as text: what --flag would take; "None" when unset; lists are separated by spaces. */
void flag_format_value(const struct config *cfg, int flag, struct str *out);

/* Pointer to the field. */
void *flag_field(const struct config *cfg, int flag);

/* Memory that lives until config_free. */
void *config_keep(struct config *cfg, size_t bytes);
const char *config_keep_text(struct config *cfg, const char *text, size_t length);
void config_note(struct config *cfg, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The flag that `name` ("--lr") spells, an older spelling of Megatron-LM's included (with a note), or -1 with
 * a message: not built yet, gone, or unknown with the nearest name. `where` and `shown` start the message. */
int flag_lookup(struct config *cfg, const char *name, const char *shown, const char *where, struct err *err);
/* Is it a flag of Megatron-LM that this program refuses? */
bool flag_is_missing(const char *name);

int config_load_yaml(struct config *cfg, const char *path, struct err *err);
int config_load_yaml_text(struct config *cfg, const char *text, size_t length, const char *name,
                          struct err *err);

/* Sets the origin of a derived value; `from` is a string literal. */
void config_derive(struct config *cfg, enum config_flag flag, const char *from);
/* "default", "command line", "derived from --hidden-size" ... */
void config_format_origin(const struct config *cfg, int flag, struct str *out);
/* The sections of docs/flags.md about Megatron-LM's other flags. */
void config_write_missing_markdown(FILE *out);
