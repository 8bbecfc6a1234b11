#!/usr/bin/env python3
"""Checks that PyTorch computes the same loss and the same gradient of every parameter as the built-in engine.

    pip install torch
    cargo run --release -p templar-cpu --example gradients > gradients.json
    python3 tools/check_gradients.py gradients.json

The file holds models with their parameters, tokens, loss and gradient, flat in canonical order. Exits with 1 if a loss
differs by more than 1e-5, or a gradient by more than 1e-4 of the largest in its tensor.
"""

import json
import sys

import torch
import torch.nn.functional as F


def norm(x, weight, epsilon):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * weight


def loss_of(spec, p, tokens):
    dim, length = spec["hidden_size"] // spec["heads"], tokens.shape[1] - 1
    half = dim // 2
    angle = torch.outer(torch.arange(length), spec["rope_theta"] ** (-torch.arange(half) / half))
    cos, sin = angle.cos(), angle.sin()

    def split(x, heads):
        return x.view(x.shape[0], length, heads, dim).transpose(1, 2)

    def rotated(x):
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)

    x = p["model.embed_tokens.weight"][tokens[:, :-1]]
    for layer in range(spec["layers"]):
        w = lambda part: p[f"model.layers.{layer}.{part}.weight"]
        y = norm(x, w("input_layernorm"), spec["norm_eps"])
        q = split(y @ w("self_attn.q_proj").T, spec["heads"])
        k = split(y @ w("self_attn.k_proj").T, spec["kv_heads"])
        if spec["qk_norm"]:
            q, k = norm(q, w("self_attn.q_norm"), spec["norm_eps"]), norm(k, w("self_attn.k_norm"), spec["norm_eps"])
        q, k = rotated(q), rotated(k)
        v = split(y @ w("self_attn.v_proj").T, spec["kv_heads"])
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + mixed.transpose(1, 2).reshape(x.shape) @ w("self_attn.o_proj").T
        y = norm(x, w("post_attention_layernorm"), spec["norm_eps"])
        x = x + (F.silu(y @ w("mlp.gate_proj").T) * (y @ w("mlp.up_proj").T)) @ w("mlp.down_proj").T
    head = p["model.embed_tokens.weight" if spec["tied_embeddings"] else "lm_head.weight"]
    logits = norm(x, p["model.norm.weight"], spec["norm_eps"]) @ head.T
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def main() -> int:
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    failures = 0
    for case in json.load(open(sys.argv[1])):
        spec, at, parameters, spans = case["spec"], 0, {}, {}
        flat = torch.tensor(case["theta"], dtype=torch.float32)
        for name, shape in case["tensors"]:
            size = torch.Size(shape).numel()
            parameters[name] = flat[at : at + size].view(shape).clone().requires_grad_()
            spans[name], at = (at, at + size), at + size
        tokens = torch.tensor(case["tokens"])
        loss = loss_of(spec, parameters, tokens)
        loss.backward()
        found = torch.tensor(case["gradient"], dtype=torch.float32)
        worst = ("", 0.0)
        for name, parameter in parameters.items():
            first, end = spans[name]
            expected = parameter.grad.flatten()
            error = ((found[first:end] - expected).abs().max() / expected.abs().max()).item()
            worst = max(worst, (name, error), key=lambda pair: pair[1])
        off = abs(loss.item() - case["loss"])
        print(f"{spec['heads']} heads, tied {spec['tied_embeddings']}, norms of queries and keys {spec['qk_norm']}: loss differs by {off:.1e}, {worst[0]} by {worst[1]:.1e}")
        failures += off > 1e-5 or worst[1] > 1e-4
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
