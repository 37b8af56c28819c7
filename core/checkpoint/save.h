#pragma once
/* A save in its phases, for whoever has the numbers: checkpoint_save takes them from the run's tensors, a
 * background save from a copy of those, checkpoint_tool from a Hugging Face folder, tests from many ranks in
 * one process.
 *
 *     checkpoint_job_open      plans: a pure function of the arguments, the same on every rank
 *     checkpoint_job_create    first rank: directory, files at their full length, headers
 *     checkpoint_job_write     every rank: its own elements, synced (or attach, put, detach)
 *       items[i].checksum and .written are added up over the ranks
 *     checkpoint_job_commit    first rank: configuration, manifest, rename, tracker, retirement
 *     checkpoint_job_abort     after an error in any phase, when all have stopped writing
 *     checkpoint_job_close
 *
 * The job owns copies of all it was given, but not the tensors. Only what says so is collective. */
#include "core/checkpoint/names.h"
#include "core/checkpoint/safetensors.h"

enum checkpoint_slot { CHECKPOINT_MASTER, CHECKPOINT_EXP_AVG, CHECKPOINT_EXP_AVG_SQ, CHECKPOINT_SLOTS };
/* The entry's name with "", "exp_avg." or "exp_avg_sq." before it. */
enum { CHECKPOINT_MAX_SLOT_NAME = CHECKPOINT_MAX_NAME + 16 };
void checkpoint_slot_name(enum checkpoint_slot slot, const struct checkpoint_entry *entry,
                          char name[CHECKPOINT_MAX_SLOT_NAME]);

/* One tensor on disk. */
struct checkpoint_item {
    const struct checkpoint_entry *entry;
    enum checkpoint_slot slot;
    int file, number;           /* in the file's layout */
    uint64_t checksum, written; /* of the elements that this rank wrote; later of all */
};

struct checkpoint_output {
    char name[64];
    struct safetensors_layout layout;
    uint64_t header_hash;
};

struct checkpoint_job {
    struct str dir, path, config_json; /* path: of the hidden directory */
    int64_t iteration;                 /* or CHECKPOINT_RELEASE */
    int64_t previous, retain_interval;
    struct checkpoint_model model;
    struct checkpoint_state state;
    struct checkpoint_entry *entries;
    int num_entries;
    struct checkpoint_item *items;
    int num_items;
    struct checkpoint_output *outputs;
    int num_outputs;
    bool optimizer;     /* the two other slots too */
    size_t num_staging; /* floats that one block needs */
};

/* The entries on disk of a list of tensors; entry.tensor is the number in the list. NULL on error; the caller
 * owns it: mem_free. */
struct checkpoint_entry *checkpoint_entries_of_all(const struct checkpoint_model *model,
                                                   const struct checkpoint_shape *all, int num_all,
                                                   int *count_p, struct err *err);

struct checkpoint_job_request {
    const char *dir, *config_json;
    const struct checkpoint_save_options *options;
    const struct checkpoint_model *model;
    const struct checkpoint_state *state;
    struct checkpoint_entry *entries; /* becomes the job's */
    int num_entries;
    bool optimizer;
    bool release; /* imported weights: directory and tracker say "release" */
};
void checkpoint_job_open(struct checkpoint_job *job, const struct checkpoint_job_request *request);
void checkpoint_job_close(struct checkpoint_job *job);
int checkpoint_job_create(struct checkpoint_job *job, struct err *err);
int checkpoint_job_commit(struct checkpoint_job *job, struct err *err);
/* Removes what was written. */
void checkpoint_job_abort(const struct checkpoint_job *job);

/* Writes the tensors that say so. owner[i] is the number in `all` of tensors[i]. */
int checkpoint_job_write(struct checkpoint_job *job, const struct checkpoint_tensor *tensors,
                         const int *owner, int count, struct err *err);
/* Whether every element was written once, after adding up. */
bool checkpoint_job_is_complete(const struct checkpoint_job *job, struct err *err);

/* One file, for writing into it; NULL on error. Close it with safetensors_writer_close, which syncs. */
struct safetensors_writer *checkpoint_job_attach(const struct checkpoint_job *job, int file, struct err *err);
/* `count` elements of item number `item`, the first of which is number `first` on disk. */
int checkpoint_job_put(struct checkpoint_job *job, struct safetensors_writer *writer, int item, int64_t first,
                       const float *data, int64_t count, struct err *err);

/* The list of one rank that holds everything. Mem_free it. */
struct checkpoint_shape *checkpoint_shapes_of(const struct checkpoint_tensor *tensors, int count);
/* Collective: whether any rank's tensors have optimizer state. */
bool checkpoint_have_optimizer(struct comm *world, const struct checkpoint_tensor *tensors, int count);
/* Number in `all` of each tensor, by name; shapes must agree. Mem_free it. */
int *checkpoint_find_owners(const struct checkpoint_shape *all, int num_all,
                            const struct checkpoint_tensor *tensors, int count);

/* A save of many ranks around the part that each does alone. begin and end are collective. */
struct checkpoint_saving {
    struct comm *world;
    struct checkpoint_job job;
    int *owner; /* of the tensors given to begin */
};
int checkpoint_saving_begin(struct checkpoint_saving *saving, const char *dir,
                            const struct checkpoint_save_options *options,
                            const struct checkpoint_model *model, const struct checkpoint_tensor *tensors,
                            int count, const struct checkpoint_state *state, const char *config_json,
                            struct err *err);
/* `status` and the message in *err are this rank's from checkpoint_job_write. Puts the checkpoint in force,
 * or removes it, and frees what begin made. */
int checkpoint_saving_end(struct checkpoint_saving *saving, int status, struct err *err);
