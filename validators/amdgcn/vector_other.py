"""Vector instructions whose operands follow no table: compares, mixed precision, moves between lanes and files."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from validators.amdgcn import floats, lanes
from validators.amdgcn.alu_integer import bit_operation
from validators.amdgcn.errors import TextError
from validators.amdgcn.floats import fma, settle_nan
from validators.amdgcn.operands import EXEC, Operand
from validators.amdgcn.sources import Read, bits_of, modified, raw32, raw64, typed
from validators.amdgcn.state import LANES, State, pack
from validators.amdgcn.text import Instruction
from validators.amdgcn.vector import Run, base_name, check_modifiers

_FLOAT_RELATIONS: dict[str, Any] = {
    "f": lambda a, b: np.zeros(np.broadcast_shapes(a.shape, b.shape), dtype=bool),
    "lt": np.less,
    "eq": np.equal,
    "le": np.less_equal,
    "gt": np.greater,
    "lg": lambda a, b: (a < b) | (a > b),
    "ge": np.greater_equal,
    "o": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "u": lambda a, b: np.isnan(a) | np.isnan(b),
    "nge": lambda a, b: ~(a >= b),
    "nlg": lambda a, b: ~((a < b) | (a > b)),
    "ngt": lambda a, b: ~(a > b),
    "nle": lambda a, b: ~(a <= b),
    "neq": np.not_equal,
    "nlt": lambda a, b: ~(a < b),
    "tru": lambda a, b: np.ones(np.broadcast_shapes(a.shape, b.shape), dtype=bool),
}
_INTEGER_RELATIONS: dict[str, Any] = {
    "lt": np.less,
    "eq": np.equal,
    "le": np.less_equal,
    "gt": np.greater,
    "ne": np.not_equal,
    "ge": np.greater_equal,
}
_COMPARE = re.compile(r"v_cmp(x?)_([a-z]+)_(f32|f16|i32|u32|i16|u16|i64|u64)")
_AS = {"i32": np.int32, "u32": np.uint32, "i16": np.int16, "u16": np.uint16, "i64": np.int64, "u64": np.uint64}


def build(found: Instruction, place: str) -> Run | None:
    """The function that executes the instruction; None where its name is not known here."""
    name = base_name(found.mnemonic)
    if compare := _COMPARE.fullmatch(name):
        exec_too, relation, kind = compare.groups()
        return _compare(found, exec_too, relation, kind, place)
    maker = _MAKERS.get(name)
    return maker(found, place) if maker else None


def _compare(found: Instruction, exec_too: str, relation: str, kind: str, place: str) -> Run:
    known: dict[str, Any] = _FLOAT_RELATIONS if kind.startswith("f") else _INTEGER_RELATIONS
    if relation not in known or len(found.operands) != 3:
        raise TextError(f"{place}: {found.mnemonic} is not implemented")
    check_modifiers(found, {"src0_sel", "src1_sel"}, place)
    destination, *operands = found.operands
    if destination.kind != "s" or destination.count != 2:
        raise TextError(f"{place}: a compare writes a scalar pair")
    reads = [_compared(found, operand, at, kind, place) for at, operand in enumerate(operands)]
    fn = known[relation]

    def run(state: State) -> None:
        a, b = (read(state) for read in reads)
        if kind == "f32" and state.flush_in:
            a, b = floats.flush(a), floats.flush(b)
        on = np.broadcast_to(fn(a, b), (state.n, LANES))
        packed = pack(on if state.mask is None else on & state.mask)
        state.set_s64(destination.index, packed)
        if exec_too:
            state.set_s64(EXEC, packed)

    return run


def _compared(found: Instruction, operand: Operand, at: int, kind: str, place: str) -> Read:
    if kind.endswith("64"):
        wide = raw64(operand, place)
        return lambda state: wide(state).view(_AS[kind])
    raw = raw32(operand, place)
    if select := found.mods.get(f"src{at}_sel"):
        part, whole = lanes.sdwa_source(select, operand.sext, place), raw
        raw = lambda state: part(whole(state))  # noqa: E731
    read = typed(
        raw,
        {"f32": "f32", "f16": "u16", "i16": "u16", "u16": "u16"}.get(kind, "u32"),
        operand,
        kind.startswith("f"),
        place,
    )
    if kind == "f16":
        return lambda state: floats.from_f16(read(state))
    return read if kind == "f32" else lambda state: read(state).view(_AS[kind])


def _mix(found: Instruction, place: str) -> Run:
    """v_fma_mix_f32, v_fma_mixlo_f16, v_fma_mixhi_f16: each source is a float32, or a half that op_sel names."""
    check_modifiers(found, {"op_sel", "op_sel_hi"}, place)
    destination, *operands = found.operands
    half = bits_of(found.mods.get("op_sel_hi"), 3, 0, place)
    upper = bits_of(found.mods.get("op_sel"), 3, 0, place)
    reads = []
    for operand, is_half, high in zip(operands, half, upper, strict=True):
        raw = raw32(operand, place)
        read = typed(raw, "u16" if is_half else "f32", operand, True, place, bool(high))
        reads.append((lambda state, read=read: floats.from_f16(read(state))) if is_half else read)
    out, index = base_name(found.mnemonic), destination.index

    def run(state: State) -> None:
        sources = [read(state) for read in reads]
        if state.flush_in:
            sources = [floats.flush(x) for x in sources]
        result = settle_nan(fma(*sources), *sources)
        if out == "v_fma_mix_f32":
            state.set_v(index, (floats.flush(result) if state.flush_out else result).view(np.uint32))
            return
        raise state.fault("a fused multiply-add to float16 is not implemented")

    return run


def _read_first(found: Instruction, place: str) -> Run:
    destination, source = found.operands
    read = raw32(source, place)

    def run(state: State) -> None:
        values = np.broadcast_to(read(state), (state.n, LANES))
        state.set_s(destination.index, lanes.first_lane(state, values))

    return run


def _lane_number(operand: Operand, place: str) -> Read:
    read = raw32(operand, place)
    return lambda state: np.broadcast_to(read(state)[:, 0] & np.uint32(LANES - 1), (state.n,)).astype(np.int64)


def _read_lane(found: Instruction, place: str) -> Run:
    destination, source, lane = found.operands
    if source.kind == "s":
        raise TextError(f"{place}: v_readlane reads a vector register")
    read, number = raw32(source, place), _lane_number(lane, place)

    def run(state: State) -> None:
        state.set_s(destination.index, read(state)[np.arange(state.n), number(state)])

    return run


def _write_lane(found: Instruction, place: str) -> Run:
    destination, source, lane = found.operands
    read, number = raw32(source, place), _lane_number(lane, place)

    def run(state: State) -> None:
        chosen = np.arange(LANES) == number(state)[:, None]
        value = np.broadcast_to(read(state)[:, :1], (state.n, LANES))
        state.write(state.vector[destination.index], value, chosen)

    return run


def _count_below(found: Instruction, place: str) -> Run:
    destination, mask, add = found.operands
    read_mask, read_add = raw32(mask, place), raw32(add, place)
    low = "mbcnt_lo" in found.mnemonic
    return lambda state: state.set_v(destination.index, lanes.count_below(read_mask(state), low) + read_add(state))


def _move_pair(found: Instruction, place: str) -> Run:
    """v_pk_mov_b32: the word of the first source that op_sel names, then the second source's."""
    check_modifiers(found, {"op_sel", "op_sel_hi"}, place)
    destination, *operands = found.operands
    words = bits_of(found.mods.get("op_sel"), 2, 0, place)
    if any(o.kind == "const" for o in operands) or destination.count != 2:
        raise TextError(f"{place}: a constant in a move of pairs is not implemented")
    low, high = (raw32(o, place, word) for o, word in zip(operands, words, strict=True))

    def run(state: State) -> None:
        first, second = low(state).copy(), high(state).copy()
        state.set_v(destination.index, first)
        state.set_v(destination.index + 1, second)

    return run


