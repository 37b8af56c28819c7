#pragma once
/* Private to core/model/ops. */
#include "core/model/model.h"

/* Dropout over attention probabilities [b, a, s, s]. */
int op_add_attention_dropout(struct program *p, const struct model *m, int x);
