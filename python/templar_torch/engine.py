"""Inner steps and evaluations of one model, on one device or sharded over several."""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from . import attention, flops
from .model import Linear, Llama
from .optim import Optimiser, squared_norm
from .ranks import Ranks
from .spec import InnerSpec, ModelSpec
from .tensors import TensorFile


class NonFiniteStep(Exception):
    """Training diverged: the loss or the gradient of a step is not finite. The step was not applied."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"the {what} of step {step} is not finite")
        self.step = step
        self.what = what


@dataclass(frozen=True)
class Options:
    """How to compute: choices that the node leaves to the machine."""

    device: str = "auto"
    threads: int | None = None
    offload_optimiser: bool = False
    checkpointing: bool | None = None
    """True for all layers, False for none; None for as many as needed for the activations to fit."""
    compile: bool | None = None
    """None: only on GPUs."""
    deterministic: bool = False
    """The same bits each time, on GPUs too, whose fastest attention sums gradients in any order."""


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
    """Whether each row counts, or only fills up the pass; on the host."""
    tokens: Tensor
    weights: Tensor
    """Their weights in the mean over the batch."""


def choose_device(name: str, ranks: Ranks) -> torch.device:
    """``auto`` is the best available device; several ranks take one GPU each."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        device = torch.device("cuda", ranks.local if ranks.world > 1 else device.index or 0)
        torch.cuda.set_device(device)
    return device


def choose_dtype(device: torch.device) -> torch.dtype:
    """Precision of products; parameters, moments and the optimiser's arithmetic are f32 everywhere."""
    return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


