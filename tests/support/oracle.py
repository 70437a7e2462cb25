"""An oracle in integers and fractions for small shapes: nothing of it is shared with the float64 reference.

Every float is an exact Fraction; a rounding is one integer division with remainder. Slow on purpose: some thousand
elements per second are enough to hold the fast reference to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Grid:
    """A binary format as numbers: significand bits p, lowest exponent of a normal value, largest finite value."""

    name: str
    p: int
    low: int
    top: Fraction


GRIDS = {
    "e4m3fn": Grid("e4m3fn", 4, -6, Fraction(448)),
    "e4m3fnuz": Grid("e4m3fnuz", 4, -7, Fraction(240)),
    "bf16": Grid("bf16", 8, -126, (2 - Fraction(1, 2**7)) * 2**127),
    "fp16": Grid("fp16", 11, -14, Fraction(65504)),
    "fp32": Grid("fp32", 24, -126, (2 - Fraction(1, 2**23)) * 2**127),
}


def exact(values: torch.Tensor) -> list[Fraction]:
    """Elements of a finite tensor of any float type, in order."""
    return [Fraction(v) for v in values.double().flatten().tolist()]


def binade(magnitude: Fraction) -> int:
    """floor(log2) of a positive fraction, by integers alone."""
    e = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    return e if Fraction(2) ** e <= magnitude else e - 1


def spacing(value: Fraction, grid: Grid) -> Fraction:
    """Distance of neighbouring values of the grid in the binade of ``value``."""
    e = grid.low if value == 0 else max(grid.low, binade(abs(value)))
    return Fraction(2) ** (e - grid.p + 1)


def rne(value: Fraction, grid: Grid) -> Fraction | None:
    """Nearest value of the grid, ties to even; None where it overflows the largest finite value."""
    step = spacing(value, grid)
    whole, rest = divmod(abs(value), step)
    if 2 * rest > step or (2 * rest == step and whole % 2):
        whole += 1
    result = whole * step
    return None if result > grid.top else (-result if value < 0 else result)


def toward_zero(value: Fraction, grid: Grid) -> Fraction:
    """Largest magnitude of the grid that is not beyond ``value``."""
    step = spacing(value, grid)
    result = min(abs(value) // step * step, grid.top)
    return -result if value < 0 else result


@lru_cache(maxsize=512)
def code_value(code: int, fp8: str) -> Fraction | None:
    """Value of an FP8 code from its fields; None for NaN."""
    if (code & 0x7F) == 0x7F if fp8 == "e4m3fn" else code == 0x80:
        return None
    bias = 7 if fp8 == "e4m3fn" else 8
    exponent, fraction = (code >> 3) & 15, code & 7
    magnitude = Fraction(8 + fraction if exponent else fraction) * Fraction(2) ** (max(exponent, 1) - bias - 3)
    return -magnitude if code & 0x80 else magnitude


def codes_of(value: Fraction, fp8: str, overflow: str) -> set[int]:
    """Codes that a correct encoder may give for a finite value: one, or the two zeros of e4m3fn, or the NaNs."""
    rounded = rne(value, GRIDS[fp8])
    if rounded is None:
        if overflow == "nan":
            return {0x7F, 0xFF} if fp8 == "e4m3fn" else {0x80}
        rounded = GRIDS[fp8].top if value > 0 else -GRIDS[fp8].top
    return _codes_by_value(fp8)[rounded]


@lru_cache(maxsize=2)
def _codes_by_value(fp8: str) -> dict[Fraction, set[int]]:
    found: dict[Fraction, set[int]] = {}
    for code in range(256):
        value = code_value(code, fp8)
        if value is not None:
            found.setdefault(value, set()).add(code)
    return found


def inverse_root(value: Fraction) -> tuple[Fraction, Fraction]:
    """Fractions around 1/sqrt(value), 2**-100 apart relative to it, from an integer square root."""
    shift = 2 * (110 + max(0, binade(value)))
    root = math.isqrt((2**shift * value.denominator) // value.numerator)
    scale = Fraction(1, 2 ** (shift // 2))
    return root * scale, (root + 1) * scale


@dataclass(frozen=True)
class Row:
    """One row of ``add_rmsnorm_quant``: the norm's input, stored residual, max |z w|, and 1/rms from both sides."""

    z: list[Fraction]
    stored: list[Fraction] | None
    p_max: Fraction
    rms: tuple[Fraction, Fraction]


def norm_row(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    *,
    norm_input: str,
    store: str,
    storage: str,
) -> Row:
    """A row by the definition of the contract: x, residual [n] of T, weight [n]; no value may overflow."""
    z, stored = exact(x), None
    if residual is not None:
        z = [present(rne(a + b, GRIDS["fp32"])) for a, b in zip(z, exact(residual), strict=True)]
        put = toward_zero if store == "truncate" else rne
        stored = [present(put(v, GRIDS[storage])) for v in z]
    if norm_input == "stored" and stored is not None:
        z = stored
    p_max = max(abs(a * b) for a, b in zip(z, exact(weight.float()), strict=True))
    mean = sum((v * v for v in z), Fraction(0)) / len(z) + Fraction(eps)
    return Row(z, stored, p_max, inverse_root(mean))


def present(value: Fraction | None) -> Fraction:
    """The value, which must not have overflowed."""
    if value is None:
        raise OverflowError("a value of the oracle's row overflows its format")
    return value


def dot(a: list[int], b: list[int], fp8: str) -> Fraction:
    """sum_k a*b of FP8 codes by integers: every value is a multiple of 2**-10."""
    values = [int(present(code_value(c, fp8)) * 1024) if code_value(c, fp8) is not None else 0 for c in range(256)]
    return Fraction(sum(values[i] * values[j] for i, j in zip(a, b, strict=True)), 2**20)
