#pragma once
/* The plan: everything about one rank that can be known without a device. A pure function of the
 * configuration and the rank: parameters and their shards, layer programs, recompute decisions, schedule,
 * arena map, FLOPs, bytes and messages. The dry run is the trainer stopped here; the trainer allocates
 * exactly plan->arena_bytes and runs the lists at the places that the plan gives.
 *
 * Arena map: fixed regions first (weights, gradients, optimizer state, buffers of communication, tables,
 * micro-batches, kernel workspace), then the activations: for each model chunk and each in-flight micro-batch
 * a slot that holds, segment after segment, the segment's input and its KEEP tensors; then, above everything
 * that is alive at that moment, the work area of the list being run. So the frames form a stack that backward
 * takes down, and logits are gone before the first layer is recomputed. */
#include "core/base/str.h"
#include "core/model/model.h"
#include "kernels/kernels.h"
#include "parallel/pipeline_split.h"
#include "parallel/schedule.h"
#include "recompute/policy.h"
#include <stdio.h>

/* What the ranks that compute the same parameters on different data share out among themselves (ZeRO 1, 2,
 * 3). */
enum plan_sharding { PLAN_SHARD_NONE, PLAN_SHARD_OPTIM, PLAN_SHARD_GRADS, PLAN_SHARD_PARAMS };

/* Where this rank stands; all zero: one rank that does everything. */
struct plan_layout {
    int stages, stage, chunks;          /* pipeline; chunks per stage */
    const struct pipeline_chunk *split; /* [chunks * stages]; NULL: one stage with the whole model */
    const struct schedule *schedule;    /* NULL: 1f1b */
    int group;                          /* of interleaving, 0: the number of stages */
    bool late_receive;
    int data, data_rank; /* ranks that share gradients (data x context parallel), and this one */
    int expert_data, expert_data_rank; /* the same for the parameters of experts (ranks with the same ones) */
    enum plan_sharding sharding;
    int num_buckets;           /* when not 0: buckets of about so many parts of all parameters */
    int64_t bucket_elements;   /* a bucket closes when it holds so many; 0: one per chunk */
    bool overlap_param_gather; /* one gather runs ahead of its use: a second staging buffer */
    bool distribute_saved;     /* recomputed segments keep a tensor-parallel share of their input */
    bool overlap_grad_reduce;  /* for predicted times only */
};

struct hardware; /* plan_hardware.h */

/* What the plan is made from. */
struct plan_request {
    struct model model;
    struct recompute_policy recompute;
    int micro_batches;       /* the largest number in one step, of this rank */
    const int *other_counts; /* further numbers that steps will have; owned by the caller */
    int num_other_counts;
    int eval_micro_batches;        /* 0: as micro_batches */
    bool forward_only;             /* --skip-train */
    const struct kernels *kernels; /* decides packing and workspace */
    struct threads *threads;       /* workspace may depend on how many there are */
    struct plan_layout layout;
    const struct hardware *hardware; /* rates for predicted times; NULL: none */
};

enum plan_category {
    CATEGORY_WEIGHTS,
    CATEGORY_GRADIENTS,
    CATEGORY_OPTIMIZER,
    CATEGORY_COMMUNICATION,
    CATEGORY_TABLES,
    CATEGORY_BATCH,
    CATEGORY_WORKSPACE,
    CATEGORY_ACTIVATIONS,
    CATEGORY_COUNT
};
const char *plan_category_name(enum plan_category category);

/* Dense parameters are shared by the data- and context-parallel ranks, those of experts by the ranks that
 * hold the same experts. Each family has buckets, reductions, gathers and buffers of its own. */
enum plan_family { FAMILY_DENSE, FAMILY_EXPERT, FAMILY_COUNT };

/* One parameter of this rank. Its elements are those of the local shape, row-major; the optimizer shard of
 * this rank holds the elements [held_begin, held_begin + held_count) of them (all, unless sharded). */
struct plan_param {
    char *name;
    int num_dims;
    int64_t dims[2], count; /* local */
    int groups; /* matrices of dims[0] / groups rows, each packed by itself; 1: the whole is one */
    enum plan_family family;
    struct param_shard shard;
    enum param_init init;
    float init_std;
    bool decays;       /* weight decay applies: not a bias, not a norm */
    bool is_embedding; /* embedding or output layer: --decoupled-lr */
    bool is_qk_norm, is_vocabulary;
    bool sum_over_tensor; /* the gradient is a sum over tensor-parallel ranks */
    bool is_tied_copy; /* first and last stage hold it (tied, or read by multi-token prediction): the gradient
                          is a sum over both */
    int chunk,
        first_segment; /* the lowest segment that uses it: after its last backward the gradient is complete */
    int bucket;
    int64_t offset; /* in the bucket, in elements */
    int64_t held_begin, held_count;
    /* Of the held elements the first `counted` belong to this rank alone or first: sums over all ranks
     * (norms, hashes, checkpoints) take them here and nowhere else. */
    int64_t counted;
    size_t master, exp_avg, exp_avg_sq, held_grad; /* arena offsets of the first held element */
    size_t grad; /* gradient of element 0: arena offset, or offset in the gradient unit buffer */
    size_t plain, packed_forward,
        packed_backward; /* SIZE_MAX: not stored; in a unit: offset in the weight buffer */
};

