#pragma once
/* Loss scaling for fp16: the loss is multiplied by `scale` before backward and gradients are divided by it
 * before the step. Plain data: copy `struct loss_scale` to save and restore it (a checkpoint must hold all
 * of it).
 *
 * Dynamic scale, Megatron-LM's rule: after `growth_interval` good steps in a row the scale doubles and the
 * hysteresis counter is refilled; a step with Inf or NaN gradients is skipped, sets the growth counter to
 * zero and takes one from the hysteresis counter; while that counter is zero or less, each such step halves
 * the scale, down to `min_scale`. The scale never grows past 2^127, the largest power of two of float32.
 *
 *     if (loss_scale_update(&scale, found_inf)) continue;      // skip the optimizer step */
#include "core/base/check.h"
#include <stdbool.h>
#include <stdint.h>

struct loss_scale {
    double scale; /* 1 for bf16 and fp32 */
    bool dynamic;
    double min_scale;
    int64_t growth_interval, hysteresis;        /* settings */
    int64_t growth_counter, hysteresis_counter; /* state */
};

/* Static: --loss-scale. No skipping, no change. */
int loss_scale_init_static(struct loss_scale *s, double scale, struct err *err);
/* Dynamic: --initial-loss-scale, --min-loss-scale, --loss-scale-window, --hysteresis. */
int loss_scale_init_dynamic(struct loss_scale *s, double initial, double minimum, int64_t window,
                            int64_t hysteresis, struct err *err);
/* Takes note of a finished backward pass; true when the optimizer step must be skipped. */
bool loss_scale_update(struct loss_scale *s, bool found_inf);
