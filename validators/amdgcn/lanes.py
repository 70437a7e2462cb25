"""Which lane or part of a register a source reads: DPP, SDWA, and operations across the lanes of a wave."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from validators.amdgcn.errors import TextError
from validators.amdgcn.floats import Array
from validators.amdgcn.state import LANES, State

_LANE = np.arange(LANES)
_ROW = 16


def dpp_lanes(mods: Mapping[str, str], place: str) -> tuple[Array, Array]:
    """(lane that each lane reads, whether it is inside) of the one DPP control among the modifiers."""
    place_in_row, row = _LANE % _ROW, _LANE // _ROW
    controls = [m for m in mods if (m.startswith(("row_", "wave_")) and m != "row_mask") or m == "quad_perm"]
    if len(controls) != 1:
        raise TextError(f"{place}: one DPP control is needed, not {', '.join(controls) or 'none'}")
    name = controls[0]
    value = mods[name]
    by = int(value, 0) if re.fullmatch(r"\d+", value) else 0
    inside = np.ones(LANES, dtype=bool)
    if name == "quad_perm":
        quad = [int(x) for x in value.strip("[]").split(",")]
        lane = _LANE // 4 * 4 + np.array(quad)[_LANE % 4]
    elif name == "row_shl":
        lane, inside = _LANE + by, place_in_row + by < _ROW
    elif name == "row_shr":
        lane, inside = _LANE - by, place_in_row >= by
    elif name == "row_ror":
        lane = row * _ROW + (place_in_row - by) % _ROW
    elif name == "row_mirror":
        lane = row * _ROW + (_ROW - 1 - place_in_row)
    elif name == "row_half_mirror":
        lane = _LANE // 8 * 8 + (7 - _LANE % 8)
    elif name == "row_newbcast":
        lane = row * _ROW + by
    elif name == "row_bcast" and by == 15:
        lane, inside = row * _ROW - 1, row > 0
    elif name == "row_bcast" and by == 31:
        lane, inside = np.full(LANES, 31), row > 1
    else:
        raise TextError(f"{place}: DPP control {name}:{value} is not implemented")
    return np.where(inside, lane, 0), inside


def dpp(mods: Mapping[str, str], place: str) -> tuple[Callable[[State, Array], tuple[Array, Array | None]], Array]:
    """(reader of a source, lanes [64] that may be written).

    The reader gives the moved source and the lanes that have one, None for all. A lane outside the row, or that EXEC
    has off, reads 0 with bound_ctrl and keeps its destination without.
    """
    lane, inside = dpp_lanes(mods, place)
    rows, banks = (int(mods.get(name, "0xf"), 0) for name in ("row_mask", "bank_mask"))
    written = ((rows >> (_LANE // _ROW)) & 1).astype(bool) & ((banks >> (_LANE % _ROW // 4)) & 1).astype(bool)
    zero = "bound_ctrl" in mods

    def read(state: State, source: Array) -> tuple[Array, Array | None]:
        moved = np.broadcast_to(source, (state.n, LANES))[:, lane]
        if state.mask is None and inside.all():
            return moved, None
        valid = np.broadcast_to(inside, moved.shape) if state.mask is None else inside & state.mask[:, lane]
        if zero:
            return np.where(valid, moved, np.uint32(0)), None
        return moved, valid

    return read, written


_SELECT = re.compile(r"(BYTE|WORD)_(\d)|DWORD")


def sdwa_source(select: str, signed: bool, place: str) -> Callable[[Array], Array]:
    """The part of a register that a source reads, extended to 32 bits."""
    found = _SELECT.fullmatch(select)
    if not found:
        raise TextError(f"{place}: SDWA select {select!r} is not understood")
    if found[1] is None:
        return lambda raw: raw
    width = 8 if found[1] == "BYTE" else 16
    shift, mask, sign = np.uint32(int(found[2]) * width), np.uint32((1 << width) - 1), np.uint32(1 << (width - 1))
    if signed:
        return lambda raw: (((raw >> shift) & mask) ^ sign) - sign
    return lambda raw: (raw >> shift) & mask


def sdwa_destination(mods: Mapping[str, str], place: str) -> Callable[[Array, Array], Array]:
    """(result, old) -> what is written."""
    select, unused = mods.get("dst_sel", "DWORD"), mods.get("dst_unused", "UNUSED_PAD")
    found = _SELECT.fullmatch(select)
    if not found or unused not in ("UNUSED_PAD", "UNUSED_PRESERVE", "UNUSED_SEXT"):
        raise TextError(f"{place}: SDWA destination {select} {unused} is not understood")
    if found[1] is None:
        return lambda result, old: result
    width = 8 if found[1] == "BYTE" else 16
    shift, mask = np.uint32(int(found[2]) * width), np.uint32((1 << width) - 1)
    if unused == "UNUSED_PRESERVE":
        return lambda result, old: (old & ~(mask << shift)) | ((result & mask) << shift)
    if unused == "UNUSED_SEXT":
        raise TextError(f"{place}: UNUSED_SEXT is not implemented")
    return lambda result, old: (result & mask) << shift


def first_lane(state: State, values: Array) -> Array:
    """v_readfirstlane: of the first lane that is on; lane 0 where none is."""
    if state.mask is None:
        first: Array = values[:, 0]
        return first
    found: Array = values[np.arange(state.n), state.mask.argmax(axis=1)]
    return found


def count_below(mask: Array, low: bool) -> Array:
    """v_mbcnt: how many bits of ``mask`` (uint32, [..., 1] or [..., 64]) belong to lanes below each lane."""
    lane = _LANE if low else _LANE - 32
    width = np.clip(lane, 0, 32).astype(np.uint64)
    below = (mask & ((np.uint64(1) << width) - np.uint64(1)).astype(np.uint32)).astype(np.uint64)
    bits = np.unpackbits(below[..., None].view(np.uint8), axis=-1)
    found: Array = bits.sum(axis=-1).astype(np.uint32)
    return found
