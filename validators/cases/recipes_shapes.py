"""Recipes for what deployments reach: a peak in every vector of a row, gains of real checkpoints, degenerate rows."""

from __future__ import annotations

import torch

from validators.cases.codes import choose
from validators.cases.generator import Block
from validators.cases.op import adds_residual
from validators.cases.recipe import ADD, QUANT, NormRecipe, Pair, default_gain, spread_step, walk_column
from validators.cases.recipes_norm import gaussian_pair

_BOTH = (ADD, QUANT)

VECTOR = 8
"""16-bit elements of one 16-byte load: the least that a kernel drops as a whole."""

LOUD_GAIN = 63.25
"""The largest gain of ``checkpoint_gain``, exact in bf16, and so is LOUD_GAIN - 1. A row's amax is its crest times this
at most, and a crest cannot pass sqrt(n): above 1,200 from n = 400 on."""


def peak_column(block: Block) -> torch.Tensor:
    """int64 [rows, 1]: row i peaks in another vector of 8 columns than the rows before it, and in every lane in turn.

    ceil(n / 8) rows visit every vector once, in steps that are coprime to their number, so that fewer rows spread over
    the whole width.
    """
    vectors = -(-block.width // VECTOR)
    vector = block.rows * spread_step(vectors) % vectors
    lane = (5 * vector + vector // VECTOR + block.rows // vectors) % VECTOR
    # The last vector may be partial.
    return torch.minimum(vector * VECTOR + lane, torch.full_like(vector, block.width - 1))


def _vector_peaks(block: Block) -> Pair:
    """Noise of 2^-6 with one element of 1 (-1 in odd rows) in the row's vector."""
    x = block.gaussian("x").mul_(2.0**-6)
    height = 1.0 - 2.0 * (block.rows % 2).float()
    x.scatter_(1, peak_column(block), height)
    return x, block.gaussian("residual").mul_(2.0**-8) if adds_residual(block.case) else None


def checkpoint_gain(block: Block) -> torch.Tensor:
    """Ordinary gains, but 15.8125, 31.625, 47.4375 or 63.25 in about one column of 32, and 63.25 in the middle."""
    step = block.col_integers("weight.step", 4) + 1
    loud = (LOUD_GAIN / 4) * step.float()
    gain = torch.where(block.col_integers("weight.loud", 32) == 0, loud, default_gain(block))
    gain[:, block.width // 2] = LOUD_GAIN
    return gain


def _massive_activations(block: Block) -> Pair:
    """Gaussian-like; every odd row has 1024 of either sign in the middle, where the gain is the largest."""
    x, residual = gaussian_pair(block)
    sign = 1.0 - (block.rows % 4 - 1).float()
    here = (block.rows % 2 == 1) & (block.cols == block.width // 2)
    return torch.where(here, 1024.0 * sign, x), residual


def unit_gain(block: Block) -> torch.Tensor:
    return torch.ones((1, block.width), dtype=torch.float32, device=block.device)


def _degenerate_rows(block: Block) -> Pair:
    """Rows 0, 3, ..: one element that is not zero; rows 1, 4, ..: all of one magnitude; rows 2, 5, ..: ordinary."""
    kind = block.rows % 3
    x, residual = gaussian_pair(block)
    lone = choose(block.cols == walk_column(block), 3.0, 0.0)
    flat = block.signs("x.sign") * 0.75
    special = torch.where(kind == 0, lone, flat)
    x = torch.where(kind == 2, x, special)
    return x, None if residual is None else torch.where(kind == 2, residual, special * 0.5)


RECIPES = (
    NormRecipe(
        "vector_peaks",
        "shapes",
        _BOTH,
        "one vector of 8 columns, or a part of a wide row, that takes no part in the row's maximum or sum",
        values=_vector_peaks,
    ),
    NormRecipe(
        "checkpoint_gain",
        "adversarial",
        (ADD,),
        "an upper bound on the scale that the op does not have, gains clamped or kept in too narrow a type",
        values=_massive_activations,
        gain=checkpoint_gain,
    ),
    NormRecipe(
        "degenerate_rows",
        "special",
        _BOTH,
        "rows with one element that is not zero, and rows of equal magnitudes",
        values=_degenerate_rows,
        gain=unit_gain,
    ),
)
