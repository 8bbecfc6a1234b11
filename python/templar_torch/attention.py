"""Which of PyTorch's implementations of attention a device uses."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .spec import ModelSpec


def choose(spec: ModelSpec, device: torch.device, dtype: torch.dtype, deterministic: bool) -> list[SDPBackend]:
    """The implementations that work for this model, the best first; none where PyTorch has only one to choose from."""
    if device.type != "cuda":
        return []
    order = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    if not deterministic:
        # It sums gradients in any order. PyTorch's own choice on Hopper differs between versions.
        order.insert(0 if torch.cuda.get_device_capability(device) >= (9, 0) else 1, SDPBackend.CUDNN_ATTENTION)
    chosen = []
    for backend in order:
        # A library can accept a shape and still fail to find a kernel, which would end a job.
        why = failure(spec, device, dtype, backend)
        if why is None:
            chosen.append(backend)
        elif dtype != torch.float32:
            print(f"attention: {backend.name} does not work here: {why}", file=sys.stderr, flush=True)
    return [*chosen, SDPBackend.MATH]


def using(backends: Sequence[SDPBackend]) -> contextlib.AbstractContextManager[None]:
    """A context in which attention takes the first of these implementations that supports its shapes."""
    return sdpa_kernel(list(backends), set_priority=True) if backends else contextlib.nullcontext()


def inputs(spec: ModelSpec, sequences: int, device: torch.device, dtype: torch.dtype) -> list[torch.Tensor]:
    """Random queries, keys and values, in the layout of the model's."""
    shapes = [(sequences, spec.seq_len, heads, spec.head_dim) for heads in (spec.heads, spec.kv_heads, spec.kv_heads)]
    drawn = (torch.randn(shape, device=device, dtype=dtype) for shape in shapes)
    return [tensor.transpose(1, 2).requires_grad_() for tensor in drawn]


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Causal attention in which several heads may share a key and a value."""
    shared = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=shared)


def failure(spec: ModelSpec, device: torch.device, dtype: torch.dtype, backend: SDPBackend) -> str | None:
    """Why an implementation cannot compute one sequence and its gradients; None if it can."""
    try:
        with sdpa_kernel(backend):
            mixed = attend(*inputs(spec, 1, device, dtype))
            mixed.sum().backward()
            return None if mixed.isfinite().all().item() else "its results are not finite"
    except RuntimeError as error:
        return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
