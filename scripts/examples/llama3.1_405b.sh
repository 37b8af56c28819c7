#!/bin/bash
# Llama 3.1 405B: 405.9 billion parameters. Usage: common.sh in this folder.
#
# Shape: Llama team 2024, "The Llama 3 Herd of Models", table 3, and model card meta-llama/Llama-3.1-405B: 126 layers, hidden 16384, 128 heads
#   of 128 in 8 groups, gated MLP of 53248, 128256 words, rotary base 500000 with frequencies scaled by 8 for 131072 positions, RMSNorm with
#   epsilon 1e-5, no biases, embeddings not shared.
# Training: section 3.4 of the paper: learning rate 8e-5 after 8,000 iterations of warm-up, by a cosine to 8e-7 over 1,200,000; sequences of 8192
#   tokens, batches of 16 million. (The batch starts at 4 million, which --step-batch-size-schedule can say.)
# Layout: table 4: tensor 8, pipeline 16, data 64 on 8,192 GPUs; the first and the last stage hold one layer less, since they hold the embedding
#   and the head. There (section 3.3.2) stages are interleaved and nothing is recomputed, in a schedule of their own with fewer micro-batches
#   in flight; here plain 1F1B and the norms, which cost no matrix product, keep a rank below 80 GiB.
WORLD_SIZE=8192
VOCAB_SIZE=128256
MODEL=(
    --num-layers 126
    --hidden-size 16384
    --ffn-hidden-size 53248
    --num-attention-heads 128
    --group-query-attention
    --num-query-groups 8
    --seq-length 8192
    --max-position-embeddings 131072
    --position-embedding-type rope
    --rotary-base 500000
    --use-rope-scaling
    --rope-scaling-factor 8
    --normalization RMSNorm
    --norm-epsilon 1e-5
    --swiglu
    --disable-bias-linear
    --untie-embeddings-and-output-weights
    --hidden-dropout 0
    --attention-dropout 0
)
PARALLEL=(
    --tensor-model-parallel-size 8
    --sequence-parallel
    --pipeline-model-parallel-size 16
    --account-for-embedding-in-pipeline-split
    --account-for-loss-in-pipeline-split
    --use-distributed-optimizer
    --overlap-grad-reduce
    --overlap-param-gather
)
RECOMPUTE=(--recompute-granularity selective --recompute-modules layernorm)
PRECISION=(--bf16)
TRAIN_ITERS=1200000
OPTIMIZER=(
    --micro-batch-size 1
    --global-batch-size 2048
    --lr 8e-5
    --min-lr 8e-7
    --lr-decay-style cosine
    --lr-warmup-iters 8000
    --weight-decay 0.1
    --adam-beta1 0.9
    --adam-beta2 0.95
    --clip-grad 1.0
    --init-method-std 0.02
)
TOKENIZER=(--tokenizer-type HuggingFaceTokenizer --tokenizer-model "${TOKENIZER_MODEL:-/data/tokenizer}")
SMALL=(--num-layers 6 --hidden-size 256 --ffn-hidden-size 896 --num-attention-heads 8 --num-query-groups 2)
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
