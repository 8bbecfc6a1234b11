"""The worker's side of ``docs/spec/worker.md``: lines of JSON on standard input and output, tensors in shared files."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NoReturn

import torch

from . import __version__
from .engine import Engine, NonFiniteStep, Options
from .ranks import Ranks
from .spec import InnerSpec, ModelSpec, read
from .tensors import TensorFile, create

PROTOCOL = 2
LINE_BYTES_MAX = 1 << 16
TEXT_MAX = 2000
"""Characters of an explanation."""
FILES = ("theta", "batches", "delta", "losses", "state")
PR_SET_PDEATHSIG = 1
ORPHAN_S = 1.0
"""How often a rank checks whether its parent is still alive, in seconds."""

Message = dict[str, Any]


class Refused(Exception):
    """A message that this worker cannot act on."""


def clear(folder: Path) -> None:
    """Removes the protocol's files, and the folder if it is then empty."""
    with contextlib.suppress(OSError):
        for name in FILES:
            (folder / f"{name}.safetensors").unlink(missing_ok=True)
        folder.rmdir()


class Lines:
    """One JSON object per line, in both directions. Ends the process when the node's end of the pipe closes."""

    def __init__(self, source: int, target: int) -> None:
        self._source = os.fdopen(source, "rb")
        self._target = target
        self._queue: queue.Queue[bytes] = queue.Queue()
        self.folder: Path | None = None
        """The folder to clear when the node is gone: memory that nothing else would free."""
        # A separate thread, so that a worker in the middle of a step notices that its node is gone.
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while line := self._source.readline(LINE_BYTES_MAX + 1):
            self._queue.put(line)
        if self.folder:
            clear(self.folder)
        os._exit(1)

    def receive(self) -> Message:
        line = self._queue.get()
        if len(line) > LINE_BYTES_MAX:
            raise Refused(f"a line has more than {LINE_BYTES_MAX} bytes")
        message = json.loads(line)
        if not isinstance(message, dict) or not isinstance(message.get("type"), str):
            raise Refused("a line is not a message")
        return message

    def send(self, kind: str, /, **fields: Any) -> None:
        line = json.dumps({"type": kind, **fields}, allow_nan=False).encode() + b"\n"
        if len(line) > LINE_BYTES_MAX:
            raise Refused(f"a {kind} message would have {len(line)} bytes")
        while line:
            line = line[os.write(self._target, line) :]


