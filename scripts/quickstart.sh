#!/bin/bash
# The first five minutes: installs what is missing, builds, makes a corpus from text that this machine has
# (headers, licences, documentation, scripts), trains a small Llama-style model on it for about two minutes,
# and then shows what activation recompute costs and saves: same loss to the last bit, less memory.
#     scripts/quickstart.sh [SECONDS_OF_TRAINING]        default: 110
# Needs no download once gcc and make are there. Everything lies in build/quickstart.
set -eu
cd "$(dirname "$0")/.."
train_seconds=${1:-110}
case $train_seconds in *[!0-9]* | '') echo "usage: $0 [SECONDS_OF_TRAINING]" >&2; exit 2 ;; esac
BUILD=${BUILD:-build}
dir=${QUICKSTART_DIR:-$BUILD/quickstart}
step() { printf '\n== %s\n' "$*"; }
stop() {
    echo "quickstart: $*" >&2
    exit 1
}

step "install what is missing"
scripts/install_deps.sh build

step "build"
make -j"$(nproc)" BUILD="$BUILD" all | tail -n 3
"$BUILD/pretrain_gpt" --version
mkdir -p "$dir"

step "corpus from this machine's own text"
BUILD="$BUILD" scripts/make_corpus.sh "$dir" || stop "there is no corpus to train on"

# ---- training ----
model=(--num-layers 6 --hidden-size 256 --ffn-hidden-size 704 --num-attention-heads 8 --group-query-attention --num-query-groups 2
    --position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear --untie-embeddings-and-output-weights
    --hidden-dropout 0 --attention-dropout 0 --bf16 --init-method-std 0.02)
data=(--data-path "$dir/corpus_text_document" --tokenizer-type ByteTokenizer --split '98,2,0')
optimizer=(--lr 3e-3 --min-lr 3e-4 --lr-decay-style cosine --lr-warmup-fraction 0.05 --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0 --seed 1234)
shape=(--seq-length 256 --max-position-embeddings 256 --micro-batch-size 8 --global-batch-size 8)

# value KEY FILE [LINE]: that number of the last (or that) JSON line
value() { tail -n "${3:-1}" "$2" | head -n 1 | sed -n "s/.*\"$1\":\"\{0,1\}\([^,}\"]*\).*/\1/p"; }
# train NAME FLAG...: runs the program; its output goes to NAME.log, its metrics to NAME.jsonl
train() {
    local name=$1
    shift
    rm -f "$dir/$name.jsonl"
    "$BUILD/pretrain_gpt" "${model[@]}" "${data[@]}" --metrics-file "$dir/$name.jsonl" "$@" >"$dir/$name.log" 2>&1 || {
        tail -n 20 "$dir/$name.log" >&2
        stop "the run above failed; its whole output is in $dir/$name.log"
    }
}

step "how fast is this machine?"
train probe "${shape[@]}" "${optimizer[@]}" --train-iters 12 --eval-iters 0 --log-interval 100
milliseconds=$(tail -n 8 "$dir/probe.jsonl" | sed -n 's/.*"elapsed_ms":\([0-9.]*\).*/\1/p' | sort -n | sed -n 4p)
iterations=$(awk -v ms="$milliseconds" -v s="$train_seconds" 'BEGIN { n = int(s * 1000 / ms / 10) * 10; print (n < 50 ? 50 : (n > 4000 ? 4000 : n)) }')
echo "$milliseconds ms per iteration of 2048 tokens: $iterations iterations take about $(awk -v ms="$milliseconds" -v n="$iterations" 'BEGIN { printf "%.0f", ms * n / 1000 }') s"

