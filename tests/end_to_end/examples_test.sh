#!/bin/bash
# Every script of scripts/examples is of the size that its paper or model card says, plans its whole world at once, has a small sibling that
# trains, and starts training as it says.
repo=$(cd "$(dirname "$0")/../.." && pwd)
. "$(dirname "$0")/lib.sh"
export PRETRAIN
examples=$repo/scripts/examples
scripts=()
for script in "$examples"/*.sh; do [ "${script##*/}" = common.sh ] || scripts+=("$script"); done

# ---- how large they are: shape from the papers, the formula for it, and the published size ----
padded() { echo $((($1 + 127) / 128 * 128)); } # vocabulary
gpt() { # layers, hidden, words, positions: biases everywhere, MLP 4h, head shared with the embedding
    local l=$1 h=$2
    echo $(($(padded "$3") * h + $4 * h + l * (4 * h * h + 4 * h + 8 * h * h + 5 * h + 4 * h) + 2 * h))
}
llama() { # layers, hidden, MLP width, heads, groups, words, matrices of words
    local l=$1 h=$2 f=$3
    echo $(($7 * $(padded "$6") * h + l * (2 * h * h + 2 * h * (h / $4 * $5) + 3 * h * f + 2 * h) + h))
}
mixtral() { # layers, hidden, width of an expert, heads, groups, words, experts
    local l=$1 h=$2 f=$3
    echo $((2 * $(padded "$6") * h + l * (2 * h * h + 2 * h * (h / $4 * $5) + $7 * (h + 3 * h * f) + 2 * h) + h))
}
deepseek() { # layers, dense ones, hidden, MLP width, width of an expert, experts, shared experts, words, layers of multi-token prediction;
    local l=$1 dense=$2 h=$3 f=$4 e=$5 q=1536 kv=512 plain=128 rope=64 value=128 heads=128 # the latents and heads of V3
    local attention=$((h * q + q + q * heads * (plain + rope) + h * (kv + rope) + kv + kv * heads * (plain + value) + heads * value * h))
    local moe=$(($6 * h + ($6 + $7) * 3 * h * e))
    # a layer of multi-token prediction: two norms, a projection of twice the width, a layer with experts, a norm
    echo $((2 * $(padded "$8") * h + l * (attention + 2 * h) + dense * 3 * h * f + (l - dense) * moe + h + $9 * (attention + 2 * h + moe + 2 * h * h + 3 * h)))
}
formula() { # name: the exact size as a script of that name must have it, and the published one
    case $1 in
    gpt2_124m) gpt 12 768 50257 1024 && echo 124439808 ;;       # parameters of the published weights
    gpt2_1.5b) gpt 48 1600 50257 1024 && echo 1557611200 ;;     # the same
    gpt3_175b) gpt 96 12288 50257 2048 && echo 175000000000 ;;  # table 2.1: 175.0B
    llama3_8b) llama 32 4096 14336 32 8 128256 2 && echo 8030261248 ;;       # parameters of the published weights, as below
    llama3_70b) llama 80 8192 28672 64 8 128256 2 && echo 70553706496 ;;
    llama3.1_405b) llama 126 16384 53248 128 8 128256 2 && echo 405853388800 ;;
    llama3.2_1b) llama 16 2048 8192 32 8 128256 1 && echo 1235814400 ;;
    mixtral_8x7b) mixtral 32 4096 14336 32 8 32000 8 && echo 46702792704 ;;
    # the model card: 671B and 14B of multi-token prediction, which counts embedding and head again
    deepseek_v3_671b) deepseek 61 3 7168 18432 2048 256 1 129280 1 && echo $((685000000000 - 2 * 129280 * 7168)) ;;
    *) echo 0 0 ;;
    esac
}
for script in "${scripts[@]}"; do
    name=$(basename "$script" .sh)
    start=$(date +%s%N)
    is "$name: its whole world is planned" "$(status_of bash "$script" --dry-run --dry-run-json plan.json)" 0
    [ -s err ] && head -n 3 err | sed 's/^/# /'
    ok "$name: in under 10 seconds" test $(($(date +%s%N) - start)) -lt 10000000000
    is "$name: all of it" "$(sed -n 's/^"world_size": \([0-9]*\).*/\1/p' plan.json)" "$(bash "$script" --print world)"
    # the same model on one rank
    mapfile -t flags < <(bash "$script" --print model precision)
    "$PRETRAIN" "${flags[@]}" --micro-batch-size 1 --lr 1 --train-iters 1 --mock-data --vocab-size "$(bash "$script" --print vocabulary)" \
        --world-size 1 --dry-run-json one.json >out 2>&1 || tail -n 1 out | sed 's/^/# /'
    size=$(sed -n 's/.*"num_parameters":\([0-9]*\).*/\1/p' one.json)
    { read -r exact && read -r published; } < <(formula "$name")
    is "$name: as many parameters as the shape says" "$size" "$exact"
    ok "$name: within 1% of the published number" awk -v a="${size:-0}" -v b="${published:-0}" 'BEGIN { exit !(a > 0.99 * b && a < 1.01 * b) }'
    accepted=
    for ranks in 1 2 3 4 8 16; do
        [ "$(RANKS=$ranks status_of bash "$script" --small --dry-run)" = 0 ] && accepted+=" $ranks" || head -n 1 err | sed 's/^/# /'
    done
    is "$name: its small sibling fits so many ranks" "$accepted" " 1 2 3 4 8 16"
    rm -f plan.json one.json
