"""The bias check: it stays silent on balanced errors, speaks on truncation, and states both of its errors."""

from __future__ import annotations

import math

import pytest
import torch

from reference.contract import GEMM_CONTRACTS
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipe import GEMM
from validators.cases.tensors import GemmInputs, GemmOutputs
from validators.judge.gemm import judge_gemm
from validators.judge.ops.ptpc_gemm import bias_check
from validators.judge.statistics import FALSE_ALARM, azuma_lambda, rounding_bias
from validators.kernels import emulated_gemm


def test_lambda_inverts_the_tail_bound() -> None:
    for probability in (FALSE_ALARM, 1e-6, 0.05):
        tail = 2 * math.exp(-(azuma_lambda(probability) ** 2) / 2)
        assert abs(tail / probability - 1) < 2.0**-40
    assert azuma_lambda(1e-12) > azuma_lambda(1e-4)


def test_the_bound_holds_for_balanced_errors_at_a_checkable_probability() -> None:
    """20,000 sums of 64 rounding errors of the worst kind, +-half a step: no more exceed the bound than it says."""
    probability, trials = 1e-2, 20_000
    errors = torch.randint(0, 2, (trials, 64), generator=torch.Generator().manual_seed(0)).double() - 0.5
    limit = azuma_lambda(probability) * math.sqrt(64 * 0.25)
    share = float((errors.sum(dim=1).abs() > limit).double().mean())
    assert 0 < share <= probability


def test_effect_and_bias_are_relative_to_the_size_of_the_outputs() -> None:
    found = rounding_bias(signed_sum=-3.0, variance_proxy=4.0, weight_sum=600.0, elements=100, floor=1.0)
    assert found.bound == 1.0 + 2.0 * azuma_lambda()
    assert found.relative == -3.0 / 600.0
    assert found.effect == found.bound / 600.0
    assert found.ok
    assert not rounding_bias(-3.0, 0.0, 600.0, 100).ok
    nothing = rounding_bias(0.0, 0.0, 0.0, 0)
    assert (nothing.ok, nothing.effect, nothing.relative) == (True, 0.0, 0.0)


@pytest.mark.parametrize("recipe", ["gaussian", "positive_mean", "random_bytes"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_rounding_to_nearest_passes_and_truncation_does_not(recipe: str, dtype: str) -> None:
    inputs = build(Case(GEMM, 64, 128, recipe, k=256, dtype=dtype))
    assert isinstance(inputs, GemmInputs)
    contract = GEMM_CONTRACTS["fp32"]
    nearest = emulated_gemm.execute(inputs, None, contract)
    _, fair = judge_gemm(inputs, nearest, contract)
    assert fair.ok
    assert fair.elements == nearest.out.numel()
    exact = emulated_gemm.execute(
        GemmInputs(inputs.a, inputs.a_scale, inputs.b, inputs.b_scale, None, torch.float32), None, contract
    ).out
    toward_zero = nearest.out.view(torch.int16) - (nearest.out.float().abs() > exact.abs()).to(torch.int16)
    _, biased = judge_gemm(inputs, GemmOutputs(toward_zero.view(inputs.out_dtype)), contract)
    assert not biased.ok
    assert biased.relative < 0


def test_bias_is_judged_only_where_rounding_to_nearest_is_declared() -> None:
    unfair = rounding_bias(-1.0, 0.0, 1.0, 4096)
    assert bias_check(unfair, GEMM_CONTRACTS["fp32"]).ok is False
    reported = bias_check(unfair, GEMM_CONTRACTS["unknown"])
    assert reported.ok is None
    assert f"except with probability {FALSE_ALARM:g}" in reported.detail
    assert bias_check(rounding_bias(0.0, 1.0, 1.0, 4096), GEMM_CONTRACTS["fp32"]).ok is True
