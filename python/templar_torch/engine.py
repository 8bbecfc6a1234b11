"""Inner steps and evaluations of one model, on one device or on the shards of several."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from . import flops
from .model import Llama
from .optim import AdamW, learning_rate, squared_norm
from .ranks import Ranks
from .spec import InnerSpec, ModelSpec
from .tensors import TensorFile


class NonFiniteStep(Exception):
    """Training diverged: the loss or the gradient of a step is not finite. Nothing of that step was done."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"the {what} of step {step} is not finite")
        self.step = step
        self.what = what


@dataclass(frozen=True)
class Options:
    """How to compute, which the node leaves to the machine."""

    device: str = "auto"
    threads: int | None = None
    offload_optimiser: bool = False
    checkpointing: bool | None = None
    """None: where the activations would not fit."""
    compile: bool | None = None
    """None: on GPUs."""
    deterministic: bool = True


@dataclass(frozen=True)
class StepStats:
    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens: int


@dataclass(frozen=True)
class MicroBatch:
    """The sequences of one forward pass."""

    rows: Tensor
    """Which sequences of the batch they are, on the host."""
    real: Tensor
    """Whether they count, or only fill up the pass; on the host."""
    tokens: Tensor
    weights: Tensor
    """Their weights in the mean over the batch."""


def choose_device(name: str, ranks: Ranks) -> torch.device:
    """``auto`` is the best there is; several ranks take one GPU each."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        device = torch.device("cuda", ranks.local if ranks.world > 1 else device.index or 0)
        torch.cuda.set_device(device)
    return device


def choose_dtype(device: torch.device) -> torch.dtype:
    """Precision of products; parameters, moments and the optimiser's work are f32 everywhere."""
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


