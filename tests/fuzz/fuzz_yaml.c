/* Any text as a YAML file gives a config or one line that refuses it. */
#include "core/config/flag_table.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct config_module modules[] = {{"core_attn", true, NULL}, {"mlp", true, NULL}};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct config cfg;
    struct err err = {""};
    config_init(&cfg);
    int status = config_load_yaml_text(&cfg, (const char *)data, size, "fuzz.yaml", &err);
    if (!status) status = config_validate(&cfg, modules, ARRAY_COUNT(modules), &err);
    CHECK(!status || err.text[0], "no message");
    config_free(&cfg);
    return 0;
}
