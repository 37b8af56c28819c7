#!/bin/bash
# Runs test programs and scripts, several at a time, and counts their TAP lines.
#     scripts/run_tests.sh BUILD_DIR PROGRAM...
# A C program is run as it is, a *.sh with BUILD_DIR as its argument (and as $B), and one of tests/parallel under
# mpirun, once for each number of ranks that it names (--ranks; 0: it starts its ranks itself). One that crashes, runs longer
# than $TEST_TIMEOUT seconds (600), or prints no test line counts as one failed test. Output of each goes to
# BUILD_DIR/test-logs/. $JOBS programs run at once (one per processor). With $TALLY set, "passed failed skipped"
# is appended to that file and the failures to $TALLY.failures. The last line is the count; exit status 1 when
# a test failed.
set -u
[ $# -ge 1 ] || { echo "usage: $0 BUILD_DIR PROGRAM..." >&2; exit 2; }
export B=$1
shift
export LOGS=$B/test-logs TEST_TIMEOUT=${TEST_TIMEOUT:-600}
mkdir -p "$LOGS"

log_name() { # build/release-gcc/tests/unit/x_test -> unit.x_test
    local name=${1#"$B"/}
    name=${name#tests/}
    name=${name#/}
    echo "${name//\//.}"
}

run_program() { # by name, with a path; adds to $log
    case $1 in
    /*) timeout -k 5 "$TEST_TIMEOUT" "$@" ;;
    *) timeout -k 5 "$TEST_TIMEOUT" "./$1" "${@:2}" ;;
    esac >>"$log" 2>&1 </dev/null
}

run_ranks() { # program of tests/parallel
    local program=$1 counts n worst=0
    case $program in /*) ;; *) program=./$program ;; esac
    counts=$("$program" --ranks) || return
    if [ "$counts" = 0 ] || [ "$counts" = 1 ]; then run_program "$program"; return; fi
    if ! command -v mpirun >/dev/null; then echo "ok 1 - ${program##*/} # SKIP no mpirun here" >>"$log"; return; fi
    # more ranks than processors is what these tests are about; root has to say so twice
    [ "$(id -u)" != 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    for n in $counts; do
        timeout -k 5 "$TEST_TIMEOUT" mpirun --oversubscribe --bind-to none -np "$n" "$program" >>"$log" 2>&1 </dev/null || worst=$?
    done
    return $worst
}

run_one() {
    local program=$1 name log start status=0 passed failed skipped
    name=$(log_name "$program")
    log=$LOGS/$name.log
    start=$(date +%s%N)
    : >"$log"
    case $program in
    *.sh) timeout -k 5 "$TEST_TIMEOUT" bash "$program" "$B" >"$log" 2>&1 </dev/null || status=$? ;;
    */tests/parallel/*) run_ranks "$program" || status=$? ;;
    *) run_program "$program" || status=$? ;;
    esac
    local ms=$((($(date +%s%N) - start) / 1000000))
    skipped=$(grep -cE '^ok .*# SKIP' "$log")
    passed=$(($(grep -cE '^ok( |$)' "$log") - skipped))
    failed=$(grep -cE '^not ok( |$)' "$log")
    # what failed, one line each; a program that fails without saying so counts as one more failure
    : >"$LOGS/$name.failures"
    grep -E '^not ok( |$)' "$log" | sed "s|^not ok [0-9]* *-* *|$name: |" >>"$LOGS/$name.failures"
    local reason=
    if [ $status = 124 ] || [ $status = 137 ]; then
        reason="ran longer than $TEST_TIMEOUT s"
    elif [ $status -gt 128 ]; then
        reason="killed by signal $((status - 128))"
    elif [ $status != 0 ] && [ "$failed" = 0 ]; then
        reason="exit status $status"
    elif [ $((passed + failed + skipped)) = 0 ]; then
        reason="printed no test line"
    fi
    if [ -n "$reason" ]; then
        failed=$((failed + 1))
        echo "$name: $reason" >>"$LOGS/$name.failures"
    fi
    echo "$passed $failed $skipped" >"$LOGS/$name.tally"
    # printed by one write, so that lines of parallel runs do not mix
    local text
    text=$(printf '  %s  %-44s %4d passed' "$([ "$failed" = 0 ] && echo 'ok  ' || echo FAIL)" "$name" "$passed")
    [ "$failed" = 0 ] || text="$text, $failed failed"
    [ "$skipped" = 0 ] || text="$text, $skipped skipped"
    text="$text  ($((ms / 1000)).$(printf '%03d' $((ms % 1000)) | cut -c1-1) s)"
    if [ "$failed" != 0 ]; then
        text="$text"$'\n'"$(sed 's/^/        /' "$LOGS/$name.failures")"
        text="$text"$'\n'"$(grep -vE '^ok( |$)' "$log" | tail -n 40 | cut -c1-300 | sed 's/^/        | /')"
    fi
    printf '%s\n' "$text"
}
export -f run_one run_program run_ranks log_name

[ $# = 0 ] || printf '%s\0' "$@" | xargs -0 -n 1 -P "${JOBS:-$(nproc)}" bash -c 'run_one "$1"' run_one

total_passed=0 total_failed=0 total_skipped=0
for program in "$@"; do
    name=$(log_name "$program")
    if ! read -r passed failed skipped <"$LOGS/$name.tally"; then
        passed=0 failed=1 skipped=0
        echo "$name: could not be run" >"$LOGS/$name.failures"
    fi
    total_passed=$((total_passed + passed)) total_failed=$((total_failed + failed)) total_skipped=$((total_skipped + skipped))
    [ -z "${TALLY:-}" ] || cat "$LOGS/$name.failures" >>"$TALLY.failures"
    rm -f "$LOGS/$name.tally"
done
[ -z "${TALLY:-}" ] || echo "$total_passed $total_failed $total_skipped" >>"$TALLY"
text="$total_passed passed, $total_failed failed"
[ $total_skipped = 0 ] || text="$text, $total_skipped skipped"
echo "$text"
[ $total_failed = 0 ]
