"""Tensors in shared files, in the safetensors layout.

The first 8 bytes are the length of the header, little-endian. The header follows: JSON, name → {dtype, shape,
data_offsets}, and ``__metadata__`` with texts. Then come the tensors' bytes. Files are mapped, so a tensor is never
copied on its way through the file.
"""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

HEADER_BYTES_MAX = 16 << 20
DTYPES = {"F32": torch.float32, "F64": torch.float64, "I32": torch.int32}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorFile:
    """A mapped file: ``tensors[name]`` is a view of its bytes."""

    def __init__(self, path: Path, writable: bool = False) -> None:
        with open(path, "r+b" if writable else "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise ValueError(f"{path.name} has {size} bytes, which is too short for a tensor file")
            # Pages of a file that is only read are private, because torch does not support read-only memory.
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_COPY
            self._map = mmap.mmap(file.fileno(), 0, access=access)
        length = int.from_bytes(self._map[:8], "little")
        if length > min(HEADER_BYTES_MAX, size - 8):
            raise ValueError(f"{path.name} claims a header of {length} bytes")
        header = json.loads(self._map[8 : 8 + length])
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        self.tensors: dict[str, Tensor] = {}
        for name, entry in header.items():
            dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
            start, end = entry["data_offsets"]
            count = math.prod(shape)
            if not 0 <= start <= end <= size - 8 - length or end - start != count * dtype.itemsize:
                raise ValueError(f"{path.name}: tensor {name} does not fit its place")
            view = torch.empty(0, dtype=dtype)
            if count > 0:
                view = torch.frombuffer(self._map, dtype=dtype, count=count, offset=8 + length + start)
            self.tensors[name] = view.view(shape)

    def expect(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Checks that the file has f32 tensors of these names and shapes, and no others."""
        found = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        if found != dict(shapes) or any(tensor.dtype != torch.float32 for tensor in self.tensors.values()):
            raise ValueError("the file's tensors are not those of this model")


def create(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, metadata: Mapping[str, str] | None = None
) -> None:
    """Creates a file for tensors of these shapes, to be filled through :class:`TensorFile`.

    Its space is reserved, because in a full shared-memory folder, writing to a missing page kills the process.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, shape in shapes.items():
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # A new file each time, so that existing mappings of the old one do not change.
    path.unlink(missing_ok=True)
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.flush()
        if offset > 0 and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), file.tell(), offset)
        file.truncate(8 + len(text) + offset)