class Worker:
    """Rank 0 has the lines; the other ranks get messages from it."""

    def __init__(self, lines: Lines | None, ranks: Ranks) -> None:
        self.lines, self.ranks = lines, ranks
        self.folder = Path()
        self._engine: Engine | None = None
        self._loaded: int | None = None

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise Refused("no model is configured yet; send configure first")
        return self._engine

    def run(self) -> None:
        """Serves until the node sends ``shutdown``."""
        actions: dict[str, Callable[[Message], None]] = {
            "configure": self.configure,
            "train": self.train,
            "evaluate": self.evaluate,
            "export_state": self.export_state,
            "import_state": self.import_state,
        }
        while (message := self.hear())["type"] != "shutdown":
            action = actions.get(message["type"])
            if action is None:
                raise Refused(f"the message type {message['type'][:80]!r} does not exist")
            action(message)

    def hear(self) -> Message:
        """The node's next message, on all ranks."""
        return self.ranks.share(self.lines.receive() if self.lines else {})

    def say(self, kind: str, /, **fields: Any) -> None:
        if self.lines:
            self.lines.send(kind, **fields)

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def output(self, name: str, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, **texts: str) -> TensorFile:
        """A new file of rank 0, open on all ranks."""
        if self.ranks.rank == 0:
            create(self.file(name), shapes, dtype, texts)
        self.ranks.wait()
        return TensorFile(self.file(name), writable=True)

    def configure(self, message: Message) -> None:
        self.folder = Path(message["folder"])
        if self.lines:
            self.lines.folder = self.folder
        model, inner = read(ModelSpec, message["model"]), read(InnerSpec, message["inner"])
        known = {field.name for field in fields(Options)}
        options = Options(**{name: value for name, value in message["options"].items() if name in known})
        self._engine = Engine(model, inner, options, self.ranks)
        self._loaded = None
        self.say("configured", device=str(self.engine.device), ranks=self.ranks.world, parameters=model.parameters)

    def _load(self, message: Message) -> TensorFile:
        theta = TensorFile(self.file("theta"))
        if self._loaded is None or self._loaded != message["theta_version"]:
            self.engine.load(theta)
        self._loaded = message["theta_version"]
        return theta

    def _batches(self) -> list[torch.Tensor]:
        tensors = TensorFile(self.file("batches")).tensors
        return [tensors[f"batch.{nth}"].long() for nth in range(len(tensors))]

    def train(self, message: Message) -> None:
        if message["moments"] not in ("carried", "fresh"):
            raise Refused(f"a job starts from carried or fresh moments, not from {str(message['moments'])[:80]!r}")
        theta, engine = self._load(message), self.engine
        # Whatever the result, the parameters now differ from the file's.
        self._loaded = None
        engine.begin(message["moments"])
        steps = 0
        try:
            for nth, tokens_bt in enumerate(self._batches()):
                stats = engine.step(tokens_bt, message["first_step"] + nth)
                steps += 1
                self.say("step", **asdict(stats))
                answer = self.hear()["type"]
                if answer not in ("continue", "stop"):
                    raise Refused(f"after a step the node must send continue or stop, not {answer[:80]!r}")
                if answer == "stop":
                    break
        except NonFiniteStep as error:
            engine.end()
            return self.say("failed", kind="non_finite_step", step=error.step, what=error.what)
        engine.end()
        delta = self.output("delta", engine.spec.tensors(), torch.float32)
        engine.write_delta(theta, delta)
        self.ranks.wait()
        self.say("trained", steps=steps, engine=engine.stats().json() if steps else None)

    def evaluate(self, message: Message) -> None:
        self._load(message)
        losses = self.engine.evaluate(self._batches()[0])
        finite = losses.isfinite()
        if not finite.all():
            return self.say("failed", kind="non_finite_loss", sequence=int(finite.long().argmin()))
        self.output("losses", {"losses": tuple(losses.shape)}, torch.float64).tensors["losses"].copy_(losses)
        self.ranks.wait()
        self.say("evaluated")

    def _state_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = self.engine.spec.tensors()
        return {name: shapes[tensor] for name, (tensor, _) in self.engine.optimiser.state().items()}

    def export_state(self, message: Message) -> None:
        optimiser = self.engine.optimiser
        state = self.output("state", self._state_shapes(), torch.float32, steps=str(optimiser.steps))
        for name, (_, moment) in optimiser.state().items():
            self.engine.shard_of(state.tensors[name]).copy_(moment)
        self.ranks.wait()
        self.say("exported")

    def import_state(self, message: Message) -> None:
        state = TensorFile(self.file("state"))
        state.expect(self._state_shapes())
        optimiser = self.engine.optimiser
        for name, (_, moment) in optimiser.state().items():
            moment.copy_(self.engine.shard_of(state.tensors[name]))
        optimiser.steps = int(state.metadata["steps"])
        self.ranks.wait()
        self.say("imported")


def die_with_parent() -> None:
    """Makes Linux end this rank at once when torchrun is gone, even where ``watch_parent`` cannot run: in a library's
    long call that holds the interpreter. Not for a worker without torchrun: the thread that started it may end earlier.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def watch_parent(parent: int) -> None:
    """Ends this process when its parent is gone, as when the node has killed torchrun."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_S)
    os._exit(1)


def main(parent: int) -> NoReturn:
    """Serves the node until it sends ``shutdown`` or is gone."""
    ranks = Ranks()
    # Whatever libraries print goes to standard error.
    target = os.dup(1)
    os.dup2(2, 1)
    lines = Lines(os.dup(0), target) if ranks.rank == 0 else None
    code = 1
    if ranks.world > 1:
        die_with_parent()
    threading.Thread(target=watch_parent, args=(parent,), daemon=True).start()
    try:
        if lines:
            hello = lines.receive()
            lines.send("hello", protocol=PROTOCOL, name=f"templar_torch {__version__}, torch {torch.__version__}")
            if hello["type"] != "hello" or hello.get("protocol") != PROTOCOL:
                raise Refused(f"the node speaks protocol {hello.get('protocol')!r}, this worker {PROTOCOL}")
        ranks.join()
        Worker(lines, ranks).run()
        ranks.leave()
        code = 0
    except BaseException as error:
        traceback.print_exc()
        if lines:
            lines.send("failed", kind="internal", why=f"{type(error).__name__}: {error}"[:TEXT_MAX])
    finally:
        sys.stderr.flush()
        # Other threads, and ranks that wait for this one, must not keep the process alive.
        os._exit(code)
