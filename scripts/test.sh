#!/bin/bash
# Installs what is missing, builds, and runs every check and every test.
#     scripts/test.sh [full|quick]       full is the default and takes under 25 minutes on two cores; quick
#                                        leaves out the second compiler, sanitizers, fuzzers and end-to-end tests
# Each TAP line of a test program counts as one test, and so does each check and each build. Every step is
# timed; the failures are listed at the end; logs are in build/test/. The last line is "N passed, N failed" or
# "N passed, N failed, N skipped"; the exit status is 1 when anything failed.
set -u
cd "$(dirname "$0")/.." || exit 1
level=${1:-full}
case $level in quick | full) ;; *) echo "usage: $0 [full|quick]" >&2; exit 2 ;; esac
exec </dev/null
export BUILD=${BUILD:-build}
jobs=$(nproc)
logs=$BUILD/test
rm -rf "$logs"
mkdir -p "$logs"
case $logs in /*) export TALLY=$logs/tally ;; *) export TALLY=$PWD/$logs/tally ;; esac
: >"$TALLY"
: >"$TALLY.failures"
times=()

# ---- steps ----
milliseconds() { echo $(($(date +%s%N) / 1000000)); }
begin() {
    title=$1
    started=$(milliseconds)
    echo
    echo "== $title"
}
end() {
    local ms=$(($(milliseconds) - started))
    times+=("$(printf '%7d.%d s  %s' $((ms / 1000)) $((ms % 1000 / 100)) "$title")")
}
count() { # name, status: one check
    case $2 in
    0) echo "1 0 0" >>"$TALLY" ;;
    77) echo "0 0 1" >>"$TALLY" ;;
    *)
        echo "0 1 0" >>"$TALLY"
        echo "$1: exit status $2, see $logs" >>"$TALLY.failures"
        echo "FAILED: $1"
        ;;
    esac
}
check() { # name, command...
    local name=$1 status=0
    shift
    begin "$name"
    "$@" >"$logs/${name// /_}.log" 2>&1 || status=$?
    if [ $status = 0 ] || [ $status = 77 ]; then tail -n 1 "$logs/${name// /_}.log"; else tail -n 30 "$logs/${name// /_}.log"; fi
    count "$name" $status
    end
    return $status
}
build() { # name, make settings...: builds programs and tests
    local name=$1
    shift
    check "$name" make -j"$jobs" WERROR=1 "$@" all tests
}
tree_of() { make -s "$@" help | sed -n 's/^this build: \([^;]*\);.*/\1/p'; }
# The test programs of a build tree, below the folders named; "folder/name" names one.
programs() { # tree, folder...
    local tree=$1 folder source
    shift
    for folder in "$@"; do
        for source in tests/"$folder"/*.c tests/"$folder".c tests/"$folder"/*_test.cu; do
            [ -e "$source" ] && source=${source%.*} && echo "$tree/$source"
        done
    done
}
run() { # name, tree, programs...
    begin "$1"
    local tree=$2
    shift 2
    if [ $# = 0 ]; then echo "no such tests"; else scripts/run_tests.sh "$tree" "$@"; fi
    end
}

# ---- what is to be done ----
begin "install what is missing"
scripts/install_deps.sh test
count "install_deps" $?
end

check "format" scripts/check_format.sh
check "layers" scripts/check_layers.sh
check "banned functions" scripts/check_banned.sh
check "documents" scripts/check_docs.sh
check "flags are read" scripts/check_flags_used.sh

if build "build gcc" CC=gcc; then
    tree=$(tree_of CC=gcc)
    mapfile -t list < <(programs "$tree" unit kernels invariants)
    run "unit, kernel and invariant tests" "$tree" "${list[@]}"
    mapfile -t list < <(programs "$tree" parallel)
    JOBS=1 run "tests on several ranks" "$tree" ${list[@]+"${list[@]}"}
    if [ $level = full ]; then
        for script in tests/end_to_end/*_test.sh; do [ -e "$script" ] && scripts_found+=("$script"); done
        run "end-to-end tests" "$tree" ${scripts_found[@]+"${scripts_found[@]}"}
    fi
fi

if [ $level = full ]; then
    if command -v clang >/dev/null; then
        build "build clang" CC=clang
    fi

    if build "build address and undefined-behaviour sanitizers" CC=gcc DEBUG=1 SAN=address,undefined; then
        tree=$(tree_of CC=gcc DEBUG=1 SAN=address,undefined)
        mapfile -t list < <(programs "$tree" unit kernels invariants)
        export ASAN_OPTIONS=detect_leaks=1 UBSAN_OPTIONS=print_stacktrace=1
        TEST_TIMEOUT=${TEST_TIMEOUT:-600} run "address and undefined-behaviour sanitizers" "$tree" "${list[@]}"
        # an MPI library keeps memory until the end; ours is counted by the tests themselves
        mapfile -t list < <(programs "$tree" parallel)
        ASAN_OPTIONS=detect_leaks=0 JOBS=1 run "sanitizers on several ranks" "$tree" ${list[@]+"${list[@]}"}
    fi

    # the CUDA kernels, emulated: the conformance suite once more, on its own build of the kernels
    if check "build emulated CUDA kernels" make -j"$jobs" CC=gcc WERROR=1 DEBUG=1 SAN=address,undefined cuda_tests; then
        tree=$(tree_of CC=gcc DEBUG=1 SAN=address,undefined)
        mapfile -t list < <(programs "$tree/cuda" kernels cuda_emulation)
        run "CUDA kernels under emulation" "$tree" "${list[@]}"
    fi
    if nvcc=$(command -v nvcc || command -v "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc"); then
        check "build CUDA kernels with nvcc" make -j"$jobs" CC=gcc WERROR=1 NVCC="$nvcc" cuda
    else
        echo
        echo "no nvcc here: the CUDA kernels are not compiled for a GPU"
        echo "0 0 1" >>"$TALLY"
    fi

    # code that starts threads; other tests would only repeat what these show
    threaded=()
    for source in $(grep -lE 'threads_open|loader_open|writer_open|pthread_create' tests/unit/*.c 2>/dev/null); do
        threaded+=("unit/$(basename "$source" .c)")
    done
    if [ ${#threaded[@]} -gt 0 ]; then
        tree=$(tree_of CC=gcc DEBUG=1 SAN=thread)
        mapfile -t list < <(programs "$tree" "${threaded[@]}")
        if check "build thread sanitizer" make -j"$jobs" CC=gcc DEBUG=1 SAN=thread "${list[@]}"; then
            if "${list[0]}" 2>&1 | grep -q 'FATAL: ThreadSanitizer'; then
                echo "this kernel's address layout does not support the thread sanitizer"
                echo "0 0 1" >>"$TALLY"
            else
                TSAN_OPTIONS=halt_on_error=1 run "thread sanitizer" "$tree" "${list[@]}"
            fi
        fi
    fi

    begin "fuzzers"
    scripts/fuzz.sh "${FUZZ_SECONDS:-10}" >"$logs/fuzz.log" 2>&1
    status=$?
    grep -E '^(ok|not ok|#)' "$logs/fuzz.log"
    grep -qE '^(ok|not ok)' "$logs/fuzz.log" || { tail -n 30 "$logs/fuzz.log"; echo "not ok - fuzz: exit status $status" >>"$logs/fuzz.log"; }
    grep -E '^not ok' "$logs/fuzz.log" | sed 's/^not ok [0-9]* *-* *//' >>"$TALLY.failures"
    skipped=$(grep -cE '^ok .*# SKIP' "$logs/fuzz.log")
    echo "$(($(grep -c '^ok' "$logs/fuzz.log") - skipped)) $(grep -c '^not ok' "$logs/fuzz.log") $skipped" >>"$TALLY"
    end
fi

# ---- the account ----
echo
echo "== time"
printf '%s\n' "${times[@]}"
read -r passed failed skipped < <(awk '{ p += $1; f += $2; s += $3 } END { print p + 0, f + 0, s + 0 }' "$TALLY")
if [ "$failed" != 0 ]; then
    echo
    echo "== failures"
    sort -u "$TALLY.failures" | sed 's/^/  /'
fi
echo
if [ "$skipped" = 0 ]; then echo "$passed passed, $failed failed"; else echo "$passed passed, $failed failed, $skipped skipped"; fi
[ "$failed" = 0 ]
