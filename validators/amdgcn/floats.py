"""Floating point as the machine does it, on numpy arrays: fused multiply-add, maximum, NaN, denormals, formats.

numpy's own float32, float64 and float16 arithmetic is IEEE round to nearest; what it leaves to the CPU (bits of a NaN,
sign of a zero in a maximum) is decided here, so that nothing depends on the CPU that runs the interpreter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

QUIET = np.uint32(0x00400000)
DEFAULT_NAN = np.uint32(0x7FC00000)
_SIGN = np.uint32(0x80000000)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
_INF = np.uint32(0x7F800000)
F32_SMALLEST_NORMAL = np.float32(2.0**-126)


def bits(x: Array) -> Array:
    """The bits of float32 values as uint32."""
    return x.view(np.uint32)


def has_nan(x: Array) -> bool:
    """Whether any element is NaN: the maximum of an array with a NaN is one."""
    return bool(x.size) and bool(np.isnan(x.max()))


def flush(x: Array) -> Array:
    """float32 with denormals replaced by zero of their sign."""
    tiny = np.abs(x) < F32_SMALLEST_NORMAL
    if not tiny.any():
        return x
    return np.where(tiny, bits(x) & _SIGN, bits(x)).view(np.float32)


def settle_nan(result: Array, *sources: Array) -> Array:
    """``result`` with the NaN of the machine: the first operand's, made quiet; else the default NaN."""
    if not has_nan(result):
        return result
    wrong = np.isnan(result)
    value = np.broadcast_to(DEFAULT_NAN, result.shape)
    for source in reversed(sources):
        value = np.where(np.isnan(source), bits(source) | QUIET, value)
    return np.where(wrong, value, bits(result)).view(np.float32)


def fma(a: Array, b: Array, c: Array) -> Array:
    """float32 a * b + c with one rounding.

    The product is exact in float64 and the sum is rounded there; a second rounding to float32 differs from a single
    one only where the float64 sum lies halfway between two float32 numbers, or is a float32 denormal. Those elements
    are rounded to odd in float64 first (Boldo and Melquiond, IEEE Transactions on Computers 57, 2008).
    """
    product = np.multiply(a, b, dtype=np.float64)
    total = product + c
    low = total.view(np.uint64) & np.uint64(0x1FFFFFFF)
    doubtful = low == np.uint64(0x10000000)
    small = np.abs(total) < 2.0**-125
    if small.any():
        doubtful |= small & (total != 0)
    if doubtful.any():
        at = np.nonzero(doubtful)
        addend = np.broadcast_to(c, total.shape)[at].astype(np.float64)
        total[at] = to_odd(np.broadcast_to(product, total.shape)[at], addend, total[at])
    result: Array = total.astype(np.float32)
    return result


def to_odd(x: Array, y: Array, total: Array) -> Array:
    """float64 sum x + y rounded to odd; ``total`` is the sum rounded to nearest."""
    back = total - x
    error = (x - (total - back)) + (y - back)
    raw = total.view(np.int64)
    even = (raw & 1) == 0
    step = np.where((error > 0) == (total > 0), 1, -1)
    odd: Array = np.where(even & (error != 0), raw + step, raw).view(np.float64)
    return odd


def maximum(a: Array, b: Array) -> Array:
    """float32 v_max_f32 in IEEE mode: a quiet NaN gives the other operand, a signalling one its quiet form; +0 > -0."""
    return _extreme(a, b, np.maximum, np.bitwise_and)


def minimum(a: Array, b: Array) -> Array:
    """float32 v_min_f32 in IEEE mode."""
    return _extreme(a, b, np.minimum, np.bitwise_or)


def _extreme(a: Array, b: Array, choose: Any, sign_of_zero: Any) -> Array:
    result: Array = choose(a, b)
    if not result.all():
        zero = (result == 0) & (a == 0) & (b == 0)
        result = np.where(zero, sign_of_zero(bits(a), bits(b)), bits(result)).view(np.float32)
    if has_nan(result):
        raw_a, raw_b = np.broadcast_arrays(bits(a), bits(b))
        nan_a, nan_b = np.isnan(a), np.isnan(b)
        value = np.where(nan_a, raw_b, np.where(nan_b, raw_a, bits(result)))
        value = np.where(nan_b & ((raw_b & QUIET) == 0), raw_b | QUIET, value)
        value = np.where(nan_a & ((raw_a & QUIET) == 0), raw_a | QUIET, value)
        result = value.view(np.float32)
    return result


def ldexp(x: Array, exponent: int) -> Array:
    """x * 2**exponent, correctly rounded (the product with a power of two is exact in float64)."""
    scaled: Array = (x.astype(np.float64) * 2.0**exponent).astype(np.float32)
    return scaled


