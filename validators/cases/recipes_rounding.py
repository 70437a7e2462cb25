"""Recipes that aim at rounding: FP8 midpoints, residual ties, double rounding, subnormal codes."""

from __future__ import annotations

from functools import lru_cache

import torch

from validators.cases.codes import (
    QMAX,
    STORAGE,
    choose,
    from_fields,
    half_ulp,
    midpoints,
    positive_values,
    power_of_two,
)
from validators.cases.generator import Block
from validators.cases.op import adds_residual, normed
from validators.cases.recipe import ADD, QUANT, NormRecipe, Pair, needs_residual, walk_column


def _store(x: torch.Tensor, block: Block) -> torch.Tensor:
    return x.to(STORAGE[block.case.dtype].dtype)


@lru_cache
def midpoint_values(fp8: str, dtype: str) -> torch.Tensor:
    """fp32 [L]: every code's value, every midpoint, and its two neighbours in T; both signs; zero once.

    All are exact in T, because a midpoint has at most five significant bits.
    """
    stored = torch.tensor(midpoints(fp8), dtype=torch.float32, device="cpu").to(STORAGE[dtype].dtype)
    word = stored.view(torch.int16)
    beside = [(word + step).view(stored.dtype).float() for step in (-1, 0, 1)]
    positive = torch.cat([torch.tensor(positive_values(fp8)[1:], dtype=torch.float32, device="cpu"), *beside])
    return torch.cat([torch.zeros_like(positive[:1]), positive, -positive])


def _midpoint_exponents(block: Block) -> torch.Tensor:
    """int64 [rows, 1]: j of the row's scale 2^j. fp16: values and their half ulps stay representable."""
    if block.case.dtype == "fp16":
        return block.rows * 5 % 7
    # Not below 2^-12: vLLM's scale floor is 1/(448*512) = 2^-17.8.
    return block.rows * 11 % 32 - 12


