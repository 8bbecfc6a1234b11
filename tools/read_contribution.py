#!/usr/bin/env python3
"""Reads contributions as docs/spec/contribution.md specifies them, with NumPy and none of our code.

    python3 tools/read_contribution.py testdata/contributions/*.json

compares each golden vector's payload with the values that it lists, and with what it makes of θ = 0 where that is listed, and
checks that each payload of rejects.json is refused.
"""
import json
import math
import sys

import numpy as np

KINDS = {"topk-sign": 1, "dense-f32": 2, "topk-2bit": 3}


def check(holds, rule: int):  # by its number in section 5
    if not holds:
        raise ValueError(rule)


def segments(lengths, kind, chunk, k_full):
    """(least bytes, most bytes, (number of chunks, their length, k, b)) of every segment in canonical order."""
    per_segment = max(1, 65536 // max(chunk, 8))
    for length in lengths:
        full, tail = divmod(length, chunk)
        shapes = [(min(per_segment, full - first), chunk) for first in range(0, full, per_segment)]
        for chunks, size in shapes + [(1, tail)] * (tail > 0):
            k = size if kind == 2 else -(-k_full * size // chunk)
            b = max([b for b in range(17) if 13 * k << b <= 9 * size], default=0)
            least = {1: 8 + k * (1 + b) + k, 2: 32 * size, 3: 12 + k * (2 + b) + k}[kind]
            yield -(-chunks * least // 8), -(-chunks * (least + (size - k >> b)) // 8), (chunks, size, k, b)


def read_topk(body, kind, max_abs, chunks, size, k, b):
    """Values of a segment of top-k chunks, one row per chunk; values that are not sent are 0."""
    bits = np.unpackbits(np.frombuffer(body, np.uint8), bitorder="little").astype(np.int64)
    widths = [8, 4, k, k, b * k] if kind == 3 else [8, 0, k, 0, b * k]
    fixed, unary = np.split(bits, [chunks * sum(widths)])
    scale, ratio, signs, levels, planes = np.split(fixed.reshape(chunks, -1), np.cumsum(widths[:-1]), axis=1)
    scale, ratio = (field @ (1 << np.arange(field.shape[1])) for field in (scale, ratio))
    high = np.where(scale, 2.0 ** (scale // 8 - 28) * (1 + scale % 8 / 8), 0)
    check((high <= max_abs).all(), 2)
    ones = np.flatnonzero(unary)[:chunks * k]
    check(len(ones) == chunks * k, 6)
    lows = (planes.reshape(chunks, b, k) << np.arange(b)[:, None]).sum(axis=1)
    gaps = (np.diff(ones, prepend=-1).reshape(chunks, k) - 1 << b) + lows
    positions = np.cumsum(gaps + 1, axis=1) - 1
    check((positions < size).all(), 3)
    check(not any(field[scale == 0].any() for field in (ratio, signs, levels, gaps)), 4)
    relative = np.where(levels, 1, (2 * ratio[:, None] + 1) / 32) if kind == 3 else np.ones((chunks, k))
    highs = (relative == 1).sum(axis=1)[scale > 0]
    check((highs > 0).all() and not ratio[scale > 0][highs == k].any(), 5)
    padding = unary[ones[-1] + 1:]
    check(len(padding) < 8 and not padding.any(), 6)
    values = np.zeros((chunks, size), np.float32)
    np.put_along_axis(values, positions, high[:, None] * relative * (1 - 2 * signs), axis=1)
    return values.ravel()


def read(payload: bytes, lengths, codec) -> np.ndarray:
    """The values that a payload sends."""
    kind, max_abs = KINDS[codec["kind"]], codec["max_abs"]
    plan = list(segments(lengths, kind, codec["chunk"], codec["k"]))
    at = 4 + 2 * sum(least < most for least, most, _ in plan)
    check(payload[:4] == b"TC" + bytes([1, kind]) and len(payload) >= at, 1)
    directory, parts = iter(np.frombuffer(payload[4:at], "<u2")), []
    for least, most, shape in plan:
        length = int(next(directory)) if least < most else least
        check(least <= length <= most and at + length <= len(payload), 1)
        body, at = payload[at:at + length], at + length
        parts.append(np.frombuffer(body, "<f4") if kind == 2 else read_topk(body, kind, max_abs, *shape))
    check(at == len(payload), 1)
    values = np.concatenate(parts)
    magnitudes = np.abs(values.astype(np.float64))
    check(((values.view("<u4") == 0) | (2.0 ** -126 <= magnitudes) & (magnitudes <= max_abs)).all(), 7)
    return values


def matrix():
    """A of section 9: its rows are frequencies. Python's integers, which have no bounds."""
    entry = lambda k, n: 1 << 26 if k == 0 else round(2**26 * math.sqrt(2) * math.cos((2 * n + 1) * k % 256 * math.pi / 128))
    return np.array([[entry(k, n) for n in range(64)] for k in range(64)], object)


def step(values, lengths, codec):
    """θ after the outer step that takes this contribution alone from θ = 0, at α = 1."""
    sums = np.array([round(float(value) * 2**40) for value in values], object)
    if codec.get("transform") == "dct":
        a, end = matrix(), 0
        for length in lengths:
            start, end = end, end + length
            for chunk in range(start, end - codec["chunk"] + 1, codec["chunk"]):
                square = sums[chunk:chunk + 4096].reshape(64, 64)
                rows = (square.dot(a) + 2**28) // 2**29
                sums[chunk:chunk + 4096] = ((a.T.dot(rows) + 2**28) // 2**29).ravel()
    return np.array([0.0 - int(total) * 2.0**-40 if total else 0.0 for total in sums], "<f4")


def found(vector):
    """The bits of the values that a payload sends, and of θ where it is listed; or the rule that it breaks."""
    lengths, codec = vector["tensor_lengths"], vector["codec"]
    try:
        values = read(bytes.fromhex(vector["payload_hex"]), lengths, codec)
    except ValueError as broken:
        return broken.args[0]
    return values.tobytes() + (step(values, lengths, codec).tobytes() if "theta_bits" in vector else b"")


def expected(vector):
    values = np.zeros(sum(vector["tensor_lengths"]), "<u4")
    values[vector.get("positions", [])] = vector.get("value_bits", [])
    return vector.get("rule", values.tobytes() + np.array(vector.get("theta_bits", []), "<u4").tobytes())


if __name__ == "__main__":
    for path in sys.argv[1:] or sys.exit(__doc__):
        with open(path) as file:
            golden = json.load(file)
        wrong = [vector for vector in golden.get("rejects", [golden]) if found(vector) != expected(vector)]
        if wrong:
            sys.exit(f"{path}: these payloads have other values: {[vector['payload_hex'] for vector in wrong]}")
        print(f"{path}: payloads match")
