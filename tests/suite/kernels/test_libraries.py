"""torchao and compressed-tensors judged by themselves, where they are installed (extra ``libraries``)."""

from __future__ import annotations

import dataclasses
import importlib.util

import pytest
import torch

from reference.contract import NORM_QUANT_CONTRACTS
from validators.cases.case import Case
from validators.cases.ops.static_quant import NAME, StaticQuantInputs
from validators.cases.recipe import QUANT
from validators.cases.tensors import Inputs, Outputs, QuantInputs, QuantOutputs
from validators.explain.identify import identification, identify
from validators.kernels import compressed_tensors, emulated, torchao
from validators.kernels.kernel import Kernel
from validators.kernels.registry import find_kernel
from validators.records.record import Status
from validators.run import validate

LIBRARIES = {"torchao": torchao, "compressed_tensors": compressed_tensors}
CONTRACTS = {"torchao": "torchao", "compressed_tensors": "compressed-tensors"}
# Ties of codes and of scales, a maximum in every column, tiny and huge rows, each storage type, 3-D and strided rows.
CASES = (
    "m64-n5120-bf16-e4m3fn-gaussian-s0",
    "m64-n5120-fp16-e4m3fn-gaussian-s0",
    "m64-n1024-bf16-e4m3fn-midpoints-s0",
    "m64-n1024-fp16-e4m3fn-midpoints-s0",
    "m48-n512-bf16-e4m3fn-magnitude_ladder-s0",
    "m48-n512-fp16-e4m3fn-magnitude_ladder-s0",
    "m24-n272-bf16-e4m3fn-crest_ladder-s0",
    "m24-n272-bf16-e4m3fn-spike_walk-s0",
    "m32-n520-bf16-e4m3fn-nonfinite-s0",
    "m32-n520-bf16-e4m3fn-gaussian-3d-s0",
    "m32-n520-bf16-e4m3fn-gaussian-strided-s0",
)


STATIC_CASES = (
    "m64-n5120-bf16-e4m3fn-double_rounding-s0",
    "m64-n5120-fp16-e4m3fn-double_rounding-s0",
    "m64-n1024-bf16-e4m3fn-midpoints-s0",
    "m64-n1024-fp16-e4m3fn-subnormal_codes-s0",
    "m32-n520-bf16-e4m3fn-nonfinite-s0",
    "m32-n520-bf16-e4m3fn-zero_rows-s0",
    "m32-n520-bf16-e4m3fn-gaussian-3d-s0",
    "m32-n520-bf16-e4m3fn-gaussian-strided-s0",
)


def installed(name: str, op: str = QUANT) -> Kernel:
    """The library's adapter; skips with its own sentence where it cannot run."""
    kernel = find_kernel(f"{name}/{op}", op)
    reason = kernel.unavailable("cpu")
    if reason:
        pytest.skip(reason)
    return kernel


@pytest.mark.parametrize("name", LIBRARIES)
def test_an_adapter_declares_the_preset_of_its_library(name: str) -> None:
    kernels = LIBRARIES[name].kernels()
    assert [k.op for k in kernels] == [QUANT, *([NAME] if name == "compressed_tensors" else [])]
    for kernel in kernels:
        assert (kernel.name, kernel.contract) == (f"{name}/{kernel.op}", CONTRACTS[name])
        assert not kernel.emulated
        fnuz = kernel.unsupported(Case.parse(f"{kernel.op}-m4-n64-bf16-e4m3fnuz-gaussian-s0"))
        assert fnuz == ("compressed-tensors quantizes to e4m3fn only" if name == "compressed_tensors" else None)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_library_that_is_not_installed_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    for kernel in LIBRARIES[name].kernels():
        assert kernel.unavailable("cpu") == f"{name.replace('_', '-')} is not installed"


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("case", CASES)
def test_a_library_follows_its_preset(name: str, case: str) -> None:
    record = validate(installed(name), Case.parse(f"{QUANT}-{case}"))
    assert record.status is Status.PASSED, (record.status, record.reasons)
    assert all(c.single == c.judged for c in record.comparisons)


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_library_is_identified_by_its_outputs(name: str, dtype: str) -> None:
    result = identify(installed(name), dtype=dtype)
    assert result.best == CONTRACTS[name], result.lines()
    assert result.admitted == ([] if name == "torchao" else ["compressed-tensors"])


