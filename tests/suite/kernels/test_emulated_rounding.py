"""The roundings of the emulated kernels, against ml_dtypes and the values next to every midpoint."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from validators.kernels import emulated_gemm
from validators.kernels.emulated_rounding import encode, round_to, truncate_to

FORMATS = ("e4m3fn", "e4m3fnuz")


def all_bf16() -> Tensor:
    return torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()


def finite_codes(fp8: str) -> Tensor:
    """Non-negative finite codes in order of value."""
    return torch.arange(0x7F if fp8 == "e4m3fn" else 0x80, dtype=torch.uint8)


def ml_dtypes_bytes(value: Tensor, fp8: str) -> Tensor:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes, the encoder's witness, is not installed")
    cast = value.numpy().astype(getattr(ml_dtypes, f"float8_{fp8}"))
    return torch.from_numpy(cast.view(np.uint8).copy())


@pytest.mark.parametrize("fp8", FORMATS)
def test_encoder_agrees_with_ml_dtypes_on_every_bf16_value(fp8: str) -> None:
    value = all_bf16()
    value = value[value.isfinite()]
    value = value[value.abs() <= 464.0 if fp8 == "e4m3fn" else value.abs() < 248.0]
    assert torch.equal(encode(value, fp8, "nan"), ml_dtypes_bytes(value, fp8))
    assert torch.equal(encode(value, fp8, "saturate"), ml_dtypes_bytes(value, fp8))


@pytest.mark.parametrize("fp8", FORMATS)
def test_encoder_agrees_with_ml_dtypes_at_and_beside_every_midpoint(fp8: str) -> None:
    grid = emulated_gemm.decode(finite_codes(fp8), fp8)
    midpoints = (grid[1:] + grid[:-1]) / 2
    below, above = torch.nextafter(midpoints, torch.zeros(())), torch.nextafter(midpoints, torch.full((), math.inf))
    value = torch.cat([grid, midpoints, below, above])
    value = torch.cat([value, -value])
    assert torch.equal(encode(value, fp8, "nan"), ml_dtypes_bytes(value, fp8))
    even = encode(midpoints, fp8, "nan")
    assert not bool((even & 1).any())


@pytest.mark.parametrize(("fp8", "nan", "largest"), [("e4m3fn", 0x7F, 0x7E), ("e4m3fnuz", 0x80, 0x7F)])
def test_encoder_overflow(fp8: str, nan: int, largest: int) -> None:
    value = torch.tensor([500.0, math.inf, 3e38, math.nan])
    assert encode(value, fp8, "nan").tolist() == [nan] * 4
    assert encode(value, fp8, "saturate").tolist() == [largest] * 3 + [nan]


@pytest.mark.parametrize("fp8", FORMATS)
def test_decode_inverts_encode(fp8: str) -> None:
    codes = finite_codes(fp8)
    assert torch.equal(encode(emulated_gemm.decode(codes, fp8), fp8, "nan"), codes)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_truncation_is_the_nearest_value_toward_zero(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(4096, generator=generator) * torch.exp2(torch.arange(4096) % 24 - 16.0)
    truncated, nearest = (
        truncate_to(value, dtype).float(),
        round_to(value, dtype).float(),
    )
    assert torch.equal(nearest, value.to(dtype).float())
    assert bool((truncated.abs() <= value.abs()).all())
    assert torch.equal(
        truncated[truncated != nearest].abs() < value[truncated != nearest].abs(),
        torch.ones(int((truncated != nearest).sum()), dtype=torch.bool),
    )
    assert truncate_to(torch.tensor([1.0 - 2.0**-20]), torch.bfloat16).item() == 0.99609375
    assert truncate_to(torch.tensor([1e30]), torch.float16).item() == 65504.0
