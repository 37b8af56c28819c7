#pragma once
/* Weight decay as a pure function of consumed samples (Megatron-LM's definition): from `start` to `end` over
 * `incr_samples` (train_iters * global batch size, or train_samples), `end` afterwards. With r = n /
 * incr_samples: linear r, cosine (1 + cos(pi (1 - r))) / 2. Which parameters decay at all is the optimizer's
 * business. */
#include "core/base/check.h"

enum wd_incr_style { WD_CONSTANT, WD_LINEAR, WD_COSINE };

struct wd_schedule {
    double start, end; /* equal when constant */
    double incr_samples;
    enum wd_incr_style style;
};

/* 0 <= start <= end, and start == end when constant. */
int wd_schedule_check(const struct wd_schedule *s, struct err *err);
double wd_schedule_at(const struct wd_schedule *s, double consumed_samples);
/* "linear" -> WD_LINEAR ..., -1 when there is no such style. */
int wd_incr_style_parse(const char *name);