@pytest.mark.parametrize("case", STATIC_CASES)
def test_the_static_quantizer_of_compressed_tensors_follows_its_preset(case: str) -> None:
    record = validate(installed("compressed_tensors", NAME), Case.parse(f"{NAME}-{case}"))
    assert record.status is Status.PASSED, (record.status, record.reasons)
    assert all(c.single == c.judged for c in record.comparisons)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_static_quantizer_of_compressed_tensors_is_identified(dtype: str) -> None:
    result = identify(installed("compressed_tensors", NAME), dtype=dtype)
    assert (result.best, result.admitted) == ("compressed-tensors", ["compressed-tensors"]), result.lines()


@pytest.mark.parametrize("scale", ["in the type of x", "without a dimension"])
def test_compressed_tensors_with_another_scale_is_other_arithmetic(scale: str) -> None:
    """The preset is for an fp32 scale [1]. With other scales torch rounds x/s to the type of x: no false alarm."""
    kernel = installed("compressed_tensors", NAME)

    def call(inputs: StaticQuantInputs, buffers: Outputs) -> Outputs:
        other = inputs.scale.to(inputs.x.dtype) if scale == "in the type of x" else inputs.scale[0]
        return kernel.call(dataclasses.replace(inputs, scale=other), buffers)

    case = Case.parse(f"{NAME}-m64-n5120-bf16-e4m3fn-gaussian-s0")
    record = validate(dataclasses.replace(kernel, call=call), case)
    assert record.status is Status.FAILED


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_zero_rows_of_compressed_tensors_are_right(dtype: str) -> None:
    record = validate(installed("compressed_tensors"), Case.parse(f"{QUANT}-m32-n512-{dtype}-e4m3fn-zero_rows-s0"))
    assert record.status is Status.PASSED, record.reasons


@pytest.mark.parametrize("contract", [None, "identify"])
def test_zero_rows_of_torchao_hold_nan(contract: str | None) -> None:
    """A finding: the scale of an all-zero row is 0, and its codes are NaN. It is so whether declared or identified."""
    kernel = installed("torchao")
    record = validate(kernel, Case.parse(f"{QUANT}-m32-n512-bf16-e4m3fn-zero_rows-s0"), contract=contract)
    assert (record.status, record.contract) == (Status.FAILED, "torchao")
    [codes] = [c for c in record.comparisons if c.output == "codes"]
    assert 0 < codes.violations == codes.nonfinite["got_nan"]
    assert codes.violations % 512 == 0
    assert not any(c.violations for c in record.comparisons if c.output == "scale")


@pytest.mark.parametrize("fp8", ["e4m3fn", "e4m3fnuz"])
def test_only_rows_of_zeros_stand_against_a_contract(fp8: str) -> None:
    """A stand-in for torchao: identified by its ordinary rows, judged by that contract, and its zero rows FAILED."""

    def call(inputs: Inputs, buffers: Outputs) -> Outputs:
        assert isinstance(inputs, QuantInputs)
        outputs = emulated.make(NORM_QUANT_CONTRACTS["torchao"])(inputs)
        assert isinstance(outputs, QuantOutputs)
        nan = 0xFF if inputs.fp8_dtype == torch.float8_e4m3fn else 0x80
        outputs.codes.view(torch.uint8)[outputs.scale.flatten() == 0] = nan
        return outputs

    kernel = Kernel(f"demo/nan-zeros-{fp8}", QUANT, None, call)
    zeros = Case.parse(f"{QUANT}-m32-n512-bf16-{fp8}-zero_rows-s0")
    result = identification(kernel, zeros, "cpu")
    assert (result.admitted, result.best) == ([], "torchao")
    assert result.lines()[0].startswith("torchao: admits all values but ")
    assert "in rows of zeros, which are judged by it all the same" in result.lines()[0]
    record = validate(kernel, zeros)
    assert (record.status, record.contract, record.contract_from) == (Status.FAILED, "torchao", "identified")
    assert validate(kernel, Case.parse(f"{QUANT}-m32-n512-bf16-{fp8}-gaussian-s0")).status is Status.PASSED
