#!/bin/bash
# Llama 3.2 1B: 1.24 billion parameters. Usage: common.sh in this folder.
#
# Shape: model card meta-llama/Llama-3.2-1B and its config.json: 16 layers, hidden 2048, 32 heads of 64 in 8 groups, gated MLP of 8192, 128256
#   words, rotary base 500000 with frequencies scaled by 32 for 131072 positions, RMSNorm with epsilon 1e-5, no biases, input and output
#   embedding shared.
# Training: not published (it was pruned from the 8B and distilled); learning rate and schedule of the 8B, table 3 of "The Llama 3 Herd
#   of Models".
# Layout: data parallel on one node of eight; the logits of 128256 words, 2 GiB for one sequence, make the loss worth fusing.
WORLD_SIZE=8
VOCAB_SIZE=128256
MODEL=(
    --num-layers 16
    --hidden-size 2048
    --ffn-hidden-size 8192
    --num-attention-heads 32
    --group-query-attention
    --num-query-groups 8
    --seq-length 8192
    --max-position-embeddings 131072
    --position-embedding-type rope
    --rotary-base 500000
    --use-rope-scaling
    --rope-scaling-factor 32
    --normalization RMSNorm
    --norm-epsilon 1e-5
    --swiglu
    --disable-bias-linear
    --hidden-dropout 0
    --attention-dropout 0
)
PARALLEL=(
    --use-distributed-optimizer
    --overlap-grad-reduce
    --overlap-param-gather
)
RECOMPUTE=(--recompute-granularity selective --recompute-modules layernorm)
PRECISION=(--bf16)
# 512 sequences are 4.2 million tokens; 1 trillion tokens
TRAIN_ITERS=250000
OPTIMIZER=(
    --micro-batch-size 1
    --global-batch-size 512
    --lr 3e-4
    --min-lr 3e-5
    --lr-decay-style cosine
    --lr-warmup-iters 2000
    --weight-decay 0.1
    --adam-beta1 0.9
    --adam-beta2 0.95
    --clip-grad 1.0
    --init-method-std 0.02
    --cross-entropy-loss-fusion
    --cross-entropy-fusion-impl linear
)
TOKENIZER=(--tokenizer-type HuggingFaceTokenizer --tokenizer-model "${TOKENIZER_MODEL:-/data/tokenizer}")
SMALL=(--num-layers 4 --hidden-size 256 --ffn-hidden-size 1024 --num-attention-heads 8 --num-query-groups 2)
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
