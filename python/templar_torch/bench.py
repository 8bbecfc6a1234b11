"""How fast this machine trains: ``python -m templar_torch.bench --preset 1b --steps 200``.

Random bytes cannot be learned and a text would have to be fetched, so tokens come from a seeded chain in which each
token is followed by one of a few others: the loss curve then means something. Prints one line of JSON per step with
``--curve``, and one at the end: tokens/s, model FLOPs utilisation, the speed of a plain matrix product for comparison,
peak memory. With ``--profile``, one more line says which kernels the time of a step goes to.

What fails in the first step is tried again in a way that needs less: without a compiler, or with smaller passes. The
result names what failed.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from . import flops, profile
from .engine import Engine, NonFiniteStep, Options
from .ranks import Ranks
from .spec import OPTIMISERS, InnerSpec, ModelSpec


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
    parser.add_argument("--seconds", type=float, help="begin no step when so much time has passed since the first")
    parser.add_argument("--layers", type=int, help="the preset's if not given; fewer show a layer's speed in less memory")
    parser.add_argument("--sequences", type=int, help="per step; the preset's if not given")
    parser.add_argument("--micro", type=int, help="sequences per pass; the preset's if not given")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, help="on CPUs")
    parser.add_argument("--lr", type=float, default=6e-4)
    parser.add_argument("--optimiser", choices=OPTIMISERS, default="adamw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="default: on GPUs")
    parser.add_argument("--checkpointing", action=argparse.BooleanOptionalAction, help="default: if memory is short")
    parser.add_argument("--deterministic", action="store_true", help="the same bits each time")
    parser.add_argument("--curve", action="store_true", help="print every step")
    parser.add_argument("--profile", action="store_true", help="print the kernels of one more step")
    return parser.parse_args()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to measure."""

    spec: ModelSpec
    sequences: int
    micro: int
    compile: bool | None

    def easier(self, error: Exception) -> Plan | None:
        """What may work where this failed, if anything."""
        if isinstance(error, torch.OutOfMemoryError):
            return dataclasses.replace(self, micro=self.micro // 2) if self.micro > 1 else None
        return None if self.compile is False else dataclasses.replace(self, compile=False)


class Bench:
    """One engine and its steps."""

    def __init__(self, args: argparse.Namespace, plan: Plan, ranks: Ranks) -> None:
        self.args, self.plan = args, plan
        inner = InnerSpec(
            steps=args.steps, batch_sequences=plan.sequences, micro_batch_sequences=plan.micro, lr=args.lr, beta1=0.9,
            beta2=0.95, epsilon=1e-8, weight_decay=0.1, clip_norm=1.0, warmup_steps=max(1, args.steps // 10),
            decay_steps=args.steps, final_lr_fraction=0.1, optimiser=args.optimiser,
        )
        options = Options(args.device, args.threads, False, args.checkpointing, plan.compile, args.deterministic)
        self.engine = Engine(plan.spec, inner, options, ranks)
        initialise(self.engine, args.seed)
        self.engine.begin()
        self.batches = batches(plan.spec, plan.sequences, args.seed)
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.stopped: str | None = None

    def step(self) -> float:
        """The seconds that it took."""
        tokens_bt = next(self.batches)
        started = time.perf_counter()
        stats = self.engine.step(tokens_bt, len(self.seconds))
        self.seconds.append(time.perf_counter() - started)
        self.losses.append(round(stats.loss, 4))
        if self.args.curve and self.engine.ranks.rank == 0:
            print(json.dumps({**dataclasses.asdict(stats), "seconds": round(self.seconds[-1], 4)}), flush=True)
        return self.seconds[-1]

    def run(self) -> None:
        """The steps after the first. A failure ends them, but what was measured stands."""
        started = time.perf_counter()
        try:
            while len(self.seconds) < self.args.steps and not self._late(time.perf_counter() - started):
                self.step()
        except (NonFiniteStep, RuntimeError) as error:
            if self.engine.ranks.world > 1:
                raise
            self.stopped = told(error)

    def _late(self, seconds: float) -> bool:
        """Whether the time is over, by the clock of rank 0."""
        return self.args.seconds is not None and self.engine.ranks.share(seconds >= self.args.seconds)

    def result(self) -> dict[str, Any]:
        """What was measured. Collective."""
        engine, spec, plan, measured = self.engine, self.plan.spec, self.plan, self.engine.stats()
        # The median of the steps after the first few, which compile and fill caches.
        counted = self.seconds[min(5, len(self.seconds) // 3) :]
        typical = statistics.median(counted)
        tokens_per_s = plan.sequences * spec.seq_len / typical
        rate = tokens_per_s * flops.flops_per_token(spec, spec.seq_len)
        peak = measured.peak_flops_per_s
        return {
            "preset": self.args.preset, "layers": spec.layers, "parameters": spec.parameters,
            "device": measured.device, "torch": torch.__version__, "dtype": str(engine.dtype),
            "sequence_tokens": spec.seq_len, "sequences": plan.sequences, "micro_batch_sequences": plan.micro,
            "compiled": engine.compiled, "attention": [backend.name for backend in engine.attention[:1]],
            "checkpointed_layers": engine.model.checkpointed, "deterministic": self.args.deterministic,
            "optimiser": self.args.optimiser,
            "steps": len(self.seconds), "tokens_per_s": round(tokens_per_s, 1), "mfu": peak and round(rate / peak, 4),
            "of_matmul": round(rate / measured.matmul_flops_per_s, 4),
            "matmul_tflops_per_s": round(measured.matmul_flops_per_s / 1e12, 3),
            "step_s": [round(value, 4) for value in (min(counted), typical, max(counted))],
            "peak_memory_bytes": measured.peak_memory_bytes, "first_step_s": round(self.seconds[0], 2),
            "final_loss": self.losses[-1], "loss": self.losses[:: max(1, len(self.losses) // 20)],
            "stopped": self.stopped,
        }


def told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip()[:500]


def begin(args: argparse.Namespace, plan: Plan, ranks: Ranks) -> tuple[Bench, list[str]]:
    """A bench after its first step, and what failed before."""
    failures: list[str] = []
    while True:
        bench, easier = None, None
        try:
            bench = Bench(args, plan, ranks)
            bench.step()
            return bench, failures
        except NonFiniteStep:
            raise
        except Exception as error:
            # Several ranks cannot try again, as only some of them may have failed.
            easier = None if ranks.world > 1 else plan.easier(error)
            if easier is None:
                raise
            failures.append(told(error))
            print(f"{failures[-1]}\ntrying again with {easier}", file=sys.stderr, flush=True)
        # Outside the handler, which keeps the tensors in memory.
        plan, bench = easier, None
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def main() -> None:
    args = arguments()
    spec, sequences, micro = PRESETS[args.preset]
    spec = dataclasses.replace(spec, layers=args.layers or spec.layers)
    ranks = Ranks()
    ranks.join()
    bench, failures = begin(args, Plan(spec, args.sequences or sequences, args.micro or micro, args.compile), ranks)
    bench.run()
    result = bench.result()
    if ranks.rank == 0:
        print(json.dumps({**result, "failures": failures}), flush=True)
    if args.profile:
        # Last, as a profiler that fails must not cost the result.
        kernels = profile.of(bench.step, bench.engine.device)
        if ranks.rank == 0:
            print(json.dumps({"profile": args.preset, **kernels}), flush=True)
    bench.engine.end()
    ranks.leave()
    if ranks.world > 1:
        # Threads of the collective libraries may keep the interpreter alive.
        os._exit(0)


if __name__ == "__main__":
    main()
