#include "core/data/provenance.h"
#include "core/base/json.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int provenance_write(const char *prefix, const struct provenance *p, struct err *err) {
    struct str path = {0}, temporary = {0}, json = {0};
    char hash[17];
    int status = 0;
    str_printf(&path, "%s.info.json", prefix);
    str_printf(&temporary, "%s.tmp", path.data);
    snprintf(hash, sizeof(hash), "%016" PRIx64, p->tokenizer_hash);
    json_begin_object(&json);
    json_key(&json, "tokenizer_type");
    json_string(&json, p->tokenizer_type);
    json_key(&json, "vocab_size");
    json_integer(&json, p->vocab_size);
    json_key(&json, "tokenizer_hash");
    json_string(&json, hash);
    json_key(&json, "append_eod");
    json_bool(&json, p->append_eod);
    json_end_object(&json);
    str_puts(&json, "\n");
    FILE *f = fopen(temporary.data, "wb");
    bool bad = !f || fwrite(json.data, 1, json.length, f) != json.length;
    if (f && fclose(f)) bad = true;
    if (bad || rename(temporary.data, path.data)) {
        status = err_set(err, "%s: cannot write: %s", temporary.data, strerror(errno));
        unlink(temporary.data);
    }
    str_free(&json);
    str_free(&temporary);
    str_free(&path);
    return status;
}

bool provenance_read(const char *prefix, struct provenance *p) {
    struct str path = {0};
    struct err ignored;
    bool good = false;
    str_printf(&path, "%s.info.json", prefix);
    struct json *json = access(path.data, R_OK) ? NULL : json_parse_file(path.data, &ignored);
    str_free(&path);
    if (!json) return false;
    const struct json_node *root = json_root(json), *type = json_get(root, "tokenizer_type");
    const struct json_node *hash = json_get(root, "tokenizer_hash"), *vocab = json_get(root, "vocab_size");
    const struct json_node *eod = json_get(root, "append_eod");
    if (type && type->kind == JSON_STRING && hash && hash->kind == JSON_STRING && vocab &&
        vocab->kind == JSON_NUMBER) {
        snprintf(p->tokenizer_type, sizeof(p->tokenizer_type), "%s", type->string);
        p->vocab_size = vocab->integer;
        p->tokenizer_hash = strtoull(hash->string, NULL, 16);
        p->append_eod = eod && eod->kind == JSON_BOOL && eod->boolean;
        good = true;
    }
    json_free(json);
    return good;
}
