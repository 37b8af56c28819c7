#!/usr/bin/env python3
"""Makes router_kinds.safetensors: the same logits through every kind of router (score x softmax before or after the
choice x groups x bias x capacity policy), in PyTorch's float64. Run once, by hand, beside make_moe_golden.py.
Drops are Megatron-LM's: of each expert's column of probabilities the `capacity` largest stay, or the first."""
import itertools
import math

import numpy as np
import torch

from make_moe_golden import balance_loss, f32, f64, random, route, save, z_loss

TOKENS, EXPERTS, TOPK, FACTOR = 16, 8, 2, 0.75
KINDS = [("softmax", False), ("softmax", True), ("sigmoid", False), ("sqrtsoftplus", False)]
SCORES = ["softmax", "sigmoid", "sqrtsoftplus"]


def stay(probs, index, policy):
    """Which slots [t, k] an expert has room for."""
    dense = torch.zeros(TOKENS, EXPERTS).scatter(1, index, probs)
    chosen = torch.zeros(TOKENS, EXPERTS).scatter(1, index, 1.0)
    if policy == "none":
        return torch.ones(TOKENS, TOPK)
    room = math.ceil(TOKENS * TOPK / EXPERTS * FACTOR)
    order = dense if policy == "probs" else chosen * torch.arange(TOKENS, 0, -1)[:, None]
    values, kept = torch.topk(order, room + 1, dim=0)
    assert ((values[room - 1] - values[room] > 1e-5) | (values[room] == 0)).all()
    mask = torch.zeros(TOKENS, EXPERTS).scatter(0, kept[:room], 1.0)
    return mask.gather(1, index)


def all_kinds(seed):
    torch.manual_seed(seed)
    logits, bias = random(TOKENS, EXPERTS, scale=1.5).requires_grad_(), random(EXPERTS, scale=0.3)
    dprobs = random(TOKENS, TOPK)
    cases, probs, experts, kept, dlogits, losses = [], [], [], [], [], []
    for (score, pre), groups, biased, policy in itertools.product(KINDS, (0, 4), (False, True),
                                                                  ("none", "probs", "position")):
        if biased and score == "softmax":
            continue
        c = dict(experts=EXPERTS, topk=TOPK, score=score, pre=pre, groups=groups, group_topk=2, scaling=1.5, sets=2)
        p, index = route(logits, c, bias if biased else None)
        mask = stay(p.detach(), index, policy)
        balance, z = balance_loss(logits, c), z_loss(logits)
        total = (p * mask * dprobs).sum() + 0.7 * balance + 0.3 * z
        dlogits.append(torch.autograd.grad(total, logits)[0])
        cases.append([SCORES.index(score), pre, groups, biased, ["none", "probs", "position"].index(policy)])
        probs.append(p.detach() * mask), experts.append(index), kept.append(mask)
        losses.append(torch.stack([balance, z]).detach())
    room = math.ceil(TOKENS * TOPK / EXPERTS * FACTOR)
    save("router_kinds.safetensors",
         {"logits": f32(logits), "bias": f32(bias), "dprobs": f32(dprobs), "cases": np.array(cases, dtype=np.int64),
          "probs": f32(torch.stack(probs)), "experts": torch.stack(experts).numpy(),
          "kept": torch.stack(kept).numpy().astype(np.int64), "dlogits": f32(torch.stack(dlogits)),
          "losses": f64(torch.stack(losses))},
         {"tokens": TOKENS, "experts": EXPERTS, "topk": TOPK, "capacity": room, "group_topk": 2, "sets": 2, "scaling": 1.5})
    dropped = int((1 - torch.stack(kept)).sum())
    print(len(cases), "kinds of routers, seed", seed, "dropped slots", dropped)


for attempt in range(1000):  # the first seed whose choices are all far from a tie
    try:
        all_kinds(attempt)
        break
    except AssertionError:
        continue
