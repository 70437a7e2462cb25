"""Cases and inputs of ``ptpc_gemm``."""

from __future__ import annotations

import torch

from validators.cases import suite_gemm
from validators.cases.case import Case
from validators.cases.codes import FP8_DTYPE, STORAGE
from validators.cases.generator import Block
from validators.cases.layout import blocks, matrix
from validators.cases.op import CaseOp
from validators.cases.recipe import GEMM, GemmRecipe
from validators.cases.recipes_gemm import RECIPES as _SINGLE
from validators.cases.recipes_gemm_together import EVERY_SITUATION
from validators.cases.tensors import GemmInputs

_RECIPES = (*_SINGLE, EVERY_SITUATION)


def _operand(case: Case, recipe: GemmRecipe, side: str, rows: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    codes = matrix(case, side, rows, case.k, torch.uint8, device)
    scale = torch.empty(rows, 1, dtype=torch.float32, device=device)
    for block in blocks(case, rows, case.k, device):
        codes[block.start : block.stop] = recipe.codes(block, side)
        scale[block.start : block.stop] = recipe.scales(block, side)
    return codes.view(FP8_DTYPE[case.fp8]), scale


def build(case: Case, device: str) -> GemmInputs:
    """Inputs of a case that is possible."""
    recipe = next(recipe for recipe in _RECIPES if recipe.name == case.recipe)
    dtype = STORAGE[case.dtype].dtype
    a, a_scale = _operand(case, recipe, "a", case.m, device)
    b, b_scale = _operand(case, recipe, "b", case.n, device)
    bias = recipe.bias(Block(case, 0, case.n, case.k, device)).squeeze(1).to(dtype) if case.bias else None
    return GemmInputs(a, a_scale, b, b_scale, bias, dtype)


OP = CaseOp(
    name=GEMM,
    inputs=GemmInputs,
    recipes=_RECIPES,
    build=build,
    suites={"smoke": suite_gemm.smoke, "default": suite_gemm.default, "deep": suite_gemm.deep},
    # The output 2 for each of two calls and one copy, a mask, and its blocks in float64.
    bytes_per_element=12,
    bias=True,
    inner=True,
    batches=False,
)
