"""Local memory (LDS): one block of bytes a workgroup; who wrote and read what since the last barrier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from validators.amdgcn.floats import Array
from validators.amdgcn.state import LANES, State


class Lds:
    """size: bytes a workgroup. unit: bytes that are watched as one, the smallest access of the code; 0: no checks."""

    def __init__(self, size: int, workgroups: int, waves: int, poison: int, unit: int) -> None:
        self.size, self.unit, self.waves = size, unit, waves
        self.stride = (size + 19) // 16 * 16
        total = max(16, self.stride * workgroups)
        self.data = np.full(total // 8, np.uint64(poison * 0x0101010101010101), dtype=np.uint64).view(np.uint8)
        watched = total // unit if unit else 0
        # Bit w: wave w of the workgroup, since the last barrier.
        self.writers = np.zeros(watched, dtype=np.uint32)
        self.readers = np.zeros(watched, dtype=np.uint32)
        self.written = np.zeros(watched, dtype=bool)

    def barrier(self) -> None:
        """All waves have met: what they wrote is seen by all."""
        self.writers[:] = 0
        self.readers[:] = 0

    def _offsets(self, state: State, address: Array, size: int, lanes: Array | None) -> Array:
        local = np.broadcast_to(address.astype(np.int64), (state.n, LANES))
        outside = (local < 0) | (local + size > self.size)
        if lanes is not None:
            outside = outside & lanes
            local = np.where(lanes, local, 0)
        if outside.any():
            where = int(local[outside][0])
            raise state.fault(f"accesses {size} bytes at {where:,} of LDS, of which a workgroup has {self.size:,}")
        base = (state.workgroup[state.group.waves] - state.first_workgroup) * self.stride
        found: Array = local + base[:, None]
        return found

    def load(self, state: State, address: Array, size: int, lanes: Array | None) -> list[Array]:
        """uint32 [waves, 64] of each dword; anything where a lane is off."""
        if lanes is not None and not lanes.any():
            return [np.zeros((1, 1), dtype=np.uint32)] * max(1, size // 4)
        at = self._offsets(state, address, size, lanes)
        if self.unit:
            self._check_read(state, at, size, lanes)
        if size == 1:
            return [self.data[at].astype(np.uint32)]
        unit = 2 if size == 2 else 4
        if (at & (unit - 1)).any():
            raise state.fault("an unaligned access of LDS is not implemented")
        if size == 2:
            return [self.data.view(np.uint16)[at >> 1].astype(np.uint32)]
        dwords, first = self.data.view(np.uint32), at >> 2
        return [dwords[first + k] for k in range(size // 4)]

    def store(self, state: State, address: Array, values: Sequence[Array], size: int, lanes: Array | None) -> None:
        """Write ``size`` bytes a lane."""
        if lanes is not None and not lanes.any():
            return
        shape = (state.n, LANES)
        at = self._offsets(state, address, size, lanes)
        given = [np.broadcast_to(value, shape) for value in values]
        keep = slice(None) if lanes is None else lanes
        at, given = at[keep], [value[keep] for value in given]
        if self.unit:
            self._check_write(state, at, given, size, self._bit(state, lanes))
        unit = min(size, 4)
        if (at & (unit - 1)).any():
            raise state.fault("an unaligned access of LDS is not implemented")
        if size == 1:
            self.data[at] = given[0].astype(np.uint8)
        elif size == 2:
            self.data.view(np.uint16)[at >> 1] = given[0].astype(np.uint16)
        else:
            for k, value in enumerate(given):
                self.data.view(np.uint32)[(at >> 2) + k] = value
        if self.unit:
            self._check_stored(state, at, given, size)

    def _bit(self, state: State, lanes: Array | None) -> Array:
        """Bit of the wave of each active lane."""
        within = (state.group.waves % self.waves).astype(np.uint32)
        bit = np.broadcast_to((np.uint32(1) << within)[:, None], (state.n, LANES))
        return bit if lanes is None else bit[lanes]

    def _check_read(self, state: State, at: Array, size: int, lanes: Array | None) -> None:
        where = (at if lanes is None else at[lanes]) // self.unit
        mine = self._bit(state, lanes)
        for step in range(max(1, size // self.unit)):
            if not self.written[where + step].all():
                state.finding("uninitialised LDS", "reads bytes of LDS that no wave has written")
            by = self.writers[where + step]
            if ((by != 0) & ((by & mine) == 0)).any():
                state.finding("LDS race", "reads what another wave wrote, with no barrier between")
            np.bitwise_or.at(self.readers, where + step, mine)

    def _check_write(self, state: State, at: Array, given: Sequence[Array], size: int, mine: Array) -> None:
        """Before a write of the active lanes. Waves that write the value that is there already are no race:
        replicated work does that."""
        for step in range(max(1, size // self.unit)):
            place = at // self.unit + step
            others = (self.writers[place] | self.readers[place]) & ~mine
            if ((others != 0) & (self._held(place) != self._unit_of(given, step, size))).any():
                state.finding("LDS race", "writes what another wave reads or writes, with no barrier between")
            np.bitwise_or.at(self.writers, place, mine)
            self.written[place] = True

    def _check_stored(self, state: State, at: Array, given: Sequence[Array], size: int) -> None:
        """After a write: each lane finds its value, or another lane has written another one to the same place."""
        for step in range(max(1, size // self.unit)):
            if (self._held(at // self.unit + step) != self._unit_of(given, step, size)).any():
                state.finding("LDS race", "two lanes write different values to one place")

    def _held(self, place: Array) -> Array:
        found: Array = self.data.view({1: np.uint8, 2: np.uint16, 4: np.uint32}[self.unit])[place]
        return found

    def _unit_of(self, given: Sequence[Array], step: int, size: int) -> Array:
        byte = step * self.unit
        value = given[byte // 4] >> np.uint32(8 * (byte % 4))
        found: Array = value & np.uint32((1 << (8 * min(self.unit, size))) - 1)
        return found
