#!/usr/bin/env python3
"""Makes tests/golden/hf_*: tiny random models saved by Hugging Face's transformers, token ids, and the mean
cross entropy that transformers computes for them in float64. Needs torch and transformers; run by hand, its
output is committed. Usage: make_hf_golden.py [DIRECTORY]"""
import json
import pathlib
import sys

import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, MixtralConfig, MixtralForCausalLM

VOCAB, SEQUENCE, SEQUENCES = 48, 24, 4
YARN = dict(rope_type="yarn", factor=40.0, beta_fast=32, beta_slow=1, mscale=1.0, mscale_all_dim=0.5,
            original_max_position_embeddings=4096, rope_theta=10000.0)
COMMON = dict(vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
              max_position_embeddings=64, initializer_range=0.4, use_cache=False,
              bos_token_id=None, eos_token_id=None, pad_token_id=None)
LATENT = dict(num_key_value_heads=4, qk_nope_head_dim=6, qk_rope_head_dim=8, v_head_dim=10, kv_lora_rank=12,
              intermediate_size=20, moe_intermediate_size=8, n_routed_experts=8, n_shared_experts=2,
              num_experts_per_tok=4, routed_scaling_factor=2.5, num_mtp_layers=0)


def models():
    yield "hf_mixtral", MixtralForCausalLM(MixtralConfig(
        num_key_value_heads=2, intermediate_size=12, num_local_experts=4, num_experts_per_tok=2, **COMMON))
    yield "hf_deepseek_v3", DeepseekV3ForCausalLM(DeepseekV3Config(
        q_lora_rank=14, n_group=4, topk_group=2, first_k_dense_replace=1, rope_parameters=YARN, **LATENT, **COMMON))
    yield "hf_deepseek_v3_direct", DeepseekV3ForCausalLM(DeepseekV3Config(
        q_lora_rank=None, n_group=1, topk_group=1, first_k_dense_replace=0,
        rope_parameters=dict(rope_type="default", rope_theta=10000.0), **LATENT, **COMMON))


def main():
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent)
    torch.manual_seed(20)
    ids = torch.randint(0, VOCAB, (SEQUENCES * SEQUENCE + 1,))
    for name, model in models():
        for parameter_name, parameter in model.named_parameters():  # weights of norms are 1 otherwise
            if "norm" in parameter_name:
                parameter.data = 1 + 0.3 * torch.randn_like(parameter)
        for buffer_name, buffer in model.named_buffers():  # changes who is chosen
            if "e_score_correction_bias" in buffer_name and not name.endswith("direct"):
                buffer.copy_(0.3 * torch.randn_like(buffer))
        model = model.float().eval()
        model.save_pretrained(root / name)
        (root / name / "generation_config.json").unlink(missing_ok=True)
        model.set_experts_implementation("eager")
        model = model.double()
        inputs = ids[:-1].view(SEQUENCES, SEQUENCE)
        with torch.no_grad():
            logits = model(inputs).logits.view(-1, VOCAB)
        loss = torch.nn.functional.cross_entropy(logits, ids[1:]).item()
        (root / name / "golden.json").write_text(json.dumps({"loss": loss, "sequence": SEQUENCE, "ids": ids.tolist()}) + "\n")
        print(name, loss)


main()
