"""The recipes by name and op, and what can be asked of them without building anything."""

from __future__ import annotations

from validators.cases.case import Case, CaseError
from validators.cases.recipe import ADD, GEMM, QUANT, GemmRecipe, NormRecipe, RecipeInfo
from validators.cases.recipes_gemm import RECIPES as _GEMM_RECIPES
from validators.cases.recipes_norm import RECIPES as _NORM_RECIPES
from validators.cases.recipes_rounding import RECIPES as _ROUNDING_RECIPES
from validators.cases.recipes_shapes import RECIPES as _SHAPES_RECIPES
from validators.cases.recipes_special import RECIPES as _SPECIAL_RECIPES

_ALL: tuple[RecipeInfo, ...] = (
    *_NORM_RECIPES,
    *_ROUNDING_RECIPES,
    *_SPECIAL_RECIPES,
    *_SHAPES_RECIPES,
    *_GEMM_RECIPES,
)
_BY_KEY: dict[tuple[str, str], RecipeInfo] = {(recipe.name, op): recipe for recipe in _ALL for op in recipe.ops}


def recipe_names(op: str) -> list[str]:
    """Names of the recipes of ``op``, in a fixed order."""
    return [name for name, of in _BY_KEY if of == op]


def recipe_info(name: str, op: str) -> RecipeInfo:
    """The recipe ``name`` for ``op``; raises CaseError with the known names."""
    if (name, op) not in _BY_KEY:
        raise CaseError(f"unknown recipe {name!r} for op {op}; known: {', '.join(recipe_names(op))}")
    return _BY_KEY[name, op]


def norm_recipe(case: Case) -> NormRecipe:
    """The recipe of a case of ``add_rmsnorm_quant`` or ``per_token_quant``; raises CaseError."""
    recipe = recipe_info(case.recipe, case.op)
    if not isinstance(recipe, NormRecipe):
        raise CaseError(f"recipe {case.recipe} does not make inputs of {case.op}")
    return recipe


def gemm_recipe(case: Case) -> GemmRecipe:
    """The recipe of a case of ``ptpc_gemm``; raises CaseError."""
    recipe = recipe_info(case.recipe, case.op)
    if not isinstance(recipe, GemmRecipe):
        raise CaseError(f"recipe {case.recipe} does not make inputs of {case.op}")
    return recipe


def lane_of(case: Case) -> str:
    """The case's lane, one of ``LANES``: that of its recipe for its op."""
    return recipe_info(case.recipe, case.op).lane


def reasons_impossible(case: Case) -> str | None:
    """One sentence why no inputs can be built for this case, or None. Raises CaseError for an unknown recipe."""
    recipe = recipe_info(case.recipe, case.op)
    if case.gamma not in ("T", "fp32"):
        return f"weight type {case.gamma!r} is neither T nor fp32"
    if case.layout not in ("contiguous", "strided", "3d", "3dstrided"):
        return f"layout {case.layout!r} is none of contiguous, strided, 3d, 3dstrided"
    if case.op != ADD and (case.gamma != "T" or case.gemma or case.eps != "1e-5" or not case.residual):
        return f"{case.op} has no residual, weight or eps to vary"
    if case.op != GEMM and case.bias:
        return f"{case.op} has no bias"
    if case.op == GEMM and case.layout in ("3d", "3dstrided"):
        return "ptpc_gemm takes two-dimensional operands only"
    try:
        eps = float(case.eps)
    except ValueError:
        return f"eps {case.eps!r} is not a number"
    if not 0 <= eps < 1:
        return f"eps {case.eps} is not in [0, 1)"
    return recipe.impossible(case)


__all__ = [
    "ADD",
    "GEMM",
    "QUANT",
    "gemm_recipe",
    "lane_of",
    "norm_recipe",
    "reasons_impossible",
    "recipe_info",
    "recipe_names",
]
