"""How outputs of ``per_token_quant`` are explained."""

from __future__ import annotations

import torch

from reference.contract import NormQuantContract
from validators.cases.tensors import QuantInputs
from validators.explain.bits import observations
from validators.explain.element import quant_lines
from validators.explain.op import ExplainOp
from validators.explain.rows import diagnose_rows, observed

_OF_THE_NORM = {"norm_input", "residual_store", "round_after_normalize", "round_after_weight"}


def _without_effect(contract: NormQuantContract, inputs: QuantInputs) -> set[str]:
    fnuz = set() if inputs.fp8_dtype == torch.float8_e4m3fnuz else {"fnuz_max"}
    return {"nonfinite", *_OF_THE_NORM, *fnuz}


EXPLAIN = ExplainOp(
    diagnose=diagnose_rows,
    # Ordinary rows for the rounding points, rows of zeros for the floors.
    cases=(("gaussian", {"n": 5120}), ("zero_rows", {"n": 512})),
    without_effect=_without_effect,
    observed=observed,
    lines=quant_lines,
    bits=observations,
    zeros="zero_rows",
    small="magnitude_ladder",
)
