#pragma once
/* The ranks of a run: the world that the launcher started, this rank's place in the mesh, and the groups that
 * training talks to. Opened once by main, before flags are read (the world) and after they were validated
 * (the groups); everything is collective.
 *
 *     struct ranks ranks;
 *     if (ranks_open(&ranks, err)) ...exit 2...
 *     ... parse and validate flags ...
 *     if (ranks_open_groups(&ranks, &cfg, err)) ...exit 2...
 *     ranks_close(&ranks); */
#include "core/config/config.h"
#include "core/train/executor.h"
#include "parallel/mesh.h"

struct ranks {
    struct comm_world *world;
    int rank, size;
    struct mesh mesh;
    struct executor_comms comms;
};

/* The mesh of a configuration as rank `rank` sees it; pure. */
int ranks_mesh(const struct config *cfg, int rank, struct mesh *mesh, struct err *err);

int ranks_open(struct ranks *r, struct err *err);
int ranks_open_groups(struct ranks *r, const struct config *cfg, struct err *err);
void ranks_close(struct ranks *r);

/* Collective: `status` is 0 or -1 with `err` on each rank; when any rank failed, all return -1 with the
 * message of the lowest one that did. With one rank (or `r` NULL) it returns status. */
int ranks_agree(const struct ranks *r, int status, struct err *err);
/* Collective: threads for this rank when the user does not say: its share of the processors that it may run
 * on. Ranks that a launcher bound to processors of their own have all of those; others divide them, one
 * thread at least. With one rank (or `r` NULL) 0: one per processor. */
int ranks_threads(const struct ranks *r);
/* Collective: the largest value of any rank. */
double ranks_max(const struct ranks *r, double value);
