#pragma once
/* Who started this process: mpirun, srun, or the user alone. Seen from the variables that launchers set, so
 * that a program started alone never touches MPI, and so that N tasks that would each train as "rank 0 of 1"
 * are refused instead (srun without PMI, or a binary without MPI, does that without a word).
 *
 * The decision is a pure function of the variables; `get` returns a variable's value or NULL. */
#include "core/base/check.h"
#include <stdbool.h>

struct launch {
    bool with_mpi;      /* open MPI */
    int tasks;          /* that the launcher says it started; 0 when it does not say */
    const char *source; /* the variable that says so */
};

typedef const char *(*launch_get_fn)(void *context, const char *name);

/* The process's own environment; the only place that reads it. */
const char *launch_environment(void *context, const char *name);
bool launch_has_mpi(void); /* this binary was built with MPI=1 */

/* -1 when the variables tell of several tasks that could not find each other. */
int launch_detect(launch_get_fn get, void *context, bool has_mpi, struct launch *launch, struct err *err);
/* After MPI was opened: -1 when it has one rank although the launcher started several. */
int launch_check_size(const struct launch *launch, int mpi_size, struct err *err);
