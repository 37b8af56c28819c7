#!/bin/bash
# --self-check agrees on right layouts, prints what it promises, and disagrees in a program with a bug: copies of
# the program are built here with one line of the source changed, each a mistake of the kind that trains on
# silently.
. "$(dirname "$0")/lib.sh"
ROOT=$(cd "$OLDPWD" && cd "$(dirname "$0")/../.." && pwd)
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
BIG="--num-layers 8 --hidden-size 512 --num-attention-heads 8 --seq-length 512 --max-position-embeddings 512
 --micro-batch-size 2 --global-batch-size 32 --train-iters 1000 --lr 1e-3 --bf16 --mock-data --vocab-size 50257
 --cpu-threads 1 --save $DIR/never --save-interval 1 --self-check"
LLAMA="--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear --qk-layernorm
 --untie-embeddings-and-output-weights --group-query-attention --num-query-groups 4
 --cross-entropy-loss-fusion --cross-entropy-fusion-impl linear"
FULL="--recompute-granularity full --recompute-method"
TP="--tensor-model-parallel-size"
PP="--pipeline-model-parallel-size"
EP="--expert-model-parallel-size"
MOE="--num-experts 32 --moe-router-topk 2 --moe-ffn-hidden-size 128 --moe-layer-freq [0]*2+[1]*6 --moe-aux-loss-coeff 0.01
 --moe-shared-expert-intermediate-size 64 --swiglu --disable-bias-linear --position-embedding-type rope
 --untie-embeddings-and-output-weights"
has_mpi() { ldd "$PRETRAIN" | grep -q libmpi && command -v mpirun >/dev/null; }
ranks() { # ranks, program, flags...
    local n=$1
    shift
    if [ "$n" = 1 ]; then "$@"; else timeout 120 mpirun --oversubscribe --bind-to none -np "$n" "$@"; fi
}
agrees() { # name, ranks, flags...
    local name=$1 n=$2
    shift 2
    # shellcheck disable=SC2086
    is "$name: exits 0" "$(status_of ranks "$n" "$PRETRAIN" $BIG "$@")" 0
    contains "$name: agrees" out "initial weights are bit-equal" "the layout agrees with one rank"
    sed -n 's/^self-check: loss/# &/p' out
}

# ---- right layouts ----
agrees "one rank" 1
contains "each step prints loss, gradient norm, worst gradient and tolerance" out "self-check step 1: loss " \
    "self-check step 3: loss " "gradient norm " "worst gradient " "tolerance "
contains "the table names parameters" out "  decoder.layers."
is "--self-check-steps is the number of steps" "$(status_of "$PRETRAIN" $BIG --self-check-steps 25 && grep -c '^self-check step' out)" "0
25"
contains "errors do not grow with the steps" out "the layout agrees with one rank"
ok "nothing is saved" test ! -e never
ok "nothing is trained" sh -c '! grep -q "lm loss" out'
if has_mpi; then
    agrees "tensor and sequence parallel, Llama" 2 $TP 2 --sequence-parallel $LLAMA
    agrees "data parallel, sharded optimizer, overlap" 2 --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather
    agrees "FSDP" 2 --use-megatron-fsdp $LLAMA
    agrees "context parallel" 2 --context-parallel-size 2
    agrees "pipeline, tensor, sequence parallel, recompute" 4 $TP 2 $PP 2 --sequence-parallel $FULL block --recompute-num-layers 1
    agrees "virtual stages, data parallel" 4 $PP 2 --num-virtual-stages-per-pipeline-rank 2 $FULL uniform --recompute-num-layers 2
    agrees "experts over ranks that split sequences, FSDP" 4 $TP 2 --sequence-parallel $EP 2 --expert-tensor-parallel-size 1 $MOE \
        --use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params
    agrees "experts split both ways, pipeline, sharded optimizer" 8 $TP 2 $PP 2 --sequence-parallel $EP 2 $MOE --use-distributed-optimizer
    agrees "zero-bubble, uneven stages" 2 $PP 2 --pipeline-schedule zero-bubble --decoder-first-pipeline-num-layers 3
fi

# ---- mistakes ----
# A program with one source file changed; the archive's other objects stay. Fails when the line is not there.
broken() { # program, source file, sed command
    local object
    object=$(basename "$2" .c).o
    mkdir -p "source/$(dirname "$2")"
    sed "$3" "$ROOT/$2" >"source/$2"
    cmp -s "$ROOT/$2" "source/$2" && return 1
    cc -std=c11 -D_GNU_SOURCE -O2 -w -pthread -I"$ROOT" -c -o "$object" "source/$2" || return 1
    cp "$B/libpretrain.a" broken.a && ar r broken.a "$object" 2>/dev/null || return 1
    # shellcheck disable=SC2046
    cc -pthread -o "$1" "$B/cmd/pretrain_gpt.o" -Wl,--whole-archive broken.a -Wl,--no-whole-archive \
        $(ldd "$PRETRAIN" | awk '/libmpi|libpcre2|libyaml/ { print $3 }') -lm
}
disagrees() { # name, ranks, file, sed command, flags...
    local name=$1 n=$2
    ok "$name: the mistake is built in" broken ./wrong "$3" "$4"
    shift 4
    # shellcheck disable=SC2086
    is "$name: exits 1" "$(status_of ranks "$n" ./wrong $BIG "$@")" 1
    contains "$name: disagrees" out "the layout DISAGREES with one rank"
    sed -n 's/^self-check step 1/# &/p' out
    contains "$name: names the worst" err "--self-check: this layout does not compute what one rank computes" "gradient of "
}
if has_mpi && command -v cc >/dev/null && [ -e "$B/libpretrain.a" ]; then
    disagrees "gradients of norms are not summed over tensor-parallel ranks" 2 core/train/sync.c \
        's/if (p->sum_over_tensor) /if (0) /' $TP 2 --sequence-parallel
    disagrees "the two copies of a tied embedding are not summed" 2 core/train/sync.c \
        's/if (plan->params\[i\].is_tied_copy) {/if (0) {/' $PP 2
    disagrees "the loss is not divided by the data-parallel ranks" 2 core/train/step.c \
        's/micro_batches \* (double)t->cfg->data_parallel_size/micro_batches/'
    disagrees "gradients of experts are summed over ranks with other experts" 4 core/train/sync.c \
        's/b->family == FAMILY_EXPERT ? e->comms.expert_data : e->comms.data/e->comms.data/' $EP 2 $MOE
    disagrees "each rank draws its own dropout masks" 2 core/train/step.c \
        's/a->micro_batch \* (int)t->cfg->data_parallel_size + data_rank(t)/a->micro_batch/'
    disagrees "every rank saves the first share of a layer's input" 2 core/train/executor.c \
        's/(share \* m->tp_rank)/(share * 0)/' $TP 2 $FULL uniform --recompute-num-layers 1 --distribute-saved-activations
fi
echo "1..$number"
