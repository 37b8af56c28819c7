#pragma once
/* Which instruction of a list needs which tensor and which gradient in its place: what places in the work
 * area follow from, and what a picture of memory shows. Pure functions of a program and its lists. */
#include "core/tensor/program.h"

/* Whether the instruction reads or writes tensor t where it is. */
bool lives_touches(const struct program *p, const struct instr *in, int t);
/* Whether it reads or writes the gradient of tensor t where that is. */
bool lives_touches_grad(const struct program *p, const struct instr *in, int t);
