#!/usr/bin/env python3
"""Training speed of GPT-2 in PyTorch on this CPU: bf16 autocast, scaled_dot_product_attention, torch.compile, fused AdamW,
clipping at norm 1. Prints one line per iteration: milliseconds. The counterpart of scripts/bench_cpu.sh."""
import sys
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

BATCH, SEQ, ITERS = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
COMPILE = len(sys.argv) < 5 or sys.argv[4] != "eager"
LAYERS, HIDDEN, HEADS, VOCAB = 12, 768, 12, 50304


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.qkv, self.proj = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.fc1, self.fc2 = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)

    def forward(self, x):
        b, s, h = x.shape
        q, k, v = (t.view(b, s, HEADS, h // HEADS).transpose(1, 2) for t in self.qkv(self.norm1(x)).split(h, dim=2))
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, s, h)
        x = x + self.proj(o)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.positions = nn.Embedding(VOCAB, HIDDEN), nn.Embedding(1024, HIDDEN)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, tokens, labels):
        x = self.words(tokens) + self.positions(torch.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = F.linear(self.norm(x), self.words.weight)
        return F.cross_entropy(logits.view(-1, VOCAB).float(), labels.reshape(-1))


torch.manual_seed(1)
model = Model()
for p in model.parameters():
    if p.dim() > 1:
        nn.init.normal_(p, std=0.02)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
step_model = torch.compile(model) if COMPILE else model
for i in range(ITERS):
    tokens = torch.randint(0, VOCAB, (BATCH, SEQ + 1))
    begin = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = step_model(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    print(f"{1e3 * (time.perf_counter() - begin):.3f}", flush=True)
