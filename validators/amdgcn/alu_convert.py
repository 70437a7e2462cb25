"""Vector operations that convert or pack: integers, float16, bfloat16, e4m3."""

from __future__ import annotations

import numpy as np

from validators.amdgcn import floats
from validators.amdgcn.floats import Array, fma
from validators.amdgcn.op import Op, Table
from validators.amdgcn.state import State

_U = np.uint32


def to_signed(x: Array) -> Array:
    """v_cvt_i32_f32: toward zero, saturating; NaN gives 0."""
    value = np.trunc(np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=2.0**40, neginf=-(2.0**40)))
    found: Array = np.clip(value, -(2.0**31), 2.0**31 - 1).astype(np.int32).view(np.uint32)
    return found


def to_unsigned(x: Array) -> Array:
    """v_cvt_u32_f32: toward zero, saturating; NaN gives 0."""
    value = np.trunc(np.nan_to_num(x.astype(np.float64), nan=0.0, posinf=2.0**40, neginf=0.0))
    found: Array = np.clip(value, 0, 2.0**32 - 1).astype(np.uint32)
    return found


def to_half(state: State, x: Array) -> Array:
    """v_cvt_f16_f32."""
    return floats.to_f16(x, state.clamp16)


def pair_of_half(state: State, a: Array, b: Array) -> Array:
    """v_cvt_pk_f16_f32, to nearest."""
    first, second = (floats.to_f16(x, state.clamp16).astype(np.uint32) for x in (a, b))
    found: Array = first | (second << _U(16))
    return found


def pair_of_bf16(a: Array, b: Array) -> Array:
    """v_cvt_pk_bf16_f32."""
    found: Array = floats.to_bf16(a) | (floats.to_bf16(b) << _U(16))
    return found


def pair_of_fp8(state: State, a: Array, b: Array) -> Array:
    """Two codes in 16 bits, the first one low; MODE.FP16_OVFL saturates."""
    inf_is_max = state.policy.fp8_inf == "max"
    if state.clamp16 and any(np.isinf(x).any() for x in (a, b)):
        state.touched.add("fp8-inf")
    first, second = (floats.to_fp8(x, state.fnuz, state.clamp16, inf_is_max) for x in (a, b))
    found: Array = first | (second << _U(8))
    return found


def pair_of_scaled_fp8(state: State, a: Array, b: Array, scale: Array) -> Array:
    """v_cvt_scalef32_pk_fp8_f32; only the scale 1.0 is implemented."""
    if (scale != 1.0).any():
        raise state.fault("a scale other than 1.0 is not implemented")
    return pair_of_fp8(state, a, b)


def from_fp8_pair(state: State, raw: Array) -> Array:
    """v_cvt_pk_f32_fp8: two float32 of the two codes of 16 bits, as one uint64."""
    first, second = (floats.from_fp8(code & np.uint16(0xFF), state.fnuz) for code in (raw, raw >> np.uint16(8)))
    found: Array = floats.bits(first) | (floats.bits(second).astype(np.uint64) << np.uint64(32))
    return found


# ---- float16


def _half(x: Array, state: State, sources: tuple[Array, ...]) -> Array:
    """float32 ``x`` (the exact or once rounded result) as float16, with MODE.FP16_OVFL and the rule for NaN."""
    raw = floats.to_f16(x, False)
    if state.clamp16:
        infinite_source = np.isinf(sources[0])
        for source in sources[1:]:
            infinite_source = infinite_source | np.isinf(source)
        over = ((raw & np.uint16(0x7FFF)) == np.uint16(0x7C00)) & ~infinite_source
        raw = np.where(over, (raw & np.uint16(0x8000)) | np.uint16(0x7BFF), raw)
    return raw


def half_add(state: State, a: Array, b: Array) -> Array:
    """v_add_f16 on float16 bits. float32 holds enough digits that rounding twice is rounding once."""
    x, y = floats.from_f16(a), floats.from_f16(b)
    return _half(floats.settle_nan(x + y, x, y), state, (x, y))


def half_subtract(state: State, a: Array, b: Array) -> Array:
    """v_sub_f16."""
    return half_add(state, a, b ^ np.uint16(0x8000))


def half_multiply(state: State, a: Array, b: Array) -> Array:
    """v_mul_f16."""
    x, y = floats.from_f16(a), floats.from_f16(b)
    return _half(floats.settle_nan(x * y, x, y), state, (x, y))


