"""The recipe of ``ptpc_gemm`` whose rows of a and of b are of every other recipe: see ``situations``.

An output is a row of a times a row of b, so m x n outputs meet every pair of recipes. Where both rows are of the exact
lane with scales that are powers of two, the output has one admissible value under every contract.
"""

from __future__ import annotations

import torch

from validators.cases.generator import Block
from validators.cases.recipe import GEMM, GemmRecipe
from validators.cases.recipes_gemm import RECIPES as _RECIPES
from validators.cases.situations import EVERY, Turn, Turns, mixed

TURNS: Turns[GemmRecipe] = Turns(
    (
        Turn("cancelling_integers"),
        Turn("gaussian"),
        Turn("nan_row", placed=True),
        Turn("small_integers"),
        Turn("random_bytes"),
        Turn("one_hot_k"),
        Turn("scale_ladder"),
        Turn("tiny_integers"),
        Turn("zero_rows", placed=True),
        Turn("positive_mean"),
        Turn("cancelling_integers"),
        Turn("shape_walk"),
        Turn("outlier_channels"),
        Turn("one_hot_n"),
        Turn("huge_scales"),
        Turn("odd_scales"),
        Turn("cancellation"),
        Turn("code_pairs"),
        Turn("model"),
    ),
    _RECIPES,
)


def _rows(block: Block, side: str) -> int:
    return block.case.m if side == "a" else block.case.n


def _codes(block: Block, side: str) -> torch.Tensor:
    parts = TURNS.parts(block, _rows(block, side), side)
    (found,) = mixed(parts, lambda recipe, source: (recipe.codes(source, side),), block)
    assert found is not None
    return found


def _scales(block: Block, side: str) -> torch.Tensor:
    parts = TURNS.parts(block, _rows(block, side), side)
    (found,) = mixed(parts, lambda recipe, source: (recipe.scales(source, side),), block)
    assert found is not None
    return found


def _bias(block: Block) -> torch.Tensor:
    parts = TURNS.parts(block, block.case.n, "b")
    (found,) = mixed(parts, lambda recipe, source: (recipe.bias(source),), block)
    assert found is not None
    return found


EVERY_SITUATION = GemmRecipe(
    EVERY,
    "shapes",
    (GEMM,),
    "mistakes that need two classes of rows, or one and a shape, a type, a layout or an option together",
    codes=_codes,
    scales=_scales,
    bias=_bias,
)
