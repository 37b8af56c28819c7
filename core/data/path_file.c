#include "core/data/path_file.h"
#include "core/base/json.h"
#include "core/base/mem.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { MOST_BYTES = 64 << 20 };

static int read_text(const char *path, const char *flag, struct str *text, struct err *err) {
    char piece[4096];
    size_t n;
    FILE *f = fopen(path, "rb");
    if (!f) return err_set(err, "%s %s: cannot open: %s", flag, path, strerror(errno));
    while ((n = fread(piece, 1, sizeof(piece), f)) > 0 && text->length < MOST_BYTES)
        str_append(text, piece, n);
    int failed = ferror(f) || text->length >= MOST_BYTES;
    fclose(f);
    return failed ? err_set(err, "%s %s: cannot read, or larger than 64 MiB", flag, path) : 0;
}

/* Appends the words of text to *words, NUL-terminated each, and counts them. */
static int split_words(const char *text, struct str *words) {
    static const char blanks[] = " \t\r\n\v\f";
    int count = 0;
    for (const char *p = text + strspn(text, blanks); *p; p += strspn(p, blanks)) {
        size_t n = strcspn(p, blanks);
        str_append(words, p, n);
        str_append(words, "", 1);
        p += n;
        count++;
    }
    return count;
}

/* Takes over the words and points at each. counts[0] is the blend of all, counts[1 ..] those of the splits.
 */
static void keep_words(struct path_file *file, struct str *words, const int counts[1 + DATA_SPLITS]) {
    size_t total = 0;
    for (int i = 0; i <= DATA_SPLITS; i++) total += (size_t)counts[i];
    *file =
        (struct path_file){.text = words->data, .items = mem_new_array(const char *, total, "data paths")};
    const char *p = words->data;
    for (size_t i = 0; i < total; i++, p += strlen(p) + 1) file->items[i] = p;
    const char *const *at = file->items;
    for (int i = 0; i <= DATA_SPLITS; at += counts[i++])
        if (counts[i]) *(i ? &file->split_words[i - 1] : &file->words) = (struct data_words){at, counts[i]};
    *words = (struct str){0};
}

int path_file_read(const char *path, struct path_file *file, struct err *err) {
    struct str text = {0}, words = {0};
    int counts[1 + DATA_SPLITS] = {0}, status = read_text(path, "--data-args-path", &text, err);
    if (!status) counts[0] = split_words(text.data ? text.data : "", &words);
    if (!status && !counts[0]) status = err_set(err, "--data-args-path %s: holds no data paths", path);
    if (!status) keep_words(file, &words, counts);
    str_free(&text);
    str_free(&words);
    return status;
}

static int read_split(const char *path, const char *name, const struct json_node *node, struct str *words,
                      int *count_p, struct err *err) {
    if (!node || node->kind == JSON_NULL) return 0;
    if (node->kind == JSON_STRING) {
        *count_p = split_words(node->string, words);
        return 0;
    }
    for (size_t i = 0; node->kind == JSON_ARRAY && i < node->count; i++) {
        const struct json_node *item = &node->items[i];
        if (item->kind == JSON_NUMBER)
            str_printf(words, "%.17g", item->number);
        else if (item->kind == JSON_STRING && item->count)
            str_puts(words, item->string);
        else
            return err_set(
                err, "--per-split-data-args-path %s: \"%s\" holds something that is no path and no weight",
                path, name);
        str_append(words, "", 1);
        ++*count_p;
    }
    if (node->kind == JSON_ARRAY) return 0;
    return err_set(err, "--per-split-data-args-path %s: \"%s\" must be a list of paths and weights", path,
                   name);
}

int path_file_read_splits(const char *path, struct path_file *file, struct err *err) {
    struct str words = {0};
    int counts[1 + DATA_SPLITS] = {0}, total = 0, status = 0;
    struct json *json = json_parse_file(path, err);
    if (!json) return -1;
    for (int i = 0; i < DATA_SPLITS && !status; i++) {
        const char *name = data_split_name(i);
        status = read_split(path, name, json_get(json_root(json), name), &words, &counts[1 + i], err);
        total += counts[1 + i];
    }
    if (!status && !total)
        status =
            err_set(err,
                    "--per-split-data-args-path %s: expected {\"train\": [...], \"valid\": [...], \"test\": "
                    "[...]} with data paths",
                    path);
    if (!status) keep_words(file, &words, counts);
    json_free(json);
    str_free(&words);
    return status;
}

void path_file_free(struct path_file *file) {
    mem_free(file->text);
    mem_free(file->items);
    *file = (struct path_file){0};
}
