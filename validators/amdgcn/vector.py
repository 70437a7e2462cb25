"""Vector instructions: from a parsed line to a function of the state."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from validators.amdgcn import alu_convert, alu_float, alu_integer, floats, lanes
from validators.amdgcn.errors import TextError
from validators.amdgcn.floats import Array
from validators.amdgcn.op import Op, Table
from validators.amdgcn.operands import VCC, Operand
from validators.amdgcn.sources import Read, bits_of, lane_mask, raw32, raw64, typed
from validators.amdgcn.state import State, pack
from validators.amdgcn.text import Instruction

Run = Callable[[State], None]
OPS: Table = {**alu_integer.OPS, **alu_float.OPS, **alu_convert.OPS}

_DPP = ("quad_perm", "row_shl", "row_shr", "row_ror", "row_mirror", "row_half_mirror", "row_bcast", "row_newbcast")
_KNOWN = {"row_mask", "bank_mask", "bound_ctrl", "op_sel", "op_sel_hi", "neg_lo", "neg_hi", *_DPP}
_KNOWN |= {"dst_sel", "dst_unused", "src0_sel", "src1_sel", "bitop3"}


def base_name(mnemonic: str) -> str:
    """The mnemonic without its encoding: v_add_f32_e32 is v_add_f32."""
    return re.sub(r"_(e32|e64|dpp|sdwa)$", "", mnemonic)


def operation(mnemonic: str) -> Op | None:
    """The table's entry for a mnemonic, or None."""
    return OPS.get(base_name(mnemonic))


def build(found: Instruction, place: str) -> Run | None:
    """The function that executes the instruction; None where its name is not of this table."""
    op = operation(found.mnemonic)
    if op is None:
        return None
    check_modifiers(found, _KNOWN, place)
    operands = list(found.operands)
    if len(operands) < 2 or operands[0].kind not in ("v", "s"):
        raise TextError(f"{place}: operands of {found.mnemonic} are not understood")
    destination = operands.pop(0)
    second = operands.pop(0) if op.second else None
    if base_name(found.mnemonic) == "v_div_fmas_f32":
        operands.append(Operand("s", VCC, 2))
    if len(operands) != len(op.ins):
        raise TextError(f"{place}: {found.mnemonic} takes {len(op.ins)} sources, not {len(operands)}")
    if op.out == "pk32":
        return _pairs(found, op, destination, operands, place)
    reads, written, dpp_valid = _sources(found, op, operands, place)
    compute = _compute(op, destination)
    write = _writer(found, op, destination, place)

    def run(state: State) -> None:
        dpp_valid[:] = [None]
        result = compute(state, *(read(state) for read in reads))
        if second is not None:
            result, carry = result
            _set_mask(state, second, carry)
        valid = dpp_valid[0]
        write(state, result, valid if written is None else written if valid is None else valid & written)

    return run


def check_modifiers(found: Instruction, known: set[str], place: str) -> None:
    """TextError for a modifier that the instruction's class does not know."""
    for name in found.mods:
        if name not in known:
            raise TextError(f"{place}: modifier {name} of {found.mnemonic} is not implemented")


def _sources(
    found: Instruction, op: Op, operands: list[Operand], place: str
) -> tuple[list[Read], Array | None, list[Array | None]]:
    """(readers, lanes that DPP lets write or None, cell that a DPP reader fills with the lanes that have a source)."""
    cell: list[Array | None] = [None]
    written = None
    mods = found.mods
    select = bits_of(mods.get("op_sel"), len(op.ins) + 1, 0, place)
    floating = bool(re.search(r"_f(16|32)|cndmask|_fp8|bf16", found.mnemonic))
    reads: list[Read] = []
    for at, (operand, kind) in enumerate(zip(operands, op.ins, strict=True)):
        if kind in ("u64", "i64"):
            wide = raw64(operand, place)
            reads.append(wide if kind == "u64" else lambda state, wide=wide: wide(state).view(np.int64))  # type: ignore[misc]
            continue
        if kind == "mask":
            reads.append(lane_mask(operand, place))
            continue
        raw = raw32(operand, place)
        if at == 0 and any(name in mods for name in _DPP):
            raw, written = _dpp(raw, found, cell, place)
        if f"src{at}_sel" in mods:
            raw = _part(raw, lanes.sdwa_source(mods[f"src{at}_sel"], operand.sext, place))
        elif operand.sext:
            raise TextError(f"{place}: sext() without a select")
        if kind == "pk16":
            reads.append(_both_halves(raw, found, operand, at, len(op.ins), place))
        else:
            reads.append(typed(raw, kind, operand, floating, place, bool(select[at])))
    return reads, written, cell


def _part(raw: Read, choose: Callable[[Array], Array]) -> Read:
    return lambda state: choose(raw(state))


def _dpp(raw: Read, found: Instruction, cell: list[Array | None], place: str) -> tuple[Read, Array | None]:
    move, written = lanes.dpp(found.mods, place)

    def read(state: State) -> Array:
        moved, cell[0] = move(state, raw(state))
        return moved

    return read, None if written.all() else written


