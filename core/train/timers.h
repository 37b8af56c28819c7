#pragma once
/* The monotonic clock, and Megatron-LM's table of named timers.
 *
 * A timer has a level; one above --timing-log-level is a no-op (its id is -1, which every function accepts).
 * Level 0 is interval-time, eval-time, save-checkpoint, ...; level 1 forward-backward, optimizer, ...; level
 * 2 batch-generator, forward-compute, .... Reports have Megatron-LM's format and print the timers in the
 * order in which they were added; a timer without time is left out, nothing is printed when none remains.
 *
 *     (min, max) time across ranks (ms):
 *         forward-backward ...............................: (812.33, 812.33)
 *
 * With more than one rank the caller gathers timers_take of every rank and calls timers_report_ranks. No
 * allocation after timers_open; not thread safe. */
#include "core/base/check.h"
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

uint64_t clock_now_ns(void); /* CLOCK_MONOTONIC */
double clock_seconds_since(uint64_t start_ns);
/* --exit-duration-in-mins: true once `minutes` have passed since start_ns; never when minutes is 0. */
bool clock_minutes_passed(uint64_t start_ns, double minutes);

enum timers_option { TIMERS_MAX, TIMERS_MINMAX, TIMERS_ALL };
enum { TIMERS_CAPACITY = 64 };

struct timers;
struct timers *timers_open(int log_level, enum timers_option option);
void timers_close(struct timers *t); /* NULL is fine */
/* `name` must live as long as the table. Returns the id, or -1 when level > log_level. */
int timers_add(struct timers *t, const char *name, int level);
int timers_count(const struct timers *t);
const char *timers_name(const struct timers *t, int id);
void timers_start(struct timers *t, int id);
void timers_stop(struct timers *t, int id);
/* Adds time measured elsewhere. */
void timers_add_seconds(struct timers *t, int id, double seconds);
double timers_elapsed(const struct timers *t, int id); /* seconds so far; 0 for id -1 */
/* Copies the accumulated milliseconds / normalizer of every timer to out[timers_count] and sets them to
 * zero. */
void timers_take(struct timers *t, double normalizer, double *out);
/* Prints the report of `ranks` rows of timers_count milliseconds each: row r is rank r. */
void timers_report_ranks(const struct timers *t, const double *milliseconds, int ranks, FILE *out);
/* timers_take and timers_report_ranks for a single rank. */
void timers_report(struct timers *t, double normalizer, FILE *out);
/* "minmax" -> TIMERS_MINMAX ..., -1 when there is no such option. */
int timers_option_parse(const char *name);
