#pragma once
/* Private to recompute/: homes of tensors. */
#include "recompute/recompute.h"

/* Sets home and frame_offset of every tensor; returns the frame's bytes. */
size_t homes_choose(struct program *p, recompute_set selected);
/* Whether some selected module owns the op. */
bool homes_op_is_selected(const struct program *p, int op, recompute_set selected);
