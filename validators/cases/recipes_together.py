"""Recipes of the norm and the quantizers whose rows are of every other recipe: see ``situations``."""

from __future__ import annotations

from collections.abc import Callable

import torch

from validators.cases.case import Case
from validators.cases.codes import STORAGE, power_of_two
from validators.cases.generator import Block
from validators.cases.op import adds_residual
from validators.cases.recipe import ADD, QUANT, NormRecipe, Pair, default_gain, spread_step
from validators.cases.recipes_norm import RECIPES as _NORM
from validators.cases.recipes_norm import signed_gain
from validators.cases.recipes_rounding import RECIPES as _ROUNDING
from validators.cases.recipes_rounding import step_gain
from validators.cases.recipes_shapes import RECIPES as _SHAPES
from validators.cases.recipes_shapes import checkpoint_gain, unit_gain
from validators.cases.recipes_special import RECIPES as _SPECIAL
from validators.cases.situations import EVERY, Turn, Turns, mixed

# Columns at whose two sides a kernel may change: vectors, half and whole waves, blocks of one load of all threads,
# and the widths at which the number of elements per thread changes.
_EDGES = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 6144, 8192, 10240, 12288)
# What ends with the row: vectors, waves and blocks, the last of which may be partial.
_BLOCKS = (8, 64, 512, 1024, 2048)


