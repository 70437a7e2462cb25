"""Cases and inputs of ``add_rmsnorm_quant``."""

from __future__ import annotations

import torch

from validators.cases import rows, shapes
from validators.cases.case import Case
from validators.cases.codes import FP8_DTYPE, STORAGE
from validators.cases.generator import Block
from validators.cases.op import CaseOp
from validators.cases.recipe import ADD
from validators.cases.suite_rows import Options, Pairs, RowSuites
from validators.cases.suite_types import OTHER
from validators.cases.tensors import NormQuantInputs

_RECIPES = rows.recipes_of(ADD)
_OPTIONS: Options = (
    ("gaussian", {"residual": False}),
    ("gaussian", {"layout": "strided"}),
    ("gaussian", {"layout": "3d"}),
    ("gaussian_gain", {"gamma": "fp32"}),
    ("magnitude_ladder", {"eps": "1e-6"}),
    ("gaussian", {"gemma": True}),
    ("gaussian", {"eps": "1e-6", "residual": False}),
    ("crest_ladder", {"residual": False}),
    ("magnitude_ladder", {"residual": False}),
    ("zero_rows", {"residual": False}),
    ("zero_rows", {"eps": "1e-6"}),
    ("nonfinite", {"residual": False}),
    ("midpoints", {"residual": False}),
    ("midpoints", {"gemma": True}),
    ("double_rounding", {"gamma": "fp32"}),
    ("gaussian_gain", {"gamma": "fp32", "gemma": True}),
    ("spike_walk", {"layout": "strided"}),
    ("crest_ladder", {"layout": "3d"}),
    ("crest_ladder", {"layout": "strided", "residual": False, "eps": "1e-6"}),
    ("energy_walk", {"layout": "3d", "residual": False, "gamma": "fp32"}),
)
_PAIRS: Pairs = (
    ("gaussian", 34, 1024, {"gemma": True, "residual": False}),
    ("gaussian", 34, 1024, {"gemma": True, "dtype": OTHER}),
    ("checkpoint_gain", 34, 1024, {"residual": False}),
    ("checkpoint_gain", 34, 1024, {"gamma": "fp32"}),
    ("checkpoint_gain", 34, 1024, {"dtype": OTHER}),
    ("gaussian_gain", 33, 1002, {"gamma": "fp32"}),
    ("gaussian", 17, shapes.HIDDEN, {"gemma": True}),
    ("gaussian_gain", 34, 12288, {"gamma": "fp32"}),
    ("gaussian_gain", 1, 1024, {"gamma": "fp32"}),
    ("shape_walk", 33, 1002, {"residual": False, "layout": "3dstrided"}),
)


def build(case: Case, device: str) -> NormQuantInputs:
    """Inputs of a case that is possible."""
    recipe = rows.named(_RECIPES, case)
    x, residual = rows.filled(case, recipe, device, residual=case.residual)
    gain = recipe.gain(Block(case, 0, 1, case.n, device)).squeeze(0)
    dtype = torch.float32 if case.gamma == "fp32" else STORAGE[case.dtype].dtype
    weight = (gain - 1.0 if case.gemma else gain).to(dtype)
    return NormQuantInputs(x, residual, weight, float(case.eps), FP8_DTYPE[case.fp8], case.gemma)


# The sixth option is the gemma case.
_SUITES = RowSuites(op=ADD, recipes=_RECIPES, options=_OPTIONS, smoke_options=6, pairs=_PAIRS, norm=True)
OP = CaseOp(
    name=ADD,
    inputs=NormQuantInputs,
    recipes=_RECIPES,
    build=build,
    suites=_SUITES.suites,
    # x and residual 4, their snapshot 4, codes and stored residual 3 for each of two calls and one copy, one for a
    # mask, and 6 for the kernel's own.
    bytes_per_element=24,
    norm=True,
)
