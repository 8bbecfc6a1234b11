"""How much of the device training uses: model FLOPs utilisation, and the actual speed of a matrix product."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass

import torch

from .spec import ModelSpec

PEAKS = (
    # Dense bf16 with f32 accumulation, FLOP/s, from the makers' data sheets; the first name that fits counts.
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H200 NVL", 835e12),
    ("H100", 989e12),
    ("H200", 989e12),
    ("GH200", 989e12),
    ("GB200", 2500e12),
    ("B200", 2250e12),
    ("A100", 312e12),
    ("L40S", 362e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71e12),
    ("MI325X", 1307.4e12),
    ("MI300X", 1307.4e12),
)


@dataclass(frozen=True)
class EngineStats:
    """What a job reports about the engine. Rates cover the whole worker, all its devices together."""

    device: str
    """Name of the device, and how many of them."""
    tokens_per_s: float
    model_flops_per_s: float
    """FLOP/s that the model needs, however much more was computed (checkpointing)."""
    matmul_flops_per_s: float
    """FLOP/s of a plain matrix product in the same precision, measured in this process."""
    peak_flops_per_s: float | None
    """From the data sheet; None for CPUs and unknown devices."""
    peak_memory_bytes: int
    """Largest memory in use on one device; on CPUs, that of the process."""

    def json(self) -> dict[str, object]:
        return asdict(self)


def flops_per_token(spec: ModelSpec, sequence: int) -> float:
    """6·(P − P of the input embedding) + 6·L·d·s: forward and backward, attention counted causally.

    A tied embedding is also the output projection, so it stays in P.
    """
    lookup = 0 if spec.tied_embeddings else spec.vocab_size * spec.hidden_size
    return 6.0 * (spec.parameters - lookup) + 6.0 * spec.layers * spec.hidden_size * sequence


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type


def peak_flops_per_s(name: str) -> float | None:
    return next((peak for part, peak in PEAKS if part in name), None)


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype) -> float:
    """The best of a few square products, measured for about a second on any device."""
    size = 1024 if device.type == "cpu" else 8192
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, started = float("inf"), time.perf_counter()
    for nth in range(12):
        synchronise(device)
        start = time.perf_counter()
        torch.mm(a, b)
        synchronise(device)
        end = time.perf_counter()
        best = min(best, end - start) if nth > 0 else best
        if nth > 1 and end - started > 1.0:
            break
    return 2.0 * size**3 / best


def synchronise(device: torch.device) -> None:
    """Waits for the device, so that a clock means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
