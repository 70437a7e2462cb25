"""Cases and inputs of ``per_token_quant``."""

from __future__ import annotations

from validators.cases import rows
from validators.cases.case import Case
from validators.cases.codes import FP8_DTYPE
from validators.cases.op import CaseOp
from validators.cases.recipe import QUANT
from validators.cases.suite_rows import Options, RowSuites
from validators.cases.tensors import QuantInputs

_RECIPES = rows.recipes_of(QUANT)
_OPTIONS: Options = (
    ("gaussian", {"layout": "strided"}),
    ("gaussian", {"layout": "3d"}),
    ("spike_walk", {"layout": "strided"}),
    ("crest_ladder", {"layout": "3d"}),
    ("midpoints", {"layout": "strided"}),
    ("zero_rows", {"layout": "3d"}),
)


def build(case: Case, device: str) -> QuantInputs:
    """Inputs of a case that is possible."""
    x, _ = rows.filled(case, rows.named(_RECIPES, case), device, residual=False)
    return QuantInputs(x, FP8_DTYPE[case.fp8])


OP = CaseOp(
    name=QUANT,
    inputs=QuantInputs,
    recipes=_RECIPES,
    build=build,
    suites=RowSuites(op=QUANT, recipes=_RECIPES, options=_OPTIONS, smoke_options=2).suites,
    # x 2, its snapshot 2, codes 1 for each of two calls and one copy, a mask, and 4 for the kernel's own.
    bytes_per_element=12,
)
