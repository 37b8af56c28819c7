#!/bin/bash
# Communication that compute waits for, with each overlap flag off and on: a markdown table. The runs alternate over the variants; a
# step time is the least of all iterations, the other columns are medians over iterations of the rank that waited longest (see
# tests/end_to_end/overlap_of_traces.py). Needs mpirun and python3.
#     scripts/bench_overlap.sh [rounds, default 3] [flags of pretrain_gpt for another model ...]
# With $ONLY set, only variants whose name holds it run.
set -eu
cd "$(dirname "$0")/.."
rounds=${1:-3}
[ $# -eq 0 ] || shift
build=${BUILD:-build}
make -s BUILD="$build" all
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
[ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
model=("$@")
[ ${#model[@]} -gt 0 ] || model=(--num-layers 8 --hidden-size 512 --num-attention-heads 8 --seq-length 512
    --max-position-embeddings 512 --micro-batch-size 1 --global-batch-size 4 --vocab-size 8192 --hidden-dropout 0
    --attention-dropout 0 --bf16)
reduce="--overlap-grad-reduce --ddp-bucket-size 4000000"
zero1="--use-distributed-optimizer"
fsdp="--use-megatron-fsdp --data-parallel-sharding-strategy"
vpp="--num-layers-per-virtual-pipeline-stage"
pp4="--pipeline-model-parallel-size 4 $vpp 1 --global-batch-size 8"
variants=("DP 2|2|" "DP 2|2|$reduce"
    "DP 2, distributed optimizer|2|$zero1" "DP 2, distributed optimizer|2|$zero1 $reduce"
    "DP 2, distributed optimizer|2|$zero1 $reduce --overlap-param-gather"
    "FSDP 2|2|$fsdp optim_grads" "FSDP 2|2|$fsdp optim_grads_params"
    "TP 2|2|--tensor-model-parallel-size 2" "TP 2, SP|2|--tensor-model-parallel-size 2 --sequence-parallel"
    "PP 2|2|--pipeline-model-parallel-size 2" "PP 2, virtual stages|2|--pipeline-model-parallel-size 2 $vpp 2"
    "PP 4, virtual stages|4|$pp4 --no-overlap-p2p-communication" "PP 4, virtual stages|4|$pp4"
    "CP 2|2|--context-parallel-size 2" "CP 2|2|--context-parallel-size 2 $reduce")
run() { # index, round
    local ranks flags name=${variants[$1]%%|*}
    [[ $name == *"${ONLY:-}"* ]] || return 0
    ranks=${variants[$1]#*|} flags=${ranks#*|} ranks=${ranks%%|*}
    # shellcheck disable=SC2086
    mpirun --oversubscribe -np "$ranks" "$build/pretrain_gpt" "${model[@]}" --mock-data --train-iters 8 --lr 1e-4 --eval-iters 0 \
        --log-interval 1000 --metrics-file "$work/$1.$2.metrics" --cpu-threads 1 $flags --profile --profile-step-start 2 \
        --profile-step-end 8 --profile-ranks $(seq 0 $((ranks - 1))) --profile-trace-file "$work/$1.$2.json" >/dev/null 2>"$work/err" ||
        { grep -m 1 error "$work/err" >&2; exit 1; }
}
for round in $(seq "$rounds"); do
    for i in "${!variants[@]}"; do run "$i" "$round"; done
    echo "round $round of $rounds" >&2
done
echo "| layout | overlap flags | ranks | step ms | under way ms | exposed ms (least) | exposed by group and kind, ms |"
echo "|---|---|---:|---:|---:|---:|---|"
for i in "${!variants[@]}"; do
    name=${variants[$i]%%|*} ranks=${variants[$i]#*|} flags=${ranks#*|} ranks=${ranks%%|*}
    [[ $name == *"${ONLY:-}"* ]] || continue
    shown=
    for flag in $flags; do
        case $flag in --overlap-* | --no-overlap-*) shown="$shown \`$flag\`" ;; optim*) shown="$shown \`$flag\` (always overlaps)" ;; esac
    done
    traces=()
    for round in $(seq "$rounds"); do
        traces+=("$work/$i.$round.json")
        for ((rank = 1; rank < ranks; rank++)); do traces+=("$work/$i.$round.rank$rank.json"); done
    done
    echo "| $name |${shown:- none} | $ranks | $(python3 tests/end_to_end/overlap_of_traces.py --row "$ranks" "$work/$i".*.metrics -- "${traces[@]}")"
done