/* Parameters whose gradients are reduced, and whose weights are gathered, in one message. Offsets are of fp32
 * elements. A bucket of a unit (ZeRO 2 and 3) is one segment's: its gradients live in one of two unit buffers
 * while that segment runs, its weights too with ZeRO 3. */
struct plan_bucket {
    enum plan_family family;
    int chunk;
    int segment;            /* ready after the last backward of this segment; for a unit: its segment */
    bool is_unit;           /* gradients are reduced after each micro-batch */
    bool gathers_weights;   /* ZeRO 3: weights are gathered before each use */
    int64_t elements;       /* with padding */
    int64_t shard_elements; /* of each rank: elements / ranks of the family that share them */
    size_t grad;            /* whole gradients; SIZE_MAX for a unit */
    size_t grad_shard;      /* own slice of them, inside `grad` or (unit) by itself */
    size_t master, exp_avg, exp_avg_sq; /* own slice */
    size_t weight_bytes;                /* ZeRO 3: of its forms in the unit buffer */
};

/* State of one router of this rank, which is no parameter; the same on every rank of the stage. */
struct plan_router {
    char *name;                /* of the expert bias */
    int layer;                 /* of the whole model; those of multi-token prediction follow */
    int64_t experts;           /* elements of each */
    size_t bias, tokens, seen; /* arena offsets; SIZE_MAX: not there */
    bool writes;               /* this rank saves the bias, and counts it in hashes */
};

/* Depths of multi-token prediction follow the head; `first_layer` counts them from 0, and evaluation, which
 * reports the next token's loss alone, leaves them out. */
enum segment_kind { SEGMENT_EMBEDDING, SEGMENT_LAYERS, SEGMENT_HEAD, SEGMENT_MTP };

struct plan_segment {
    enum segment_kind kind;
    int compiled; /* index into plan->compiled */
    int first_layer, num_layers;
    recompute_set selected;
    int chunk;
    int unit[FAMILY_COUNT]; /* bucket that lives in the unit buffers while this segment runs, or -1 */
    int *params;            /* program parameter -> plan parameter */
    int *routers;           /* program router -> plan router */
    size_t input_offset;    /* in the slot */
    size_t frame_offset;    /* KEEP tensors, in the slot, after the input */
    size_t end_offset;      /* input and KEEP tensors end here */
    size_t hold_offset;     /* split schedules: what the weight list reads, in the slot */
};

struct plan_chunk {
    int first_segment, num_segments;
    int first_layer, num_layers;
    bool embedding, head;
    int first_slot, num_slots; /* unless slots are shared */
    size_t slot_bytes;
};

struct compiled_cost { /* of one run of the lists */
    struct kernel_cost forward, rerun, backward;
    double message_bytes; /* that this rank sends inside the lists (tensor and context parallel) */
    double *op_flops;     /* per op: FLOPs of its forward */
    /* Predicted, with request.hardware: the forward list, the two parts of the backward list, the weight
     * list. */
    double forward_seconds, rerun_seconds, backward_seconds, weight_seconds;
};

/* How the parameters of a family are shared, and the buffers through which they pass. */
struct plan_sharing {
    int ranks;                                 /* that sum gradients */
    int shards, shard;                         /* into how many they cut optimizer state, and which is ours */
    size_t gather[2], gather_bytes;            /* staging of gathered weights, in the compute dtype */
    size_t unit_weights[2], unit_weight_bytes; /* ZeRO 3 */
    size_t unit_grads[2], unit_grad_bytes;     /* ZeRO 2 and 3 */
};

/* The actions of a step of so many micro-batches. */
struct plan_list {
    int micro_batches;
    struct schedule_list actions;
};

struct plan {
    struct plan_request request;
    const struct schedule *schedule;
    struct compiled *compiled;
    struct compiled_cost *costs;
    int num_compiled;
    struct plan_segment *segments;
    int num_segments;
    struct plan_chunk *chunks;
    int num_chunks;
    struct plan_param *params;
    int num_params;
    int64_t num_parameters, num_expert_parameters; /* elements on this rank; those of experts among them */
    struct plan_bucket *buckets;
    int num_buckets;
    struct plan_sharing sharing[FAMILY_COUNT];
    struct plan_router *routers;
    int num_routers;
    size_t router_tokens; /* `tokens` of all routers, one after the other */

