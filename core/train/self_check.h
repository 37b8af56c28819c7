#pragma once
/* --self-check: does this layout compute what one rank computes? A small copy of the user's model (same
 * switches, few layers, narrow, fp32) is trained for a few steps twice: by all ranks with the user's layout,
 * recompute setting, schedule, sharding, overlap and kernels, and by each rank alone with the plain kernels
 * (double sums), the plain loss and nothing recomputed. Both are ordinary trainers and both run step_run:
 * what is checked is the code that trains. Data are the mock corpus with a padding token, so that
 * micro-batches have different numbers of tokens that count. After each step loss, gradient norm and every
 * element of every gradient that a rank holds are compared; after the last one also the weights.
 *
 * Relative error of a parameter: largest |difference| over all ranks / largest |reference|; parameters whose
 * reference is smaller than SELF_CHECK_FLOOR of the largest one in the model are measured by that, because a
 * gradient that is zero in theory (the bias of a key) holds nothing but rounding.
 *
 * Everything is collective and lies in host memory owned by the struct, which must not move after
 * self_check_open. What can fail: what trainer_open reports.
 *
 *     int status = self_check_run(&cfg, &ranks, stdout, &err);      // exit status of the program */
#include "core/train/trainer.h"

#define SELF_CHECK_FLOOR 1e-2

/* The two small configurations. They share strings with the user's, which outlives them. */
struct self_check_configs {
    struct config layout, reference;
    struct config_batch_stage batch;
    int64_t *recompute_numbers; /* of --recompute-num-layers-per-stage or --recompute-layer-ids */
    char *layer_pattern;        /* which layers have experts */
};
/* Pure, and cannot fail: `cfg` has passed config_validate. */
void self_check_shrink(const struct config *cfg, struct self_check_configs *out);
/* Whether the copy has no --moe-expert-capacity-factor though the user's model has one: a rank limits its own
 * tokens, so ranks that split sequences rightly drop other tokens than one rank does. */
bool self_check_lifts_capacity(const struct config *cfg);
/* Whether it has aux_loss for global_aux_loss: the micro-batches so far are other ones on several ranks. */
bool self_check_replaces_balance(const struct config *cfg);
void self_check_free_configs(struct self_check_configs *configs);

/* One parameter of the whole model. */
struct self_check_entry {
    const char *name;     /* the reference plan's */
    double difference;    /* largest over the ranks; infinite when one of the two values is not finite */
    double magnitude;     /* largest |reference| */
    double relative;      /* their quotient, or that with the floor */
    double missing;       /* elements that no rank counts as its own, or (negative) too many do */
    double largest_error; /* relative, over all steps */
};

enum self_check_tensor { SELF_CHECK_GRADIENTS, SELF_CHECK_WEIGHTS };
/* Collective over `world` (NULL: this rank alone). `entries` has one element per parameter of the reference
 * plan, which holds all of them; returns the index of the worst. */
int self_check_compare(const struct executor *layout, const struct executor *reference, struct comm *world,
                       enum self_check_tensor what, struct self_check_entry *entries);

struct self_check {
    const struct ranks *ranks;
    struct self_check_configs configs;
    struct trainer layout, reference;
    struct self_check_entry *entries, *weights; /* [num_entries] */
    int num_entries, step;
    double tolerance; /* of every relative error */
    /* the largest so far */
    double loss, grad_norm;
    bool failed;
};

int self_check_open(struct self_check *s, const struct config *cfg, const struct ranks *ranks,
                    struct err *err);
void self_check_close(struct self_check *s);
/* One step of both trainers; gradients stay in their arenas. */
int self_check_train(struct self_check *s, struct step_result *layout_p, struct step_result *reference_p,
                     struct err *err);
/* Compares gradients and what the steps returned, notes the largest errors and whether one is beyond the
 * tolerance; prints one line on rank 0. */
void self_check_judge(struct self_check *s, const struct step_result *layout,
                      const struct step_result *reference, FILE *out);
/* Opens, checks initial weights, runs --self-check-steps, prints the table and the verdict. */
int self_check_run(const struct config *cfg, const struct ranks *ranks, FILE *out, struct err *err);
