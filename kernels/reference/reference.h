#pragma once
/* The judge: every kernel in plain loops, summed in double precision, in the caller's thread, without
 * workspace. Written for reading; the fast backends are compared with it. */
#include "kernels/kernels.h"

#define KERNEL(name) void reference_##name(const struct stream *stream, const struct name##_args *args);
#include "kernels/kernels.def"
#undef KERNEL
