#!/bin/bash
# kill -9 of one rank while all of them save: the job ends at once and not with success, and the old or the new
# checkpoint loads, whole, on another number of ranks.
. "$(dirname "$0")/lib.sh"
program=$B/tests/parallel/checkpoint_parallel_test
command -v mpirun >/dev/null && "$B/pretrain_gpt" --version | grep -q mpi=1 ||
    { echo "ok 1 - killed ranks # SKIP built without MPI"; exit 0; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
old=0 new=0 wrong=0 survived=0 slow=0
try() { # rank, call: what is left after the rank died before that call
    rm -rf "$DIR/save"
    mkdir "$DIR/save"
    local begin=$SECONDS status got
    timeout 60 mpirun --oversubscribe -np 4 "$program" --save-and-die "$DIR/save" "$1" "$2" >"$DIR/out" 2>"$DIR/err"
    status=$?
    [ $((SECONDS - begin)) -le 20 ] || slow=$((slow + 1))
    got=$("$program" --check "$DIR/save" 2>>"$DIR/err")
    case $status/$got in
    0/20) survived=$((survived + 1)) ;;
    0/* | 124/* | */) wrong=$((wrong + 1)); echo "# rank $1, call $2: status $status, loads '$got'" ;;
    */10) old=$((old + 1)) ;;
    */20) new=$((new + 1)) ;;
    *) wrong=$((wrong + 1)); echo "# rank $1, call $2: status $status, loads '$got'" ;;
    esac
}
for victim in 0 3; do
    try $victim 0
    calls=$(grep -x '[0-9]*' "$DIR/out")
    for call in 1 $((calls / 3)) $((calls / 2)) $((calls - 4)) $((calls - 2)) "$calls"; do try $victim "$call"; done
done
is "after the kill of a rank the old or the new checkpoint is whole, and the job has failed" "$wrong" 0
is "the other ranks are gone within seconds" "$slow" 0
ok "ranks died in the middle of saving ($old left the old one, $new the new one)" [ $old -ge 8 -a $new -ge 1 -a $((old + new)) = 12 ]
ok "a save that nobody disturbs is in force" [ "$survived" = 2 ]
