"""Identification tells contracts apart from 64 rows, and says so when none fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from reference.contract import GEMM_CONTRACTS, NORM_QUANT_CONTRACTS
from tests import zoo
from tests.benchmarks.identification import CONTRACTS, ask
from validators.calls.call import KernelFault
from validators.cases.case import Case
from validators.cases.recipe import ADD, GEMM, QUANT
from validators.cases.tensors import Inputs, Outputs, QuantInputs, QuantOutputs
from validators.explain.identify import LARGEST_FLOOR, IdentifyResult, identification, identification_cases, identify
from validators.kernels import emulated, emulated_gemm
from validators.kernels.kernel import Kernel
from validators.kernels.registry import find_kernel
from validators.records.record import Status
from validators.run import validate


@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_contract_is_told_from_the_others_by_64_rows(name: str, seed: int) -> None:
    outcome, result = ask(name, seed)
    assert outcome.admitted[0] == name, result.lines()
    assert set(CONTRACTS) & set(outcome.admitted) == {name}
    assert outcome.margin > 0


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_other_fp8_format_identifies_as_well(name: str) -> None:
    outcome, result = ask(name, 0, fp8="e4m3fnuz")
    assert outcome.right, result.lines()


def test_lines_give_the_evidence() -> None:
    _, result = ask("aiter-hip-gfx942", 0)
    lines = result.lines()
    assert lines[0].startswith("aiter-hip-gfx942: admits all ")
    assert any("residual_out" in line for line in lines if line.startswith("aiter-hip-gfx950: does not admit"))
    assert len(lines) == len(NORM_QUANT_CONTRACTS)
    assert all(case.endswith("-s0") for case in result.cases)


def test_no_contract_fits_a_defect_and_the_record_says_so() -> None:
    defect = zoo.find_defect("N07")
    kernel = Kernel("demo/wrong", ADD, None, defect.kernel.call, in_place=True)
    case = Case.parse(defect.reveals[0])
    result = identification(kernel, case, "cpu")
    assert result.best is None
    assert result.admitted == []
    record = validate(kernel, case)
    assert record.identified == tuple(result.lines())
    assert record.status is Status.FAILED
    assert record.contract is None
    assert record.contract_from == "identified"
    assert record.reasons[0].startswith("the outputs fit no contract of the closed list; nearest is ")


def test_an_undeclared_kernel_is_judged_by_what_it_follows() -> None:
    kernel = Kernel("demo/fused", ADD, None, emulated.make(NORM_QUANT_CONTRACTS["vllm"]), in_place=True)
    record = validate(kernel, Case(ADD, 8, 264, "gaussian"))
    assert (record.status, record.contract, record.contract_from) == (Status.PASSED, "vllm", "identified")
    assert record.identified[0].startswith("vllm: admits all ")


def test_two_kernels_of_one_name_are_identified_each_by_its_own_outputs() -> None:
    """An edited file, or two paths: the second kernel of a process must not get the first one's answer."""
    case, found = Case(ADD, 8, 264, "gaussian"), []
    first = Kernel("demo/same-name", ADD, None, emulated.make(NORM_QUANT_CONTRACTS["vllm"]), in_place=True)
    edited = dataclasses.replace(first, call=emulated.make(NORM_QUANT_CONTRACTS["eager"]))
    for kernel in (first, edited, first):
        record = validate(kernel, case)
        found.append((record.status, record.contract))
    assert found == [(Status.PASSED, name) for name in ("vllm", "eager", "vllm")]


def test_a_kernel_is_identified_once_for_many_cases() -> None:
    calls = []
    right = emulated.make(NORM_QUANT_CONTRACTS["vllm"])

    def counted(inputs: Inputs, buffers: Outputs) -> Outputs:
        calls.append(inputs)
        return right(inputs, buffers)

    kernel = Kernel("demo/counted", ADD, None, counted, in_place=True)
    validate(kernel, Case(ADD, 8, 264, "gaussian"))
    once = len(calls)
    validate(kernel, Case(ADD, 8, 264, "gaussian"))
    assert len(calls) - once < once - len(identification(kernel, Case(ADD, 8, 264, "gaussian"), "cpu").cases)


@pytest.mark.parametrize(("name", "other"), [("vllm", "vllm-native"), ("vllm-native", "vllm")])
def test_the_two_paths_of_vllm_are_told_apart(name: str, other: str) -> None:
    """Its CUDA kernels divide by the scale, its Python code multiplies by the reciprocal."""
    result = identify(Kernel("demo/path", ADD, None, emulated.make(NORM_QUANT_CONTRACTS[name]), in_place=True))
    assert result.best == name, result.lines()
    wrong = next(c for c in result.candidates if c.contract == other)
    assert wrong.violations["codes"] > 0
    assert wrong.violations["scale"] == wrong.violations["residual_out"] == 0


def test_a_gemm_is_identified_by_its_accumulator() -> None:
    kernel = Kernel("demo/gemm", GEMM, None, emulated_gemm.make(GEMM_CONTRACTS["fp32"]))
    result = identify(kernel, rows=16)
    assert "fp32" in result.admitted
    assert {c.contract for c in result.candidates} == set(GEMM_CONTRACTS)


