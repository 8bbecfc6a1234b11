"""A fake worker without PyTorch, for tests of the supervisor. It trains nothing.

It speaks the protocol of docs/spec/worker.md, moves every parameter by one inner step's learning rate, and misbehaves as
the variable FAKE says. A file named by FAKE_ONCE makes it misbehave only in the first process that finds the file missing.
"""

import fcntl
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

OUT = os.dup(1)
os.dup2(2, 1)


def say(kind, /, **fields):
    os.write(OUT, json.dumps({"type": kind, **fields}).encode() + b"\n")


def read(path):
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, data[8 + length :]


def write(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def tensors(header, prefixes):
    """The header of as many copies of the tensors, with prefixed names."""
    size = max(entry["data_offsets"][1] for entry in header.values())
    return {
        prefix + name: {**entry, "data_offsets": [nth * size + offset for offset in entry["data_offsets"]]}
        for nth, prefix in enumerate(prefixes)
        for name, entry in header.items()
    }


def misbehaviour():
    once = os.environ.get("FAKE_ONCE")
    if once:
        if Path(once).exists():
            return ""
        Path(once).touch()
    return os.environ.get("FAKE", "")


FAKE = misbehaviour()


def rate(inner, step):
    return inner["lr"] * (step + 1) / inner["warmup_steps"]


def train(folder, inner, message):
    header, theta = read(folder / "theta.safetensors")
    batches, _ = read(folder / "batches.safetensors")
    steps = 0
    for nth in range(len(batches)):
        if FAKE == "compiles" and nth == 0:
            time.sleep(4)
        if nth == 1:
            if FAKE == "dies":
                print("out of imagination", file=sys.stderr)
                os._exit(7)
            if FAKE == "hangs":
                time.sleep(600)
            if FAKE == "multiplies":
                # Whoever is left holds the lock.
                lock = open(os.environ["FAKE_ONCE"])
                fcntl.flock(lock, fcntl.LOCK_EX)
                idle = [sys.executable, "-c", "import time; time.sleep(600)"]
                subprocess.Popen(idle, pass_fds=[lock.fileno()])
                time.sleep(600)
            if FAKE == "garbage":
                os.write(OUT, b"Loading model: 42%\n")
            if FAKE == "oversized":
                os.write(OUT, b"x" * 200_000)
            if FAKE == "talks":
                say("step", step=0, loss=1.0, grad_norm=1.0, lr=1.0, tokens=1)
            if FAKE == "diverges":
                return say("failed", kind="non_finite_step", step=message["first_step"] + 1, what="gradient")
            if FAKE == "refuses":
                say("failed", kind="internal", why="no memory left")
                os._exit(1)
        step, (rows, columns) = message["first_step"] + nth, batches[f"batch.{nth}"]["shape"]
        loss = float("nan") if FAKE == "nan-loss" and nth == 1 else 2.0
        lr = rate(inner, step) * (2 if FAKE == "other-rate" else 1)
        say("step", step=step, loss=loss, grad_norm=1.0, lr=lr, tokens=rows * columns)
        steps += 1
        if json.loads(sys.stdin.readline())["type"] == "stop":
            break
    if FAKE == "hangs-at-the-end":
        time.sleep(600)
    value = float("inf") if FAKE == "inf-delta" else steps * rate(inner, message["first_step"])
    delta = struct.pack("<f", value) * (len(theta) // 4)
    if FAKE == "wrong-shape":
        name = "model.norm.weight"
        header[name] = {**header[name], "shape": [1, *header[name]["shape"]]}
    if FAKE == "short-delta":
        delta = delta[:-4]
    if FAKE != "no-delta":
        write(folder / "delta.safetensors", header, delta)
    engine = {"device": "fake", "tokens_per_s": 1.0, "model_flops_per_s": 2.0, "matmul_flops_per_s": 4.0,
              "peak_flops_per_s": 8.0, "peak_memory_bytes": 3}
    if FAKE == "odd-statistics":
        engine = {"device": ["fake"], "tokens_per_s": "many"}
    say("trained", steps=steps + (FAKE == "miscounts"), engine=engine)
    return steps


def main():
    json.loads(sys.stdin.readline())
    if FAKE == "silent":
        time.sleep(600)
    say("hello", protocol=1 if FAKE == "other-version" else 2, name="a fake")
    configuration = json.loads(sys.stdin.readline())
    folder, inner = Path(configuration["folder"]), configuration["inner"]
    if FAKE == "blocks":
        (folder / "theta.safetensors").mkdir()
    say("configured", device="fake", ranks=1, parameters=parameters(configuration["model"]))
    moments = None
    for line in sys.stdin:
        message = json.loads(line)
        kind = message["type"]
        if kind == "train":
            if message["moments"] == "fresh":
                moments = None
            steps = train(folder, inner, message) or 0
            header, theta = read(folder / "theta.safetensors")
            seen = (moments[0] if moments else 0) + steps
            moments = (seen, struct.pack("<f", float(seen)) * (2 * len(theta) // 4))
        elif kind == "evaluate":
            batches, _ = read(folder / "batches.safetensors")
            rows = batches["batch.0"]["shape"][0] + (FAKE == "wrong-losses")
            losses = {"losses": {"dtype": "F64", "shape": [rows], "data_offsets": [0, 8 * rows]}}
            value = float("nan") if FAKE == "nan-losses" else 2.0
            write(folder / "losses.safetensors", losses, struct.pack("<d", value) * rows)
            say("evaluated")
        elif kind == "export_state":
            if FAKE == "hangs-in-the-export":
                time.sleep(600)
            header, _ = read(folder / "theta.safetensors")
            if FAKE == "wrong-moments":
                header["model.norm.weight"]["shape"] = [1, *header["model.norm.weight"]["shape"]]
            seen, data = moments
            if FAKE == "bad-moments":
                data = struct.pack("<f", -1.0) * (len(data) // 4)
            state = {"__metadata__": {"steps": str(seen)}, **tensors(header, ("first.", "second."))}
            write(folder / "state.safetensors", state, data)
            say("exported")
        elif kind == "import_state":
            path = folder / "state.safetensors"
            length = int.from_bytes(path.read_bytes()[:8], "little")
            state = json.loads(path.read_bytes()[8 : 8 + length])
            moments = (int(state["__metadata__"]["steps"]), path.read_bytes()[8 + length :])
            say("imported")
        elif kind == "shutdown":
            return


def parameters(model):
    d, ffn, kv = model["hidden_size"], model["ffn_size"], model["kv_heads"] * model["hidden_size"] // model["heads"]
    layer = 2 * d + 2 * d * d + 2 * kv * d + 3 * ffn * d
    return model["layers"] * layer + d + model["vocab_size"] * d * (1 if model["tied_embeddings"] else 2)


main()