def exponent(x: Array) -> Array:
    """The biased exponent field of float32, int32; 0 for a denormal, 255 for Inf and NaN."""
    field: Array = ((bits(x) >> np.uint32(23)) & np.uint32(0xFF)).astype(np.int32)
    return field


# ---- 16 bits


def to_f16(x: Array, clamp: bool) -> Array:
    """float32 to float16 bits (uint16), nearest even. clamp: MODE.FP16_OVFL, a finite overflow gives the largest."""
    half = x.astype(np.float16)
    raw = half.view(np.uint16)
    if has_nan(half):
        payload = ((bits(x) >> np.uint32(13)) & np.uint32(0x3FF)).astype(np.uint16)
        sign = ((bits(x) >> np.uint32(16)) & np.uint32(0x8000)).astype(np.uint16)
        raw = np.where(np.isnan(x), sign | np.uint16(0x7E00) | payload, raw)
    if clamp:
        over = np.isinf(half) & ~np.isinf(x)
        raw = np.where(over, (raw & np.uint16(0x8000)) | np.uint16(0x7BFF), raw)
    return raw


def from_f16(raw: Array) -> Array:
    """float16 bits (uint16) to float32, exact; a NaN keeps its payload and becomes quiet."""
    half = raw.view(np.float16)
    value = half.astype(np.float32)
    if not has_nan(value):
        return value
    wide = raw.astype(np.uint32)
    nan = ((wide & np.uint32(0x8000)) << np.uint32(16)) | DEFAULT_NAN | ((wide & np.uint32(0x3FF)) << np.uint32(13))
    return np.where(np.isnan(half), nan, bits(value)).view(np.float32)


def to_bf16(x: Array) -> Array:
    """float32 to bfloat16 bits in uint32, nearest even; a NaN keeps its upper bits and becomes quiet."""
    raw = bits(x)
    rounded: Array = (raw + np.uint32(0x7FFF) + ((raw >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    if has_nan(x):
        rounded = np.where(np.isnan(x), (raw | QUIET) >> np.uint32(16), rounded)
    return rounded


# ---- 8 bits


def to_fp8(x: Array, fnuz: bool, clamp: bool, inf_is_max: bool) -> Array:
    """float32 to e4m3 codes in uint32, nearest even.

    fnuz: e4m3fnuz (gfx942: bias 8, largest 240, NaN 0x80, no -0), else e4m3fn (gfx950: bias 7, largest 448, NaN 0x7f).
    clamp: MODE.FP16_OVFL, a finite overflow gives the largest, else NaN. inf_is_max: what Inf gives under clamp.
    """
    bias, largest = (8, 0x7F) if fnuz else (7, 0x7E)
    raw = bits(x)
    magnitude = raw & _MAGNITUDE
    rounded = magnitude + np.uint32(0x7FFFF) + ((magnitude >> np.uint32(20)) & np.uint32(1))
    code = (rounded >> np.uint32(20)).astype(np.int32) - np.int32((127 - bias) << 3)
    small = magnitude.view(np.float32) < np.float32(2.0 ** (1 - bias))
    steps = np.rint(magnitude.view(np.float32) * np.float32(2.0 ** (bias + 2)))
    code = np.where(small, np.where(small, steps, 0).astype(np.int32), code)
    over = code > largest
    code = np.where(over, largest, code).astype(np.uint32)
    sign = (raw >> np.uint32(24)) & np.uint32(0x80)
    signed: Array = code | sign
    if fnuz:
        signed = np.where(code == 0, np.uint32(0), signed)
    if over.any():
        lost = over & (magnitude > _INF)
        if not clamp:
            lost = over
        elif not inf_is_max:
            lost = over & (magnitude >= _INF)
        signed = np.where(lost, np.uint32(0x80) if fnuz else sign | np.uint32(0x7F), signed)
    return signed


def from_fp8(code: Array, fnuz: bool) -> Array:
    """e4m3 codes (uint32, below 256) to float32, exact."""
    table = _table(fnuz)
    value: Array = table[code]
    return value


def _table(fnuz: bool) -> Array:
    found = _TABLES.get(fnuz)
    if found is None:
        bias = 8 if fnuz else 7
        codes = np.arange(256)
        magnitude, exp, frac = codes & 0x7F, (codes >> 3) & 15, codes & 7
        value = np.where(exp == 0, frac / 8 * 2.0 ** (1 - bias), (1 + frac / 8) * 2.0 ** (exp - bias))
        value = np.where(codes & 0x80, -value, value).astype(np.float32)
        nan = codes == 0x80 if fnuz else magnitude == 0x7F
        found = _TABLES[fnuz] = np.where(nan, DEFAULT_NAN, bits(value)).view(np.float32)
    return found


_TABLES: dict[bool, Array] = {}
