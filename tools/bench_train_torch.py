#!/usr/bin/env python3
"""Tokens per second of PyTorch on the same decoder that `templar bench train` measures.

    pip install torch
    python3 tools/bench_train_torch.py --layers 6 --width 256 --heads 8 --kv-heads 4 --ffn 688 --vocab 512 --seq 256 --batch 8

A plain model in eager mode, f32: RMSNorm, rotary embedding by rotated halves, grouped-query attention through
`scaled_dot_product_attention`, SwiGLU, untied output projection. Training is forward, backward, clipping of the global norm and
AdamW. Prints one line of JSON with the same fields as `templar bench train --json`, except those that make no sense
here.
"""

import argparse
import json
import math
import resource
import time

import torch
import torch.nn.functional as F
from torch import nn


class Norm(nn.Module):
    def __init__(self, width: int, fused: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.fused = fused

    def forward(self, x):
        if self.fused:
            return F.rms_norm(x, self.weight.shape, self.weight, 1e-5)
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


def rotated(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Block(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.heads, self.kv_heads, self.dim = a.heads, a.kv_heads, a.width // a.heads
        kv = self.kv_heads * self.dim
        self.input_norm, self.post_norm = Norm(a.width, a.fused_norm), Norm(a.width, a.fused_norm)
        self.q, self.o = nn.Linear(a.width, a.width, bias=False), nn.Linear(a.width, a.width, bias=False)
        self.k, self.v = nn.Linear(a.width, kv, bias=False), nn.Linear(a.width, kv, bias=False)
        self.gate, self.up = nn.Linear(a.width, a.ffn, bias=False), nn.Linear(a.width, a.ffn, bias=False)
        self.down = nn.Linear(a.ffn, a.width, bias=False)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        y = self.input_norm(x)
        split = lambda z, heads: z.view(b, t, heads, self.dim).transpose(1, 2)
        q = rotated(split(self.q(y), self.heads), cos, sin)
        k = rotated(split(self.k(y), self.kv_heads), cos, sin)
        v = split(self.v(y), self.kv_heads)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads)
        x = x + self.o(mixed.transpose(1, 2).reshape(b, t, -1))
        y = self.post_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.embedding = nn.Embedding(a.vocab, a.width)
        self.blocks = nn.ModuleList(Block(a) for _ in range(a.layers))
        self.norm = Norm(a.width, a.fused_norm)
        self.head = nn.Linear(a.width, a.vocab, bias=False)
        half = a.width // a.heads // 2
        angle = torch.outer(torch.arange(a.seq), 10_000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens):
        t = tokens.shape[1]
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos[:t], self.sin[:t])
        return self.head(self.norm(x))


def loss_of(model, tokens):
    logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def repeated(work, seconds: float, least: int):
    """Median seconds of a call."""
    work()
    times, start = [], time.perf_counter()
    while len(times) < least or time.perf_counter() - start < seconds:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    shape = {"layers": 6, "width": 256, "heads": 8, "kv-heads": 4, "ffn": 688, "vocab": 512, "seq": 256, "batch": 8}
    for name, default in shape.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0, help="at least this long for training, and for evaluation")
    parser.add_argument("--fused-norm", action="store_true", help="torch's rms_norm instead of plain operations")
    parser.add_argument("--fused-adamw", action="store_true", help="torch's fused AdamW instead of its default")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    torch.manual_seed(1)
    model = Decoder(a)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True if a.fused_adamw else None
    )
    tokens = torch.randint(a.vocab, (a.batch, a.seq))

    def train():
        optimiser.zero_grad(set_to_none=True)
        loss_of(model, tokens).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    @torch.no_grad()
    def evaluate():
        loss_of(model, tokens).item()

    count = a.batch * a.seq
    train_s, evaluate_s = repeated(train, a.seconds, 3), repeated(evaluate, a.seconds / 2, 3)
    weights = sum(p.numel() for p in model.parameters()) - model.embedding.weight.numel()
    flops = 6 * weights + 12 * a.layers * a.width * (a.seq / 2)
    print(
        json.dumps(
            {
                "engine": f"torch {torch.__version__} eager",
                "train_tokens_per_s": count / train_s,
                "eval_tokens_per_s": count / evaluate_s,
                "achieved_gflops": flops * count / train_s / 1e9,
                "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "loss_of_guessing": math.log(a.vocab),
            }
        )
    )


if __name__ == "__main__":
    main()
