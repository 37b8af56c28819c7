#!/bin/bash
# --recompute-sweep: a row for each setting with the peak that a dry run of that setting plans, equal parameters, and files that
# can be read; over two ranks too; predicted without running.
. "$(dirname "$0")/lib.sh"
MODEL="$SMALL --hardware h100 --recompute-sweep"
# shellcheck disable=SC2086
{
    is "it runs" "$(status_of "$PRETRAIN" $MODEL --recompute-sweep-steps 2 --recompute-sweep-out table)" 0
    contains "it prints a table" out "recompute sweep, measured" "none " "selective layernorm mlp_act" "full block 2" "full uniform 1" "auto "
    is "no setting changes the parameters" "$(grep -c DIFFER out)" 0
    is "all settings end with one hash" "$(sed 's/.*"params_hash":"\([0-9a-f]*\)".*/\1/' table.jsonl | sort -u | grep -c '^[0-9a-f]\{16\}$')" 1
    for row in "none|" "selective core_attn|--recompute-activations" "full uniform 1|--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"; do
        status_of "$PRETRAIN" $SMALL ${row#*|} --dry-run-json plan >/dev/null
        is "${row%%|*}: its peak is the planned one" "$(sed -n 's/.*"recompute":"'"${row%%|*}"'".*"peak_allocated_bytes":\([0-9]*\).*/\1/p' table.jsonl)" \
            "$(sed -n 's/.*"max_peak_allocated_bytes": *\([0-9]*\).*/\1/p' plan)"
    done
    is "it predicts" "$(status_of "$PRETRAIN" $MODEL --dry-run --device-memory-limit 1GiB --recompute-sweep-out predicted)" 0
    contains "without running" out "recompute sweep, predicted" "largest micro-b"
    is "the same rows, and auto at the limit" "$(sed 's/.*"recompute":"\([^"]*\)".*/\1/' predicted.jsonl | grep -vx 'auto 1.00 GiB' | md5sum)" "$(sed 's/.*"recompute":"\([^"]*\)".*/\1/' table.jsonl | md5sum)"
    ok "predicted: no recompute is fastest and on the frontier" grep -q '"recompute":"none".*"frontier":true' predicted.jsonl
    # the largest micro-batch of an auto row is what its flags allow; a search by --find-max-micro-batch-size agrees at the limit
    autos="${MODEL%--recompute-sweep} --device-memory-limit 10MiB --dry-run"
    autos=${autos/--micro-batch-size 2 --global-batch-size 4/}
    is "auto rows: runs" "$(status_of "$PRETRAIN" $autos --micro-batch-size 2 --recompute-sweep --recompute-sweep-out autos)" 0
    sed -n 's/.*"budget_bytes":\([0-9]*\),.*"largest_micro_batch_size":\([0-9]*\),"largest_tokens_per_second":\([0-9]\).*/\1 \2/p' autos.jsonl >rows
    is "auto rows: four have a largest micro-batch and its tokens/s" "$(wc -l <rows)" 4
    while read -r budget size; do
        flags="$autos --recompute-granularity auto --recompute-memory-budget ${budget}B --micro-batch-size"
        is "auto in $budget bytes: $size fits" "$(status_of "$PRETRAIN" $flags $size)" 0
        is "auto in $budget bytes: $((size + 1)) does not" "$(status_of "$PRETRAIN" $flags $((size + 1)))" 2
    done <rows
    status_of "$PRETRAIN" $autos --micro-batch-size 2 --find-max-micro-batch-size >/dev/null
    is "auto at the limit is as in the other table" "$(tail -n 1 rows)" "10485760 $(sed -n 's/^  auto  *\([0-9]*\) .*/\1/p' out)"
    is "what does not fit is said, not run" "$(status_of "$PRETRAIN" $MODEL --recompute-sweep-steps 2 --device-memory-limit 1KiB)" 0
    contains "every row" out "does not fit"
    is "recompute flags beside it" "$(status_of "$PRETRAIN" $MODEL --recompute-activations --dry-run)" 2
    is "its steps without it" "$(status_of "$PRETRAIN" $SMALL --recompute-sweep-steps 3 --dry-run)" 2
    is "its file without it" "$(status_of "$PRETRAIN" $SMALL --recompute-sweep-out x --dry-run)" 2
    is "a file that cannot be written" "$(status_of "$PRETRAIN" $MODEL --dry-run --recompute-sweep-out /nowhere/x)" 2
}
if command -v python3 >/dev/null; then
    ok "the pictures are well-formed, with a point for each row" python3 -c '
import json, sys, xml.etree.ElementTree as tree
for name in sys.argv[1:]:
    rows = [json.loads(line) for line in open(name + ".jsonl")]
    points = [e for e in tree.parse(name + ".svg").iter() if e.tag.endswith("}circle")]
    assert len(rows) == len(points) >= 10, (len(rows), len(points))' table predicted
fi
command -v mpirun >/dev/null || exit 0
# shellcheck disable=SC2086
launch two 2 $MODEL --num-layers 4 --pipeline-model-parallel-size 2 --recompute-sweep-steps 2 --recompute-sweep-out two
wait "$launched"
is "two pipeline ranks: runs" $? 0
is "two pipeline ranks: one hash" "$(sed 's/.*"params_hash":"\([0-9a-f]*\)".*/\1/' two.jsonl | sort -u | wc -l)" 1
