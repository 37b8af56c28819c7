#pragma once
/* A recompute plan as a file: which layers recompute which modules. YAML, one stretch of layers per line:
 *
 *     num_layers: 12
 *     layers:
 *       0-3: layer                   # each layer recomputed as a whole
 *       4-6: group                   # these three as one: only the input of the first is kept
 *       7-10: core_attn layernorm    # these modules
 *       11: none
 *
 * The stretches cover all layers, rising. The names are those of --recompute-modules. Reading can fail: the
 * message says line and remedy. Groups belong to the caller (mem_free). */
#include "core/base/str.h"
#include "recompute/policy.h"

void recompute_planned_write(const struct recompute_group *groups, int count, struct str *out);
/* Stretches of equal neighbours, as the file has them: "0-3: layer, 4-11: none". */
void recompute_planned_describe(const struct recompute_group *groups, int count, int first_layer,
                                struct str *out);
int recompute_planned_parse(const char *text, const char *name, int num_layers,
                            struct recompute_group **groups_p, int *count_p, struct err *err);
int recompute_planned_read(const char *path, int num_layers, struct recompute_group **groups_p, int *count_p,
                           struct err *err);
