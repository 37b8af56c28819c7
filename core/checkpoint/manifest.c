#include "core/checkpoint/manifest.h"
#include "core/base/hash.h"
#include "core/base/mem.h"
#include "core/checkpoint/record.h"
#include "core/checkpoint/store.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FORMAT "pretrain_gpt checkpoint"
#define SEAL   "\"manifest_checksum\":\""

enum { VERSION = 2, HEX_DIGITS = 16, SEAL_BYTES = sizeof(SEAL) - 1 + HEX_DIGITS + 3 /* "}\n */ };

/* ---- writing ---- */

/* Line breaks between members, for people; the JSON helpers put no comma at a line's beginning. */
static void next_line(struct str *out) {
    str_puts(out, ",\n");
}

static void write_checksum(struct str *out, uint64_t checksum) {
    char hex[HEX_DIGITS + 1];
    snprintf(hex, sizeof(hex), "%016llx", (unsigned long long)checksum);
    json_key(out, "checksum");
    json_string(out, hex);
}

void checkpoint_manifest_begin(struct str *out, const struct checkpoint_model *model,
                               const struct checkpoint_state *state, bool release, bool has_optimizer) {
    json_begin_object(out);
    json_key(out, "format");
    json_string(out, FORMAT);
    json_key(out, "version");
    json_integer(out, VERSION);
    json_key(out, "iteration");
    json_integer(out, state->iteration);
    json_key(out, "release");
    json_bool(out, release);
    json_key(out, "naming");
    json_string(out, checkpoint_family_name(checkpoint_family(model, NULL)));
    json_key(out, "optimizer");
    json_bool(out, has_optimizer);
    next_line(out);
    json_key(out, "state");
    checkpoint_write_state(out, state);
    next_line(out);
    json_key(out, "model");
    checkpoint_write_model(out, model);
    next_line(out);
    json_key(out, "files");
    json_begin_array(out);
}

void checkpoint_manifest_add_file(struct str *out, const struct checkpoint_file *file) {
    str_puts(out, out->data[out->length - 1] == '[' ? "\n" : ",\n");
    json_begin_object(out);
    json_key(out, "name");
    json_string(out, file->name);
    json_key(out, "bytes");
    json_unsigned(out, file->bytes);
    json_key(out, "head_bytes");
    json_unsigned(out, file->head_bytes);
    write_checksum(out, file->checksum);
    json_end_object(out);
}

void checkpoint_manifest_begin_tensors(struct str *out) {
    json_end_array(out);
    next_line(out);
    json_key(out, "tensors");
    json_begin_object(out);
}

void checkpoint_manifest_add_tensor(struct str *out, const char *name, int file, uint64_t checksum) {
    str_puts(out, out->data[out->length - 1] == '{' ? "\n" : ",\n");
    json_key(out, name);
    json_begin_object(out);
    json_key(out, "file");
    json_integer(out, file);
    write_checksum(out, checksum);
    json_end_object(out);
}

void checkpoint_manifest_end(struct str *out) {
    json_end_object(out);
    next_line(out);
    uint64_t checksum = hash_bytes(out->data, out->length);
    str_printf(out, "%s%016llx\"}\n", SEAL, (unsigned long long)checksum);
}

/* ---- reading ---- */

static int parse_checksum(const char *hex, size_t length, uint64_t *checksum_p) {
    if (length != HEX_DIGITS || strspn(hex, "0123456789abcdef") < HEX_DIGITS) return -1;
    *checksum_p = strtoull(hex, NULL, 16);
    return 0;
}

static int read_checksum(const struct json_node *node, uint64_t *checksum_p) {
    const struct json_node *hex = json_get(node, "checksum");
    return hex && hex->kind == JSON_STRING ? parse_checksum(hex->string, hex->count, checksum_p) : -1;
}

static int read_unsigned(const struct json_node *node, const char *key, uint64_t *value_p) {
    const struct json_node *v = json_get(node, key);
    if (!v || v->kind != JSON_NUMBER || !v->is_integer || v->integer < 0) return -1;
    *value_p = (uint64_t)v->integer;
    return 0;
}

static int check_seal(const struct str *text, const char *where, struct err *err) {
    char hex[HEX_DIGITS + 1] = {0};
    uint64_t want;
    const char *seal = text->length > SEAL_BYTES ? text->data + text->length - SEAL_BYTES : NULL;
    if (!seal || memcmp(seal, SEAL, sizeof(SEAL) - 1) || memcmp(text->data + text->length - 3, "\"}\n", 3))
        return err_set(err, "%s: does not end with its checksum: cut short or changed", where);
    memcpy(hex, seal + sizeof(SEAL) - 1, HEX_DIGITS);
    if (parse_checksum(hex, HEX_DIGITS, &want) || hash_bytes(text->data, text->length - SEAL_BYTES) != want)
        return err_set(err, "%s: its checksum differs: the file was changed", where);
    return 0;
}

