"""Vector operations on float32: arithmetic, comparison helpers, division steps, transcendental units, rounding."""

from __future__ import annotations

from typing import Any

import numpy as np

from validators.amdgcn import floats
from validators.amdgcn.floats import Array, bits, exponent, fma, ldexp, maximum, minimum
from validators.amdgcn.op import Op, Table, f32
from validators.amdgcn.state import State

_F = np.float32
_SIGN, _INF = np.uint32(0x80000000), np.uint32(0x7F800000)


def _float(raw: Array) -> Array:
    return raw.view(np.float32)


def median(a: Array, b: Array, c: Array) -> Array:
    """v_med3_f32: the middle one; with a NaN the smallest of the three, as AMD's pseudo-code and LLVM have it."""
    middle = maximum(minimum(a, b), minimum(maximum(a, b), c))
    nan = np.isnan(a) | np.isnan(b) | np.isnan(c)
    return _float(np.where(nan, bits(minimum(minimum(a, b), c)), bits(middle))) if nan.any() else middle


def _special(state: State, x: Array, exact: Array) -> Array:
    """float64 ``exact`` as a transcendental unit returns it: rounded, then moved by the policy's ulps."""
    result = exact.astype(_F)
    state.touched.add("ulp")
    if _denormal(result).any() or _denormal(x).any():
        state.touched.add("special-denormals")
    if state.policy.ulp:
        moves = np.isfinite(result) & (result != 0) & (result.astype(np.float64) != exact)
        result = _float(np.where(moves, bits(result) + np.int32(state.policy.ulp).view(np.uint32), bits(result)))
    if state.policy.flush_special:
        result = floats.flush(result)
    return floats.settle_nan(result, x)


def _operand(state: State, x: Array) -> Array:
    return floats.flush(x) if state.policy.flush_special else x


def reciprocal(state: State, x: Array) -> Array:
    """v_rcp_f32."""
    return _special(state, x, 1.0 / _operand(state, x).astype(np.float64))


def reciprocal_root(state: State, x: Array) -> Array:
    """v_rsq_f32: -0 gives -Inf, a negative number the default NaN."""
    return _special(state, x, 1.0 / np.sqrt(_operand(state, x).astype(np.float64)))


def root(state: State, x: Array) -> Array:
    """v_sqrt_f32."""
    return _special(state, x, np.sqrt(_operand(state, x).astype(np.float64)))


def power_of_two(state: State, x: Array) -> Array:
    """v_exp_f32: 2**x."""
    return _special(state, x, np.exp2(_operand(state, x).astype(np.float64)))


def logarithm(state: State, x: Array) -> Array:
    """v_log_f32: log2."""
    return _special(state, x, np.log2(_operand(state, x).astype(np.float64)))


def _denormal(x: Array) -> Array:
    found: Array = (np.abs(x) < floats.F32_SMALLEST_NORMAL) & (x != 0)
    return found


def division_scale(source: Array, denominator: Array, numerator: Array) -> tuple[Array, Array]:
    """v_div_scale_f32: (source scaled so that the division's steps cannot leave the range, lanes to scale back).

    The rules in the order of AMD's pseudo-code, which cannot be meant as it is written in two places: it asks whether
    1/d is a float64 denormal, which no float32 d gives, and where 1/d and n/d both are denormals it multiplies a
    denominator near the largest number by 2**64, which overflows. Read so, quotients are those of IEEE (a test).
    """
    n, d = numerator, denominator
    with np.errstate(all="ignore"):
        inverse = _denormal((1.0 / d.astype(np.float64)).astype(_F))
        quotient = _denormal((n.astype(np.float64) / d.astype(np.float64)).astype(_F))
    is_d, is_n = source == d, source == n
    rules: list[tuple[Array, Any, bool]] = [
        ((n == 0) | (d == 0), "nan", False),
        (exponent(n) - exponent(d) >= 96, np.where(is_d, 64, 0), True),
        (_denormal(d), 64, False),
        (inverse & quotient, np.where(is_d, -64, 0), True),
        (inverse, -64, False),
        (quotient, np.where(is_n, 64, 0), True),
        (exponent(n) <= 23, 64, False),
    ]
    shape = np.broadcast_shapes(source.shape, d.shape, n.shape)
    power, vcc, open_ = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool), np.ones(shape, dtype=bool)
    invalid = np.zeros(shape, dtype=bool)
    for holds, by, flag in rules:
        now = open_ & holds
        if not now.any():
            continue
        if isinstance(by, str):
            invalid = now
        else:
            power = np.where(now, by, power)
        vcc = vcc | now if flag else vcc
        open_ = open_ & ~holds
    scaled = np.where(power == 64, ldexp(source, 64), np.where(power == -64, ldexp(source, -64), source))
    raw = np.where(invalid, floats.DEFAULT_NAN, bits(np.ascontiguousarray(scaled)))
    return _float(raw), vcc


def division_fma(a: Array, b: Array, c: Array, vcc: Array) -> Array:
    """v_div_fmas_f32: a * b + c, scaled back by 2**64 or 2**-64 where VCC is set, by the size of c."""
    value = fma(a, b, c)
    if not vcc.any():
        return value
    large = exponent(c) > 127
    back = np.where(large, ldexp(value, 64), ldexp(value, -64))
    return np.where(vcc, back, value)


