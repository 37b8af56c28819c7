/* --yaml-cfg: the same flags from a YAML file, through libyaml's event parser.
 *
 * Keys are field names (layernorm_epsilon) or flag names with or without dashes and leading "--"
 * (norm-epsilon). A mapping under a key is a section: its name is free and its keys are flags, as in
 * Megatron-LM's own files. One key is no flag: activation_checkpointing, see set_checkpointing. Values are
 * scalars or lists of scalars; null, ~ and None mean unset. Anchors and aliases, tags that change a type and
 * a second document are refused; files are at most 1 MiB and 8 sections deep. */
#include "core/config/flag_table.h"
#include "core/base/mem.h"
#include <errno.h>
#include <string.h>

#ifdef WITH_YAML
#include <yaml.h>

enum { MAX_FILE_BYTES = 1 << 20, MAX_DEPTH = 8, MAX_WORDS = 65536 };
#define CHECKPOINTING "activation_checkpointing"

struct reader {
    struct config *cfg;
    const char *path;
    yaml_parser_t parser;
    yaml_event_t event; /* the current one; valid while have_event */
    bool have_event;
    struct err *err;
};

static int fail(struct reader *r, const char *what, const char *name) {
    size_t line = r->have_event ? r->event.start_mark.line + 1 : r->parser.problem_mark.line + 1;
    return err_set(r->err, "%s, line %zu: %s%s%s", r->path, line, what, name ? ": " : "", name ? name : "");
}

static int next(struct reader *r) {
    if (r->have_event) yaml_event_delete(&r->event);
    r->have_event = yaml_parser_parse(&r->parser, &r->event);
    if (!r->have_event) return fail(r, "this is not YAML", r->parser.problem);
    if (r->event.type == YAML_ALIAS_EVENT)
        return fail(r, "aliases (*name) are refused; write the value out", NULL);
    return 0;
}

static int check_plain(struct reader *r, const yaml_char_t *anchor, const yaml_char_t *tag) {
    if (anchor) return fail(r, "anchors (&name) are refused; write the value out", NULL);
    if (tag) return fail(r, "tags (!type) are refused; the flag's own type counts", NULL);
    return 0;
}

static int scalar_text(struct reader *r, const char **text_p) {
    if (check_plain(r, r->event.data.scalar.anchor, r->event.data.scalar.tag)) return -1;
    const char *text = (const char *)r->event.data.scalar.value;
    size_t length = r->event.data.scalar.length;
    if (memchr(text, 0, length)) return fail(r, "a NUL byte", NULL);
    *text_p = config_keep_text(r->cfg, text, length);
    return 0;
}

static bool is_null(const char *text, bool plain) {
    return !strcmp(text, "None") || (plain && (!*text || !strcmp(text, "~") || !strcmp(text, "null") ||
                                               !strcmp(text, "Null") || !strcmp(text, "NULL")));
}

static bool is_false(const char *text) {
    return !strcmp(text, "false") || !strcmp(text, "False") || !strcmp(text, "no") || !strcmp(text, "off");
}

/* Which flag a key names; *inverted when it is the spelling of a switch that stores false. A flag that this
 * program lacks is let through (-2) when its value is null or false: it asks for nothing. */
static int find_key(struct reader *r, const char *key, bool asks_nothing, bool *inverted_p) {
    char where[512], name[256];
    *inverted_p = false;
    for (int flag = 0; flag < CONFIG_FLAG_COUNT; flag++) {
        if (!strcmp(flag_rows[flag].field, key)) return flag;
    }
    if (strlen(key) > sizeof(name) - 3) return fail(r, "a key of this length is not a flag", NULL);
    snprintf(name, sizeof(name), "--%s", key + (key[0] == '-' && key[1] == '-' ? 2 : 0));
    for (char *c = name; *c; c++) {
        if (*c == '_') *c = '-';
    }
    if (asks_nothing && flag_is_missing(name)) return -2;
    snprintf(where, sizeof(where), "%.300s, line %zu: ", r->path, r->event.start_mark.line + 1);
    int flag = flag_lookup(r->cfg, name, key, where, r->err);
    if (flag >= 0) *inverted_p = flag_rows[flag].kind == FLAG_OFF;
    return flag;
}

static bool is_true(const char *text) {
    return !strcmp(text, "true") || !strcmp(text, "True") || !strcmp(text, "yes") || !strcmp(text, "on");
}

