"""Number formats from one table: decode, encode, order, neighbours, ulp.

The encoder never uses a framework's FP8 cast: torch's cast from float64 rounds twice (through fp32),
and its overflow changed between versions (NaN above 464 up to 2.11, saturating from 2.12 on).
Here a code is found by comparing with exact midpoints in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

Overflow = Literal["saturate", "nan"]


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format.

    bits: storage width. mantissa: explicit mantissa bits. bias: exponent bias. max_code: magnitude code
    of the largest finite value. nan_codes: byte codes that are NaN (FP8 only; wider formats
    follow IEEE 754).
    """

    name: str
    bits: int
    mantissa: int
    bias: int
    max_code: int
    nan_codes: tuple[int, ...]

    @property
    def significand(self) -> int:
        """Significand bits p, the hidden bit included; the unit roundoff is 2**-p."""
        return self.mantissa + 1

    @property
    def max(self) -> float:
        """Largest finite value."""
        return _decode_int(self, self.max_code)

    @property
    def min_subnormal(self) -> float:
        """Smallest positive value."""
        return math.ldexp(1.0, 1 - self.bias - self.mantissa)

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal value."""
        return 1 - self.bias


E4M3FN = FloatFormat("e4m3fn", 8, 3, 7, 0x7E, (0x7F, 0xFF))
E4M3FNUZ = FloatFormat("e4m3fnuz", 8, 3, 8, 0x7F, (0x80,))
BF16 = FloatFormat("bf16", 16, 7, 127, 0x7F7F, ())
FP16 = FloatFormat("fp16", 16, 10, 15, 0x7BFF, ())
FP32 = FloatFormat("fp32", 32, 23, 127, 0x7F7FFFFF, ())

FORMATS: dict[str, FloatFormat] = {f.name: f for f in (E4M3FN, E4M3FNUZ, BF16, FP16, FP32)}
_TORCH: dict[torch.dtype, FloatFormat] = {
    torch.float8_e4m3fn: E4M3FN,
    torch.float8_e4m3fnuz: E4M3FNUZ,
    torch.bfloat16: BF16,
    torch.float16: FP16,
    torch.float32: FP32,
}


def format_of(dtype: torch.dtype) -> FloatFormat:
    """The format of a torch dtype; raises ValueError for one that the suite does not know."""
    if dtype not in _TORCH:
        raise ValueError(f"no format for dtype {dtype}; known: {', '.join(str(d) for d in _TORCH)}")
    return _TORCH[dtype]


def _decode_int(fmt: FloatFormat, magnitude: int) -> float:
    exponent, fraction = magnitude >> fmt.mantissa, magnitude & ((1 << fmt.mantissa) - 1)
    if exponent == 0:
        return math.ldexp(fraction, fmt.min_exponent - fmt.mantissa)
    return math.ldexp((1 << fmt.mantissa) + fraction, exponent - fmt.bias - fmt.mantissa)


@lru_cache(maxsize=32)
def decode_table(fmt: FloatFormat, device: str = "cpu") -> torch.Tensor:
    """Value of each of the 256 codes of an FP8 format: float64 [256], NaN where the code is NaN."""
    values = []
    for code in range(256):
        if code in fmt.nan_codes:
            values.append(math.nan)
        else:
            value = _decode_int(fmt, code & 0x7F)
            values.append(-value if code & 0x80 else value)
    return torch.tensor(values, dtype=torch.float64, device=device)


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The codes of an FP8 tensor as uint8, same shape."""
    return tensor if tensor.dtype == torch.uint8 else tensor.view(torch.uint8)


def decode(codes: torch.Tensor, fmt: FloatFormat) -> torch.Tensor:
    """FP8 codes (uint8 or FP8 dtype, any shape) -> exact float64 values."""
    return decode_table(fmt, str(codes.device))[bytes_of(codes).long()]


@lru_cache(maxsize=32)
def _upward_thresholds(fmt: FloatFormat, device: str) -> torch.Tensor:
    """For each midpoint between magnitude codes i and i+1, the largest float64 that still rounds to i.

    A tie goes to the even code, so an odd i gives its midpoint away: the threshold is then the float64
    just below the midpoint. Every midpoint of two FP8 values is exact in float64.
    """
    out = []
    for i in range(fmt.max_code):
        middle = (_decode_int(fmt, i) + _decode_int(fmt, i + 1)) / 2
        out.append(middle if i % 2 == 0 else math.nextafter(middle, 0.0))
    return torch.tensor(out, dtype=torch.float64, device=device)


def overflow_threshold(fmt: FloatFormat) -> float:
    """Largest float64 magnitude that still rounds to the largest finite value under RNE.

    464 for e4m3fn (the tie goes down to the even 448), just below 248 for e4m3fnuz.
    """
    top = _decode_int(fmt, fmt.max_code)
    middle = top + (top - _decode_int(fmt, fmt.max_code - 1)) / 2
    return middle if fmt.max_code % 2 == 0 else math.nextafter(middle, 0.0)


