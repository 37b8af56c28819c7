#!/bin/bash
# Llama 3 8B: 8.03 billion parameters. Usage: common.sh in this folder.
#
# Shape: model card meta-llama/Meta-Llama-3-8B and Llama team 2024, "The Llama 3 Herd of Models", table 3: 32 layers, hidden 4096, 32 heads
#   of 128 in 8 groups, gated MLP of 14336, 128256 words, 8192 tokens, rotary base 500000, RMSNorm with epsilon 1e-5, no biases,
#   embeddings not shared.
# Training: the same table gives the learning rate, 3e-4; schedule, decay and Adam follow the 405B of that paper and Llama 2.
# Layout: NVIDIA NeMo 24.07, performance summary, LLAMA3-8B: context parallel 2, micro-batch 1, eight GPUs; here four such nodes.
WORLD_SIZE=32
VOCAB_SIZE=128256
MODEL=(
    --num-layers 32
    --hidden-size 4096
    --ffn-hidden-size 14336
    --num-attention-heads 32
    --group-query-attention
    --num-query-groups 8
    --seq-length 8192
    --max-position-embeddings 8192
    --position-embedding-type rope
    --rotary-base 500000
    --normalization RMSNorm
    --norm-epsilon 1e-5
    --swiglu
    --disable-bias-linear
    --untie-embeddings-and-output-weights
    --hidden-dropout 0
    --attention-dropout 0
)
PARALLEL=(
    --context-parallel-size 2
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
)
TOKENIZER=(--tokenizer-type HuggingFaceTokenizer --tokenizer-model "${TOKENIZER_MODEL:-/data/tokenizer}")
SMALL=(--num-layers 4 --hidden-size 256 --ffn-hidden-size 896 --num-attention-heads 8 --num-query-groups 2)
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
