#!/bin/bash
# DeepSeek-V3: 671 billion parameters, of which a token uses 37, and 11.5 billion of multi-token prediction. Usage: common.sh in this folder.
#
# Shape: DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", section 4.2, and the config.json of deepseek-ai/DeepSeek-V3: 61 layers, hidden 7168,
#   128 heads of 128 plain and 64 rotated columns, values of 128, latents of 1536 (queries) and 512; the first 3 layers have an MLP of 18432,
#   the others 256 experts of 2048, 8 for each token by sigmoid and bias from 4 of 8 groups, weights normalised and times 2.5, and one shared
#   expert; 129280 words, RMSNorm with epsilon 1e-6, one layer of multi-token prediction. 4096 tokens in pretraining, where YaRN is not in
#   use; the published weights are stretched by 40 and that is what the flags say (the numbers of a plan do not depend on it).
# Training: the same section: AdamW, learning rate 2.2e-4 after 2000 iterations, batches growing from 3072 to 15360 sequences over 469 billion
#   tokens, 14.8 trillion tokens, bias update 0.001, balance within a sequence 0.0001, deviation 0.006. Its multi-token loss counts 0.3
#   first and 0.1 in the end, which stands here; its decay is constant, then cosine, here cosine.
# Layout: Megatron-LM's for 1,024 ranks (mixture-of-experts guide): tensor 2, pipeline 16 in 2 virtual stages, expert 64. Its last two virtual
#   stages are the layer of multi-token prediction and the loss, which share one here.
WORLD_SIZE=1024
VOCAB_SIZE=129280
MODEL=(
    --num-layers 61
    --hidden-size 7168
    --ffn-hidden-size 18432
    --num-attention-heads 128
    --seq-length 4096
    --max-position-embeddings 163840
    --position-embedding-type rope
    --rotary-base 10000
    --normalization RMSNorm
    --norm-epsilon 1e-6
    --qk-layernorm
    --swiglu
    --disable-bias-linear
    --untie-embeddings-and-output-weights
    --hidden-dropout 0
    --attention-dropout 0
    --multi-latent-attention
    --q-lora-rank 1536
    --kv-lora-rank 512
    --qk-head-dim 128
    --qk-pos-emb-head-dim 64
    --v-head-dim 128
    --rotary-scaling-factor 40
    --mscale 1.0
    --mscale-all-dim 1.0
    --num-experts 256
    --moe-layer-freq "[0]*3+[1]*58"
    --moe-ffn-hidden-size 2048
    --moe-shared-expert-intermediate-size 2048
    --moe-router-topk 8
    --moe-router-num-groups 8
    --moe-router-group-topk 4
    --moe-router-score-function sigmoid
    --moe-router-topk-scaling-factor 2.5
    --moe-router-enable-expert-bias
    --moe-router-bias-update-rate 1e-3
    --moe-router-dtype fp32
    --moe-router-load-balancing-type seq_aux_loss
    --moe-aux-loss-coeff 1e-4
    --moe-grouped-gemm
    --moe-permute-fusion
    --moe-token-dispatcher-type alltoall
    --mtp-num-layers 1
    --mtp-loss-scaling-factor 0.1
)
PARALLEL=(
    --tensor-model-parallel-size 2
    --sequence-parallel
    --pipeline-model-parallel-size 16
    --pipeline-model-parallel-layout "Et*3|(tt|)*28(t|)*2mL"
    --expert-model-parallel-size 64
    --expert-tensor-parallel-size 1
    --use-distributed-optimizer
    --overlap-grad-reduce
    --overlap-param-gather
)
RECOMPUTE=(--recompute-granularity selective --recompute-modules core_attn mla_up_proj moe_act)
PRECISION=(--bf16)
TRAIN_ITERS=240000
OPTIMIZER=(
    --micro-batch-size 1
    --global-batch-size 15360
    --rampup-batch-size 3072 3072 114000000
    --lr 2.2e-4
    --min-lr 2.2e-5
    --lr-decay-style cosine
    --lr-warmup-iters 2000
    --weight-decay 0.1
    --adam-beta1 0.9
    --adam-beta2 0.95
    --clip-grad 1.0
    --init-method-std 0.006
)
TOKENIZER=(--tokenizer-type HuggingFaceTokenizer --tokenizer-model "${TOKENIZER_MODEL:-/data/tokenizer}")
SMALL=(--num-layers 4 --hidden-size 256 --ffn-hidden-size 704 --num-attention-heads 8 --q-lora-rank 96 --kv-lora-rank 64 --qk-head-dim 32
    --qk-pos-emb-head-dim 16 --v-head-dim 32 --num-experts 16 --moe-layer-freq "[0]*1+[1]*3" --moe-ffn-hidden-size 128
    --moe-shared-expert-intermediate-size 128 --moe-router-topk 4 --moe-router-num-groups 4 --moe-router-group-topk 2 --init-method-std 0.02)
# shellcheck source-path=SCRIPTDIR source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