step "train a Llama-style model of 4.4 million parameters on bytes (log: $dir/train.log)"
interval=$((iterations / 10))
"$BUILD/pretrain_gpt" "${model[@]}" "${data[@]}" "${shape[@]}" "${optimizer[@]}" --train-iters "$iterations" \
    --eval-interval $((iterations / 5)) --eval-iters 4 --log-interval $interval --log-throughput \
    --metrics-file "$dir/train.jsonl" --tensorboard-dir "$dir/tensorboard" 2>&1 | tee "$dir/train.log" | while read -r line; do
    case $line in
    *' iteration '*' lm loss: '*) # the program's iteration line, shortened
        sed 's/.* iteration *\([0-9]*\)\/ *\([0-9]*\) |.* learning rate: \([^ ]*\) |.* lm loss: \([^ ]*\) |.* grad norm: \([^ ]*\) |.*/\1 \2 \3 \4 \5/' <<<"$line" |
            { read -r i n rate loss norm && printf '  iteration %5d/%d   train loss %.4f   gradient norm %.3f   learning rate %.2e\n' "$i" "$n" "$loss" "$norm" "$rate"; }
        ;;
    *'validation loss at iteration'*)
        sed 's/.*iteration \([0-9]*\)[^|]*| lm loss value: \([^ ]*\) .*/\1 \2/' <<<"$line" |
            { read -r i loss && printf '                      validation loss %.4f   after iteration %d\n' "$loss" "$i"; }
        ;;
    esac
done
grep -q '"iteration":'"$iterations," "$dir/train.jsonl" || { tail -n 20 "$dir/train.log" >&2; stop "training did not reach its last iteration, see $dir/train.log"; }
echo "train loss from $(sed -n '1s/.*"lm_loss":\([^,]*\).*/\1/p' "$dir/train.jsonl") to $(value lm_loss "$dir/train.jsonl") in $iterations iterations"

# ---- recompute ----
# Scores kept (--attention-backend unfused), as in the paper on selective recompute: there core_attn weighs
# most. Longer sequences, few iterations.
step "the same ten iterations with and without recompute"
compare=(--seq-length 512 --max-position-embeddings 512 --micro-batch-size 8 --global-batch-size 8 --attention-backend unfused
    "${optimizer[@]}" --train-iters 10 --eval-iters 0 --log-interval 10 --log-params-hash)
names=(none selective full)
labels=('no recompute' '--recompute-activations' 'full, uniform, 1 layer')
train none "${compare[@]}"
train selective "${compare[@]}" --recompute-activations
train full "${compare[@]}" --recompute-granularity full --recompute-method uniform --recompute-num-layers 1

echo "What recompute costs and saves: Llama-style, 6 layers, hidden 256, 8 x 512 tokens, bf16, unfused attention" >"$dir/recompute.tsv"
printf '\n  %-24s %-13s %-18s %14s %14s %10s\n' recompute 'lm loss' 'parameters' 'peak memory' 'activations' 'tokens/s'
mib() { awk -v b="$1" 'BEGIN { printf "%.1f MiB", b / 1048576 }'; }
for i in 0 1 2; do
    file=$dir/${names[$i]}.jsonl
    # the fastest iteration: other work on the machine only ever slows one down
    rate=$(sed -n 's/.*"tokens_per_second":\([0-9.e+]*\).*/\1/p' "$file" | sort -g | tail -n 1)
    printf '  %-24s %-13s %-18s %14s %14s %10.0f\n' "${labels[$i]}" "$(value lm_loss "$file")" "$(value params_hash "$file")" \
        "$(mib "$(value peak_allocated_bytes "$file")")" "$(mib "$(value peak_activation_bytes "$file")")" "$rate"
    printf '%s\t%s\t%s\t%s\n' "${labels[$i]}" "$(value peak_activation_bytes "$file")" "$(value peak_allocated_bytes "$file")" "$rate" >>"$dir/recompute.tsv"
done
exact() { sed 's/.*"lm_loss":\([^,]*\),"grad_norm":\([^,]*\),.*"params_hash":\("[^"]*"\).*/\1 \2 \3/' "$dir/$1.jsonl"; }
if [ "$(exact none)" = "$(exact selective)" ] && [ "$(exact none)" = "$(exact full)" ] && [ "$(exact none | wc -l)" = 10 ]; then
    note="loss, gradient norm and parameters are equal to the last bit in all ten iterations of every setting"
    printf '\n  %s\n' "$note"
else
    stop "the results differ between recompute settings, which must never happen: please report it with $dir/none.jsonl, selective.jsonl, full.jsonl"
fi
echo "$note" >>"$dir/recompute.tsv"
scripts/plot_recompute.sh "$dir/recompute.tsv" >"$dir/recompute.svg"
echo "  picture: $dir/recompute.svg    TensorBoard files: $dir/tensorboard"