def encode(values: torch.Tensor, fmt: FloatFormat, overflow: Overflow = "saturate") -> torch.Tensor:
    """Round float64 values (any shape) to FP8 codes, uint8, nearest even by exact midpoints.

    overflow: "saturate" keeps values (and infinities) beyond the largest finite at it, "nan" turns those
    that round beyond it into NaN. NaN gives NaN. e4m3fn keeps the sign of a zero; e4m3fnuz has none.
    """
    values = values.to(torch.float64)
    magnitude = torch.bucketize(values.abs(), _upward_thresholds(fmt, str(values.device)))
    negative = torch.signbit(values)
    codes = magnitude + 128 * negative.long()
    if fmt is E4M3FNUZ:
        codes = torch.where(magnitude == 0, torch.zeros_like(codes), codes)
    bad = values.isnan()
    if overflow == "nan":
        bad = bad | (values.abs() > overflow_threshold(fmt))
    return torch.where(bad, torch.full_like(codes, fmt.nan_codes[0]), codes).to(torch.uint8)


@lru_cache(maxsize=32)
def code_preimages(fmt: FloatFormat, overflow: Overflow, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """The closed interval of float64 numbers that round to each code: (low [256], high [256]), float64.

    Both zeros of e4m3fn share one interval (-0 equals +0). A NaN code has the empty interval
    (+inf, -inf). Under "saturate" the largest codes reach to infinity.
    """
    up = _upward_thresholds(fmt, "cpu").tolist()
    low, high = [math.inf] * 256, [-math.inf] * 256
    for code in range(256):
        if code in fmt.nan_codes:
            continue
        i = code & 0x7F
        top = math.inf if overflow == "saturate" else overflow_threshold(fmt)
        hi = top if i == fmt.max_code else up[i]
        lo = -up[0] if i == 0 else math.nextafter(up[i - 1], math.inf)
        low[code], high[code] = (-hi, -lo) if code & 0x80 and i else (lo, hi)
    return (
        torch.tensor(low, dtype=torch.float64, device=device),
        torch.tensor(high, dtype=torch.float64, device=device),
    )


def order_key(codes: torch.Tensor) -> torch.Tensor:
    """Integer that orders FP8 codes by value, int16; both zeros give 0. NaN codes must be masked by the caller."""
    raw = bytes_of(codes).to(torch.int16)
    return torch.where(raw >= 128, 128 - raw, raw)


def round_fp32(values: torch.Tensor) -> torch.Tensor:
    """float64 -> nearest fp32 (ties to even), as float64. The hardware conversion is IEEE correct."""
    return values.to(torch.float32).to(torch.float64)


def round_to(values: torch.Tensor, fmt: FloatFormat, mode: Literal["rne", "truncate"] = "rne") -> torch.Tensor:
    """Round float64 values to bf16, fp16 or fp32; float64 values of that format.

    Scales by the exact spacing, rounds to an integer (half to even, or toward zero), scales back: every
    step is exact in float64. Overflow goes to infinity for "rne" and stays at the largest finite value
    for "truncate"; NaN and infinities pass.
    """
    values = values.to(torch.float64)
    step = ulp(values, fmt)
    steps = values / step
    rounded = (steps.round() if mode == "rne" else steps.trunc()) * step
    top = fmt.max
    if mode == "rne":
        rounded = torch.where(rounded.abs() > top, torch.copysign(torch.full_like(rounded, math.inf), rounded), rounded)
    else:
        rounded = torch.where(rounded.abs() > top, torch.copysign(torch.full_like(rounded, top), rounded), rounded)
    return torch.where(values.isfinite(), rounded, values)


def pow2(exponent: torch.Tensor) -> torch.Tensor:
    """2^exponent as float64 from its bits: ``torch.ldexp`` and ``exp2`` are a library's power function, which need not
    be exact. exponent: int64 in -1022 .. 1024 (infinity)."""
    return ((exponent + 1023) << 52).view(torch.float64)


def exponent_of(x: torch.Tensor) -> torch.Tensor:
    """floor(log2|x|) of float64 x, int64, from its bits, without a logarithm; -1023 for zero, 1024 for Inf and NaN.
    Exact for every normal float64 (fp32 subnormals included)."""
    return ((x.view(torch.int64) >> 52) & 2047) - 1023


def ulp(values: torch.Tensor, fmt: FloatFormat) -> torch.Tensor:
    """Spacing of the format's values at each |value| (the binade that holds it), float64; 1.0's for non-finite."""
    finite = torch.where(
        values.isfinite(), values.abs().to(torch.float64), torch.ones_like(values, dtype=torch.float64)
    )
    # Zero belongs to the lowest binade.
    return pow2(exponent_of(finite).clamp(min=fmt.min_exponent) - fmt.mantissa)


def neighbours(values: torch.Tensor, fmt: FloatFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """For values of the format (float64): the next smaller and the next larger value of the format."""
    step = ulp(values, fmt)
    # At a power of two the spacing below is half of the spacing above (unless subnormal).
    power = (values.view(torch.int64) << 12 == 0) & (values.abs() > math.ldexp(1.0, fmt.min_exponent))
    inner = torch.where(power, step / 2, step)
    down = torch.where(values > 0, inner, step)
    up = torch.where(values < 0, inner, step)
    return values - down, values + up


def key_of(values: torch.Tensor, fmt: FloatFormat) -> torch.Tensor:
    """Position of float64 values in the ordered list of the format's values (real-valued between them).

    Differences of keys are distances in steps of the format ("ulps") that stay right across binades.
    """
    magnitude = values.abs().to(torch.float64)
    exponent = exponent_of(magnitude).clamp(min=fmt.min_exponent)
    steps = magnitude * pow2(fmt.mantissa - exponent)
    key = steps + (exponent - fmt.min_exponent).to(torch.float64) * float(1 << fmt.mantissa)
    return torch.copysign(key, values)
