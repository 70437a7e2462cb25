"""Recipes of the GEMM: each holds what its description promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.case_inputs import (
    decode,
    decoded_table,
    gemm_case,
    quant_case,
)
from validators.cases.codes import positive_values
from validators.cases.recipes_gemm import integer_limit, unit_limit
from validators.words import DTYPES, FP8_FORMATS


@pytest.mark.parametrize("fp8", FP8_FORMATS)
@pytest.mark.parametrize("k", [64, 512, 5120, 16384])
def test_small_integers_fill_the_accumulator_and_never_pass_it(k: int, fp8: str) -> None:
    built = gemm_case("small_integers", 6, 6, k, fp8=fp8)
    a, b = decode(built.a, fp8), decode(built.b, fp8)
    for values in (a, b):
        assert torch.equal(values, values.round())
        assert bool((values.abs() >= 1).all())
    worst = int(a.abs().max().item() * b.abs().max().item()) * k
    assert worst + 512 < 2**24
    assert integer_limit(k, fp8) in positive_values(fp8)
    sums = a @ b.T
    if k > 64:  # at 64 the largest code, not the accumulator, is the limit
        assert sums.abs().max().item() > 2**21
    backward = torch.zeros(6, 6, dtype=torch.float32)
    for index in range(k - 1, -1, -1):
        backward += (a[:, index, None] * b[None, :, index]).float()
    assert torch.equal(backward.double(), sums)


def test_tiny_integers_stay_within_fourteen_bits() -> None:
    built = gemm_case("tiny_integers", 4, 4, 16384)
    a, b = decode(built.a, "e4m3fn"), decode(built.b, "e4m3fn")
    assert set(a.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert (a.abs() @ b.abs().T).max().item() <= 2**14


def test_one_hot_k_walks_all_of_k_or_its_tail() -> None:
    a = decode(gemm_case("one_hot_k", 300, 8, 144).a, "e4m3fn")
    assert bool(((a != 0).sum(1) == 1).all())
    assert set((a != 0).nonzero()[:, 1].tolist()) == set(range(144))
    few = gemm_case("one_hot_k", 40, 8, 144)
    columns = (decode(few.a, "e4m3fn") != 0).nonzero()[:, 1].tolist()
    assert set(range(128, 144)) <= set(columns)
    assert len(set(columns)) > 30
    b = few.b.view(torch.uint8)
    assert bool((decode(few.b, "e4m3fn") != 0).all())
    assert bool((b[:, 1:] != b[:, :-1]).all())
    columnwise = decode(gemm_case("one_hot_n", 8, 300, 144).b, "e4m3fn")
    assert set((columnwise != 0).nonzero()[:, 1].tolist()) == set(range(144))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_hot_results_are_exact_in_the_output_type(dtype: str) -> None:
    built = gemm_case("one_hot_k", 32, 32, 160, dtype=dtype)
    out = decode(built.a, "e4m3fn") @ decode(built.b, "e4m3fn").T * built.a_scale.double() * built.b_scale.double().T
    assert torch.equal(out.to(built.out_dtype).double(), out)
    assert bool((out != 0).all())


def test_adversarial_gemm_recipes_are_as_described() -> None:
    def product(name: str, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        built = gemm_case(name, 8, 12, 512, **options)
        a, b = decode(built.a, "e4m3fn"), decode(built.b, "e4m3fn")
        return a @ b.T, a.abs() @ b.abs().T

    sums, magnitudes = product("positive_mean")
    assert torch.equal(sums, magnitudes)
    sums, magnitudes = product("cancellation")
    assert (sums.abs() / magnitudes).max().item() < 2.0**-8
    assert bool((sums != 0).all())
    ladder = gemm_case("scale_ladder", 40, 40, 64)
    for scale in (ladder.a_scale, ladder.b_scale):
        assert scale.max().item() > 2.0**9
        assert scale.min().item() < 2.0**-9
        ratio = scale[1:] / scale[:-1]
        assert torch.maximum(ratio, 1 / ratio).min().item() > 2.0**6


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_scales_come_near_overflow(dtype: str) -> None:
    built = gemm_case("huge_scales", 8, 12, 512, dtype=dtype)
    out = decode(built.a, "e4m3fn") @ decode(built.b, "e4m3fn").T * built.a_scale.double() * built.b_scale.double().T
    largest = torch.finfo(built.out_dtype).max
    assert largest / 2.0**7 < out.abs().min().item()
    assert out.abs().max().item() < largest


@pytest.mark.parametrize("fp8", FP8_FORMATS)
def test_byte_recipes_use_every_finite_code(fp8: str) -> None:
    codes = gemm_case("random_bytes", 32, 8, 512, fp8=fp8).a.view(torch.uint8)
    finite = np.isfinite(decoded_table(fp8)).nonzero()[0]
    assert codes.unique().tolist() == finite.tolist()
    words = quant_case("uniform_bytes", 256, 512).x.view(torch.int16).int() >> 7 & 0xFF
    assert words.unique().numel() > 100


def test_special_gemm_rows() -> None:
    nan = decode(gemm_case("nan_row", 9, 4, 64).a, "e4m3fn")
    assert nan.isnan().nonzero().tolist() == [[4, 32]]
    built = gemm_case("zero_rows", 9, 7, 64)
    zero = (decode(built.a, "e4m3fn") == 0).all(1).nonzero().flatten().tolist()
    assert zero == [0, 4, 8]
    assert (decode(built.b, "e4m3fn") == 0).all(1).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("k", [16, 512, 1056, 5120, 16384])
@pytest.mark.parametrize("fp8", FP8_FORMATS)
def test_cancelling_integers_stay_within_twenty_bits_and_all_but_cancel(k: int, fp8: str) -> None:
    limit = unit_limit(k, fp8)
    assert k * limit**2 + 512 <= 2**20
    built = gemm_case("cancelling_integers", 16, 32, k, fp8=fp8, bias=True)
    a, b = decode(built.a, fp8), decode(built.b, fp8)
    assert bool((a == a.round()).all())
    assert a.min().item() >= 1
    magnitude, result = a @ b.abs().T, a @ b.T
    assert magnitude.max().item() <= 2**20
    assert torch.equal(result[:, ::2], magnitude[:, ::2])
    if k >= 512:
        assert (result.abs() / magnitude)[:, 1::2].median().item() < 0.1
    if k == 5120:
        assert limit == 14
    assert built.bias is not None
    steps = built.bias.double() / (built.a_scale.min() * built.b_scale.flatten()).double()
    assert bool((steps == steps.round()).all())
    assert steps.abs().max().item() <= 512
