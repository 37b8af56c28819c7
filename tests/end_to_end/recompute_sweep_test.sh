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
    is "the same rows" "$(sed 's/.*"recompute":"\([^"]*\)".*/\1/' predicted.jsonl | md5sum)" "$(sed 's/.*"recompute":"\([^"]*\)".*/\1/' table.jsonl | md5sum)"
    ok "predicted: no recompute is fastest and on the frontier" grep -q '"recompute":"none".*"frontier":true' predicted.jsonl
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
