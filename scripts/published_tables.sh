#!/bin/bash
# Published tables of training memory beside this program's, by dry run on the same shapes. Prints Markdown; takes seconds, trains nothing.
#     scripts/published_tables.sh        needs build/pretrain_gpt, or PRETRAIN set to the program
# Sources: Korthikanti et al. 2022, arXiv 2205.05198: table 2 (bytes per layer) and table 3 (shapes; 8 tensor-parallel ranks, 2048 tokens,
# 51200 words). NVIDIA NeMo AutoModel, docs/guides/gradient-checkpointing.md: Llama-3.2-1B on H100.
set -eu
cd "$(dirname "$0")/.."
PRETRAIN=${PRETRAIN:-build/pretrain_gpt}
plan=$(mktemp)
trap 'rm -f "$plan"' EXIT

dry_run() { # flags...: leaves the plan of rank 0 in $plan
    "$PRETRAIN" "$@" --train-iters 1 --lr 1e-4 --mock-data --dry-run-json "$plan" >/dev/null 2>"$plan.err" || {
        cat "$plan.err" >&2
        rm -f "$plan.err"
        exit 1
    }
    rm -f "$plan.err"
}
number() { awk -v key="\"$1\":" '/"rank": 0,/ { match($0, key "[0-9]+"); print substr($0, RSTART + length(key), RLENGTH - length(key)) }' "$plan"; }

# ---- activation bytes of a layer ----
activations() { # layers, flags...
    local layers=$1
    shift
    dry_run --num-layers "$layers" --hidden-size "$hidden" --num-attention-heads "$heads" --seq-length 2048 --max-position-embeddings 2048 \
        --vocab-size 51200 --micro-batch-size "$batch" --global-batch-size "$batch" --fp16 --hidden-dropout 0.1 --attention-dropout 0.1 \
        --tensor-model-parallel-size 8 --world-size 8 "$@"
    number peak_activation_bytes
}
per_layer() { # flags...: what 8 layers more add to the peak, each; all else is alike
    local more fewer
    more=$(activations 16 "$@")
    fewer=$(activations 8 "$@")
    echo $(((more - fewer) / 8))
}
mib() { awk -v n="$1" 'BEGIN { printf "%.1f", n / 2^20 }'; }
row() { # setting, published bytes, flags...
    local name=$1 published=$2 unfused fused
    shift 2
    unfused=$(per_layer "$@" --attention-backend unfused)
    fused=$(per_layer "$@")
    echo "| $model | $name | $(mib "$published") | $(mib "$unfused") | $(mib "$fused") | $(awk -v a="$fused" -v b="$published" 'BEGIN { printf "%.0f%%", 100 * a / b }') |"
}
full="--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
echo "## Activations of one layer, MiB per rank"
echo
echo "fp16, dropout 0.1, 2048 tokens, 8 tensor-parallel ranks, one micro-batch in flight."
echo
echo "| model | setting | published | ours, unfused attention | ours, fused attention | fused / published |"
echo "|---|---|---|---|---|---|"
while read -r model hidden heads batch; do
    sbh=$((2048 * batch * hidden)) scores=$((5 * heads * 2048 * 2048 * batch))
    row "none" $((10 * sbh + 24 * sbh / 8 + scores / 8))
    row "sequence parallel" $(((34 * sbh + scores) / 8)) --sequence-parallel
    row "selective" $((10 * sbh + 24 * sbh / 8)) --recompute-activations
    row "sequence parallel, selective" $((34 * sbh / 8)) --sequence-parallel --recompute-activations
    # shellcheck disable=SC2086
    row "full" $((2 * sbh)) $full
    # shellcheck disable=SC2086
    row "full, sequence parallel" $((2 * sbh)) --sequence-parallel $full
done <<'END'
22B 6144 64 4
175B 12288 96 1
530B 20480 128 1
1T 25600 160 1
END

# ---- Llama-3.2-1B ----
whole() { # row, published GB, flags...
    local name=$1 published=$2 peak live
    shift 2
    mapfile -t shape < <(bash scripts/examples/llama3.2_1b.sh --print model)
    dry_run "${shape[@]}" --seq-length 2048 --vocab-size 128256 --micro-batch-size 8 --bf16 "$@"
    peak=$(number peak_allocated_bytes) live=$(number peak_activation_bytes)
    awk -v name="$name" -v published="$published" -v peak="$peak" -v live="$live" 'BEGIN {
        printf "| %s | %.2f | %.2f | %.2f | %.2f | %s |\n", name, published, peak / 1e9, (peak - live) / 1e9, live / 1e9,
            peak / 1e9 <= published ? "yes" : "no" }'
}
fsdp="--world-size 8 --global-batch-size 64 --use-megatron-fsdp --ckpt-format fsdp_dtensor"
loss="--cross-entropy-loss-fusion --cross-entropy-fusion-impl linear"
echo
echo "## Llama-3.2-1B, micro-batch 8, 2048 tokens, AdamW: peak of a rank in GB (1e9 bytes)"
echo
echo "| setting | published | ours | of it weights, gradients, optimizer, buffers | of it activations | lower |"
echo "|---|---|---|---|---|---|"
whole "one GPU" 53.03 --world-size 1 --global-batch-size 8
# shellcheck disable=SC2086
{
    whole "FSDP over 8" 47.59 $fsdp
    whole "and gradient checkpointing" 33.06 $fsdp $full
    whole "and linear cross entropy" 7.30 $fsdp $full $loss
}
