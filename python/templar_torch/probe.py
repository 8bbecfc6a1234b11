"""What a device can do at most: ``python -m templar_torch.probe`` prints lines of JSON.

The device, the rate of copies in its memory, of adding gradients, of a matrix product, and of each kind of attention.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import attention, flops
from .bench import PRESETS
from .engine import choose_device, choose_dtype
from .ranks import Ranks

COPY_BYTES = 4 << 30


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m templar_torch.probe", description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--preset", choices=PRESETS, nargs="*", default=["1b", "7b"], help="whose attention to measure")
    args = parser.parse_args()
    device = choose_device(args.device, Ranks())
    say(about(device))
    say({"copy_bytes_per_s": attempt(lambda: copy_bytes_per_s(device))})
    say({"accumulation_bytes_per_s": attempt(lambda: accumulation_bytes_per_s(device))})
    say({"matmul_flops_per_s": attempt(lambda: flops.matmul_flops_per_s(device, choose_dtype(device)))})
    backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION] if device.type == "cuda" else [SDPBackend.MATH]
    for preset in args.preset:
        for backend in backends:
            rate = attempt(lambda backend=backend, preset=preset: attention_flops_per_s(preset, backend, device))
            say({"attention": backend.name, "preset": preset, "flops_per_s": rate})


def say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def attempt(measure: Callable[[], float]) -> float | str:
    """A measurement, or why there is none."""
    try:
        return float(f"{measure():.4g}")
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]


def about(device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {"device": flops.device_name(device), "torch": torch.__version__, "memory_bytes": None}
    if device.type == "cuda":
        found |= {
            "memory_bytes": torch.cuda.get_device_properties(device).total_memory, "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(), "capability": torch.cuda.get_device_capability(device),
        }
    return found


def median_s(work: Callable[[], object], device: torch.device) -> float:
    """The median of ten times, after three that do not count."""
    times = []
    for _ in range(13):
        flops.synchronise(device)
        started = time.perf_counter()
        work()
        flops.synchronise(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[3:])


def copy_bytes_per_s(device: torch.device) -> float:
    """Bytes read and bytes written."""
    size = COPY_BYTES if device.type == "cuda" else COPY_BYTES >> 6
    source, target = (torch.empty(size, dtype=torch.uint8, device=device).fill_(nth) for nth in range(2))
    return 2 * size / median_s(lambda: target.copy_(source), device)


def accumulation_bytes_per_s(device: torch.device) -> float:
    """Adding a pass's gradient in bf16 to the step's in f32: 10 bytes per parameter. At best as fast as copies."""
    size = COPY_BYTES >> (5 if device.type == "cuda" else 9)
    total, part = torch.zeros(size, device=device), torch.ones(size, dtype=torch.bfloat16, device=device)
    return 10 * size / median_s(lambda: total.add_(part), device)


def attention_flops_per_s(preset: str, backend: SDPBackend, device: torch.device) -> float:
    """Forward and backward, counted causally as in :func:`templar_torch.flops.flops_per_token`."""
    spec, _, sequences = PRESETS[preset]
    query, key, value = attention.inputs(spec, sequences, device, choose_dtype(device))

    def work() -> None:
        with sdpa_kernel(backend):
            mixed = attention.attend(query, key, value)
            mixed.backward(torch.ones_like(mixed))

    return 6.0 * sequences * spec.seq_len**2 * spec.hidden_size / median_s(work, device)


if __name__ == "__main__":
    main()