def division_fixup(quotient: Array, denominator: Array, numerator: Array) -> Array:
    """v_div_fixup_f32: the special cases of a division; else the quotient with the right sign.

    AMD's pseudo-code asks here for a denominator whose exponent is 255, which an earlier line has dealt with; a
    quotient is meant, whose steps have overflowed. What it calls underflow and overflow is 0 and Inf when rounding to
    nearest.
    """
    q, d, n = (bits(x) for x in np.broadcast_arrays(quotient, denominator, numerator))
    fd, fn = _float(d), _float(n)
    sign = (d ^ n) & _SIGN
    result = sign | (q & ~_SIGN)
    result = np.where(exponent(_float(q)) == 255, sign | _INF, result)
    result = np.where(exponent(fn) - exponent(fd) < -150, sign, result)
    result = np.where(np.isinf(fd) | (fn == 0), sign, result)
    result = np.where((fd == 0) | np.isinf(fn), sign | _INF, result)
    both = ((fd == 0) & (fn == 0)) | (np.isinf(fd) & np.isinf(fn))
    result = np.where(both, np.uint32(0xFFC00000), result)
    result = np.where(np.isnan(fd), d | floats.QUIET, result)
    return _float(np.where(np.isnan(fn), n | floats.QUIET, result))


def fraction(x: Array) -> Array:
    """v_fract_f32: x - floor(x), below 1."""
    found: Array = np.minimum((x.astype(np.float64) - np.floor(x.astype(np.float64))).astype(_F), _F(1 - 2.0**-24))
    return found


def scale_by_power(x: Array, power: Array) -> Array:
    """v_ldexp_f32."""
    clipped = np.clip(power.view(np.int32), -400, 400).astype(np.float64)
    found: Array = (x.astype(np.float64) * np.exp2(clipped)).astype(_F)
    return found


def class_of(x: Array, mask: Array) -> Array:
    """v_cmp_class_f32: whether the class of x is among the ten bits of ``mask``."""
    raw = bits(x)
    negative, magnitude = (raw & _SIGN) != 0, raw & ~_SIGN
    quiet = (raw & floats.QUIET) != 0
    nan, inf, zero = magnitude > _INF, magnitude == _INF, magnitude == 0
    small = (magnitude < np.uint32(0x00800000)) & ~zero
    normal = ~nan & ~inf & ~zero & ~small
    parts = [nan & ~quiet, nan & quiet, inf & negative, normal & negative, small & negative, zero & negative]
    parts += [zero & ~negative, small & ~negative, normal & ~negative, inf & ~negative]
    result: Array = np.zeros(np.broadcast_shapes(x.shape, mask.shape), dtype=bool)
    for at, part in enumerate(parts):
        result = result | (part & ((mask >> np.uint32(at)) & np.uint32(1)).astype(bool))
    return result


def _unit(fn: Any, policy: str) -> Op:
    return Op(fn, "f32", ("f32",), arith=True, context=True, policy=policy)


_THREE = ("f32",) * 3

OPS: Table = {
    "v_add_f32": f32(np.add),
    "v_sub_f32": f32(np.subtract),
    "v_subrev_f32": f32(lambda a, b: b - a),
    "v_mul_f32": f32(np.multiply),
    "v_max_f32": Op(maximum, "f32", ("f32", "f32"), arith=True),
    "v_min_f32": Op(minimum, "f32", ("f32", "f32"), arith=True),
    "v_fma_f32": f32(fma, 3),
    "v_fmac_f32": Op(fma, "f32", ("f32", "f32"), arith=True, nan=True, old=True),
    "v_fmaak_f32": f32(fma, 3),
    "v_fmamk_f32": f32(fma, 3),
    "v_max3_f32": Op(lambda a, b, c: maximum(maximum(a, b), c), "f32", _THREE, arith=True),
    "v_min3_f32": Op(lambda a, b, c: minimum(minimum(a, b), c), "f32", _THREE, arith=True),
    "v_med3_f32": Op(median, "f32", _THREE, arith=True, policy="med3-nan"),
    "v_rcp_f32": _unit(reciprocal, "ulp"),
    "v_rcp_iflag_f32": _unit(reciprocal, "ulp"),
    "v_rsq_f32": _unit(reciprocal_root, "ulp"),
    "v_sqrt_f32": _unit(root, "ulp"),
    "v_exp_f32": _unit(power_of_two, "ulp"),
    "v_log_f32": _unit(logarithm, "ulp"),
    "v_div_scale_f32": Op(division_scale, "f32", _THREE, second=True),
    "v_div_fmas_f32": Op(division_fma, "f32", (*_THREE, "mask"), arith=True, nan=True),
    "v_div_fixup_f32": Op(division_fixup, "f32", _THREE),
    "v_floor_f32": f32(np.floor, 1),
    "v_ceil_f32": f32(np.ceil, 1),
    "v_trunc_f32": f32(np.trunc, 1),
    "v_rndne_f32": f32(np.rint, 1),
    "v_fract_f32": f32(fraction, 1),
    "v_ldexp_f32": Op(scale_by_power, "f32", ("f32", "u32"), arith=True),
    "v_cmp_class_f32": Op(class_of, "mask", ("f32", "u32")),
}
