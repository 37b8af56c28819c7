#pragma once
/* A fixed team of threads for data-parallel loops. The caller takes part as thread 0; workers spin for a
 * short while and then sleep, so back-to-back loops start without a system call. A loop is cut into chunks
 * that depend only on its size and grain, never on the number of threads: code that reduces must reduce per
 * chunk and combine the chunks in order, and then gives the same bits with any number of threads.
 *
 *     static void body(void *context, int64_t begin, int64_t end, int thread) { ... }
 *     threads_for(team, rows, 64, body, &args);     // chunks [0,64), [64,128), ... taken by whoever is free
 *
 * Not reentrant: one loop at a time per team, no loop inside a loop. The body must not fail. */
#include <stdint.h>

struct threads;
typedef void (*threads_fn)(void *context, int64_t begin, int64_t end, int thread);

/* count 0 means one thread per processor that this process may run on. Ends the job when threads cannot
 * start. */
struct threads *threads_open(int count);
void threads_close(struct threads *team); /* NULL is fine */
int threads_count(const struct threads *team);
/* Processors that this process may run on; *set_p is the same for processes that may run on the same ones. */
int threads_processors(uint64_t *set_p);
/* Runs fn over [0, size) in chunks of `grain` (the last may be shorter). A NULL team runs in the caller
 * alone. */
void threads_for(struct threads *team, int64_t size, int64_t grain, threads_fn fn, void *context);