static bool on_command_line(const struct reader *r, const int *flags, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (r->cfg->origin[flags[i]] == CONFIG_COMMAND_LINE) return true;
    return false;
}

/* NeMo AutoModel's key: true and full are full recompute of every layer by itself, selective is
 * op-level. On the command line,
 * another kind of recompute replaces it, and the flags of full say which layers. */
static int set_checkpointing(struct reader *r, size_t line, const char *word, bool *seen) {
    static const int kinds[] = {CONFIG_FLAG_recompute_granularity, CONFIG_FLAG_recompute_activations,
                                CONFIG_FLAG_recompute_plan, CONFIG_FLAG_recompute_sweep};
    static const int layers[] = {CONFIG_FLAG_recompute_method, CONFIG_FLAG_recompute_num_layers,
                                 CONFIG_FLAG_recompute_num_layers_per_stage, CONFIG_FLAG_recompute_layer_ids};
    static const struct {
        int flag;
        const char *word;
    } full[] = {{CONFIG_FLAG_recompute_granularity, "full"},
                {CONFIG_FLAG_recompute_method, "uniform"},
                {CONFIG_FLAG_recompute_num_layers, "1"}};
    char shown[512];
    snprintf(shown, sizeof(shown), "%.300s, line %zu: " CHECKPOINTING, r->path, line);
    bool selective = !strcmp(word, "selective");
    const char *const op = "op";
    if (!selective && !is_true(word) && strcmp(word, "full"))
        return err_set(r->err, "%s: takes true, full, selective or false", shown);
    if (seen[CONFIG_FLAG_recompute_granularity])
        return err_set(r->err, "%s: recompute is given twice in this file; drop one of the two", shown);
    seen[CONFIG_FLAG_recompute_granularity] = true;
    if (on_command_line(r, kinds, ARRAY_COUNT(kinds))) return 0;
    size_t count = selective || on_command_line(r, layers, ARRAY_COUNT(layers)) ? 1 : ARRAY_COUNT(full);
    for (size_t i = 0; i < count; i++) {
        r->cfg->origin[full[i].flag] = CONFIG_YAML;
        if (flag_set_words(r->cfg, full[i].flag, selective ? &op : &full[i].word, 1, shown, r->err))
            return -1;
    }
    return 0;
}

static int set_key(struct reader *r, const char *key, size_t line, const char *const *words, int64_t count,
                   bool null, bool *seen) {
    static const char *const none = "None", *const yes = "true", *const no = "false";
    bool inverted, asks_nothing = null || (count == 1 && is_false(words[0]));
    char shown[512];
    if (!strcmp(key, CHECKPOINTING) && asks_nothing) return 0;
    if (!strcmp(key, CHECKPOINTING)) return set_checkpointing(r, line, count == 1 ? words[0] : "", seen);
    int flag = find_key(r, key, asks_nothing, &inverted);
    if (flag < 0) return flag == -2 ? 0 : -1;
    const struct flag_row *row = &flag_rows[flag];
    snprintf(shown, sizeof(shown), "%.300s, line %zu: %s", r->path, line, row->field);
    if (seen[flag]) return err_set(r->err, "%s: given twice in this file", shown);
    seen[flag] = true;
    if (flag == CONFIG_FLAG_yaml_cfg) return err_set(r->err, "%s: a YAML file cannot name another", shown);
    if (r->cfg->origin[flag] == CONFIG_COMMAND_LINE) return 0;
    if (null) {
        if (strcmp(row->default_text, "None"))
            return 0; /* null leaves a flag with a default of its own alone */
        words = &none, count = 1;
    } else if (!flag_is_list(row) && count != 1) {
        return err_set(r->err, "%s: takes one value, not a list", shown);
    } else if (inverted && !flag_takes_value(row)) {
        words = is_false(words[0])                                       ? &yes
                : !strcmp(words[0], "true") || !strcmp(words[0], "True") ? &no
                                                                         : words;
    }
    r->cfg->origin[flag] = CONFIG_YAML;
    return flag_set_words(r->cfg, flag, words, count, shown, r->err);
}

