"""A tiny model, and a node reduced to what a test needs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from templar_torch.spec import InnerSpec, ModelSpec
from templar_torch.tensors import TensorFile, create

torch.set_num_threads(1)

MODEL = ModelSpec(
    vocab_size=32, hidden_size=16, layers=2, heads=4, kv_heads=2, ffn_size=24, seq_len=8, rope_theta=50.0,
    norm_eps=1e-5, tied_embeddings=False,
)
INNER = InnerSpec(
    steps=4, batch_sequences=3, micro_batch_sequences=2, lr=1e-2, beta1=0.9, beta2=0.95, epsilon=1e-8,
    weight_decay=0.1, clip_norm=1.0, warmup_steps=2, decay_steps=100, final_lr_fraction=0.1,
)


def tied(model: ModelSpec = MODEL) -> ModelSpec:
    return dataclasses.replace(model, tied_embeddings=True)


def write_theta(path: Path, model: ModelSpec, spread: float = 0.3) -> None:
    """Parameters far from θ₀, so that attention and gates are far from linear."""
    generator = torch.Generator().manual_seed(5)
    create(path, model.tensors(), torch.float32)
    for tensor in TensorFile(path, writable=True).tensors.values():
        centre = 1.0 if tensor.dim() == 1 else 0.0
        tensor.copy_(centre + spread * torch.randn(tensor.shape, generator=generator))


def tokens(count: int, sequences: int = 3, model: ModelSpec = MODEL) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    shape = (sequences, model.seq_len)
    return [torch.randint(model.vocab_size, shape, generator=generator) for _ in range(count)]


class Node:
    """Talks to a worker as ``docs/spec/worker.md`` specifies."""

    def __init__(self, folder: Path, ranks: int = 1, log: int | None = None) -> None:
        self.folder = folder
        launch = ["-m", "templar_torch"]
        if ranks > 1:
            run = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={ranks}"]
            launch = [*run, *launch]
        self.process = subprocess.Popen(
            [sys.executable, *launch],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=Path(__file__).parents[1],
        )
        self.version = 0

    def send(self, kind: str, /, **fields: Any) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"type": kind, **fields}).encode() + b"\n")
        self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout
        return json.loads(self.process.stdout.readline())

    def ask(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        self.send(kind, **fields)
        return self.receive()

    def configure(self, model: ModelSpec = MODEL, inner: InnerSpec = INNER, **options: Any) -> None:
        assert self.ask("hello", protocol=2)["protocol"] == 2
        options = {"device": "cpu", "threads": 1, **options}
        specs = {"model": dataclasses.asdict(model), "inner": dataclasses.asdict(inner)}
        answer = self.ask("configure", folder=str(self.folder), options=options, **specs)
        assert answer["type"] == "configured" and answer["parameters"] == model.parameters, answer

    def put_batches(self, batches: list[torch.Tensor]) -> None:
        shapes = {f"batch.{nth}": tuple(batch.shape) for nth, batch in enumerate(batches)}
        create(self.folder / "batches.safetensors", shapes, torch.int32)
        file = TensorFile(self.folder / "batches.safetensors", writable=True)
        for target, batch in zip(file.tensors.values(), batches, strict=True):
            target.copy_(batch)

    def train(
        self, batches: list[torch.Tensor], first_step: int = 0, stop_after: int = 99, moments: str = "carried"
    ) -> list[dict[str, Any]]:
        """The steps, and the last message."""
        self.put_batches(batches)
        self.version += 1
        messages = [self.ask("train", theta_version=self.version, first_step=first_step, moments=moments)]
        while messages[-1]["type"] == "step":
            messages.append(self.ask("stop" if len(messages) == stop_after else "continue"))
        return messages

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        file = TensorFile(self.folder / f"{name}.safetensors")
        return {name: tensor.clone() for name, tensor in file.tensors.items()}

    def flat_delta(self) -> torch.Tensor:
        return torch.cat([tensor.flatten() for tensor in self.tensors("delta").values()])

    def evaluate(self, batch: torch.Tensor) -> torch.Tensor:
        self.put_batches([batch])
        self.version += 1
        answer = self.ask("evaluate", theta_version=self.version)
        assert answer["type"] == "evaluated", answer
        return self.tensors("losses")["losses"]

    def end(self) -> int:
        """Ends the worker cleanly, or by closing its input if it no longer answers."""
        if self.process.poll() is None:
            self.send("shutdown")
        assert self.process.stdin
        code = self.process.wait(timeout=60)
        self.process.stdin.close()
        return code


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Callable[..., Node]]:
    """Makes nodes that share a folder with θ in it; what still runs at the end is killed."""
    nodes: list[Node] = []

    def make(ranks: int = 1, log: int | None = None) -> Node:
        nodes.append(Node(tmp_path, ranks, log))
        return nodes[-1]

    write_theta(tmp_path / "theta.safetensors", MODEL)
    yield make
    for one in nodes:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
