"""GEMM outputs whose exact value is beyond fp16: Inf or the largest value of its sign, and nothing else."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from reference.contract import GEMM_CONTRACTS
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.tensors import GemmInputs, GemmOutputs
from validators.judge.compare import compare
from validators.kernels import emulated_gemm
from validators.records.record import Comparison

MOST = torch.finfo(torch.float16).max
CONTRACTS = ("fp32", "unknown", "cdna3-mfma")


def overflowing(contract: str) -> tuple[GemmInputs, torch.Tensor]:
    """Inputs of which about half of the outputs are beyond fp16's 65,504, and the outputs of the emulated kernel."""
    fp8 = "e4m3fnuz" if contract == "cdna3-mfma" else "e4m3fn"
    inputs = build(Case("ptpc_gemm", 24, 40, "gaussian", k=256, dtype="fp16", fp8=fp8))
    assert isinstance(inputs, GemmInputs)
    out = emulated_gemm.execute(inputs, None, GEMM_CONTRACTS[contract]).out
    larger = dataclasses.replace(inputs, a_scale=inputs.a_scale * (MOST / float(out.float().abs().median())))
    return larger, emulated_gemm.execute(larger, None, GEMM_CONTRACTS[contract]).out


def judged(inputs: GemmInputs, out: torch.Tensor, contract: str) -> Comparison:
    [found] = compare(inputs, GemmOutputs(out), GEMM_CONTRACTS[contract])
    return found


@pytest.mark.parametrize("contract", CONTRACTS)
def test_infinity_and_the_largest_value_are_both_reported_and_not_judged(contract: str) -> None:
    inputs, out = overflowing(contract)
    beyond = out.isinf()
    assert 100 < int(beyond.sum()) < out.numel() - 100
    saturated = torch.where(beyond, torch.copysign(torch.full_like(out, MOST), out), out)
    for stored in (out, saturated):
        found = judged(inputs, stored, contract)
        assert found.violations == 0
        assert found.unspecified >= 100


@pytest.mark.parametrize("contract", CONTRACTS)
@pytest.mark.parametrize("value", [0.0, math.nan, 1.0, "other sign"])
def test_what_is_neither_of_them_is_a_violation(contract: str, value: float | str) -> None:
    inputs, out = overflowing(contract)
    row, col = (int(x) for x in out.isinf().nonzero()[0])
    wrong = out.clone()
    wrong[row, col] = -out[row, col] if isinstance(value, str) else value
    found = judged(inputs, wrong, contract)
    assert found.violations == 1
    assert (found.worst[0].row, found.worst[0].col) == (row, col)
