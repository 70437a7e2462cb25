"""What the waves of a chunk of workgroups hold: registers, EXEC, SCC, and which group of waves runs now."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from validators.amdgcn.errors import MachineFault
from validators.amdgcn.floats import Array
from validators.amdgcn.operands import EXEC, SGPRS
from validators.amdgcn.policies import Policy

if TYPE_CHECKING:
    from validators.amdgcn.lds import Lds
    from validators.amdgcn.memory import Memory
    from validators.amdgcn.text import Program

LANES = 64
Selection = slice | Array

ROUND, DENORM32_IN, DENORM32_OUT, DENORM16_IN, DENORM16_OUT = 0xF, 0x10, 0x20, 0x40, 0x80
IEEE, FP16_OVFL = 1 << 9, 1 << 23
"""Bits of MODE."""


@dataclass(eq=False)
class Group:
    """Waves that run together. waves: their numbers, ascending. pending: loads on their way, oldest first, each
    (counter, registers); registers are ("v", 4) or ("s", 6)."""

    waves: Array
    pc: int
    mode: int
    pending: list[tuple[str, frozenset[tuple[str, int]]]] = field(default_factory=list)
    parked: bool = False

    def key(self) -> tuple[object, ...]:
        """Groups of equal key can run as one."""
        return self.pc, self.mode, self.parked, tuple(self.pending)


class State:
    """Registers of ``waves`` waves: vector ones uint32 [register, wave, lane], scalar ones uint32 [register, wave].

    The group that runs is chosen by ``enter``; ``v``, ``s`` and their writers then see its waves only.
    poison: the bytes that registers hold before they are written.
    """

    def __init__(self, program: Program, waves: int, vgprs: int, agprs: int, policy: Policy, poison: int) -> None:
        self.program, self.policy, self.poison = program, policy, np.uint32(poison * 0x01010101)
        self.fnuz = program.target == "gfx942"
        self.vector = np.full((vgprs, waves, LANES), self.poison, dtype=np.uint32)
        self.accumulators = np.full((agprs, waves, LANES), self.poison, dtype=np.uint32)
        self.scratch = np.full((-(-program.meta.scratch // 4), waves, LANES), self.poison, dtype=np.uint32)
        self.scalar = np.full((SGPRS, waves), self.poison, dtype=np.uint32)
        self.scc_bits = np.zeros(waves, dtype=bool)
        self.exec_bits = np.ones((waves, LANES), dtype=bool)
        self.scalar[EXEC : EXEC + 2] = np.uint32(0xFFFFFFFF)
        self.workgroup = np.zeros(waves, dtype=np.int64)
        self.first_workgroup = 0
        self.executed = np.zeros(len(program.instructions), dtype=bool)
        self.findings: dict[str, str] = {}
        self.touched: set[str] = set()
        self.memory: Memory
        self.lds: Lds
        self.group = Group(np.arange(waves), 0, 0)
        self.sel: Selection = slice(None)
        self.n = waves
        self.mask: Array | None = None
        self.flush_in = self.flush_out = False
        self.clamp16 = False

    # ---- the group that runs

    def enter(self, group: Group) -> None:
        """Let ``group`` run."""
        self.group, self.n = group, len(group.waves)
        self.sel = _selection(group.waves, self.exec_bits.shape[0])
        self.set_mode(group.mode)
        self.refresh_mask()

    def set_mode(self, mode: int) -> None:
        """MODE of the group; what is not implemented of it is a fault."""
        if mode & ROUND:
            raise self.fault(f"rounding mode {mode & ROUND:#x} is not implemented; only to nearest even")
        self.group.mode = mode
        self.flush_in, self.flush_out = not mode & DENORM32_IN, not mode & DENORM32_OUT
        self.clamp16 = bool(mode & FP16_OVFL)

    def refresh_mask(self) -> None:
        """``mask`` is None where every lane of every wave is on."""
        bits = self.exec_bits[self.sel]
        self.mask = None if bits.all() else bits

    def fault(self, sentence: str) -> MachineFault:
        """The sentence with the place of the instruction that runs."""
        return MachineFault(f"{self.program.place(self.group.pc)}: {sentence}")

    def finding(self, kind: str, sentence: str) -> None:
        """Note what no value shows; the first of a kind is kept."""
        self.findings.setdefault(kind, f"{self.program.place(self.group.pc)}: {sentence}")

    # ---- registers

    def v(self, index: int) -> Array:
        """uint32 [waves, 64]; a view or a copy."""
        found: Array = self.vector[index][self.sel]
        return found

    def set_v(self, index: int, value: Array) -> None:
        """Write the lanes that EXEC has on."""
        self.write(self.vector[index], value, self.mask)

    def set_v_where(self, index: int, value: Array, lanes: Array) -> None:
        """Write the lanes that EXEC and ``lanes`` have on."""
        self.write(self.vector[index], value, lanes if self.mask is None else lanes & self.mask)

    def write(self, register: Array, value: Array, mask: Array | None) -> None:
        """Write ``value`` (uint32, broadcast) into the group's part of one register where ``mask``."""
        if mask is None:
            register[self.sel] = value
        elif isinstance(self.sel, slice):
            np.copyto(register[self.sel], value, where=mask)
        else:
            register[self.sel] = np.where(mask, value, register[self.sel])

    def s(self, index: int) -> Array:
        """uint32 [waves]."""
        found: Array = self.scalar[index][self.sel]
        return found

    def s64(self, index: int) -> Array:
        """uint64 [waves] of a pair."""
        found: Array = self.s(index).astype(np.uint64) | (self.s(index + 1).astype(np.uint64) << np.uint64(32))
        return found

    def set_s(self, index: int, value: Array) -> None:
        """Write one scalar register; EXEC changes which lanes are on."""
        self.scalar[index][self.sel] = value
        if index >= EXEC:
            pair = self.s64(EXEC)
            self.exec_bits[self.sel] = unpack(pair)
            self.refresh_mask()

    def set_s64(self, index: int, value: Array) -> None:
        """Write a pair."""
        self.scalar[index + 1][self.sel] = (value >> np.uint64(32)).astype(np.uint32)
        self.set_s(index, (value & np.uint64(0xFFFFFFFF)).astype(np.uint32))

    def scc(self) -> Array:
        """bool [waves]."""
        found: Array = self.scc_bits[self.sel]
        return found

    def set_scc(self, value: Array) -> None:
        """Write SCC."""
        self.scc_bits[self.sel] = value

    def lanes_on(self) -> Array:
        """bool [waves, 64]: EXEC."""
        found: Array = self.exec_bits[self.sel]
        return found


def _selection(waves: Array, total: int) -> Selection:
    """A slice where the numbers are evenly spaced, so that registers are views."""
    if len(waves) == total:
        return slice(None)
    if len(waves) == 1:
        return slice(int(waves[0]), int(waves[0]) + 1)
    step = int(waves[1] - waves[0])
    if (np.diff(waves) == step).all():
        return slice(int(waves[0]), int(waves[-1]) + 1, step)
    return waves


def pack(lanes: Array) -> Array:
    """bool [waves, 64] to uint64 [waves], lane 0 in bit 0."""
    packed = np.packbits(np.ascontiguousarray(lanes), axis=1, bitorder="little")
    found: Array = packed.view("<u8")[:, 0].astype(np.uint64)
    return found


def unpack(masks: Array) -> Array:
    """uint64 [waves] to bool [waves, 64]."""
    as_bytes = np.ascontiguousarray(masks.astype("<u8"))[:, None].view(np.uint8)
    return np.unpackbits(as_bytes, axis=1, bitorder="little").view(bool)
