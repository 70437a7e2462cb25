"""Bytes and bits for the input makers: FP8 code tables, fields of bf16 and fp16, fp32 scales.

Inputs need bytes of known value; they do not need an oracle. These tables are the input makers' own
and are never used to judge an output.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import torch

QMAX = {"e4m3fn": 448.0, "e4m3fnuz": 240.0}
FP8_DTYPE = {"e4m3fn": torch.float8_e4m3fn, "e4m3fnuz": torch.float8_e4m3fnuz}
NAN_CODE = {"e4m3fn": 0x7F, "e4m3fnuz": 0x80}
_BIAS = {"e4m3fn": 7, "e4m3fnuz": 8}
_TOP_CODE = {"e4m3fn": 0x7E, "e4m3fnuz": 0x7F}


class Fields(NamedTuple):
    """Layout of a 16-bit storage type: mantissa bits, exponent bias, fields of the exponent."""

    dtype: torch.dtype
    mantissa: int
    bias: int
    exponents: int


STORAGE = {"bf16": Fields(torch.bfloat16, 7, 127, 256), "fp16": Fields(torch.float16, 10, 15, 32)}


@lru_cache
def positive_values(fp8: str) -> tuple[float, ...]:
    """Values of the codes 0x00 .. top in rising order, zero first: 127 for e4m3fn, 128 for e4m3fnuz."""
    values = []
    for code in range(_TOP_CODE[fp8] + 1):
        exponent, mantissa = code >> 3, code & 7
        significand = mantissa if exponent == 0 else 8 + mantissa
        values.append(significand * 2.0 ** (max(exponent, 1) - _BIAS[fp8] - 3))
    return tuple(values)


@lru_cache
def midpoints(fp8: str) -> tuple[float, ...]:
    """Points halfway between neighbouring non-negative values: 126 for e4m3fn, 127 for e4m3fnuz."""
    values = positive_values(fp8)
    return tuple((low + high) / 2 for low, high in pairwise(values))


@lru_cache
def integer_codes(fp8: str, limit: float) -> tuple[int, ...]:
    """Codes of the positive integers of the format up to ``limit``, in rising order."""
    return tuple(c for c, v in enumerate(positive_values(fp8)) if 1 <= v <= limit and v == int(v))


# A midpoint has at most 4 fraction bits, so between two multiples of 2^19 in the bits of fp32 there is none.
_MIDPOINT_BITS = 19


@lru_cache
def _code_table(fp8: str) -> torch.Tensor:
    """uint8 [4096] on the CPU: the code of the nearest value by ``(bits of |t| - 1) >> 19`` of fp32 t: the interval is
    open below and closed above, as a tie goes down."""
    top = (torch.arange(1 << (31 - _MIDPOINT_BITS), dtype=torch.int64, device="cpu") + 1) << _MIDPOINT_BITS
    infinity = 0x7F800000
    values = top.clamp(max=infinity).to(torch.int32).view(torch.float32)
    edges = torch.tensor(midpoints(fp8), dtype=torch.float32, device="cpu")
    return torch.bucketize(values, edges, out_int32=True).to(torch.uint8)


def nearest_codes(t: torch.Tensor, fp8: str) -> torch.Tensor:
    """uint8 codes of the values nearest to fp32 ``t`` (same shape), saturating; a tie goes down in magnitude.

    Negative values that round to zero become +0, since 0x80 is NaN in e4m3fnuz. By a table: a search among the
    midpoints took 28 ns per value, half the time of a GEMM's case at the model's shapes; the table takes 6.
    """
    place = (t.contiguous().view(torch.int32) & 0x7FFFFFFF).sub_(1).clamp_(min=0).bitwise_right_shift_(_MIDPOINT_BITS)
    code = torch.index_select(_code_table(fp8).to(t.device), 0, place.flatten()).view(t.shape)
    return torch.where((t < 0) & (code > 0), code | 0x80, code)


def finite_codes(draw: torch.Tensor, fp8: str) -> torch.Tensor:
    """uint8 codes, all finite ones, from integers in [0, ``finite_count``)."""
    if fp8 == "e4m3fnuz":
        return (draw + (draw >= 0x80)).to(torch.uint8)
    return (draw + (draw >= 0x7F)).to(torch.uint8)


def finite_count(fp8: str) -> int:
    """Number of finite codes: 254 of e4m3fn (both zeros among them), 255 of e4m3fnuz."""
    return 255 if fp8 == "e4m3fnuz" else 254


def nonzero_codes(draw: torch.Tensor, fp8: str) -> torch.Tensor:
    """uint8 codes, all finite non-zero ones, from integers in [0, 252) or [0, 254): see ``nonzero_count``."""
    half = _TOP_CODE[fp8]
    return (1 + draw % half + (draw >= half) * 0x80).to(torch.uint8)


def nonzero_count(fp8: str) -> int:
    """Number of finite non-zero codes: 252 of e4m3fn, 254 of e4m3fnuz."""
    return 2 * _TOP_CODE[fp8]


def from_fields(sign: torch.Tensor, exponent: torch.Tensor, mantissa: torch.Tensor, dtype: str) -> torch.Tensor:
    """bf16 or fp16 tensor from integer sign (0 or 1), biased exponent and mantissa fields."""
    layout = STORAGE[dtype]
    word = (sign << 15) | (exponent << layout.mantissa) | mantissa
    # Out-of-range narrowing is left to the compiler in C++; fold to the signed range first.
    return ((word ^ 0x8000) - 0x8000).to(torch.int16).view(layout.dtype)


def half_ulp(x: torch.Tensor, dtype: str) -> torch.Tensor:
    """fp32 half distance from |x| to the next larger value of its own type (x normal; zero gives 0)."""
    layout = STORAGE[dtype]
    word = x.contiguous().view(torch.int16).to(torch.int32)
    exponent = (word >> layout.mantissa) & (layout.exponents - 1)
    half = power_of_two(exponent - layout.bias - layout.mantissa - 1)
    return torch.where(exponent > 0, half, torch.zeros_like(half))


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """Exact fp32 2^exponent for an integer tensor in -126 .. 127; smaller exponents give -126's."""
    return ((exponent.to(torch.int32).clamp(-126, 127) + 127) << 23).view(torch.float32)


def choose(mask: torch.Tensor, yes: float, no: float) -> torch.Tensor:
    """fp32 ``yes`` where mask holds, else ``no``; unlike torch.where of two floats, whatever the default dtype is."""
    values = torch.tensor((no, yes), dtype=torch.float32, device=mask.device)
    return values[mask.long()]


def canonical_nan(x: torch.Tensor) -> torch.Tensor:
    """bf16 or fp16 x with every NaN positive, quiet and without payload: devices convert NaN differently."""
    word = 0x7FC0 if x.dtype == torch.bfloat16 else 0x7E00
    return torch.where(x.isnan(), word, x.view(torch.int16)).to(torch.int16).view(x.dtype)


def odd_scale(exponent: torch.Tensor, draw: torch.Tensor) -> torch.Tensor:
    """fp32 in (2^exponent, 2^(exponent+1)) with an odd 23-bit mantissa: never a power of two.

    ``draw``: integers in [0, 2^22), of exponent's shape.
    """
    field = exponent.to(torch.int32) + 127
    return ((field << 23) | (draw.to(torch.int32) << 1) | 1).view(torch.float32)
