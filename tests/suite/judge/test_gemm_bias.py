"""The bias check of a GEMM: what the store alone does is computed, so no density of outputs can make it fail."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import pytest
import torch

from reference.contract import GEMM_CONTRACTS, GemmContract
from reference.formats import FORMATS, FloatFormat, format_of, neighbours, round_fp32, round_to
from reference.ptpc_gemm import GemmTruth, operand
from reference.setting import GemmSetting
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipe import GEMM
from validators.cases.tensors import GemmInputs, GemmOutputs
from validators.judge.gemm import judge_gemm
from validators.judge.gemm_bias import Bias, allowances, copies
from validators.judge.statistics import BiasResult, azuma_lambda

FP32 = GEMM_CONTRACTS["fp32"]
K, U = 256, 2.0**-24


def truth_of(x: torch.Tensor, ratio: float, fmt: FloatFormat) -> GemmTruth:
    """Synthetic truth: K products with sum|a*b| = ratio * |x|, scales of 1."""
    size = ratio * x.abs()
    error = (K - 1) * U * size
    setting, low, high = GemmSetting(FP32, fmt, K), round_to(x - error, fmt), round_to(x + error, fmt)
    return GemmTruth(setting, x, size, x, low, high, error, torch.ones_like(x))


def judged(got: torch.Tensor, truth: GemmTruth, fmt: FloatFormat, contract: GemmContract = FP32) -> BiasResult:
    sums = Bias(fmt, contract, K)
    sums.add(got, truth, torch.ones_like(got, dtype=torch.bool))
    apart = torch.arange(1, 3, dtype=torch.uint8)[:, None]
    return sums.result(apart, apart)


def walk(x: torch.Tensor, ratio: float, target: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An error of the worst kind: K - 1 steps of +-b, of mean zero, that stop as soon as they have reached target.

    It crosses a boundary more often than any balanced sum, and comes back from beyond it never.
    """
    b = U * (ratio + 1) / 2 * x.abs()
    steps = torch.randint(0, 2, (*x.shape, K - 1), generator=generator).double() * 2 - 1
    sums = steps.cumsum(dim=-1) * b[..., None]
    reached = torch.where(target[..., None] > 0, sums >= target[..., None], sums <= target[..., None])
    first = torch.where(reached.any(-1), reached.double().argmax(-1), torch.full(x.shape, K - 2))
    return sums.gather(-1, first.long()[..., None])[..., 0]


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("ratio", [1.0, 20.0])
@pytest.mark.parametrize("away", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_outputs_that_all_lie_at_one_boundary_are_no_bias(name: str, ratio: float, away: float) -> None:
    """Every value of a binade in one spot, ``away`` standard errors before a boundary, and errors that reach over it
    as often as errors of mean zero can: outwards and inwards, with both signs, above and at a power of two."""
    fmt = FORMATS[name]
    for seed, near in enumerate((1.0, 1.5, -1.0, -1.25)):
        for side in (1, -1):
            generator = torch.Generator().manual_seed(seed)
            base = torch.full((2**12,), near, dtype=torch.float64)
            down, up = neighbours(base, fmt)
            boundary = (base + (up if side > 0 else down)) / 2
            reach = math.sqrt(K) * U * (ratio + 1) / 2 * abs(near)
            x = boundary - side * max(away, 2.0**-20) * reach
            if name == "fp32":
                x = boundary - side * away * 2.0**-26 * abs(near)
            got = round_to(x + walk(x, ratio, boundary - x + side * 2.0**-40, generator), fmt)
            truth = truth_of(x, ratio, fmt)
            assert bool(((got >= truth.low) & (got <= truth.high)).all())
            found = judged(got, truth, fmt)
            assert found.ok, (near, side, found)


def test_the_density_that_a_mean_hides_is_counted() -> None:
    """All outputs a quarter of a step below their nearest value: the store moves each by as much, and the check by
    nothing. The mean density of the binade would allow s^2/2 = 3.1e-5 (s: a step), and chance 2.3e-4 more."""
    fmt = FORMATS["bf16"]
    x = torch.full((2**14,), 1.0 + 2.0**-7 - 2.0**-9, dtype=torch.float64)
    got = round_to(x, fmt)
    found = judged(got, truth_of(x, 1.0, fmt), fmt)
    assert float((got - x).sum() / x.sum()) > 1.9e-3
    assert 2.0**-15 + azuma_lambda() * 2.0**-8 / math.sqrt(x.numel()) < 3e-4
    assert (found.total, found.bound, found.ok) == (0.0, 0.0, True)


def test_an_allowance_is_at_least_what_a_balanced_error_can_do() -> None:
    """Two-point errors of mean zero that Azuma admits, against the allowance at every place in a step."""
    fmt = FORMATS["bf16"]
    x = 1.0 + torch.linspace(0, 2.0**-7, 1025, dtype=torch.float64)
    near = round_to(x, fmt)
    for r in (2.0**-14, 2.0**-10, 2.0**-8):
        width = torch.full_like(x, r)
        nothing = torch.zeros_like(x)
        out, into, _ = allowances(x, near, width, nothing, 8 * width, fmt)
        for up in (0.25, 0.5, 1.0, 2.0):
            # Values up*r and -r/up with mean zero; a two-point law of width w has the proxy (w/2)^2 (Hoeffding).
            scale = 2 / (up + 1 / up)
            high, low, chance = up * r * scale, -r / up * scale, (1 / up) / (up + 1 / up)
            assert abs(chance * high + (1 - chance) * low) < 2.0**-60
            mean = chance * round_to(x + high, fmt) + (1 - chance) * round_to(x + low, fmt) - near
            assert bool((mean <= out).all())
            assert bool((-mean <= into).all())


@pytest.mark.parametrize("name", ["fp32", "dequantized-fp32"])
@pytest.mark.parametrize("recipe", ["gaussian", "positive_mean", "random_bytes"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_legitimate_sums_pass_and_a_store_toward_zero_is_seen(name: str, recipe: str, dtype: str) -> None:
    contract = GEMM_CONTRACTS[name]
    for seed in range(4):
        inputs = build(Case(GEMM, 64, 128, recipe, k=K, dtype=dtype, seed=seed))
        assert isinstance(inputs, GemmInputs)
        comparisons, found = judge_gemm(inputs, GemmOutputs(serial(inputs, contract)), contract)
        assert not comparisons[0].violations
        assert found.ok
    assert isinstance(inputs, GemmInputs)
    _, biased = judge_gemm(inputs, GemmOutputs(serial(inputs, contract, store="truncate")), contract)
    assert not biased.ok
    assert biased.relative < -found.effect


@pytest.mark.parametrize(("recipe", "dtype"), [("gaussian", "fp16"), ("positive_mean", "fp16"), ("gaussian", "bf16")])
def test_a_width_of_the_model_is_not_too_long_to_see_it(recipe: str, dtype: str) -> None:
    """At K = 5120 zero-mean outputs in a store toward zero are all admissible one by one: only this check sees them."""
    inputs = build(Case(GEMM, 32, 128, recipe, k=5120, dtype=dtype))
    assert isinstance(inputs, GemmInputs)
    exact = value_of(inputs)
    fair, biased = (
        judge_gemm(inputs, GemmOutputs(round_to(exact, FORMATS[dtype], mode).to(inputs.out_dtype)), FP32)
        for mode in ("rne", "truncate")
    )
    assert fair[1].ok
    assert fair[1].total == 0.0
    assert (biased[0][0].violations == 0) == (recipe == "gaussian")
    assert not biased[1].ok


def test_an_accumulator_that_leans_below_every_elements_budget_is_seen() -> None:
    """Sums of products of one sign, K = 5120, low by 6e-5: each element's budget is 3e-4, and the check sees 4e-5."""
    inputs = build(Case(GEMM, 64, 128, "gaussian", k=5120, dtype="fp16"))
    assert isinstance(inputs, GemmInputs)
    a, b = ((codes.view(torch.uint8) & 0x7F).view(codes.dtype) for codes in (inputs.a, inputs.b))
    inputs = dataclasses.replace(inputs, a=a, b=b)
    low = round_to(value_of(inputs) * (1 - 6e-5), FORMATS["fp16"]).to(torch.float16)
    comparisons, found = judge_gemm(inputs, GemmOutputs(low), FP32)
    assert comparisons[0].violations == 0
    assert not found.ok
    assert found.effect < 5e-5


def test_rows_that_repeat_are_one_chance_and_not_many() -> None:
    """32 times the same row: its errors come 32 times, so the spread is sqrt(32) times as wide; zero rows count not."""
    inputs = build(Case(GEMM, 32, 256, "gaussian", k=2048, dtype="bf16"))
    assert isinstance(inputs, GemmInputs)
    codes = inputs.a.view(torch.uint8)
    assert copies(inputs.a) == copies(inputs.b) == 1
    same = codes[:1].expand_as(codes).contiguous()
    assert copies(same) == 32
    assert copies(torch.zeros_like(codes)) == 1
    sums = Bias(FORMATS["bf16"], FP32, 2048)
    sums.sums, sums.stores, sums.weight = 9.0, 16.0, 1.0
    assert sums.result(same, inputs.b).bound == pytest.approx(math.sqrt(32) * 7 * azuma_lambda())
    inputs = dataclasses.replace(inputs, a=same.view(inputs.a.dtype))
    comparisons, found = judge_gemm(inputs, GemmOutputs(serial(inputs, FP32)), FP32)
    assert not comparisons[0].violations
    assert found.ok


def value_of(inputs: GemmInputs) -> torch.Tensor:
    """The exact outputs, float64 [m, n]."""
    a, b = operand(inputs.a, format_of(inputs.a.dtype)), operand(inputs.b, format_of(inputs.b.dtype))
    return (a @ b.T) * inputs.a_scale.double().reshape(-1, 1) * inputs.b_scale.double().reshape(1, -1)


def serial(inputs: GemmInputs, contract: GemmContract, store: Literal["rne", "truncate"] = "rne") -> torch.Tensor:
    """A GEMM that adds one product after another in fp32."""
    fp32 = FORMATS["fp32"]
    a, b = operand(inputs.a, format_of(inputs.a.dtype)), operand(inputs.b, format_of(inputs.b.dtype))
    sa, sb = inputs.a_scale.double().reshape(-1, 1), inputs.b_scale.double().reshape(-1, 1)
    scaled = contract.scaling == "operands"
    if scaled:
        a, b = round_to(a * sa, fp32), round_to(b * sb, fp32)
    total = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float64)
    for k in range(a.shape[1]):
        total = round_fp32(total + round_fp32(a[:, k, None] * b[None, :, k]))
    value = total if scaled else round_fp32(round_fp32(total * sa) * sb.T)
    return round_to(value, format_of(inputs.out_dtype), store).to(inputs.out_dtype)
