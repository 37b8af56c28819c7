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
