"""The recipes by name and op, and what can be asked of them without building anything."""

from __future__ import annotations

import functools

from validators.cases.case import Case, CaseError
from validators.cases.op import op_named
from validators.cases.recipe import RecipeInfo


def recipe_names(op: str) -> list[str]:
    """Names of the recipes of ``op``, in a fixed order."""
    return [recipe.name for recipe in op_named(op).recipes]


def recipe_info(name: str, op: str) -> RecipeInfo:
    """The recipe ``name`` for ``op``; raises CaseError with the known names."""
    found = _by_name(op).get(name)
    if found is None:
        raise CaseError(f"unknown recipe {name!r} for op {op}; known: {', '.join(recipe_names(op))}")
    return found


@functools.cache
def _by_name(op: str) -> dict[str, RecipeInfo]:
    return {recipe.name: recipe for recipe in op_named(op).recipes}


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
    if reason := op_named(case.op).impossible(case):
        return reason
    try:
        eps = float(case.eps)
    except ValueError:
        return f"eps {case.eps!r} is not a number"
    if not 0 <= eps < 1:
        return f"eps {case.eps} is not in [0, 1)"
    return recipe.impossible(case)
