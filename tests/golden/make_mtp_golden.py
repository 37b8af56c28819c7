#!/usr/bin/env python3
"""Makes the golden tensors of multi-token prediction: PyTorch in float64, independent of the C code. Run once, by hand, as
make_golden.py. The layers are written here again, as a mixture of experts on rotary attention; one depth is

    x = proj [enorm(embedding(tokens k on)) | hnorm(hidden of depth k - 1)], hidden = final_norm(layer(x))

and its loss is the mean over the labels k on that exist and count.
"""
import json
import os
import struct

import numpy as np
import torch
import torch.nn.functional as F

torch.set_default_dtype(torch.float64)
torch.manual_seed(5)
HERE = os.path.dirname(os.path.abspath(__file__))
CODES = {np.dtype(np.float32): "F32", np.dtype(np.float64): "F64", np.dtype(np.int64): "I64"}


def save(name, tensors, metadata):
    header, data, offset = {"__metadata__": {k: str(v) for k, v in metadata.items()}}, [], 0
    for key in sorted(tensors, key=lambda k: (-tensors[k].dtype.itemsize, k)):
        a = np.ascontiguousarray(tensors[key])
        header[key] = {"dtype": CODES[a.dtype], "shape": list(a.shape), "data_offsets": [offset, offset + a.nbytes]}
        data.append(a.tobytes())
        offset += a.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(HERE, name), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(data))


def random(*shape, scale=1.0, shift=0.0):
    return (torch.randn(*shape) * scale + shift).float().double()


def layer_shapes(at, c, experts):
    h, d = c["hidden"], c["head_dim"]
    shapes = {f"{at}.input_layernorm.weight": (h,), f"{at}.pre_mlp_layernorm.weight": (h,),
              f"{at}.self_attention.linear_qkv.weight": ((c["heads"] + 2 * c["groups"]) * d, h),
              f"{at}.self_attention.linear_proj.weight": (h, c["heads"] * d)}
    if not experts:
        return {**shapes, f"{at}.mlp.linear_fc1.weight": (2 * c["ffn"], h), f"{at}.mlp.linear_fc2.weight": (h, c["ffn"])}
    e, f = c["experts"], c["moe_ffn"]
    return {**shapes, f"{at}.mlp.router.weight": (e, h), f"{at}.mlp.experts.linear_fc1.weight": (e * 2 * f, h),
            f"{at}.mlp.experts.linear_fc2.weight": (e * h, f)}


def parameter_shapes(c):
    h = c["hidden"]
    shapes = {"embedding.word_embeddings.weight": (c["vocab"], h), **layer_shapes("decoder.layers.0", c, False),
              **layer_shapes("decoder.layers.1", c, True), "decoder.final_layernorm.weight": (h,), "output_layer.weight": (c["vocab"], h)}
    for k in range(c["depths"]):
        at = f"mtp.layers.{k}"
        shapes.update({f"{at}.enorm.weight": (h,), f"{at}.hnorm.weight": (h,), f"{at}.eh_proj.weight": (h, 2 * h),
                       f"{at}.final_layernorm.weight": (h,), **layer_shapes(f"{at}.transformer_layer", c, True)})
    return shapes


def norm(x, w):
    return F.rms_norm(x, (x.shape[-1],), w, 1e-5)