def test_a_kernel_that_supports_no_case_is_a_fault() -> None:
    kernel = Kernel("demo/none", ADD, None, emulated.make(NORM_QUANT_CONTRACTS["vllm"]), unsupported=lambda case: "no")
    with pytest.raises(KernelFault, match="demo/none supports none of the cases that identification uses"):
        identify(kernel)


def test_the_best_is_the_first_that_admits_everything() -> None:
    assert IdentifyResult("demo", (), ()).best is None
    assert {case.recipe for case in identification_cases(ADD, rows=4, dtype="bf16", fp8="e4m3fn", seed=1)} == {
        "gaussian",
        "zero_rows",
    }


def _undeclared(call: Callable[[QuantInputs, object], QuantOutputs]) -> Kernel:
    return Kernel("demo/undeclared", QUANT, None, call)


@pytest.mark.parametrize("floor", [0.5, 10.0, 1000.0])
def test_a_floor_above_ordinary_rows_is_a_finding_and_no_property(floor: float) -> None:
    """Whatever stores one scale for all rows, a static scale for one, fits a contract with a floor above them all."""
    contract = NORM_QUANT_CONTRACTS["eager"].replace(amax_floor=floor)
    kernel = Kernel("demo/floored", QUANT, None, emulated.make(contract), in_place=True)
    result = identify(kernel, rows=16)
    assert (result.best, result.near) == (None, ())
    assert result.refused[0].contract.endswith(f"+amax_floor={floor:g}")
    assert f"is not taken: no preset has a floor above {LARGEST_FLOOR:g}" in result.lines()[0]
    record = validate(kernel, Case(QUANT, 16, 512, "gaussian"))
    assert (record.status, record.contract) == (Status.FAILED, None)
    # Meant all the same, it is declared by name, and the sign-off carries the name.
    declared = validate(kernel, Case(QUANT, 16, 512, "gaussian"), contract=result.refused[0].contract)
    assert declared.status is Status.PASSED


def test_one_scale_for_all_rows_is_no_dynamic_quantizer() -> None:
    def call(inputs: QuantInputs, buffers: object) -> QuantOutputs:
        scale = torch.full((*inputs.x.shape[:-1], 1), 0.02)
        codes = (inputs.x.float() / scale).clamp(-448.0, 448.0).to(inputs.fp8_dtype)
        return QuantOutputs(codes, scale)

    assert identify(_undeclared(call), rows=16).best is None


def test_a_rule_for_zero_rows_and_a_floor_are_told_apart_by_small_rows() -> None:
    for change, name in (
        ({"amax_floor": 1e-5}, "torchao+amax_floor=1e-05"),
        ({"zero_scale": 2.0**-20}, "torchao+zero_scale=9.5367431640625e-07"),
    ):
        contract = NORM_QUANT_CONTRACTS["torchao"].replace(**change)
        result = identify(Kernel("demo/small", QUANT, None, emulated.make(contract), in_place=True), rows=16)
        assert [c.contract for c in result.near] == [name]


def test_a_preset_that_leaves_rows_of_zeros_open_gives_way_to_a_floor_that_small_rows_show() -> None:
    contract = NORM_QUANT_CONTRACTS["unfused"].replace(amax_floor=1e-6)
    kernel = Kernel("demo/floor", QUANT, None, emulated.make(contract), in_place=True)
    assert identify(kernel, rows=16).best == "unfused+amax_floor=1e-06"
    plain = Kernel("demo/none", QUANT, None, emulated.make(NORM_QUANT_CONTRACTS["unfused"]), in_place=True)
    assert identify(plain, rows=16).best == "unfused"


def test_a_kernel_that_differs_from_itself_is_said_first() -> None:
    calls = [0]

    def call(inputs: QuantInputs, buffers: QuantOutputs) -> QuantOutputs:
        outputs = honest.call(inputs, buffers)
        assert isinstance(outputs, QuantOutputs)
        calls[0] += 1
        if calls[0] % 2:
            outputs.scale[0] *= 2
        return outputs

    honest = find_kernel("emulated/eager", QUANT)
    found = identify(Kernel("demo/random", QUANT, None, call, in_place=True))
    assert found.lines()[0].startswith("two runs differ, and what follows is of the first: 1 of 64 elements of scale")
    assert not identify(honest).unstable


def test_outputs_that_are_none_name_the_case_that_was_used() -> None:
    honest = find_kernel("emulated/eager", QUANT)

    def call(inputs: QuantInputs, buffers: QuantOutputs) -> QuantOutputs:
        outputs = honest.call(inputs, buffers)
        assert isinstance(outputs, QuantOutputs)
        return QuantOutputs(outputs.codes, outputs.scale.squeeze(-1))

    with pytest.raises(KernelFault, match=r"expected \[64, 1\], on per_token_quant-m64-n5120-.* to find the contract"):
        identify(Kernel("demo/flat", QUANT, None, call))
