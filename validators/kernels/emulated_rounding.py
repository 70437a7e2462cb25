"""Roundings of the emulated kernels, written a second time: nothing here is shared with the float64 reference."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

MIN_NORMAL = 2.0**-126


def round_to(value: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 ``value`` rounded to nearest even in bf16, fp16 or fp32; NaN stays NaN, overflow becomes Inf."""
    if dtype != torch.bfloat16:
        return value.to(dtype)
    bits = value.contiguous().view(torch.int32)
    high = ((bits >> 16) & 1).add_(0x7FFF).add_(bits).bitwise_right_shift_(16)
    if bool(value.isnan().any()):
        high = torch.where(value.isnan(), 0x7FC0, high)
    return high.to(torch.int16).view(torch.bfloat16)


def truncate_to(value: Tensor, dtype: torch.dtype) -> Tensor:
    """fp32 ``value`` rounded toward zero in bf16 or fp16; NaN and Inf stay what they are."""
    rounded = round_to(value, dtype)
    away = rounded.float().abs() > value.abs()
    # The step toward zero is one less in the sign-magnitude code, also from Inf to the largest finite value.
    return (rounded.view(torch.int16) - away.to(torch.int16)).view(dtype)


def encode(value: Tensor, fp8: str, overflow: Literal["saturate", "nan"]) -> Tensor:
    """Bytes (uint8) of fp32 ``value`` in ``fp8`` by round to nearest even; NaN gives the format's NaN.

    Adding 2**(e+20) to a magnitude with exponent e makes fp32's own rounding keep exactly the three
    fraction bits of E4M3; holding e at the smallest normal exponent does the same for subnormal codes.
    """
    bias, largest = (7, 0x7E) if fp8 == "e4m3fn" else (8, 0x7F)
    bits = value.contiguous().view(torch.int32)
    magnitude = value.abs().clamp_max_(1024.0)
    exponent = magnitude.view(torch.int32).bitwise_and(0x7F800000).clamp_min_((128 - bias) << 23)
    anchor = exponent + (20 << 23)
    codes = magnitude.add_(anchor.view(torch.float32)).view(torch.int32).sub_(anchor)
    codes += exponent.bitwise_right_shift_(20)
    codes -= (128 - bias) << 3
    sign = (bits >> 24).bitwise_and_(0x80)
    bad = value.isnan()
    if overflow == "saturate":
        codes.clamp_max_(largest)
    else:
        bad |= codes > largest
    if fp8 == "e4m3fn":
        return codes.bitwise_or_(sign).masked_fill_(bad, 0x7F).to(torch.uint8)
    # 0x80 is NaN in e4m3fnuz, so a zero code takes no sign.
    return torch.where(codes == 0, 0, codes | sign).masked_fill_(bad, 0x80).to(torch.uint8)


def constant(value: float, like: Tensor) -> Tensor:
    """fp32 [1] on the device of ``like``."""
    # CUDA turns a division by a Python number into a multiplication by its reciprocal; a tensor is divided by.
    return torch.tensor([value], dtype=torch.float32, device=like.device)


def directed(exact: Tensor, direction: str, normal: Tensor) -> Tensor:
    """float64 ``exact`` as fp32 in a Direction; where ``normal`` is false, correctly rounded."""
    nearest = exact.float()
    if direction == "nearest":
        return nearest
    toward = torch.full_like(nearest, float("inf") if direction.endswith("up") else 0.0)
    back = nearest.double()
    if direction.startswith("ulp"):
        moves = back != exact
    else:
        moves = back < exact if direction == "up" else back > exact
    moves &= normal & nearest.isfinite() & (nearest.abs() > MIN_NORMAL)
    return torch.where(moves, torch.nextafter(nearest, toward), nearest)
