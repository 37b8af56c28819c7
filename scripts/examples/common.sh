# What the scripts of this folder share; each describes one model in arrays and sources this as its last line.
#
#     llama3_8b.sh --dry-run             plans all WORLD_SIZE ranks on this machine: memory, FLOPs; starts nothing
#     llama3_8b.sh --small               trains a small sibling (same switches, few narrow layers) on the corpus of
#                                        scripts/make_corpus.sh, about a minute on two cores
#     RANKS=4 llama3_8b.sh --small       the same on four ranks of mpirun, with the model's kinds of parallelism as far as they fit
#     llama3_8b.sh                       trains: inside a Slurm job by scripts/slurm/train.sh, else with mpirun on WORLD_SIZE ranks
#     llama3_8b.sh --print [GROUP...]    prints its flags, one word a line: model parallel recompute precision optimizer data output,
#                                        and on request small, vocabulary, iterations, world
#
# All other arguments go to the program after the script's own flags, so they win. Variables:
#     DATA_PATH       tokenized data for training (a dry run plans with made-up data where it is unset)
#     TOKENIZER_MODEL, or VOCAB_FILE and MERGE_FILE    files of the model's tokenizer
#     SAVE, SAVE_INTERVAL    folder and interval of checkpoints: checkpoints/NAME, 500
#     RANKS           ranks of mpirun instead of WORLD_SIZE; with --small 1
#     LAUNCHER_ARGS   more arguments for mpirun or srun: host files and the like
#     PRETRAIN        the program, build/pretrain_gpt of this repository
#     CORPUS_DIR      folder of --small's corpus, build/quickstart
#
# A new model is one file: WORLD_SIZE, TRAIN_ITERS and VOCAB_SIZE, the arrays MODEL PARALLEL RECOMPUTE PRECISION OPTIMIZER TOKENIZER,
# and SMALL, the flags that make the model small.
# shellcheck shell=bash disable=SC2154,SC2054 # the arrays come from the file that sources this one; commas belong to flags
set -eu
name=$(basename "$0" .sh)
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PRETRAIN=${PRETRAIN:-$repo/build/pretrain_gpt}
fail() { echo "$name: $*" >&2; exit 2; }

OUTPUT=(--log-interval 10 --log-throughput --eval-interval 1000 --eval-iters 10)
DATA=(--data-path "${DATA_PATH:-/data/corpus_text_document}" --split 990,10,0 "${TOKENIZER[@]}")

# ---- arguments ----
mode=train small=0 extra=()
for word; do
    case $word in
    --small) small=1 ;;
    --print) mode=print ;;
    # what the program answers without training
    --dry-run | --dry-run-json* | --estimate-memory-only | --print-topology | --help* | -h | --version) mode=plan extra+=("$word") ;;
    *) extra+=("$word") ;;
    esac
done
given() { # FLAG...: is one of them among the extra arguments?
    local flag word
    for flag; do
        for word in "${extra[@]}"; do [ "${word%%=*}" != "$flag" ] || return 0; done
    done
    return 1
}
value_of() { # FLAG DEFAULT WORD...: the word after the last FLAG
    local flag=$1 value=$2
    shift 2
    while [ $# -gt 0 ]; do
        case $1 in "$flag") value=${2:-} ;; "$flag"=*) value=${1#*=} ;; esac
        shift
    done
    echo "$value"
}

if [ $mode = print ]; then
    [ ${#extra[@]} -gt 0 ] || extra=(model parallel recompute precision optimizer data output)
    for group in "${extra[@]}"; do
        case $group in
        model) words=("${MODEL[@]}") ;;
        parallel) words=("${PARALLEL[@]}") ;;
        recompute) words=("${RECOMPUTE[@]}") ;;
        precision) words=("${PRECISION[@]}") ;;
        optimizer) words=("${OPTIMIZER[@]}") ;;
        data) words=("${DATA[@]}") ;;
        output) words=("${OUTPUT[@]}") ;;
        small) words=("${SMALL[@]}") ;;
        vocabulary) words=("$VOCAB_SIZE") ;;
        iterations) words=("$TRAIN_ITERS") ;;
        world) words=("$WORLD_SIZE") ;;
        *) fail "no group '$group': there are model parallel recompute precision optimizer data output small vocabulary iterations world" ;;
        esac
        [ ${#words[@]} = 0 ] || printf '%s\n' "${words[@]}"
    done
    exit 0
fi
[ -x "$PRETRAIN" ] || fail "no program at $PRETRAIN: run make in $repo, or set PRETRAIN"

# ---- the small sibling ----
# The model's kinds of parallelism, two ranks each, as long as ranks are left; what is left then is data parallel.
small_layout() { # RANKS: fills LAYOUT and data_parallel
    local left=$1 flag size pipeline=1 tensor=1 word skip=0
    local -A sizes=()
    for flag in --tensor-model-parallel-size --pipeline-model-parallel-size --context-parallel-size; do
        sizes[$flag]=1
        size=$(value_of $flag 1 "${PARALLEL[@]}")
        if [ "$size" -gt 1 ] && [ $((left % 2)) = 0 ]; then sizes[$flag]=2 left=$((left / 2)); fi
    done
    tensor=${sizes[--tensor-model-parallel-size]} pipeline=${sizes[--pipeline-model-parallel-size]} data_parallel=$left
    # experts are spread over the data-parallel ranks, and where they are not cut themselves over the tensor-parallel ones too
    size=$left
    [ "$(value_of --expert-tensor-parallel-size 0 "${PARALLEL[@]}")" != 1 ] || size=$((left * tensor))
    sizes[--expert-model-parallel-size]=$((size % 2 == 0 ? 2 : 1))
    sizes[--expert-tensor-parallel-size]=1
    LAYOUT=()
    for word in "${PARALLEL[@]}"; do
        if [ $skip = 1 ]; then skip=0; continue; fi
        case $word in
        --tensor-model-* | --pipeline-model-parallel-size | --context-parallel-size | --expert-model-* | --expert-tensor-*)
            skip=1 LAYOUT+=("$word" "${sizes[$word]}") ;;
        --sequence-parallel) [ "$tensor" = 1 ] || LAYOUT+=("$word") ;;
        --account-for-*) [ "$pipeline" = 1 ] || LAYOUT+=("$word") ;;
        --num-layers-per-virtual-pipeline-stage | --num-virtual-stages-per-pipeline-rank) # two layers a stage, or four, in two parts
            skip=1
            [ "$pipeline" = 1 ] || LAYOUT+=(--num-virtual-stages-per-pipeline-rank 2) ;;
        --decoder-first-* | --decoder-last-* | --pipeline-model-parallel-layout) skip=1 ;; # meant for many layers
        *) LAYOUT+=("$word") ;;
        esac
    done
}