done

# ---- small siblings train ----
mkdir corpus
for i in $(seq 4); do cat "$repo"/docs/*.md; done | tr -dc ' -~\n' | awk 'NF { gsub(/[\\"]/, " "); printf "{\"text\": \"%s\"}\n", $0 }' >corpus/corpus.jsonl
losses_fall() { awk -F'"lm_loss":' '{ l[NR] = $2 + 0 } END { for (i = 1; i <= NR; i++) if (!(l[i] > 0 && l[i] < 20)) exit 1; exit !(NR == 3 && l[3] < l[2] && l[2] < l[1]) }' "$1"; }
trains() { # name, ranks
    is "$1 --small trains on $2 ranks" "$(OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 CORPUS_DIR=$DIR/corpus RANKS=$2 \
        status_of timeout 200 bash "$examples/$1.sh" --small --train-iters 3 --eval-iters 0 --metrics-file "$1.$2.jsonl")" 0
    [ -s "$1.$2.jsonl" ] || tail -n 3 err | sed 's/^/# /'
    ok "$1: its loss is finite and falls" losses_fall "$1.$2.jsonl"
}
agrees() { # name: four ranks with one
    ok "and agree with one rank" awk -v a="$(value "$1.1.jsonl" lm_loss)" -v b="$(value "$1.4.jsonl" lm_loss)" 'BEGIN { d = a - b; exit !(d * d < 1e-3) }'
}
trains gpt2_124m 1
trains llama3_70b 1
trains mixtral_8x7b 1
trains deepseek_v3_671b 1
if command -v mpirun >/dev/null && [[ $("$PRETRAIN" --version) == *mpi=1* ]]; then
    trains llama3_70b 4
    contains "which are tensor and pipeline parallel" out "tensor_model_parallel_size ...................... 2  (command line)" \
        "pipeline_model_parallel_size .................... 2  (command line)"
    agrees llama3_70b
    trains mixtral_8x7b 4
    contains "with experts over two ranks and two stages" out "expert_model_parallel_size ...................... 2  (command line)" \
        "pipeline_model_parallel_size .................... 2  (command line)"
    agrees mixtral_8x7b
    trains deepseek_v3_671b 4
    contains "with experts over the tensor-parallel ranks" out "expert_model_parallel_size ...................... 2  (command line)" \
        "tensor_model_parallel_size ...................... 2  (command line)"
    agrees deepseek_v3_671b
else
    echo "ok $((number += 1)) - small siblings on four ranks # SKIP no MPI"
fi

# ---- flags of the user win; what cannot work is refused ----
bash "$examples/llama3_8b.sh" --dry-run --num-layers 5 --world-size 16 --dry-run-json plan.json >out 2>err
is "the user's flags win" "$(sed -n 's/^"world_size": \([0-9]*\).*/\1/p' plan.json)" 16
contains "over each flag of the script" out "num_layers ...................................... 5  (command line)"
is "training without data is refused" "$(status_of env -u DATA_PATH -u SLURM_JOB_ID bash "$examples/llama3_8b.sh")" 2
contains "and says what to do" err DATA_PATH --mock-data --small
is "a program that is not there is refused" "$(PRETRAIN=/nowhere status_of bash "$examples/llama3_8b.sh" --dry-run)" 2
contains "and says what to do" err "run make"

# ---- how training is started, with launchers that print their words ----
mkdir bin
for launcher in srun mpirun; do printf '#!/bin/sh\necho %s\nprintf "%%s\\n" "$@"\n' $launcher >bin/$launcher; done
printf '#!/bin/sh\nexit 0\n' >bin/scontrol
chmod +x bin/*
starts() { env -u RANKS -u LAUNCHER PATH="$DIR/bin:$PATH" DATA_PATH=/d/text SAVE="$DIR/saved" "$@"; }
starts env -u SLURM_JOB_ID LAUNCHER_ARGS="--hostfile hosts" bash "$examples/llama3_70b.sh" --lr 1 >words 2>err
is "without Slurm mpirun starts all ranks" "$(head -n 5 words | tr '\n' ' ')" "mpirun -np $(bash "$examples/llama3_70b.sh" --print world) --hostfile hosts "
contains "with data and checkpoints" words /d/text "$DIR/saved" --load --exit-signal-handler
is "the user's flags are last" "$(tail -n 2 words | tr '\n' ' ')" "--lr 1 "
mkdir -p saved && echo 7 >saved/latest_checkpointed_iteration.txt
starts env SLURM_JOB_ID=1 bash "$examples/llama3_70b.sh" --train-iters 7 >words 2>err
is "inside a Slurm job training is started by train.sh" "$(grep -c -e '^train.sh: job 1' -e '^srun$' -e '^train.sh: done, iteration 7' words)" 3
is "with the user's number of iterations" "$(grep -A1 -xe --train-iters words | grep -xc 7)" 2

if command -v shellcheck >/dev/null; then
    is "shellcheck has nothing to say" "$(status_of shellcheck -x "$examples"/*.sh "$repo"/scripts/make_corpus.sh "$repo"/scripts/make_examples_table.sh "$repo"/scripts/slurm/*)" 0
    head -n 20 out | sed 's/^/# /'
else
    echo "ok $((number += 1)) - shellcheck # SKIP not here"
fi
