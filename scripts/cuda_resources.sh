#!/bin/sh
# Registers, stack, spills and shared memory of every CUDA kernel, from the logs of `ptxas -v`.
#     scripts/cuda_resources.sh ALLOWED LOG...
# A kernel that spills fails unless ALLOWED has a line "architecture kernel", the kernel as printed here; so does a
# line of ALLOWED that nothing needs any more.
set -eu
[ $# -ge 2 ] || { echo "usage: $0 ALLOWED LOG..." >&2; exit 2; }
allowed=$1
shift
demangle=cat
command -v c++filt >/dev/null && demangle=c++filt
# shellcheck disable=SC2016
cat "$@" | awk '
    /Compiling entry function/ { split($0, part, "\047"); kernel = part[2]; arch = part[4]; stack = spill = 0; next }
    /bytes stack frame/ { stack = $1; spill = $5 + $9; next }
    /Used [0-9]+ registers/ {
        registers = shared = 0
        for (i = 1; i < NF; i++) {
            if ($(i + 1) ~ /^registers/) registers = $i
            if ($i == "bytes" && $(i + 1) ~ /^smem/) shared = $(i - 1)
        }
        printf "%s %s %d %d %d %d\n", arch, kernel, registers, stack, spill, shared
    }' | $demangle | sed 's/void //; s/(anonymous namespace):://' | awk -v allowed="$allowed" '
    BEGIN {
        while ((getline line < allowed) > 0)
            if (line !~ /^#/ && line != "") may[line] = 1
        printf "%-6s %5s %5s %5s %6s  %s\n", "arch", "regs", "stack", "spill", "shared", "kernel"
    }
    {
        n = NF
        kernel = $2
        for (i = 3; i <= n - 4; i++) kernel = kernel " " $i
        sub(/\(.*/, "", kernel)
        printf "%-6s %5d %5d %5d %6d  %s\n", $1, $(n - 3), $(n - 2), $(n - 1), $n, kernel
        kernels++
        if ($(n - 1) == 0) next
        if (($1 " " kernel) in may) used[$1 " " kernel] = 1
        else { bad = bad "spills: " $1 " " kernel "\n"; failed = 1 }
    }
    END {
        for (line in may)
            if (!(line in used)) { bad = bad "listed, but does not spill: " line "\n"; failed = 1 }
        printf "%s", bad
        printf "cuda_resources: %d kernels, %s\n", kernels, failed ? "see above" : "none spills that is not listed"
        exit failed
    }'
