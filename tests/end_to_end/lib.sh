# Helpers of the end-to-end tests; source it. $1 of the script, or $B, is the build tree.
B=${1:-${B:-build}}
case $B in /*) ;; *) B=$PWD/$B ;; esac
PRETRAIN=$B/pretrain_gpt
DIR=$(mktemp -d "${TMPDIR:-/tmp}/end_to_end.XXXXXX") || exit 1
trap 'rm -rf "$DIR"' EXIT
cd "$DIR" || exit 1
number=0
ok() { # name, command...: one TAP line
    local name=$1
    shift
    number=$((number + 1))
    if "$@"; then echo "ok $number - $name"; else echo "not ok $number - $name"; fi
}
is() { # name, value, expected
    number=$((number + 1))
    if [ "$2" = "$3" ]; then echo "ok $number - $1"; else echo "not ok $number - $1"; echo "# '$2' is not '$3'"; fi
}
contains() { # name, file, words...: the file holds each word
    local name=$1 file=$2 word
    shift 2
    number=$((number + 1))
    for word; do
        grep -qF -- "$word" "$file" || { echo "not ok $number - $name"; echo "# no '$word' in:"; tail -n 5 "$file" | sed 's/^/# /'; return; }
    done
    echo "ok $number - $name"
}
status_of() { # command...: runs it quietly and prints its exit status; output in $DIR/out and $DIR/err
    "$@" >"$DIR/out" 2>"$DIR/err" </dev/null
    echo $?
}
value() { # file, key: of the last line of a metrics file
    tail -n 1 "$1" | sed 's/.*"'"$2"'": *"\{0,1\}\([^",}]*\).*/\1/'
}
SMALL="--num-layers 3 --hidden-size 64 --num-attention-heads 4 --seq-length 64 --max-position-embeddings 64
 --micro-batch-size 2 --global-batch-size 4 --train-iters 6 --lr 1e-3 --bf16 --mock-data --vocab-size 512
 --eval-iters 0"
# ---- jobs of several ranks under mpirun ----
launch() { # name, ranks, arguments...: starts $PRETRAIN in the background; $launched is mpirun's process, output in name.out and name.err
    local name=$1 ranks=$2
    shift 2
    TEST_JOB="$DIR/$name" OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
        mpirun --oversubscribe -np "$ranks" "${wrapper[@]}" "$PRETRAIN" "$@" >"$name.out" 2>"$name.err" </dev/null &
    launched=$!
}
wrapper=() # a command that each rank is started by
ranks_of() { # name: the processes of all ranks that still run, one a line: PID RANK
    local pid rank
    grep -lszxF "TEST_JOB=$DIR/$1" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 | while read -r pid; do
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = pretrain_gpt ] || continue
        rank=$(tr '\0' '\n' <"/proc/$pid/environ" 2>/dev/null | sed -n 's/^OMPI_COMM_WORLD_RANK=//p')
        [ -n "$rank" ] && echo "$pid $rank"
    done
}
pid_of_rank() { ranks_of "$1" | sed -n "s/ $2\$//p"; } # name, rank
no_ranks() { [ -z "$(ranks_of "$1")" ]; }
within() { # seconds, command...: until the command succeeds; fails after that time
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.05
    done
}
is_gone() { ! kill -0 "$1" 2>/dev/null; }
await() { # process, seconds: its exit status comes to $ended; "running" when it did not end in that time (it is killed then)
    within "$2" is_gone "$1" || { kill -KILL "$1"; ended=running; return; }
    wait "$1"
    ended=$?
}