    struct plan_list *lists; /* training lists, the longest first, then evaluation */
    int num_lists;
    bool shares_slots; /* any chunk may use any slot: fewer are needed, each as large as its largest user */
    int num_slots;

    size_t fixed_bytes[CATEGORY_COUNT];
    size_t rotary_cos, rotary_sin, workspace, workspace_bytes, reductions;
    size_t
        *boundary_grad; /* gradient of a segment's output, then of its input; one, or as many as lists use */
    size_t *receive, *send; /* activations between stages */
    int num_boundary_grads, num_receives, num_sends;
    size_t full_input[2]; /* distribute_saved: whole inputs of the segment that runs and of the next */
    /* Per slot: tokens, positions, labels, loss mask; then, where there is multi-token prediction, tokens,
     * labels and mask of each depth. Each is s * b * 4 bytes, aligned: a part. */
    size_t batch, batch_part_bytes, batch_slot_bytes;
    size_t activations;      /* arena offset of slot 0 */
    size_t *slot_base;       /* per slot, relative to activations */
    size_t activation_bytes; /* peak of frames and work areas */
    size_t arena_bytes;      /* everything: the predicted peak */
    int peak_segment;        /* where the peak is reached, and in which direction */
    enum action_kind peak_kind;
    size_t peak_frame_bytes, peak_work_bytes;
    size_t *peak_live_end; /* per slot: what is alive at the peak, and of which chunk */
    int *peak_chunk;

    double step_gemm_flops, step_flops, step_rerun_gemm_flops, step_rerun_flops, step_bytes;
    uint64_t hash;
};

void plan_build(const struct plan_request *request, struct plan *out);
void plan_free(struct plan *plan);
uint64_t plan_hash_of(const struct plan *plan);
/* The list of a training step; a broken invariant when no step has so many micro-batches. */
const struct schedule_list *plan_actions(const struct plan *plan, int micro_batches);
const struct schedule_list *plan_eval_actions(const struct plan *plan);
/* Whether a micro-batch runs the segment: in evaluation not those of multi-token prediction. */
bool plan_runs_segment(const struct plan *plan, int segment, bool training);
/* Bytes of hidden states as they pass between segments and stages, aligned. */
size_t plan_hidden_bytes(const struct plan *plan);
/* Bytes of a saved layer input: a share of them with distribute_saved. */
bool plan_is_distributed(const struct plan *plan, const struct plan_segment *segment);

/* Which row of the whole tensor local row `row` is, and how many rows from there on follow one another in
 * both. */
int64_t plan_global_row(const struct plan_param *p, int64_t row, int64_t *count_p);

/* Names and shapes of every parameter of the whole model, in model order; what checkpoints list. Names are
 * owned by the caller (mem_free each), as is the array. Returns how many. */
struct plan_tensor {
    char *name;
    int num_dims;
    int64_t dims[2];
    bool is_state; /* a router's: it has no optimizer state */
};
int plan_all_tensors(const struct model *model, struct plan_tensor **tensors_p);

/* The end of what is alive in each slot, kept up by whoever walks the actions: the plan to find the peak, the
 * executor to find the work area. */
struct frame_tracker {
    size_t *live_end; /* per slot, relative to the slot */
    int *chunk;       /* per slot: whose frames they are */
    int num_slots;
};
void frames_open(struct frame_tracker *f, const struct plan *plan);
void frames_close(struct frame_tracker *f);
/* Slot of an action among all slots of the plan. */
int frames_slot(const struct plan *plan, const struct action *action);
/* Notes that a segment is about to run and returns the work area's offset, relative to plan->activations. */
size_t frames_enter(struct frame_tracker *f, const struct plan *plan, const struct action *action,
                    int segment);
/* Notes that backward of a segment is done: its frame is free (split schedules: after its weight gradients).
 */
void frames_leave(struct frame_tracker *f, const struct plan *plan, const struct action *action, int segment);

/* Reports (core/plan_print.c): the memory table, the recompute report with its warnings, and JSON. */
void plan_print_memory(const struct plan *plan, int rank, FILE *out);
void plan_print_recompute(const struct plan *plan, FILE *out);
/* --recompute-trace: each op of each kind of layer as SAVE, RECOMPUTE or ALTERNATE. */
void plan_print_trace(const struct plan *plan, FILE *out);
/* One object: what is true of every rank of this pipeline stage. */
void plan_write_json(const struct plan *plan, struct str *out);
