#pragma once
/* Going through the checkpoints of a directory, the best first, until one can be used. */
#include "core/checkpoint/checkpoint.h"

/* A damaged checkpoint is a reason to try an older one; one that does not fit this run is not. The worst
 * outcome of all ranks counts. */
enum checkpoint_outcome { CHECKPOINT_USED, CHECKPOINT_DAMAGED, CHECKPOINT_UNFIT };
typedef enum checkpoint_outcome (*checkpoint_try_fn)(void *context, const char *path, struct err *err);

/* Collective, and so is fn, which returns the same on all ranks. The lowest rank says which checkpoint is
 * tried, and with `speak` in one line when it is not the tracker's. *found_p is false when there is none to
 * try. Returns 0 when one was used or none found. */
int checkpoint_try_places(struct comm *world, const char *dir, int64_t step, checkpoint_try_fn fn,
                          void *context, bool speak, bool *found_p, struct err *err);
int checkpoint_say_nothing_there(const char *dir, int64_t step, struct err *err); /* -1 */
