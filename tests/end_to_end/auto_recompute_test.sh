#!/bin/bash
# Automatic recompute through the program itself: at three budgets the parameters after training have the hash of the run without
# recompute and the measured peak is within the budget; a written plan is replayed; over pipeline ranks too; what cannot be is refused.
. "$(dirname "$0")/lib.sh"
MODEL="$SMALL --num-layers 4 --seq-length 128 --max-position-embeddings 128 --train-iters 3"
auto="--recompute-granularity auto"
peak() { # file of --dry-run-json
    sed -n 's/.*"max_peak_allocated_bytes": *\([0-9]*\).*/\1/p' "$1"
}
at_most() { [ "$1" -le "$2" ]; }
# shellcheck disable=SC2086
{
    is "without recompute: runs" "$(status_of "$PRETRAIN" $MODEL --log-params-hash --metrics-file none.jsonl)" 0
    is "without recompute: dry run" "$(status_of "$PRETRAIN" $MODEL --dry-run-json none.plan)" 0
    is "full: dry run" "$(status_of "$PRETRAIN" $MODEL --dry-run-json full.plan --recompute-granularity full --recompute-method uniform \
        --recompute-num-layers 1)" 0
}
most=$(peak none.plan) least=$(peak full.plan) hash=$(value none.jsonl params_hash)
ok "the hash is a hash" test ${#hash} = 16
for share in 0 1 2; do
    budget=$((least + (most - least) * share / 3))
    # shellcheck disable=SC2086
    is "budget $share of 3: runs" "$(status_of "$PRETRAIN" $MODEL $auto --recompute-memory-budget ${budget}B --recompute-plan-out $share.yaml \
        --log-params-hash --metrics-file auto.jsonl)" 0
    is "budget $share of 3: same parameters" "$(value auto.jsonl params_hash)" "$hash"
    ok "budget $share of 3: the measured peak is within it" at_most "$(value auto.jsonl peak_allocated_bytes)" "$budget"
    ok "budget $share of 3: something is recomputed" test "$(value auto.jsonl recompute_ms)" != 0
    # shellcheck disable=SC2086
    is "budget $share of 3: the plan is replayed" "$(status_of "$PRETRAIN" $MODEL --recompute-plan $share.yaml --log-params-hash \
        --metrics-file again.jsonl)" 0
    is "replayed: the same peak" "$(value again.jsonl peak_allocated_bytes)" "$(value auto.jsonl peak_allocated_bytes)"
    is "replayed: the same parameters" "$(value again.jsonl params_hash)" "$hash"
done
# shellcheck disable=SC2086
{
    is "a share of the limit" "$(status_of "$PRETRAIN" $MODEL $auto --recompute-memory-budget 0.99 --device-memory-limit "${most}B" --dry-run-json share.plan)" 0
    ok "a share of the limit: within it" at_most "$(peak share.plan)" $((most * 99 / 100))
    is "the limit itself" "$(status_of "$PRETRAIN" $MODEL $auto --device-memory-limit "${most}B" --dry-run-json limit.plan)" 0
    is "the limit itself: nothing is recomputed" "$(peak limit.plan)" "$most"
    is "a budget that nothing fits" "$(status_of "$PRETRAIN" $MODEL $auto --recompute-memory-budget 1MiB --dry-run)" 2
    contains "it says what the smallest plan takes" err "no choice fits 1.00 MiB" "the smallest plan of pipeline stage 0 takes" "--recompute-memory-budget"
    is "no budget" "$(status_of "$PRETRAIN" $MODEL $auto --dry-run)" 2
    contains "it says what is needed" err "--recompute-memory-budget" "--device-memory-limit"
    is "a share of nothing" "$(status_of "$PRETRAIN" $MODEL $auto --recompute-memory-budget 0.9 --dry-run)" 2
    is "no share and no size" "$(status_of "$PRETRAIN" $MODEL $auto --recompute-memory-budget 1.5 --device-memory-limit 1GiB --dry-run)" 2
    contains "it shows both" err "70GiB" "0.9"
    is "modules beside auto" "$(status_of "$PRETRAIN" $MODEL $auto --recompute-memory-budget 1GiB --recompute-modules mlp --dry-run)" 2
    is "a method beside auto" "$(status_of "$PRETRAIN" $MODEL $auto --recompute-memory-budget 1GiB --recompute-method block --dry-run)" 2
    is "auto and --recompute-activations" "$(status_of "$PRETRAIN" $MODEL $auto --recompute-memory-budget 1GiB --recompute-activations --dry-run)" 2
    is "a budget without auto" "$(status_of "$PRETRAIN" $MODEL --recompute-memory-budget 1GiB --dry-run)" 2
    is "a plan beside a budget" "$(status_of "$PRETRAIN" $MODEL --recompute-plan 0.yaml --recompute-memory-budget 1GiB --dry-run)" 2
    is "a plan of another model" "$(status_of "$PRETRAIN" $MODEL --num-layers 3 --recompute-plan 0.yaml --dry-run)" 2
    contains "it says the line" err "0.yaml, line 2"
    printf 'num_layers: 4\nlayers:\n  0-3: moe\n' >moe.yaml
    is "a module that the model lacks" "$(status_of "$PRETRAIN" $MODEL --recompute-plan moe.yaml --dry-run)" 2
    printf 'num_layers: 4\nlayers:\n  0-3: group\n' >group.yaml
    is "a group over two stages" "$(status_of "$PRETRAIN" $MODEL --recompute-plan group.yaml --pipeline-model-parallel-size 2 --world-size 2 --dry-run)" 2
    contains "it says which layers" err "layers 0 to 3 are one group" "starts at layer 2"
    is "a plan that cannot be written" "$(status_of "$PRETRAIN" $MODEL $auto --recompute-memory-budget 1GiB --recompute-plan-out /nowhere/p --dry-run)" 2
    is "hardware that there is not" "$(status_of "$PRETRAIN" $MODEL --hardware h9000 --dry-run)" 2
    contains "it lists the profiles" err "a100, h100, h200, b200"
    is "a predicted step" "$(status_of "$PRETRAIN" $MODEL --hardware h100 --device-memory-limit 1GiB --dry-run-json hw.plan)" 0
    contains "it says time, rate and utilisation" out "predicted step on h100" "tokens/s" "MFU" "fits --device-memory-limit"
    contains "so does the JSON" hw.plan '"step_seconds":' '"tokens_per_second":' '"mfu":' '"fits": true'
}
if ! command -v mpirun >/dev/null; then
    ok "two pipeline ranks # SKIP no mpirun here" true
    exit 0
fi
for setting in none auto; do
    flags=''
    [ $setting = auto ] && flags="$auto --recompute-memory-budget ${budget}B --recompute-plan-out two.yaml"
    # shellcheck disable=SC2086
    launch two.$setting 2 $MODEL --pipeline-model-parallel-size 2 $flags --log-params-hash --metrics-file two.$setting.jsonl
    wait "$launched"
    is "two pipeline ranks, $setting: runs" $? 0
    [ $setting = none ] && budget=$(($(value two.none.jsonl peak_allocated_bytes) - 100000))
done
is "two pipeline ranks: same parameters" "$(value two.auto.jsonl params_hash)" "$(value two.none.jsonl params_hash)"
ok "two pipeline ranks: the measured peak is within the budget" at_most "$(value two.auto.jsonl peak_allocated_bytes)" "$budget"
contains "two pipeline ranks: a plan for all layers" two.yaml "num_layers: 4" "layers:"
