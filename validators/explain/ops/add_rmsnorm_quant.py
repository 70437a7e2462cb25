"""How outputs of ``add_rmsnorm_quant`` are explained."""

from __future__ import annotations

import torch

from reference.contract import NormQuantContract
from validators.cases.tensors import NormQuantInputs
from validators.explain.bits import observations
from validators.explain.element import norm_lines
from validators.explain.op import ExplainOp
from validators.explain.rows import diagnose_rows, observed


def _without_effect(contract: NormQuantContract, inputs: NormQuantInputs) -> set[str]:
    without = {"nonfinite"}
    if inputs.residual is None:
        without |= {"norm_input", "residual_store"}
    if inputs.fp8_dtype == torch.float8_e4m3fn:
        without.add("fnuz_max")
    return without


EXPLAIN = ExplainOp(
    diagnose=diagnose_rows,
    # Ordinary rows for the rounding points, rows of zeros for the floors.
    cases=(("gaussian", {"n": 5120}), ("zero_rows", {"n": 512})),
    without_effect=_without_effect,
    observed=observed,
    lines=norm_lines,
    bits=observations,
    zeros="zero_rows",
    small="magnitude_ladder",
)
