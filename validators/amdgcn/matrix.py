"""Matrix instructions on e4m3 (MFMA): layouts of the operands, and two readings of how the unit accumulates.

Layouts are those of AMD's matrix instruction calculator. R is 16 or 32; lane l holds of A row l % R and of B column
l % R, K * R / 64 consecutive k from block l // R on, a byte each. Which k a byte is does not matter to the exact sum
as long as A and B agree. Register r of D holds column l % R and row 8 * (r // 4) * (R == 32) + 4 * (l // R) + r % 4.

Accumulation. "cdna3" is the published model of the unit of gfx942 (MMA-Sim and one other agree; no recorded silicon):
16 products at a time, in two halves of every second one, each aligned to its largest exponent with 24 bits below and
cut; the halves are added and then c, again aligned and cut, then rounded to nearest. "once" is the exact sum of all
products and c, rounded once: how the unit of gfx950 accumulates is not documented.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np

from validators.amdgcn import floats
from validators.amdgcn.errors import TextError
from validators.amdgcn.floats import Array
from validators.amdgcn.operands import Operand
from validators.amdgcn.state import LANES, State
from validators.amdgcn.text import Instruction

_NAME = re.compile(r"v_mfma_f32_(16x16x32|32x32x16)_fp8_fp8|v_mfma_f32_(16x16x128|32x32x64)_f8f6f4")
_TARGETS = {"16x16x128": ("gfx950",), "32x32x64": ("gfx950",)}
_SLICE = 64
"""Waves whose products are held at once."""
_NO_PRODUCT, _LOWEST, _ZERO = -400, -126, 60


def build(found: Instruction, place: str) -> Callable[[State], None] | None:
    """The function that executes a matrix instruction; None where the name is another's."""
    matched = _NAME.fullmatch(found.mnemonic)
    if not matched:
        return None
    shape = matched[1] or matched[2]
    rows, inner = int(shape.split("x")[0]), int(shape.split("x")[2])
    words, results = inner * rows // LANES // 4, rows * rows // LANES
    if found.mods or len(found.operands) != 4:
        raise TextError(f"{place}: modifiers of {found.mnemonic} are not implemented")
    destination, a, b, c = found.operands
    for operand, count in ((destination, results), (a, words), (b, words), (c, results)):
        if operand.kind == "const" and operand is c and operand.value == 0:
            continue
        if operand.kind not in ("v", "a") or operand.count != count:
            raise TextError(f"{place}: an operand of {found.mnemonic} has {count} vector registers")

    def run(state: State) -> None:
        if state.program.target not in _TARGETS.get(shape, ("gfx942", "gfx950")):
            raise state.fault(f"{state.program.target} has no such matrix instruction")
        codes = [_gathered(state, operand, words, rows) for operand in (a, b)]
        added = np.zeros((state.n, rows, rows), dtype=np.float64)
        if c.kind != "const":
            added = _tile(np.stack([_file(state, c)[c.index + r][state.sel] for r in range(results)]), rows)
        if state.program.target != "gfx942":
            state.touched.add("mfma")
        multiply = _cdna3 if _reading(state) == "cdna3" else _once
        parts = [
            multiply(codes[0][at : at + _SLICE], codes[1][at : at + _SLICE], added[at : at + _SLICE], state.fnuz)
            for at in range(0, state.n, _SLICE)
        ]
        _write(state, destination, np.concatenate(parts), rows)

    return run


def _reading(state: State) -> str:
    return state.policy.mfma or ("cdna3" if state.program.target == "gfx942" else "once")


def _file(state: State, operand: Operand) -> Array:
    return state.vector if operand.kind == "v" else state.accumulators


