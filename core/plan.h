#pragma once
/* The plan: everything about one rank that can be known without a device. A pure function of the
 * configuration: parameters, layer programs, recompute decisions, schedule, arena map, FLOPs and bytes. The
 * dry run is the trainer stopped here; the trainer allocates exactly plan->arena_bytes and runs the lists at
 * the places that the plan gives.
 *
 * Arena map: fixed regions first (weights, gradients, optimizer state, tables, micro-batches, kernel
 * workspace), then the activations: for each in-flight micro-batch a slot that holds, segment after segment,
 * the segment's input and its KEEP tensors; then, above everything that is alive at that moment, the work
 * area of the list being run. So the frames form a stack that backward takes down, and logits are gone before
 * the first layer is recomputed. */
#include "core/base/str.h"
#include "core/model/model.h"
#include "kernels/kernels.h"
#include "parallel/schedule.h"
#include "recompute/policy.h"
#include <stdio.h>

/* What the plan is made from. */
struct plan_request {
    struct model model;
    struct recompute_policy recompute;
    int micro_batches;             /* the largest number in one step */
    bool forward_only;             /* --skip-train */
    const struct kernels *kernels; /* decides packing and workspace */
    struct threads *threads;       /* workspace may depend on how many there are */
};

enum plan_category {
    CATEGORY_WEIGHTS,
    CATEGORY_GRADIENTS,
    CATEGORY_OPTIMIZER,
    CATEGORY_TABLES,
    CATEGORY_BATCH,
    CATEGORY_WORKSPACE,
    CATEGORY_ACTIVATIONS,
    CATEGORY_COUNT
};
const char *plan_category_name(enum plan_category category);

struct plan_param {
    char *name;
    int num_dims;
    int64_t dims[2], count;
    enum param_init init;
    float init_std;
    bool decays;       /* weight decay applies: not a bias, not a norm */
    bool is_embedding; /* embedding or output layer: --decoupled-lr */
    bool is_qk_norm;
    size_t master, grad; /* arena offsets */
    size_t exp_avg, exp_avg_sq;
    size_t plain, packed_forward, packed_backward; /* SIZE_MAX: not stored (fp32 reads the master itself) */
};

enum segment_kind { SEGMENT_EMBEDDING, SEGMENT_LAYERS, SEGMENT_HEAD };

struct plan_segment {
    enum segment_kind kind;
    int compiled; /* index into plan->compiled */
    int first_layer, num_layers;
    recompute_set selected;
    int *params;         /* program parameter -> plan parameter */
    size_t input_offset; /* in the slot */
    size_t frame_offset; /* KEEP tensors, in the slot, after the input */
    size_t end_offset;   /* input and KEEP tensors end here */
};

struct compiled_cost { /* of one run of the lists, in matrix-product FLOPs and all FLOPs and bytes */
    struct kernel_cost forward, rerun, backward;
    double *op_flops; /* per op: FLOPs of its forward */
};

struct plan {
    struct plan_request request;
    struct compiled *compiled;
    struct compiled_cost *costs;
    int num_compiled;
    struct plan_segment *segments;
    int num_segments;
    struct plan_param *params;
    int num_params;
    int64_t num_parameters; /* elements */

    struct action *actions;
    int num_actions, num_slots;

    size_t fixed_bytes[CATEGORY_COUNT];
    size_t rotary_cos, rotary_sin, boundary_grad, workspace, workspace_bytes, reductions;
    size_t batch, batch_slot_bytes; /* per slot: tokens, positions, labels, loss mask; each s * b * 4 bytes */
    size_t activations;             /* arena offset of slot 0 */
    size_t slot_bytes;
    size_t activation_bytes; /* peak of frames and work areas */
    size_t arena_bytes;      /* everything: the predicted peak */
    int peak_segment;        /* where the peak is reached, and in which direction */
    enum action_kind peak_kind;
    size_t peak_frame_bytes, peak_work_bytes;
    size_t *peak_live_end; /* per slot: what is alive at the peak */

    double step_gemm_flops, step_flops, step_rerun_gemm_flops, step_rerun_flops, step_bytes;
    uint64_t hash;
};

void plan_build(const struct plan_request *request, struct plan *out);
void plan_free(struct plan *plan);
uint64_t plan_hash_of(const struct plan *plan);

/* The end of what is alive in each slot, kept up by whoever walks the actions: the plan to find the peak, the
 * executor to find the work area. */
struct frame_tracker {
    size_t *live_end; /* per slot, relative to the slot */
    int num_slots;
};
void frames_open(struct frame_tracker *f, const struct plan *plan);
void frames_close(struct frame_tracker *f);
/* Notes that a segment is about to run and returns the work area's offset, relative to plan->activations. */
size_t frames_enter(struct frame_tracker *f, const struct plan *plan, const struct action *action,
                    int segment);
/* Notes that backward of a segment is done: its frame is free. */
void frames_leave(struct frame_tracker *f, const struct plan *plan, const struct action *action, int segment);

/* Reports (core/plan_print.c): the memory table, the recompute report with its warnings, and JSON. */
void plan_print_memory(const struct plan *plan, FILE *out);
void plan_print_recompute(const struct plan *plan, FILE *out);
/* --recompute-trace: each op of each kind of layer as SAVE, RECOMPUTE or ALTERNATE. */
void plan_print_trace(const struct plan *plan, FILE *out);
void plan_write_json(const struct plan *plan, struct str *out);