def _bit_operation(found: Instruction, place: str) -> Run:
    check_modifiers(found, {"bitop3"}, place)
    destination, *operands = found.operands
    if len(operands) != 3:
        raise TextError(f"{place}: {found.mnemonic} takes 3 sources")
    reads = [modified(raw32(o, place), o) for o in operands]
    table = int(found.mods.get("bitop3", "0"), 0)
    short = found.mnemonic.startswith("v_bitop3_b16")

    def run(state: State) -> None:
        a, b, c = (read(state) for read in reads)
        result = bit_operation(a, b, c, table)
        if short:
            # What the upper half becomes is not documented: poison shows who depends on it.
            result = (result & np.uint32(0xFFFF)) | (state.poison & np.uint32(0xFFFF0000))
        state.set_v(destination.index, result)

    return run


def _accumulator(found: Instruction, place: str) -> Run:
    destination, source = found.operands
    read = raw32(source, place)
    if destination.kind == "a":
        return lambda state: state.write(state.accumulators[destination.index], read(state), state.mask)
    return lambda state: state.set_v(destination.index, read(state))


def _swap_rows(found: Instruction, place: str) -> Run:
    """v_permlane32_swap, v_permlane16_swap: the odd rows of the first register change with the even ones of the
    second, a row being 32 or 16 lanes."""
    first, second = found.operands
    width = 32 if "permlane32" in found.mnemonic else 16
    odd = (np.arange(LANES) // width) % 2 == 1
    up, down = np.arange(LANES) + width, np.arange(LANES) - width

    def run(state: State) -> None:
        if state.mask is not None:
            raise state.fault("a swap of rows with lanes off is not implemented")
        a, b = state.v(first.index).copy(), state.v(second.index).copy()
        state.set_v(first.index, np.where(odd, b[:, np.where(odd, down, 0)], a))
        state.set_v(second.index, np.where(odd, b, a[:, np.where(odd, 0, up)]))

    return run


def _nothing(found: Instruction, place: str) -> Run:
    return lambda state: None


_MAKERS = {
    "v_fma_mix_f32": _mix,
    "v_fma_mixlo_f16": _mix,
    "v_fma_mixhi_f16": _mix,
    "v_readfirstlane_b32": _read_first,
    "v_readlane_b32": _read_lane,
    "v_writelane_b32": _write_lane,
    "v_mbcnt_lo_u32_b32": _count_below,
    "v_mbcnt_hi_u32_b32": _count_below,
    "v_pk_mov_b32": _move_pair,
    "v_bitop3_b32": _bit_operation,
    "v_bitop3_b16": _bit_operation,
    "v_accvgpr_read_b32": _accumulator,
    "v_accvgpr_write_b32": _accumulator,
    "v_accvgpr_mov_b32": _accumulator,
    "v_permlane32_swap_b32": _swap_rows,
    "v_permlane16_swap_b32": _swap_rows,
    "v_nop": _nothing,
}
