"""Scalar instructions: from a parsed line to a function of the state; and branches, waits and mode registers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from validators.amdgcn import alu_scalar
from validators.amdgcn.errors import TextError
from validators.amdgcn.floats import Array
from validators.amdgcn.operands import EXEC, VCC, Operand
from validators.amdgcn.sources import constant_bits
from validators.amdgcn.state import State
from validators.amdgcn.text import Instruction

Run = Callable[[State], None]
Taken = Callable[[State], Array]


def source(operand: Operand, width: int, place: str, unsigned: bool = False) -> Callable[[State], Array]:
    """uint32 or uint64 [waves] or [1]; width 16 is the constant of an instruction, sign-extended unless unsigned."""
    if operand.neg or operand.abs or operand.sext:
        raise TextError(f"{place}: a scalar source has no modifier")
    kind = np.uint64 if width == 64 else np.uint32
    if operand.kind == "const":
        value = operand.value
        if width == 16 and isinstance(value, int):
            value &= 0xFFFF
            value -= 0x10000 if value & 0x8000 and not unsigned else 0
        fixed = np.full(1, constant_bits(value, 64 if width == 64 else 32, place), dtype=kind)
        return lambda state: fixed
    if operand.kind == "scc":
        return lambda state: state.scc().astype(kind)
    if operand.kind != "s" or width == 16 or operand.count != width // 32:
        raise TextError(f"{place}: a scalar source of {width} bits is needed")
    index = operand.index
    return (lambda state: state.s64(index)) if width == 64 else (lambda state: state.s(index))


def build(found: Instruction, place: str) -> Run | None:
    """The function that executes the instruction; None where its name is not known here."""
    name, operands = found.mnemonic, found.operands
    if found.mods and name != "s_waitcnt":
        return None
    if name in alu_scalar.OPS:
        return _operation(alu_scalar.OPS[name], operands, place, name)
    if name in alu_scalar.COMPARES:
        op = alu_scalar.COMPARES[name]
        reads = [source(o, w, place, name.endswith("u32")) for o, w in zip(operands, op.ins, strict=True)]

        def compare(state: State) -> None:
            state.set_scc(op.fn(*(read(state) for read in reads)))

        return compare
    if name in alu_scalar.SAVE_EXEC:
        return _save_exec(alu_scalar.SAVE_EXEC[name], operands, place)
    if name in ("s_setreg_imm32_b32", "s_setreg_b32"):
        return _set_mode(found, place)
    if name in _IGNORED:
        return lambda state: None
    return None


_IGNORED = ("s_nop", "s_sleep", "s_setprio", "s_sethalt", "s_icache_inv", "s_dcache_wb", "s_inst_prefetch")


def _destination(operand: Operand, width: int, place: str) -> int:
    if operand.kind != "s" or operand.count != width // 32:
        raise TextError(f"{place}: a scalar destination of {width} bits is needed")
    return operand.index


def _operation(op: alu_scalar.ScalarOp, operands: tuple[Operand, ...], place: str, name: str) -> Run:
    given = list(operands)
    index = _destination(given[0], op.out, place)
    if name in ("s_addk_i32", "s_mulk_i32"):
        given.insert(1, given[0])
    if len(given) != len(op.ins) + 1:
        raise TextError(f"{place}: {name} takes {len(op.ins)} sources, not {len(given) - 1}")
    reads = [source(o, w, place) for o, w in zip(given[1:], op.ins, strict=True)]
    write = State.set_s64 if op.out == 64 else State.set_s
    fn, scc, reads_scc = op.fn, op.scc, op.reads_scc

    def run(state: State) -> None:
        sources = [read(state) for read in reads]
        if reads_scc:
            sources.append(state.scc())
        result: Any = fn(*sources)
        if scc == "second":
            result, flag = result
            state.set_scc(flag)
        elif scc:
            state.set_scc(result != 0)
        write(state, index, result)

    return run


def _save_exec(fn: Callable[[Array, Array], Array], operands: tuple[Operand, ...], place: str) -> Run:
    index = _destination(operands[0], 64, place)
    read = source(operands[1], 64, place)

    def run(state: State) -> None:
        before = state.s64(EXEC)
        after = fn(read(state), before)
        state.set_s64(index, before)
        state.set_s64(EXEC, after)
        state.set_scc(after != 0)

    return run


_HWREG = re.compile(r"hwreg\((?:HW_REG_)?(\w+)(?:,\s*(\d+),\s*(\d+))?\)")


def _set_mode(found: Instruction, place: str) -> Run:
    register = _HWREG.fullmatch(found.operands[0].name)
    if not register or register[1] not in ("MODE", "1"):
        raise TextError(f"{place}: only the register MODE can be set")
    offset, size = int(register[2] or 0), int(register[3] or 32)
    mask = ((1 << size) - 1) << offset
    read = source(found.operands[1], 32, place)

    def run(state: State) -> None:
        value = read(state)
        if (value != value[0]).any():
            raise state.fault("waves of one group set MODE to different values")
        state.set_mode((state.group.mode & ~mask) | ((int(value[0]) << offset) & mask))

    return run


def branch(name: str) -> Taken | None:
    """Which waves [n] a branch is taken by; None where the name is no branch."""
    return _BRANCHES.get(name)


def _zero(index: int) -> Taken:
    return lambda state: state.s64(index) == 0


def _some(index: int) -> Taken:
    return lambda state: state.s64(index) != 0


_BRANCHES: dict[str, Taken] = {
    "s_branch": lambda state: np.ones(state.n, dtype=bool),
    "s_cbranch_scc0": lambda state: ~state.scc(),
    "s_cbranch_scc1": lambda state: state.scc(),
    "s_cbranch_execz": _zero(EXEC),
    "s_cbranch_execnz": _some(EXEC),
    "s_cbranch_vccz": _zero(VCC),
    "s_cbranch_vccnz": _some(VCC),
}

_COUNT = re.compile(r"(vmcnt|lgkmcnt|expcnt)\((\d+)\)")


def waits(found: Instruction, place: str) -> dict[str, int]:
    """Counter -> how many may still be on their way, of an s_waitcnt."""
    text = found.mods["wait"].replace("&", " ").replace(",", " ")
    if re.fullmatch(r"0x[0-9a-fA-F]+|\d+", text):
        bits = int(text, 0)
        return {"vmcnt": (bits & 15) | ((bits >> 14) & 3) << 4, "lgkmcnt": (bits >> 8) & 15}
    wanted = {name: int(count) for name, count in _COUNT.findall(text)}
    if not wanted or _COUNT.sub("", text).strip():
        raise TextError(f"{place}: {found.text!r} is not understood")
    return wanted