def midpoint_targets(block: Block) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32 [rows, N] values to quantize and the bool mask of the row's largest elements.

    Row i walks the list of ``midpoint_values`` from where row i-1 ended; its largest magnitude is Q * 2^j, for
    which fl32(amax * fl32(1/Q)) and fl32(amax / Q) are both exactly 2^j (fl32(1/448) and fl32(1/240) are less than
    one unit 2^-24 high, so Q times each rounds to 1). In every fourth row of an e4m3fnuz case it
    is 224 * 2^j, the Q of kernels that stop there; the larger entries are halved.
    """
    fp8 = block.case.fp8
    table = midpoint_values(fp8, block.case.dtype).to(block.device)
    peak_column = walk_column(block)
    qmax = torch.full_like(block.rows, int(QMAX[fp8]))
    ordinal = block.rows
    if fp8 == "e4m3fnuz":
        # The 224 rows walk apart, so that the others miss nothing.
        other = block.rows % 4 == 3
        qmax = torch.where(other, 224, qmax)
        ordinal = torch.where(other, block.rows // 4, block.rows - (block.rows + 1) // 4)
    # The peak takes its own column; the entries behind it move up by one, so none is lost.
    position = ordinal * (block.width - 1) + block.cols - (block.cols > peak_column).long()
    value = table[position % len(table)]
    value = torch.where(value.abs() > qmax, value * 0.5, value)
    sign = 1.0 - 2.0 * (block.rows % 2).float()
    value = torch.where(block.cols == peak_column, qmax * sign, value)
    return value * power_of_two(_midpoint_exponents(block)), value.abs() == qmax


def _midpoints(block: Block) -> Pair:
    """x + residual is the target exactly, or is half a step of T from it (where stored, a residual tie)."""
    target, peak = midpoint_targets(block)
    if not adds_residual(block.case):
        return target, None
    mode = torch.where(peak, 0, block.integers("mode", 4))
    tie = half_ulp(_store(target, block), block.case.dtype)
    residual = torch.where(mode == 2, tie, -tie)
    exact = mode < 2
    return torch.where(exact, target * 0.5, target), torch.where(exact, target * 0.5, residual)


def _unit_gain(block: Block) -> torch.Tensor:
    """Gain exactly 1, so that the reciprocal rms and the scale cancel and t is the target up to fp32 noise."""
    return torch.ones(1, block.width, dtype=torch.float32, device=block.device)


def _residual_ties(block: Block) -> Pair:
    """residual is plus or minus half an ulp of x, or half an ulp times 1 - 2^-7 or 1 + 2^-7."""
    dtype = block.case.dtype
    layout = STORAGE[dtype]
    field = block.integers("x", 4 << layout.mantissa)
    # Six octaves around 1; the half ulp is a normal number of both types there.
    exponent = layout.bias - 2 + block.integers("x.exponent", 6)
    x = from_fields(field & 1, exponent, field >> 2, dtype)
    mode = block.integers("mode", 8)
    size = half_ulp(x, dtype)
    # Half of the sums are ties, a quarter fall just short, a quarter just beyond.
    beside = choose(mode >= 6, 1.0 + 2.0**-7, 1.0 - 2.0**-7)
    size = torch.where(mode < 4, size, size * beside)
    return x, torch.where(mode % 2 == 0, size, -size)


# Relative distances from a midpoint. bf16 rounding merges what is within 2^-9 of a midpoint, fp16 what is within
# 2^-12; the least, 2^-16, is still 28 times the 9 * 2^-24 by which two fp32 evaluations may differ.
_OFFSETS = (2.0**-10, 2.0**-12, 2.0**-14, 2.0**-16)


def step_gain(block: Block) -> torch.Tensor:
    """Gains 1, 1/2, 1/4 by column: powers of two, so that a product with them rounds nothing."""
    return power_of_two(-(block.cols % 3))


def _double_rounding(block: Block) -> Pair:
    """Values whose quotient by the row's scale is just next to a midpoint of the code table.

    The row's largest element has a random significand, so the scale is no power of two. With a residual, x + residual
    carries 16 or more significant bits and is placed at chosen distances; without one, x is the value of T
    nearest to the midpoint times the scale.
    """
    fp8, dtype = block.case.fp8, block.case.dtype
    layout = STORAGE[dtype]
    # Normal codes only in fp16, where smaller targets would lose the residual's bits to underflow.
    usable = [m for m in midpoints(fp8) if dtype == "bf16" or m > 2.0**-7]
    table = torch.tensor(usable, dtype=torch.float64, device=block.device)
    mantissa = 1 + block.row_integers("amax", (1 << layout.mantissa) - 1)
    amax = from_fields(torch.zeros_like(mantissa), layout.bias + 8 + mantissa % 4, mantissa, dtype).double()
    middle = table[block.integers("midpoint", len(usable))]
    draw = block.integers("offset", 16)
    sign = 1.0 - 2.0 * (draw & 1).double()
    side = 1.0 - 2.0 * (draw >> 1 & 1).double()
    offset = torch.tensor(_OFFSETS, dtype=torch.float64, device=block.device)[draw >> 2]
    exact = not adds_residual(block.case)
    # By a tensor: CUDA multiplies by the reciprocal of a number.
    value = middle * amax / torch.full_like(amax, QMAX[fp8]) * sign * (1.0 if exact else 1.0 + side * offset)
    value = torch.where(block.cols == walk_column(block), amax, value)
    if normed(block.case):
        value = value * power_of_two(block.cols % 3)
    # Through fp32 by name: float64 to a 16-bit type is not one rounding in every torch version.
    x = _store(value.float(), block)
    return x, None if exact else _store((value - x.double()).float(), block)


def _subnormal_codes(block: Block) -> Pair:
    """One peak per row; the rest within 2^-5 of a code's unit: subnormal codes, and values that round to +-0."""
    unit = 1024.0 / QMAX[block.case.fp8]
    size = block.uniform("x") * (unit * 2.0**-5)
    draw = block.integers("mode", 8)
    size = torch.where(draw >> 1 == 0, size * 2.0**-6, size)
    x = torch.where(draw & 1 == 0, size, -size)
    column = walk_column(block)
    x.scatter_(1, column, torch.full_like(column, 1024.0, dtype=torch.float32))
    residual = x * 0.5 if adds_residual(block.case) else None
    return (x if residual is None else x * 0.5), residual


RECIPES = (
    NormRecipe(
        "midpoints",
        "exact",
        (QUANT,),
        "a wrong rounding rule: ties away from zero, truncation, stochastic or double rounding; every code's encoding",
        values=_midpoints,
    ),
    NormRecipe(
        "midpoints",
        "adversarial",
        (ADD,),
        "residual ties and FP8 ties at once: a stored residual rounded away from even, a norm that reads the other sum",
        values=_midpoints,
        gain=_unit_gain,
    ),
    NormRecipe(
        "residual_ties",
        "adversarial",
        (ADD,),
        "a residual stored by truncation, by ties away from zero, or through another type",
        needs_residual,
        values=_residual_ties,
    ),
    NormRecipe(
        "double_rounding",
        "adversarial",
        (ADD, QUANT),
        "codes encoded through bf16 or fp16, a scale rounded to 16 bits",
        values=_double_rounding,
        gain=step_gain,
    ),
    NormRecipe(
        "subnormal_codes",
        "adversarial",
        (ADD, QUANT),
        "FP8 subnormals flushed, 0x80 (NaN in e4m3fnuz) written for values that round to zero from below",
        values=_subnormal_codes,
    ),
)
