#!/bin/bash
# Mixtral 8x7B: 46.7 billion parameters, of which a token uses 12.9. Usage: common.sh in this folder.
#
# Shape: Jiang et al. 2024, "Mixtral of Experts", table 1, and the config.json of mistralai/Mixtral-8x7B-v0.1: 32 layers, hidden 4096, 32 heads
#   of 128 in 8 groups, 8 experts of 14336 in every layer, 2 for each token by softmax over the chosen, 32000 words, 32768 tokens, rotary
#   base 1000000, RMSNorm with epsilon 1e-5, no biases, embeddings not shared.
# Training: not published; learning rate, schedule and the balancing loss of 0.01 as in Megatron-LM's examples/mixtral, Adam as Llama 2.
# Layout: the same example: tensor 1, pipeline 4, expert 8, micro-batch 1, sequences of 4096, 64 ranks.
WORLD_SIZE=64
VOCAB_SIZE=32000
MODEL=(
    --num-layers 32
    --hidden-size 4096
    --ffn-hidden-size 14336
    --num-attention-heads 32
    --group-query-attention
    --num-query-groups 8
    --seq-length 4096
    --max-position-embeddings 32768
    --position-embedding-type rope
    --rotary-base 1000000
    --normalization RMSNorm
    --norm-epsilon 1e-5
    --swiglu
    --disable-bias-linear
    --untie-embeddings-and-output-weights
    --hidden-dropout 0
    --attention-dropout 0
    --num-experts 8
    --moe-router-topk 2
    --moe-router-load-balancing-type aux_loss
    --moe-aux-loss-coeff 1e-2
    --moe-grouped-gemm
    --moe-token-dispatcher-type alltoall
)
PARALLEL=(
    --tensor-model-parallel-size 1
    --pipeline-model-parallel-size 4
    --expert-model-parallel-size 8
    --use-distributed-optimizer
    --overlap-grad-reduce
    --overlap-param-gather
)
RECOMPUTE=(--recompute-granularity selective --recompute-modules layernorm moe_act)
PRECISION=(--bf16)
# 256 sequences are a million tokens; 500 billion tokens
TRAIN_ITERS=500000
OPTIMIZER=(
    --micro-batch-size 1
    --global-batch-size 256
    --lr 1e-4
    --min-lr 1e-5
    --lr-decay-style cosine
    --lr-warmup-iters 500
    --weight-decay 0.1
    --adam-beta1 0.9
    --adam-beta2 0.95
    --clip-grad 1.0
    --init-method-std 0.02
)
TOKENIZER=(--tokenizer-type HuggingFaceTokenizer --tokenizer-model "${TOKENIZER_MODEL:-/data/tokenizer}")
SMALL=(--num-layers 4 --hidden-size 256 --ffn-hidden-size 448 --num-attention-heads 8 --num-query-groups 2)
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
