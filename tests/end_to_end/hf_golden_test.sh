#!/bin/bash
# Folders that Hugging Face's transformers wrote (tests/golden/make_hf_golden.py), Mixtral and DeepSeek-V3: imported, the model gives
# the loss that transformers computed in float64; exported again, every tensor has the bits that it came with.
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
. "$(dirname "$0")/lib.sh"
tool=$B/checkpoint_tool

# Prints "same" when two safetensors files hold the same tensors, bit for bit.
same_tensors() {
    python3 - "$1" "$2" <<'PY'
import json, struct, sys
def tensors(path):
    raw = open(path, 'rb').read()
    n = struct.unpack('<Q', raw[:8])[0]
    header = json.loads(raw[8:8 + n])
    header.pop('__metadata__', None)
    return {k: (t['dtype'], t['shape'], raw[8 + n + t['data_offsets'][0]:8 + n + t['data_offsets'][1]]) for k, t in header.items()}
a, b = tensors(sys.argv[1]), tensors(sys.argv[2])
print('same' if a == b else 'different: %s' % sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))[:4])
PY
}
# A number of golden.json, or its list of ids with spaces between.
golden() { sed -n 's/.*"'"$2"'": \[\{0,1\}\([^]}]*\)\]\{0,1\},* *.*/\1/p' "$ROOT/tests/golden/$1/golden.json" | sed 's/, *"[a-z].*//' | tr -d ','; }

# train NAME MODEL FLAG...: one iteration over the golden ids, in fp32
train() {
    local name=$1 model=$2
    shift 2
    "$PRETRAIN" --load "$model.ck" --use-checkpoint-args --data-path "$DIR/$model.data_text_document" --tokenizer-type NullTokenizer \
        --vocab-size 48 --split 100,0,0 --seq-length 24 --micro-batch-size 4 --global-batch-size 4 --train-iters 1 --lr 0 --weight-decay 0 --eval-iters 0 \
        --metrics-file "$name.jsonl" "$@" >"$name.out" 2>&1
}
loss_is_golden() { # name
    awk -v got="$(value "$1.jsonl" lm_loss)" -v want="$(golden "$1" loss)" \
        'BEGIN { d = got - want; if (d < 0) d = -d; ok = want > 4 && d < 2e-6 * want; if (!ok) print "# " got " is not " want; exit !ok }'
}

for name in hf_mixtral hf_deepseek_v3 hf_deepseek_v3_direct; do
    still= # what else would change in an iteration of learning rate 0
    [ $name != hf_deepseek_v3 ] || still="--moe-router-bias-update-rate 0"
    printf '{"text": "%s"}\n' "$(golden $name ids)" >$name.json
    "$B/preprocess_data" --input $name.json --output-prefix $name.data --tokenizer-type NullTokenizer --vocab-size 48 >/dev/null 2>$name.log
    is "$name: imported" "$(status_of "$tool" import-hf "$ROOT/tests/golden/$name" $name.ck)" 0
    ok "$name: one iteration runs" train $name $name
    ok "$name: the loss is that of transformers" loss_is_golden $name
    is "$name: exported" "$(status_of "$tool" export-hf $name.ck $name.back --dtype fp32)" 0
    if command -v python3 >/dev/null; then
        is "$name: every tensor has the bits that it came with" "$(same_tensors "$ROOT/tests/golden/$name/model.safetensors" $name.back/model.safetensors)" same
    else
        ok "$name: every tensor has the bits that it came with # SKIP no python3" true
    fi
    # what a run saves goes out as well, and comes back to the same loss
    ok "$name: a run saves" train $name.saved $name --save $name.save --save-interval 1 $still
    is "$name: what it saved is exported" "$(status_of "$tool" export-hf $name.save $name.trained --dtype fp32)" 0
    command -v python3 >/dev/null && is "$name: unchanged weights are the same tensors" \
        "$(same_tensors $name.back/model.safetensors $name.trained/model.safetensors)" same
done
echo "1..$number"
