#include "recompute/recompute.h"
#include <string.h>

enum { NORMAL = 0, OUTPUT = 1, INTERNAL = 2 };

static const struct recompute_module_info module_infos[MODULE_COUNT] = {
#define MODULE(name, mode, help) {#name, help, ((mode)&OUTPUT) != 0, ((mode)&INTERNAL) != 0},
#include "recompute/modules.def"
#undef MODULE
};

const struct recompute_module_info *recompute_module_info(int module) {
    return &module_infos[module];
}

recompute_set recompute_save_find(const char *name) {
    static const char *const names[] = {"gemm", "attention", "communication"}; /* as enum op_class */
    for (int i = 0; i < 3; i++)
        if (!strcmp(names[i], name)) return RECOMPUTE_SAVE(1u << i);
    return 0;
}

int recompute_module_find(const char *name) {
    for (int i = 0; i < MODULE_COUNT; i++)
        if (!module_infos[i].is_internal && !strcmp(module_infos[i].name, name)) return i;
    return -1;
}
