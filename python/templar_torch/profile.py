"""Which kernels the time of a step goes to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

COMPILED = "compiled elementwise and reductions"
KINDS = (
    # Parts of kernels' names; the first kind that fits counts. A compiled kernel is named after the operations around
    # it too, and attention is built from matrix products.
    ("matmul", ("triton_tem",)),
    (COMPILED, ("triton_", "cpp_fused")),
    ("attention", ("sdpa", "flash", "fmha", "attention")),
    ("optimiser", ("adam",)),
    ("communication", ("nccl", "rccl", "c10d", "gloo")),
    ("matmul", ("gemm", "nvjet", "cutlass", "aten::mm", "aten::addmm", "aten::bmm", "splitk")),
    ("copies", ("memcpy", "memset", "aten::copy_")),
)
OTHER = "other elementwise and reductions"
SHOWN = 15
"""Kernels in the result."""
NAME_MAX = 120


def kind(name: str) -> str:
    lower = name.lower()
    return next((kind for kind, parts in KINDS if any(part in lower for part in parts)), OTHER)


def of(step: Callable[[], float], device: torch.device) -> dict[str, Any]:
    """The shares of one step's time, which ``step`` returns, and its longest kernels. A failure is a result too."""
    try:
        return _measured(step, device)
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"[:500]}


def _measured(step: Callable[[], float], device: torch.device) -> dict[str, Any]:
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        wall_s = step()
    kernels: list[tuple[float, int, str]] = []
    for event in profiler.key_averages():
        seconds = (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
        wanted = event.device_type == (DeviceType.CUDA if on_gpu else DeviceType.CPU)
        # Regions that libraries mark are not kernels.
        marked = getattr(event, "is_user_annotation", False) or event.key.startswith(("##", "Torch-", "ProfilerStep"))
        if wanted and not marked and seconds > 0:
            kernels.append((seconds, event.count, event.key))
    kernels.sort(reverse=True)
    busy_s = sum(seconds for seconds, _, _ in kernels)
    kinds: dict[str, float] = defaultdict(float)
    for seconds, _, name in kernels:
        kinds[kind(name)] += seconds
    return {
        "step_s": round(wall_s, 4), "kernels_s": round(busy_s, 4), "kernels": sum(count for _, count, _ in kernels),
        "share_of_step": {name: round(seconds / wall_s, 4) for name, seconds in sorted(kinds.items())},
        "longest": [
            {"share": round(seconds / wall_s, 4), "count": count, "kind": kind(name), "name": name[:NAME_MAX]}
            for seconds, count, name in kernels[:SHOWN]
        ],
    }
