#!/usr/bin/env python3
"""The codec's work in plain PyTorch, on the CPU: the yardstick for `templar bench codec`.

Encode: error feedback, top-k of each chunk, one scale per chunk, 12-bit positions and signs packed, residual.
Aggregate: unpack, norm, clip to the median and scatter-add for 20 peers, divided by the senders; outer step.

Prints one JSON object with medians. Needs torch (from PyPI) and nothing else.
"""

import argparse
import json
import time

import torch

CHUNK, K, DECAY = 4096, 64, 0.95


def pack(positions: torch.Tensor, negative: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two 12-bit positions in three bytes; eight signs in one."""
    even, odd = positions[:, 0::2], positions[:, 1::2]
    low = (even & 0xFF).to(torch.uint8)
    middle = ((even >> 8) | ((odd & 0xF) << 4)).to(torch.uint8)
    high = (odd >> 4).to(torch.uint8)
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8)
    signs = (negative.view(-1, K // 8, 8).to(torch.uint8) * weights).sum(-1, dtype=torch.uint8)
    return torch.stack((low, middle, high), dim=-1), signs


def unpack(packed: torch.Tensor, signs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    low, middle, high = packed.to(torch.int64).unbind(-1)
    positions = torch.stack((low | ((middle & 0xF) << 8), (middle >> 4) | (high << 4)), dim=-1).flatten(1)
    shifts = torch.arange(8, dtype=torch.uint8)
    negative = ((signs.unsqueeze(-1) >> shifts) & 1).flatten(1)
    return positions, 1.0 - 2.0 * negative.to(torch.float32)


def encode(error: torch.Tensor, delta: torch.Tensor):
    error.mul_(DECAY).add_(delta)
    chunks = error.view(-1, CHUNK)
    positions = chunks.abs().topk(K, dim=1, sorted=False).indices
    positions = positions.sort(dim=1).values
    values = chunks.gather(1, positions)
    scale = values.abs().mean(dim=1, keepdim=True)
    packed, signs = pack(positions, values < 0)
    chunks.scatter_add_(1, positions, -scale * values.sign())
    return packed, signs, scale


def aggregate(theta: torch.Tensor, payloads) -> None:
    chunks = theta.view(-1, CHUNK)
    peers = [(*unpack(packed, signs), scale) for packed, signs, scale in payloads]
    norms = torch.stack([(scale.double().square().sum() * K).sqrt() for *_, scale in peers])
    clips = (norms.median() / norms).clamp(max=1.0)
    total, senders = torch.zeros_like(chunks), torch.zeros_like(chunks)
    ones = torch.ones(chunks.shape[0], K)
    for (positions, sign, scale), clip in zip(peers, clips):
        total.scatter_add_(1, positions, sign * scale * clip.float())
        senders.scatter_add_(1, positions, ones)
    chunks.sub_(total / senders.clamp(min=2.0))


def median_s(work, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=int, default=16 * 2**20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peers", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    params = args.params // CHUNK * CHUNK
    draw = lambda: torch.empty(params).exponential_() * (torch.randint(0, 2, (params,)) * 2 - 1) * 1e-3
    error, delta, theta = torch.zeros(params), draw(), draw()
    encode(error, delta)
    encode_s = median_s(lambda: encode(error, delta), args.repeats)
    payloads = [encode(torch.zeros(params), draw()) for _ in range(args.peers)]
    decode_s = median_s(lambda: aggregate(theta, payloads), args.repeats)
    print(json.dumps({
        "torch": torch.__version__,
        "params": params,
        "threads": args.threads,
        "encode_params_per_s": params / encode_s,
        "decode20_params_per_s": params / decode_s * args.peers / 20,
    }))


if __name__ == "__main__":
    with torch.no_grad():
        main()
