"""Kernels that are wrong behind two conditions, at widths, columns, rows and types that no case was written for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.support.case_inputs import ADD, GEMM, QUANT
from tests.support.wrong_shapes import CONTRACT, failing, gemm, norm, quantizer, whole
from validators.cases.case import Case
from validators.cases.suite import cases_for
from validators.cases.tensors import Inputs, NormQuantInputs, NormQuantOutputs, Outputs, QuantInputs, QuantOutputs
from validators.kernels.kernel import Kernel

# Enough for several situations, few enough for a test.
MOST_ELEMENTS = 3 << 19


def suite(op: str, wanted: Callable[[Case], bool]) -> list[Case]:
    """Cases of the default depth with a property, the smallest first."""
    found = [case for case in cases_for(op) if wanted(case) and 0 < case.m * case.n <= MOST_ELEMENTS]
    return sorted(found, key=lambda case: case.m * case.n * max(1, case.k))[:24]


@pytest.mark.parametrize("limit", [700, 3000, 5000, 9000, 13000])
@pytest.mark.parametrize("kept", ["first", "last", "ends", "even vectors"])
def test_a_maximum_of_a_part_of_rows_wider_than_any_limit_fails(limit: int, kept: str) -> None:
    def amax(y: torch.Tensor) -> torch.Tensor:
        n = y.shape[-1]
        if n <= limit:
            return whole(y)
        vectors = torch.arange(n) // 8
        take = {
            "first": torch.arange(n) < 3 * n // 4,
            "last": torch.arange(n) >= n // 4,
            "ends": (torch.arange(n) < 64) | (torch.arange(n) >= n - 64),
            "even vectors": vectors % 2 == 0,
        }[kept]
        return whole(y * take)

    for op, kernel in ((QUANT, quantizer(amax)), (ADD, norm(amax))):
        assert failing(kernel, suite(op, lambda c: limit < c.n and c.recipe.startswith("every_situation"))[-6:])


@pytest.mark.parametrize("feature", ["fp16", "e4m3fnuz", "no residual", "1 + weight", "fp32 weight", "eps 1e-6"])
@pytest.mark.parametrize("shape", ["wide", "odd", "one row", "many rows", "narrow"])
def test_a_row_sum_that_is_wrong_where_a_feature_and_a_shape_meet_fails(feature: str, shape: str) -> None:
    """The last vector is missing from the sum, in rows whose energy is there: a class of input beside the two."""
    features: dict[str, Callable[[NormQuantInputs], bool]] = {
        "fp16": lambda i: i.x.dtype == torch.float16,
        "e4m3fnuz": lambda i: i.fp8_dtype == torch.float8_e4m3fnuz,
        "no residual": lambda i: i.residual is None,
        "1 + weight": lambda i: i.gemma,
        "fp32 weight": lambda i: i.weight.dtype == torch.float32,
        "eps 1e-6": lambda i: i.eps == 1e-6,
    }
    shapes: dict[str, Callable[[int, int], bool]] = {
        "wide": lambda m, n: n > 7000,
        "odd": lambda m, n: n % 2 == 1,
        "one row": lambda m, n: m == 1,
        "many rows": lambda m, n: m > 200,
        "narrow": lambda m, n: n < 60,
    }
    right = norm(whole)

    def call(inputs: Inputs, buffers: Outputs) -> Outputs:
        outputs = right.call(inputs, buffers)
        assert isinstance(inputs, NormQuantInputs)
        assert isinstance(outputs, NormQuantOutputs)
        if not (features[feature](inputs) and shapes[shape](inputs.row_count, inputs.width)):
            return outputs
        return NormQuantOutputs(outputs.codes, outputs.scale * (1 + 2.0**-10), outputs.residual_out)

    words = {"no residual": "nores", "1 + weight": "gemma", "fp32 weight": "gammafp32"}
    word = f"-{words.get(feature, feature.replace(' ', ''))}-"
    cases = suite(ADD, lambda c: word in c.id and shapes[shape](c.m, c.n))
    assert cases
    assert failing(Kernel("test/pair", ADD, right.contract, call), cases)


@pytest.mark.parametrize("layout", ["strided", "3d", "3dstrided"])
@pytest.mark.parametrize("modulus", [2, 8, 64])
def test_rows_that_are_wrong_in_a_layout_and_a_width_fail(layout: str, modulus: int) -> None:
    right = quantizer(whole)

    def call(inputs: Inputs, buffers: Outputs) -> Outputs:
        outputs = right.call(inputs, buffers)
        assert isinstance(inputs, QuantInputs)
        assert isinstance(outputs, QuantOutputs)
        plain = inputs.x.dim() == 2 and inputs.x.is_contiguous()
        if plain or inputs.width % modulus == 0 or inputs.row_count < 3:
            return outputs
        scale = outputs.scale.clone()
        scale.view(-1)[2] *= 1 + 2.0**-10
        return QuantOutputs(outputs.codes, scale)

    cases = suite(QUANT, lambda c: c.layout == layout and c.n % modulus != 0)
    assert failing(Kernel("test/layout", QUANT, CONTRACT, call), cases)


@pytest.mark.parametrize("tile", [0, 5, -1])
@pytest.mark.parametrize("rows", [1, 40, 300])
def test_sixteen_products_lost_or_repeated_behind_conditions_fail(tile: int, rows: int) -> None:
    for repeated in (False, True):

        def product(a: torch.Tensor, b: torch.Tensor, repeated: bool = repeated) -> torch.Tensor:
            whole_sum, k = a @ b.T, a.shape[1]
            if len(a) < rows or k < 200:
                return whole_sum
            tiles = -(-k // 16)
            part = slice(16 * (tile % tiles), 16 * (tile % tiles + 1))
            extra = a[:, part] @ b[:, part].T
            return whole_sum + extra if repeated else whole_sum - extra

        assert failing(gemm(product), suite(GEMM, lambda c: c.m >= rows and c.k >= 200))
