"""From an operand to a function that reads it, with the type that the operation asks for."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

from validators.amdgcn.errors import TextError
from validators.amdgcn.floats import Array
from validators.amdgcn.operands import Operand
from validators.amdgcn.state import State, unpack

Read = Callable[[State], Array]
_SIGN, _MAGNITUDE = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)


def constant_bits(value: int | float, width: int, place: str) -> int:
    """The bits of a constant in an operand of ``width`` bits: a float in the format of that width, an int as it is."""
    if isinstance(value, float):
        form = {16: ("<e", "<H"), 32: ("<f", "<I"), 64: ("<d", "<Q")}[width]
        found: int = struct.unpack(form[1], struct.pack(form[0], value))[0]
        return found
    if not -(1 << 31) <= value < (1 << 32):
        raise TextError(f"{place}: constant {value} has more than 32 bits")
    return value & ((1 << width) - 1)


def raw32(operand: Operand, place: str, offset: int = 0) -> Read:
    """uint32 [waves, 64], or [waves, 1], or [1, 1]; ``offset``: of the register within a tuple."""
    index = operand.index + offset
    if operand.kind == "v":
        return lambda state: state.v(index)
    if operand.kind == "a":
        return lambda state: state.accumulators[index][state.sel]
    if operand.kind == "s":
        return lambda state: state.s(index)[:, None]
    if operand.kind == "scc":
        return lambda state: state.scc()[:, None].astype(np.uint32)
    if operand.kind == "const":
        value = np.full((1, 1), constant_bits(operand.value, 32, place), dtype=np.uint32)
        return lambda state: value
    raise TextError(f"{place}: {operand.name or operand.kind!r} cannot be a source here")


def raw64(operand: Operand, place: str) -> Read:
    """uint64 of a pair of registers, or of a constant (an int is sign-extended)."""
    if operand.kind == "const":
        bits = constant_bits(operand.value, 64, place)
        value = np.full((1, 1), bits, dtype=np.uint64)
        return lambda state: value
    if operand.count != 2:
        raise TextError(f"{place}: a pair of registers is needed")
    low, high = raw32(operand, place), raw32(operand, place, 1)
    return lambda state: low(state) | (high(state).astype(np.uint64) << np.uint64(32))


def lane_mask(operand: Operand, place: str) -> Read:
    """bool [waves, 64] of a scalar pair."""
    if operand.kind == "const":
        if operand.value not in (0, -1):
            raise TextError(f"{place}: a lane mask is a scalar pair, 0 or -1")
        value = np.full((1, 1), operand.value == -1)
        return lambda state: value
    if operand.kind != "s" or operand.count != 2:
        raise TextError(f"{place}: a lane mask is a scalar pair")
    return lambda state: unpack(state.s64(operand.index))


def modified(read: Read, operand: Operand, width: int = 32) -> Read:
    """``read`` with |x| and -x on the bits of floats of ``width`` bits."""
    kind = np.uint32 if width == 32 else np.uint16
    sign = kind(1 << (width - 1))
    if operand.abs:
        plain, magnitude = read, kind((1 << (width - 1)) - 1)
        read = lambda state: plain(state) & magnitude  # noqa: E731
    if operand.neg:
        inner = read
        read = lambda state: inner(state) ^ sign  # noqa: E731
    return read


def typed(raw: Read, kind: str, operand: Operand, floating: bool, place: str, high: bool = False) -> Read:
    """``raw`` (uint32) as the type ``kind``: "u32", "f32" or "u16" (``high``: the upper half)."""
    if (operand.neg or operand.abs) and not floating:
        raise TextError(f"{place}: -x and |x| belong to operations on floats")
    if kind == "f32":
        changed = modified(raw, operand)
        return lambda state: changed(state).view(np.float32)
    if kind == "u32":
        return modified(raw, operand)
    if kind != "u16":
        raise TextError(f"{place}: a source of type {kind} is not implemented")
    if operand.kind == "const":
        value = np.full((1, 1), constant_bits(operand.value, 16, place), dtype=np.uint16)
        return modified(lambda state: value, operand, 16)
    shift = np.uint32(16 if high else 0)
    return modified(lambda state: (raw(state) >> shift).astype(np.uint16), operand, 16)


def bits_of(mods: str | None, count: int, default: int, place: str) -> list[int]:
    """The numbers of a modifier such as ``op_sel_hi:[1,0]``; ``default`` for those that are missing."""
    given = [int(x) for x in mods.strip("[]").split(",")] if mods else []
    if len(given) > count or any(x not in (0, 1) for x in given):
        raise TextError(f"{place}: {mods} has to be at most {count} bits")
    return given + [default] * (count - len(given))
