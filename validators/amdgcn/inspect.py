"""What can be read from machine code without running it: mode, rounding, conversions, divisions, what is open."""

from __future__ import annotations

import re
from collections.abc import Iterator

from validators.amdgcn.errors import TextError
from validators.amdgcn.launch import initial_mode
from validators.amdgcn.scheduler import step_of
from validators.amdgcn.state import DENORM32_IN, DENORM32_OUT, FP16_OVFL
from validators.amdgcn.text import Instruction, Program
from validators.amdgcn.vector import base_name, operation

SHOWN = 3
"""Lines of the text that are named for each fact."""


def facts(program: Program) -> Iterator[str]:
    """One sentence each, in the order of the questions that a contract answers."""
    yield _head(program)
    yield from _mode(program)
    yield from _arithmetic(program)
    yield _conversions(program)
    yield from _stored(program)
    yield _open(program)
    yield _implemented(program)


def _where(found: list[Instruction]) -> str:
    lines = ", ".join(str(one.line) for one in found[:SHOWN])
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return f"line{'s' if len(found) > 1 else ''} {lines}{more}"


def _named(program: Program, pattern: str) -> list[Instruction]:
    return [one for one in program.instructions if re.fullmatch(pattern, base_name(one.mnemonic))]


def _head(program: Program) -> str:
    meta = program.meta
    kinds = [arg.kind for arg in meta.explicit]
    return (
        f"kernel {program.name} for {program.target}: {len(program.instructions)} instructions, {len(kinds)} arguments "
        f"({kinds.count('global_buffer')} pointers), up to {meta.threads} threads a workgroup, {meta.lds} bytes of "
        f"local memory by the text, {meta.scratch} bytes of scratch a lane"
    )


def _mode(program: Program) -> Iterator[str]:
    mode = initial_mode(program.descriptor)
    flushed = [w for w, bit in (("in", DENORM32_IN), ("out", DENORM32_OUT)) if not mode & bit]
    kept = f"flushed {' and '.join(flushed)}" if flushed else "kept"
    yield f"float32 denormals are {kept} (contract field denormals)"
    changes = _named(program, r"s_setreg(_imm32)?_b32")
    start = "1" if mode & FP16_OVFL else "0"
    changed = (
        "; MODE is changed: " + "; ".join(f"line {one.line}: {one.text}" for one in changes[:SHOWN]) if changes else ""
    )
    yield f"MODE.FP16_OVFL is {start} at the start: 1 saturates a conversion to e4m3 or float16{changed}"


def _arithmetic(program: Program) -> Iterator[str]:
    divisions, reciprocals = _named(program, r"v_div_fixup_f32"), _named(program, r"v_rcp(_iflag)?_f32")
    bare = max(0, len(reciprocals) - len(divisions))
    words = f"{len(divisions)} IEEE divisions" + (f" ({_where(divisions)})" if divisions else "")
    yield f"{words}; {bare} reciprocals of 1 ulp outside of them (contract fields division, scale_rule)"
    fused = _named(program, r"v_(pk_)?(fma|fmac|fmaak|fmamk)_f32|v_fma_mix.*")
    yield f"{len(fused)} fused multiply-adds of float32, the steps of divisions included"


def _conversions(program: Program) -> str:
    found = _named(program, r"v_cvt_(scalef32_)?pk_fp8_f32")
    if not found:
        return "no conversion to e4m3"
    form = "e4m3fnuz" if program.target == "gfx942" else "e4m3fn"
    clamps = _named(program, r"v_med3_f32|v_min_f32")
    before = f"; {len(clamps)} v_med3_f32 or v_min_f32, which may clamp" if clamps else "; no clamp instruction"
    return f"{len(found)} conversions to {form} ({_where(found)}){before} (contract field overflow)"


def _stored(program: Program) -> Iterator[str]:
    kinds: list[tuple[str, list[Instruction]]] = [
        ("v_cvt_pk_bf16_f32, to nearest", _named(program, r"v_cvt_pk_bf16_f32")),
        ("v_cvt_f16_f32, to nearest", _named(program, r"v_cvt_f16_f32")),
        ("float16 arithmetic, to nearest", _named(program, r"v_(pk_)?(add|mul)_f16")),
        ("integer rounding to bfloat16, v_add3_u32", _named(program, r"v_add3_u32")),
    ]
    seen = [f"{len(found)} {words} ({_where(found)})" for words, found in kinds if found]
    told = "; ".join(seen) or "none seen, so a 16-bit store would truncate"
    yield f"rounding to 16 bits: {told} (contract field residual_store)"


def _open(program: Program) -> str:
    items: dict[str, list[Instruction]] = {}
    for one in program.instructions:
        op = operation(one.mnemonic)
        if op is not None and op.policy:
            items.setdefault(op.policy, []).append(one)
    words = "; ".join(f"{item} ({_where(found)})" for item, found in items.items())
    return f"left open by the instruction set: {words or 'nothing'}"


def _implemented(program: Program) -> str:
    missing = []
    for index, one in enumerate(program.instructions):
        try:
            step_of(program, index)
        except TextError:
            missing.append(one)
    if not missing:
        return "every instruction is implemented"
    named = "; ".join(f"line {one.line}: {one.text}" for one in missing[:SHOWN])
    return f"{len(missing)} instructions are not implemented, so it cannot be run: {named}"
