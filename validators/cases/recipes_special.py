"""Recipes of the special lane for the norm and quantization ops; ordinary rows stay between the special ones."""

from __future__ import annotations

import torch

from validators.cases.case import Case
from validators.cases.codes import STORAGE, canonical_nan, choose, from_fields, power_of_two
from validators.cases.generator import Block
from validators.cases.op import normed
from validators.cases.recipe import ADD, QUANT, NormRecipe, Pair, needs_bf16, needs_rows
from validators.cases.recipes_norm import gaussian_pair

_BOTH = (ADD, QUANT)


def _scaled(pair: Pair, amplitude: torch.Tensor) -> Pair:
    x, residual = pair
    return x * amplitude, None if residual is None else residual * amplitude


def zero_row_numbers(m: int) -> tuple[int, ...]:
    """First, middle and last row."""
    return (0, m // 2, m - 1)


def _zero_rows(block: Block) -> Pair:
    """Zero rows first, middle (with negative zeros in odd columns) and last; residual = -x in rows 3, 10, 17, ..."""
    x, residual = gaussian_pair(block)
    rows = block.rows
    zero = torch.zeros(1, 1, dtype=torch.bool, device=block.device)
    for number in zero_row_numbers(block.case.m):
        zero = zero | (rows == number)
    negative = (rows == block.case.m // 2) & (block.cols % 2 == 1)
    nothing = choose(negative, -0.0, 0.0)
    x = torch.where(zero, nothing, x)
    if residual is not None:
        residual = torch.where(zero, nothing, torch.where(rows % 7 == 3, -x, residual))
    return x, residual


def nonfinite_row_numbers(m: int) -> tuple[int, ...]:
    """Rows with NaN everywhere, one +Inf, one -Inf, Inf - Inf and one NaN, with ordinary rows around where m allows."""
    return tuple((kind + 1) * m // 6 for kind in range(5))


def _nonfinite(block: Block) -> Pair:
    x, residual = gaussian_pair(block)
    nan, inf = float("nan"), float("inf")
    everywhere, plus, minus, difference, single = (block.rows == r for r in nonfinite_row_numbers(block.case.m))
    here = block.cols == block.width // 2
    x = torch.where(everywhere | (single & here), nan, x)
    x = torch.where((plus | difference) & here, inf, x)
    x = torch.where(minus & here, -inf, x)
    if residual is None:
        # Without a residual the row holds both infinities side by side.
        x = torch.where(difference & (block.cols == block.width // 2 - 1), -inf, x)
    else:
        residual = torch.where(difference & here, -inf, residual)
    return canonical_nan(x.to(STORAGE[block.case.dtype].dtype)), residual


def _overflow_sum(block: Block) -> Pair:
    """Two rows of three at 2^63 .. 2^124, where a square or the sum of squares leaves fp32; x + residual does not."""
    exponent = 63 + block.rows * 23 % 62
    return _scaled(gaussian_pair(block), power_of_two(torch.where(block.rows % 3 == 0, 0, exponent)))


def _subnormal_rows(block: Block) -> Pair:
    """Rows 0, 3, ..: subnormals of T only; rows 1, 4, ..: 2^-100 (2^-20 in fp16); rows 2, 5, ..: ordinary."""
    dtype = block.case.dtype
    layout = STORAGE[dtype]
    kind = block.rows % 3
    small = power_of_two(torch.where(kind == 1, -20 if dtype == "fp16" else -100, 0))

    def mixed(name: str, ordinary: torch.Tensor) -> torch.Tensor:
        field = block.integers(f"{name}.subnormal", 2 << layout.mantissa)
        subnormal = from_fields(field & 1, torch.zeros_like(field), field >> 1, dtype)
        return torch.where(kind == 0, subnormal, (ordinary * small).to(layout.dtype))

    x, residual = gaussian_pair(block)
    return mixed("x", x), None if residual is None else mixed("residual", residual)


def _scale_underflow(block: Block) -> Pair:
    """per_token_quant: rows of amplitude 2^-121 .. 2^-125, so that amax/Q is below the least normal fp32."""
    pair = gaussian_pair(block)
    if normed(block.case):
        return pair
    return _scaled(pair, power_of_two(torch.where(block.rows % 3 == 0, 0, -121 - block.rows % 5)))


def _vanishing_gain(block: Block) -> torch.Tensor:
    """Gains 2^-123 .. 2^-121: a row's largest output is a normal fp32, its scale is not."""
    return power_of_two(-121 - block.cols % 3)


def _underflow_impossible(case: Case) -> str | None:

    if case.gemma:
        return "scale_underflow needs a vanishing gain, which 1 + weight cannot hold"
    return needs_bf16("fp16 values are too large for their scale to underflow")(case)


RECIPES = (
    NormRecipe(
        "zero_rows",
        "special",
        _BOTH,
        "0/0, missing floors, a stale scale, uninitialised output, 0x80 written for zero",
        values=_zero_rows,
    ),
    NormRecipe(
        "nonfinite",
        "special",
        _BOTH,
        "NaN or Inf turned into ordinary codes, or spread to neighbouring rows",
        needs_rows(7, "to keep ordinary rows next to the five that hold NaN or Inf"),
        values=_nonfinite,
    ),
    NormRecipe(
        "overflow_sum",
        "special",
        _BOTH,
        "an fp32 sum of squares that overflows, intermediates kept in fp16",
        needs_bf16("fp16 does not reach the magnitudes whose squares overflow fp32"),
        values=_overflow_sum,
    ),
    NormRecipe(
        "subnormal_rows",
        "special",
        _BOTH,
        "inputs flushed to zero, floors applied at the wrong place",
        values=_subnormal_rows,
    ),
    NormRecipe(
        "scale_underflow",
        "special",
        _BOTH,
        "a subnormal or zero scale whose reciprocal is Inf",
        _underflow_impossible,
        values=_scale_underflow,
        gain=_vanishing_gain,
    ),
)
