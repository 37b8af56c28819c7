#!/bin/bash
# Communication runs beside compute where a flag or a layout says so, nowhere else, and changes no bit. Seen in the trace of rank 0: requests
# under way while ops of backward or forward compute, without the time in which compute stands still for communication. Shares
# hang on the processors that others leave to these ranks: a run whose share is too small is done again, twice at most.
HELPER=$PWD/tests/end_to_end/overlap_of_traces.py
. tests/end_to_end/lib.sh
command -v mpirun >/dev/null && command -v python3 >/dev/null || { echo "ok 1 - overlap # SKIP needs mpirun and python3"; exit 0; }
MODEL="--num-layers 4 --hidden-size 512 --num-attention-heads 8 --seq-length 256 --max-position-embeddings 256 --micro-batch-size 2
 --vocab-size 8192 --hidden-dropout 0 --attention-dropout 0 --lr 1e-4 --bf16 --mock-data --eval-iters 0 --train-iters 6 --cpu-threads 1
 --log-params-hash --metrics-file m --profile --profile-step-start 2 --profile-step-end 6 --profile-ranks 0 --profile-trace-file t.json"
REDUCE="--overlap-grad-reduce --ddp-bucket-size 2000000"
LEAST=5 # percent of the time that requests of this kind are under way; small, because tests run on busy machines

train() { # flags...: the shares of rank 0 come to shares
    rm -f m t.json
    touch m
    # shellcheck disable=SC2086
    launch run 2 $MODEL "$@"
    await "$launched" 60
    [ "$ended" = 0 ] && python3 "$HELPER" t.json >shares || { tail -n 3 run.err | sed 's/^/# /'; : >shares; }
}
share() { # group, kind, forward | backward | compute: percent of the time under way; -1 when there was none
    awk -v group="$1" -v kind="$2" -v pass="$3" '
        $2 == group && $3 == kind && $5 > 0 {
            beside = pass == "forward" ? $6 : pass == "backward" ? $7 : $6 + $7 + $8
            printf "%.0f", 100 * beside / $5
            found = 1
        }
        END { if (!found) printf "-1" }' shares
}
large() { [ "$(share "$@")" -ge $LEAST ] || { echo "# $*: $(share "$@") percent"; false; }; }
until_large() { # flags, then triples of group, kind and pass
    local flags=$1 attempt
    shift
    for attempt in 1 2 3; do
        # shellcheck disable=SC2086
        train $flags
        local all=1 of=("$@")
        while [ ${#of[@]} -gt 0 ]; do large "${of[@]:0:3}" || all=0; of=("${of[@]:3}"); done
        [ $all = 1 ] && return
    done
    return 1
}
data=data-context-parallel

train --global-batch-size 4
hash=$(value m params_hash)
is "without the flag no reduction of gradients runs under backward" "$(share $data all-reduce backward)" 0
ok "--overlap-grad-reduce runs reductions under backward" until_large "--global-batch-size 4 $REDUCE" $data all-reduce backward
is "and the weights get the same bits" "$(value m params_hash)" "$hash"
train --global-batch-size 4 $REDUCE --use-distributed-optimizer
is "without the flag no gather of weights runs under forward" "$(share $data all-gather forward)" 0
ok "--overlap-param-gather runs gathers under forward, and reductions under backward" until_large \
    "--global-batch-size 4 $REDUCE --use-distributed-optimizer --overlap-param-gather" $data all-gather forward $data reduce-scatter backward
is "and the weights get the same bits" "$(value m params_hash)" "$hash"
ok "FSDP gathers beside compute and reduces under backward" until_large \
    "--global-batch-size 4 --use-megatron-fsdp --data-parallel-sharding-strategy optim_grads_params" \
    $data all-gather compute $data reduce-scatter backward
is "and the weights get the same bits" "$(value m params_hash)" "$hash"
ok "the tensor-parallel sum of an input gradient runs beside the weight gradient" until_large \
    "--global-batch-size 2 --tensor-model-parallel-size 2" tensor-parallel all-reduce backward
echo "1..$number"
