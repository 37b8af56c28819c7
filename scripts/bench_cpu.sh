#!/bin/bash
# Speed of training GPT-2 124M on this CPU, bf16, no dropout, b=4 s=256 and b=2 s=1024: tokens/s, model TFLOP/s, the share of this
# machine's own tile peak and GEMM rate (measured in the same run), and the share of each op. With PyTorch installed
# for `python3` (or $PYTHON), the same model in PyTorch runs in turn with it.
#     scripts/bench_cpu.sh [iterations per run, default 10] [extra flags of pretrain_gpt ...]
set -eu
cd "$(dirname "$0")/.."
iterations=${1:-10}
[ $# -eq 0 ] || shift
python=${PYTHON:-python3}
build=${BUILD:-build}
make -s BUILD="$build" all benches
tree=$(readlink -f "$build/pretrain_gpt")
tree=$(dirname "$tree")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "== the machine"
"$tree/tests/bench/gemm_bench" 0 >"$work/gemm"
grep '^limit' "$work/gemm"
peak=$(sed -n 's/.*tile peak \([0-9.]*\) TFLOP.*/\1/p' "$work/gemm")
# GEMM rate: FLOPs over time of the model's own products at t = 1024, each as often as the model runs it
rate=$(awk -F'\t' '/^gemm/ && /t 1024/ {
        match($0, /in [0-9]+/); n = substr($0, RSTART + 3, RLENGTH - 3) + 0
        match($0, /out [0-9]+/); m = substr($0, RSTART + 4, RLENGTH - 4) + 0
        match($0, /[0-9.]+ ms/); ms = substr($0, RSTART, RLENGTH - 3) + 0
        if ($0 !~ /bf16/) next
        times = m > 50000 ? 1 : 12
        flops += times * 2 * 1024 * n * m; total += times * ms
    } END { if (total) printf "%.3f", flops / total / 1e9 }' "$work/gemm")
echo "GEMM rate over this model's products: $rate TFLOP/s"

median() { sort -n | awk '{ a[NR] = $1 } END { print a[int((NR + 1) / 2)] }'; }
ours() { # batch, sequence: milliseconds of each iteration but the first two
    rm -f "$work/metrics"
    "$build/pretrain_gpt" --num-layers 12 --hidden-size 768 --num-attention-heads 12 --seq-length "$2" \
        --max-position-embeddings 1024 --micro-batch-size "$1" --global-batch-size "$1" --train-iters "$iterations" \
        --lr 1e-4 --adam-beta2 0.95 --weight-decay 0.1 --bf16 --mock-data --vocab-size 50257 --hidden-dropout 0 \
        --attention-dropout 0 --eval-iters 0 --log-interval 1000 --metrics-file "$work/metrics" "${@:3}" >"$work/out" 2>"$work/err" ||
        { cat "$work/err" >&2; exit 1; }
    tail -n +3 "$work/metrics" | sed 's/.*"elapsed_ms":\([0-9.]*\).*/\1/'
}
has_torch=0
"$python" -c 'import torch' 2>/dev/null && has_torch=1

report() { # name, batch, sequence, file of milliseconds
    median <"$4" | awk -v name="$1" -v tokens=$(($2 * $3)) -v s="$3" -v peak="${peak:-0}" -v rate="${rate:-0}" '{
        # Megatron-LM formula: 6 tokens (L (4 h^2 + 2 h f) + h V) + 6 b s^2 h L, causal attention counted half
        flops = 6 * tokens * (12 * (4 * 768 * 768 + 2 * 768 * 3072) + 768 * 50304) + 6 * tokens * s * 768 * 12
        t = flops / $1 / 1e9
        printf "%-34s %9.1f ms %9.0f tokens/s %7.3f TFLOP/s", name, $1, tokens / $1 * 1e3, t
        if (peak) printf "  %4.1f%% of tile peak", 100 * t / peak
        if (rate) printf "  %4.1f%% of GEMM rate", 100 * t / rate
        printf "\n" }'
}

for shape in "4 256" "2 1024"; do
    # shellcheck disable=SC2086
    set -- $shape "$@"
    b=$1 s=$2
    shift 2
    echo
    echo "== GPT-2 124M, b=$b s=$s (medians; runs alternate)"
    : >"$work/ours.$s" && : >"$work/torch.$s" && : >"$work/eager.$s"
    for _ in 1 2; do
        ours "$b" "$s" "$@" >>"$work/ours.$s"
        if [ $has_torch = 1 ]; then
            "$python" scripts/bench_pytorch.py "$b" "$s" "$iterations" 2>"$work/err" | tail -n +4 >>"$work/torch.$s" || tail -n 1 "$work/err"
            "$python" scripts/bench_pytorch.py "$b" "$s" "$iterations" eager 2>"$work/err" | tail -n +4 >>"$work/eager.$s" || tail -n 1 "$work/err"
        fi
    done
    report "pretrain_gpt" "$b" "$s" "$work/ours.$s"
    [ -s "$work/torch.$s" ] && report "PyTorch (torch.compile)" "$b" "$s" "$work/torch.$s"
    [ -s "$work/eager.$s" ] && report "PyTorch (eager)" "$b" "$s" "$work/eager.$s"
    ours "$b" "$s" --profile --profile-step-start 3 --profile-step-end 6 --profile-trace-file "$work/trace" "$@" >/dev/null
    echo "share of each op (milliseconds per step, share of the traced steps):"
    "$python" - "$work/trace" <<'PY'
import collections, json, sys
trace = json.load(open(sys.argv[1]))
events = [e for e in (trace["traceEvents"] if isinstance(trace, dict) else trace) if e.get("ph") == "X"]
total = max(e["ts"] + e["dur"] for e in events) - min(e["ts"] for e in events)
sums = collections.Counter()
for e in events:
    sums[e["name"] + " " + e["cat"]] += e["dur"]
rest = total - sum(sums.values())
for name, us in sums.most_common(16):
    print(f"  {name:40s} {us / 3e3:9.2f} ms {100 * us / total:5.1f}%")
print(f"  {'all other ops':40s} {sum(v for _, v in sums.most_common()[16:]) / 3e3:9.2f} ms")
print(f"  {'between ops: optimizer, data, logging':40s} {rest / 3e3:9.2f} ms {100 * rest / total:5.1f}%")
PY
done