if [ $small = 1 ]; then
    ranks=${RANKS:-1}
    TRAIN_ITERS=$(value_of --train-iters 300 "${extra[@]}") WORLD_SIZE=$ranks
    small_layout "$ranks"
    micro=$((data_parallel == 1 ? 2 : 1)) batch=$((data_parallel == 1 ? 8 : 4 * data_parallel))
    corpus=${CORPUS_DIR:-$repo/build/quickstart}
    # dry runs of it read no data
    if [ $mode = train ]; then PREPROCESS=$(cd "$(dirname "$PRETRAIN")" && pwd)/preprocess_data "$repo/scripts/make_corpus.sh" "$corpus" >&2; fi
    MODEL+=(--seq-length 256 --max-position-embeddings 256 "${SMALL[@]}")
    PARALLEL=("${LAYOUT[@]}")
    OPTIMIZER+=(--micro-batch-size "$micro" --global-batch-size "$batch" --lr 2e-3 --min-lr 2e-4 --lr-warmup-iters "$((TRAIN_ITERS / 15))")
    case " ${OPTIMIZER[*]} " in *" --rampup-batch-size "*) OPTIMIZER+=(--rampup-batch-size "$((batch / 2))" "$((batch / 2))" 80) ;; esac
    OUTPUT+=(--eval-interval 100 --eval-iters 4)
    if [ $mode = train ]; then
        DATA=(--data-path "$corpus/corpus_text_document" --split 98,2,0 --tokenizer-type ByteTokenizer)
    else
        DATA=(--mock-data --tokenizer-type ByteTokenizer)
    fi
    cores=$(nproc)
    OUTPUT+=(--cpu-threads $((cores > ranks ? cores / ranks : 1)))
elif given --mock-data || { [ $mode = plan ] && [ -z "${DATA_PATH:-}" ]; }; then
    # the vocabulary counts, its words do not
    DATA=(--vocab-size "$VOCAB_SIZE")
    given --mock-data --data-path --train-data-path --data-args-path --per-split-data-args-path || DATA+=(--mock-data)
elif [ $mode = train ] && [ -z "${DATA_PATH:-}" ]; then
    given --data-path --train-data-path --data-args-path --per-split-data-args-path ||
        fail "no data: set DATA_PATH to what preprocess_data wrote, or give --mock-data, or --small for a small model on text of this machine"
    DATA=(--split 990,10,0 "${TOKENIZER[@]}")
fi
flags=("${MODEL[@]}" "${PARALLEL[@]}" "${RECOMPUTE[@]}" "${PRECISION[@]}" "${OPTIMIZER[@]}" "${DATA[@]}" "${OUTPUT[@]}")

# ---- start ----
if [ $mode = plan ]; then
    exec "$PRETRAIN" "${flags[@]}" --train-iters "$TRAIN_ITERS" --dry-run --world-size "$WORLD_SIZE" "${extra[@]}"
fi
if [ $small = 1 ] && [ "$ranks" = 1 ]; then
    exec "$PRETRAIN" "${flags[@]}" --train-iters "$TRAIN_ITERS" "${extra[@]}"
fi
SAVE=$(value_of --save "${SAVE:-checkpoints/$name}" "${extra[@]}")
SAVE_INTERVAL=$(value_of --save-interval "${SAVE_INTERVAL:-500}" "${extra[@]}")
TRAIN_ITERS=$(value_of --train-iters "$TRAIN_ITERS" "${extra[@]}")
if [ $small = 0 ] && [ -n "${SLURM_JOB_ID:-}" ]; then
    export SAVE SAVE_INTERVAL TRAIN_ITERS PRETRAIN REPO="$repo"
    exec bash "$repo/scripts/slurm/train.sh" "${flags[@]}" "${extra[@]}"
fi
if [ $small = 0 ]; then
    # mpirun kills its ranks on TERM, and hands USR1 on to them
    flags+=(--save "$SAVE" --load "$SAVE" --save-interval "$SAVE_INTERVAL" --exit-signal-handler --exit-signal SIGUSR1)
else
    # more ranks than processors, each where the system puts it (Open MPI 4 and 5)
    export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
    export PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe PRTE_MCA_hwloc_default_binding_policy=none
fi
command -v mpirun >/dev/null || fail "no mpirun here: install an MPI (Debian: openmpi-bin), or start it inside a Slurm job"
# shellcheck disable=SC2086 # LAUNCHER_ARGS holds many words
exec mpirun -np "${RANKS:-$WORLD_SIZE}" ${LAUNCHER_ARGS:-} "$PRETRAIN" "${flags[@]}" --train-iters "$TRAIN_ITERS" "${extra[@]}"