def _gathered(state: State, operand: Operand, words: int, rows: int) -> Array:
    """Codes uint8 [waves, rows, K] of an operand: row l % rows, k from block l // rows on."""
    registers = np.stack([_file(state, operand)[operand.index + k][state.sel] for k in range(words)], axis=-1)
    codes = np.ascontiguousarray(registers).view(np.uint8).reshape(state.n, LANES // rows, rows, 4 * words)
    found: Array = codes.transpose(0, 2, 1, 3).reshape(state.n, rows, -1)
    return found


def _places(rows: int) -> tuple[Array, Array]:
    """(row, column) of D that register r of lane l holds, [registers, 64] each."""
    register, lane = np.arange(rows * rows // LANES)[:, None], np.arange(LANES)[None, :]
    row = 8 * (register // 4) * (rows == 32) + 4 * (lane // rows) + register % 4
    return np.broadcast_to(row, (len(register), LANES)), np.broadcast_to(lane % rows, (len(register), LANES))


def _tile(registers: Array, rows: int) -> Array:
    """float64 [waves, rows, columns] of float32 registers [registers, waves, 64]."""
    row, column = _places(rows)
    tile = np.empty((registers.shape[1], rows, rows), dtype=np.float64)
    tile[:, row, column] = registers.view(np.float32).transpose(1, 0, 2)
    return tile


def _write(state: State, destination: Operand, tile: Array, rows: int) -> None:
    """Every lane is written, whatever EXEC says."""
    row, column = _places(rows)
    values = np.ascontiguousarray(tile[:, row, column]).view(np.uint32)
    values = np.where(np.isnan(tile[:, row, column]), floats.DEFAULT_NAN, values)
    for r in range(len(row)):
        _file(state, destination)[destination.index + r][state.sel] = values[:, r]


def _once(a: Array, b: Array, c: Array, fnuz: bool) -> Array:
    """float32 [waves, rows, columns]: the products are exact in float64, and so is their sum; c is added to odd."""
    x, y = (floats.from_fp8(codes, fnuz).astype(np.float64) for codes in (a, b))
    products = x @ y.transpose(0, 2, 1)
    total = products + c
    found: Array = np.where(np.isfinite(total), floats.to_odd(products, c, total), total).astype(np.float32)
    return found


# ---- the model of gfx942


def _exponents(codes: Array, fnuz: bool, mark: int) -> Array:
    """int8 exponent of each code, that of the smallest normal number for denormals; ``mark`` for zeros."""
    exponent = np.maximum((codes >> 3) & 15, 1).astype(np.int8) - np.int8(8 if fnuz else 7)
    found: Array = np.where(codes & 0x7F == 0, np.int8(mark), exponent)
    return found


def _exponent_of(x: Array) -> Array:
    """floor(log2(abs(x))), at least that of the smallest normal float32."""
    return np.maximum(np.where(x == 0, _LOWEST, np.frexp(x)[1] - 1), _LOWEST)


def _cdna3(a: Array, b: Array, c: Array, fnuz: bool) -> Array:
    """float32 [waves, rows, columns], 16 products after the other."""
    for start in range(0, a.shape[2], 16):
        part_a, part_b = a[:, :, start : start + 16], b[:, :, start : start + 16]
        c = _sixteen(part_a, part_b, c, fnuz)
    found: Array = c.astype(np.float32)
    return found


def _half(a: Array, b: Array, fnuz: bool) -> tuple[Array, Array]:
    """(largest exponent, sum of the products cut 24 bits below it) of 8 products, [waves, rows, columns].

    A product has 8 bits from 2**(e - 6) on, so it is cut only where e lies more than 18 below the largest exponent: the
    exact sum is right everywhere else.
    """
    x, y = (floats.from_fp8(codes, fnuz).astype(np.float64) for codes in (a, b))
    top = (_exponents(a, fnuz, -_ZERO)[:, :, None] + _exponents(b, fnuz, -_ZERO)[:, None]).max(axis=-1)
    least = (_exponents(a, fnuz, _ZERO)[:, :, None] + _exponents(b, fnuz, _ZERO)[:, None]).min(axis=-1)
    top = np.where(top < -_ZERO // 2, _NO_PRODUCT, top.astype(np.int32))
    total = x @ y.transpose(0, 2, 1)
    at = np.nonzero((top - least > 18) & (least < _ZERO // 2) & (top != _NO_PRODUCT))
    if at[0].size:
        cut = np.trunc(np.ldexp(x[at[0], at[1]] * y[at[0], at[2]], 24 - top[at][:, None]))
        total[at] = np.ldexp(cut.sum(axis=-1), top[at] - 24)
    return top, total


def _sixteen(a: Array, b: Array, c: Array, fnuz: bool) -> Array:
    tops, sums = [], []
    for half in (0, 1):
        top, part = _half(a[:, :, half::2], b[:, :, half::2], fnuz)
        tops.append(top)
        sums.append(part)
    largest = np.maximum(*tops)
    dot = sum(np.ldexp(np.floor(np.ldexp(part, 24 - largest)), largest - 24) for part in sums)
    of_c = _exponent_of(c)
    top = np.maximum(largest, of_c)
    kept = np.floor(np.ldexp(c, 24 - top)) * 256.0
    kept = np.where(of_c < top - 25, 0.0, kept)
    total = np.ldexp(np.floor(np.ldexp(dot, 32 - top)) + kept, top - 32)
    bits = 31 - _exponent_of(total)
    found: Array = np.ldexp(np.floor(np.ldexp(total, bits)), -bits).astype(np.float32).astype(np.float64) + 0.0
    wrong = ~np.isfinite(c)
    return np.where(wrong, c, found)
