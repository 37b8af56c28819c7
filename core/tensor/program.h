#pragma once
/* A program is the recorded form of one segment of the model (the embedding, a group of layers, the head):
 * tensors, parameters and ops in forward order. Builders append to it at plan time by code that reads like a
 * forward pass; forward walks the ops, backward walks them in reverse, the memory planner scans them,
 * checkpoints take parameter names from them. The order of the model exists nowhere else.
 *
 *     int y = program_op(p, &op_norm, "input_layernorm", (int[]){x}, 1);      // appends the op
 *     program_output(p, op, "input_layernorm", dtype, dims...);               // and its result
 *
 * A tensor has a home, chosen by recompute/: KEEP (in the frame of this micro-batch, read by backward), WORK
 * (scratch, alive for a few ops) or GIVEN (input and output of the segment). The program owns everything it
 * points to except op definitions and string literals. Building cannot fail for valid configurations; misuse
 * is a broken invariant. */
#include "core/tensor/dtype.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    PROGRAM_MAX_DIMS = 4,
    OP_MAX_IN = 6,
    OP_MAX_OUT = 4,
    OP_MAX_PARAMS = 6,
    PARAM_MAX_RUNS = 3,
    TENSOR_ALIGNMENT = 64
};

enum tensor_home { HOME_NOWHERE, HOME_KEEP, HOME_WORK, HOME_GIVEN };

struct tensor_info {
    const char *name; /* string literal: "mlp.linear_fc1" */
    enum dtype dtype;
    int num_dims;
    int64_t dims[PROGRAM_MAX_DIMS];
    size_t bytes;          /* exact, before alignment */
    int producer;          /* op index, -1 for the segment's input */
    bool has_grad;         /* false for statistics and losses */
    bool is_pinned;        /* always kept and never made again: what a router decided */
    bool is_partly_unused; /* holds rows that nobody fills or reads: no one looks there for NaN */
    enum tensor_home home; /* set by recompute_plan */
    size_t frame_offset;   /* valid when home is HOME_KEEP */
};

enum param_init { PARAM_INIT_NORMAL, PARAM_INIT_ZERO, PARAM_INIT_ONE };

/* Forms in which an op reads a parameter; a parameter is stored in every form that some op asks for. */
enum param_form {
    PARAM_FORM_PLAIN = 1,           /* row-major in the compute dtype */
    PARAM_FORM_PACKED_FORWARD = 2,  /* gemm_pack of the transpose: y = x W^T */
    PARAM_FORM_PACKED_BACKWARD = 4, /* gemm_pack of the matrix: dx = dy W */
};

/* Which part of a parameter a tensor-parallel rank holds: runs of global rows, one after the other, and a run
 * of columns. All zero: the whole of it, the same on every tensor-parallel rank. */
struct param_shard {
    int64_t full[2]; /* global shape */
    int num_runs;
    struct {
        int64_t first, count;
    } runs[PARAM_MAX_RUNS];
    int64_t first_col;
    /* Equal matrices one after the other (experts): the whole parameter has full_groups of them, this part is
     * matrices first_group and on, and runs are rows inside each matrix. 0: one matrix. */
    int full_groups, first_group;
    /* Local rows from here on are also held by other tensor-parallel ranks (key and value heads when there
     * are fewer groups than ranks); 0: none. */
    int64_t shared_from_row;
};

struct param_info {
    const char *name; /* Megatron-LM's full name; "%d" stands for the global layer index when per_layer */
    bool per_layer;
    int layer; /* layer of the segment that it belongs to, from 0 */
    int num_dims;
    int64_t dims[2]; /* of this rank's part */
    int groups; /* matrices of equal size, one after the other (experts), each packed by itself; 0: one */
    struct param_shard shard;
    bool sum_over_tensor; /* each tensor-parallel rank makes a part of the gradient (sequence parallel) */
    bool is_expert; /* held by an expert-parallel rank: summed and sharded over the expert-data-parallel group
                     */
    enum param_init init;
    float init_std;
    unsigned forms;
};

struct run;
struct op;
/* What an op can do. `backward` writes the gradients of inputs (and of parameters, unless backward_weight
 * does). An op that communicates starts in forward or backward and ends in forward_end or backward_end, which
 * the lists put right before the first reader; so it runs beside what lies between. */
/* What op-level recompute may be told to keep; an op may be of several classes, or of none. */
enum op_class { OP_GEMM = 1, OP_ATTENTION = 2, OP_COMMUNICATION = 4 };

struct op_def {
    const char *name;
    void (*forward)(struct run *run, const struct op *op);
    void (*backward)(struct run *run, const struct op *op);
    void (*backward_weight)(struct run *run,
                            const struct op *op); /* gradients of parameters; NULL: in backward */
    void (*forward_end)(struct run *run, const struct op *op); /* NULL: forward is complete when it returns */
    void (*backward_end)(struct run *run, const struct op *op);
    /* Defaults for the op's masks; a builder may change them on the op. Bit i = in[i], out[i]. */
    unsigned backward_reads_in, backward_reads_out;
    unsigned grad_in;         /* inputs that receive a gradient */
    unsigned passes_grad;     /* inputs whose gradient equals the output's: they may share its storage */
    unsigned weight_reads_in; /* of backward_reads_in, what only backward_weight reads */
    unsigned classes;         /* of enum op_class */
};

