#!/bin/bash
# --find-max-micro-batch-size is exact (--verify runs its answers): a dry run with each size that it names fits, with the next size it does not.
. "$(dirname "$0")/lib.sh"
MODEL="--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 64 --max-position-embeddings 64 --vocab-size 512 --mock-data
    --hidden-dropout 0 --attention-dropout 0 --bf16 --hardware h100 --device-memory-limit 30MiB"
flags_of() { # words of a row: the flags that give its setting
    case $1 in
    none) ;;
    selective) echo "--recompute-granularity selective --recompute-modules ${*:2}" ;;
    full) echo "--recompute-granularity full --recompute-method $2 --recompute-num-layers $3" ;;
    auto) echo "--recompute-granularity auto" ;;
    esac
}
# shellcheck disable=SC2086
check() { # name, flags of the layout
    local name=$1 rows row size flags
    shift
    is "$name: runs" "$(status_of "$PRETRAIN" $MODEL "$@" --micro-batch-size 1 --find-max-micro-batch-size --dry-run-json plan.json)" 0
    sed 's/.*"largest_micro_batch"://; s/},{/}\n{/g' plan.json | sed -n 's/.*"recompute":"\([^"]*\)","micro_batch_size":\([0-9]*\).*/\2 \1/p' >rows
    command -v python3 >/dev/null && ok "$name: the JSON can be read" python3 -c 'import json; w = json.load(open("plan.json")); w["predicted"], w["largest_micro_batch"][0]'
    rows=$(wc -l <rows)
    ok "$name: a row for each setting" test "$rows" -ge 9
    while read -r size row; do
        flags=$(flags_of $row)
        is "$name, $row: $size fits" "$(status_of "$PRETRAIN" $MODEL "$@" $flags --micro-batch-size "$size" --dry-run)" 0
        size=$((size + 1))
        is "$name, $row: $size does not" "$(case $(status_of "$PRETRAIN" $MODEL "$@" $flags --micro-batch-size $size --dry-run) in 2 | 3) echo no ;; esac)" no
    done <rows
}
check "one rank"
check "two stages" --pipeline-model-parallel-size 2 --world-size 2
# with a global batch: sizes that divide it; with two stages a step in one micro-batch has only one in flight
# shellcheck disable=SC2086
is "a global batch: runs" "$(status_of "$PRETRAIN" $MODEL --micro-batch-size 1 --global-batch-size 24 --find-max-micro-batch-size)" 0
contains "a global batch: only sizes that divide it" out "divide --global-batch-size 24"
sizes=$(sed -n '/^  --recompute-granularity/,$p' out | sed -n 's/^  \(none\|selective.*\|full.*\|auto\)  *\([0-9]\{1,3\}\) .*/\2/p')
ok "a global batch: there are rows" test "$(echo "$sizes" | wc -l)" -ge 9
for size in $sizes; do is "$size divides 24" $((24 % size)) 0; done
# shellcheck disable=SC2086
is "no limit" "$(status_of "$PRETRAIN" ${MODEL%--hardware*} --micro-batch-size 1 --find-max-micro-batch-size)" 2
contains "it says what is needed" err "--device-memory-limit"

# --verify runs a step at each answer and plans the next size
verified() { # name, file with the output: every row of the table has one, and each is confirmed
    sed -n '/^largest/,/^verified/p' "$2" | sed -n 's/^  \(.*[a-z0-9]\)  *\([0-9][0-9]*\)  *[0-9.]* .iB .*/\1: \2/p' | tr -s ' ' | sed 's/ :/:/' >answers
    sed -n '/^verified/,$p' "$2" | sed -n 's/^  \(.*[a-z0-9]\)  *\([0-9]*\): measured .* as planned; .*\(does not fit\|no larger size may be given\)$/\1: \2/p' | tr -s ' ' | sed 's/ :/:/' >confirmed
    ok "$1: there are answers" test "$(wc -l <answers)" -ge 9
    is "$1: each is confirmed" "$(cat confirmed)" "$(cat answers)"
}
VERIFY="${MODEL/30MiB/12MiB} --micro-batch-size 1 --find-max-micro-batch-size --verify --lr 1e-3 --train-iters 4"
# shellcheck disable=SC2086
{
    is "verify: runs" "$(status_of "$PRETRAIN" $VERIFY)" 0
    verified "verify" out
    is "verify: nothing needs more than the limit" "$(sed -n 's/.* measured .* (\([0-9]*\) bytes).*/\1/p' out | awk '$1 > 12582912' | wc -l)" 0
    is "verify: with --dry-run" "$(status_of "$PRETRAIN" $VERIFY --dry-run)" 2
    is "verify: alone" "$(status_of "$PRETRAIN" $SMALL --verify)" 2
    is "verify: beside a recompute setting" "$(status_of "$PRETRAIN" $VERIFY --recompute-activations)" 2
}
command -v mpirun >/dev/null && "$PRETRAIN" --version | grep -q mpi=1 || exit 0
# shellcheck disable=SC2086
launch stages 2 $VERIFY --pipeline-model-parallel-size 2 --global-batch-size 24 --cpu-threads 1
await "$launched" 120
is "verify, two stages: runs" "$ended" 0
verified "verify, two stages" stages.out
# shellcheck disable=SC2086
launch data 2 $VERIFY --use-distributed-optimizer --cpu-threads 1
await "$launched" 120
is "verify, two data-parallel ranks: runs" "$ended" 0
verified "verify, two data-parallel ranks" data.out
