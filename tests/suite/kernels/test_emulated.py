"""The emulated kernels, their legitimate variants, and the zoo: each defect is shown to change its kernel."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from reference.contract import GEMM_CONTRACTS, NORM_QUANT_CONTRACTS
from tests.support.emulated_inputs import (
    GUARD,
    POISON,
    TORCH_FP8,
    gaussian,
    gemm_inputs,
    guarded_outputs,
    norm_inputs,
    with_bias,
)
from tests.support.variants import legitimate_variants
from validators.cases import tensors
from validators.kernels import emulated, emulated_gemm
from validators.kernels.emulated_variant import EmulatedError, Variant

FORMATS = ("e4m3fn", "e4m3fnuz")


@pytest.mark.parametrize("op", ["add_rmsnorm_quant", "per_token_quant"])
@pytest.mark.parametrize("name", list(NORM_QUANT_CONTRACTS))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fp8", FORMATS)
def test_every_contract_gives_close_values_in_the_buffers(op: str, name: str, dtype: torch.dtype, fp8: str) -> None:
    """Half a step of E4M3 is at most 1/16 of a normal value, or half the smallest step; T rounding adds 2**-7."""
    x = gaussian(5, 96, dtype=dtype)
    inputs: tensors.Inputs
    if op == "per_token_quant":
        inputs, y = tensors.QuantInputs(x, TORCH_FP8[fp8]), x.double()
    else:
        r = gaussian(5, 96, 1, dtype)
        norm = norm_inputs(x, r, fp8_dtype=TORCH_FP8[fp8])
        inputs, z = norm, x.double() + r.double()
        y = z / (z.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight.double()
    kernel = next(k for k in emulated.kernels() if k.op == op and k.name == f"emulated/{name}")
    buffers, memories = guarded_outputs(inputs)
    out = kernel.call(inputs, buffers)
    assert isinstance(out, tensors.NormQuantOutputs | tensors.QuantOutputs)
    assert out is buffers
    assert all(memory[-GUARD:].eq(POISON).all() for memory in memories)
    value = emulated_gemm.decode(out.codes.view(torch.uint8), fp8).double() * out.scale.double()
    assert bool(((value - y).abs() <= y.abs() * (2**-4 + 2**-6) + out.scale * 2.0**-9).all())


@pytest.mark.parametrize("name", list(NORM_QUANT_CONTRACTS))
def test_layouts_and_the_first_layer_give_the_same_rows(name: str) -> None:
    kernel = emulated.make(NORM_QUANT_CONTRACTS[name])
    x, r = gaussian(6, 80), gaussian(6, 80, 1)
    plain = kernel(norm_inputs(x, r))
    strided = torch.full((6, 100), math.nan, dtype=x.dtype)
    strided[:, :80] = x
    for again in (
        kernel(norm_inputs(strided[:, :80], r)),
        kernel(norm_inputs(x.view(2, 3, 80), r.view(2, 3, 80))),
        kernel(norm_inputs(x, r, weight=norm_inputs(x).weight.float())),
    ):
        assert torch.equal(again.codes.view(torch.uint8).view(6, 80), plain.codes.view(torch.uint8))
        assert torch.equal(again.scale.view(6, 1), plain.scale)
    first = kernel(norm_inputs(x))
    assert isinstance(first, tensors.NormQuantOutputs)
    assert first.residual_out is None
    zero = kernel(norm_inputs(x, torch.zeros_like(x)))
    assert torch.equal(first.scale, zero.scale)


@pytest.mark.parametrize("name", list(NORM_QUANT_CONTRACTS))
def test_a_row_with_nan_stays_in_its_row(name: str) -> None:
    contract = NORM_QUANT_CONTRACTS[name]
    x = gaussian(4, 64)
    clean = emulated.make(contract)(norm_inputs(x, torch.zeros_like(x)))
    x[2, 5] = math.nan
    out = emulated.make(contract)(norm_inputs(x, torch.zeros_like(x)))
    others = [0, 1, 3]
    assert torch.equal(out.codes.view(torch.uint8)[others], clean.codes.view(torch.uint8)[others])
    if contract.nonfinite == "propagate":
        assert bool(out.scale[2].isnan())
        assert bool((out.codes.view(torch.uint8)[2] == 0x7F).all())


def test_zero_rows_follow_the_contract() -> None:
    x = torch.zeros(1, 64, dtype=torch.bfloat16)
    expected = {
        "aiter-hip-gfx950": np.float32(1e-10) * np.float32(1 / 448),
        "aiter-triton": np.float32(1),
        "vllm": np.float32(1) / np.float32(448 * 512),
        "eager": np.float32(1e-12) / np.float32(448),
    }
    for name, scale in expected.items():
        out = emulated.make(NORM_QUANT_CONTRACTS[name])(tensors.QuantInputs(x, torch.float8_e4m3fn))
        assert out.scale.item() == float(scale), name
        assert not bool(out.codes.view(torch.uint8).any())


def residual_bits(out: tensors.Outputs) -> Tensor:
    assert isinstance(out, tensors.NormQuantOutputs)
    assert out.residual_out is not None
    return out.residual_out.view(torch.int16)


# --- variants --------------------------------------------------------------------------------------------------

VARIANTS = [(name, variant) for name in NORM_QUANT_CONTRACTS for variant in legitimate_variants(name)]


def test_there_are_a_hundred_legitimate_variants_with_names_of_their_own() -> None:
    assert len(VARIANTS) >= 100
    assert len({(name, variant.name) for name, variant in VARIANTS}) == len(VARIANTS)


@pytest.mark.parametrize("name", list(NORM_QUANT_CONTRACTS))
def test_variants_move_few_codes_by_one_step(name: str) -> None:
    """Low bits of fp32 move a code only next to a rounding boundary: one element in 256 is far above what they can do,
    and far below what the mildest defect does (N03: 2 % of the codes)."""
    contract = NORM_QUANT_CONTRACTS[name]
    inputs = norm_inputs(gaussian(64, 1000), gaussian(64, 1000, 1))
    default = emulated.make(contract)(inputs)
    expected = default.codes.view(torch.uint8).int()
    # Rounding to T absorbs nearly all low bits, so that the variants are told apart without it.
    unrounded = contract.replace(round_after_normalize=False, round_after_weight=False, round_scale=False)
    scales = set()
    for variant in legitimate_variants(name):
        out = emulated.make(contract, variant)(inputs)
        moved = (out.codes.view(torch.uint8).int() - expected).abs()
        assert int(moved.max()) <= 1, variant.name
        assert int(moved.sum()) * 256 <= moved.numel(), variant.name
        assert torch.equal(residual_bits(out), residual_bits(default))
        scales.add(emulated.make(unrounded, variant)(inputs).scale.numpy().tobytes())
    assert len(scales) > len(legitimate_variants(name)) // 2, "most variants change nothing"


@pytest.mark.parametrize(("name", "variant"), [(n, v) for n, v in VARIANTS if v.order in ("chunks", "lanes")])
def test_variants_respect_the_declared_reduction(name: str, variant: Variant) -> None:
    reduction = NORM_QUANT_CONTRACTS[name].reduction
    for n in (1, 63, 769, 5120, 8192, 12288):
        chain = emulated.chain_length(NORM_QUANT_CONTRACTS[name], variant, n)
        partials = -(-n // chain)
        assert chain + math.ceil(math.log2(partials)) <= max(1, reduction.depth(n)) + 1
        assert chain <= reduction.count if reduction.kind == "serial" else partials >= min(n, reduction.count)


def test_illegal_variants_are_refused_in_one_sentence() -> None:
    for contract, variant in (
        ("vllm", Variant(product="weight_first")),
        ("aiter-hip-gfx950", Variant(rsqrt="ulp_up")),
        ("aiter-hip-gfx950", Variant(scale="up")),
        ("vllm", Variant(reciprocal="up")),
        ("eager", Variant(order="tree", fma=True)),
    ):
        with pytest.raises(EmulatedError, match=r"contract|order"):
            emulated.make(NORM_QUANT_CONTRACTS[contract], variant)


def test_inexact_reciprocals_leave_powers_of_two_alone() -> None:
    x = torch.full((1, 8), 448.0, dtype=torch.bfloat16)
    contract = NORM_QUANT_CONTRACTS["aiter-triton"]
    for direction in ("up", "down", "ulp_up", "ulp_down"):
        out = emulated.make(contract, Variant(reciprocal=direction))(tensors.QuantInputs(x, torch.float8_e4m3fn))
        assert out.scale.item() == 1.0
        assert bool((out.codes.view(torch.uint8) == 0x7E).all())


@pytest.mark.parametrize("name", emulated_gemm.EMULATED)
@pytest.mark.parametrize("order", ["token_first", "channel_first", "product_first"])
@pytest.mark.parametrize("serial", [False, True])
def test_gemm_is_within_the_error_of_its_accumulator(name: str, order: str, serial: bool) -> None:
    """fp32 in any order: K u S; two scale multiplies: 2u of the result, and one u for fl32(sa * sb)."""
    inputs = with_bias(gemm_inputs(dtype=torch.float32))
    a, b = (emulated_gemm.decode(t.view(torch.uint8), "e4m3fn").double() for t in (inputs.a, inputs.b))
    scales = inputs.a_scale.double() * inputs.b_scale.double().t()
    exact = (a @ b.t()) * scales + inputs.bias.double()  # type: ignore[union-attr]
    magnitude = (a.abs() @ b.abs().t()) * scales + inputs.bias.double().abs()  # type: ignore[union-attr]
    variant = emulated_gemm.GemmVariant(scale_order=order, serial=serial)  # type: ignore[arg-type]
    out = emulated_gemm.make(GEMM_CONTRACTS[name], variant)(inputs).out
    assert bool(((out.double() - exact).abs() <= (a.shape[1] + 4) * 2.0**-24 * magnitude).all())


def test_bias_after_the_store_rounds_twice() -> None:
    inputs = with_bias(gemm_inputs())
    contract = GEMM_CONTRACTS["fp32"]
    epilogue = emulated_gemm.make(contract)(inputs).out
    after = emulated_gemm.make(contract.replace(bias="after_store"))(inputs).out
    unbiased = emulated_gemm.make(contract)(dataclasses.replace(inputs, bias=None)).out
    assert torch.equal(after, (unbiased.float() + inputs.bias.float()).to(torch.bfloat16))  # type: ignore[union-attr]
    assert not torch.equal(after, epilogue)


def test_wrong_inputs_are_refused_in_one_sentence() -> None:
    with pytest.raises(EmulatedError, match="expected inputs of ptpc_gemm"):
        emulated_gemm.make(GEMM_CONTRACTS["fp32"])(tensors.QuantInputs(gaussian(1, 8), torch.float8_e4m3fn))
    with pytest.raises(EmulatedError, match="has no stage 'nope'"):
        emulated.execute(
            tensors.QuantInputs(gaussian(1, 8), torch.float8_e4m3fn),
            None,
            NORM_QUANT_CONTRACTS["vllm"],
            stages={"nope": lambda w: None},
        )
    with pytest.raises(EmulatedError, match="cannot quantize"):
        emulated.make(NORM_QUANT_CONTRACTS["vllm"])(tensors.QuantInputs(torch.ones(1, 8), torch.float8_e4m3fn))
