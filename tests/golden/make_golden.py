#!/usr/bin/env python3
"""Makes the golden tensors next to this file: PyTorch in float64, independent of the C code. Run once, by hand:

    python3 -m venv venv && venv/bin/pip install torch numpy
    venv/bin/python tests/golden/make_golden.py

Inputs and weights are float32 numbers, stored as F32, so that every program starts from the same values; all
arithmetic is float64; kernel results are stored as F64, whole-model gradients as F32. See README.md.
"""
import json
import math
import os
import struct

import numpy as np
import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
torch.manual_seed(20)
HERE = os.path.dirname(os.path.abspath(__file__))
CODES = {np.dtype(np.float32): "F32", np.dtype(np.float64): "F64", np.dtype(np.int64): "I64"}


def save(name, tensors, metadata):
    """The safetensors format: header length, JSON header, data. Widest elements first, so all are aligned."""
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
    """Float32 numbers held in float64."""
    return (torch.randn(*shape) * scale + shift).float().double()


def f32(x):
    return x.detach().numpy().astype(np.float32)


def f64(x):
    return x.detach().numpy().astype(np.float64)


def backward(y, dy, **inputs):
    """Gradients of sum(y * dy), by name."""
    grads = torch.autograd.grad(y, list(inputs.values()), dy)
    return dict(zip(inputs, grads))


# ---- kernels ----
def norm(out, name, rms, eps=1e-5, rows=5, cols=37):
    x, dy = random(rows, cols, shift=0.7).requires_grad_(), random(rows, cols)
    w, b = random(cols, scale=0.3, shift=1).requires_grad_(), random(cols, scale=0.3).requires_grad_()
    if rms:
        y = F.rms_norm(x, (cols,), w, eps)
        grads = backward(y, dy, x=x, weight=w)
    else:
        y = F.layer_norm(x, (cols,), w, b, eps)
        grads = backward(y, dy, x=x, weight=w, bias=b)
        out[f"{name}.bias"] = f32(b)
    out.update({f"{name}.x": f32(x), f"{name}.dy": f32(dy), f"{name}.weight": f32(w), f"{name}.y": f64(y)})
    out.update({f"{name}.d{k}": f64(g) for k, g in grads.items()})


def activation(out, name, f, gated, rows=4, cols=27):
    x, dy = random(rows, cols * (2 if gated else 1), scale=2).requires_grad_(), random(rows, cols)
    y = f(x[:, :cols]) * x[:, cols:] if gated else f(x)
    out.update({f"{name}.x": f32(x), f"{name}.dy": f32(dy), f"{name}.y": f64(y)})
    out[f"{name}.dx"] = f64(backward(y, dy, x=x)["x"])


def cross_entropy(out, rows=6, vocab=83, grad_scale=0.125):
    logits = random(rows, vocab, scale=3).requires_grad_()
    labels = torch.randint(0, vocab, (rows,))
    mask = torch.tensor([1.0, 0.0, 1.0, 0.5, 1.0, 1.0])
    loss = F.cross_entropy(logits, labels, reduction="none") * mask
    grads = backward(loss, torch.full((rows,), grad_scale), logits=logits)
    labels[1] = -100  # out of the mask: never read
    out.update({"cross_entropy.logits": f32(logits), "cross_entropy.labels": labels.numpy(),
                "cross_entropy.mask": f32(mask), "cross_entropy.loss": f64(loss),
                "cross_entropy.lse": f64(torch.logsumexp(logits, -1)), "cross_entropy.dlogits": f64(grads["logits"])})


def embedding(out, s=7, b=2, h=10, vocab=5):
    w, p = random(vocab, h).requires_grad_(), random(s, h).requires_grad_()
    tokens, dy = torch.randint(0, vocab, (b, s)), random(s, b, h)
    y = (F.embedding(tokens, w) + p[None]).transpose(0, 1)
    grads = backward(y, dy, weight=w, position_weight=p)
    out.update({"embedding.weight": f32(w), "embedding.position_weight": f32(p), "embedding.dy": f32(dy),
                "embedding.tokens": tokens.numpy(), "embedding.y": f64(y)})
    out.update({f"embedding.d{k}": f64(g) for k, g in grads.items()})


