"""A GPU against the CPU, and against itself. ``TEMPLAR_TEST_DEVICE=cpu`` runs the same without a GPU.

``TEMPLAR_TEST_FIGURES`` names a file for the differences that were seen, a line of JSON each.
"""

from __future__ import annotations

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import INNER, Node, tokens, write_theta
from templar_torch.engine import Engine, Options
from templar_torch.ranks import Ranks
from templar_torch.spec import ModelSpec
from templar_torch.tensors import TensorFile

DEVICE = os.environ.get("TEMPLAR_TEST_DEVICE", "cuda")
if DEVICE == "cuda" and not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

SPEC = ModelSpec(512, 256, 2, 4, 2, 704, 256, 10_000.0, 1e-5, False)
"""Heads of 64 elements and 256 positions, as the fast kernels need."""
TRAINING = dataclasses.replace(INNER, batch_sequences=8, micro_batch_sequences=4, lr=1e-3)
SPREAD = 0.05
STEPS = 4


def record(**figures: Any) -> None:
    if path := os.environ.get("TEMPLAR_TEST_FIGURES"):
        with open(path, "a") as file:
            file.write(json.dumps({"device": DEVICE, **figures}) + "\n")


def cosine(one: torch.Tensor, two: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(one.double().flatten(), two.double().flatten(), dim=0).item()


def one_step(path: Path, device: str) -> tuple[torch.Tensor, float, dict[str, torch.Tensor]]:
    """Losses of the sequences, norm of the gradient, and the gradients."""
    engine = Engine(SPEC, TRAINING, Options(device=device, compile=False), Ranks())
    engine.load(TensorFile(path))
    batch = tokens(1, sequences=8, model=SPEC)[0]
    losses = engine.evaluate(batch)
    engine._backward(engine._micro_batches(batch))
    gradients = dict(zip(engine.parameters, (gradient.cpu() for gradient in engine._gradients()), strict=True))
    engine.model.zero_grad(set_to_none=True)
    return losses, engine.step(batch, 0).grad_norm, gradients


@pytest.mark.parametrize(("dtype", "loss_max", "cosine_min"), [("float32", 1e-5, 0.99999), ("bfloat16", 2e-2, 0.999)])
def test_one_step_on_the_device_agrees_with_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, loss_max: float, cosine_min: float
) -> None:
    write_theta(tmp_path / "theta", SPEC, SPREAD)
    monkeypatch.setattr("templar_torch.engine.choose_dtype", lambda device: torch.float32)
    wide_losses, wide_norm, wide = one_step(tmp_path / "theta", "cpu")
    monkeypatch.setattr("templar_torch.engine.choose_dtype", lambda device: getattr(torch, dtype))
    losses, norm, gradients = one_step(tmp_path / "theta", DEVICE)
    worst = min(cosine(gradients[name], wide[name]) for name in wide)
    difference = (losses - wide_losses).abs().max().item()
    record(test="one step", dtype=dtype, loss_difference=difference, grad_norm_ratio=norm / wide_norm, cosine_min=worst)
    assert difference < loss_max and norm == pytest.approx(wide_norm, rel=loss_max)
    assert worst > cosine_min


def test_workers_agree_with_the_cpu_and_repeat(tmp_path: Path) -> None:
    """Four workers on the device, all of them compiled there, and one on the CPU, at the same time."""
    batches = tokens(STEPS, sequences=8, model=SPEC)
    plans = {
        "oracle": {"device": "cpu"}, "first": {"deterministic": True}, "second": {"deterministic": True},
        "fast": {}, "fast again": {},
    }

    def train(name: str) -> tuple[list[float], torch.Tensor]:
        folder = tmp_path / name
        folder.mkdir()
        write_theta(folder / "theta.safetensors", SPEC, SPREAD)
        node = Node(folder)
        try:
            node.configure(SPEC, TRAINING, **{"device": DEVICE, **plans[name]})
            messages = node.train(batches)
            assert messages[-1]["type"] == "trained", messages[-1]
            delta = node.flat_delta()
            assert node.end() == 0
        finally:
            node.process.kill()
            node.process.wait()
        return [message["loss"] for message in messages[:-1]], delta

    with ThreadPoolExecutor(len(plans)) as pool:
        results = dict(zip(plans, pool.map(train, plans), strict=True))
    repeats = results["first"][0] == results["second"][0] and torch.equal(results["first"][1], results["second"][1])
    cosines = {
        f"{one}, {two}": cosine(results[one][1], results[two][1])
        for one, two in (("oracle", "first"), ("oracle", "fast"), ("first", "fast"), ("fast", "fast again"))
    }
    apart = [abs(one - two) for one, two in zip(results["oracle"][0], results["first"][0], strict=True)]
    record(
        test="workers", steps=STEPS, deterministic_repeats=repeats, loss_differences=apart, cosines_of_delta=cosines,
        fast_repeats=torch.equal(results["fast"][1], results["fast again"][1]),
    )
    assert repeats
    assert max(apart) < 2e-2
    # Adam divides by the size of a gradient, which magnifies the rounding error of a tiny one.
    assert cosines["oracle, first"] > 0.97 and cosines["oracle, fast"] > 0.97 and cosines["fast, fast again"] > 0.98
