"""Inputs of single cases, and FP8 bytes decoded by ml_dtypes, so that the input makers' own tables are not their own
witness."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch

from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipe import ADD as ADD
from validators.cases.recipe import GEMM as GEMM
from validators.cases.recipe import QUANT as QUANT
from validators.cases.tensors import GemmInputs, NormQuantInputs, QuantInputs
from validators.explain.element import element_text

NP_FP8 = {"e4m3fn": ml_dtypes.float8_e4m3fn, "e4m3fnuz": ml_dtypes.float8_e4m3fnuz}


def decoded_table(fp8: str) -> np.ndarray:
    """float64 [256] values of the bytes, by ml_dtypes."""
    return np.arange(256, dtype=np.uint8).view(NP_FP8[fp8]).astype(np.float64)


def decode(codes: torch.Tensor, fp8: str) -> torch.Tensor:
    return torch.from_numpy(decoded_table(fp8))[codes.view(torch.uint8).long()]


def case_of(op: str, name: str, m: int = 24, n: int = 72, k: int = 200, **options: Any) -> Case:
    return Case(op, m, n, name, k=k if op == GEMM else 0, **options)  # type: ignore[arg-type]


def norm_case(name: str, m: int, n: int, **options: Any) -> NormQuantInputs:
    built = build(case_of(ADD, name, m, n, **options))
    assert isinstance(built, NormQuantInputs)
    return built


def quant_case(name: str, m: int, n: int, **options: Any) -> QuantInputs:
    built = build(case_of(QUANT, name, m, n, **options))
    assert isinstance(built, QuantInputs)
    return built


def gemm_case(name: str, m: int, n: int, k: int, **options: Any) -> GemmInputs:
    built = build(case_of(GEMM, name, m, n, k, **options))
    assert isinstance(built, GemmInputs)
    return built


def total(built: NormQuantInputs) -> torch.Tensor:
    """x + residual, exact in float64 for the magnitudes used here."""
    assert built.residual is not None
    return built.x.double() + built.residual.double()


def element_report(*claim: Any) -> str:
    """The lines of ``element_text``, which takes the same arguments."""
    return "\n".join(element_text(*claim).lines)
