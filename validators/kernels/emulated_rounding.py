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


def step_bits(value: Tensor, steps: Tensor | int) -> Tensor:
    """Positive fp32 ``value`` moved by ``steps`` (int32) places in the list of fp32 numbers."""
    return (value.view(torch.int32) + steps).view(torch.float32)


def square_root(value: Tensor) -> Tensor:
    """fp32 square root of fp32 ``value``, rounded to nearest by construction: the same bits on every machine.

    ``torch.sqrt`` on a CPU is MKL's: of 4.2 million values, 0.5 % are one ulp off on its Intel path and 17 % on its
    path for other CPUs (torch 2.9 to 2.14). The estimate may come from any library that is right to 2**-26, which
    leaves it at most one place off. The midpoint m of two neighbours is an odd number of 25 bits, so m*m is an odd
    number of 49 or 50 bits: exact in float64, and no fp32 number, so there are no ties.
    """
    exact = value.double()
    root = exact.sqrt().float()
    # The neighbour of 0 and Inf that is none (NaN) fails the comparison, and so does a NaN.
    above, below = ((step_bits(root, move).double() + root.double()) * 0.5 for move in (1, -1))
    return step_bits(root, (exact > above * above).int() - (exact < below * below).int())


def reciprocal_root(value: Tensor, direction: str = "nearest") -> Tensor:
    """fp32 1/sqrt(``value``) in a Direction, decided exactly; correctly rounded where ``value`` is not a normal number.

    Some 1/sqrt(v) are within 2**-52.3 of a midpoint of fp32 (exhaustive over all v), and a float64 quotient by a
    float64 root is right to 2**-52 at best. So the estimate is moved by the exact sign of m*m*v - 1.
    """
    exact = value.double()
    root = (1.0 / exact.sqrt()).float()
    above, below = ((step_bits(root, move).double() + root.double()) * 0.5 for move in (1, -1))
    ordinary = (value > 0) & value.isfinite()
    moves = (_beyond(above, exact) < 0).int() - (_beyond(below, exact) > 0).int()
    root = step_bits(root, moves * ordinary)
    if direction == "nearest":
        return root
    return step_bits(root, _moves(_beyond(root.double(), exact), direction) * (ordinary & (value >= MIN_NORMAL)))


def _beyond(root: Tensor, value: Tensor) -> Tensor:
    """Float64 of the sign of root*root*value - 1; root has at most 25 bits, value 24, both float64.

    The square is exact; its halves of 26 bits (Veltkamp's split, Dekker 1971) times value are exact as well. The larger
    product is near 1, so 1 is taken from it exactly, and the one rounding left keeps the sign.
    """
    square = root * root
    spread = square * (2.0**27 + 1)
    high = spread - (spread - square)
    return (high * value - 1.0) + (square - high) * value


def _moves(excess: Tensor, direction: str) -> Tensor:
    """Places to go from the nearest fp32 number, int32; the sign of ``excess`` says on which side of the exact
    value it is."""
    if direction.startswith("ulp"):
        moves = excess != 0
    else:
        moves = excess < 0 if direction == "up" else excess > 0
    return moves.int() if direction.endswith("up") else -moves.int()


def directed(exact: Tensor, direction: str, normal: Tensor) -> Tensor:
    """Positive float64 ``exact`` as fp32 in a Direction; where ``normal`` is false, correctly rounded.

    ``exact`` may be a float64 quotient of fp32 numbers: one that is no fp32 number is 2**-48 or more from all of them
    and from their midpoints, and is rounded to float64 by 2**-53.
    """
    nearest = exact.float()
    if direction == "nearest":
        return nearest
    moves = _moves(nearest.double() - exact, direction)
    return step_bits(nearest, moves * (normal & nearest.isfinite() & (nearest > MIN_NORMAL)))
