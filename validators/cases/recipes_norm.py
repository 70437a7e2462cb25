"""Recipes of the norm and quantization ops: random, adversarial, shapes and model lanes."""

from __future__ import annotations

import torch

from validators.cases.codes import STORAGE, choose, from_fields, power_of_two
from validators.cases.generator import Block
from validators.cases.op import adds_residual, normed
from validators.cases.recipe import ADD, QUANT, NormRecipe, Pair, needs_residual, walk_column

_BOTH = (ADD, QUANT)


def gaussian_pair(block: Block) -> Pair:
    """x and residual gaussian-like, variance 1, drawn apart."""
    return block.gaussian("x"), _residual(block, 1.0)


def _residual(block: Block, amplitude: float) -> torch.Tensor | None:
    """Gaussian-like residual where the case has one."""
    if not adds_residual(block.case):
        return None
    return block.gaussian("residual").mul_(amplitude)


def signed_gain(block: Block) -> torch.Tensor:
    """Random signs and octaves 2^0 .. 2^-12; about one column in 64 is exactly zero."""
    octave = block.col_integers("weight.octave", 13)
    sign = 1 - 2 * block.col_integers("weight.sign", 2)
    gain = (1.0 + block.col_integers("weight", 1 << 20).float() * 2.0**-20) * power_of_two(-octave) * sign
    return torch.where(block.col_integers("weight.zero", 64) == 0, torch.zeros_like(gain), gain)


def _gaussian_gain(block: Block) -> Pair:
    x, residual = gaussian_pair(block)
    return (x if normed(block.case) else x * signed_gain(block)), residual