def edge_columns(n: int) -> list[int]:
    """Columns next to a boundary in a row of n, in rising order; the first and last column are among them."""
    ends = [n // block * block for block in _BLOCKS]
    found = {0, 1, n - 1, n - 2, n // 2, *(edge + side for edge in (*_EDGES, *ends) for side in (-1, 0))}
    return sorted(column for column in found if 0 <= column < n)


def _edge_peaks(block: Block) -> Pair:
    """Noise of 2^-6 with one element of 1 or -1 next to a boundary; in every other round it comes from the residual."""
    table = torch.tensor(edge_columns(block.width), dtype=torch.int64, device=block.device)
    walk = (len(table) - 1 + block.rows * spread_step(len(table))) % len(table)
    column, turn = table[walk], block.rows // len(table)
    height = 1.0 - 2.0 * ((block.rows + turn) % 2).float()
    x = block.gaussian("x").mul_(2.0**-6)
    if not adds_residual(block.case):
        return x.scatter_(1, column, height), None
    residual = block.gaussian("residual").mul_(2.0**-6)
    own = turn % 2 == 0
    x.scatter_(1, column, torch.where(own, height, x.gather(1, column)))
    residual.scatter_(1, column, torch.where(own, residual.gather(1, column), height))
    return x, residual


EDGE_PEAKS = NormRecipe(
    "edge_peaks",
    "shapes",
    (ADD, QUANT),
    "a column next to a boundary of vectors, waves or blocks that takes no part in the row's maximum or sum",
    values=_edge_peaks,
)


def _huge_gain(block: Block) -> torch.Tensor:
    """2^100 to 2^102; in fp16 2^6 to 2^8, so that a product stored in fp16 stays finite."""
    top = 8 if block.case.dtype == "fp16" else 102
    return power_of_two(top - block.cols % 3) * (1.0 + block.col_integers("weight", 128).float() * 2.0**-8)


def _tiny_gain(block: Block) -> torch.Tensor:
    """Gains 2^-123 to 2^-121, with which a row's largest output is a normal fp32 and its scale is not; 2^-14 to 2^-12
    in fp16, whose least normal number 2^-14 is."""
    least = -12 if block.case.dtype == "fp16" else -121
    return power_of_two(least - block.cols % 3)


def _no_tiny_gain(case: Case) -> str | None:
    return "a tiny gain is what 1 + weight cannot hold" if case.gemma else None


# Ordinary rows stand between special ones; walks have several turns, because a row shows one column.
_TURNS = (
    Turn("edge_peaks"),
    Turn("gaussian"),
    Turn("nonfinite", placed=True),
    Turn("spike_walk", step=192),
    Turn("magnitude_ladder"),
    Turn("vector_peaks"),
    Turn("zero_rows", placed=True),
    Turn("midpoints"),
    Turn("crest_ladder"),
    Turn("energy_walk"),
    Turn("subnormal_rows"),
    Turn("double_rounding"),
    Turn("spike_walk", step=192),
    Turn("residual_ties"),
    Turn("overflow_sum"),
    Turn("model"),
    Turn("edge_peaks"),
    Turn("uniform_bytes"),
    Turn("vector_peaks"),
    Turn("degenerate_rows"),
    Turn("gaussian_gain"),
    Turn("scale_underflow"),
    Turn("cancellation"),
    Turn("nonfinite", placed=True),
    Turn("spike_walk", step=192),
    Turn("subnormal_codes"),
    Turn("magnitude_ladder"),
    Turn("energy_walk"),
    Turn("zero_rows", placed=True),
    Turn("vector_peaks"),
    Turn("checkpoint_gain"),
    Turn("midpoints"),
    Turn("edge_peaks"),
    Turn("outlier_channels"),
    Turn("degenerate_rows"),
    Turn("crest_ladder"),
    Turn("subnormal_rows"),
    Turn("double_rounding"),
    Turn("shape_walk", step=192),
)
_ALL = (*_NORM, *_ROUNDING, *_SPECIAL, *_SHAPES, EDGE_PEAKS)
_REVEALS = "mistakes that need a class of input and a shape, a type, a layout or an option together"
_GAINS: dict[str, tuple[Callable[[Block], torch.Tensor], str]] = {
    "": (default_gain, "ordinary gains"),
    "_ones": (unit_gain, "gains of 1"),
    "_signed": (signed_gain, "gains of both signs and zero"),
    "_checkpoint": (checkpoint_gain, "gains of real checkpoints"),
    "_powers": (step_gain, "gains that are powers of two"),
    "_huge": (_huge_gain, "huge gains"),
    "_tiny": (_tiny_gain, "tiny gains"),
}
GAINS = tuple(_GAINS)
"""What follows ``every_situation`` in a recipe's name: the class of the norm's gains."""


def turns_among(recipes: tuple[NormRecipe, ...]) -> Turns[NormRecipe]:
    """The turns of those of the recipes that have one."""
    known = {recipe.name for recipe in recipes}
    return Turns(tuple(turn for turn in _TURNS if turn.recipe in known), recipes)


def every_situation(op: str, recipes: tuple[NormRecipe, ...]) -> NormRecipe:
    """The recipe of ``op`` whose rows are those of ``recipes``."""
    turns = turns_among(recipes)

    def values(block: Block) -> Pair:
        dtype = STORAGE[block.case.dtype].dtype

        def stored(recipe: NormRecipe, source: Block) -> tuple[torch.Tensor | None, ...]:
            return tuple(None if value is None else value.to(dtype) for value in recipe.values(source))

        x, residual = mixed(turns.parts(block, block.case.m), stored, block)
        assert x is not None
        return x, residual

    return NormRecipe(EVERY, "shapes", (op,), _REVEALS, values=values)


def _with_gain(recipe: NormRecipe, name: str) -> NormRecipe:
    gain, words = _GAINS[name]
    possible = {"impossible": _no_tiny_gain} if name == "_tiny" else {}
    return NormRecipe(
        EVERY + name,
        recipe.lane,
        recipe.ops,
        f"{_REVEALS}; {words}" if name else _REVEALS,
        values=recipe.values,
        gain=gain,
        **possible,
    )


def _of(op: str) -> NormRecipe:
    return every_situation(op, tuple(recipe for recipe in _ALL if op in recipe.ops))


RECIPES = (EDGE_PEAKS, *(_with_gain(_of(ADD), name) for name in GAINS), _of(QUANT))
