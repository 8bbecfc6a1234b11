"""Schedule, clipping and AdamW, with exactly the semantics of the node's built-in engine.

θ ← θ − lr · (m̂ / (√v̂ + ε) + wd · θ), without decay for one-dimensional tensors (the norms); clipping by the global norm;
bias correction by a step count that continues from job to job.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from .spec import InnerSpec

FUSED = ("cpu", "cuda", "mps")
"""Kinds of device on which AdamW is one kernel."""


def learning_rate(inner: InnerSpec, step: int) -> float:
    """Linear warm-up to ``lr``, cosine to ``lr · final_lr_fraction``, then constant. The rate at step 0 is not 0."""
    if step < inner.warmup_steps:
        return inner.lr * (step + 1) / inner.warmup_steps
    progress = min((step - inner.warmup_steps) / inner.decay_steps, 1.0)
    fraction = inner.final_lr_fraction + (1.0 - inner.final_lr_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return inner.lr * fraction


def squared_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Sum of squares in f64; MPS, which has no f64, sums in f32."""
    dtype = torch.float32 if gradients[0].device.type == "mps" else torch.float64
    norms = [torch.linalg.vector_norm(gradient, dtype=dtype) for gradient in gradients]
    return torch.stack(norms).square().sum()


class AdamW:
    """Moments of some tensors, or of one rank's shards of them."""

    def __init__(self, inner: InnerSpec, tensors: Sequence[Tensor], decays: Sequence[bool]) -> None:
        self.inner = inner
        self.tensors = list(tensors)
        self.decays = list(decays)
        self.steps = 0
        self.first = [torch.zeros_like(tensor) for tensor in tensors]
        self.second = [torch.zeros_like(tensor) for tensor in tensors]

    def step(self, gradients: Sequence[Tensor], scale: float, lr: float) -> None:
        """One step with the gradient ``scale · gradients``. It may overwrite ``gradients``."""
        device = self.tensors[0].device
        fused = device.type in FUSED
        if scale != 1.0 and not fused:
            torch._foreach_mul_(list(gradients), scale)
        inverse = torch.tensor(1.0 / scale, device=device) if scale != 1.0 and fused else None
        for decays in (True, False):
            # A rank's shard of a small tensor can be empty.
            chosen = [
                nth for nth, tensor in enumerate(self.tensors) if self.decays[nth] == decays and tensor.numel() > 0
            ]
            if not chosen:
                continue
            adamw(
                [self.tensors[nth] for nth in chosen],
                [gradients[nth] for nth in chosen],
                [self.first[nth] for nth in chosen],
                [self.second[nth] for nth in chosen],
                [],
                # Each tensor has its own step count, which the kernel increases.
                list(torch.full((len(chosen),), float(self.steps), device=device if fused else "cpu").unbind()),
                foreach=None if fused else False,
                fused=fused,
                grad_scale=inverse,
                amsgrad=False,
                beta1=self.inner.beta1,
                beta2=self.inner.beta2,
                lr=lr,
                weight_decay=self.inner.weight_decay if decays else 0.0,
                eps=self.inner.epsilon,
                maximize=False,
            )
        self.steps += 1

    def move(self, device: torch.device | str) -> None:
        """Moves the moments to host memory or back, to free the device's memory between windows."""
        self.first = [moment.to(device) for moment in self.first]
        self.second = [moment.to(device) for moment in self.second]
