#!/usr/bin/env python3
"""Makes the golden tensors of mixtures of experts: PyTorch in float64, independent of the C code. Run once, by hand, as
make_golden.py. Choices are made by torch.topk and gradients by autograd; the balancing loss is Megatron-LM's formula.
"""
import json
import math
import os
import struct

import numpy as np
import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
torch.manual_seed(21)
HERE = os.path.dirname(os.path.abspath(__file__))
CODES = {np.dtype(np.float32): "F32", np.dtype(np.float64): "F64", np.dtype(np.int64): "I64"}


def save(name, tensors, metadata):
    header, data, offset = {"__metadata__": {k: str(v) for k, v in metadata.items()}}, [], 0
    arrays = {k: v.detach().numpy() if torch.is_tensor(v) else v for k, v in tensors.items()}
    for key in sorted(arrays, key=lambda k: (-arrays[k].dtype.itemsize, k)):
        a = np.ascontiguousarray(arrays[key])
        header[key] = {"dtype": CODES[a.dtype], "shape": list(a.shape), "data_offsets": [offset, offset + a.nbytes]}
        data.append(a.tobytes())
        offset += a.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(HERE, name), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(data))


def random(*shape, scale=1.0, shift=0.0):
    return (torch.randn(*shape) * scale + shift).float().double()


def f32(x):
    return x.detach().numpy().astype(np.float32)


def f64(x):
    return x.detach().numpy().astype(np.float64)


def top(scores, k):
    """Indices of the k largest, checked to be far from a tie, so that float32 chooses the same."""
    values, index = torch.topk(scores, min(k + 1, scores.shape[-1]), dim=-1)
    if values.shape[-1] > k:
        assert (values[..., k - 1] - values[..., k]).min() > 1e-5
    return index[..., :k]


