#!/bin/bash
# Runs every fuzz target (tests/fuzz/*.c) for a bounded time with address and undefined-behaviour sanitizers.
#     scripts/fuzz.sh [SECONDS_EACH] [NAME...]        default: 10 seconds each, all targets
# Seeds come from tests/fuzz/corpus/NAME when it exists. A finding is kept as build/fuzz/NAME/crash-*, and the
# command that repeats it is printed. Prints TAP lines; needs clang with its runtime library (libFuzzer).
set -u
cd "$(dirname "$0")/.." || exit 1
seconds=${1:-10}
[ $# -gt 0 ] && shift
CLANG=${CLANG:-clang}
BUILD=${BUILD:-build}
if ! command -v "$CLANG" >/dev/null || ! find "$("$CLANG" -print-resource-dir)/lib" -name 'libclang_rt.fuzzer*.a' 2>/dev/null | grep -q .; then
    echo "ok 1 - fuzz # SKIP no clang with libFuzzer here: scripts/install_deps.sh installs it"
    exit 0
fi
names=("$@")
if [ ${#names[@]} = 0 ]; then
    for source in tests/fuzz/*.c; do
        [ -e "$source" ] || { echo "ok 1 - fuzz # SKIP no targets"; exit 0; }
        name=${source##*/}
        names+=("${name%.c}")
    done
fi
make -s -j"$(nproc)" CC="$CLANG" DEBUG=1 SAN=address,undefined BUILD="$BUILD" fuzzers || { echo "not ok 1 - fuzz: does not build"; exit 1; }
built=$(make -s CC="$CLANG" DEBUG=1 SAN=address,undefined BUILD="$BUILD" help | sed -n 's/^this build: \([^;]*\);.*/\1/p')

run_one() { # index, name
    local dir=$BUILD/fuzz/$2 log=$BUILD/fuzz/$2.log status=0
    mkdir -p "$dir/corpus"
    local seeds=()
    [ -d "tests/fuzz/corpus/$2" ] && seeds=("tests/fuzz/corpus/$2")
    # the process limit is a guard for targets that hang before libFuzzer's own limits begin to count
    timeout -k 5 $((seconds + 60)) "$built/tests/fuzz/$2" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=3000 -max_len=65536 \
        -artifact_prefix="$dir/" -print_final_stats=1 "$dir/corpus" ${seeds[@]+"${seeds[@]}"} >"$log" 2>&1 || status=$?
    local runs
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    if [ $status = 0 ]; then
        echo "ok $1 - $2 takes ${runs:-?} inputs"
    else
        echo "not ok $1 - $2: exit status $status"
        sed 's/^/# /' <(grep -E 'ERROR|SUMMARY|runtime error|Test unit written|#[0-9] ' "$log" | head -20)
        local crash
        crash=$(sed -n 's/.*Test unit written to //p' "$log" | head -1)
        [ -z "$crash" ] || echo "# repeat: $built/tests/fuzz/$2 $crash"
    fi
}
export -f run_one
export seconds BUILD built
mkdir -p "$BUILD/fuzz"
i=0
for name in "${names[@]}"; do i=$((i + 1)) && printf '%s\0%s\0' $i "$name"; done |
    xargs -0 -n 2 -P "${JOBS:-$(nproc)}" bash -c 'run_one "$1" "$2"' run_one >"$BUILD/fuzz/tap"
cat "$BUILD/fuzz/tap"
! grep -q '^not ok' "$BUILD/fuzz/tap"
