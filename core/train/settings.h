#pragma once
/* The recompute settings that a table compares: nothing, selective sets, block, uniform, and (by the caller)
 * auto. Those that the model lacks are left out. */
#include "core/config/config.h"
#include "core/plan.h"

enum { SETTINGS_MAX = 16, SETTING_FLAGS_BYTES = 160 };

struct recompute_setting {
    char flags[SETTING_FLAGS_BYTES]; /* as on the command line, without --recompute-granularity: "selective
                                        mlp" */
    struct recompute_policy policy;
};
/* `layers`: of the largest chunk. Returns how many. */
int settings_list(const struct model *m, int layers, struct recompute_setting settings[SETTINGS_MAX]);

/* The user's flags with a recompute setting instead of theirs (`budget`, if not 0: auto within it), and
 * without anything that a run reads from earlier ones or leaves behind. Points into `cfg` and into itself. */
struct setting_config {
    struct config cfg;
    const char *modules[MODULE_COUNT];
};
void setting_configure(const struct config *cfg, const struct recompute_policy *policy, size_t budget,
                       struct setting_config *out);
