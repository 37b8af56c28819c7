#include "recompute/recompute.h"
#include <string.h>

enum { NORMAL = 0, OUTPUT = 1 };

static const struct recompute_module_info module_infos[MODULE_COUNT] = {
#define MODULE(name, mode, help) {#name, help, mode},
#include "recompute/modules.def"
#undef MODULE
};

const struct recompute_module_info *recompute_module_info(int module) {
    return &module_infos[module];
}

int recompute_module_find(const char *name) {
    for (int i = 0; i < MODULE_COUNT; i++)
        if (i != MODULE_layer && !strcmp(module_infos[i].name, name)) return i;
    return -1;
}
