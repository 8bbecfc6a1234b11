"""Schedule, clipping, AdamW and Muon, with exactly the semantics of the node's built-in engine.

AdamW: θ ← θ − lr · (m̂ / (√v̂ + ε) + wd · θ), without decay for one-dimensional tensors (the norms); clipping by the global
norm; bias correction by a step count that continues from job to job.

Muon: m ← μ·m + (1 − μ)·g; θ ← (1 − lr·wd)·θ − lr·√max(1, rows / columns)·NS(μ·m + (1 − μ)·g), where NS brings all singular
values close to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from .ranks import Ranks
from .spec import InnerSpec

FUSED = ("cpu", "cuda", "mps")
"""Kinds of device on which AdamW is one kernel."""
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_ROUNDS = 5


def scheduled(inner: InnerSpec, peak: float, step: int) -> float:
    """Linear warm-up to ``peak``, cosine to ``peak · final_lr_fraction``, then constant; times what the run's anneal leaves.

    The rate at step 0 is not 0.
    """
    peak *= inner.anneal_share(step)
    if step < inner.warmup_steps:
        return peak * (step + 1) / inner.warmup_steps
    progress = min((step - inner.warmup_steps) / inner.decay_steps, 1.0)
    fraction = inner.final_lr_fraction + (1.0 - inner.final_lr_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return peak * fraction


def rates(inner: InnerSpec, step: int, seen: int) -> tuple[float, float]:
    """The rates of AdamW and of Muon at a global step, with moments that have seen ``seen`` steps: both follow the same
    schedule, and both rise over the first ``reset_warmup_steps`` after a reset."""
    warm = (seen + 1) / inner.reset_warmup_steps if seen < inner.reset_warmup_steps else 1.0
    return warm * scheduled(inner, inner.lr, step), warm * scheduled(inner, inner.muon_lr, step)


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

    def reset(self) -> None:
        """Forgets everything."""
        self.steps = 0
        for moment in (*self.first, *self.second):
            moment.zero_()

    def move(self, device: torch.device | str) -> None:
        """Moves the moments to host memory or back, to free the device's memory between windows."""
        self.first = [moment.to(device) for moment in self.first]
        self.second = [moment.to(device) for moment in self.second]


def newton_schulz(x: Tensor) -> Tensor:
    """A matrix with the singular vectors of ``x`` and all singular values near 1, by five rounds in f32.

    ``x`` may have any length. The short side comes first, so that the products of a round are small.
    """
    # MPS has no f64.
    norm = torch.linalg.vector_norm(x, dtype=torch.float32 if x.device.type == "mps" else torch.float64)
    if norm == 0:
        return torch.zeros_like(x)
    x = (x / norm).to(torch.float32)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_ROUNDS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if is_tall else x


class Muon:
    """Momentum of some matrices, or of one rank's rows of them. Each matrix is brought together on one rank for its update."""

    def __init__(
        self, inner: InnerSpec, tensors: Sequence[Tensor], shapes: Sequence[tuple[int, ...]], ranks: Ranks
    ) -> None:
        self.inner, self.ranks = inner, ranks
        self.tensors, self.shapes = list(tensors), list(shapes)
        self.momentum = [torch.zeros_like(tensor) for tensor in tensors]

    def step(self, gradients: Sequence[Tensor], scale: float, rate: float) -> None:
        """One step with the gradient ``scale · gradients``. Collective."""
        world = self.ranks.world
        for first in range(0, len(self.tensors), world):
            # As many matrices at a time as there are ranks, so that each rank has one to work on.
            group = range(first, min(first + world, len(self.tensors)))
            ahead = [self._look_ahead(nth, gradients[nth], scale) for nth in group]
            full = [
                self.ranks.gather(one, self.shapes[nth][0], nth - first) for nth, one in zip(group, ahead, strict=True)
            ]
            full = [newton_schulz(one) if nth - first == self.ranks.rank else one for nth, one in zip(group, full, strict=True)]
            for nth, one, shard in zip(group, full, ahead, strict=True):
                rows, columns = self.shapes[nth]
                update = self.ranks.scatter(one, shard, rows, nth - first)
                reach = rate * math.sqrt(max(1.0, rows / columns))
                self.tensors[nth].mul_(1.0 - rate * self.inner.muon_weight_decay).sub_(update, alpha=reach)

    def _look_ahead(self, nth: int, gradient: Tensor, scale: float) -> Tensor:
        keep = self.inner.muon_momentum
        gradient = gradient * scale * (1.0 - keep)
        self.momentum[nth].mul_(keep).add_(gradient)
        return gradient.add_(self.momentum[nth], alpha=keep)

    def reset(self) -> None:
        """Forgets everything."""
        for momentum in self.momentum:
            momentum.zero_()

    def move(self, device: torch.device | str) -> None:
        """As :meth:`AdamW.move`."""
        self.momentum = [momentum.to(device) for momentum in self.momentum]


class Optimiser:
    """The optimiser of a run: Muon for the matrices of the layers if the run says so, AdamW for everything else."""

    def __init__(
        self, inner: InnerSpec, shapes: Mapping[str, tuple[int, ...]], tensors: Sequence[Tensor], ranks: Ranks
    ) -> None:
        self.inner = inner
        of_muon = [inner.takes_muon(name, shape) for name, shape in shapes.items()]
        self._muon_at = [nth for nth, is_muon in enumerate(of_muon) if is_muon]
        self._adamw_at = [nth for nth, is_muon in enumerate(of_muon) if not is_muon]
        self._names, of_shape = list(shapes), list(shapes.values())
        self.muon = Muon(
            inner, [tensors[nth] for nth in self._muon_at], [of_shape[nth] for nth in self._muon_at], ranks
        )
        self.adamw = AdamW(
            inner, [tensors[nth] for nth in self._adamw_at], [len(of_shape[nth]) > 1 for nth in self._adamw_at]
        )

    @property
    def steps(self) -> int:
        """Steps since the moments were fresh."""
        return self.adamw.steps

    @steps.setter
    def steps(self, steps: int) -> None:
        self.adamw.steps = steps

    def step(self, gradients: Sequence[Tensor], scale: float, step: int) -> float:
        """One step with the gradient ``scale · gradients``, at this global step. Returns AdamW's rate. Collective."""
        lr, muon = rates(self.inner, step, self.steps)
        self.muon.step([gradients[nth] for nth in self._muon_at], scale, muon)
        self.adamw.step([gradients[nth] for nth in self._adamw_at], scale, lr)
        return lr

    def state(self) -> dict[str, tuple[str, Tensor]]:
        """The moments by their names in the protocol, each with the name of the tensor that it belongs to."""
        parts = (
            ("momentum", self._muon_at, self.muon.momentum),
            ("first", self._adamw_at, self.adamw.first),
            ("second", self._adamw_at, self.adamw.second),
        )
        return {
            f"{kind}.{self._names[nth]}": (self._names[nth], moment)
            for kind, places, moments in parts
            for nth, moment in zip(places, moments, strict=True)
        }

    def reset(self) -> None:
        """Makes all moments fresh."""
        self.muon.reset()
        self.adamw.reset()

    def move(self, device: torch.device | str) -> None:
        """Moves the moments to host memory or back, to free the device's memory between windows."""
        self.muon.move(device)
        self.adamw.move(device)