def attention(x, w_qkv, w_proj, c):
    b, s, _ = x.shape
    d, heads, groups = c["head_dim"], c["heads"], c["groups"]
    per = heads // groups
    qkv = F.linear(x, w_qkv).view(b, s, groups, per + 2, d).permute(0, 2, 3, 1, 4)
    angle = torch.arange(s)[:, None].double() * 10000.0 ** (-torch.arange(0, d, 2).double() / d)[None]
    cos, sin = torch.cos(angle), torch.sin(angle)

    def turn(v):
        a, z = v[..., :d // 2], v[..., d // 2:]
        return torch.cat([a * cos - z * sin, z * cos + a * sin], -1)

    q = turn(qkv[:, :, :per]).reshape(b, heads, s, d)
    k, v = (t.repeat_interleave(per, 1) for t in (turn(qkv[:, :, per]), qkv[:, :, per + 1]))
    o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return F.linear(o.transpose(1, 2).reshape(b, s, heads * d), w_proj)


def swiglu(x, w1, w2, scale=1.0):
    gate, up = F.linear(x, w1).chunk(2, -1)
    return F.linear(F.silu(gate) * up * scale, w2)


def experts(x, p, at, c):
    flat = x.reshape(-1, x.shape[-1])
    logits = F.linear(flat, p[f"{at}.router.weight"])
    values, index = torch.topk(logits, c["topk"] + 1, dim=-1)
    assert (values[:, -2] - values[:, -1]).min() > 1e-5  # float32 chooses the same
    index = index[:, :-1]
    probs = torch.softmax(logits.gather(1, index), -1)
    w1 = p[f"{at}.experts.linear_fc1.weight"].view(c["experts"], -1, flat.shape[1])
    w2 = p[f"{at}.experts.linear_fc2.weight"].view(c["experts"], flat.shape[1], -1)
    y = torch.zeros_like(flat)
    for e in range(c["experts"]):
        token, slot = torch.where(index == e)
        y = y.index_add(0, token, swiglu(flat[token], w1[e], w2[e], probs[token, slot][:, None]))
    return y.view_as(x)


def layer(x, p, at, c):
    x = x + attention(norm(x, p[f"{at}.input_layernorm.weight"]), p[f"{at}.self_attention.linear_qkv.weight"],
                      p[f"{at}.self_attention.linear_proj.weight"], c)
    y = norm(x, p[f"{at}.pre_mlp_layernorm.weight"])
    if f"{at}.mlp.router.weight" in p:
        return x + experts(y, p, f"{at}.mlp", c)
    return x + swiglu(y, p[f"{at}.mlp.linear_fc1.weight"], p[f"{at}.mlp.linear_fc2.weight"])


def mean_loss(hidden, p, labels, mask):
    """Of the positions that have a label."""
    each = F.cross_entropy(F.linear(hidden, p["output_layer.weight"]).flatten(0, 1), labels.flatten(), reduction="none")
    return (each * mask.flatten()).sum() / mask.sum()


def on(x, k):
    """x[:, i + k]; 0 where there is none."""
    return torch.cat([x[:, k:], torch.zeros_like(x[:, :k])], 1)


def whole_model(name, **c):
    p = {n: (random(*shape, scale=0.1, shift=1) if "norm" in n else random(*shape, scale=0.25)).requires_grad_()
         for n, shape in parameter_shapes(c).items()}
    text = torch.randint(0, c["vocab"], (c["batch"], c["seq"] + 1))
    tokens, labels = text[:, :-1], text[:, 1:]
    mask = torch.ones(c["batch"], c["seq"])
    mask[0, 3] = mask[0, 4] = mask[1, 0] = mask[1, c["seq"] - 1] = 0
    words = p["embedding.word_embeddings.weight"]
    hidden = layer(layer(F.embedding(tokens, words), p, "decoder.layers.0", c), p, "decoder.layers.1", c)
    hidden = norm(hidden, p["decoder.final_layernorm.weight"])
    losses = [mean_loss(hidden, p, labels, mask)]
    for k in range(1, c["depths"] + 1):
        at = f"mtp.layers.{k - 1}"
        both = torch.cat([norm(F.embedding(on(tokens, k), words), p[f"{at}.enorm.weight"]), norm(hidden, p[f"{at}.hnorm.weight"])], -1)
        hidden = layer(F.linear(both, p[f"{at}.eh_proj.weight"]), p, f"{at}.transformer_layer", c)
        hidden = norm(hidden, p[f"{at}.final_layernorm.weight"])
        losses.append(mean_loss(hidden, p, on(labels, k), on(mask, k)))
    total = losses[0] + c["factor"] / c["depths"] * sum(losses[1:])
    grads = torch.autograd.grad(total, list(p.values()))
    out = {n: v.detach().numpy().astype(np.float32) for n, v in p.items()}
    out.update({f"{n}.grad": g.numpy().astype(np.float32) for n, g in zip(p, grads)})
    out.update({"tokens": tokens.numpy(), "labels": labels.numpy(), "mask": mask.numpy(),
                "losses": np.array([loss.item() for loss in losses])})
    save(f"{name}.safetensors", out, c)
    print(name, [loss.item() for loss in losses])


whole_model("tiny_mtp", hidden=32, heads=4, groups=2, head_dim=8, seq=12, batch=2, vocab=64, ffn=48, experts=4, topk=2, moe_ffn=16,
            depths=2, factor=0.3)
