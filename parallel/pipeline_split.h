#pragma once
/* Which layers a (stage, chunk) of the pipeline holds. Megatron-LM's rules:
 *   even      layers / (stages * chunks) each, virtual stage order (chunk v of stage r is virtual stage v *
 * stages + r) uneven    --decoder-first-pipeline-num-layers, --decoder-last-pipeline-num-layers; the middle
 * is even account   --account-for-embedding-in-pipeline-split, --account-for-loss-...: they count as one
 * layer layout    --pipeline-model-parallel-layout "Et*3|(tt|)*29,m|L" Pure functions; the result always
 * covers layers 0 .. layers - 1 exactly once, in order (checked). */
#include "core/base/check.h"
#include <stdbool.h>
#include <stdio.h>

struct pipeline_chunk {
    int first_layer, num_layers; /* num_layers may be 0 */
    bool embedding, head; /* the chunk begins with the embedding, ends with norm, output layer and loss */
};

struct pipeline_split_options {
    int layers, stages, chunks;
    int first_layers, last_layers; /* of the first and the last stage; 0: not given */
    bool account_embedding, account_loss;
    const char *layout; /* NULL: not given */
};

/* Writes stages * chunks entries: out[chunk * stages + stage]. The message names the flags and the remedy. */
int pipeline_split(const struct pipeline_split_options *options, struct pipeline_chunk *out, struct err *err);
/* Number of `|`-separated stages of a layout string, or -1 with a message when it cannot be read. */
int pipeline_layout_stages(const char *layout, struct err *err);
