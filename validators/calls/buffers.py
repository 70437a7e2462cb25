"""Output buffers: poisoned, so that what a kernel never wrote shows, and between guards, so that a store past the end
shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from validators.cases.tensors import Inputs, Outputs, as_ints
from validators.records.record import Check

POISONS = (0x7F, 0x4B)
"""Poison bytes of the first and second call. Repeated 0x7F is NaN in e4m3fn and fp16, the largest code of e4m3fnuz and
3.4e38 in bf16 and fp32. Repeated 0x4B is of moderate size everywhere (1.3e7 in bf16 and fp32, 14.6 in fp16, 5.5 in
e4m3fn), so that a kernel that adds to old content, or takes a maximum with it, gives two different results."""

MIN_GUARD_BYTES = 4096
MAX_GUARD_BYTES = 1 << 20
GUARD_ROWS = 16


def poison_int(byte: int, element_size: int) -> int:
    return byte if element_size == 1 else int.from_bytes(bytes([byte]) * element_size, "little", signed=True)


def _guard_pattern(nbytes: int, poison: int, device: torch.device) -> torch.Tensor:
    # Every position has its own byte, and no two calls the same, so that no constant fill goes unseen.
    step = torch.arange(nbytes, dtype=torch.int32, device=device)
    return (step * 167 + poison + 91).bitwise_and_(0xFF).to(torch.uint8)


@dataclass(frozen=True)
class Guarded:
    """Poisoned outputs with guard bytes on both sides.

    outputs: views into ``storages`` (one uint8 tensor an output: guard, elements, guard). guards: bytes of one guard.
    """

    outputs: Outputs
    poison: int
    storages: dict[str, torch.Tensor]
    guards: dict[str, int]

    def check(self) -> Check:
        """Check "guards": which output, which side, how many bytes changed, and how far from the output."""
        found = []
        for name, storage in self.storages.items():
            size = self.guards[name]
            pattern = _guard_pattern(size, self.poison, storage.device)
            for side, now in (("before", storage[:size]), ("after", storage[-size:])):
                if torch.equal(now, pattern):
                    continue
                changed = (now != pattern).nonzero().flatten()
                far = size - int(changed[0]) if side == "before" else int(changed[-1]) + 1
                found.append(f"{len(changed):,} bytes {side} {name} were overwritten, up to {far:,} bytes away")
        total = 2 * sum(self.guards.values())
        return Check("guards", not found, "; ".join(found) or f"all {total:,} guard bytes around the outputs unchanged")


def make_buffers(inputs: Inputs, *, poison: int) -> Guarded:
    """Output tensors for ``inputs``, every byte ``poison`` (0..255), each between guards in a storage of its own.

    A guard holds at least 4,096 bytes and up to 16 rows of the output, so that a store of whole tiles past the last
    row hits the guard and not foreign memory. Views are contiguous and at least 64-byte aligned on cpu.
    """
    if not 0 <= poison <= 255:
        raise ValueError(f"poison {poison} is not a byte")
    tensors, storages, guards = {}, {}, {}
    for name, (shape, dtype) in inputs.expected().items():
        itemsize = torch.empty(0, dtype=dtype).element_size()
        nbytes = itemsize * torch.Size(shape).numel()
        rows_bytes = GUARD_ROWS * shape[-1] * itemsize
        guard = min(MAX_GUARD_BYTES, max(MIN_GUARD_BYTES, (rows_bytes + 255) // 256 * 256))
        storage = torch.empty(guard + nbytes + guard, dtype=torch.uint8, device=inputs.device)
        pattern = _guard_pattern(guard, poison, storage.device)
        storage[:guard] = pattern
        storage[guard : guard + nbytes] = poison
        storage[guard + nbytes :] = pattern
        tensors[name] = storage[guard : guard + nbytes].view(dtype).view(shape)
        storages[name], guards[name] = storage, guard
    return Guarded(inputs.outputs(tensors), poison, storages, guards)


def poison_allocator(inputs: Inputs, *, poison: int) -> None:
    """Leave poisoned free blocks behind, so that ``torch.empty`` inside a kernel that allocates is likely not zero.

    PyTorch's caching allocator on a GPU hands a freed block of the same size out again; on cpu the C library does so
    for small blocks only. A hint, never evidence: the check that follows is the same.
    """
    for shape, dtype in inputs.expected().values():
        block = torch.empty(shape, dtype=dtype, device=inputs.device)
        as_ints(block).fill_(poison_int(poison, block.element_size()))
        del block