class Engine:
    """A model with its optimiser. Every method is called on all ranks alike."""

    def __init__(self, model: ModelSpec, inner: InnerSpec, options: Options, ranks: Ranks) -> None:
        self.spec, self.inner, self.options, self.ranks = model, inner, options, ranks
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        if options.deterministic:
            # Where there is no deterministic algorithm, PyTorch warns: other last bits are better than a lost window.
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            # What cuBLAS wants for it.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self.device = choose_device(options.device, ranks)
        self.dtype = choose_dtype(self.device)
        self.compiled = self.device.type == "cuda" if options.compile is None else options.compile
        self.model = self._build()
        self.parameters = dict(self.model.named_parameters())
        assert list(self.parameters) == list(model.tensors()), "parameters are in canonical order"
        self.shards = [local(parameter.data) for parameter in self.parameters.values()]
        decays = [len(shape) > 1 for shape in model.tensors().values()]
        self.optimiser = AdamW(inner, self.shards, decays)
        self._meter = Meter(self)
        if options.offload_optimiser:
            self.optimiser.move("cpu")

    def _build(self) -> Llama:
        model = Llama(self.spec, self.dtype, self._checkpoints())
        if self.compiled:
            model.compile_parts()
        if self.ranks.world > 1:
            mesh = init_device_mesh(self.device.type, (self.ranks.world,))
            # The rotary tables are inputs too, and stay f32.
            policy = MixedPrecisionPolicy(self.dtype, torch.float32, cast_forward_inputs=False)
            for block in model.model.layers:
                fully_shard(block, mesh=mesh, mp_policy=policy)
            fully_shard(model, mesh=mesh, mp_policy=policy)
        model.materialise(self.device)
        return model

    def _checkpoints(self) -> bool:
        """Whether activations are computed again in the backward pass, because they would not fit beside the rest."""
        if self.options.checkpointing is not None or self.device.type != "cuda":
            return bool(self.options.checkpointing)
        spec, tokens = self.spec, self.inner.micro_batch_sequences * self.spec.seq_len
        blocks = 2 * tokens * spec.layers * (8 * spec.hidden_size + 4 * spec.ffn_size)
        logits = 12 * tokens * spec.vocab_size
        # f32 parameters, gradients and two moments, shared by the ranks; the weights in bf16.
        states = 16 * spec.parameters // self.ranks.world + 2 * spec.parameters
        return blocks + logits + states > 0.9 * torch.cuda.get_device_properties(self.device).total_memory

    def shard_of(self, full: Tensor) -> Tensor:
        """This rank's rows of a tensor: what FSDP gives it."""
        if self.ranks.world == 1:
            return full
        chunks = full.chunk(self.ranks.world)
        return chunks[self.ranks.rank] if self.ranks.rank < len(chunks) else full[:0]

    @torch.no_grad()
    def load(self, theta: TensorFile) -> None:
        """Takes over parameters."""
        theta.expect(self.spec.tensors())
        for name, shard in zip(self.parameters, self.shards, strict=True):
            shard.copy_(self.shard_of(theta.tensors[name]))

    @torch.no_grad()
    def write_delta(self, theta: TensorFile, delta: TensorFile) -> None:
        """θ_start − θ_end, each rank its rows."""
        for name, shard in zip(self.parameters, self.shards, strict=True):
            start = self.shard_of(theta.tensors[name])
            torch.sub(start, shard.cpu(), out=self.shard_of(delta.tensors[name]))

    def begin(self) -> None:
        """Before the steps of a job."""
        self._meter.begin()
        if self.options.offload_optimiser:
            self.optimiser.move(self.device)

    def end(self) -> None:
        """After the steps of a job, whatever came of them."""
        if self.options.offload_optimiser:
            self.optimiser.move("cpu")

    def stats(self) -> flops.EngineStats:
        """How fast the job was. Collective."""
        return self._meter.stats()

    def step(self, tokens_bt: Tensor, step: int) -> StepStats:
        """One update of the parameters."""
        started = time.perf_counter()
        sequences = tokens_bt.shape[0]
        losses_b = []
        micro_batches = self._micro_batches(tokens_bt)
        for micro in micro_batches:
            losses_b.append(self.model(micro.tokens))
            # FSDP takes the mean of the ranks' gradients; the weights make their sum the gradient.
            (losses_b[-1] * micro.weights).sum().mul(self.ranks.world).backward()
        loss = self._losses(sequences, micro_batches, losses_b).mean().item()
        gradients = self._gradients()
        squared = self.ranks.sum(squared_norm(gradients)).item()
        grad_norm = math.sqrt(squared) if math.isfinite(squared) else math.inf
        try:
            for value, what in ((loss, "loss"), (grad_norm, "gradient")):
                if not math.isfinite(value):
                    raise NonFiniteStep(step, what)
            lr = learning_rate(self.inner, step)
            clip = self.inner.clip_norm / grad_norm if grad_norm > self.inner.clip_norm else 1.0
            with torch.no_grad():
                self.optimiser.step(gradients, clip, lr)
        finally:
            self.model.zero_grad(set_to_none=True)
        flops.synchronise(self.device)
        self._meter.add(tokens_bt.numel(), tokens_bt.shape[1], time.perf_counter() - started)
        return StepStats(step, loss, grad_norm, lr, tokens_bt.numel())

    @torch.no_grad()
    def evaluate(self, tokens_bt: Tensor) -> Tensor:
        """Mean loss of each sequence: [B] in f64, on every rank."""
        micro_batches = self._micro_batches(tokens_bt)
        return self._losses(tokens_bt.shape[0], micro_batches, [self.model(micro.tokens) for micro in micro_batches])

    def _micro_batches(self, tokens_bt: Tensor) -> list[MicroBatch]:
        """What this rank computes of a batch, all of it on the device at once: tokens are few.

        All ranks make equally many passes. Passes are filled up with rows of weight 0, where several ranks or a compiled
        model want them alike.
        """
        sequences = tokens_bt.shape[0]
        micro = max(1, self.inner.micro_batch_sequences)
        share = -(-sequences // self.ranks.world)
        start = self.ranks.rank * share
        end = min(start + share, sequences)
        passes = -(-share // micro)
        rows = torch.arange(start, start + (passes * micro if self.compiled else share))
        weights = torch.where(rows < end, 1.0 / sequences, 0.0)
        rows = rows.clamp(max=sequences - 1)
        tokens_bt, on_device = tokens_bt[rows].to(self.device), weights.to(self.device)
        parts = (tensor.split(micro) for tensor in (rows, weights > 0, tokens_bt, on_device))
        return [MicroBatch(*part) for part in zip(*parts, strict=True)]

    def _losses(self, sequences: int, micro_batches: list[MicroBatch], losses_b: list[Tensor]) -> Tensor:
        """The loss of each sequence of the batch, by all ranks: [B] in f64. Waits for the device, once a batch."""
        losses = torch.zeros(sequences, dtype=torch.float64)
        for micro, part in zip(micro_batches, losses_b, strict=True):
            losses[micro.rows[micro.real]] = part.detach().cpu().double()[micro.real]
        return self.ranks.sum(losses)

    def _gradients(self) -> list[Tensor]:
        gradients = []
        for parameter, shard in zip(self.parameters.values(), self.shards, strict=True):
            gradient = parameter.grad
            gradients.append(torch.zeros_like(shard) if gradient is None else local(gradient))
        return gradients


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Meter:
    """Time and memory of a job."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._matmul: float | None = None
        self._steps, self._warm = 0, False
        self.begin()

    def begin(self) -> None:
        self._warm = self._warm or self._steps > 0
        self._tokens, self._flops, self._seconds, self._steps = 0, 0.0, 0.0, 0

    def add(self, tokens: int, sequence: int, seconds: float) -> None:
        """Counts a step. The first one of a process compiles: it counts only while there is no other."""
        if self._steps == 1 and not self._warm:
            self.begin()
        self._steps += 1
        self._tokens += tokens
        self._flops += tokens * flops.flops_per_token(self._engine.spec, sequence)
        self._seconds += seconds

    def stats(self) -> flops.EngineStats:
        engine, world = self._engine, self._engine.ranks.world
        if self._matmul is None:
            self._matmul = flops.matmul_flops_per_s(engine.device, engine.dtype)
        name = flops.device_name(engine.device)
        peak = flops.peak_flops_per_s(name)
        totals = engine.ranks.sum(torch.tensor([self._matmul], dtype=torch.float64))
        seconds = max(self._seconds, 1e-9)
        return flops.EngineStats(
            device=name if world == 1 else f"{world} × {name}",
            tokens_per_s=self._tokens / seconds,
            model_flops_per_s=self._flops / seconds,
            matmul_flops_per_s=totals.item(),
            peak_flops_per_s=None if peak is None else peak * world,
            peak_memory_bytes=flops.peak_memory_bytes(engine.device),
        )
