#pragma once
/* The part of saving that does not care where the numbers come from: checkpoint_save gathers them from the
 * run's tensors, checkpoint_tool converts them from a Hugging Face folder. */
#include "core/checkpoint/names.h"

enum checkpoint_slot { CHECKPOINT_MASTER, CHECKPOINT_EXP_AVG, CHECKPOINT_EXP_AVG_SQ, CHECKPOINT_SLOTS };
/* The entry's name with "", "exp_avg." or "exp_avg_sq." before it. */
enum { CHECKPOINT_MAX_SLOT_NAME = CHECKPOINT_MAX_NAME + 16 };
void checkpoint_slot_name(enum checkpoint_slot slot, const struct checkpoint_entry *entry,
                          char name[CHECKPOINT_MAX_SLOT_NAME]);

/* Gives disk rows [first, first + num_rows) of an entry, [num_rows, entry->dims[1]] floats: fills `staging`
 * and sets *rows_p to it, or sets *rows_p to the rows where they are. */
typedef int (*checkpoint_fill_fn)(void *context, const struct checkpoint_entry *entry,
                                  enum checkpoint_slot slot, int64_t first, int64_t num_rows, float *staging,
                                  const float **rows_p, struct err *err);

struct checkpoint_source {
    checkpoint_fill_fn fill;
    void *context;
    const struct checkpoint_entry *entries;
    int count;
    bool optimizer; /* the two other slots too */
    bool release;   /* imported weights: directory and tracker say "release" */
};

int checkpoint_write(const char *dir, const struct checkpoint_save_options *options,
                     const struct checkpoint_model *model, const struct checkpoint_source *source,
                     const struct checkpoint_state *state, const char *config_json, struct err *err);
