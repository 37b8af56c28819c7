#!/bin/bash
# Ways to stop, and the exit status and last line of each.
. "$(dirname "$0")/lib.sh"
# shellcheck disable=SC2086
run() { status_of "$PRETRAIN" $SMALL "$@"; }
is "--exit-interval stops with status 0" "$(run --exit-interval 3 --save s --save-interval 100 --log-params-hash --metrics-file m.jsonl)" 0
is "after that iteration" "$(value m.jsonl iteration)" 3
contains "and saves" s/latest_checkpointed_iteration.txt 3
is "--exit-duration-in-mins 0 stops after one iteration" "$(run --exit-duration-in-mins 0 --log-params-hash --metrics-file d.jsonl)" 0
is "exactly one" "$(wc -l <d.jsonl)" 1

# shellcheck disable=SC2086
"$PRETRAIN" $SMALL --train-iters 100000 --exit-signal-handler --save t --save-interval 1000000 --log-params-hash --metrics-file t.jsonl >/dev/null 2>err &
pid=$!
for _ in $(seq 100); do [ -s t.jsonl ] && break; sleep 0.1; done
kill -TERM $pid
wait $pid
is "SIGTERM with --exit-signal-handler stops with status 0" $? 0
is "and the last iteration is saved" "$(cat t/latest_checkpointed_iteration.txt)" "$(value t.jsonl iteration)"

# NaN: a learning rate beyond all bounds
is "NaN aborts with status 1" "$(run --lr 1e38 --clip-grad 0 --save n --save-interval 1)" 1
contains "the first bad tensor is named" err "not finite" "op" "micro-batch"
saved=$(cat n/latest_checkpointed_iteration.txt)
is "the last checkpoint is intact" "$(run --load n --skip-train --eval-iters 1)" 0
ok "it is from before the NaN" test "$saved" -ge 1
is "--on-nan skip goes on" "$(run --lr 1e38 --clip-grad 0 --on-nan skip --log-interval 1)" 0
contains "and counts" out "number of nan iterations:   1"

# out of memory: found by the plan, exit status 3, with a remedy that works
plan() { run "$@" --dry-run-json p >/dev/null; sed -n 's/.*"max_peak_allocated_bytes": *\([0-9]*\).*/\1/p' p; }
need=$(plan)
less=$((need - 200000))
is "out of memory is status 3" "$(run --device-memory-limit ${less}B)" 3
contains "with the cheapest setting that fits" err "out of device memory" "--recompute-"
remedy=$(sed -n 's/.*setting that fits is \(--recompute.*\) ([0-9.]* .iB).*/\1/p' err)
ok "the remedy is printed as flags" test -n "$remedy"
# shellcheck disable=SC2086
is "the remedy fits" "$(run --device-memory-limit ${less}B $remedy)" 0
is "nothing fits in one byte" "$(run --device-memory-limit 1B)" 3
contains "and it says so" err "no recompute setting fits"

# bad flags: status 2 and one line
is "a misspelt flag" "$(run --recompute-granularty full)" 2
contains "names the nearest" err "--recompute-granularty" "--recompute-granularity"
is "full without a method" "$(run --recompute-granularity full)" 2
is "a method with selective" "$(run --recompute-granularity selective --recompute-method uniform)" 2
is "N = 0" "$(run --recompute-granularity full --recompute-method uniform --recompute-num-layers 0)" 2
is "N beyond the layers" "$(run --recompute-granularity full --recompute-method block --recompute-num-layers 9)" 2
is "a module that the model does not have" "$(run --recompute-granularity selective --recompute-modules moe_act)" 2
contains "names it" err "moe_act"
is "a flag that is not built yet" "$(run --moe-latent-size 8)" 2
contains "is not called unknown" err "--moe-latent-size"
is "no such data file" "$(status_of "$PRETRAIN" ${SMALL/--mock-data/--data-path nowhere})" 2
contains "is named" err "nowhere"
# shellcheck disable=SC2086
"$PRETRAIN" ${SMALL/--mock-data/--data-path nowhere} >both 2>&1 </dev/null
tail -n 1 both >last
contains "the error is the last line where stdout and stderr go to one file" last "error:" "nowhere"
is "--help" "$(status_of "$PRETRAIN" --help)" 0
is "--version" "$(status_of "$PRETRAIN" --version)" 0

# data that does not fit the model: status 2, naming file, document and id
printf '1 2 3\n4 5 600\n' >ids.txt
i=0
while [ $i -lt 300 ]; do echo '{"text": "1 2 3 4 5 6 7 8 9 600 11 12"}'; i=$((i + 1)); done >ids.jsonl
is "preprocess_data" "$(status_of "$B/preprocess_data" --input ids.jsonl --output-prefix ids --tokenizer-type NullTokenizer --vocab-size 1000)" 0
is "a token id outside the vocabulary is status 2" \
    "$(status_of "$PRETRAIN" ${SMALL/--mock-data/--data-path ids_text_document --tokenizer-type NullTokenizer --split 100,0,0})" 2
contains "names file, document and id" err "ids_text_document" "document" "600"
