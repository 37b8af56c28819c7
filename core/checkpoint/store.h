#pragma once
/* The directory that holds checkpoints: durable files, atomic replacement, the tracker, and the order in
 * which checkpoints are tried.
 *
 *     iter_0000020, release       complete checkpoints
 *     .saving-iter_0000020        being written, or left by a killed run: removed at the next save
 *     .removing-iter_0000010      being deleted, or left by a killed run: removed at the next save
 *     .replaced-iter_0000020      old one of the same iteration while a new one takes its place; only where
 * the file system cannot swap two names; still counts while the new one is missing
 *
 * Every function returns 0, or -1 with a message, unless it says otherwise. */
#include "core/base/check.h"
#include "core/base/str.h"
#include <stdbool.h>
#include <stdint.h>

#define CHECKPOINT_TRACKER  "latest_checkpointed_iteration.txt"
#define CHECKPOINT_MANIFEST "manifest.json"
#define CHECKPOINT_CONFIG   "resolved_config.json"

enum { CHECKPOINT_RELEASE = -1 }; /* in place of an iteration */

struct checkpoint_place {
    int64_t iteration; /* or CHECKPOINT_RELEASE */
    char name[48];     /* inside the directory */
};

/* What is in a directory, in the order in which loading tries it: the tracker's first, then the newest. */
struct checkpoint_list {
    struct checkpoint_place *places; /* owned */
    int count, capacity;
    char tracker_fault[256]; /* why places[0] is not the tracker's; "" when it is */
};
/* A directory that does not exist is an empty one. */
int checkpoint_list_open(const char *dir, struct checkpoint_list *list_p, struct err *err);
void checkpoint_list_free(struct checkpoint_list *list);

/* "iter_0000020" or "release". */
void checkpoint_place_name(int64_t iteration, char name[48]);
/* The tracker's iteration, CHECKPOINT_RELEASE, or -2 when there is no readable one. */
int64_t checkpoint_tracker_read(const char *dir);

/* Makes a directory and its parents, durably; fine when it is there. */
int checkpoint_make_dirs(const char *path, struct err *err);
/* Makes `dir`, puts back what a kill left half-replaced, removes other leftovers. */
int checkpoint_store_prepare(const char *dir, struct err *err);
int checkpoint_store_need_space(const char *dir, uint64_t bytes, struct err *err);
/* <dir>/.saving-NAME, in place of what *path held. */
void checkpoint_store_path(const char *dir, int64_t iteration, struct str *path);
/* Makes it, empty. */
int checkpoint_store_begin(const char *dir, int64_t iteration, struct err *err);
/* Syncs it, gives it its name, replaces the tracker. After this the checkpoint is in force. */
int checkpoint_store_commit(const char *dir, int64_t iteration, struct err *err);
/* Removes <dir>/.saving-NAME. */
void checkpoint_store_abort(const char *dir, int64_t iteration);
/* Deletes a complete checkpoint so that a kill leaves no half of it. */
int checkpoint_store_remove(const char *dir, int64_t iteration, struct err *err);

/* Writes and syncs one small file. */
int checkpoint_write_file(const char *dir, const char *name, const char *data, size_t length,
                          struct err *err);
int checkpoint_read_file(const char *dir, const char *name, struct str *out, struct err *err);
