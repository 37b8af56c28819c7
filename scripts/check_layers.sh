#!/bin/sh
# Includes point one way: a file includes its own layer and those listed after it, by paths from the
# repository root. Tests may include everything. See docs/architecture.md.
set -eu
cd "$(dirname "$0")/.."
rules=$(
    cat <<'END'
core/base
core/config      core/base
core/tensor      core/base core/config
kernels          core/base core/tensor
parallel/comm    core/base core/config core/tensor
parallel         core/base core/config core/tensor kernels parallel/comm
recompute        core/base core/config core/tensor kernels parallel/comm
core/model       core/base core/config core/tensor kernels parallel/comm parallel recompute
core/plan        core/base core/config core/tensor kernels parallel/comm parallel recompute core/model
core/data        core/base core/config core/tensor kernels parallel/comm parallel
core/optim       core/base core/config core/tensor kernels parallel/comm parallel
core/checkpoint  core/base core/config core/tensor kernels parallel/comm parallel
core/train       core/base core/config core/tensor kernels parallel/comm parallel recompute core/model core/plan core/data core/optim core/checkpoint
cmd              core kernels parallel recompute
tests            core kernels parallel recompute cmd
END
)
files=$(git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cc' '*.def' 2>/dev/null || find . -path ./build -prune -o -path './.*' -prune -o \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' -o -name '*.def' \) -print | sed 's|^\./||')
# shellcheck disable=SC2086
awk -v rules="$rules" '
    BEGIN {
        lines = split(rules, line, "\n")
        for (i = 1; i <= lines; i++) {
            words = split(line[i], word, " ")
            layer[i] = word[1]
            for (k = 1; k <= words; k++) allowed[word[1], word[k]] = 1
        }
    }
    # the longest layer that a path lies in: core/plan covers core/plan.h, core/plan_print.c and core/plan/x.c
    function layer_of(path,    i, best, next_char) {
        best = ""
        for (i = 1; i <= lines; i++) {
            if (index(path, layer[i]) != 1 || length(layer[i]) <= length(best)) continue
            next_char = substr(path, length(layer[i]) + 1, 1)
            if (next_char == "/" || (layer[i] == "core/plan" && next_char ~ /[._]/)) best = layer[i]
        }
        return best
    }
    function bad(text) { printf "%s:%d: %s\n", FILENAME, FNR, text; failed = 1 }
    FNR == 1 {
        from = layer_of(FILENAME)
        if (from == "") bad("this folder belongs to no layer: add it to scripts/check_layers.sh")
    }
    /^[ \t]*#[ \t]*include[ \t]*"/ {
        target = $0
        sub(/^[^"]*"/, "", target)
        sub(/".*/, "", target)
        to = layer_of(target)
        if (to == "" && target !~ /^tests\//)
            bad("includes \"" target "\": write the path from the repository root")
        else if (from == "tests" || (from == "cmd" && to != "tests")) next
        else if (!((from, to) in allowed))
            bad(from " includes \"" target "\": the arrow points the other way (" from " may use only what lies below it)")
    }
    END { if (!failed) printf "check_layers: the includes of %d files point one way\n", ARGC - 1; exit failed }
' $files
