"""Defects that show only where two features meet, or on one class of rows: the default depth has a case for each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.support.case_inputs import ADD, GEMM
from tests.support.wrong_shapes import default, failing, gemm, norm, whole
from validators.cases.case import Case
from validators.cases.tensors import GemmInputs, GemmOutputs, Inputs, NormQuantInputs, NormQuantOutputs, Outputs
from validators.kernels.kernel import Kernel

WRONG = 1.001
"""Factor on a scale: far outside every set, and too small to be seen in a model's answers."""

# Name: (where the defect shows, which cases have both features)
PAIRS: dict[str, tuple[Callable[[NormQuantInputs], bool], Callable[[Case], bool]]] = {
    "fp16 and wide": (
        lambda i: i.x.dtype == torch.float16 and i.x.shape[-1] > 6144,
        lambda c: c.dtype == "fp16" and c.n > 6144,
    ),
    "1 + weight and no residual": (lambda i: i.gemma and i.residual is None, lambda c: c.gemma and not c.residual),
    "fp32 weight and ragged": (
        lambda i: i.weight.dtype == torch.float32 and i.x.shape[-1] % 8 != 0,
        lambda c: c.gamma == "fp32" and c.n % 8 != 0,
    ),
    "e4m3fnuz and ragged": (
        lambda i: i.fp8_dtype == torch.float8_e4m3fnuz and i.x.shape[-1] % 8 != 0,
        lambda c: c.fp8 == "e4m3fnuz" and c.n % 8 != 0,
    ),
    "three dimensions and ragged": (
        lambda i: i.x.dim() == 3 and i.x.shape[-1] % 8 != 0,
        lambda c: c.layout == "3d" and c.n % 8 != 0,
    ),
    "gains above 2": (lambda i: bool((i.weight.float() > 2).any()), lambda c: c.recipe == "checkpoint_gain"),
}


def behind(shows: Callable[[NormQuantInputs], bool]) -> Kernel:
    """A right norm whose scales are off where ``shows`` holds."""
    right = norm(whole)

    def call(inputs: Inputs, buffers: Outputs) -> Outputs:
        outputs = right.call(inputs, buffers)
        assert isinstance(inputs, NormQuantInputs)
        assert isinstance(outputs, NormQuantOutputs)
        if not shows(inputs):
            return outputs
        return NormQuantOutputs(outputs.codes, outputs.scale * WRONG, outputs.residual_out)

    return Kernel("test/pair", ADD, right.contract, call)


@pytest.mark.parametrize("name", PAIRS)
def test_a_defect_where_two_features_meet_fails(name: str) -> None:
    shows, wanted = PAIRS[name]
    smallest = sorted(default(ADD, wanted), key=lambda c: c.m * c.n)[:2]
    assert len(failing(behind(shows), smallest)) == len(smallest)
    assert not failing(norm(whole), smallest)


@pytest.mark.parametrize("rows", ["one value that is not zero", "one magnitude"])
def test_a_defect_of_one_class_of_rows_fails(rows: str) -> None:
    def amax(y: torch.Tensor) -> torch.Tensor:
        size = y.abs()
        largest = whole(y)
        if rows == "one magnitude":
            hit = (size.amin(dim=-1, keepdim=True) == largest) & (largest > 0)
        else:
            hit = (y != 0).sum(dim=-1, keepdim=True) == 1
        return torch.where(hit, largest * WRONG, largest)

    cases = sorted(default(ADD, lambda c: c.recipe == "degenerate_rows"), key=lambda c: c.m * c.n)
    assert failing(norm(amax), cases[:2])
    assert not failing(norm(whole), cases[:2])


def test_a_bias_that_is_wrong_in_fp16_alone_fails() -> None:
    right = gemm(lambda a, b: a @ b.T)

    def call(inputs: Inputs, buffers: Outputs) -> Outputs:
        outputs = right.call(inputs, buffers)
        assert isinstance(inputs, GemmInputs)
        assert isinstance(outputs, GemmOutputs)
        if inputs.bias is None or inputs.out_dtype != torch.float16:
            return outputs
        return GemmOutputs((outputs.out.float() + 0.05 * inputs.bias.float()).to(torch.float16))

    cases = sorted(default(GEMM, lambda c: c.bias and c.dtype == "fp16"), key=lambda c: c.m * c.n * c.k)[:2]
    assert failing(Kernel("test/bias", GEMM, "fp32", call), cases)
    assert not failing(right, cases)
