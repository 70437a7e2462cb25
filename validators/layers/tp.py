"""Tensor parallelism: which rows and columns of a linear a rank holds, and in which order partial sums are added.

A column-parallel linear (qkv, gate_up) splits its outputs, a row-parallel one (o, down) its inputs: every rank
quantizes its own part of the activations with its own scale, multiplies, and stores a bf16 partial sum. The all-
reduce is a contract like a kernel's: ``rank order, fp32, one store`` adds the partial sums of ranks 0, 1, ... in
fp32 and rounds once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.glm4_moe import Config, Linear
from validators.errors import UserError

ALL_REDUCE = "rank order, fp32, one store"


class ParallelError(UserError):
    """A model that does not split over the ranks; its message is one sentence."""


@dataclass(frozen=True)
class Group:
    """The ranks of a walk. local: those that this process computes; all of them unless ``real``."""

    size: int = 1
    local: tuple[int, ...] = (0,)
    real: bool = False

    @staticmethod
    def simulated(size: int) -> Group:
        """All ranks in this process, one after the other."""
        return Group(size, tuple(range(size)))

    @staticmethod
    def distributed() -> Group:
        """One rank a process, after ``torch.distributed.init_process_group``."""
        import torch.distributed as dist

        return Group(dist.get_world_size(), (dist.get_rank(),), True)

    def gather(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Parts of the local ranks -> parts of all ranks in rank order."""
        if not self.real:
            return list(parts)
        import torch.distributed as dist

        own = parts[0].contiguous()
        found = [torch.empty_like(own) for _ in range(self.size)]
        # As bytes, so that a backend which has no sum or no copy of a type still moves it.
        dist.all_gather([f.view(torch.uint8) for f in found], own.view(torch.uint8))
        return found

    def all_reduce(self, parts: Sequence[Tensor]) -> Tensor:
        """Partial sums bf16 [T, n] of the local ranks -> their sum bf16 [T, n], by the contract ``ALL_REDUCE``."""
        every = self.gather(parts)
        if len(every) == 1:
            return every[0]
        total = every[0].float()
        for part in every[1:]:
            total = total + part.float()
        return total.to(every[0].dtype)


def check_split(config: Config, size: int) -> None:
    """Raises ParallelError where the model does not split evenly over ``size`` ranks."""
    parts = {
        "query heads": config.heads,
        "key-value heads": config.kv_heads,
        "intermediate channels": config.intermediate,
        "expert channels": config.moe_intermediate,
    }
    for what, count in parts.items():
        if size < 1 or count % size:
            raise ParallelError(f"{count} {what} do not split over {size} ranks")


def rows_of(sizes: Sequence[int], rank: int, size: int, device: torch.device) -> Tensor:
    """Output channels int64 of ``rank`` in a fused linear whose parts have ``sizes`` channels: its share of every
    part."""
    found, start = [], 0
    for width in sizes:
        own = width // size
        found.append(torch.arange(start + rank * own, start + (rank + 1) * own, device=device))
        start += width
    return torch.cat(found)


def column_shard(what: Linear, rows: Tensor) -> Linear:
    """The output channels ``rows`` of a linear."""
    return Linear(_pick(what.weight, rows), _maybe(what.scale, rows), _maybe(what.bias, rows))


def row_shard(what: Linear, rank: int, size: int) -> tuple[slice, Linear]:
    """The input channels of ``rank`` and the linear that multiplies them; a bias belongs to rank 0."""
    own = what.weight.shape[1] // size
    part = slice(rank * own, (rank + 1) * own)
    return part, Linear(what.weight[:, part].contiguous(), what.scale, what.bias if rank == 0 else None)


def _pick(weight: Tensor, rows: Tensor) -> Tensor:
    # FP8 tensors have no index on every backend; their bytes do.
    return weight.view(torch.uint8)[rows].view(weight.dtype) if weight.element_size() == 1 else weight[rows]


def _maybe(tensor: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[rows]