struct op {
    const struct op_def *def;
    const char *name;
    int num_in, num_out, num_params;
    int in[OP_MAX_IN], out[OP_MAX_OUT], param[OP_MAX_PARAMS];
    unsigned backward_reads_in, backward_reads_out, grad_in, passes_grad, weight_reads_in;
    unsigned forward_skips_in;     /* inputs that only receive a gradient */
    unsigned backward_scratch_out; /* outputs that forward leaves alone and backward uses as scratch */
    int grad_of_in0_lives_in;      /* tensor whose storage holds the gradient of in[0], or -1 */
    int router;                    /* index of the state that program_router gave it, or -1 */
    int scope;                     /* innermost module instance, -1 for none */
    int layer;                     /* layer of the segment, from 0 */
    uint16_t rng_op;  /* names this op's random numbers within its layer (program_draws_random) */
    void *attributes; /* the op's own struct, owned by the program */
};

/* One instance of a recompute module: the ops between a begin and its end. */
struct scope {
    int module; /* index into recompute/modules.def */
    int parent; /* enclosing instance, -1 for none */
};

struct program {
    struct tensor_info *tensors;
    struct op *ops;
    struct param_info *params;
    struct param_info *routers; /* states of routers, which are no parameters */
    struct scope *scopes;
    int num_tensors, num_ops, num_params, num_routers, num_scopes;
    int capacity_tensors, capacity_ops, capacity_params, capacity_routers, capacity_scopes;
    int input, output;    /* tensor indices; -1 when the segment has none */
    int open_scope;       /* while building */
    int layer;            /* while building */
    uint16_t next_rng_op; /* while building; restarts with each layer */
};

void program_init(struct program *p);
void program_free(struct program *p);

int program_tensor(struct program *p, const char *name, enum dtype dtype, int num_dims, const int64_t *dims);
/* Appends an op and returns its index. `attributes` are copied (bytes may be 0). */
int program_op(struct program *p, const struct op_def *def, const char *name, const int *in, int num_in,
               const void *attributes, size_t attribute_bytes);
/* Appends a result to an op and returns the tensor index. */
int program_output(struct program *p, int op, const char *name, enum dtype dtype, int num_dims,
                   const int64_t *dims, bool has_grad);
/* Appends a parameter to an op. `name` is copied. Same name in two ops of the model means the same parameter.
 */
int program_param(struct program *p, int op, struct param_info info);
/* Lets an op read parameter `param` of an op before it. */
void program_share_param(struct program *p, int op, int param);

/* Gives a router its state from step to step: name and shape of its expert bias, as for a parameter. No
 * gradient, no optimizer and no norm knows of it. */
void program_router(struct program *p, int op, struct param_info info);

/* Gives the op a name for its random numbers: how many such ops came before it in this layer. Ops that draw
 * none do not count, so layouts that add communication draw the same numbers. */
void program_draws_random(struct program *p, int op);

/* Brackets a recomputable module. begin returns the value to hand to end. */
int program_begin(struct program *p, int module);
void program_end(struct program *p, int outer);
void program_next_layer(struct program *p);

/* True when `scope` is `instance` or lies inside it. */
bool program_inside(const struct program *p, int scope, int instance);

static inline size_t align_up(size_t bytes) {
    return (bytes + TENSOR_ALIGNMENT - 1) / TENSOR_ALIGNMENT * TENSOR_ALIGNMENT;
}

/* ---- code: what is executed, written by recompute/ ---- */

enum instr_kind {
    INSTR_FORWARD,
    INSTR_RERUN,
    INSTR_BACKWARD,
    INSTR_WEIGHT,       /* backward_weight of an op whose backward has run */
    INSTR_FORWARD_END,  /* of a FORWARD */
    INSTR_RERUN_END,    /* of a RERUN */
    INSTR_BACKWARD_END, /* of a BACKWARD */
    INSTR_HOLD,         /* copies what a later WEIGHT list reads out of buffers that will be reused */
};

struct instr {
    enum instr_kind kind;
    int op;
    unsigned
        accumulate; /* BACKWARD and its END: bit i set means the gradient of in[i] is added to, not stored */
};

enum { GRAD_ABSENT = -1, GRAD_AT_BOUNDARY = -2, GRAD_IN_TENSOR = -3 };

struct code {
    struct instr *at;
    int num_instrs, capacity;
    size_t *work_offset; /* per tensor: place in the work area while this code runs (HOME_WORK only) */
    int64_t *grad_place; /* per tensor: offset in the work area, or one of GRAD_* */
    int *grad_tensor;    /* per tensor: with GRAD_IN_TENSOR, whose storage it is */
    size_t work_bytes;
};

void code_init(struct code *c, int num_tensors);
void code_append(struct code *c, struct instr instr);
void code_free(struct code *c);
