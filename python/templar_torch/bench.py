"""How fast this machine trains: ``python -m templar_torch.bench --preset 1b --steps 200``.

Random bytes cannot be learned and a text would have to be fetched, so tokens come from a seeded chain in which each
token is followed by one of a few others: the loss curve then means something. Prints one line of JSON per step with
``--curve``, and one at the end: tokens/s, model FLOPs utilisation, the speed of a plain matrix product for comparison,
peak memory.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections.abc import Iterator

import torch

from . import flops
from .engine import Engine, Options
from .ranks import Ranks
from .spec import InnerSpec, ModelSpec


def shape(vocab: int, width: int, layers: int, heads: int, kv_heads: int, ffn: int, seq: int = 2048) -> ModelSpec:
    return ModelSpec(vocab, width, layers, heads, kv_heads, ffn, seq, 10_000.0, 1e-5, False)


PRESETS = {
    # Shape, sequences per step, sequences per pass.
    "tiny": (shape(256, 64, 2, 4, 2, 192, seq=128), 4, 2),
    "150m": (shape(32_768, 768, 16, 12, 4, 2048), 64, 16),
    "1b": (shape(32_768, 2048, 22, 32, 4, 5632), 64, 8),
    "7b": (shape(32_000, 4096, 32, 32, 32, 11_008), 32, 2),
}
SUCCESSORS = 8
"""Tokens that may follow a token; the loss cannot fall below its ln."""


def batches(spec: ModelSpec, sequences: int, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    # As many tokens as can be learned in 200 steps, whatever the vocabulary.
    used = min(spec.vocab_size, 512)
    successors = torch.randint(used, (used, SUCCESSORS), generator=generator)
    while True:
        rows = [torch.randint(used, (sequences,), generator=generator)]
        choices = torch.randint(SUCCESSORS, (spec.seq_len, sequences), generator=generator)
        for choice in choices[1:]:
            rows.append(successors[rows[-1], choice])
        yield torch.stack(rows, dim=1)


@torch.no_grad()
def initialise(engine: Engine, seed: int) -> None:
    """Draws normal values with deviation 0.02, smaller for residual projections; each rank draws its own shard."""
    generator = torch.Generator(engine.device).manual_seed(seed + engine.ranks.rank)
    residual = (2 * engine.spec.layers) ** 0.5
    for name, shard in zip(engine.parameters, engine.shards, strict=True):
        if name.endswith("norm.weight"):
            shard.fill_(1.0)
            continue
        scale = 0.02 / (residual if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0)
        shard.normal_(0.0, scale, generator=generator)
    engine.refresh()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m templar_torch.bench", description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="150m")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--sequences", type=int, help="per step; the preset's if not given")
    parser.add_argument("--micro", type=int, help="sequences per pass; the preset's if not given")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="on CPUs")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on GPUs")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, help="default: if memory is short")
    parser.add_argument("--deterministic", action="store_true", help="the same bits each time")
    parser.add_argument("--curve", action="store_true", help="print every step")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    spec, sequences, micro = PRESETS[args.preset]
    sequences, micro = args.sequences or sequences, args.micro or micro
    inner = InnerSpec(
        steps=args.steps, batch_sequences=sequences, micro_batch_sequences=micro, lr=args.lr, beta1=0.9, beta2=0.95,
        epsilon=1e-8, weight_decay=0.1, clip_norm=1.0, warmup_steps=max(1, args.steps // 10), decay_steps=args.steps,
        final_lr_fraction=0.1,
    )
    options = Options(args.device, args.threads, False, args.checkpointing, args.compile, args.deterministic)
    ranks = Ranks()
    ranks.join()
    engine = Engine(spec, inner, options, ranks)
    initialise(engine, args.seed)
    engine.begin()
    curve, seconds = [], []
    for step, tokens_bt in zip(range(args.steps), batches(spec, sequences, args.seed), strict=False):
        started = time.perf_counter()
        stats = engine.step(tokens_bt, step)
        seconds.append(time.perf_counter() - started)
        curve.append(round(stats.loss, 4))
        if args.curve and ranks.rank == 0:
            print(json.dumps({**dataclasses.asdict(stats), "seconds": round(seconds[-1], 4)}), flush=True)
    engine.end()
    measured = engine.stats()
    if ranks.rank == 0:
        # The median of the steps after the first few, which compile and fill caches.
        typical = statistics.median(seconds[min(5, len(seconds) - 1) :])
        tokens_per_s = sequences * spec.seq_len / typical
        rate = tokens_per_s * flops.flops_per_token(spec, spec.seq_len)
        peak = measured.peak_flops_per_s
        result = {
            "preset": args.preset, "parameters": spec.parameters, "device": measured.device,
            "torch": torch.__version__, "dtype": str(engine.dtype), "sequence_tokens": spec.seq_len,
            "sequences": sequences, "micro_batch_sequences": micro, "compiled": engine.compiled,
            "checkpointed_layers": engine.model.checkpointed, "deterministic": args.deterministic, "steps": args.steps,
            "tokens_per_s": round(tokens_per_s, 1), "mfu": peak and round(rate / peak, 4),
            "of_matmul": round(rate / measured.matmul_flops_per_s, 4),
            "matmul_tflops_per_s": round(measured.matmul_flops_per_s / 1e12, 3),
            "peak_memory_bytes": measured.peak_memory_bytes, "first_step_s": round(seconds[0], 2),
            "final_loss": curve[-1], "loss": curve[:: max(1, len(curve) // 20)],
        }
        print(json.dumps(result), flush=True)
    ranks.leave()
    if ranks.world > 1:
        # Threads of the collective libraries may keep the interpreter alive.
        os._exit(0)


if __name__ == "__main__":
    main()
