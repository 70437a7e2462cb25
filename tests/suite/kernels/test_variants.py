"""No false alarms: legitimate executions over millions of elements; long form ``tests.benchmarks.legitimate``."""

from __future__ import annotations

import itertools

import pytest

from reference.contract import NORM_QUANT_CONTRACTS
from tests import zoo
from tests.benchmarks.legitimate import (
    Claimant,
    Totals,
    draw_cases,
    emulated_claimants,
    gemm_claimants,
    judge,
    lines,
    native_claimants,
    run,
)
from validators.calls.buffers import make_buffers
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipe import ADD, GEMM, QUANT

SHAPES = ((5, 264), (3, 1002), (2, 5120))


def test_a_hundred_pairs_of_contract_and_variant_are_tried() -> None:
    pairs = emulated_claimants()
    assert len(pairs) >= 100
    assert len({c.name for c in pairs}) == len(pairs)
    assert {c.name.split("/")[0] for c in pairs} == set(NORM_QUANT_CONTRACTS)


@pytest.mark.parametrize("name", list(NORM_QUANT_CONTRACTS))
def test_every_variant_of_a_contract_is_admitted(name: str) -> None:
    """Every pair on some inputs of each op; together with the other contracts some five million codes."""
    claimants = [c for c in emulated_claimants() if c.name.startswith(f"{name}/")]
    totals = Totals()
    kinds = (
        ("gaussian_gain", "bf16", "e4m3fn"),
        ("midpoints", "bf16", "e4m3fnuz"),
        ("crest_ladder", "fp16", "e4m3fn"),
        ("gaussian", "fp16", "e4m3fnuz"),
        ("double_rounding", "bf16", "e4m3fn"),
        ("midpoints", "fp16", "e4m3fn"),
    )
    cases = [
        Case((ADD, QUANT)[turn % 2], *SHAPES[turn % 3], recipe, dtype=dtype, fp8=fp8, seed=3)
        for turn, (recipe, dtype, fp8) in enumerate(kinds)
    ]
    for case in cases:
        inputs = build(case)
        for claimant in claimants:
            judge(claimant, case, inputs, totals)
    assert totals.failing == []
    assert set(totals.elements) == {c.name for c in claimants}
    assert totals.judged > 20_000 * len(claimants)


def test_every_variant_of_the_gemm_is_admitted() -> None:
    cases = itertools.islice(draw_cases((GEMM,), seed=7), 12)
    totals = run(gemm_claimants(), float("inf"), cases=cases)
    assert totals.failing == []
    assert totals.cases == 12
    assert totals.judged > 100_000


@pytest.mark.parametrize("op", [ADD, QUANT, GEMM])
def test_eager_kernels_of_torch_are_admitted(op: str) -> None:
    """torch's own kernels under the contracts that they declare; ``torch.compile`` has its own, slower tests."""
    claimants = [c for c in native_claimants() if op in c.ops and c.name.startswith("torch_native/")]
    assert claimants
    totals = run(claimants, float("inf"), cases=itertools.islice(draw_cases((op,), seed=11), 40))
    assert totals.failing == []
    assert totals.judged > 10_000


def test_a_wrong_kernel_is_counted() -> None:
    """The count of false alarms can count: a defect under the same name fails, and is named in the lines."""
    defect = zoo.find_defect("Q22")
    contract = NORM_QUANT_CONTRACTS[zoo.NORM_CONTRACT]
    wrong = Claimant(
        "wrong",
        (QUANT,),
        contract,
        lambda inputs: defect.kernel.call(inputs, make_buffers(inputs, poison=0x7F).outputs),
    )
    totals = run([wrong], 10_000.0, cases=iter([Case(QUANT, 16, 1024, "gaussian")]))
    assert totals.violations == {"wrong": 16}
    text = "\n".join(lines("emulated", totals))
    assert "16 violations" in text
    assert "wrong on per_token_quant-m16-n1024" in text


def test_cases_are_drawn_without_repetition_and_hold_every_recipe_and_type() -> None:
    drawn = list(itertools.islice(draw_cases(), 240))
    assert len({case.id for case in drawn}) == len(drawn)
    assert {case.op for case in drawn} == {ADD, QUANT, GEMM}
    assert {(case.dtype, case.fp8) for case in drawn} == set(
        itertools.product(("bf16", "fp16"), ("e4m3fn", "e4m3fnuz"))
    )
