#!/bin/bash
# scripts/published_tables.sh prints every row of the published tables, and a layer's activations are what the formula of fused attention gives:
# (32 sbh + 4 a s b) / t with sequence parallelism, 2 sbh with full recompute; no row of a layer is above the published one.
repo=$(cd "$(dirname "$0")/../.." && pwd)
. "$(dirname "$0")/lib.sh"
export PRETRAIN
is "it runs" "$(status_of "$repo/scripts/published_tables.sh")" 0
is "four models, six settings" "$(grep -cE '^\| (22B|175B|530B|1T) \|' out)" 24
is "four rows of Llama-3.2-1B" "$(grep -cE '^\| (one GPU|FSDP over 8|and gradient checkpointing|and linear cross entropy) \|' out)" 4
contains "the figures as published" out "| 53.03 |" "| 47.59 |" "| 33.06 |" "| 7.30 |"
is "no layer keeps more than published" "$(awk -F'|' '/^\| [0-9]+[BT] / && ($5 > $4 + 0 || $6 > $4 + 0)' out)" ""
ours() { awk -F'|' -v model=" $1 " -v setting=" $2 " '$2 == model && $3 == setting { print $6 + 0 }' out; } # model, setting
while read -r model h a b; do
    is "$model: sequence parallel" "$(ours "$model" "sequence parallel")" \
        "$(awk -v h="$h" -v a="$a" -v b="$b" 'BEGIN { printf "%.1f", (32 * h + 4 * a) * 2048 * b / 8 / 2^20 }' | sed 's/\.0$//')"
    is "$model: full" "$(ours "$model" "full")" "$((2 * 2048 * b * h / 1048576))"
done <<'END'
22B 6144 64 4
175B 12288 96 1
530B 20480 128 1
1T 25600 160 1
END
contains "the committed table has the same rows" "$repo/docs/benchmarks/2026-11-21-published-tables.md" "| 1T | full, sequence parallel |" "| and linear cross entropy | 7.30 |"
