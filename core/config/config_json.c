/* The resolved config as JSON, and back. */
#include "core/config/flag_table.h"
#include "core/base/json.h"
#include "core/base/mem.h"
#include <string.h>

static void write_value(struct str *out, const struct config *cfg, int flag) {
    const struct flag_row *row = &flag_rows[flag];
    const void *field = flag_field(cfg, flag);
    const struct config_texts *texts = field;
    const struct config_ints *ints = field;
    struct str word = {0};
    if (!config_flag_is_set(cfg, flag)) {
        json_null(out);
        return;
    }
    switch (row->kind) {
    case FLAG_INT:
    case FLAG_SIZE:
        json_integer(out, *(const int64_t *)field);
        break;
    case FLAG_FLOAT:
        json_double(out, *(const double *)field);
        break;
    case FLAG_ON:
    case FLAG_OFF:
        json_bool(out, *(const bool *)field);
        break;
    case FLAG_TEXT:
    case FLAG_CHOICE:
        flag_format_value(cfg, flag, &word);
        json_string(out, word.data);
        str_free(&word);
        break;
    case FLAG_TEXTS:
        json_begin_array(out);
        for (int64_t i = 0; i < texts->count; i++) json_string(out, texts->items[i]);
        json_end_array(out);
        break;
    case FLAG_INTS:
        json_begin_array(out);
        for (int64_t i = 0; i < ints->count; i++) json_integer(out, ints->items[i]);
        json_end_array(out);
        break;
    }
}

void config_write_json(struct str *out, const struct config *cfg) {
    json_begin_object(out);
    for (int flag = 0; flag < CONFIG_FLAG_COUNT; flag++) {
        struct str origin = {0};
        config_format_origin(cfg, flag, &origin);
        json_key(out, flag_rows[flag].field);
        json_begin_object(out);
        json_key(out, "value");
        write_value(out, cfg, flag);
        json_key(out, "origin");
        json_string(out, origin.data);
        json_end_object(out);
        str_free(&origin);
    }
    json_end_object(out);
}

/* One JSON value as the word that the flag would take. */
static int node_word(struct config *cfg, int flag, const struct json_node *node, const char *shown,
                     const char **word_p, struct err *err) {
    struct str word = {0};
    switch (node->kind) {
    case JSON_NULL:
        str_puts(&word, "None");
        break;
    case JSON_BOOL:
        str_puts(&word, node->boolean ? "true" : "false");
        break;
    case JSON_NUMBER:
        if (node->is_integer)
            str_printf(&word, "%lld", (long long)node->integer);
        else
            str_printf(&word, "%.17g", node->number);
        if (flag_rows[flag].kind == FLAG_SIZE) str_puts(&word, "B");
        break;
    case JSON_STRING:
        str_puts(&word, node->string);
        break;
    default:
        return err_set(err, "%s: a single value is expected", shown);
    }
    *word_p = config_keep_text(cfg, word.data ? word.data : "", word.length);
    str_free(&word);
    return 0;
}

static int load_value(struct config *cfg, int flag, const struct json_node *node, const char *shown,
                      struct err *err) {
    const char *word;
    if (node->kind != JSON_ARRAY) {
        if (node_word(cfg, flag, node, shown, &word, err)) return -1;
        return flag_set_words(cfg, flag, &word, 1, shown, err);
    }
    if (!flag_is_list(&flag_rows[flag])) return err_set(err, "%s: takes one value, not a list", shown);
    const char **words = mem_new_array(const char *, node->count + 1, "config list");
    int status = 0;
    for (size_t i = 0; i < node->count && !status; i++) {
        status = node_word(cfg, flag, &node->items[i], shown, &words[i], err);
    }
    if (!status) status = flag_set_words(cfg, flag, words, (int64_t)node->count, shown, err);
    mem_free(words);
    return status;
}

int config_load_json(struct config *cfg, const char *text, size_t length, const char *name, struct err *err) {
    struct json *json = json_parse(text, length, name, err);
    if (!json) return -1;
    const struct json_node *root = json_root(json);
    int status = 0;
    if (root->kind != JSON_OBJECT) status = err_set(err, "%s: not a resolved config", name);
    for (int flag = 0; flag < CONFIG_FLAG_COUNT && !status; flag++) {
        char shown[512];
        const struct json_node *value = json_get(json_get(root, flag_rows[flag].field), "value");
        if (!value || !flag_group_of(flag)->from_checkpoint || config_flag_is_given(cfg, flag)) continue;
        if (value->kind == JSON_NULL && !strcmp(flag_rows[flag].default_text, "None")) continue;
        snprintf(shown, sizeof(shown), "%.300s: %s", name, flag_rows[flag].field);
        cfg->origin[flag] = CONFIG_CHECKPOINT;
        status = load_value(cfg, flag, value, shown, err);
    }
    json_free(json);
    return status;
}
