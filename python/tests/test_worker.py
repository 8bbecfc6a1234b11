"""The protocol through real processes, alone and with two ranks."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import INNER, MODEL, Node, tokens, write_theta
from templar_torch.spec import InnerSpec

MakeNode = Callable[..., Node]


def test_jobs_repeat_stop_early_and_go_on_from_exported_state(node: MakeNode) -> None:
    one, two = node(), node()
    batches = tokens(4)
    one.configure()
    two.configure(offload_optimiser=True)
    whole = one.train(batches, first_step=0)
    assert [message["type"] for message in whole] == ["step"] * 4 + ["trained"] and whole[-1]["steps"] == 4
    assert whole[-1]["engine"]["tokens_per_s"] > 0 and whole[-1]["engine"]["peak_flops_per_s"] is None
    delta = one.flat_delta()
    # Two processes, one of which offloads its moments, do the same; the other stops after half of it.
    assert two.train(batches, first_step=0, stop_after=2)[-1]["steps"] == 2
    half = two.flat_delta()
    assert (half != delta).any()
    assert two.ask("export_state")["type"] == "exported"
    moments = two.tensors("state")
    assert all((tensor >= 0).all() for name, tensor in moments.items() if name.startswith("second."))
    # The first one takes over the other's state: from then on they agree.
    assert one.ask("import_state")["type"] == "imported"
    results = []
    for worker in (one, two):
        results.append((worker.train(batches[2:], first_step=2)[:-1], worker.flat_delta()))
    assert results[0][0] == results[1][0] and (results[0][1] == results[1][1]).all()
    assert one.end() == 0 and two.end() == 0


def test_two_ranks_do_what_one_does(node: MakeNode) -> None:
    alone, ranks = node(), node(ranks=2)
    batches = tokens(3, sequences=5)
    results = []
    for worker in (alone, ranks):
        worker.configure()
        losses = worker.evaluate(batches[0])
        steps = worker.train(batches, first_step=7)
        results.append((losses, steps, worker.flat_delta()))
        assert worker.ask("export_state")["type"] == "exported"
    assert losses.shape == (5,) and torch.allclose(results[0][0], results[1][0], atol=1e-6)
    for one, two in zip(results[0][1][:-1], results[1][1][:-1], strict=True):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-4) and one["lr"] == two["lr"]
    # Adam divides by the size of a gradient, which magnifies the rounding error of a tiny one.
    assert torch.allclose(results[0][2], results[1][2], atol=2e-4)
    # The state of two ranks continues on one, however it was sharded.
    assert alone.ask("import_state")["type"] == "imported"
    finals = []
    for worker in (alone, ranks):
        worker.train(batches, first_step=10)
        finals.append(worker.flat_delta())
    assert torch.allclose(*finals, atol=2e-4)
    assert [worker.end() for worker in (alone, ranks)] == [0, 0]


MUON = dataclasses.replace(INNER, optimiser="muon", reset_warmup_steps=2)


@pytest.mark.parametrize("inner", [INNER, MUON])
def test_a_job_from_fresh_moments_is_that_of_a_new_worker(node: MakeNode, inner: InnerSpec) -> None:
    old, new = node(), node(ranks=2)
    for worker in (old, new):
        worker.configure(inner=inner, offload_optimiser=worker is old)
    batches = tokens(3)
    old.train(batches)
    carried = old.train(batches), old.flat_delta()
    fresh = old.train(batches, moments="fresh"), old.flat_delta()
    first = new.train(batches), new.flat_delta()
    assert torch.allclose(fresh[1], first[1], atol=2e-4) and not torch.allclose(carried[1], fresh[1], atol=2e-4)
    rates = [message["lr"] for message in fresh[0][:-1]]
    assert rates == [message["lr"] for message in first[0][:-1]]
    # The warm-up of the run, of two steps, and that after a reset.
    warm = (0.5, 1.0) if inner is MUON else (1.0, 1.0)
    assert rates[:2] == pytest.approx([0.5 * inner.lr * warm[0], inner.lr * warm[1]])
    assert [worker.end() for worker in (old, new)] == [0, 0]


def test_ranks_share_muon_and_its_state_moves_between_them(node: MakeNode) -> None:
    alone, ranks = node(), node(ranks=2)
    batches = tokens(3, sequences=5)
    deltas = []
    for worker in (alone, ranks):
        worker.configure(inner=MUON)
        worker.train(batches, first_step=7)
        deltas.append(worker.flat_delta())
        assert worker.ask("export_state")["type"] == "exported"
    assert torch.allclose(*deltas, atol=2e-4)
    state = worker.tensors("state")
    matrix, norm = "model.layers.0.mlp.up_proj.weight", "model.norm.weight"
    assert {f"momentum.{matrix}", f"first.{norm}", f"second.{norm}"} < set(state) and f"first.{matrix}" not in state
    assert alone.ask("import_state")["type"] == "imported"
    finals = []
    for worker in (alone, ranks):
        worker.train(batches, first_step=10)
        finals.append(worker.flat_delta())
    assert torch.allclose(*finals, atol=2e-4) and not torch.allclose(finals[0], deltas[0], atol=2e-4)
    assert [worker.end() for worker in (alone, ranks)] == [0, 0]


def test_divergence_is_reported_and_leaves_the_worker_usable(node: MakeNode) -> None:
    worker = node()
    worker.configure()
    good = (worker.folder / "theta.safetensors").read_bytes()
    write_theta(worker.folder / "theta.safetensors", MODEL, spread=1e18)
    assert worker.train(tokens(2), first_step=41) == [
        {"type": "failed", "kind": "non_finite_step", "step": 41, "what": "loss"}
    ]
    worker.put_batches(tokens(1))
    failed = worker.ask("evaluate", theta_version=99)
    assert failed == {"type": "failed", "kind": "non_finite_loss", "sequence": 0}
    (worker.folder / "theta.safetensors").write_bytes(good)
    assert worker.train(tokens(2))[-1]["type"] == "trained"
    assert worker.end() == 0


@pytest.mark.parametrize("line", [b"gibberish\n", b'{"type": "train"}\n', b"{" * 70_000 + b"\n"])
def test_nonsense_ends_the_worker_with_a_reason(node: MakeNode, line: bytes) -> None:
    worker = node()
    assert worker.ask("hello", protocol=2)["type"] == "hello"
    assert worker.process.stdin
    worker.process.stdin.write(line)
    worker.process.stdin.flush()
    answer = worker.receive()
    assert (answer["type"], answer["kind"]) == ("failed", "internal") and answer["why"]
    assert worker.process.wait(timeout=30) == 1


def test_another_protocol_is_refused_and_ctrl_c_is_not_for_workers(node: MakeNode) -> None:
    old, new = node(), node()
    assert old.ask("hello", protocol=1)["protocol"] == 2
    assert old.receive()["kind"] == "internal" and old.process.wait(timeout=30) == 1
    assert new.ask("hello", protocol=2)["type"] == "hello"
    new.process.send_signal(signal.SIGINT)
    assert new.end() == 0


def test_a_node_that_is_gone_leaves_no_files_in_memory(node: MakeNode) -> None:
    worker = node()
    worker.configure()
    worker.evaluate(tokens(1)[0])
    assert len(list(worker.folder.iterdir())) == 3 and worker.process.stdin
    worker.process.stdin.close()
    assert worker.process.wait(timeout=60) == 1
    assert not worker.folder.exists()


@pytest.mark.parametrize("is_killed", [True, False])
def test_no_rank_outlives_its_node_or_its_launcher(node: MakeNode, is_killed: bool) -> None:
    orphan = node(ranks=2, log=subprocess.PIPE)
    assert orphan.ask("hello", protocol=2)["type"] == "hello"
    assert orphan.process.stdin and orphan.process.stderr
    if is_killed:
        orphan.process.kill()
    else:
        orphan.process.stdin.close()
    # The log ends when no rank holds it any more.
    thread = threading.Thread(target=orphan.process.stderr.read)
    thread.start()
    thread.join(timeout=60)
    assert not thread.is_alive()
    assert orphan.process.wait(timeout=60) != 0


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ranks notice it themselves")
def test_a_rank_that_cannot_run_ends_with_its_launcher(node: MakeNode) -> None:
    orphan = node(ranks=2, log=subprocess.PIPE)
    orphan.configure()
    assert orphan.process.stderr
    ranks = Path(f"/proc/{orphan.process.pid}/task/{orphan.process.pid}/children").read_text().split()
    assert len(ranks) == 2
    for rank in ranks:
        os.kill(int(rank), signal.SIGSTOP)
    orphan.process.kill()
    # The log ends when no rank holds it any more.
    thread = threading.Thread(target=orphan.process.stderr.read, daemon=True)
    thread.start()
    thread.join(timeout=30)
    is_over = not thread.is_alive()
    for rank in ranks:
        if Path(f"/proc/{rank}").exists():
            os.kill(int(rank), signal.SIGKILL)
    assert is_over
