"""Memory instructions: s_load, buffer, global, scratch and ds; each gives a function and what it leaves on its way."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from validators.amdgcn.errors import TextError
from validators.amdgcn.floats import Array
from validators.amdgcn.operands import M0, Operand
from validators.amdgcn.sources import raw32
from validators.amdgcn.state import LANES, State
from validators.amdgcn.text import Instruction

Run = Callable[[State], None]
Registers = frozenset[tuple[str, int]]


@dataclass(frozen=True)
class Access:
    """run; counter: which s_waitcnt waits for it; registers: what it delivers, none for a store. unit: bytes of its
    smallest access, for LDS."""

    run: Run
    counter: str
    registers: Registers
    unit: int = 0


_SIZES = {"byte": 1, "ubyte": 1, "sbyte": 1, "short": 2, "ushort": 2, "sshort": 2, "dword": 4, "dwordx2": 8}
_SIZES |= {"dwordx3": 12, "dwordx4": 16}
_CACHE = {"sc0", "sc1", "nt", "glc", "slc"}
_SMEM = re.compile(r"s_(?:load|buffer_load)_dword(x\d+)?")
_VMEM = re.compile(r"(buffer|global)_(load|store)_(\w+?)(_d16)?(_hi)?")
_SCRATCH = re.compile(r"scratch_(load|store)_(dword(?:x[234])?)")
_DS = re.compile(r"ds_(read|write)(2?)(st64)?_([bui])(\d+)(_d16(?:_hi)?)?")


def build(found: Instruction, place: str) -> Access | None:
    """What the instruction does; None where its name is not known here."""
    name = found.mnemonic
    if matched := _SMEM.fullmatch(name):
        return _scalar_load(found, int((matched[1] or "x1")[1:]), place)
    if (matched := _VMEM.fullmatch(name)) and matched[3] in _SIZES:
        maker = _buffer if matched[1] == "buffer" else _global
        return maker(found, matched[2] == "store", matched[3], bool(matched[4]), bool(matched[5]), place)
    if matched := _SCRATCH.fullmatch(name):
        return _scratch(found, matched[1] == "store", _SIZES[matched[2]] // 4, place)
    if matched := _DS.fullmatch(name):
        return _local(found, matched, place)
    if name == "ds_bpermute_b32":
        return _permute(found, place)
    return None


def _allowed(found: Instruction, known: set[str], place: str) -> None:
    for name in found.mods:
        if name not in known:
            raise TextError(f"{place}: modifier {name} of {found.mnemonic} is not implemented")


def _offset(found: Instruction, place: str, name: str = "offset") -> int:
    try:
        return int(found.mods.get(name) or "0", 0)
    except ValueError:
        raise TextError(f"{place}: offset {found.mods[name]!r} is no number") from None


def _registers(operand: Operand) -> Registers:
    return frozenset((operand.kind, index) for index in operand.registers)


def _count(operand: Operand, words: int, place: str) -> None:
    if operand.kind not in ("v", "a") or operand.count != words:
        raise TextError(f"{place}: {words} registers are needed for the data")


# ---- scalar loads


def _scalar_load(found: Instruction, words: int, place: str) -> Access:
    _allowed(found, {"offset"} | _CACHE, place)
    if found.mnemonic.startswith("s_buffer") or len(found.operands) != 3:
        raise TextError(f"{place}: {found.mnemonic} with these operands is not implemented")
    destination, base, offset = found.operands
    if destination.count != words or base.count != 2 or destination.kind != "s" or base.kind != "s":
        raise TextError(f"{place}: operands of {found.mnemonic} are not understood")
    more = _offset(found, place)

    def run(state: State) -> None:
        by = np.int64(offset.value) if offset.kind == "const" else state.s(offset.index).astype(np.int64)
        address = (state.s64(base.index).view(np.int64) + by + more) & ~np.int64(3)
        every = address[:, None]
        for k in range(words):
            value = state.memory.load(state, every + 4 * k, 4, None)[0]
            state.set_s(destination.index + k, np.broadcast_to(value, (state.n, 1))[:, 0])

    return Access(run, "lgkmcnt", _registers(destination))


# ---- vector loads and stores


def _deliver(state: State, operand: Operand, kind: str, loaded: list[Array], d16: bool, high: bool) -> None:
    """Write what was loaded: extended by its kind, or into one half with d16."""
    value = loaded[0]
    if kind.startswith("s"):
        width = 8 if kind == "sbyte" else 16
        sign = np.uint32(1 << (width - 1))
        value = (value ^ sign) - sign
    if not d16:
        for k, dword in enumerate([value, *loaded[1:]]):
            _set(state, operand, k, dword)
        return
    old = _get(state, operand, 0)
    half = value & np.uint32(0xFFFF)
    keep = np.uint32(0xFFFF if high else 0xFFFF0000)
    _set(state, operand, 0, (old & keep) | (half << np.uint32(16) if high else half))


def _set(state: State, operand: Operand, k: int, value: Array) -> None:
    """Write register ``k`` of a tuple of vector or accumulation registers."""
    file = state.vector if operand.kind == "v" else state.accumulators
    state.write(file[operand.index + k], value, state.mask)


def _get(state: State, operand: Operand, k: int) -> Array:
    file = state.vector if operand.kind == "v" else state.accumulators
    found: Array = file[operand.index + k][state.sel]
    return found


def _stored(state: State, operand: Operand, words: int, high: bool) -> list[Array]:
    values = [_get(state, operand, k) for k in range(words)]
    return [values[0] >> np.uint32(16)] if high else values


def _buffer(found: Instruction, store: bool, kind: str, d16: bool, high: bool, place: str) -> Access:
    """MUBUF with a raw descriptor: stride 0, no swizzle. With ``lds`` what is loaded goes to local memory at M0."""
    _allowed(found, {"offen", "offset"} | _CACHE | (set() if store else {"lds"}), place)
    into_lds = "lds" in found.mods
    operands = found.operands if not into_lds else (Operand("off"), *found.operands)
    if len(operands) != 4 or operands[2].count != 4 or operands[2].kind != "s":
        raise TextError(f"{place}: operands of {found.mnemonic} are not understood")
    data, voffset, descriptor, soffset = operands
    size, words = _SIZES[kind], max(1, _SIZES[kind] // 4)
    if not into_lds:
        _count(data, words, place)
    offset, offen = _offset(found, place), "offen" in found.mods
    base_offset = raw32(soffset, place)
    lane_offset = raw32(voffset, place) if offen else None

    def run(state: State) -> None:
        inner = base_offset(state).astype(np.int64) + offset
        if lane_offset is not None:
            inner = inner + lane_offset(state).astype(np.int64)
        inner = np.broadcast_to(inner, (state.n, LANES))
        base, inside = _described(state, descriptor.index, inner, size)
        lanes = inside if state.mask is None else inside & state.mask
        every = None if lanes.all() else lanes
        if store:
            state.memory.store(state, base + inner, _stored(state, data, words, high), size, every)
            return
        loaded = state.memory.load(state, base + inner, size, every)
        if every is not None:
            loaded = [np.where(lanes, value, np.uint32(0)) for value in loaded]
        if into_lds:
            start = (state.s(M0) + np.uint32(offset))[:, None] + np.arange(LANES, dtype=np.uint32) * np.uint32(size)
            state.lds.store(state, start, loaded, size, state.mask)
        else:
            _deliver(state, data, kind, loaded, d16, high)

    return Access(run, "vmcnt", frozenset() if store or into_lds else _registers(data), size if into_lds else 0)


def _described(state: State, index: int, inner: Array, size: int) -> tuple[Array, Array]:
    """(base address [waves, 1], lanes that are inside [waves, 64]) of a raw buffer; each dword is checked alone."""
    low, high, records, form = (state.s(index + k) for k in range(4))
    if (high >> np.uint32(16)).any():
        raise state.fault("a buffer with a stride or a swizzle is not implemented")
    if (form != np.uint32(0x27000)).any():
        raise state.fault(f"buffer format {int(form[0]):#x} is not implemented")
    limit = records.astype(np.int64)[:, None]
    inside = inner + size <= limit
    if size > 4 and (~inside & (inner + 4 <= limit)).any():
        raise state.fault("a range check that cuts an access in two is not implemented")
    return (low.astype(np.int64) | (high.astype(np.int64) << np.int64(32)))[:, None], inside


def _global(found: Instruction, store: bool, kind: str, d16: bool, high: bool, place: str) -> Access:
    _allowed(found, {"offset"} | _CACHE, place)
    if len(found.operands) != 3:
        raise TextError(f"{place}: operands of {found.mnemonic} are not understood")
    address, data = found.operands[:2] if store else (found.operands[1], found.operands[0])
    base = found.operands[2]
    size, words = _SIZES[kind], max(1, _SIZES[kind] // 4)
    _count(data, words, place)
    if address.kind != "v" or address.count != (2 if base.kind == "off" else 1):
        raise TextError(f"{place}: the address of {found.mnemonic} is not understood")
    offset = _offset(found, place)

    def run(state: State) -> None:
        if base.kind == "off":
            low, upper = state.v(address.index), state.v(address.index + 1)
            at = low.astype(np.int64) | (upper.astype(np.int64) << np.int64(32))
        else:
            at = state.v(address.index).astype(np.int64) + state.s64(base.index).view(np.int64)[:, None]
        if store:
            state.memory.store(state, at + offset, _stored(state, data, words, high), size, state.mask)
        else:
            _deliver(state, data, kind, state.memory.load(state, at + offset, size, state.mask), d16, high)

    return Access(run, "vmcnt", frozenset() if store else _registers(data))


def _scratch(found: Instruction, store: bool, words: int, place: str) -> Access:
    """Private memory of a lane, which compilers spill registers to; its address is a constant and a scalar at most."""
    _allowed(found, {"offset"} | _CACHE, place)
    if len(found.operands) != 3:
        raise TextError(f"{place}: operands of {found.mnemonic} are not understood")
    address, data = found.operands[:2] if store else (found.operands[1], found.operands[0])
    base = found.operands[2]
    _count(data, words, place)
    if address.kind != "off" or base.kind not in ("off", "s"):
        raise TextError(f"{place}: an address of scratch that differs between lanes is not implemented")
    offset = _offset(found, place)

    def run(state: State) -> None:
        start = offset
        if base.kind == "s":
            given = state.s(base.index)
            if (given != given[0]).any():
                raise state.fault("an address of scratch that differs between waves is not implemented")
            start += int(given[0])
        if start % 4 or start < 0 or start // 4 + words > len(state.scratch):
            raise state.fault(f"accesses byte {start} of scratch, of which a lane has {4 * len(state.scratch)}")
        for k in range(words):
            slot = state.scratch[start // 4 + k]
            if store:
                state.write(slot, _get(state, data, k), state.mask)
            else:
                _set(state, data, k, slot[state.sel])

    return Access(run, "vmcnt", frozenset() if store else _registers(data))


# ---- local memory


def _local(found: Instruction, matched: re.Match[str], place: str) -> Access:
    action, double, stride64, sign, width, d16 = matched.groups()
    _allowed(found, {"offset0", "offset1"} if double else {"offset"}, place)
    size = int(width) // 8
    words = max(1, size // 4)
    if double:
        unit = size * (64 if stride64 else 1)
        offsets = [_offset(found, place, name) * unit for name in ("offset0", "offset1")]
    else:
        offsets = [_offset(found, place)]
    if action == "read":
        return _local_read(found, offsets, size, words, sign, d16 or "", place)
    address, *data = found.operands
    if (
        address.kind != "v"
        or len(data) != len(offsets)
        or any(d.kind not in ("v", "a") or d.count != words for d in data)
    ):
        raise TextError(f"{place}: operands of {found.mnemonic} are not understood")
    high = (d16 or "").endswith("hi")

    def write(state: State) -> None:
        at = state.v(address.index)
        for operand, offset in zip(data, offsets, strict=True):
            state.lds.store(state, at + np.uint32(offset), _stored(state, operand, words, high), size, state.mask)

    return Access(write, "lgkmcnt", frozenset(), min(size, 4))


def _local_read(
    found: Instruction, offsets: list[int], size: int, words: int, sign: str, d16: str, place: str
) -> Access:
    destination, address = found.operands
    if address.kind != "v" or destination.kind not in ("v", "a") or destination.count != words * len(offsets):
        raise TextError(f"{place}: operands of {found.mnemonic} are not understood")
    kind = {("i", 1): "sbyte", ("i", 2): "sshort"}.get((sign, size), "dword")
    single = [Operand(destination.kind, destination.index + k * words, words) for k in range(len(offsets))]

    def read(state: State) -> None:
        at = state.v(address.index)
        loaded = [state.lds.load(state, at + np.uint32(offset), size, state.mask) for offset in offsets]
        for operand, values in zip(single, loaded, strict=True):
            _deliver(state, operand, kind, values, bool(d16), d16.endswith("hi"))

    return Access(read, "lgkmcnt", _registers(destination), min(size, 4))


def _permute(found: Instruction, place: str) -> Access:
    """ds_bpermute_b32: each lane reads the lane that its address names, 4 bytes a lane; a lane that is off gives 0."""
    _allowed(found, {"offset"}, place)
    destination, address, data = found.operands
    offset = _offset(found, place)

    def run(state: State) -> None:
        lane = ((state.v(address.index) + np.uint32(offset)) >> np.uint32(2)) & np.uint32(LANES - 1)
        value = state.v(data.index)
        if state.mask is not None:
            value = np.where(state.mask, value, np.uint32(0))
        state.set_v(destination.index, np.take_along_axis(value, lane.astype(np.int64), axis=1))

    return Access(run, "lgkmcnt", _registers(destination))
