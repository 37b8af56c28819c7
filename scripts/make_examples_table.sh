#!/bin/bash
# Prints the table of docs/examples.md: for each script of scripts/examples, peak memory of the rank that needs most, by dry run, for several
# recompute settings. Takes seconds.
#     scripts/make_examples_table.sh        needs build/pretrain_gpt, or PRETRAIN set to the program
set -eu
cd "$(dirname "$0")/.."
PRETRAIN=${PRETRAIN:-build/pretrain_gpt}
plan=$(mktemp)
trap 'rm -f "$plan"' EXIT

peak() { # flags of recompute...: "peak (activations)" in GiB, and matrix FLOPs more than without
    "$PRETRAIN" "${flags[@]}" "$@" --dry-run-json "$plan" >/dev/null 2>&1 || { echo "error"; return; }
    # the rank of the highest peak, as the last line names it
    awk '
        match($0, /"rank": [0-9]+/) { rank = substr($0, RSTART + 8, RLENGTH - 8); line[rank] = $0 }
        match($0, /"max_peak_rank": [0-9]+/) { top = substr($0, RSTART + 17, RLENGTH - 17) }
        function number(key) { match(line[top], "\"" key "\":[0-9]+"); return substr(line[top], RSTART + length(key) + 3, RLENGTH - length(key) - 3) }
        END {
            again = number("step_recompute_flops")
            printf "%.1f (%.1f)", number("peak_allocated_bytes") / 2^30, number("peak_activation_bytes") / 2^30
            if (again > 0) printf " +%.0f%%", 100 * again / (number("step_flops") - again)
        }' "$plan"
}
size() { # FLAG: of the layout, 1 by default
    printf '%s\n' "${flags[@]}" | awk -v flag="$1" -v n=1 'last == flag { n = $0 } { last = $0 } END { print n }'
}
echo "| script | ranks | layout | none | \`core_attn\` | \`core_attn layernorm\` and \`mlp\`, \`moe\` | full, uniform, 1 |"
echo "|---|---|---|---|---|---|---|"
for script in scripts/examples/*.sh; do
    [ "$script" != scripts/examples/common.sh ] || continue
    world=$(bash "$script" --print world)
    mapfile -t flags < <(bash "$script" --print model parallel precision optimizer)
    tensor=$(size --tensor-model-parallel-size) pipeline=$(size --pipeline-model-parallel-size) context=$(size --context-parallel-size)
    chunks=$(size --num-virtual-stages-per-pipeline-rank)
    per_chunk=$(size --num-layers-per-virtual-pipeline-stage)
    [ "$per_chunk" = 1 ] || chunks=$(($(size --num-layers) / pipeline / per_chunk))
    layout="DP $((world / tensor / pipeline / context))"
    [ "$context" = 1 ] || layout="CP $context, $layout"
    experts=$(size --expert-model-parallel-size)
    [ "$experts" = 1 ] || layout="EP $experts, $layout"
    [ "$(size --pipeline-model-parallel-layout)" = 1 ] || chunks="by layout"
    [ "$pipeline" = 1 ] || layout="PP $pipeline ${chunks/#[0-9]/x &}, $layout"
    [ "$tensor" = 1 ] || layout="TP $tensor, $layout"
    insides=(mlp) # of the MLP, or of the experts, or of both
    [ "$(size --num-experts)" = 1 ] || insides=(moe)
    case $(size --moe-layer-freq) in *0*) insides=(mlp moe) ;; esac
    flags+=(--world-size "$world" --train-iters "$(bash "$script" --print iterations)" --mock-data --vocab-size "$(bash "$script" --print vocabulary)")
    echo "| \`${script##*/}\` | $world | $layout | $(peak) | $(peak --recompute-activations)" \
        "| $(peak --recompute-granularity selective --recompute-modules core_attn layernorm "${insides[@]}")" \
        "| $(peak --recompute-granularity full --recompute-method uniform --recompute-num-layers 1) |"
done
