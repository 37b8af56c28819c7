#pragma once
/* struct checkpoint_model and struct checkpoint_state as JSON objects of the manifest, from one table of
 * fields each. Unknown members are let pass, so that a later version may add some; a member that is missing
 * or of the wrong kind is an error that names it. `where` is the manifest's path. */
#include "core/base/json.h"
#include "core/checkpoint/checkpoint.h"

void checkpoint_write_model(struct str *out, const struct checkpoint_model *model);
void checkpoint_write_state(struct str *out, const struct checkpoint_state *state);
int checkpoint_read_model(const struct json_node *node, const char *where, struct checkpoint_model *model_p,
                          struct err *err);
int checkpoint_read_state(const struct json_node *node, const char *where, struct checkpoint_state *state_p,
                          struct err *err);

/* Sizes positive and bounded so that their products fit int64_t, heads divisible by groups. */
int checkpoint_check_model(const struct checkpoint_model *model, const char *where, struct err *err);
/* Whether weights of `saved` can serve a run that asks for `wanted`: an error names the flag that changes a
 * shape; a trait that changes the meaning only is logged as a warning. */
int checkpoint_compare_models(const struct checkpoint_model *saved, const struct checkpoint_model *wanted,
                              const char *where, struct err *err);
/* One "name value" line per field. */
void checkpoint_describe_model(struct str *out, const struct checkpoint_model *model);
void checkpoint_describe_state(struct str *out, const struct checkpoint_state *state);
/* "gelu", "gelu_tanh", "silu", ... */
const char *checkpoint_activation_name(enum checkpoint_activation activation);
