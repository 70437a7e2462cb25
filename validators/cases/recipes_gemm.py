"""Recipes of ``ptpc_gemm``: codes of a and b, their scales, and the bias.

Scales are positive fp32. In the exact lane they are powers of two and the bias is a multiple of every
product's grid, so that the whole result has at most 24 bits; elsewhere no scale is a power of two.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from validators.cases.case import Case
from validators.cases.codes import (
    NAN_CODE,
    QMAX,
    choose,
    finite_codes,
    finite_count,
    integer_codes,
    nearest_codes,
    nonzero_codes,
    nonzero_count,
    odd_scale,
    positive_values,
    power_of_two,
)
from validators.cases.generator import Block
from validators.cases.recipe import GEMM, GemmRecipe, needs_rows, spread_step

_GEMM = (GEMM,)
# Exponents of the smallest scales. In the exact lane the product of two scales is 2^-16 .. 2^-9, so that sums
# below 2^24 stay below 2^15 and a 16-bit output with a 5-bit exponent holds them; one-hot products need no room.
_EXACT_EXPONENT = -8
_ONE_HOT_EXPONENT = -2
# PTPC scales are amax/448 of activations and weights: about 2^-8 and 2^-11.
_TYPICAL_EXPONENT = {"a": -8, "b": -11}
_BIAS_STEPS = 64


# Codes ------------------------------------------------------------------------------------------


def _nothing(block: Block) -> torch.Tensor:
    """uint8 zeros for the block: code 0x00."""
    shape = (block.stop - block.start, block.width)
    return torch.zeros(shape, dtype=torch.uint8, device=block.device)


def _gaussian(block: Block, side: str) -> torch.Tensor:
    """Gaussian-like values that use the format up to its maximum, as per-token quantization leaves them."""
    return _quantized(block.gaussian(side), block)


def _quantized(g: torch.Tensor, block: Block) -> torch.Tensor:
    # 9/32 * 3.4687 is just below 1.
    return nearest_codes(g * (QMAX[block.case.fp8] * 0.28125), block.case.fp8)


def _random_bytes(block: Block, side: str) -> torch.Tensor:
    fp8 = block.case.fp8
    return finite_codes(block.integers(side, finite_count(fp8)), fp8)


def integer_limit(k: int, fp8: str) -> float:
    """Largest integer code value A with k * A^2 + 512 < 2^24: 176 for k = 512, 56 for 5120, 30 for 16384.

    So sum |a*b|, and the bias on top, stay below 2^24 in units of the product of the scales, and every
    fp32 addition in any order is exact. 512 is the largest bias in these units. 0 if no integer fits.
    """
    fitting = [v for v in positive_values(fp8) if v == int(v) and k * v * v + 8 * _BIAS_STEPS < 1 << 24]
    return max(fitting)


def _small_integers(block: Block, side: str) -> torch.Tensor:
    """Integers up to ``integer_limit``, large ones favoured; even rows positive, odd rows of either sign.

    Where an even row of a meets an even row of b nothing cancels and the sum fills most of the 24 bits.
    """
    case = block.case
    table = integer_codes(case.fp8, integer_limit(case.k, case.fp8))
    draw = block.integers(side, len(table) ** 2)
    # The larger of two uniform draws; it reaches every code.
    choice = torch.maximum(draw // len(table), draw % len(table))
    code = torch.tensor(table, dtype=torch.uint8, device=block.device)[choice]
    negative = (block.signs(f"{side}.sign") < 0) & (block.rows % 2 == 1)
    return code | (negative.to(torch.uint8) << 7)


def unit_limit(k: int, fp8: str) -> float:
    """Largest integer code value A with k * A^2 + 512 <= 2^20: 44 for k = 512, 14 for 5120, 7 for 16384.

    So sum |a*b| stays within 2^20 units, which a matrix unit of unpublished width that keeps 23 fraction bits of the
    largest product adds without rounding: the output has one admissible value under every contract of the closed list.
    """
    fitting = [v for v in positive_values(fp8) if v == int(v) and k * v * v + 8 * _BIAS_STEPS <= 1 << 20]
    return max(fitting)


def _cancelling_integers(block: Block, side: str) -> torch.Tensor:
    """Positive integers up to ``unit_limit``; odd rows of b are negative in the second half of k.

    Where a row of a meets an even row of b nothing cancels. With an odd row the halves all but cancel, so that partial
    sums kept in 16 bits are wrong by as much as the result.
    """
    case = block.case
    table = integer_codes(case.fp8, unit_limit(case.k, case.fp8))
    code = torch.tensor(table, dtype=torch.uint8, device=block.device)[block.integers(side, len(table))]
    if side == "a":
        return code
    negative = (block.rows % 2 == 1) & (block.cols >= block.width // 2)
    return code | (negative.to(torch.uint8) << 7)


def _tiny_integers(block: Block, side: str) -> torch.Tensor:
    """-1, 0 and 1 with equal chance."""
    one = integer_codes(block.case.fp8, 1.0)[0]
    table = torch.tensor([0, one, one | 0x80], dtype=torch.uint8, device=block.device)
    return table[block.integers(side, 3)]


def one_hot_position(rows: torch.Tensor, count: int, k: int) -> torch.Tensor:
    """Column of the only non-zero of each row: row mod k where ``count`` rows reach every k.

    Fewer rows walk alternately back from the last column, so that K % 128 is covered, and spread over all columns.
    """
    if count >= k:
        return rows % k
    return torch.where(rows % 2 == 0, k - 1 - rows // 2 % k, rows // 2 * spread_step(k) % k)


def _one_hot(block: Block, side: str, count: int) -> torch.Tensor:
    """One code per row, 1, 2, 4 or 8, at ``one_hot_position``."""
    one, step = integer_codes(block.case.fp8, 1.0)[0], 8
    code = (one + step * (block.rows % 4)).to(torch.uint8)
    return torch.where(block.cols == one_hot_position(block.rows, count, block.width), code, _nothing(block))


def _distinct(block: Block, side: str) -> torch.Tensor:
    """Consecutive non-zero codes along k from a random start in each row, so that neighbours always differ."""
    count = nonzero_count(block.case.fp8)
    return nonzero_codes((block.cols + block.row_integers(side, count)) % count, block.case.fp8)


def _one_hot_k(block: Block, side: str) -> torch.Tensor:
    return _one_hot(block, side, block.case.m) if side == "a" else _distinct(block, side)


def _code_pairs(block: Block, side: str) -> torch.Tensor:
    """Row i holds code i mod 256 at k = 0 and zeros elsewhere: every pair of codes is one output."""
    return torch.where(block.cols == 0, block.rows % 256, 0).to(torch.uint8)


def _one_hot_n(block: Block, side: str) -> torch.Tensor:
    return _one_hot(block, side, block.case.n) if side == "b" else _distinct(block, side)


def _positive_mean(block: Block, side: str) -> torch.Tensor:
    """64 * (1 + g/4): all positive, 8 .. 120."""
    return nearest_codes((1.0 + block.gaussian(side) * 0.25) * 64.0, block.case.fp8)


def _outlier_channels(block: Block, side: str) -> torch.Tensor:
    """About one k in 64 uses the whole format in a; the others are 128 times smaller there. b is ordinary."""
    g = block.gaussian(side)
    if side == "a":
        loud = block.col_integers("channel", 64) == 0
        loud[:, block.width // 2] = True
        g = g * choose(loud, 1.0, 2.0**-7)
    return _quantized(g, block)


LONG_K = 8192
"""Beyond it the bound of an unknown matrix unit, which grows with K, passes an ordinary output, which grows with its
root."""


def _cancellation(block: Block, side: str) -> torch.Tensor:
    """The second half of k undoes the first: the prefix grows to sum|a*b|/2 and comes back to almost nothing.

    a repeats its first half; b repeats it with the sign turned, except for about one code in 64 that is one step
    larger, so that |y| is about 2^-11 of the sum of magnitudes. An odd last column takes part in no pair.

    Beyond ``LONG_K`` odd rows of a are 1 at every fourth k of each half and 0 elsewhere: few enough bits for a matrix
    unit of unknown width, whose sets of the other rows are wider than the outputs there.
    """
    half = block.width // 2
    code = nearest_codes((1.0 + block.gaussian(side) * 0.25) * 64.0, block.case.fp8)
    if side == "b":
        off = (block.integers("off", 64) == 0).to(torch.uint8)[:, half : 2 * half]
        code[:, half : 2 * half] = (code[:, :half] + off) | 0x80
    else:
        if block.case.k > LONG_K:
            few = torch.where(block.cols[:, :half] % 4 == 0, integer_codes(block.case.fp8, 1.0)[0], 0).to(torch.uint8)
            code[:, :half] = torch.where(block.rows % 2 == 1, few, code[:, :half])
        code[:, half : 2 * half] = code[:, :half]
    return code


def _nan_row(block: Block, side: str) -> torch.Tensor:
    """Random bytes; one NaN code in row m // 2 of a, at column k // 2."""
    code = _random_bytes(block, side)
    if side == "a":
        here = (block.rows == block.case.m // 2) & (block.cols == block.width // 2)
        code = torch.where(here, NAN_CODE[block.case.fp8], code).to(torch.uint8)
    return code


def _zero_rows(block: Block, side: str) -> torch.Tensor:
    """Gaussian-like; rows first, middle and last of a, and row n // 2 of b, are zero."""
    code = _gaussian(block, side)
    numbers = (0, block.case.m // 2, block.case.m - 1) if side == "a" else (block.case.n // 2,)
    for number in numbers:
        code = torch.where(block.rows == number, 0, code).to(torch.uint8)
    return code


def _shape_walk(block: Block, side: str) -> torch.Tensor:
    """Gaussian-like, with the last K % 128 columns (16 where there is no remainder) four times louder in both."""
    tail = block.width % 128 or min(16, block.width)
    gain = choose(block.cols >= block.width - tail, 1.0, 0.25)
    return _quantized(block.gaussian(side) * gain, block)


# Scales and bias --------------------------------------------------------------------------------


def _scale_draw(block: Block, side: str) -> torch.Tensor:
    return block.row_integers(f"{side}_scale", 1 << 22)


def _typical_scales(block: Block, side: str) -> torch.Tensor:
    """Three octaves in turn, random odd mantissas: neighbours always differ."""
    return odd_scale(_TYPICAL_EXPONENT[side] + block.rows % 3, _scale_draw(block, side))


def _ladder_scales(block: Block, side: str) -> torch.Tensor:
    """2^-10 .. 2^10, neighbours some 2^7 or more apart (fp16 output: 2^-12 .. 2^-5, so that results stay finite)."""
    if block.case.dtype == "fp16":
        return odd_scale(-12 + block.rows * 3 % 7, _scale_draw(block, side))
    return odd_scale(-10 + block.rows * 7 % 20, _scale_draw(block, side))


def _exact_scales(block: Block, side: str) -> torch.Tensor:
    step = block.rows % 4 if side == "a" else block.rows * 3 % 5
    return power_of_two(_EXACT_EXPONENT + step)


def _odd_scales(block: Block, side: str) -> torch.Tensor:
    """1, 3, 5 or 7 (a) and 1, 3 or 5 (b) times one power of two: sums of 14 bits keep every product within 24 bits."""
    factor = block.rows % 4 * 2 + 1 if side == "a" else block.rows % 3 * 2 + 1
    return power_of_two(_EXACT_EXPONENT + 0 * block.rows) * factor.float()


def _one_hot_scales(block: Block, side: str) -> torch.Tensor:
    step = block.rows % 3 if side == "a" else block.rows * 3 % 5
    return power_of_two(_ONE_HOT_EXPONENT + step)


def huge_exponent(case: Case) -> int:
    """e such that k * 120^2 * 2^e, the bound of |y|, is at most half of T's overflow threshold."""
    bound = (case.k * 120 * 120 - 1).bit_length()
    return (127 if case.dtype == "bf16" else 15) - bound


def _huge_scales(block: Block, side: str) -> torch.Tensor:
    """Scales whose product is below 2^e, e from ``huge_exponent``; results come within 2^7 of overflow."""
    total = huge_exponent(block.case) - 2
    exponent = total // 2 if side == "a" else total - total // 2
    return odd_scale(exponent - block.rows % 2, _scale_draw(block, side))


def _bias(block: Block) -> torch.Tensor:
    """Uniform in -2 .. 2: of the size of the typical results."""
    return (block.row_integers("bias", 1 << 16).float() - 32767.5) * 2.0**-14


def _grid_bias(block: Block, smallest_a: int, largest_a_step: int) -> torch.Tensor:
    """An integer in -64 .. 63 times b's scale times the largest scale of a: a multiple of every product's grid."""
    steps = block.row_integers("bias", 2 * _BIAS_STEPS).float() - _BIAS_STEPS
    return steps * power_of_two(smallest_a + largest_a_step + torch.zeros_like(block.rows))


def _exact_bias(block: Block) -> torch.Tensor:
    return _grid_bias(block, _EXACT_EXPONENT, 3) * _exact_scales(block, "b")


def _one_hot_bias(block: Block) -> torch.Tensor:
    return _grid_bias(block, _ONE_HOT_EXPONENT, 2) * _one_hot_scales(block, "b")


def _no_integers(case: Case) -> str | None:
    return "small_integers needs k < 2^24 - 512" if case.k >= (1 << 24) - 8 * _BIAS_STEPS else None


def _no_unit_integers(case: Case) -> str | None:
    return "cancelling_integers needs k <= 2^20 - 512" if case.k > (1 << 20) - 8 * _BIAS_STEPS else None


def _too_long(case: Case) -> str | None:
    return "tiny_integers needs k <= 16384, so that no prefix passes 2^14" if case.k > 1 << 14 else None


_Maker = Callable[[Block, str], torch.Tensor]


def _recipe(name: str, lane: str, reveals: str, codes: _Maker, scales: _Maker = _typical_scales) -> GemmRecipe:
    return GemmRecipe(name, lane, _GEMM, reveals, codes=codes, scales=scales, bias=_bias)


RECIPES = (
    GemmRecipe(
        "small_integers",
        "exact",
        _GEMM,
        "an accumulator below 24 bits, partial sums stored in 16 bits, truncation of the output",
        _no_integers,
        codes=_small_integers,
        scales=_exact_scales,
        bias=_exact_bias,
    ),
    GemmRecipe(
        "tiny_integers",
        "exact",
        _GEMM,
        "layout, index and scale-row mistakes, on matrix units of any width: no prefix passes 2^14",
        _too_long,
        codes=_tiny_integers,
        scales=_exact_scales,
        bias=_exact_bias,
    ),
    GemmRecipe(
        "cancelling_integers",
        "exact",
        _GEMM,
        "partial sums of split-K in 16 bits, products lost at the end of k, on matrix units of unknown width too",
        _no_unit_integers,
        codes=_cancelling_integers,
        scales=_exact_scales,
        bias=_exact_bias,
    ),
    GemmRecipe(
        "odd_scales",
        "exact",
        _GEMM,
        "scales applied in the wrong order or precision: scales that are no powers of two, products that do not round",
        _too_long,
        codes=_tiny_integers,
        scales=_odd_scales,
        bias=_bias,
    ),
    GemmRecipe(
        "one_hot_k",
        "exact",
        _GEMM,
        "a k that is dropped, doubled or exchanged, the last K % 128 included; a weight shuffled wrongly",
        codes=_one_hot_k,
        scales=_one_hot_scales,
        bias=_one_hot_bias,
    ),
    GemmRecipe(
        "one_hot_n",
        "exact",
        _GEMM,
        "codes of a read from the wrong row or column, columns of the output exchanged",
        codes=_one_hot_n,
        scales=_one_hot_scales,
        bias=_one_hot_bias,
    ),
    GemmRecipe(
        "code_pairs",
        "exact",
        _GEMM,
        "a code decoded wrongly: with m = n = 256 all 65,536 pairs of codes, NaN and subnormals included",
        codes=_code_pairs,
        scales=_one_hot_scales,
        bias=_one_hot_bias,
    ),
    _recipe("random_bytes", "random", "codes decoded in the wrong format, NaN codes or subnormals", _random_bytes),
    _recipe("gaussian", "random", "scales, bias or slices of k missing; partial sums stored in 16 bits", _gaussian),
    _recipe("positive_mean", "adversarial", "truncating accumulators: a bias that grows with k", _positive_mean),
    _recipe("outlier_channels", "adversarial", "small products lost among large ones in one group", _outlier_channels),
    _recipe(
        "scale_ladder",
        "adversarial",
        "scales exchanged between rows and columns, shared by a tile, clamped at a tail, rounded to 16 bits",
        _gaussian,
        _ladder_scales,
    ),
    _recipe("cancellation", "adversarial", "sums whose prefix is far larger than the result", _cancellation),
    GemmRecipe(
        "nan_row",
        "special",
        _GEMM,
        "a NaN that leaves its row, or does not show in it",
        needs_rows(2, "to have one without NaN"),
        codes=_nan_row,
        scales=_typical_scales,
        bias=_bias,
    ),
    _recipe("zero_rows", "special", "rows of zeros that take values from their neighbours", _zero_rows),
    _recipe("huge_scales", "special", "an intermediate product that overflows", _positive_mean, _huge_scales),
    _recipe("shape_walk", "shapes", "tails of M, N or K and tiles that are dropped or never launched", _shape_walk),
    _recipe("model", "model", "mistakes at the model's own shapes", _gaussian),
)
