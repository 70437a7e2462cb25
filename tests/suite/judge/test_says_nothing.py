"""A set that is as wide as an output says nothing about it: such elements are no evidence, and no pass."""

from __future__ import annotations

import math

import pytest
import torch

from reference.contract import GEMM_CONTRACTS
from reference.formats import format_of, round_to
from reference.ptpc_gemm import gemm_truth, operand, says_nothing
from tests.support.case_inputs import element_report
from validators.calls.call import run_kernel
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipe import GEMM
from validators.cases.suite import cases_for
from validators.cases.tensors import GemmInputs, GemmOutputs
from validators.kernels import emulated_gemm
from validators.kernels.kernel import Kernel
from validators.kernels.registry import find_kernel
from validators.records.record import Record, Status
from validators.records.verdict import decide
from validators.run import judge, validate


def judged(recipe: str, k: int, name: str = "emulated/unknown") -> Record:
    return validate(find_kernel(name, GEMM), Case(GEMM, 8, 32, recipe, k=k))


@pytest.mark.parametrize("k", [512, 1536, 5120, 8192])
def test_up_to_the_lengths_of_most_linears_every_set_says_something(k: int) -> None:
    for recipe in ("gaussian", "cancellation"):
        record = judged(recipe, k)
        assert (record.status, record.comparisons[0].unspecified) == (Status.PASSED, 0)


def test_beyond_them_outputs_of_zero_mean_data_are_judged_where_they_are_large() -> None:
    (out,) = judged("gaussian", 12288).comparisons
    assert 0 < out.judged < out.elements == out.judged + out.unspecified
    assert out.observed == "sets as wide as an output"
    (positive,) = judged("positive_mean", 12288).comparisons
    assert positive.unspecified == 0


def test_a_case_that_could_not_have_failed_is_mistrusted() -> None:
    record = judged("gaussian", 65536)
    assert record.status is Status.MISTRUSTED
    assert record.reasons == ("out: sets as wide as an output, so that no element could be judged",)
    assert judged("gaussian", 12288, "emulated/fp32").comparisons[0].unspecified == 0


@pytest.mark.parametrize("recipe", ["tiny_integers", "odd_scales"])
def test_integers_keep_one_admissible_value_at_every_length(recipe: str) -> None:
    (out,) = judged(recipe, 12288).comparisons
    assert out.judged == out.single == out.elements


def test_long_cases_of_the_suite_are_strong_under_an_unknown_unit() -> None:
    """No right kernel may be MISTRUSTED for the length of a row."""
    long = [case for case in cases_for(GEMM, depth="default") if case.k > 8192]
    assert long
    for case in long:
        record = validate(find_kernel("emulated/unknown", GEMM), Case(GEMM, 8, 32, case.recipe, k=case.k))
        assert record.status is Status.PASSED, (case.id, record.reasons)
    (out,) = judged("cancellation", 12288).comparisons
    assert out.single == out.elements // 2


def test_what_lies_outside_even_a_wide_set_is_a_violation() -> None:
    def call(inputs: GemmInputs, buffers: object) -> GemmOutputs:
        out = emulated_gemm.execute(inputs, None, GEMM_CONTRACTS["fp32"]).out
        out[0, 0] += 8 * out.abs().max()
        return GemmOutputs(out)

    kernel = Kernel("demo/far", GEMM, "unknown", call)
    # As ``validate`` decides, without the search for an explanation, which emulates 65,536 products on every unit.
    claim = run_kernel(kernel, Case(GEMM, 8, 32, "gaussian", k=65536), "cpu")
    comparisons, checks = judge(claim, GEMM_CONTRACTS["unknown"])
    assert decide(comparisons, [*claim.checks, *checks])[0] is Status.FAILED
    assert (comparisons[0].violations, comparisons[0].judged) == (1, 1)


def test_the_rule_is_the_derivation() -> None:
    inputs = build(Case(GEMM, 8, 32, "gaussian", k=12288))
    assert isinstance(inputs, GemmInputs)
    fmt, k = format_of(inputs.a.dtype), 12288
    a, b = operand(inputs.a, fmt), operand(inputs.b, fmt)
    scales = inputs.a_scale.reshape(-1), inputs.b_scale.reshape(-1)
    truth = gemm_truth(a, b, *scales, None, format_of(inputs.out_dtype), GEMM_CONTRACTS["unknown"])
    ordinary = ((a * a) @ (b * b).t()).sqrt() * truth.scales
    least = truth.magnitude * truth.scales / math.sqrt(k)
    # Cauchy-Schwarz; the magnitude is an upper bound within 2**-10.
    assert bool((least <= ordinary * (1 + 2.0**-9)).all())
    wide = says_nothing(truth, k)
    assert bool(wide.any())
    assert bool((2 * truth.error[wide] >= truth.value.abs()[wide]).all())
    assert torch.equal(truth.wide, wide)
    # Both half of the output and one and a half of it are admissible there.
    for factor in (0.5, 1.5):
        wrong = round_to(truth.value * factor, format_of(inputs.out_dtype))
        assert bool(truth.admits(wrong)[wide].all())
    row, col = wide.nonzero()[0].tolist()
    outputs = GemmOutputs(truth.value.to(inputs.out_dtype))
    report = element_report(inputs, outputs, GEMM_CONTRACTS["unknown"], row, col)
    last = "UNSPECIFIED: inside a set that is as wide as an output, which says nothing about it"
    assert report.splitlines()[-1].endswith(last)
    assert torch.isfinite(truth.value).all()
