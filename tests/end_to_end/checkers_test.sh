#!/bin/bash
# The checkers of scripts/ notice what they are there for: each is run on a copy of the tree with a violation
# planted in it, and the test runner on programs that fail in every way.
set -u
cd "$(dirname "$0")/../.." || exit 1
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
number=0
result() { # status, name
    number=$((number + 1))
    if [ "$1" = 0 ]; then echo "ok $number - $2"; else echo "not ok $number - $2"; fi
}
for part in cmd core kernels parallel recompute scripts tests docs Makefile .clang-format *.md; do
    [ -e "$part" ] && cp -r --parents "$part" "$copy"
done
# the copy is no git repository: the checkers look at every file there
export GIT_DIR=$copy/none

# planted FILE TEXT CHECKER MESSAGE: the checker fails and says MESSAGE; without the text it passes again
planted() {
    local file=$1 text=$2 checker=$3 message=$4 output status=0
    mkdir -p "$copy/$(dirname "$file")"
    [ -e "$copy/$file" ] && cp "$copy/$file" "$copy/saved"
    printf '%b\n' "$text" >>"$copy/$file"
    output=$("$copy/scripts/$checker.sh" 2>&1) || status=$?
    if [ -e "$copy/saved" ]; then mv "$copy/saved" "$copy/$file"; else rm "$copy/$file"; fi
    if [ $status = 1 ] && grep -qF -- "$message" <<<"$output"; then return 0; fi
    echo "# $checker on $file: exit status $status"
    head -n 5 <<<"$output" | cut -c1-200 | sed 's/^/# /'
    return 1
}

# the same, when nothing is to be said about that file
clean() { ! planted "$1" "$2" "$3" "$1:" >/dev/null; }

layers() { planted "$1" "#include \"$2\"" check_layers "includes \"$2\""; }
layers core/base/str.h core/config/config.h &&
    layers core/config/config.c core/train/loop.h &&
    layers core/tensor/dtype.h kernels/kernels.h &&
    layers kernels/cpu/table.c core/config/config.h &&
    layers kernels/kernels.h core/model/gpt.h &&
    layers parallel/comm/comm.h kernels/kernels.h &&
    layers recompute/policy.c core/model/gpt.h &&
    layers core/model/gpt.c core/train/step.h &&
    layers core/data/loader.c core/checkpoint/format.h &&
    layers core/train/metrics.c tests/test.h &&
    layers core/optim/lr_schedule.c optim/loss_scale.h &&
    layers core/optim/lr_schedule.c loss_scale.h &&
    planted newfolder/x.c 'int x;' check_layers 'belongs to no layer'
result $? "every arrow of the layers is checked"

banned() { planted "$1" "$2" check_banned "$3 is not used here"; }
all=0
for name in strcpy strcat sprintf gets atoi atof strtok alloca rand getenv malloc calloc realloc free strdup printf puts \
    cudaMalloc cudaDeviceSynchronize; do
    banned core/train/metrics.c "void f(void) { x = $name (y); }" $name || all=1
done
for name in getenv atoi sprintf; do banned tests/unit/metrics_test.c "$name(x);" $name || all=1; done
for name in malloc free getenv; do banned cmd/pretrain_gpt.c "$name(x);" $name || all=1; done
banned core/base/log.c 'free(x);' free || all=1
result $all "every banned function is noticed"

banned core/train/metrics.c 'a = "text \\" // "; b = strcat(c); // strcpy(' strcat &&
    banned core/train/metrics.c '/* gets( \n more */ x = gets(y);' gets &&
    clean core/train/metrics.c '/* gets(\n strcpy( */ y = "atoi( \\" rand("; c = '"'\"'"'; // printf(' check_banned &&
    clean core/train/metrics.c 'x.free(y); z->free(y); my_free(y); snprintf(a); free_it(b); freed = malloced;' check_banned
result $? "comments, strings, members and longer names are not taken for calls"

planted core/train/metrics.c 'int   x ;' check_format 'core/train/metrics.c:'
status=$?
if ! clang-format-14 --version >/dev/null 2>&1 && ! clang-format --version 2>/dev/null | grep -q 'version 14'; then
    number=$((number + 1))
    echo "ok $number - unformatted code is noticed # SKIP no clang-format 14"
else
    result $status "unformatted code is noticed"
fi

planted docs/x.md '[a](no/such.md)' check_docs 'no/such.md' &&
    planted docs/x.md 'see `core/train/nothing.h`' check_docs 'core/train/nothing.h' &&
    clean docs/x.md '[a](https://example.org/x) [b](#here) `scripts/test.sh` [c](../Makefile)' check_docs
result $? "dead links and paths in documents are noticed"

# ---- the test runner ----
mkdir -p "$copy/t"
program() {
    printf '#!/bin/bash\n%b\n' "$2" >"$copy/t/$1"
    chmod +x "$copy/t/$1"
}
program good 'echo "ok 1 - a"; echo "ok 2 - b # SKIP no gpu"; echo "ok 3 - c"'
program bad 'echo "ok 1 - a"; echo "not ok 2 - the reason"; exit 1'
program crash 'echo "ok 1 - a"; kill -SEGV $$'
program slow 'echo "ok 1 - a"; sleep 60'
program silent 'true'
program exits 'echo "ok 1 - a"; exit 3'
program script.sh 'echo "ok 1 - $1 $B"'
# runner EXPECTED_STATUS EXPECTED_LAST_LINE TEXT PROGRAM...
runner() {
    local status=0 expected=$1 last=$2 text=$3 output
    shift 3
    output=$(cd "$copy" && env -u TALLY TEST_TIMEOUT=2 scripts/run_tests.sh "$copy/b" "${@/#/$copy/t/}" 2>&1) || status=$?
    if [ $status = "$expected" ] && [ "$(tail -n 1 <<<"$output")" = "$last" ] && grep -q "$text" <<<"$output"; then return 0; fi
    echo "# run_tests $*: exit status $status"
    sed 's/^/# /' <<<"$output"
    return 1
}
runner 0 "2 passed, 0 failed, 1 skipped" "good" good &&
    runner 1 "1 passed, 1 failed" "the reason" bad &&
    runner 1 "1 passed, 1 failed" "killed by signal 11" crash &&
    runner 1 "1 passed, 1 failed" "ran longer than 2 s" slow &&
    runner 1 "0 passed, 1 failed" "printed no test line" silent &&
    runner 1 "1 passed, 1 failed" "exit status 3" exits &&
    runner 0 "1 passed, 0 failed" "script.sh" script.sh &&
    runner 1 "0 passed, 1 failed" "exit status 127" missing &&
    runner 1 "5 passed, 3 failed, 1 skipped" "good" good bad crash silent script.sh &&
    runner 0 "0 passed, 0 failed" ""
result $? "the test runner counts failures, crashes, time-outs and silence"
grep -qx "ok 1 - $copy/b $copy/b" "$copy"/b/test-logs/*script.sh.log
result $? "scripts are given the build tree"
