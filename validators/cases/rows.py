"""Inputs of the two ops that a ``NormRecipe`` makes x (and a residual) for."""

from __future__ import annotations

import torch

from validators.cases.case import Case, CaseError
from validators.cases.codes import STORAGE
from validators.cases.layout import blocks, matrix, store_rows
from validators.cases.recipe import NormRecipe
from validators.cases.recipes_norm import RECIPES as _NORM
from validators.cases.recipes_rounding import RECIPES as _ROUNDING
from validators.cases.recipes_shapes import RECIPES as _SHAPES
from validators.cases.recipes_special import RECIPES as _SPECIAL
from validators.cases.recipes_together import RECIPES as _TOGETHER


def recipes_of(op: str) -> tuple[NormRecipe, ...]:
    """The recipes that make inputs of ``op``, in the order of the suites."""
    return tuple(recipe for recipe in (*_NORM, *_ROUNDING, *_SPECIAL, *_SHAPES, *_TOGETHER) if op in recipe.ops)


def filled(case: Case, recipe: NormRecipe, device: str, *, residual: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """x and, where it is wanted, residual of the case, in its layout and storage type."""
    dtype = STORAGE[case.dtype].dtype
    x = matrix(case, "x", case.m, case.n, dtype, device)
    second = matrix(case, "residual", case.m, case.n, dtype, device) if residual else None
    for block in blocks(case, case.m, case.n, device):
        x_rows, residual_rows = recipe.values(block)
        store_rows(x, block.start, x_rows.to(dtype))
        if second is not None:
            if residual_rows is None:
                raise CaseError(f"recipe {case.recipe} makes no residual for {case.id}")
            store_rows(second, block.start, residual_rows.to(dtype))
    return x, second


def named(recipes: tuple[NormRecipe, ...], case: Case) -> NormRecipe:
    """The recipe of the case."""
    return next(recipe for recipe in recipes if recipe.name == case.recipe)
