#pragma once
/* --recompute-granularity auto: chooses for every layer which modules are recomputed, so that each pipeline
 * stage stays within a budget of bytes and takes the least predicted time. A pure function of the requests.
 *
 * Options are compiled once per kind of layer: every set of the modules that the layer has, the whole layer,
 * groups of layers. recompute/solve.h finds the best trades of each stage; their peaks are then computed as
 * plan_build computes them, from the fastest on, and the first that fits is taken. Plain settings of full and
 * selective are among the candidates, so the choice is never slower than the best of those. The candidates do
 * not depend on the budget, so a larger one never gives a slower choice.
 *
 *     struct plan_auto chosen;
 *     if (plan_auto_choose(requests, stages, budget, &chosen, err)) return -1;
 *     policy = (struct recompute_policy){.granularity = RECOMPUTE_PLANNED, .planned = chosen.groups, ...};
 *     plan_auto_free(&chosen);
 *
 * Fails when even the smallest candidate is larger than the budget. */
#include "core/plan_time.h"

struct plan_auto_stage {
    size_t peak_bytes;    /* of the plan with the choice */
    double seconds;       /* of the layers, one micro-batch */
    double rerun_seconds; /* of these: recompute */
    int candidates, tried;
};

struct plan_auto {
    struct recompute_group *groups; /* all layers of the model */
    int num_groups;
    struct plan_auto_stage *stages;
    int num_stages;
    struct step_time step;
};

/* `requests`: of a rank of each stage, equal but for layout.stage, all with hardware. */
int plan_auto_choose(const struct plan_request *requests, int stages, size_t budget, struct plan_auto *out,
                     struct err *err);
void plan_auto_free(struct plan_auto *a);
/* What was chosen, stage by stage. */
void plan_auto_describe(const struct plan_auto *a, const struct plan_request *request, size_t budget,
                        struct str *out);
