"""Makes several processes act as one: rank 0 talks to the node, and all of them compute."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

Value = TypeVar("Value")

IDLE = timedelta(days=365)
"""How long ranks wait for each other: windows may be far apart, and the node ends a worker that hangs."""


class Ranks:
    """This process among those that torchrun started, or the only one without torchrun."""

    def __init__(self) -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.local = int(os.environ.get("LOCAL_RANK", "0"))

    def join(self) -> None:
        """Joins the other ranks: through gloo for objects and on CPUs, through NCCL (or RCCL) between GPUs."""
        if self.world > 1:
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=IDLE)

    def leave(self) -> None:
        if self.world > 1:
            dist.destroy_process_group()

    def share(self, value: Value) -> Value:
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, shard: Tensor, rows: int, owner: int) -> Tensor:
        """All rows of a matrix on its owner, nothing elsewhere. ``shard`` is this rank's part as FSDP cuts it."""
        if self.world == 1:
            return shard
        share = -(-rows // self.world)
        padded = shard.new_zeros(share, shard.shape[1])
        padded[: len(shard)] = shard
        parts = [torch.empty_like(padded) for _ in range(self.world)] if self.rank == owner else None
        dist.gather(padded, parts, dst=owner)
        return torch.cat(parts)[:rows] if parts else shard[:0]

    def scatter(self, full: Tensor, shard: Tensor, rows: int, owner: int) -> Tensor:
        """This rank's rows of the owner's matrix, which has the shape of ``shard`` but for its rows."""
        if self.world == 1:
            return full
        share = -(-rows // self.world)
        own = shard.new_empty(share, shard.shape[1])
        parts = None
        if self.rank == owner:
            padded = shard.new_zeros(share * self.world, shard.shape[1])
            padded[:rows] = full
            parts = list(padded.chunk(self.world))
        dist.scatter(own, parts, src=owner)
        return own[: len(shard)]

    def wait(self) -> None:
        """Waits until all ranks have arrived."""
        self.sum(torch.zeros(1))
