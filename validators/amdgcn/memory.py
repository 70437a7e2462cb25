"""Global memory: the buffers of a launch at addresses of their own, with bounds; gathers and scatters of lanes.

Each buffer begins at a multiple of 2**40 plus the low byte of its real address, so that alignment is what the caller's
is and no 32-bit offset reaches another buffer. Reads and writes outside of a buffer are faults with a place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from validators.amdgcn.floats import Array
from validators.amdgcn.state import LANES, State

_SHIFT = 40
_OFFSET = np.int64((1 << _SHIFT) - 1)
_WIDE = {4: np.uint32, 8: np.uint64, 16: np.complex128}


@dataclass(frozen=True)
class Tensor:
    """An argument that is memory. data: its bytes, uint8; written in place where ``writable``. start: byte of
    ``data`` that the pointer names. address: the real address of data[0], for its alignment."""

    name: str
    data: Array
    start: int = 0
    address: int = 0
    writable: bool = False


@dataclass
class Buffer:
    """data: a copy of the bytes, preceded by some so that its start is aligned as the address is.

    low, high: the bytes of ``data`` that may be touched. start: where the pointer points. owner: for stores, the
    workgroup + 1 that wrote a byte.
    """

    name: str
    data: Array
    low: int
    high: int
    writable: bool
    owner: Array | None = None
    start: int = 0

    @property
    def content(self) -> Array:
        """The bytes, without what was added around them."""
        return self.data[self.low : self.high]


class Memory:
    """Buffers by number; buffer 0 is not used, so that a null pointer is no address."""

    def __init__(self) -> None:
        self.buffers: list[Buffer | None] = [None]

    def add(self, name: str, tensor: Tensor, *, owned: bool) -> int:
        """Take a copy of a tensor's bytes; the buffer's number. The low byte of the real address is kept."""
        lead = tensor.address & 0xFF
        size = lead + tensor.data.size
        data = np.zeros((size + 31) // 16 * 2, dtype=np.uint64).view(np.uint8)
        data[lead:size] = tensor.data
        owner = np.zeros(data.size, dtype=np.int32) if owned else None
        self.buffers.append(Buffer(name, data, lead, size, False, owner, lead + tensor.start))
        return len(self.buffers) - 1

    def address(self, number: int, tensor: Tensor) -> int:
        """Where a tensor of buffer ``number`` begins; a tensor that is written makes it writable."""
        buffer = self.buffers[number]
        assert buffer is not None
        buffer.writable = buffer.writable or tensor.writable
        return (number << _SHIFT) + buffer.low + tensor.start

    def buffer_of(self, address: Array, lanes: Array | None, state: State) -> Buffer | None:
        """The one buffer that all active lanes address; None where no lane is active."""
        numbers = address >> np.int64(_SHIFT)
        if lanes is not None:
            numbers = np.broadcast_to(numbers, lanes.shape)[lanes]
        if not numbers.size:
            return None
        first = int(numbers.flat[0])
        if (numbers != first).any():
            raise state.fault("the lanes of one instruction address more than one buffer, which is not implemented")
        found = self.buffers[first] if 0 < first < len(self.buffers) else None
        if found is None:
            raise state.fault(f"address {int(address.flat[0]):#x} belongs to no buffer")
        return found

    def load(self, state: State, address: Array, size: int, lanes: Array | None) -> list[Array]:
        """uint32 [waves, 64] of each dword that the lanes read; 0 where a lane is off. size: bytes a lane, 1 to 16."""
        buffer = self.buffer_of(address, lanes, state)
        if buffer is None:
            return [np.zeros((1, 1), dtype=np.uint32)] * max(1, size // 4)
        at = self._offsets(state, buffer, address, size, lanes, "reads")
        if size < 4:
            return [_bytes_of(buffer.data, at, size)]
        if size in _WIDE and not (at & (size - 1)).any():
            return _words(buffer.data.view(_WIDE[size])[at >> (size.bit_length() - 1)], size)
        if not (at & 3).any():
            dwords = buffer.data.view(np.uint32)
            return [dwords[(at >> 2) + k] for k in range(size // 4)]
        return [_bytes_of(buffer.data, at + 4 * k, 4) for k in range(size // 4)]

    def store(self, state: State, address: Array, values: Sequence[Array], size: int, lanes: Array | None) -> None:
        """Write ``size`` bytes a lane, from one register a dword."""
        buffer = self.buffer_of(address, lanes, state)
        if buffer is None:
            return
        if not buffer.writable:
            raise state.fault(f"stores to {buffer.name}, which is an input")
        shape = (state.n, LANES)
        at = np.broadcast_to(self._offsets(state, buffer, address, size, lanes, "stores"), shape)
        given = [np.broadcast_to(value, shape) for value in values]
        if lanes is not None:
            at, given = at[lanes], [value[lanes] for value in given]
        if buffer.owner is not None:
            _own(state, buffer, at, size, lanes)
        if size < 4:
            for byte in range(size):
                buffer.data[at + byte] = (given[0] >> np.uint32(8 * byte)).astype(np.uint8)
        elif size in _WIDE and not (at & (size - 1)).any():
            joined: Array = np.stack(given, axis=-1).view(_WIDE[size])[..., 0]
            buffer.data.view(_WIDE[size])[at >> (size.bit_length() - 1)] = joined
        elif not (at & 3).any():
            for k, value in enumerate(given):
                buffer.data.view(np.uint32)[(at >> 2) + k] = value
        else:
            for byte in range(size):
                buffer.data[at + byte] = (given[byte // 4] >> np.uint32(8 * (byte % 4))).astype(np.uint8)

    def _offsets(
        self, state: State, buffer: Buffer, address: Array, size: int, lanes: Array | None, what: str
    ) -> Array:
        at: Array = address & _OFFSET
        if lanes is not None:
            at = np.where(lanes, at, np.int64(buffer.low))
        if int(at.min()) < buffer.low or int(at.max()) + size > buffer.high:
            wrong = (at < buffer.low) | (at + size > buffer.high)
            wave, lane = np.argwhere(np.broadcast_to(wrong, (state.n, LANES)))[0]
            byte = int(np.broadcast_to(at, wrong.shape)[wrong][0]) - buffer.start
            group = int(state.workgroup[state.group.waves[wave]])
            raise state.fault(
                f"{what} {size} bytes at byte {byte:,} of {buffer.name}, outside of its memory "
                f"(workgroup {group}, lane {lane})"
            )
        return at


def _words(gathered: Array, size: int) -> list[Array]:
    if size == 4:
        return [gathered]
    split = np.ascontiguousarray(gathered).view(np.uint32).reshape(*gathered.shape, size // 4)
    return [split[..., k] for k in range(size // 4)]


def _bytes_of(data: Array, at: Array, size: int) -> Array:
    if size == 2 and not (at & 1).any():
        found: Array = data.view(np.uint16)[at >> 1].astype(np.uint32)
        return found
    value = data[at].astype(np.uint32)
    for byte in range(1, size):
        value |= data[at + byte].astype(np.uint32) << np.uint32(8 * byte)
    return value


def _own(state: State, buffer: Buffer, at: Array, size: int, lanes: Array | None) -> None:
    """Note who wrote each byte; two workgroups on one byte are a finding."""
    assert buffer.owner is not None
    writer = np.broadcast_to(state.workgroup[state.group.waves].astype(np.int32)[:, None] + 1, (state.n, LANES))
    mine = writer if lanes is None else writer[lanes]
    for byte in range(size):
        before = buffer.owner[at + byte]
        buffer.owner[at + byte] = mine
        # Of workgroups that write in the same step, the last one is left.
        after = buffer.owner[at + byte]
        other = np.where((before != 0) & (before != mine), before, after)
        twice = other != mine
        if twice.any():
            first, second = sorted((int(other[twice][0]) - 1, int(mine[twice][0]) - 1))
            where = int(at[twice][0]) + byte - buffer.start
            words = f"byte {where:,} of {buffer.name} is written by workgroups {first} and {second}"
            state.finding("double writer", words)
