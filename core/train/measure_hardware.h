#pragma once
/* --measure-hardware: runs the kernels that training is made of on tensors of training's sizes and notes the
 * rates that they attain: matrix products in the three uses of a linear layer, attention forward and
 * backward, and for each class of memory-bound kernels the bytes per second. Least time of several repeats;
 * about ten seconds and 1.6 GiB. Links between ranks are not measured: one rank runs alone. */
#include "core/config/config.h"
#include "core/plan_hardware.h"

/* Errors are the user's: --kernels that this processor does not have. Progress and results go to `out`. */
int hardware_measure(const struct config *cfg, struct hardware *out_hw, FILE *out, struct err *err);