def half_maximum(state: State, a: Array, b: Array) -> Array:
    """v_max_f16."""
    return floats.to_f16(floats.maximum(floats.from_f16(a), floats.from_f16(b)), False)


def half_minimum(state: State, a: Array, b: Array) -> Array:
    """v_min_f16."""
    return floats.to_f16(floats.minimum(floats.from_f16(a), floats.from_f16(b)), False)


def lanes_of_half(op: Op) -> Op:
    """The packed form of an operation on float16: both halves of a register."""

    def both(state: State, *sources: Array) -> Array:
        low = op.fn(state, *(x.astype(np.uint16) for x in sources))
        high = op.fn(state, *((x >> _U(16)).astype(np.uint16) for x in sources))
        found: Array = low.astype(np.uint32) | (high.astype(np.uint32) << _U(16))
        return found

    return Op(both, "u32", ("pk16",) * len(op.ins), context=True)


_H = ("u16", "u16")
_HALF = {
    "v_add_f16": Op(half_add, "u16", _H, context=True),
    "v_sub_f16": Op(half_subtract, "u16", _H, context=True),
    "v_mul_f16": Op(half_multiply, "u16", _H, context=True),
    "v_max_f16": Op(half_maximum, "u16", _H, context=True),
    "v_min_f16": Op(half_minimum, "u16", _H, context=True),
}
_PACKED = {
    "v_pk_add_f16": lanes_of_half(_HALF["v_add_f16"]),
    "v_pk_mul_f16": lanes_of_half(_HALF["v_mul_f16"]),
    "v_pk_max_f16": lanes_of_half(_HALF["v_max_f16"]),
    "v_pk_min_f16": lanes_of_half(_HALF["v_min_f16"]),
    "v_pk_add_f32": Op(np.add, "pk32", ("pk32", "pk32"), arith=True, nan=True),
    "v_pk_mul_f32": Op(np.multiply, "pk32", ("pk32", "pk32"), arith=True, nan=True),
    "v_pk_fma_f32": Op(fma, "pk32", ("pk32", "pk32", "pk32"), arith=True, nan=True),
}
_CONVERT = {
    "v_cvt_f32_i32": Op(lambda a: a.view(np.int32).astype(np.float32), "f32", ("u32",)),
    "v_cvt_f32_u32": Op(lambda a: a.astype(np.float32), "f32", ("u32",)),
    "v_cvt_i32_f32": Op(to_signed, "u32", ("f32",)),
    "v_cvt_u32_f32": Op(to_unsigned, "u32", ("f32",)),
    "v_cvt_f32_ubyte0": Op(lambda a: (a & _U(0xFF)).astype(np.float32), "f32", ("u32",)),
    "v_cvt_f32_ubyte1": Op(lambda a: ((a >> _U(8)) & _U(0xFF)).astype(np.float32), "f32", ("u32",)),
    "v_cvt_f32_ubyte2": Op(lambda a: ((a >> _U(16)) & _U(0xFF)).astype(np.float32), "f32", ("u32",)),
    "v_cvt_f32_ubyte3": Op(lambda a: (a >> _U(24)).astype(np.float32), "f32", ("u32",)),
    "v_cvt_f16_f32": Op(to_half, "u16", ("f32",), context=True),
    "v_cvt_f32_f16": Op(floats.from_f16, "f32", ("u16",)),
    "v_cvt_f32_bf16": Op(lambda a: (a.astype(np.uint32) << _U(16)).view(np.float32), "f32", ("u16",)),
    "v_cvt_pk_f16_f32": Op(pair_of_half, "u32", ("f32", "f32"), context=True),
    "v_cvt_pk_bf16_f32": Op(pair_of_bf16, "u32", ("f32", "f32")),
    "v_pack_b32_f16": Op(lambda a, b: a.astype(np.uint32) | (b.astype(np.uint32) << _U(16)), "u32", _H),
    "v_cvt_f32_fp8": Op(lambda state, a: floats.from_fp8(a & _U(0xFF), state.fnuz), "f32", ("u32",), context=True),
    "v_cvt_pk_f32_fp8": Op(from_fp8_pair, "u64", ("u16",), context=True),
    "v_cvt_pk_fp8_f32": Op(pair_of_fp8, "word", ("f32", "f32"), context=True, policy="fp8-inf"),
    "v_cvt_scalef32_pk_fp8_f32": Op(pair_of_scaled_fp8, "word", ("f32", "f32", "f32"), context=True, policy="fp8-inf"),
}

OPS: Table = {**_HALF, **_PACKED, **_CONVERT}
