#!/bin/bash
# I4: N iterations straight == k, save, kill, resume, N - k, also across a change of the recompute setting.
. "$(dirname "$0")/lib.sh"
# shellcheck disable=SC2086
run() { status_of "$PRETRAIN" $SMALL "$@"; }
is "straight" "$(run --log-params-hash --metrics-file straight.jsonl)" 0
expected=$(value straight.jsonl params_hash)
is "the first part saves" "$(run --save a --save-interval 2 --exit-interval 4 --log-params-hash --metrics-file part.jsonl)" 0
contains "the tracker names the iteration" a/latest_checkpointed_iteration.txt 4
is "the second part resumes" "$(run --load a --log-params-hash --metrics-file part.jsonl)" 0
is "resumed == straight" "$(value part.jsonl params_hash)" "$expected"
is "the metrics file goes on" "$(wc -l <part.jsonl)" 6
is "resume with another recompute setting" \
    "$(run --load a --log-params-hash --metrics-file other.jsonl --recompute-granularity full --recompute-method uniform --recompute-num-layers 1)" 0
is "changed recompute == straight" "$(value other.jsonl params_hash)" "$expected"
is "an older checkpoint by --ckpt-step" "$(run --load a --ckpt-step 2 --log-params-hash --metrics-file older.jsonl)" 0
is "from iteration 2 == straight" "$(value older.jsonl params_hash)" "$expected"

# killed at any moment while saving after every iteration
for delay in 0.15 0.25 0.35 0.45 0.6 0.8; do
    # shellcheck disable=SC2086
    "$PRETRAIN" $SMALL --train-iters 400 --save k --load k --save-interval 1 --save-retain-interval 1000 >/dev/null 2>&1 &
    pid=$!
    sleep $delay
    kill -9 $pid
    wait $pid 2>/dev/null
done
is "after kill -9 while saving, a run resumes" "$(run --train-iters 401 --exit-interval 1 --load k)" 0

# a damaged newest checkpoint: falls back and says so
cp -r a torn
for f in torn/iter_0000004/*.safetensors; do truncate -s 100 "$f"; done
is "a torn checkpoint is survived" "$(run --load torn --log-params-hash --metrics-file torn.jsonl)" 0
contains "the fallback is named" err "iter_0000004"
is "from the older checkpoint == straight" "$(value torn.jsonl params_hash)" "$expected"

is "--finetune starts at iteration 0" "$(run --load a --finetune --log-params-hash --metrics-file finetune.jsonl)" 0
is "and runs all iterations" "$(wc -l <finetune.jsonl)" 6
is "another --seed is refused" "$(run --load a --seed 77)" 2
contains "with the remedy" err "--seed" "--no-load-rng"
is "a missing checkpoint with --exit-on-missing-checkpoint" "$(run --load nowhere --exit-on-missing-checkpoint)" 2
