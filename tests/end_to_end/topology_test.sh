#!/bin/bash
# --print-topology is Megatron-LM's order of ranks, and worlds that do not fit are refused: exit 2 and one line of one rank, under
# mpirun too and without a hang.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PYTHONDONTWRITEBYTECODE=1
model="--num-layers 8 --hidden-size 64 --num-attention-heads 8 --seq-length 32 --max-position-embeddings 32 --micro-batch-size 1
 --global-batch-size 64 --train-iters 2 --lr 1e-3 --mock-data --vocab-size 500 --eval-iters 0 --cpu-threads 1"

topology() { # tp cp pp world mapping
    local mapping=
    [ "$5" = dp-pp ] || mapping=--use-tp-pp-dp-mapping
    # shellcheck disable=SC2086
    "$PRETRAIN" $model --print-topology --world-size "$4" --tensor-model-parallel-size "$1" --context-parallel-size "$2" \
        --pipeline-model-parallel-size "$3" $mapping >topology 2>/dev/null </dev/null && python3 "$here/topology.py" "$@" <topology
}
for sizes in "1 1 1 1" "2 1 1 2" "1 2 1 4" "2 2 2 16" "4 1 2 16" "4 2 4 64" "1 2 4 16" "8 1 1 8" "2 2 4 32" "1 1 8 8"; do
    for mapping in dp-pp pp-dp; do
        # shellcheck disable=SC2086
        ok "tp cp pp world = $sizes in the order $mapping: groups are Megatron-LM's" topology $sizes $mapping
    done
done
# shellcheck disable=SC2086
"$PRETRAIN" $model --print-topology --world-size 8 --tensor-model-parallel-size 4 --group-query-attention --num-query-groups 2 >topology 2>/dev/null
contains "ranks that share a key/value head are named" topology "key-value-replicas: [0 1] [2 3] [4 5] [6 7]"

# ---- layouts that do not fit ----
refused() { # name, word of the message, flags...: exit 2, with one line that holds the word
    local name=$1 word=$2
    shift 2
    # shellcheck disable=SC2086
    is "$name: exit 2" "$(status_of timeout 60 $launcher "$PRETRAIN" $model "$@")" 2
    is "$name: one line of one rank" "$(cat out err | grep -c 'error:')" 1
    contains "$name: names $word" err "$word"
    ok "$name: nothing of the run has begun" test "$(cat out err | grep -c 'iteration .*|')" = 0
}
refuse_all() { # ranks: as many are started, or planned for
    local n=$1 world=
    [ -n "$launcher" ] || world="--world-size $n --dry-run"
    # shellcheck disable=SC2086
    {
        refused "$n ranks, sizes that do not divide them" "multiple of --tensor-model-parallel-size" $world --tensor-model-parallel-size 3 --hidden-size 96 --num-attention-heads 12
        refused "$n ranks, pipeline of more" "--pipeline-model-parallel-size" $world --pipeline-model-parallel-size 8
        refused "$n ranks, heads" "--num-attention-heads" $world --tensor-model-parallel-size 4 --num-attention-heads 2
        refused "$n ranks, query groups" "--num-query-groups" $world --tensor-model-parallel-size 4 --group-query-attention --num-query-groups 6 --num-attention-heads 12 --hidden-size 96
        refused "$n ranks, MLP width" "--ffn-hidden-size" $world --tensor-model-parallel-size 4 --ffn-hidden-size 250
        refused "$n ranks, layers" "--num-layers" $world --pipeline-model-parallel-size 4 --num-layers 6
        refused "$n ranks, sequence of context-parallel ranks" "--context-parallel-size" $world --context-parallel-size 4 --seq-length 36 --max-position-embeddings 36
        refused "$n ranks, sequence of tensor-parallel ranks" "--sequence-parallel" $world --tensor-model-parallel-size 4 --sequence-parallel --seq-length 30
        refused "$n ranks, batch" "--global-batch-size" $world --global-batch-size 66
        refused "$n ranks, too few micro-batches for virtual stages" "micro-batches" $world --pipeline-model-parallel-size 4 --num-virtual-stages-per-pipeline-rank 2 --global-batch-size 2
        refused "$n ranks, FSDP with virtual stages" "--use-megatron-fsdp" $world --pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2 --use-megatron-fsdp
        refused "$n ranks, zero-bubble without a pipeline" "--pipeline-schedule" $world --pipeline-schedule zero-bubble
        refused "$n ranks, stages that do not add up" "--decoder-first-pipeline-num-layers" $world --pipeline-model-parallel-size 4 --decoder-first-pipeline-num-layers 7 --decoder-last-pipeline-num-layers 3
        refused "$n ranks, exchange of heads that do not divide" "--cp-comm-type" $world --tensor-model-parallel-size 2 --context-parallel-size 2 --cp-comm-type a2a --group-query-attention --num-query-groups 2
        refused "$n ranks, saved activations split twice" "--distribute-saved-activations" $world --tensor-model-parallel-size 2 --sequence-parallel --recompute-granularity full --recompute-method uniform --recompute-num-layers 1 --distribute-saved-activations
        refused "$n ranks, a flag that is none" "--nonsense" $world --nonsense
    }
}
launcher=
refuse_all 4
if ! command -v mpirun >/dev/null || ! "$PRETRAIN" --version | grep -q mpi=1; then
    echo "ok $((number + 1)) - the same under mpirun # SKIP built without MPI"
    exit 0
fi
launcher="mpirun --oversubscribe --bind-to none -np 4"
refuse_all 4
refused "another --world-size than ranks run" "--world-size 8, but 4 ranks run" --world-size 8
refused "a checkpoint that is missing" "--exit-on-missing-checkpoint" --load nowhere --exit-on-missing-checkpoint
mkdir empty
refused "a metrics file that cannot be made" "metrics" --metrics-file empty
# shellcheck disable=SC2086
is "--print-topology under mpirun prints once: exit 0" "$(status_of timeout 60 $launcher "$PRETRAIN" $model --print-topology --tensor-model-parallel-size 2)" 0
ok "for the ranks that run" python3 "$here/topology.py" 2 1 1 4 dp-pp <out