def _outlier_channels(block: Block) -> Pair:
    # fp16: 1e4 * 3.47 * 2 * base stays below 65504.
    base = 0.125 if block.case.dtype == "fp16" else 1.0
    outlier = block.col_integers("channel", 64) == 0
    outlier[:, block.width // 2] = True
    gain = choose(outlier, 10000.0 * base, base)
    x, residual = gaussian_pair(block)
    return x * gain, None if residual is None else residual * gain


def _uniform_bytes(block: Block) -> Pair:
    """Uniform sign, mantissa and exponent in a window of 24 octaves whose top moves from row to row."""
    layout = STORAGE[block.case.dtype]
    if block.case.dtype == "fp16":
        # Sums stay below 2^15; exponent field 0 (subnormals) is reached.
        top, window = torch.full_like(block.rows, 28), 29
    else:
        # |x| < 2^41: the fp32 sum of 2^14 squares stays below 2^98.
        top, window = 87 + block.row_integers("top", 81), 24

    def draw(name: str) -> torch.Tensor:
        exponent = top - block.integers(f"{name}.exponent", window)
        field = block.integers(name, 2 << layout.mantissa)
        return from_fields(field & 1, exponent, field >> 1, block.case.dtype)

    return draw("x"), draw("residual") if adds_residual(block.case) else None


def _cancellation(block: Block) -> Pair:
    """residual = -x up to a few steps of the storage type, so that leading digits vanish in the sum."""
    x = block.gaussian("x")
    return x, -x * (1.0 + block.gaussian("residual") * 0.015625)


def _spiked(block: Block, noise: float, height: torch.Tensor, column: torch.Tensor) -> Pair:
    """Noise of amplitude ``noise`` with one element of value ``height`` (fp32 [rows, 1]) at ``column`` of each row."""
    x = block.gaussian("x").mul_(noise)
    x.scatter_(1, column, height.expand_as(column).contiguous())
    return x, _residual(block, noise / 4)


def crest_height(block: Block) -> torch.Tensor:
    """fp32 [rows, 1]: 4 or 8 in even rows, 2^4 .. 2^12 in odd rows.

    A row's crest (peak / rms) cannot pass sqrt(N), so two high spikes look alike after the norm: of two neighbours one
    is always low.
    """
    pair = block.rows // 2
    return power_of_two(torch.where(block.rows % 2 == 0, 2 + pair % 2, 4 + pair * 4 % 9))


def _crest_ladder(block: Block) -> Pair:
    column = (block.rows * 37 + 5) % block.width
    return _spiked(block, 1.0, crest_height(block), column)


def _odd_rows_negative(block: Block) -> torch.Tensor:
    return 1.0 - 2.0 * (block.rows % 2).float()


def _spike_walk(block: Block) -> Pair:
    return _spiked(block, 2.0**-6, _odd_rows_negative(block), walk_column(block))


def _energy_walk(block: Block) -> Pair:
    """Row j has its energy in one block of 64 columns; the last block, partial or not, comes first."""
    blocks = -(-block.width // 64)
    loud = block.cols // 64 == blocks - 1 - block.rows % blocks
    amplitude = choose(loud, 1.0, 2.0**-12)
    x, residual = gaussian_pair(block)
    return x * amplitude, None if residual is None else residual * amplitude


def _magnitude_ladder(block: Block) -> Pair:
    """Rows at 2^0 .. 2^-47 (2^-20 for fp16, whose least subnormal is 2^-24); neighbours 2^5 apart."""
    rungs = 21 if block.case.dtype == "fp16" else 48
    amplitude = power_of_two(-(block.rows * 5 % rungs))
    x, residual = gaussian_pair(block)
    return x * amplitude, None if residual is None else residual * amplitude


def _shape_walk(block: Block) -> Pair:
    """Crest ladder at walked columns: rows differ in scale, and the peak visits every tail."""
    return _spiked(block, 1.0, crest_height(block) * _odd_rows_negative(block), walk_column(block))


def _model(block: Block) -> Pair:
    """Gaussian-like hidden states, a larger residual, and a few channels 16 times louder in both."""
    gain = choose(block.col_integers("channel", 256) == 0, 16.0, 1.0)
    x, residual = gaussian_pair(block)
    return x * gain, None if residual is None else residual * (4.0 * gain)


RECIPES = (
    NormRecipe(
        "gaussian", "random", _BOTH, "gross mistakes of any step, rounding of the residual", values=gaussian_pair
    ),
    NormRecipe(
        "gaussian_gain",
        "random",
        _BOTH,
        "amax taken before the gain, a mishandled gain sign or dtype, 0x80 written for small negative values",
        values=_gaussian_gain,
        gain=signed_gain,
    ),
    NormRecipe(
        "uniform_bytes",
        "random",
        _BOTH,
        "intermediates kept in fp16, flushed or lost exponents, sums rounded at an exponent gap over 16",
        values=_uniform_bytes,
    ),
    NormRecipe(
        "outlier_channels",
        "adversarial",
        _BOTH,
        "channels that set every row's scale, low-precision sums of squares, flushed small codes",
        values=_outlier_channels,
    ),
    NormRecipe(
        "cancellation",
        "adversarial",
        (ADD,),
        "a sum rounded too early or computed in the storage type, a norm that uses x alone",
        needs_residual,
        values=_cancellation,
    ),
    NormRecipe(
        "crest_ladder",
        "adversarial",
        _BOTH,
        "row scales swapped, late, shared, stale or broadcast; eps multiplied by amax",
        values=_crest_ladder,
    ),
    NormRecipe(
        "spike_walk",
        "adversarial",
        _BOTH,
        "columns or lanes dropped from amax, amax of y instead of |y|",
        values=_spike_walk,
    ),
    NormRecipe(
        "energy_walk",
        "adversarial",
        (ADD,),
        "columns, lanes or the last partial block dropped from the sum of squares",
        values=_energy_walk,
    ),
    NormRecipe(
        "magnitude_ladder",
        "adversarial",
        _BOTH,
        "eps missing, misplaced or wrong; amax and scale floors",
        values=_magnitude_ladder,
    ),
    NormRecipe(
        "shape_walk",
        "shapes",
        _BOTH,
        "tails, block-size boundaries and row blocks that are handled wrongly at one shape",
        values=_shape_walk,
    ),
    NormRecipe("model", "model", _BOTH, "mistakes at the model's own shapes", values=_model),
)
