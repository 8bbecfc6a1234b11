#!/usr/bin/env python3
"""Reads contributions as docs/spec/contribution.md specifies them, with NumPy and nothing else of ours.

    python3 tools/read_contribution.py testdata/contributions/*.json

decodes the payload of each golden vector and compares it with the values that it lists.
"""

import json
import sys

import numpy as np

KINDS = {"topk-sign": 1, "dense-f32": 2, "topk-2bit": 3}


class Bits:
    """Bits of a segment, least significant first."""

    def __init__(self, data: bytes):
        self.bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        self.at = 0

    def take(self, count: int) -> np.ndarray:
        taken = self.bits[self.at:self.at + count]
        if len(taken) < count:
            raise ValueError("the segment is too short")
        self.at += count
        return taken.astype(np.int64)

    def number(self, count: int) -> int:
        return int(self.take(count) @ (1 << np.arange(count)))


def segments(lengths, kind, chunk, k_full):
    """(number of chunks, length of a chunk, k, b) of every segment in canonical order."""
    per_segment = max(1, 65536 // max(chunk, 8))
    for length in lengths:
        full, tail = divmod(length, chunk)
        shapes = [(min(per_segment, full - first), chunk) for first in range(0, full, per_segment)]
        for chunks, size in shapes + ([(1, tail)] if tail else []):
            k = size if kind == 2 else -(-k_full * size // chunk)
            b = max([b for b in range(17) if 13 * k << b <= 9 * size], default=0)
            yield chunks, size, k, b


def byte_bounds(kind, chunks, size, k, b):
    if kind == 2:
        return chunks * size * 4, chunks * size * 4
    fixed = 8 + k * (1 + b) if kind == 1 else 12 + k * (2 + b)
    return tuple(-(-chunks * (fixed + k + extra) // 8) for extra in (0, (size - k) >> b))


def read_chunks(bits, kind, chunks, size, k, b):
    """Values of a segment of top-k chunks; everything that is not sent is 0."""
    heads = []
    for _ in range(chunks):
        scale, ratio = bits.number(8), bits.number(4) if kind == 3 else 0
        signs = bits.take(k)
        levels = bits.take(k) if kind == 3 else np.ones(k, np.int64)
        lows = sum((bits.take(k) << plane for plane in range(b)), np.zeros(k, np.int64))
        heads.append((scale, ratio, signs, levels, lows))
    values = np.zeros((chunks, size), np.float32)
    for row, (scale, ratio, signs, levels, lows) in zip(values, heads):
        ones = np.flatnonzero(bits.bits[bits.at:])[:k]
        if len(ones) < k:
            raise ValueError("the segment is too short")
        gaps = (np.diff(ones, prepend=-1) - 1 << b) + lows
        positions = np.cumsum(gaps + 1) - 1
        bits.at += int(ones[-1]) + 1
        if positions[-1] >= size:
            raise ValueError("a position is outside of its chunk")
        if scale:
            high = 2.0 ** (scale // 8 - 28) * (1 + scale % 8 / 8)
            row[positions] = np.where(levels, high, high * (2 * ratio + 1) / 32) * (1 - 2 * signs)
    if bits.bits[bits.at:].any() or len(bits.bits) - bits.at >= 8:
        raise ValueError("bits follow the last position")
    return values.ravel()


def read(payload: bytes, lengths, kind: int, chunk: int, k: int) -> np.ndarray:
    """The values that a payload sends. (A validator checks more: see the specification, section 5.)"""
    if payload[:4] != b"TC" + bytes([1, kind]):
        raise ValueError("not a contribution to this run")
    plan = [(shape, byte_bounds(kind, *shape)) for shape in segments(lengths, kind, chunk, k)]
    said = sum(least < most for _, (least, most) in plan)
    directory = iter(np.frombuffer(payload[4:4 + 2 * said], "<u2"))
    at, parts = 4 + 2 * said, []
    for (chunks, size, k_of, b), (least, most) in plan:
        length = int(next(directory)) if least < most else least
        if not least <= length <= most:
            raise ValueError("a segment has an impossible length")
        body, at = payload[at:at + length], at + length
        if kind == 2:
            parts.append(np.frombuffer(body, "<f4"))
        else:
            parts.append(read_chunks(Bits(body), kind, chunks, size, k_of, b))
    if at != len(payload):
        raise ValueError("the payload has another length than its segments")
    return np.concatenate(parts)


def main() -> None:
    for path in sys.argv[1:]:
        with open(path) as file:
            vector = json.load(file)
        codec = vector["codec"]
        payload = bytes.fromhex(vector["payload_hex"])
        values = read(payload, vector["tensor_lengths"], KINDS[codec["kind"]], codec["chunk"], codec["k"])
        expected = np.zeros_like(values)
        expected[vector["positions"]] = np.array(vector["value_bits"], np.uint32).view(np.float32)
        if not np.array_equal(values.view(np.uint32), expected.view(np.uint32)):
            sys.exit(f"{path}: the payload says something else than the vector")
        print(f"{path}: {len(vector['positions'])} values agree")
    if len(sys.argv) < 2:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
