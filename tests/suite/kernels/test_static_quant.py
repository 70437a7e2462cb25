"""The static quantizer from end to end: it came last, in one file of each folder, and everything works for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reference.static_quant import CONTRACTS, EVIDENCE, StaticQuantContract
from tests import zoo
from tests.support.case_inputs import element_report
from validators.calls.call import run_kernel
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.ops.static_quant import NAME, StaticQuantInputs, StaticQuantOutputs
from validators.cases.recipes import lane_of, recipe_names
from validators.cases.suite import cases_for
from validators.explain.identify import identify
from validators.explain.ops.static_quant import HYPOTHESES
from validators.judge.compare import compare
from validators.kernels.emulated_static_quant import make
from validators.kernels.emulated_variant import EmulatedError
from validators.kernels.kernel import Kernel
from validators.kernels.registry import find_kernel
from validators.records.record import Status
from validators.run import validate

DEFECTS = [d for d in zoo.all_defects() if d.op == NAME]
contracts = pytest.mark.parametrize("contract", CONTRACTS.values(), ids=lambda c: c.name)
formats = pytest.mark.parametrize("fp8", ["e4m3fn", "e4m3fnuz"])

MINE = """
import torch
def quantize(x, scale, fp8_dtype):
    q = 448.0 if fp8_dtype == torch.float8_e4m3fn else 240.0
    return (x.float() / scale).clamp(-q, q).to(fp8_dtype)
"""


@contracts
@formats
def test_legitimate_kernels_pass_the_smoke_suite(contract: StaticQuantContract, fp8: str) -> None:
    open_reciprocal = any(member.reciprocal_u > 1.0 for member in contract.members())
    for direction in ("nearest", "up", "down") if open_reciprocal else ("nearest",):
        kernel = Kernel("demo/legal", NAME, contract.name, make(contract, direction), in_place=True, emulated=True)
        for case in cases_for(NAME, depth="smoke", fp8=fp8):
            assert validate(kernel, case).status is Status.PASSED, (direction, case.id)


@formats
@pytest.mark.parametrize("recipe", recipe_names(NAME))
def test_the_given_scale_is_a_power_of_two_in_the_exact_lane_alone(recipe: str, fp8: str) -> None:
    case = Case(NAME, 24, 72, recipe, fp8=fp8)
    built = build(case)
    assert isinstance(built, StaticQuantInputs)
    assert built.scale.shape == (1,)
    assert 0 < float(built.scale) < float("inf")
    assert (torch.frexp(built.scale).mantissa.item() == 0.5) == (lane_of(case) == "exact")


def test_a_reciprocal_that_the_contract_settles_has_no_variants() -> None:
    with pytest.raises(EmulatedError, match="allows one reciprocal only"):
        make(CONTRACTS["vllm-native"], "up")


def test_the_torch_form_passes_as_compressed_tensors_and_is_identified(tmp_path: Path) -> None:
    """The user's own function, by its parameter names; torch's cast is the claimant here and no oracle."""
    (tmp_path / "mine.py").write_text(MINE, encoding="utf-8")
    kernel = find_kernel(f"{tmp_path}/mine.py:quantize")
    assert kernel.op == NAME
    assert identify(kernel).best == "compressed-tensors"
    record = validate(kernel, Case(NAME, 24, 520, "double_rounding"))
    assert (record.status, record.contract) == (Status.PASSED, "compressed-tensors")


@contracts
def test_each_contract_is_told_from_the_others_by_identification(contract: StaticQuantContract) -> None:
    found = identify(find_kernel(f"emulated/{contract.name}", NAME))
    assert found.best == contract.name
    assert [c.contract for c in found.candidates if not c.total] == [contract.name]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: d.name)
def test_a_defect_is_caught_and_named_first(defect: zoo.Defect) -> None:
    for text in defect.reveals:
        record = validate(defect.kernel, Case.parse(text))
        assert record.status is Status.FAILED
        assert record.explanations[0].name == defect.name


def test_there_are_eight_defects_with_the_names_of_the_hypotheses() -> None:
    assert [d.name for d in DEFECTS] == [name for name, _, _ in HYPOTHESES]
    assert len(DEFECTS) == 8


def test_a_nan_is_nan_or_the_largest_value_and_nothing_else() -> None:
    x = torch.tensor([[float("nan"), float("inf"), -float("inf"), -0.0]], dtype=torch.bfloat16)
    inputs = StaticQuantInputs(x, torch.tensor([0.5]), torch.float8_e4m3fn)
    for name, code in (("compressed-tensors", 0x7F), ("vllm", 0x7E)):
        codes = torch.tensor([[code, 0x7E, 0xFE, 0x80]], dtype=torch.uint8)
        right = StaticQuantOutputs(codes.view(torch.float8_e4m3fn))
        assert compare(inputs, right, CONTRACTS[name])[0].violations == 0
        wrong = StaticQuantOutputs((codes ^ torch.tensor([[1, 1, 1, 0]], dtype=torch.uint8)).view(torch.float8_e4m3fn))
        assert compare(inputs, wrong, CONTRACTS[name])[0].violations == 3


def test_a_scale_whose_reciprocal_overflows_is_not_judged() -> None:
    inputs = StaticQuantInputs(torch.ones(2, 8, dtype=torch.bfloat16), torch.tensor([2.0**-126]), torch.float8_e4m3fn)
    outputs = StaticQuantOutputs(torch.zeros(2, 8, dtype=torch.uint8).view(torch.float8_e4m3fn))
    [found] = compare(inputs, outputs, CONTRACTS["vllm"])
    assert (found.judged, found.unspecified) == (0, 16)
    assert "reciprocal" in found.observed


def test_one_element_is_explained() -> None:
    kernel = next(d.kernel for d in DEFECTS if d.name == "scale-multiplied")
    claim = run_kernel(kernel, Case(NAME, 8, 64, "gaussian"), "cpu")
    text = element_report(claim.inputs, claim.outputs, CONTRACTS["vllm-native"], 3, 5)
    assert "codes of row 3, column 5" in text
    assert "admissible" in text
    assert "NOT ADMISSIBLE" in text.splitlines()[-1]


def test_every_field_that_a_contract_declares_has_evidence() -> None:
    plain = StaticQuantContract("plain")
    for name, contract in CONTRACTS.items():
        unsettled = {field for field, _ in contract.unsettled}
        fields = {"division", "nan", "fnuz_max", "reciprocal_u"}
        said = {f for f in fields if getattr(contract, f) != getattr(plain, f)} | unsettled
        assert said <= set(EVIDENCE[name])
        assert set(EVIDENCE[name]) <= fields


def test_rows_do_not_depend_on_their_layout() -> None:
    flat = build(Case(NAME, 6, 64, "gaussian"))
    assert flat.take_rows([2]).expected() == {"codes": ((1, 64), torch.float8_e4m3fn)}