def _both_halves(raw: Read, found: Instruction, operand: Operand, at: int, count: int, place: str) -> Read:
    low = bits_of(found.mods.get("op_sel"), count, 0, place)[at]
    high = bits_of(found.mods.get("op_sel_hi"), count, 1, place)[at]
    neg = [bits_of(found.mods.get(name), count, 0, place)[at] for name in ("neg_lo", "neg_hi")]
    if operand.kind == "const":
        if high:
            raise TextError(f"{place}: a constant in both halves is not implemented")
        raw = typed(raw, "u16", operand, True, place)
    flip = np.uint32((neg[0] << 15) | (neg[1] << 31))

    def read(state: State) -> Array:
        both = raw(state).astype(np.uint32)
        first = (both >> np.uint32(16)) if low else both & np.uint32(0xFFFF)
        second = (both & np.uint32(0xFFFF0000)) if high else both << np.uint32(16)
        joined: Array = (first | second) ^ flip
        return joined

    return read


def _compute(op: Op, destination: Operand) -> Callable[..., Array]:
    """The operation with MODE's denormals and the rule for NaN around it."""
    fn, context, old, arith, nan = op.fn, op.context, op.old, op.arith, op.nan

    def compute(state: State, *sources: Array) -> Array:
        if old:
            sources = (*sources, state.v(destination.index).view(np.float32))
        if arith and state.flush_in:
            sources = tuple(floats.flush(x) if x.dtype == np.float32 else x for x in sources)
        result: Array = fn(state, *sources) if context else fn(*sources)
        if nan:
            result = floats.settle_nan(result, *(x for x in sources if x.dtype == np.float32))
        if arith and state.flush_out and result.dtype == np.float32:
            result = floats.flush(result)
        return result

    return compute


def _writer(
    found: Instruction, op: Op, destination: Operand, place: str
) -> Callable[[State, Array, Array | None], None]:
    index, out = destination.index, op.out
    if out == "mask":
        return lambda state, result, valid: _set_mask(state, destination, result)
    if destination.kind != "v":
        raise TextError(f"{place}: {found.mnemonic} writes a vector register")
    if out in ("u64", "i64"):
        if destination.count != 2:
            raise TextError(f"{place}: a pair of registers is needed")
        return lambda state, result, valid: _write_pair(state, index, result, valid)
    if out == "word":
        high = bits_of(found.mods.get("op_sel"), len(op.ins) + 1, 0, place)[-1]
        keep, shift = np.uint32(0xFFFF if high else 0xFFFF0000), np.uint32(16 if high else 0)
        return lambda state, result, valid: _write(state, index, (state.v(index) & keep) | (result << shift), valid)
    if found.mnemonic.endswith("_sdwa"):
        place_result = lanes.sdwa_destination(found.mods, place)
        return lambda state, result, valid: _write(state, index, place_result(_as_u32(result), state.v(index)), valid)
    return lambda state, result, valid: _write(state, index, _as_u32(result), valid)


def _as_u32(result: Array) -> Array:
    if result.dtype == np.uint32:
        return result
    return result.view(np.uint32) if result.dtype.itemsize == 4 else result.astype(np.uint32)


def _write(state: State, index: int, value: Array, valid: Array | None) -> None:
    if valid is None:
        state.set_v(index, value)
    else:
        state.set_v_where(index, value, np.broadcast_to(valid, (state.n, 64)))


def _write_pair(state: State, index: int, value: Array, valid: Array | None) -> None:
    raw = value.view(np.uint64)
    _write(state, index, raw.astype(np.uint32), valid)
    _write(state, index + 1, (raw >> np.uint64(32)).astype(np.uint32), valid)


def _set_mask(state: State, destination: Operand, lanes_set: Array) -> None:
    """Write a lane mask; lanes that are off become 0."""
    on = np.broadcast_to(lanes_set, (state.n, 64))
    if state.mask is not None:
        on = on & state.mask
    if destination.kind == "off":
        return
    state.set_s64(destination.index, pack(on))


def _pairs(found: Instruction, op: Op, destination: Operand, operands: list[Operand], place: str) -> Run:
    """v_pk_*_f32: the operation on each word of the pairs that op_sel and op_sel_hi name."""
    count = len(op.ins)
    if destination.count != 2 or destination.kind != "v":
        raise TextError(f"{place}: {found.mnemonic} writes a pair of vector registers")
    readers: list[list[Read]] = []
    for half, (select, default, negate) in enumerate((("op_sel", 0, "neg_lo"), ("op_sel_hi", 1, "neg_hi"))):
        chosen = bits_of(found.mods.get(select), count, default, place)
        signs = bits_of(found.mods.get(negate), count, 0, place)
        readers.append([])
        for operand, word, sign in zip(operands, chosen, signs, strict=True):
            if operand.kind == "const" and word and half:
                raise TextError(f"{place}: a constant in the upper word is not implemented")
            if operand.kind != "const" and operand.count != 2:
                raise TextError(f"{place}: a pair of registers is needed")
            raw = raw32(operand, place, 0 if operand.kind == "const" else word)
            flipped = Operand(operand.kind, neg=bool(sign))
            readers[half].append(typed(raw, "f32", flipped, True, place))
    compute, index = _compute(op, destination), destination.index

    def run(state: State) -> None:
        low, high = (compute(state, *(read(state) for read in half)) for half in readers)
        state.set_v(index, low.view(np.uint32))
        state.set_v(index + 1, high.view(np.uint32))

    return run
