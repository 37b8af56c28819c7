/* --data-args-path and --per-split-data-args-path: the words of --data-path and its kind, from files. */
#include "core/base/json.h"
#include "core/base/mem.h"
#include "core/config/rules.h"
#include <errno.h>
#include <string.h>

enum { MAX_FILE_BYTES = 16 << 20 };

static const char spaces[] = " \t\r\n";

static int read_text(const char *path, struct str *text, struct err *err) {
    char part[4096];
    size_t got;
    FILE *file = fopen(path, "rb");
    REQUIRE(file, "--data-args-path %s: %s", path, strerror(errno));
    while ((got = fread(part, 1, sizeof(part), file)) > 0 && text->length <= MAX_FILE_BYTES)
        str_append(text, part, got);
    bool bad = ferror(file) != 0;
    fclose(file);
    REQUIRE(!bad, "--data-args-path %s: cannot be read; give a regular file", path);
    REQUIRE(text->length <= MAX_FILE_BYTES,
            "--data-args-path %s: larger than 16 MiB; give a list of data prefixes", path);
    REQUIRE(!text->length || !memchr(text->data, 0, text->length),
            "--data-args-path %s: holds a NUL byte; give a text file", path);
    return 0;
}

/* PREFIX, or WEIGHT PREFIX WEIGHT PREFIX ..., separated by blanks and line ends. */
static int load_words(struct config *cfg, struct err *err) {
    struct str text = {0};
    const char **words = NULL;
    int64_t count = 0;
    int status = read_text(cfg->data_args_path, &text, err);
    char *at = text.data ? text.data : "";
    while (!status && (at += strspn(at, spaces), *at)) {
        words = mem_realloc(words, (size_t)(count + 1) * sizeof(*words), "data arguments");
        words[count++] = at;
        at += strcspn(at, spaces);
        if (*at) *at++ = 0;
    }
    if (!status && !count) {
        status = err_set(err, "--data-args-path %s: names no data; give PREFIX or WEIGHT PREFIX ...",
                         cfg->data_args_path);
    }
    if (!status) status = flag_set_words(cfg, CONFIG_FLAG_data_path, words, count, cfg->data_args_path, err);
    if (!status) config_derive(cfg, CONFIG_FLAG_data_path, "--data-args-path");
    mem_free(words);
    str_free(&text);
    return status;
}

/* One member of the JSON file: a list of strings and numbers, a string, or null. */
static int load_split(struct config *cfg, int flag, const struct json_node *node, const char *key,
                      struct err *err) {
    const char *path = cfg->per_split_data_args_path;
    if (!node || node->kind == JSON_NULL) return 0;
    const struct json_node *items = node->kind == JSON_ARRAY ? node->items : node;
    size_t count = node->kind == JSON_ARRAY ? node->count : 1;
    const char **words = mem_new_array(const char *, count + 1, "data arguments");
    int status =
        count ? 0
              : err_set(err, "--per-split-data-args-path %s: '%s' is empty; give null or data", path, key);
    for (size_t i = 0; i < count && !status; i++) {
        char number[40];
        words[i] = items[i].string;
        if (items[i].kind == JSON_NUMBER) {
            snprintf(number, sizeof(number), "%.17g", items[i].number);
            words[i] = config_keep_text(cfg, number, strlen(number));
        } else if (items[i].kind != JSON_STRING) {
            status =
                err_set(err, "--per-split-data-args-path %s: '%s' must hold prefixes and weights", path, key);
        }
    }
    if (!status) status = flag_set_words(cfg, flag, words, (int64_t)count, path, err);
    if (!status) config_derive(cfg, flag, "--per-split-data-args-path");
    mem_free(words);
    return status;
}

static int load_splits(struct config *cfg, struct err *err) {
    static const struct {
        const char *key;
        int flag;
    } splits[] = {{"train", CONFIG_FLAG_train_data_path},
                  {"valid", CONFIG_FLAG_valid_data_path},
                  {"test", CONFIG_FLAG_test_data_path}};
    const char *path = cfg->per_split_data_args_path;
    struct json *json = json_parse_file(path, err);
    if (!json) return -1;
    const struct json_node *root = json_root(json);
    int status =
        root->kind == JSON_OBJECT
            ? 0
            : err_set(err, "--per-split-data-args-path %s: must be an object with train, valid, test", path);
    for (size_t k = 0; k < root->count && !status && root->kind == JSON_OBJECT; k++) {
        bool known = false;
        for (size_t i = 0; i < ARRAY_COUNT(splits); i++)
            known = known || !strcmp(root->keys[k], splits[i].key);
        if (!known) {
            status =
                err_set(err, "--per-split-data-args-path %s: '%.100s' is no split; use train, valid and test",
                        path, root->keys[k]);
        }
    }
    for (size_t i = 0; i < ARRAY_COUNT(splits) && !status; i++) {
        status = load_split(cfg, splits[i].flag, json_get(root, splits[i].key), splits[i].key, err);
    }
    json_free(json);
    return status;
}

int rules_data_args(struct config *cfg, struct err *err) {
    if (cfg->data_args_path && load_words(cfg, err)) return -1;
    return cfg->per_split_data_args_path ? load_splits(cfg, err) : 0;
}
