#pragma once
/* --exit-signal-handler: a signal becomes a flag that is polled between steps (train, evaluation, set-up), so
 * that the run saves and leaves in order. The ranks must agree on it collectively before they act. The only
 * state is the flag that a signal handler needs; handlers may be installed for several signals.
 *
 *     if (signals_install(signals_number("SIGTERM"), err)) return -1;
 *     ... if (signals_received()) save_and_leave(); */
#include "core/base/check.h"

/* "SIGTERM" -> 15 ...; -1 when this system has no such signal. */
int signals_number(const char *name);
const char *signals_name(int number); /* "SIGTERM"; "signal" when unknown */
/* Fails for SIGKILL and SIGSTOP, which no program can handle. */
int signals_install(int number, struct err *err);
int signals_received(void); /* number of the last signal caught, 0 when none */
void signals_remove(void);  /* restores what was there before, and clears the flag */
