#pragma once
/* checkpoint_tool's work; cmd/checkpoint_tool.c only prints the error. `argv` is the command line without the
 * program's name. Reports go to `out`. Returns an exit status (core/base/check.h) with err set when it is not
 * STATUS_OK: STATUS_USAGE when the command line or the folder it names is wrong, STATUS_FAILED when the work
 * could not be done or found damage. */
#include "core/base/check.h"
#include <stdio.h>

int checkpoint_tool_run(int argc, char **argv, FILE *out, struct err *err);
