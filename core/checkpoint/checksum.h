#pragma once
/* The checksum of a tensor: the sum, mod 2^64, over its elements of a 64-bit mix of (number of the element on
 * disk, its 32 bits). A sum does not ask who adds what in which order, so ranks that each hold some elements
 * add up their parts; the number inside the mix makes exchanged elements show. Against damage, not against
 * adversaries. */
#include <stdint.h>

/* Of `count` elements, the first of which is number `first` of its tensor on disk. */
uint64_t checkpoint_checksum(const float *data, int64_t first, int64_t count);
