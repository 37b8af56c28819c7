#pragma once
/* Which layers a (stage, chunk) of the pipeline holds. Pure functions; the result always covers layers
 * 0 .. layers - 1 exactly once, in order (checked). Chunk v of stage r is virtual stage v * stages + r, and
 * layers go to virtual stages in their order. The rules are Megatron-LM's:
 *
 * - even: layers / (stages * chunks) for each virtual stage;
 *
 * - uneven: --decoder-first-pipeline-num-layers and --decoder-last-pipeline-num-layers layers for the first
 *   and the last stage, in equal parts over their chunks; what is left is even over the stages between;
 *
 * - accounted: --account-for-embedding-in-pipeline-split and --account-for-loss-in-pipeline-split count the
 *   embedding and the loss as a layer each, so that the first and the last virtual stage have one layer less;
 *
 * - layout: --pipeline-model-parallel-layout "Et*3|(tt|)*29,t|L" lists the virtual stages: E embedding, t
 *   layer, m layer of multi-token prediction (before L, on its stage), L head and loss, `|` between stages,
 * x*n and (..)*n repeat (no parentheses inside parentheses), commas and spaces are for the eye. A stage may
 * be empty.
 *
 *     struct pipeline_split_options o = {.layers = 8, .stages = 2, .chunks = 2};
 *     struct pipeline_chunk chunks[4];       // {0,2} {2,2} {4,2} {6,2}: stage 0 holds 0 1 4 5
 *     if (pipeline_split(&o, chunks, err)) ...exit 2... */
#include "core/base/check.h"
#include <stdbool.h>

struct pipeline_chunk {
    int first_layer, num_layers; /* num_layers may be 0 */
    bool embedding, head; /* the chunk begins with the embedding, ends with norm, output layer and loss */
};

struct pipeline_split_options {
    int layers, stages, chunks;
    int first_layers, last_layers; /* of the first and the last stage; 0: not given */
    bool account_embedding, account_loss;
    const char *layout; /* NULL: not given */
    int mtp_layers;     /* of multi-token prediction, behind the head */
};

/* Writes stages * chunks entries: out[chunk * stages + stage]. The message names the flags and the remedy. */
int pipeline_split(const struct pipeline_split_options *options, struct pipeline_chunk *out, struct err *err);
/* Number of `|`-separated stages of a layout string, or -1 with a message when it cannot be read. */
int pipeline_layout_stages(const char *layout, struct err *err);
