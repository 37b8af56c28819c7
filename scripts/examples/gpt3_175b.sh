#!/bin/bash
# GPT-3 175B: 174.6 billion parameters. Usage: common.sh in this folder.
#
# Shape: Brown et al. 2020, "Language Models are Few-Shot Learners", table 2.1: 96 layers, hidden 12288, 96 heads of 128, MLP 4h,
#   2048 tokens; 50257 words (GPT-2's vocabulary), learned positions, LayerNorm, GELU, input and output embedding shared, as GPT-2 has
#   them. The paper alternates dense and sparse attention; here every layer is dense, as everyone trains it.
# Training: the same table and appendix B: batch of 3.2 million tokens, grown from 32 thousand over 4 to 12 billion tokens; learning
#   rate 6e-5, after a warm-up of 375 million tokens down to a tenth by a cosine; Adam 0.9, 0.95, 1e-8; clipping at 1; weight decay
#   0.1; 300 billion tokens. Deviation 0.006 of initial weights: Megatron-LM's example.
# Layout: Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer Models", table 3: tensor 8 with sequence
#   parallelism, pipeline 8, interleaved 3 times, micro-batch 1, selective recompute; four such groups here.
WORLD_SIZE=256
VOCAB_SIZE=50257
MODEL=(
    --num-layers 96
    --hidden-size 12288
    --num-attention-heads 96
    --seq-length 2048
    --max-position-embeddings 2048
)
PARALLEL=(
    --tensor-model-parallel-size 8
    --sequence-parallel
    --pipeline-model-parallel-size 8
    --num-layers-per-virtual-pipeline-stage 4
    --use-distributed-optimizer
    --overlap-grad-reduce
    --overlap-param-gather
)
RECOMPUTE=(--recompute-activations)
PRECISION=(--bf16)
# 300 billion tokens: 17,300 iterations while the batch grows by 32 sequences at a time over 12 billion tokens (5,859,375 sequences),
# 91,500 of 1536 sequences; the warm-up's 375 million tokens are the first 4,800
TRAIN_ITERS=108800
OPTIMIZER=(
    --micro-batch-size 1
    --global-batch-size 1536
    --rampup-batch-size 32 32 5859375
    --lr 6e-5
    --min-lr 6e-6
    --lr-decay-style cosine
    --lr-warmup-iters 4800
    --weight-decay 0.1
    --adam-beta1 0.9
    --adam-beta2 0.95
    --clip-grad 1.0
    --init-method-std 0.006
)
TOKENIZER=(--tokenizer-type GPT2BPETokenizer --vocab-file "${VOCAB_FILE:-/data/gpt2-vocab.json}" --merge-file "${MERGE_FILE:-/data/gpt2-merges.txt}")
SMALL=(--num-layers 4 --hidden-size 256 --num-attention-heads 4)
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
