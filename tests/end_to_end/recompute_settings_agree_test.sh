#!/bin/bash
# I1 and I2 through the program itself: for every recompute setting the parameters after training have the same hash, and the
# peak that a dry run plans is the peak that the run measures.
. "$(dirname "$0")/lib.sh"
run() { # name, flags...
    local name=$1
    shift
    # shellcheck disable=SC2086
    is "$name: runs" "$(status_of "$PRETRAIN" $SMALL "$@" --log-params-hash --metrics-file "$name.jsonl")" 0
    # shellcheck disable=SC2086
    is "$name: dry run" "$(status_of "$PRETRAIN" $SMALL "$@" --dry-run-json "$name.plan")" 0
    planned=$(sed -n 's/.*"max_peak_allocated_bytes": *\([0-9]*\).*/\1/p' "$name.plan")
    is "$name: planned peak is measured peak" "$(value "$name.jsonl" peak_allocated_bytes)" "$planned"
}
full="--recompute-granularity full --recompute-method"
llama="--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear
    --untie-embeddings-and-output-weights --qk-layernorm --cross-entropy-loss-fusion --cross-entropy-fusion-impl linear"
for model in gpt llama mla; do
    flags='' own=''
    [ $model = llama ] && flags="$llama --group-query-attention --num-query-groups 2"
    [ $model = mla ] && own=mla_up_proj flags="$llama --multi-latent-attention --q-lora-rank 20 --qk-head-dim 12
        --qk-pos-emb-head-dim 8 --v-head-dim 10 --rotary-scaling-factor 40 --mscale-all-dim 1"
    # shellcheck disable=SC2086
    {
        run $model.none $flags
        run $model.unset $flags --recompute-granularity None
        run $model.activations $flags --recompute-activations
        run $model.modules $flags --recompute-granularity selective --recompute-modules core_attn mlp layernorm $own
        run $model.act $flags --recompute-granularity selective --recompute-modules mlp_act $own
        run $model.uniform1 $flags $full uniform --recompute-num-layers 1
        run $model.uniform2 $flags $full uniform --recompute-num-layers 2
        run $model.sqrt $flags $full sqrt
        run $model.op $flags --recompute-granularity op --recompute-save-ops gemm,attention,communication
        run $model.block2 $flags $full block --recompute-num-layers 2
    }
    expected=$(value $model.none.jsonl params_hash)
    ok "$model: the hash is a hash" test ${#expected} = 16
    for name in unset activations modules act uniform1 uniform2 sqrt op block2; do
        is "$model.$name: same parameters as without recompute" "$(value $model.$name.jsonl params_hash)" "$expected"
        is "$model.$name: same loss" "$(value $model.$name.jsonl lm_loss)" "$(value $model.none.jsonl lm_loss)"
    done
    lower() { [ "$(value "$1" peak_activation_bytes)" -lt "$(value "$2" peak_activation_bytes)" ]; }
    ok "$model: full recompute lowers the activation peak" lower $model.uniform1.jsonl $model.none.jsonl
    ok "$model: core_attn lowers it with fused attention" lower $model.activations.jsonl $model.none.jsonl
done
# shellcheck disable=SC2086
status_of "$PRETRAIN" $SMALL --log-params-hash --metrics-file again.jsonl >/dev/null
is "I7: two runs with the same flags are bit-equal" "$(value again.jsonl params_hash)" "$(value gpt.none.jsonl params_hash)"
# shellcheck disable=SC2086
status_of "$PRETRAIN" $SMALL --log-params-hash --metrics-file one.jsonl --cpu-threads 1 >/dev/null
is "the number of threads does not change the result" "$(value one.jsonl params_hash)" "$(value gpt.none.jsonl params_hash)"
# shellcheck disable=SC2086
status_of "$PRETRAIN" $SMALL --recompute-trace --recompute-activations >/dev/null
contains "--recompute-trace names every op once as SAVE or RECOMPUTE" out "attention                RECOMPUTE" "linear_fc1               SAVE"
# shellcheck disable=SC2086
status_of "$PRETRAIN" $SMALL --recompute-trace $full block --recompute-num-layers 1 >/dev/null
contains "--recompute-trace shows what differs between layers" out "ALTERNATE"
