#pragma once
/* Rates of a machine, for predicted times: a roofline. A kernel takes the longer of its FLOPs over the rate
 * of its kind of arithmetic and its bytes over the bandwidth of its class, and a constant for being called.
 * FLOPs and bytes are what the kernels themselves count (struct kernel_cost).
 *
 * Profiles of accelerators are built in; a file has one "key: number" per line (YAML), keys as in
 * plan_hardware.def; `#` starts a comment. --measure-hardware writes such a file for the machine it runs on.
 *
 *     struct hardware hw;
 *     if (hardware_find("h100", &hw) && hardware_read("my_node.yaml", &hw, err)) return -1;
 *     double seconds = hardware_kernel_seconds(&hw, KERNEL_gemm, cost, calls, DTYPE_BF16, false);
 *
 * Plain data; nothing is owned. Reading can fail: a missing file, an unknown key, a number that is none. */
#include "core/base/check.h"
#include "kernels/kernels.h"
#include <stdbool.h>
#include <stdio.h>

struct hardware {
    char name[64];
#define REQUIRED(field, key, help) double field;
#define OPTIONAL(field, key, help) double field;
#include "core/plan_hardware.def"
#undef REQUIRED
#undef OPTIONAL
};

/* A built-in profile by name; -1 when there is none. */
int hardware_find(const char *name, struct hardware *out);
/* Name of the built-in profile `index`, NULL after the last. */
const char *hardware_name(int index);
/* A profile by name, or else the file of that path. */
int hardware_open(const char *name_or_path, struct hardware *out, struct err *err);
/* Parses the text of a file; `name` is used in messages and becomes the profile's name unless the text has
 * one. */
int hardware_parse(const char *text, const char *name, struct hardware *out, struct err *err);
/* Writes every field that is known, with its meaning as a comment. */
void hardware_write(const struct hardware *hw, FILE *out);

/* Seconds of `calls` calls of a kernel that cost so much together. */
double hardware_kernel_seconds(const struct hardware *hw, enum kernel_id id, struct kernel_cost cost,
                               double calls, enum dtype dtype, bool dropout);
/* Seconds of a message of so many bytes in a group that spans so many consecutive ranks. */
double hardware_message_seconds(const struct hardware *hw, double bytes, double calls, int64_t span);
/* What MFU is a share of. */
static inline double hardware_peak(const struct hardware *hw, enum dtype dtype) {
    return dtype == DTYPE_F32 ? hw->peak_fp32 : hw->peak_bf16;
}