def route(logits, c, bias=None):
    """Probabilities and choices [t, k]."""
    k = c["topk"]
    if c["score"] == "softmax":
        scores = torch.softmax(logits, -1) if c["pre"] else logits
        keys = scores
    else:
        scores = torch.sigmoid(logits) if c["score"] == "sigmoid" else F.softplus(logits).sqrt()
        keys = scores + bias if bias is not None else scores
    if c["groups"]:
        t, e = keys.shape
        grouped = keys.view(t, c["groups"], -1)
        best = torch.topk(grouped, k // c["group_topk"], dim=-1).values.sum(-1)
        mask = torch.zeros_like(best).scatter(1, top(best, c["group_topk"]), 1.0)
        keys = grouped.masked_fill(mask[..., None] == 0, -math.inf).reshape(t, e)
    index = top(keys.detach(), k)
    chosen = scores.gather(1, index)
    if c["score"] == "softmax":
        probs = chosen if c["pre"] else torch.softmax(chosen, -1)
    else:
        probs = chosen / (chosen.sum(-1, keepdim=True) + 1e-20) if k > 1 else chosen
    return probs * (c["scaling"] or 1.0), index


def balance_loss(logits, c):
    """Rows are [s, b]; one set of counts, or one per sequence. Without its coefficient."""
    t, e = logits.shape
    kinds = dict(softmax=lambda x: torch.softmax(x, -1), sigmoid=torch.sigmoid,
                 sqrtsoftplus=lambda x: F.softplus(x).sqrt())
    p = kinds[c["score"]](logits)
    if c["score"] != "softmax":
        p = p / (p.sum(-1, keepdim=True) + 1e-20)
    counts = torch.zeros_like(logits).scatter(1, top(logits.detach(), c["topk"]), 1.0)
    sets = c["sets"]
    p, counts = p.view(t // sets, sets, e), counts.view(t // sets, sets, e)
    length = t // sets
    return e / (c["topk"] * length * length) * (p.sum(0) * counts.sum(0)).sum() / sets


def z_loss(logits):
    return torch.logsumexp(logits, -1).square().mean()


def router_cases():
    out, names = {}, []
    base = dict(experts=8, topk=2, score="softmax", pre=False, groups=0, group_topk=0, scaling=0, sets=1, bias=False)
    cases = dict(
        softmax={}, pre_softmax=dict(pre=True), top1_pre=dict(pre=True, topk=1), top5=dict(topk=5, scaling=1.5),
        softmax_groups=dict(topk=4, groups=4, group_topk=2), pre_groups=dict(pre=True, topk=2, groups=2, group_topk=1),
        sigmoid=dict(score="sigmoid", sets=3), sigmoid_top1=dict(score="sigmoid", topk=1),
        sigmoid_groups=dict(score="sigmoid", topk=4, groups=4, group_topk=2, scaling=2.5, sets=2, bias=True),
        many=dict(experts=64, topk=8, score="sigmoid", groups=8, group_topk=4, scaling=2.5, bias=True))
    for name, change in cases.items():
        c = {**base, **change}
        tokens = 30
        logits = random(tokens, c["experts"], scale=1.5).requires_grad_()
        bias = random(c["experts"], scale=0.2) if c["bias"] else None
        dprobs = random(tokens, c["topk"])
        probs, index = route(logits, c, bias)
        balance, z = balance_loss(logits, c), z_loss(logits)
        grad = torch.autograd.grad((probs * dprobs).sum() + 0.7 * balance + 0.3 * z, logits)[0]
        out.update({f"{name}.logits": f32(logits), f"{name}.dprobs": f32(dprobs), f"{name}.probs": f64(probs),
                    f"{name}.experts": index.numpy(), f"{name}.balance": f64(balance).reshape(1),
                    f"{name}.z": f64(z).reshape(1), f"{name}.dlogits": f64(grad)})
        if bias is not None:
            out[f"{name}.bias"] = f32(bias)
        out[f"{name}.shape"] = np.array([c["experts"], c["topk"], c["groups"], c["group_topk"], c["sets"],
                                         c["score"] == "sigmoid", c["pre"], int(10 * c["scaling"])], dtype=np.int64)
        names.append(name)
    save("router.safetensors", out, {"cases": " ".join(names), "balance": 0.7, "z": 0.3})


# ---- a whole model: Llama with experts from layer 1 on ----
def parameter_shapes(c):
    h, d, e, f = c["hidden"], c["head_dim"], c["experts"], c["moe_ffn"]
    shapes = {"embedding.word_embeddings.weight": (c["vocab"], h)}
    for n in range(c["layers"]):
        at = f"decoder.layers.{n}"
        shapes.update({f"{at}.input_layernorm.weight": (h,), f"{at}.pre_mlp_layernorm.weight": (h,),
                       f"{at}.self_attention.linear_qkv.weight": ((c["heads"] + 2 * c["groups_kv"]) * d, h),
                       f"{at}.self_attention.linear_proj.weight": (h, c["heads"] * d)})
        if n == 0:
            shapes.update({f"{at}.mlp.linear_fc1.weight": (2 * c["ffn"], h), f"{at}.mlp.linear_fc2.weight": (h, c["ffn"])})
            continue
        shapes.update({f"{at}.mlp.router.weight": (e, h), f"{at}.mlp.experts.linear_fc1.weight": (e * 2 * f, h),
                       f"{at}.mlp.experts.linear_fc2.weight": (e * h, f),
                       f"{at}.mlp.shared_experts.linear_fc1.weight": (2 * c["shared"], h),
                       f"{at}.mlp.shared_experts.linear_fc2.weight": (h, c["shared"])})
        if c["gate"]:
            shapes[f"{at}.mlp.shared_experts.gate_weight"] = (1, h)
    shapes["decoder.final_layernorm.weight"] = (h,)
    shapes["output_layer.weight"] = (c["vocab"], h)
    return shapes


def attention(x, w_qkv, w_proj, c):
    s, b, _ = x.shape
    d, heads, groups = c["head_dim"], c["heads"], c["groups_kv"]
    per = heads // groups
    qkv = F.linear(x, w_qkv).view(s, b, groups, per + 2, d).permute(1, 2, 3, 0, 4)
    angle = torch.arange(s)[:, None].double() * 10000.0 ** (-torch.arange(0, d, 2).double() / d)[None]
    cos, sin = torch.cos(angle), torch.sin(angle)

    def turn(v):
        a, z = v[..., :d // 2], v[..., d // 2:]
        return torch.cat([a * cos - z * sin, z * cos + a * sin], -1)

    q, k, v = turn(qkv[:, :, :per]).reshape(b, heads, s, d), turn(qkv[:, :, per]), qkv[:, :, per + 1]
    k, v = k.repeat_interleave(per, 1), v.repeat_interleave(per, 1)
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.linear(o.permute(2, 0, 1, 3).reshape(s, b, heads * d), w_proj)


def swiglu(x, w1, w2, scale=None):
    u = F.linear(x, w1)
    half = u.shape[-1] // 2
    a = F.silu(u[..., :half]) * u[..., half:]
    return F.linear(a if scale is None else a * scale, w2)


def experts(x, p, at, c, losses):
    """Every expert in a loop over all tokens that chose it."""
    s, b, h = x.shape
    flat = x.reshape(s * b, h)
    logits = F.linear(flat, p[f"{at}.router.weight"])
    probs, index = route(logits, c)
    losses.append((balance_loss(logits, c), z_loss(logits)))
    w1 = p[f"{at}.experts.linear_fc1.weight"].view(c["experts"], -1, h)
    w2 = p[f"{at}.experts.linear_fc2.weight"].view(c["experts"], h, -1)
    y = torch.zeros_like(flat)
    for e in range(c["experts"]):
        token, slot = torch.where(index == e)
        y = y.index_add(0, token, swiglu(flat[token], w1[e], w2[e], probs[token, slot][:, None]))
    y = y.view(s, b, h)
    shared = swiglu(x, p[f"{at}.shared_experts.linear_fc1.weight"], p[f"{at}.shared_experts.linear_fc2.weight"])
    if c["gate"]:
        shared = shared * torch.sigmoid(F.linear(x, p[f"{at}.shared_experts.gate_weight"]))
    return y + shared


def whole_model(name, **c):
    p = {n: (random(*shape, scale=0.1, shift=1) if "layernorm" in n else random(*shape, scale=0.25)).requires_grad_()
         for n, shape in parameter_shapes(c).items()}
    text = torch.randint(0, c["vocab"], (c["batch"], c["seq"] + 1))
    tokens, labels = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    x, losses = F.embedding(tokens, p["embedding.word_embeddings.weight"]).transpose(0, 1), []
    for n in range(c["layers"]):
        at = f"decoder.layers.{n}"
        y = F.rms_norm(x, (c["hidden"],), p[f"{at}.input_layernorm.weight"], 1e-5)
        x = x + attention(y, p[f"{at}.self_attention.linear_qkv.weight"], p[f"{at}.self_attention.linear_proj.weight"], c)
        y = F.rms_norm(x, (c["hidden"],), p[f"{at}.pre_mlp_layernorm.weight"], 1e-5)
        if n == 0:
            x = x + swiglu(y, p[f"{at}.mlp.linear_fc1.weight"], p[f"{at}.mlp.linear_fc2.weight"])
        else:
            x = x + experts(y, p, f"{at}.mlp", c, losses)
    logits = F.linear(F.rms_norm(x, (c["hidden"],), p["decoder.final_layernorm.weight"], 1e-5), p["output_layer.weight"])
    loss = F.cross_entropy(logits.transpose(0, 1).reshape(-1, c["vocab"]), labels.reshape(-1))
    balance, z = sum(l[0] for l in losses), sum(l[1] for l in losses)
    total = loss + c["balance_coeff"] * balance + c["z_coeff"] * z
    grads = torch.autograd.grad(total, list(p.values()))
    out = {n: f32(v) for n, v in p.items()}
    out.update({f"{n}.grad": f32(g) for n, g in zip(p, grads)})
    out.update({"tokens": tokens.numpy(), "labels": labels.numpy(), "loss": f64(loss).reshape(1),
                "balance": f64(balance).reshape(1), "z": f64(z).reshape(1)})
    save(f"{name}.safetensors", out, c)
    print(name, "loss", loss.item(), "balance", balance.item(), "z", z.item())


if __name__ == "__main__":
    router_cases()
    SHARED = dict(layers=2, hidden=32, heads=4, groups_kv=2, head_dim=8, seq=12, batch=2, vocab=64, ffn=48)
    whole_model("tiny_moe", **SHARED, experts=6, topk=2, score="softmax", pre=False, groups=0, group_topk=0, scaling=0,
                sets=1, moe_ffn=24, shared=24, gate=True, balance_coeff=0.05, z_coeff=0.02)
    whole_model("tiny_moe_sigmoid", **SHARED, experts=8, topk=4, score="sigmoid", pre=False, groups=4, group_topk=2,
                scaling=2.5, sets=2, moe_ffn=24, shared=24, gate=False, balance_coeff=0.05, z_coeff=0)
