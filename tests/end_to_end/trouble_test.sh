#!/bin/bash
# Ranks that are killed, fail, stand still or are told to stop: the whole job ends at once, in order, and says why.
. "$(dirname "$0")/lib.sh"
if ! command -v mpirun >/dev/null || [[ $("$PRETRAIN" --version) != *mpi=1* ]]; then
    echo "ok 1 - trouble in jobs of several ranks # SKIP this binary was built without MPI, or there is no mpirun"
    exit 0
fi
end_all() { # nothing of this test outlives it
    local name pid
    for name in "$DIR"/*.err; do
        name=$(basename "$name" .err)
        ranks_of "$name" | while read -r pid _; do kill -KILL "$pid" 2>/dev/null; done
    done
    for pid in $(jobs -p); do kill -KILL "$pid" 2>/dev/null; done
    rm -rf "$DIR"
}
trap end_all EXIT
# how long anything may take here: seconds in truth, but other tests may have the processors
patience=60
MODEL="--num-layers 2 --hidden-size 64 --num-attention-heads 4 --seq-length 64 --max-position-embeddings 64 --micro-batch-size 1
 --global-batch-size 4 --lr 1e-3 --bf16 --mock-data --vocab-size 512 --log-interval 1"
TWO_BY_TWO="--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2"
start() { # name, arguments...: 4 ranks that train for ever, saving in the folder `name`
    local name=$1
    shift
    # shellcheck disable=SC2086
    launch "$name" 4 $MODEL --train-iters 1000000 --eval-iters 0 --save "$name.save" --load "$name.save" --save-interval 1000000 \
        --exit-signal-handler --log-params-hash --metrics-file "$name.jsonl" "$@"
}
trains() { within $patience test -s "$1.jsonl"; }
saved() { cat "$1.save/latest_checkpointed_iteration.txt" 2>/dev/null; }
show() { tail -n 8 "$1.err" | sed 's/^/# /'; }
ends() { # what, name, process, expected status (or "bad": any but 0): and no rank is left
    await "$3" $patience
    local good=$4
    [ "$good" = bad ] && [ "$ended" != 0 ] && [ "$ended" != running ] && good=$ended
    is "$1" "$ended" "$good"
    [ "$ended" = "$good" ] || show "$2"
    ok "and no rank is left" within 10 no_ranks "$2"
}

# ---- one rank stands still: runs beside the tests below, because the shortest patience is a minute ----
# shellcheck disable=SC2086
start still $TWO_BY_TWO --distributed-timeout-minutes 1
still=$launched
trains still
kill -STOP "$(pid_of_rank still 2)"

# ---- one rank is killed ----
# shellcheck disable=SC2086
start killed $TWO_BY_TWO --save-interval 2
within $patience saved killed >/dev/null
begin=$SECONDS
kill -KILL "$(pid_of_rank killed 3)"
ends "kill -9 of one rank ends the job with a status that is not 0" killed "$launched" bad
ok "within seconds" test $((SECONDS - begin)) -le 20
last=$(saved killed)
# shellcheck disable=SC2086
launch again 4 $MODEL $TWO_BY_TWO --train-iters $((last + 1)) --eval-iters 0 --load killed.save
ends "the last checkpoint loads and training goes on" again "$launched" 0
contains "from the saved iteration" again.out "iteration $(printf '%8d' $((last + 1)))/"

# ---- one rank fails while training: its folder for checkpoints is a file ----
mkdir elsewhere && touch elsewhere/failing.save
# shellcheck disable=SC2016
wrapper=(sh -c 'if [ "$OMPI_COMM_WORLD_RANK" = 2 ]; then cd elsewhere; fi; exec "$@"' sh)
# shellcheck disable=SC2086
launch failing 4 $MODEL $TWO_BY_TWO --train-iters 1000000 --eval-iters 0 --save failing.save --save-interval 3
ends "a rank that fails takes the others down, status 1" failing "$launched" 1
contains "with its own message" failing.err "failing.save" "rank 2"
# ---- and at the start: its data are not there ----
head -c 20000 /dev/urandom | base64 >text.txt
"$B/preprocess_data" --input text.txt --output-prefix data --tokenizer-type ByteTokenizer >/dev/null 2>&1
# shellcheck disable=SC2086
launch nodata 4 ${MODEL/--mock-data --vocab-size 512/--data-path data_text_document --tokenizer-type ByteTokenizer} --train-iters 3 --eval-iters 0
ends "data that one rank cannot read end all with status 2" nodata "$launched" 2
contains "and name the rank and the file" nodata.err "rank 2: " "data_text_document"
wrapper=()

# ---- SIGTERM to any one rank ----
stops_together() { # what, name, process
    ends "SIGTERM to one rank $1: all ranks leave with status 0" "$2" "$3" 0
    is "after saving the last iteration" "$(saved "$2")" "$(value "$2.jsonl" iteration)"
}
# shellcheck disable=SC2086
start training $TWO_BY_TWO
trains training
kill -TERM "$(pid_of_rank training 3)"
stops_together "in training" training "$launched"

# shellcheck disable=SC2086
start evaluation $TWO_BY_TWO --train-iters 3 --eval-interval 1 --eval-iters 100000
trains evaluation
sleep 0.5 # from the iteration line into the evaluation
kill -TERM "$(pid_of_rank evaluation 1)"
stops_together "in an evaluation" evaluation "$launched"

listens() { # name, rank: SIGTERM (bit 15) is caught
    local pid caught
    pid=$(pid_of_rank "$1" "$2")
    [ -n "$pid" ] || return 1
    caught=$(sed -n 's/^SigCgt:\t*//p' "/proc/$pid/status" 2>/dev/null)
    [ -n "$caught" ] && (((0x$caught >> 14) & 1))
}
# shellcheck disable=SC2086
start begun $TWO_BY_TWO
within $patience listens begun 2
kill -TERM "$(pid_of_rank begun 2)"
stops_together "at the start" begun "$launched"

saves() { compgen -G "$1.save/.saving-*" >/dev/null; }
# a vocabulary that makes a save take long enough to be met
# shellcheck disable=SC2086
start saving $TWO_BY_TWO --vocab-size 100000 --save-interval 1
within $patience saves saving
kill -TERM "$(pid_of_rank saving 1)"
stops_together "while saving" saving "$launched"

# ---- the rank that stands still is named ----
patience=150 # that minute, and what a busy machine adds
ends "a rank that stands still ends the job when patience is over, status not 0" still "$still" bad
contains "it is named, with what the others wait for" still.err "rank 2 (" "does not answer: it is stopped" "3 ranks wait for others: 0 1 3" "of group"
