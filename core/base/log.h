#pragma once
/* Log lines go to stderr, lower case, one line each; stdout carries only what the contract with the user
 * states (the iteration line, reports, plans). With more than one rank a line starts with "[rank N] ". The
 * level is set once. */

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };

void log_set_level(enum log_level level);
/* world_size 1 prints no prefix. Lines below LOG_WARN are printed by rank 0 only. */
void log_set_rank(int rank, int world_size);
void log_line(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_line(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_line(LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_DEBUG, __VA_ARGS__)
