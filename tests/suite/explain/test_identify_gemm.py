"""Identification of a GEMM: each way to compute it is recognised, and none is claimed where none fits."""

from __future__ import annotations

import pytest
import torch

from reference.accumulators import K_MAPS, emulate
from reference.formats import E4M3FN, encode, format_of
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.tensors import GemmInputs, GemmOutputs
from validators.explain.units import BIASES, ORDERS, candidates, epilogue, match_shares, sample, sentences


def _inputs(
    recipe: str = "gaussian", fp8: str = "e4m3fn", *, k: int = 1152, bias: bool = False, wide: bool = False
) -> GemmInputs:
    """K = 9 * 128: few splits equal promotion intervals. wide: fp32 output, odd scales, every rounding shows."""
    case = Case("ptpc_gemm", 24, 48, recipe, k=k, fp8=fp8, bias=bias, seed=3)
    built = build(case, device="cpu")
    assert isinstance(built, GemmInputs)
    if not wide:
        return built
    g = torch.Generator().manual_seed(1)
    scales = [torch.rand(len(x), 1, generator=g) + 0.5 for x in (built.a, built.b)]
    shift = torch.randn(len(built.b), generator=g) * 100 if bias else None
    return GemmInputs(built.a, scales[0], built.b, scales[1], shift, torch.float32)


def _computed(inputs: GemmInputs, unit: str, order: str, bias: str, splits: int = 1, k_map: str = "") -> GemmOutputs:
    """The whole output, every row and column."""
    m, n = len(inputs.a), len(inputs.b)
    empty = GemmOutputs(torch.zeros(m, n, dtype=inputs.out_dtype))
    scene = sample(inputs, empty, torch.arange(m), torch.arange(n))
    total = emulate(
        scene.a, scene.b, format_of(inputs.a.dtype), unit, splits=splits, k_map=K_MAPS[k_map] if k_map else None
    )
    return GemmOutputs(epilogue(total, scene, order, bias, inputs.out_dtype))  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", ["hopper-fast", "hopper-promote128", "hopper-promote256", "ada"])
def test_the_unit_is_identified(unit: str) -> None:
    inputs = _inputs("positive_mean", wide=True)
    shares = match_shares(inputs, _computed(inputs, unit, "token-first", "none"))
    assert shares[f"{unit}, token-first"] == 1.0
    perfect = {name.split(",")[0] for name, share in shares.items() if share == 1.0}
    assert perfect == {unit}
    assert sentences(shares)[0].startswith(f"follows {unit}, ")


def test_split_k_and_the_k_map_are_identified() -> None:
    """Chunks of very different size: partial sums of 14 bits of equal size are added without rounding in any order."""
    plain = _inputs("gaussian", wide=True)
    g = torch.Generator().manual_seed(2)
    steps = torch.exp2(torch.tensor([6.0, -4, 1, -5, 7, -3, 0, 5, -6], dtype=torch.float64)).repeat_interleave(128)
    a, b = (torch.randn(n, 1152, generator=g, dtype=torch.float64) * steps for n in (24, 48))
    left, right = (encode(x, E4M3FN).view(torch.float8_e4m3fn) for x in (a, b))
    inputs = GemmInputs(left, plain.a_scale, right, plain.b_scale, None, torch.float32)
    shares = match_shares(inputs, _computed(inputs, "hopper-promote128", "token-first", "none", splits=2))
    assert [name for name, share in shares.items() if share == 1.0] == ["hopper-promote128, split-K 2, token-first"]
    amd = _inputs("gaussian", "e4m3fnuz", k=2048, wide=True)
    shares = match_shares(amd, _computed(amd, "cdna3-mfma", "token-first", "none", k_map="lane16-32x32x16"))
    perfect = [name for name, share in shares.items() if share == 1.0]
    assert perfect == ["cdna3-mfma, k-map lane16-32x32x16, token-first"]


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("order", ORDERS)
def test_the_epilogue_is_identified_from_fp32_outputs(order: str, bias: str) -> None:
    """In fp32 every rounding shows; scales that are no powers of two."""
    inputs = _inputs("gaussian", bias=True, k=288, wide=True)
    shares = match_shares(inputs, _computed(inputs, "hopper-promote128", order, bias))
    perfect = {name for name, share in shares.items() if share == 1.0}
    # An fp32 store keeps the product's fp32 rounding, so that adding after it is the same as before it.
    same = {"epilogue", "after-store"} if bias != "epilogue-fma" else {bias}
    assert perfect == {f"hopper-promote128, {order}, bias {b}" for b in same}


def test_bias_after_a_bf16_store_is_told_from_one_before_it() -> None:
    inputs = _inputs("gaussian", bias=True)
    shares = match_shares(inputs, _computed(inputs, "hopper-promote128", "token-first", "after-store"))
    best = next(iter(shares))
    assert shares[best] == 1.0
    assert "bias after-store" in best
    assert shares["hopper-promote128, token-first, bias epilogue"] < 1.0


def test_wrong_outputs_follow_nothing() -> None:
    inputs = _inputs()
    right = _computed(inputs, "hopper-promote128", "token-first", "none").out
    shares = match_shares(inputs, GemmOutputs(right.roll(1, dims=0)))
    assert max(shares.values()) < 0.5
    assert sentences(shares)[0].startswith("follows no known matrix unit: the closest, ")


def test_the_list_is_closed_and_names_are_unique() -> None:
    for fp8 in ("e4m3fn", "e4m3fnuz"):
        for bias in (False, True):
            names = [c.name for c in candidates(fp8, k=4096, bias=bias)]
            assert len(names) == len(set(names))
    assert all(c.splits == 1 for c in candidates(k=128))
    # 512 = 2 x 256 = promotion every 256, and 4 x 128 = promotion every 128: listed under those names.
    assert {c.splits for c in candidates(k=512) if c.unit == "hopper-fast"} == {1}
    assert {c.splits for c in candidates(k=512) if c.unit == "hopper-promote128"} == {1, 2}
    assert {c.promotion for c in candidates()} == {None, 32, 64, 128, 256, 512}


def test_chosen_rows_and_columns_are_the_ones_compared() -> None:
    inputs = _inputs()
    outputs = _computed(inputs, "hopper-promote128", "token-first", "none")
    outputs.out[5] = 0.0
    bad = match_shares(inputs, outputs, rows=torch.tensor([5]), cols=8)
    good = match_shares(inputs, outputs, rows=torch.tensor([4, 6]), cols=8)
    assert max(bad.values()) == 0.0
    assert max(good.values()) == 1.0
