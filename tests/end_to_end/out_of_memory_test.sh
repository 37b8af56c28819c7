#!/bin/bash
# Out of memory is found by the plan, before anything is taken: exit status 3, who holds the memory, and changes
# of flags that fit, on one rank, over several, and in a dry run.
. "$(dirname "$0")/lib.sh"
SMALL=${SMALL/--num-layers 3/--num-layers 4}
# shellcheck disable=SC2086
run() { status_of "$PRETRAIN" $SMALL "$@"; }
plan() { run "$@" --dry-run-json p >/dev/null; sed -n 's/.*"max_peak_allocated_bytes": *\([0-9]*\).*/\1/p' p; }
recompute_remedy() { sed -n 's/.*setting that fits is \(--recompute.*\) ([0-9.]* .iB).*/\1/p' err; }

less=$(($(plan) - 200000))
is "out of memory is status 3" "$(run --device-memory-limit ${less}B)" 3
contains "who holds the memory is said" err "the 10 largest holders at the peak:" "  optimizer" "  kept mlp linear_fc1" "in 4 tensors"
remedy=$(recompute_remedy)
other=$(sed -n 's/.*without more recompute \(--.*\) fits too$/\1/p' err)
listed=$(sed -n 's/.* of the FLOPs recomputed  //p' err)
is "a remedy without recompute" "$other" "--micro-batch-size 1"
# shellcheck disable=SC2086
is "the recompute remedy fits" "$(run --device-memory-limit ${less}B $remedy)" 0
# shellcheck disable=SC2086
is "so does the other" "$(run --device-memory-limit ${less}B $other)" 0
ok "more are listed" test "$(echo "$listed" | wc -l)" -ge 3
while read -r remedy; do
    # shellcheck disable=SC2086
    ok "fits, as it says: $remedy" test "$(plan $remedy)" -le $less
done <<<"$listed"

is "a dry run that does not fit is status 3 too" "$(run --dry-run --device-memory-limit ${less}B)" 3
contains "the plan says who holds the memory" out "the 10 largest holders at the peak:" "  kept mlp linear_fc1"
is "once" "$(cat out err | grep -c 'largest holders')" 1
contains "with the same advice" err "what fits, the least recompute first" "out of device memory" "--recompute-"
both=$(plan --micro-batch-size 1 --recompute-granularity full --recompute-method uniform --recompute-num-layers 1)
is "one change is not enough" "$(run --device-memory-limit ${both}B)" 3
contains "two are named" err "no recompute setting fits alone" "--micro-batch-size 1"
remedy=$(sed -n 's/.*cheapest change that fits is \(--.*\) ([0-9.]* .iB)$/\1/p' err)
# shellcheck disable=SC2086
is "they fit together" "$(run --device-memory-limit ${both}B $remedy)" 0
is "nothing fits in one byte" "$(run --device-memory-limit 1B)" 3
contains "and it says so" err "no recompute setting fits: lower"
huge="--num-layers 96 --hidden-size 12288 --num-attention-heads 96"
# shellcheck disable=SC2086
is "more than the machine has is status 3" "$(run $huge)" 3
contains "found by the plan" err "out of device memory: the plan needs" " has "
# shellcheck disable=SC2086
is "and a dry run of it is fine" "$(run $huge --dry-run)" 0

# four ranks, planned: two stages, each twice
four="--world-size 4 --pipeline-model-parallel-size 2"
# the holders of a dry run are those of the rank with the highest peak: here a rank of the last stage, which has the loss
# shellcheck disable=SC2086
if command -v python3 >/dev/null; then
    run $four --padded-vocab-size 65536 --dry-run-json world.json >/dev/null
    is "two stages: one table of holders" "$(grep -c 'largest holders' out)" 1
    ok "it is about the rank with the highest peak" python3 -c '
import json, sys
world = json.load(open("world.json"))
rows, of = world["holders"], world["ranks"]
top = of[world["max_peak_rank"]]
assert len(rows) == 10 and [r["bytes"] for r in rows] == sorted((r["bytes"] for r in rows), reverse=True), rows
same = {r["category"]: r["bytes"] for r in rows if r["category"] in ("weights", "gradients", "optimizer", "workspace")}
assert len(same) == 4 and all(top["by_category"][k] == v for k, v in same.items()), (same, top)
assert top["stage"] == 1 and of[0]["by_category"]["weights"] != same["weights"]
assert sum(r["bytes"] for r in rows) <= world["max_peak_allocated_bytes"]'
fi
# shellcheck disable=SC2086
sharded=$(plan $four --use-distributed-optimizer)
# shellcheck disable=SC2086
is "two stages that do not fit" "$(run --dry-run $four --device-memory-limit ${sharded}B)" 3
contains "the distributed optimizer alone does it" err "the cheapest change that fits is --use-distributed-optimizer ("
if command -v mpirun >/dev/null && "$PRETRAIN" --version | grep -q mpi=1; then
    need=$(plan --world-size 2 --pipeline-model-parallel-size 2 --cpu-threads 1)
    # shellcheck disable=SC2086
    launch job 2 $SMALL --pipeline-model-parallel-size 2 --cpu-threads 1 --device-memory-limit $((need - 100000))B
    await "$launched" 120
    is "one stage of a job does not fit: status 3" "$ended" 3
    contains "with advice" job.err "the 10 largest holders" "out of device memory: the plan needs"
    # shellcheck disable=SC2086
    launch all 2 $SMALL --pipeline-model-parallel-size 2 --device-memory-limit 1B
    await "$launched" 120
    is "no rank fits: status 3" "$ended" 3
fi
