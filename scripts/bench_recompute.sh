#!/bin/bash
# Each recompute setting on one model: peak and activation memory, step time, time spent recomputing, tokens/s; and that the
# result is the same to the last bit. The runs alternate over the settings; times are the least of all iterations, so that other work on the machine does not count.
#     scripts/bench_recompute.sh [rounds, default 3] [flags of pretrain_gpt for another model ...]
set -eu
cd "$(dirname "$0")/.."
rounds=${1:-3}
[ $# -eq 0 ] || shift
build=${BUILD:-build}
make -s BUILD="$build" all
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=("$@")
[ ${#model[@]} -gt 0 ] || model=(--num-layers 12 --hidden-size 768 --num-attention-heads 12 --seq-length 1024
    --max-position-embeddings 1024 --micro-batch-size 2 --global-batch-size 2 --vocab-size 50257 --hidden-dropout 0
    --attention-dropout 0 --cross-entropy-loss-fusion --cross-entropy-fusion-impl linear --bf16)
selective="--recompute-granularity selective --recompute-modules"
full="--recompute-granularity full --recompute-method"
settings=("nothing|" "layernorm|$selective layernorm" "mlp_act|$selective mlp_act" "layernorm mlp_act|$selective layernorm mlp_act"
    "core_attn|--recompute-activations" "mlp|$selective mlp" "layernorm mlp|$selective layernorm mlp"
    "core_attn layernorm mlp|$selective core_attn layernorm mlp" "full block 6|$full block --recompute-num-layers 6"
    "full uniform 1|$full uniform --recompute-num-layers 1" "full uniform 3|$full uniform --recompute-num-layers 3")
for round in $(seq "$rounds"); do
    for i in "${!settings[@]}"; do
        # shellcheck disable=SC2086
        "$build/pretrain_gpt" "${model[@]}" --mock-data --train-iters 6 --lr 1e-4 --eval-iters 0 --log-interval 1000 \
            --metrics-file "$work/m" --log-params-hash ${settings[$i]#*|} >/dev/null 2>"$work/err" || { cat "$work/err" >&2; exit 1; }
        tail -n +3 "$work/m" | sed 's/.*"elapsed_ms":\([0-9.]*\).*"recompute_ms":\([0-9.]*\),"peak_allocated_bytes":\([0-9]*\).*"peak_activation_bytes":\([0-9]*\).*"params_hash":"\([0-9a-f]*\)".*/\1 \2 \3 \4 \5/' >>"$work/s.$i"
        rm -f "$work/m"
    done
    echo "round $round of $rounds" >&2
done
tokens=$("$build/pretrain_gpt" "${model[@]}" --mock-data --train-iters 1 --lr 1e-4 --eval-iters 0 --metrics-file "$work/m" >/dev/null 2>&1
    sed 's/.*"elapsed_ms":\([0-9.]*\),"tokens_per_second":\([0-9.]*\).*/\1 \2/' "$work/m" | awk '{ printf "%.0f", $1 * $2 / 1e3 }')
hash=$(tail -n 1 "$work/s.0" | cut -d' ' -f5)
printf '%-26s %10s %14s %10s %8s %12s %10s  %s\n' setting "peak MiB" "activations" "step ms" "change" "recompute ms" "tokens/s" "result"
for i in "${!settings[@]}"; do
    sort -n "$work/s.$i" | awk -v name="${settings[$i]%%|*}" -v tokens="$tokens" -v hash="$hash" -v base="$(cat "$work/base" 2>/dev/null || echo 0)" '
        { ms[NR] = $1; re[NR] = $2; peak = $3; act = $4 }
        END { m = ms[1]
              printf "%-26s %10.1f %10.1f MiB %10.1f %7.1f%% %12.1f %10.0f", name, peak / 2^20, act / 2^20, m, base ? 100 * (m / base - 1) : 0, re[1], tokens / m * 1e3 }'
    [ "$(tail -n 1 "$work/s.$i" | cut -d' ' -f5)" = "$hash" ] && echo "  bit-equal" || echo "  DIFFERENT"
    [ "$i" = 0 ] && sort -n "$work/s.0" | awk '{ ms[NR] = $1 } END { print ms[1] }' >"$work/base"
done