/* After the key: a scalar, a list of scalars, or (returned as 1) the start of a section. */
static int read_value(struct reader *r, const char *key, bool *seen) {
    size_t line = r->event.start_mark.line + 1;
    if (next(r)) return -1;
    if (r->event.type == YAML_MAPPING_START_EVENT) {
        return check_plain(r, r->event.data.mapping_start.anchor, r->event.data.mapping_start.tag) ? -1 : 1;
    }
    const char *text;
    if (r->event.type == YAML_SCALAR_EVENT) {
        if (scalar_text(r, &text)) return -1;
        return set_key(r, key, line, &text, 1,
                       is_null(text, r->event.data.scalar.style == YAML_PLAIN_SCALAR_STYLE), seen);
    }
    if (check_plain(r, r->event.data.sequence_start.anchor, r->event.data.sequence_start.tag)) return -1;
    const char **words = NULL;
    int64_t count = 0;
    int status = next(r);
    while (!status && r->event.type == YAML_SCALAR_EVENT && count < MAX_WORDS) {
        words = mem_realloc(words, (size_t)(count + 1) * sizeof(*words), "yaml list");
        status = scalar_text(r, &words[count++]);
        if (!status) status = next(r);
    }
    if (!status && r->event.type != YAML_SEQUENCE_END_EVENT)
        status = fail(r, "a list holds plain values only", key);
    if (!status) status = set_key(r, key, line, words, count, false, seen);
    mem_free(words);
    return status;
}

static int read_document(struct reader *r) {
    bool seen[CONFIG_FLAG_COUNT] = {false};
    int depth = 0;
    if (next(r) || next(r)) return -1; /* stream start, document start */
    if (r->event.type == YAML_STREAM_END_EVENT) return 0;
    if (next(r)) return -1;
    if (r->event.type == YAML_SCALAR_EVENT && !r->event.data.scalar.length) return 0;
    if (r->event.type != YAML_MAPPING_START_EVENT)
        return fail(r, "the file must hold 'flag: value' lines", NULL);
    if (check_plain(r, r->event.data.mapping_start.anchor, r->event.data.mapping_start.tag)) return -1;
    depth = 1;
    while (depth) {
        const char *key;
        if (next(r)) return -1;
        if (r->event.type == YAML_MAPPING_END_EVENT) {
            depth--;
            continue;
        }
        if (r->event.type != YAML_SCALAR_EVENT) return fail(r, "a key must be the name of a flag", NULL);
        if (scalar_text(r, &key)) return -1;
        int status = read_value(r, key, seen);
        if (status < 0) return -1;
        if (status > 0 && ++depth > MAX_DEPTH) return fail(r, "sections are nested too deeply", key);
    }
    if (next(r) || next(r)) return -1; /* document end, stream end */
    if (r->event.type != YAML_STREAM_END_EVENT) return fail(r, "only one document may be in the file", NULL);
    return 0;
}

int config_load_yaml_text(struct config *cfg, const char *text, size_t length, const char *name,
                          struct err *err) {
    struct reader r = {.cfg = cfg, .path = name, .err = err};
    CHECK(yaml_parser_initialize(&r.parser), "libyaml does not start");
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, length);
    int status = read_document(&r);
    if (r.have_event) yaml_event_delete(&r.event);
    yaml_parser_delete(&r.parser);
    return status;
}

int config_load_yaml(struct config *cfg, const char *path, struct err *err) {
    FILE *file = fopen(path, "rb");
    if (!file) return err_set(err, "--yaml-cfg %s: %s", path, strerror(errno));
    char *text = mem_alloc(MAX_FILE_BYTES + 1, "yaml file");
    size_t length = fread(text, 1, MAX_FILE_BYTES + 1, file);
    int status = ferror(file) ? err_set(err, "--yaml-cfg %s: cannot be read; give a regular file", path) : 0;
    if (!status && length > MAX_FILE_BYTES) {
        status = err_set(err, "--yaml-cfg %s: more than %d bytes is no flag file", path, MAX_FILE_BYTES);
    }
    fclose(file);
    if (!status) status = config_load_yaml_text(cfg, text, length, path, err);
    mem_free(text);
    return status;
}

#else

int config_load_yaml(struct config *cfg, const char *path, struct err *err) {
    (void)cfg;
    return err_set(
        err,
        "--yaml-cfg %s: this binary was built without YAML; install libyaml-dev and run make again, "
        "or give the flags on the command line",
        path);
}

int config_load_yaml_text(struct config *cfg, const char *text, size_t length, const char *name,
                          struct err *err) {
    (void)text, (void)length;
    return config_load_yaml(cfg, name, err);
}

#endif
