#pragma once
/* What an op sees while it runs: where its tensors, gradients and parameters are. Built by the executor
 * (core/train/ executor) for one list of one segment; ops only read it. Nothing here allocates. */
#include "core/base/rng.h"
#include "core/tensor/program.h"
#include "kernels/kernels.h"
#include "parallel/comm/comm.h"

/* One parameter of the model, in the forms that its ops read. */
struct param_view {
    const void *plain;                            /* row-major in the compute dtype */
    const void *packed_forward, *packed_backward; /* NULL when the kernels multiply by the plain matrix */
    float *grad;                                  /* fp32 main gradient */
    bool *grad_written;                           /* false until the first write of this step */
};

/* The groups that ops talk to; one rank each (`self`) without that kind of parallelism, `fake` on meta. */
struct run_comms {
    struct comm *tp, *cp;
    struct comm *expert;           /* expert x expert tensor; NULL without experts */
    struct comm *tp_cp, *tp_dp_cp; /* the ranks of a sequence; of the global batch; NULL without experts */
};

/* One micro-batch, b sequences of this rank's s tokens. */
struct batch_view {
    const int32_t *tokens, *positions; /* [b, s] */
    const int32_t *labels;             /* [s, b]: the row order of hidden tensors */
    const float *loss_mask;            /* [s, b] */
};

/* Losses of routers, before their coefficients: sums over layers and micro-batches, of the first forward. */
struct router_losses {
    double balance, z;
};

/* What a router carries from micro-batch to micro-batch and (bias) from step to step. It is no parameter. */
struct router_state {
    float *bias;     /* [experts]; NULL without expert bias */
    int64_t *tokens; /* [experts]: that went to each since the step began, on this rank; or NULL */
    int32_t *seen;   /* [experts]: choices of all ranks since the step began; or NULL */
    int32_t batches; /* micro-batches in `seen` */
    struct router_losses losses; /* of this rank, since the step began */
};

struct run {
    const struct program *program;
    const struct code *code;
    const struct instr *at; /* the instruction being executed */
    const struct stream *stream;
    char *input, *output;                   /* the segment's given tensors */
    char *frame, *work;                     /* where KEEP and WORK offsets start */
    char *boundary_grad;                    /* gradient of the segment's output, then of its input */
    const struct param_view *const *params; /* by the program's parameter index */
    struct batch_view batch;
    const float *rotary_cos, *rotary_sin; /* [s, rotary_dim / 2]; NULL without rotary embedding */
    struct rng_key rng;                   /* seed, iteration and micro-batch; ops add layer and op */
    int first_layer;                      /* global index of the segment's first layer */
    bool training;                        /* false in evaluation: no dropout, no gradients */
    float loss_grad_scale;                /* d total / d (masked loss sum of this micro-batch) */
    float aux_grad_scale;                 /* d total / d (mean of a router's losses over this micro-batch) */
    char *high_water; /* end of the highest tensor that an op was handed: the measured peak */
    double *loss_sum; /* += masked sum of token losses; written in the first forward only */
    struct router_losses *router_losses; /* written in the first forward of training only */
    struct router_state *const *routers; /* by the program's router index; NULL on meta */
    struct run_comms comms;
    struct comm_request **requests; /* two per op of the program: of its forward and of its backward */
    char *hold;                     /* split schedules: where the weight list finds what HOLD copied */
    const struct code *weight_code;
};

void *run_tensor(struct run *r, int tensor);
void *run_grad(struct run *r, int tensor);

static inline bool run_is_meta(const struct run *r) {
    return r->stream->meter != NULL;
}
/* Side effects (loss sums, statistics, gradients made in forward) belong to the first forward only. */
static inline bool run_is_first_forward(const struct run *r) {
    return r->at->kind == INSTR_FORWARD || r->at->kind == INSTR_FORWARD_END;
}
static inline bool instr_is_backward(enum instr_kind kind) {
    return kind == INSTR_BACKWARD || kind == INSTR_BACKWARD_END || kind == INSTR_WEIGHT || kind == INSTR_HOLD;
}
static inline bool run_accumulates(const struct run *r, int k) {
    return r->at->accumulate >> k & 1;
}
static inline const struct tensor_info *run_info(const struct run *r, int tensor) {
    return &r->program->tensors[tensor];
}
static inline const struct param_view *run_param(const struct run *r, const struct op *o, int k) {
    return r->params[o->param[k]];
}
/* Whether a gradient write must add; the first write of the step stores. Marks the parameter as written. */
bool run_param_accumulates(const struct param_view *param);
/* The random numbers of this op in this layer and micro-batch. */
struct rng_key run_rng(const struct run *r, const struct op *o);

/* Where an op that communicates keeps its request from its start to its end. */
struct comm_request **run_request(const struct run *r);
/* Copies `tensor` of the segment: bytes of the whole tensor. */
void run_copy(const struct run *r, void *to, const void *from, const struct tensor_info *t);

/* Runs instruction i of run->code. */
void run_instr(struct run *r, int i);
/* After the last instruction of a backward list: the gradient of the input must be in the boundary buffer. */
void run_finish(struct run *r);