class Engine:
    """A model with its optimiser. Every method must be called on all ranks."""

    def __init__(self, model: ModelSpec, inner: InnerSpec, options: Options, ranks: Ranks) -> None:
        self.spec, self.inner, self.options, self.ranks = model, inner, options, ranks
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        if options.deterministic:
            # With warn_only, attention would use a non-deterministic algorithm although a deterministic one exists.
            torch.use_deterministic_algorithms(True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            # Compiled kernels must not be chosen by their measured speed.
            import torch._inductor.config as inductor

            inductor.deterministic = True
            # cuBLAS requires this for determinism.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        self.device = choose_device(options.device, ranks)
        self.dtype = choose_dtype(self.device)
        self.compiled = self.device.type == "cuda" if options.compile is None else options.compile
        self.attention = attention.choose(model, self.device, self.dtype, options.deterministic)
        self.model = self._build()
        self.parameters = dict(self.model.named_parameters())
        assert list(self.parameters) == list(model.tensors()), "parameters are in canonical order"
        self.shards = [local(parameter.data) for parameter in self.parameters.values()]
        narrow = ranks.world == 1 and self.dtype != torch.float32
        self._narrow = [module for module in self.model.modules() if narrow and isinstance(module, Linear)]
        """Modules with weights in the precision of products beside those in f32; FSDP does this itself."""
        self._meter = Meter(self)

    @cached_property
    def optimiser(self) -> Optimiser:
        """The moments, created when they are needed: a validator only evaluates."""
        optimiser = Optimiser(self.inner, self.spec.tensors(), self.shards, self.ranks)
        if self.options.offload_optimiser:
            optimiser.move("cpu")
        return optimiser

    def _build(self) -> Llama:
        model = Llama(self.spec, self.dtype, self._checkpointed(), self.inner.z_loss)
        if self.compiled:
            model.compile_parts()
        if self.ranks.world > 1:
            mesh = init_device_mesh(self.device.type, (self.ranks.world,))
            # The rotary tables are inputs too, and must stay f32.
            policy = MixedPrecisionPolicy(self.dtype, torch.float32, cast_forward_inputs=False)
            for block in model.model.layers:
                fully_shard(block, mesh=mesh, mp_policy=policy)
            fully_shard(model, mesh=mesh, mp_policy=policy)
        model.materialise(self.device)
        return model

    def _checkpointed(self) -> int:
        """How many layers recompute their activations in the backward pass, because they would not fit."""
        if self.options.checkpointing is not None or self.device.type != "cuda":
            return self.spec.layers if self.options.checkpointing else 0
        memory = torch.cuda.get_device_properties(self.device).total_memory
        return checkpointed_layers(self.spec, self.inner, self.ranks.world, self.compiled, memory)

    def shard_of(self, full: Tensor) -> Tensor:
        """This rank's rows of a tensor, as FSDP shards it."""
        if self.ranks.world == 1:
            return full
        chunks = full.chunk(self.ranks.world)
        return chunks[self.ranks.rank] if self.ranks.rank < len(chunks) else full[:0]

    @torch.no_grad()
    def load(self, theta: TensorFile) -> None:
        """Takes over the parameters in ``theta``."""
        theta.expect(self.spec.tensors())
        for name, shard in zip(self.parameters, self.shards, strict=True):
            shard.copy_(self.shard_of(theta.tensors[name]))
        self.refresh()

    def refresh(self) -> None:
        """To be called after the parameters have changed, or when gradients were left over."""
        for module in self._narrow:
            module.refresh(self.dtype)

    @torch.no_grad()
    def write_delta(self, theta: TensorFile, delta: TensorFile) -> None:
        """Writes θ_start − θ_end; each rank writes its own rows."""
        for name, shard in zip(self.parameters, self.shards, strict=True):
            start = self.shard_of(theta.tensors[name])
            torch.sub(start, shard.cpu(), out=self.shard_of(delta.tensors[name]))

    def begin(self, moments: str = "carried") -> None:
        """To be called before the steps of a job, which start from the last job's moments, or from ``fresh`` ones."""
        self._meter.begin()
        # Moments take precedence over activations, which can manage with less memory.
        optimiser = self.optimiser
        if self.options.offload_optimiser:
            optimiser.move(self.device)
        if moments == "fresh":
            optimiser.reset()

    def end(self) -> None:
        """To be called after the steps of a job, even if they failed."""
        if self.options.offload_optimiser:
            self.optimiser.move("cpu")

    def stats(self) -> flops.EngineStats:
        """How fast the job was. Collective."""
        return self._meter.stats()

    def step(self, tokens_bt: Tensor, step: int) -> StepStats:
        """One update of the parameters."""
        started = time.perf_counter()
        micro_batches = self._micro_batches(tokens_bt)
        losses_b = self._backward(micro_batches)
        loss = self._losses(tokens_bt.shape[0], micro_batches, losses_b).mean().item()
        gradients = self._gradients()
        squared = self.ranks.sum(squared_norm(gradients)).item()
        grad_norm = math.sqrt(squared) if math.isfinite(squared) else math.inf
        try:
            for value, what in ((loss, "loss"), (grad_norm, "gradient")):
                if not math.isfinite(value):
                    raise NonFiniteStep(step, what)
            clip = self.inner.clip_norm / grad_norm if grad_norm > self.inner.clip_norm else 1.0
            with torch.no_grad():
                lr = self.optimiser.step(gradients, clip, step)
            self.refresh()
        finally:
            self.model.zero_grad(set_to_none=True)
        flops.synchronise(self.device)
        self._meter.add(tokens_bt.numel(), tokens_bt.shape[1], time.perf_counter() - started)
        return StepStats(step, loss, grad_norm, lr, tokens_bt.numel())

    def _backward(self, micro_batches: list[MicroBatch]) -> list[Tensor]:
        """Returns the losses of all passes and leaves their gradients in the parameters."""
        while True:
            try:
                return [self._pass(micro) for micro in micro_batches]
            except torch.OutOfMemoryError:
                # With several ranks, the others would wait for this one forever.
                if self.model.checkpointed == self.spec.layers or self.ranks.world > 1:
                    raise
            # Outside the handler, which keeps the pass's tensors in memory.
            self._checkpoint_more()

    def _pass(self, micro: MicroBatch) -> Tensor:
        with attention.using(self.attention):
            losses_b = self.model(micro.tokens)
            # FSDP takes the mean of the ranks' gradients; the weights make their sum the gradient.
            (losses_b * micro.weights).sum().mul(self.ranks.world).backward()
        return losses_b.detach()

    def _checkpoint_more(self) -> None:
        """Before a step begins again: makes a quarter more of the layers compute their activations twice."""
        self.model.zero_grad(set_to_none=True)
        self.refresh()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        layers = self.spec.layers
        self.model.checkpointed = min(layers, self.model.checkpointed + math.ceil(layers / 4))
        text = f"out of memory: from now on {self.model.checkpointed} of {layers} layers compute their activations twice"
        print(text, file=sys.stderr, flush=True)

    @torch.no_grad()
    def evaluate(self, tokens_bt: Tensor) -> Tensor:
        """Mean loss of each sequence: [B] in f64, on every rank."""
        micro_batches = self._micro_batches(tokens_bt)
        with attention.using(self.attention):
            losses_b = [self.model(micro.tokens) for micro in micro_batches]
        return self._losses(tokens_bt.shape[0], micro_batches, losses_b)

    def _micro_batches(self, tokens_bt: Tensor) -> list[MicroBatch]:
        """The part of a batch that this rank computes, on the device all at once: tokens take little memory.

        All ranks run the same number of passes. Rows of weight 0 fill up passes where several ranks or a compiled model
        need equal shapes.
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
        """The loss of each sequence of the batch, over all ranks: [B] in f64. Waits for the device once per batch."""
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


def checkpointed_layers(spec: ModelSpec, inner: InnerSpec, world: int, compiled: bool, memory: int) -> int:
    """How many layers must recompute their activations, for everything to fit in ``memory`` bytes per rank."""
    tokens = inner.micro_batch_sequences * spec.seq_len
    # f32 parameters, gradients and two moments, sharded over the ranks; and the weights in bf16, which FSDP holds only
    # for some layers.
    states = 16 * spec.parameters // world + 2 * spec.parameters
    logits = 12 * tokens * spec.vocab_size
    per_layer, again = tokens * activation_bytes(spec, compiled), tokens * 2 * spec.hidden_size
    # A layer in the middle of its backward pass holds its activations, and gradients of about the same size.
    missing = spec.layers * per_layer + per_layer + logits + states - int(0.95 * memory)
    return min(spec.layers, max(0, -(-missing // (per_layer - again))))


def activation_bytes(spec: ModelSpec, compiled: bool) -> int:
    """Bytes that a layer keeps per token for its backward pass, in bf16.

    A compiled layer keeps no f32, nor what is cheap to recompute.
    """
    hidden, ffn = (8, 3) if compiled else (16, 4)
    if spec.qk_norm:
        # Queries and keys before their norms and, in f32, on the way through them.
        hidden += 2 if compiled else 8
    return 2 * (hidden * spec.hidden_size + ffn * spec.ffn_size)


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds."""
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
        """Counts a step. The first step of a process compiles, so it counts only while there is no other."""
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