static int read_file_entry(const struct checkpoint_manifest *m, const struct json_node *node,
                           struct checkpoint_file *f, const char *where, struct err *err) {
    const struct json_node *name = json_get(node, "name");
    if (!name || name->kind != JSON_STRING || !name->count || strlen(name->string) != name->count ||
        strchr(name->string, '/') || read_unsigned(node, "bytes", &f->bytes) ||
        read_unsigned(node, "head_bytes", &f->head_bytes) || f->head_bytes > f->bytes ||
        read_checksum(node, &f->checksum))
        return err_set(err, "%s: a row of 'files' is malformed", where);
    f->name = name->string;
    struct str path = {0};
    struct stat st;
    int status = 0;
    str_printf(&path, "%s/%s", m->path, f->name);
    if (stat(path.data, &st))
        status = err_set(err, "%s: %s", path.data, strerror(errno));
    else if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != f->bytes)
        status = err_set(err, "%s: has %lld bytes, the manifest says %llu", path.data, (long long)st.st_size,
                         (unsigned long long)f->bytes);
    str_free(&path);
    return status;
}

static int read_members(struct checkpoint_manifest *m, const char *where, struct err *err) {
    const struct json_node *root = json_root(m->json), *format = json_get(root, "format");
    const struct json_node *version = json_get(root, "version"), *release = json_get(root, "release");
    const struct json_node *naming = json_get(root, "naming"), *optimizer = json_get(root, "optimizer");
    const struct json_node *files = json_get(root, "files");
    if (!format || format->kind != JSON_STRING || strcmp(format->string, FORMAT))
        return err_set(err, "%s: no manifest of this program ('format' is not '%s')", where, FORMAT);
    if (!version || !version->is_integer || version->integer != VERSION)
        return err_set(
            err,
            "%s: format version %lld; this program reads version %d only: go on with the program that "
            "wrote it, or start anew from an exported folder (checkpoint_tool import-hf)",
            where, version && version->is_integer ? (long long)version->integer : -1ll, VERSION);
    if (checkpoint_read_state(json_get(root, "state"), where, &m->state, err)) return -1;
    if (checkpoint_read_model(json_get(root, "model"), where, &m->model, err)) return -1;
    m->tensors = json_get(root, "tensors");
    if (!release || release->kind != JSON_BOOL || !optimizer || optimizer->kind != JSON_BOOL || !files ||
        files->kind != JSON_ARRAY || !m->tensors || m->tensors->kind != JSON_OBJECT)
        return err_set(err, "%s: 'release', 'optimizer', 'files' or 'tensors' is missing", where);
    m->iteration = m->state.iteration, m->release = release->boolean, m->has_optimizer = optimizer->boolean;
    m->family = checkpoint_family(&m->model, NULL);
    if (!naming || naming->kind != JSON_STRING || strcmp(naming->string, checkpoint_family_name(m->family)))
        return err_set(err, "%s: tensors are named as '%.32s', but the model is of the family '%s'", where,
                       naming && naming->kind == JSON_STRING ? naming->string : "?",
                       checkpoint_family_name(m->family));
    m->files = mem_new_array(struct checkpoint_file, files->count, "manifest files");
    for (; (size_t)m->num_files < files->count; m->num_files++)
        if (read_file_entry(m, &files->items[m->num_files], &m->files[m->num_files], where, err)) return -1;
    return 0;
}

struct checkpoint_manifest *checkpoint_manifest_open(const char *path, struct err *err) {
    struct checkpoint_manifest *m = mem_zalloc(sizeof(*m), "manifest");
    struct str text = {0}, where = {0};
    m->path = mem_strdup(path, "checkpoint path");
    str_printf(&where, "%s/%s", path, CHECKPOINT_MANIFEST);
    int status = checkpoint_read_file(path, CHECKPOINT_MANIFEST, &text, err);
    if (!status) status = check_seal(&text, where.data, err);
    if (!status && !(m->json = json_parse(text.data, text.length, where.data, err))) status = -1;
    if (!status) status = read_members(m, where.data, err);
    str_free(&text);
    str_free(&where);
    if (!status) return m;
    checkpoint_manifest_close(m);
    return NULL;
}

void checkpoint_manifest_close(struct checkpoint_manifest *manifest) {
    if (!manifest) return;
    json_free(manifest->json);
    mem_free(manifest->files);
    mem_free(manifest->path);
    mem_free(manifest);
}

int checkpoint_manifest_tensor(const struct checkpoint_manifest *manifest, const char *name, int *file_p,
                               uint64_t *checksum_p) {
    const struct json_node *node = json_get(manifest->tensors, name);
    uint64_t file;
    if (!node || read_unsigned(node, "file", &file) || file >= (uint64_t)manifest->num_files ||
        read_checksum(node, checksum_p))
        return -1;
    *file_p = (int)file;
    return 0;
}

int checkpoint_manifest_config(const struct checkpoint_manifest *manifest, struct str *out, struct err *err) {
    for (int i = 0; i < manifest->num_files; i++) {
        const struct checkpoint_file *f = &manifest->files[i];
        if (strcmp(f->name, CHECKPOINT_CONFIG)) continue;
        if (checkpoint_read_file(manifest->path, f->name, out, err)) return -1;
        if (out->length == f->bytes && hash_bytes(out->data, out->length) == f->checksum) return 0;
        return err_set(err, "%s/%s: its checksum differs: the file was changed", manifest->path, f->name);
    }
    return err_set(err, "%s: the manifest lists no %s", manifest->path, CHECKPOINT_CONFIG);
}
