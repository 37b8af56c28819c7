#pragma once
/* Training, validation and test data, in Megatron-LM's order for the same seed: GPTDataset over indexed
 * files, BlendedDataset over several of them, MockGPTDataset. docs/data.md states the algorithm and what
 * differs.
 *
 * datasets_open computes all indices in memory; afterwards a dataset is read-only, may be read from several
 * threads, and reading allocates nothing. Sample k is a function of the files, the options and k alone.
 * Errors (missing or corrupt files, a split that has no sequences but must give samples) name file and split.
 *
 *     struct data_options options;
 *     if (data_options_from_config(config, tokenizer, &options, err)) return -1;
 *     if (datasets_open(&options, &sets, err)) return -1;
 *     if (sets->split[DATA_VALID]) ...                      // NULL: this split has no data, by the flags
 *     dataset_sample(sets->split[DATA_TRAIN], k, tokens, err);        // tokens: int32 [seq_length + 1]
 *     datasets_close(sets); */
#include "core/base/check.h"
#include "core/base/str.h"
#include <stdbool.h>
#include <stdint.h>

enum data_split { DATA_TRAIN, DATA_VALID, DATA_TEST, DATA_SPLITS };
const char *data_split_name(enum data_split split); /* "train", "valid", "test" */

struct data_words {
    const char *const *words;
    int count;
};

struct data_options {
    bool mock;                                 /* --mock-data; paths are ignored */
    struct data_words data_path;               /* --data-path: one blend for all splits */
    struct data_words split_path[DATA_SPLITS]; /* --train-data-path ...: one blend per split */
    const char *path_file;                     /* --data-args-path: a file with the words of data_path */
    const char *split_path_file;               /* --per-split-data-args-path: JSON with those of split_path */
    const char *split;                         /* --split; NULL is "969, 30, 1" ("1,1,1" for mock data) */
    int64_t seq_length;
    int64_t seed;                     /* --seed, 0 .. 2^32 - 1 */
    int64_t num_samples[DATA_SPLITS]; /* demanded; 0: split not wanted; -1: exactly one epoch */
    double mid_level_surplus;         /* --mid-level-dataset-surplus */
    int64_t vocab_size;               /* ids must lie in [0, vocab_size); 0: not checked */
    uint64_t tokenizer_hash;          /* tokenizer_hash(); 0: not compared with that of the data */
    int64_t mock_vocab_size;          /* the tokenizer's own (unpadded) size, for mock data; 0: vocab_size */
    int64_t eod_id;                   /* -1: none (mock data needs one) */
    int64_t pad_id;                   /* -1: none */
    bool reset_position_ids, eod_mask_loss;
    bool no_mmap; /* --no-mmap-bin-files */
};

struct dataset;
struct datasets {
    struct dataset *split[DATA_SPLITS]; /* NULL where a split has no data or is not wanted */
    struct data_options options;        /* the paths are the caller's and not kept */
    void *files;                        /* private */
};

int datasets_open(const struct data_options *options, struct datasets **sets_p, struct err *err);
void datasets_close(struct datasets *sets); /* NULL is fine */
/* One line per split: samples, sequences, epochs, tokens, weights. */
void datasets_describe(const struct datasets *sets, struct str *out);

/* Samples that the dataset holds: at least the number demanded. */
int64_t dataset_length(const struct dataset *dataset);
/* Tokens of sample k, 0 <= k < length: seq_length + 1 of them. Each is checked against the vocabulary; an
 * error names file, document, offset in it, and the id. A padding token is returned as it is. */
int dataset_sample(const struct dataset *dataset, int64_t k, int32_t *tokens, struct err *err);
const struct data_options *dataset_options(const struct dataset *dataset);
/* Where sample k comes from: the file prefix ("mock" for mock data) and its sample number there. */
const char *dataset_origin(const struct dataset *dataset, int64_t k, int64_t *sample_p);
