/* Any text as a YAML file gives a config or one line that refuses it. In an input that starts with '+', two
 * bytes after each newline number the flag whose name is written in their place, so that values are reached
 * at once. */
#include "core/config/flag_table.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct config_module modules[] = {{"core_attn", true, NULL}, {"mlp", true, NULL}};

static void write_names(const uint8_t *data, size_t size, struct str *text) {
    for (size_t i = 0; i < size; i++) {
        if (i + 2 < size && (i == 0 || data[i] == '\n')) {
            int flag = (data[i + 1] * 256 + data[i + 2]) % CONFIG_FLAG_COUNT;
            str_printf(text, "\n%s: ", flag_rows[flag].field);
            i += 2;
        } else {
            str_append(text, (const char *)&data[i], 1);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct config cfg;
    struct err err = {""};
    struct str text = {0};
    if (size && data[0] == '+')
        write_names(data + 1, size - 1, &text);
    else if (size)
        str_append(&text, (const char *)data, size);
    config_init(&cfg);
    int status = config_load_yaml_text(&cfg, text.data ? text.data : "", text.length, "fuzz.yaml", &err);
    if (!status) status = config_validate(&cfg, modules, ARRAY_COUNT(modules), &err);
    CHECK(!status || err.text[0], "no message");
    config_free(&cfg);
    str_free(&text);
    return 0;
}
