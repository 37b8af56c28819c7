#pragma once
/* Walks the actions of one step: computes, for each, the segments' lists at the places that the plan gives,
 * and passes activations and their gradients between pipeline stages. Gathering weights and reducing their
 * gradients is sync.h's, called around each segment. Knows nothing of data sets, optimizers or logs. All
 * memory is the arena's; nothing is allocated after executor_open.
 *
 *     executor_begin_step(&e, iteration);
 *     for each action: executor_run(&e, &action, &micro)      // micro: for forwards of chunks that read it
 *
 * A run that met NaN or Inf can be repeated with check_finite on: the weights have not changed, random
 * numbers are a function of the step, so the same values come again and the first bad tensor is named. */
#include "core/model/run.h"
#include "core/plan.h"
#include "core/tensor/arena.h"
#include "core/train/trace.h"
#include "parallel/comm/comm.h"

struct sync;

enum executor_phase { PHASE_FORWARD, PHASE_RECOMPUTE, PHASE_BACKWARD, PHASE_COUNT };

struct bad_tensor { /* the first tensor with a value that is not finite */
    bool found;
    int layer; /* global, multi-token prediction's after the model's; -1 in the embedding or the head */
    const char *op, *tensor;
    enum executor_phase phase;
    bool is_gradient;
    int micro_batch;
};

/* One micro-batch as the loader gives it; rows are whole sequences, of which a rank takes its tokens. */
struct micro_batch {
    const int32_t *tokens, *labels, *positions; /* [b, seq] */
    const float *loss_mask;                     /* [b, seq] */
    float loss_grad_scale;
    int index; /* in the global batch, for random numbers */
    bool training;
    float aux_grad_scale;                       /* of the routers' losses */
    float mtp_grad_scale[MODEL_MAX_MTP_LAYERS]; /* as loss_grad_scale, of each depth */
};

/* The groups of this rank (parallel/mesh.h). NULL members: one rank, or (expert*) a model without experts. */
struct executor_comms {
    struct comm *world, *tensor, *context, *pipeline, *data, *embedding, *kv;
    struct comm *expert;                               /* exchange tokens: expert x expert tensor */
    struct comm *expert_data;                          /* hold the same experts */
    struct comm *tensor_context, *tensor_data_context; /* whole sequences; whole batches: counts of routers */
};
enum { EXECUTOR_MAX_COMMS = 11 };
/* Writes those that are open, in the order above; returns how many. */
int executor_list_comms(const struct executor_comms *comms, struct comm *list[EXECUTOR_MAX_COMMS]);

struct slot_state { /* what forward leaves for backward of the same micro-batch */
    float loss_grad_scale, aux_grad_scale;
    int index;
    bool training;
    float mtp_grad_scale[MODEL_MAX_MTP_LAYERS];
};

struct executor {
    const struct plan *plan;
    struct arena *arena;
    struct stream stream;
    struct frame_tracker frames;
    struct executor_comms comms;
    struct sync *sync;
    struct slot_state *slots;       /* per slot */
    struct comm_request **requests; /* of the ops of the running list */
    struct comm_request **receives, **sends, **grad_receives, **grad_sends; /* per buffer between stages */
    struct param_view *views;                                               /* per plan parameter */
    bool *grad_written;                                                     /* per plan parameter */
    const struct param_view ***segment_views; /* per segment: per program parameter */
    uint32_t seed, iteration;
    struct router_losses router_losses;        /* since executor_begin_step */
    struct router_state *routers;              /* per plan router */
    struct router_state ***segment_routers;    /* per segment: per program router */
    double loss_sum;                           /* masked token losses since executor_begin_step */
    double mtp_loss_sum[MODEL_MAX_MTP_LAYERS]; /* the same of each depth of multi-token prediction */
    double phase_seconds[PHASE_COUNT];
    size_t high_water; /* end of the highest arena byte in use so far: the measured peak */
    size_t *run_ends;  /* NULL, or for each list that is run the end of the highest byte it was handed */
    int num_run_ends;
    struct trace *trace; /* NULL: no trace */
    bool check_finite;
    struct bad_tensor bad;
};

/* `comms` is copied; NULL: one rank. */
void executor_open(struct executor *e, const struct plan *plan, struct arena *arena, struct threads *threads,
                   uint32_t seed, const struct executor_comms *comms);
void executor_close(struct executor *e);
void executor_begin_step(struct executor *e, int64_t iteration);
/* Computes or communicates. `micro` is read by forwards of chunks with embedding or head, and by forwards
 * alone (index, scale and `training` are remembered for the backward). */
void executor_run(struct executor *e, const struct action *action, const struct micro_batch *micro);

void *executor_at(const struct executor *e, size_t offset);