def adamw(out, n=50, steps=4, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
    p = torch.nn.Parameter(random(n))
    optimizer = torch.optim.AdamW([p], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    grads = random(steps, n)
    out.update({"adamw.master": f32(p), "adamw.grads": f32(grads)})
    for step in range(steps):
        p.grad = grads[step].clone()
        optimizer.step()
        out[f"adamw.master.{step + 1}"] = f64(p).copy()
    state = optimizer.state[p]
    out.update({"adamw.m": f64(state["exp_avg"]), "adamw.v": f64(state["exp_avg_sq"])})


def rope_tables(s, dim, base=10000.0):
    angle = torch.arange(s)[:, None].double() * base ** (-torch.arange(0, dim, 2).double() / dim)[None]
    return torch.cos(angle), torch.sin(angle)


def rope(x, cos, sin):
    """x[..., s, d]: pairs (x[i], x[i + r/2]) of the first r dims are turned."""
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half:2 * half], x[..., 2 * half:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)


def split_qkv(qkv, heads, groups, d):
    """[s, b, g * (a/g + 2) * d] -> q[b, a, s, d], k[b, g, s, d], v[b, g, s, d]."""
    s, b, _ = qkv.shape
    per = heads // groups
    x = qkv.view(s, b, groups, per + 2, d)
    q = x[:, :, :, :per].reshape(s, b, heads, d).permute(1, 2, 0, 3)
    return q, x[:, :, :, per].permute(1, 2, 0, 3), x[:, :, :, per + 1].permute(1, 2, 0, 3)


def yarn_tables(s, dim, factor, mscale, mscale_all_dim, base=10000.0, original=4096, fast=32, slow=1):
    """YaRN as DeepSeek-V3 publishes it: blended frequencies, tables times the concentration factor."""
    def pair_of(turns):
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    def m(x):
        return 0.1 * x * math.log(factor) + 1.0 if factor > 1 else 1.0

    low, high = max(math.floor(pair_of(fast)), 0), min(math.ceil(pair_of(slow)), dim - 1)
    kept = 1.0 - ((torch.arange(dim // 2).double() - low) / max(high - low, 0.001)).clamp(0, 1)
    plain = base ** (-torch.arange(0, dim, 2).double() / dim)
    angle = torch.outer(torch.arange(s).double(), plain / factor * (1 - kept) + plain * kept)
    return torch.cos(angle) * m(mscale) / m(mscale_all_dim), torch.sin(angle) * m(mscale) / m(mscale_all_dim), m(mscale_all_dim)


def rope_pairs(x, cos, sin):
    """x[..., s, dr]: neighbouring pairs as complex numbers, turned, then real parts and imaginary parts."""
    z = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous()) * torch.complex(cos, sin)
    return torch.cat([z.real, z.imag], -1)


def attend(q, k, v, scale):
    """Causal attention with grouped keys: o[s, b, a * d], log-sum-exp[b, a, s]."""
    per, s = q.shape[1] // k.shape[1], q.shape[2]
    k, v = k.repeat_interleave(per, 1), v.repeat_interleave(per, 1)
    scores = scale * q @ k.transpose(-1, -2)
    scores = scores.masked_fill(torch.ones(s, s).triu(1).bool(), -math.inf)
    o = torch.softmax(scores, -1) @ v
    assert torch.allclose(o, F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale), rtol=1e-13, atol=1e-13)
    return o.permute(2, 0, 1, 3).reshape(s, q.shape[0], -1), torch.logsumexp(scores, -1)


def attention(out, s=11, b=2, heads=6, groups=2, d=8, rotary=6):
    scale = 1 / math.sqrt(d)
    qkv = random(s, b, groups * (heads // groups + 2) * d).requires_grad_()
    cos, sin = (t.float().double() for t in rope_tables(s, rotary))
    do = random(s, b, heads * d)
    q, k, v = split_qkv(qkv, heads, groups, d)
    q, k = rope(q, cos, sin), rope(k, cos, sin)
    o, lse = attend(q, k, v, scale)
    grads = backward(o, do, qkv=qkv, q=q, k=k, v=v)
    out.update({"attention.qkv": f32(qkv), "attention.cos": f32(cos), "attention.sin": f32(sin),
                "attention.d_o": f32(do), "attention.o": f64(o), "attention.lse": f64(lse),
                "attention.q": f64(q), "attention.k": f64(k), "attention.v": f64(v)})
    out.update({f"attention.d{n}": f64(g) for n, g in grads.items()})


def kernels():
    out = {}
    norm(out, "layernorm", rms=False)
    norm(out, "rmsnorm", rms=True)
    activation(out, "gelu_tanh", lambda x: F.gelu(x, approximate="tanh"), gated=False)
    activation(out, "gelu_erf", F.gelu, gated=False)
    activation(out, "squared_relu", lambda x: F.relu(x) ** 2, gated=False)
    activation(out, "swiglu", F.silu, gated=True)
    activation(out, "geglu_quick", lambda x: x * torch.sigmoid(1.702 * x), gated=True)
    activation(out, "geglu", F.gelu, gated=True)
    cross_entropy(out)
    embedding(out)
    adamw(out)
    attention(out)
    save("kernels.safetensors", out,
         {"norm_epsilon": 1e-5, "cross_entropy_grad_scale": 0.125, "adamw": "lr 1e-2 betas 0.9 0.95 eps 1e-8 wd 0.1",
          "attention": "a 6 g 2 d 8 causal scale 1/sqrt(8) rotary_dim 6 half-split"})


# ---- whole models ----
def latent_shapes(c, attention):
    """Weights and latent norms of multi-latent attention, without the output projection."""
    h, a, query = c["hidden"], c["heads"], c["qk_head_dim"] + c["qk_pos_emb_head_dim"]
    shapes = {"linear_kv_down_proj": (c["kv_lora_rank"] + c["qk_pos_emb_head_dim"], h),
              "linear_kv_up_proj": (a * (c["qk_head_dim"] + c["v_head_dim"]), c["kv_lora_rank"]),
              "kv_layernorm": (c["kv_lora_rank"],)}
    if c["q_lora_rank"]:
        shapes.update({"linear_q_down_proj": (c["q_lora_rank"], h), "q_layernorm": (c["q_lora_rank"],),
                       "linear_q_up_proj": (a * query, c["q_lora_rank"])})
    else:
        shapes["linear_q_proj"] = (a * query, h)
    return {f"{attention}.{n}.weight": shape for n, shape in shapes.items()}


def layer_shapes(c, prefix):
    h, norms = c["hidden"], ["weight"] if c["rms"] else ["weight", "bias"]
    linears = {"mlp.linear_fc1": (c["ffn"] * (2 if c["gated"] else 1), h), "mlp.linear_fc2": (h, c["ffn"])}
    shapes = {f"{prefix}.{n}.{p}": (h,) for n in ("input_layernorm", "pre_mlp_layernorm") for p in norms}
    if c.get("kv_lora_rank"):
        shapes.update(latent_shapes(c, f"{prefix}.self_attention"))
        linears["self_attention.linear_proj"] = (h, c["heads"] * c["v_head_dim"])
        shapes.update({f"{prefix}.{n}.weight": shape for n, shape in linears.items()})
        return shapes
    d = c["head_dim"]
    qkv, attn = c["groups"] * (c["heads"] // c["groups"] + 2) * d, c["heads"] * d
    linears = {"self_attention.linear_qkv": (qkv, h), "self_attention.linear_proj": (h, attn),
               **linears}
    for n, shape in linears.items():
        shapes[f"{prefix}.{n}.weight"] = shape
        if c["bias"]:
            shapes[f"{prefix}.{n}.bias"] = shape[:1]
    return shapes


def parameter_shapes(c):
    shapes = {"embedding.word_embeddings.weight": (c["vocab"], c["hidden"])}
    if c["learned_positions"]:
        shapes["embedding.position_embeddings.weight"] = (c["max_positions"], c["hidden"])
    for n in range(c["layers"]):
        shapes.update(layer_shapes(c, f"decoder.layers.{n}"))
    shapes.update({f"decoder.final_layernorm.{p}": (c["hidden"],) for p in (["weight"] if c["rms"] else ["weight", "bias"])})
    if not c["tied"]:
        shapes["output_layer.weight"] = (c["vocab"], c["hidden"])
    return shapes


def make_parameter(name, shape):
    if "layernorm.weight" in name:
        return random(*shape, scale=0.1, shift=1).requires_grad_()
    return random(*shape, scale=0.1 if len(shape) == 1 else 0.2).requires_grad_()


def model_forward(c, p, tokens, labels):
    """tokens and labels [b, s]; the mean loss over all tokens. Hidden states are [s, b, h]."""
    def norm_of(x, name):
        if c["rms"]:
            return F.rms_norm(x, x.shape[-1:], p[f"{name}.weight"], c["epsilon"])
        return F.layer_norm(x, x.shape[-1:], p[f"{name}.weight"], p[f"{name}.bias"], c["epsilon"])

    def linear(x, name):
        return F.linear(x, p[f"{name}.weight"], p.get(f"{name}.bias"))

    def latent_attention(x, attention):
        a, dn, dr, dv = c["heads"], c["qk_head_dim"], c["qk_pos_emb_head_dim"], c["v_head_dim"]
        s, b, _ = x.shape
        cos, sin, m = yarn_tables(s, dr, c["factor"], c["mscale"], c["mscale_all_dim"])
        latent, k_pe = linear(x, f"{attention}.linear_kv_down_proj").split([c["kv_lora_rank"], dr], -1)
        kv = linear(norm_of(latent, f"{attention}.kv_layernorm"), f"{attention}.linear_kv_up_proj")
        if c["q_lora_rank"]:
            q = norm_of(linear(x, f"{attention}.linear_q_down_proj"), f"{attention}.q_layernorm")
            q = linear(q, f"{attention}.linear_q_up_proj")
        else:
            q = linear(x, f"{attention}.linear_q_proj")
        q, kv = (t.view(s, b, a, -1).permute(1, 2, 0, 3) for t in (q, kv))
        q = torch.cat([q[..., :dn], rope_pairs(q[..., dn:], cos, sin)], -1)
        k_pe = rope_pairs(k_pe.transpose(0, 1)[:, None], cos, sin).expand(b, a, s, dr)
        k = torch.cat([kv[..., :dn], k_pe], -1)
        return attend(q, k, kv[..., dn:], m * m / math.sqrt(dn + dr))[0]

    s, d = tokens.shape[1], c["head_dim"]
    x = F.embedding(tokens, p["embedding.word_embeddings.weight"]).transpose(0, 1)
    if c["learned_positions"]:
        x = x + p["embedding.position_embeddings.weight"][:s, None]
    cos, sin = rope_tables(s, d)
    for n in range(c["layers"]):
        layer = f"decoder.layers.{n}"
        n1 = norm_of(x, f"{layer}.input_layernorm")
        if c.get("kv_lora_rank"):
            o = latent_attention(n1, f"{layer}.self_attention")
        else:
            q, k, v = split_qkv(linear(n1, f"{layer}.self_attention.linear_qkv"), c["heads"], c["groups"], d)
            if not c["learned_positions"]:
                q, k = rope(q, cos, sin), rope(k, cos, sin)
            o, _ = attend(q, k, v, 1 / math.sqrt(d))
        x = x + linear(o, f"{layer}.self_attention.linear_proj")
        u = linear(norm_of(x, f"{layer}.pre_mlp_layernorm"), f"{layer}.mlp.linear_fc1")
        u = F.silu(u[..., :c["ffn"]]) * u[..., c["ffn"]:] if c["gated"] else F.gelu(u, approximate="tanh")
        x = x + linear(u, f"{layer}.mlp.linear_fc2")
    x = norm_of(x, "decoder.final_layernorm")
    logits = F.linear(x, p["embedding.word_embeddings.weight" if c["tied"] else "output_layer.weight"])
    return F.cross_entropy(logits.transpose(0, 1).reshape(-1, c["vocab"]), labels.reshape(-1))


def whole_model(name, **c):
    p = {n: make_parameter(n, shape) for n, shape in parameter_shapes(c).items()}
    text = torch.randint(0, c["vocab"], (c["batch"], c["seq"] + 1))
    tokens, labels = text[:, :-1].contiguous(), text[:, 1:].contiguous()
    loss = model_forward(c, p, tokens, labels)
    grads = torch.autograd.grad(loss, list(p.values()))
    out = {n: f32(v) for n, v in p.items()}
    out.update({f"{n}.grad": f32(g) for n, g in zip(p, grads)})
    out.update({"tokens": tokens.numpy(), "labels": labels.numpy(), "loss": f64(loss).reshape(1)})
    save(f"{name}.safetensors", out, c)
    print(name, "loss", loss.item(), "parameters", sum(v.numel() for v in p.values()))


kernels()
SHARED = dict(layers=2, hidden=32, heads=4, head_dim=8, seq=12, batch=2, vocab=64, epsilon=1e-5)
whole_model("tiny_gpt", **SHARED, groups=4, ffn=64, max_positions=16, rms=False, gated=False, bias=True,
            learned_positions=True, tied=True)
whole_model("tiny_llama", **SHARED, groups=2, ffn=48, rms=True, gated=True, bias=False, learned_positions=False, tied=False)
MLA = dict(groups=4, ffn=48, rms=True, gated=True, bias=False, learned_positions=False, tied=False, kv_lora_rank=12,
           qk_head_dim=6, qk_pos_emb_head_dim=8, v_head_dim=10, factor=40.0, mscale=1.0, mscale_all_dim=0.5)
whole_model("tiny_mla", **SHARED, **MLA, q_lora_rank=20)
whole_model("tiny_mla_direct", **SHARED, **MLA, q_lora_rank=0)  # queries straight from the hidden states
