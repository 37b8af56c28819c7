#!/bin/bash
# GPT-2, the small one: 124 million parameters (the paper says 117). Usage: common.sh in this folder.
#
# Shape: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 2, and the published weights
#   (model card openai-community/gpt2): 12 layers, hidden 768, 12 heads of 64, MLP 4h, 1024 tokens, 50257 words, learned positions,
#   LayerNorm with epsilon 1e-5, GELU in its tanh form, dropout 0.1, input and output embedding shared.
# Training: the paper gives the batch, 512 sequences, and no learning rate; it and the rest are those of Brown et al. 2020, table 2.1
#   and appendix B, for models of that size. 100,000 iterations are 52 billion tokens.
# Layout: data parallel on one node of eight; the paper gives none.
WORLD_SIZE=8
VOCAB_SIZE=50257
MODEL=(
    --num-layers 12
    --hidden-size 768
    --num-attention-heads 12
    --seq-length 1024
    --max-position-embeddings 1024
    --norm-epsilon 1e-5
    --hidden-dropout 0.1
    --attention-dropout 0.1
)
PARALLEL=(
    --use-distributed-optimizer
    --overlap-grad-reduce
    --overlap-param-gather
)
RECOMPUTE=()
PRECISION=(--bf16)
TRAIN_ITERS=100000
OPTIMIZER=(
    --micro-batch-size 16
    --global-batch-size 512
    --lr 6e-4
    --min-lr 6e-5
    --lr-decay-style cosine
    --lr-warmup-iters 700
    --weight-decay 0.1
    --adam-beta1 0.9
    --adam-beta2 0.95
    --clip-grad 1.0
    --init-method-std 0.02
)
TOKENIZER=(--tokenizer-type GPT2BPETokenizer --vocab-file "${VOCAB_FILE:-/data/gpt2-vocab.json}" --merge-file "${MERGE_FILE:-/data/gpt2-merges.txt}")
SMALL=(--num-layers 4 --hidden-size 256 --num-attention-heads 4)
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
