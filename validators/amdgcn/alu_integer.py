"""Vector operations on integers: arithmetic, shifts, bit fields, permutes and selects."""

from __future__ import annotations

from typing import Any

import numpy as np

from validators.amdgcn.floats import Array
from validators.amdgcn.op import Op, Table, u32

_U = np.uint32
_U64 = np.uint64


def shift_left(a: Array, by: Array) -> Array:
    """a << by[4:0]."""
    found: Array = a << (by & _U(31))
    return found


def shift_right(a: Array, by: Array) -> Array:
    """a >> by[4:0], zeros come in."""
    found: Array = a >> (by & _U(31))
    return found


def shift_arithmetic(a: Array, by: Array) -> Array:
    """a >> by[4:0], the sign comes in."""
    found: Array = (a.view(np.int32) >> (by & _U(31)).view(np.int32)).view(np.uint32)
    return found


def bit_reverse(a: Array) -> Array:
    """Bit 0 becomes bit 31."""
    for mask, by in ((0x55555555, 1), (0x33333333, 2), (0x0F0F0F0F, 4), (0x00FF00FF, 8)):
        a = ((a >> _U(by)) & _U(mask)) | ((a & _U(mask)) << _U(by))
    found: Array = (a >> _U(16)) | (a << _U(16))
    return found


def field_unsigned(a: Array, offset: Array, width: Array) -> Array:
    """Bits [offset, offset + width) of a; a width of 0 gives 0."""
    mask = (_U(1) << (width & _U(31))) - _U(1)
    found: Array = (a >> (offset & _U(31))) & mask
    return found


def field_signed(a: Array, offset: Array, width: Array) -> Array:
    """The same, its uppermost bit extended."""
    width = width & _U(31)
    sign = np.where(width == 0, _U(0), _U(1) << ((width - _U(1)) & _U(31)))
    field = field_unsigned(a, offset, width)
    found: Array = (field ^ sign) - sign
    return found


def field_insert(mask: Array, a: Array, b: Array) -> Array:
    """Bits of a where mask, else of b."""
    found: Array = (mask & a) | (~mask & b)
    return found


def align_bits(high: Array, low: Array, by: Array) -> Array:
    """The low 32 bits of (high:low) >> by[4:0]."""
    pair = (high.astype(_U64) << _U64(32)) | low
    found: Array = (pair >> (by & _U(31)).astype(_U64)).astype(np.uint32)
    return found


def permute_bytes(high: Array, low: Array, selector: Array) -> Array:
    """v_perm_b32: each byte of the selector names a byte of (high:low), a sign, 0x00 (12) or 0xff (13 and above)."""
    pair = (high.astype(_U64) << _U64(32)) | low
    result: Array = np.zeros(np.broadcast_shapes(pair.shape, selector.shape), dtype=np.uint32)
    for at in (0, 8, 16, 24):
        wanted = (selector >> _U(at)) & _U(0xFF)
        byte = ((pair >> ((wanted & _U(7)).astype(_U64) << _U64(3))) & _U64(0xFF)).astype(np.uint32)
        if (wanted > 7).any():
            sign_at = (((wanted & _U(3)) << _U(4)) + _U(15)).astype(_U64)
            sign = np.where((pair >> sign_at) & _U64(1), _U(0xFF), _U(0))
            byte = np.where(wanted <= 7, byte, np.where(wanted < 12, sign, np.where(wanted == 12, _U(0), _U(0xFF))))
        result |= byte << _U(at)
    return result


def bit_operation(a: Array, b: Array, c: Array, table: int) -> Array:
    """v_bitop3: bit (4a + 2b + c) of ``table``, for each bit of the operands."""
    result = np.zeros(np.broadcast_shapes(a.shape, b.shape, c.shape), dtype=np.uint32)
    for at in range(8):
        if table >> at & 1:
            result |= (a if at & 4 else ~a) & (b if at & 2 else ~b) & (c if at & 1 else ~c)
    return result


def multiply_high(a: Array, b: Array) -> Array:
    """Upper 32 bits of the unsigned product."""
    found: Array = ((a.astype(_U64) * b.astype(_U64)) >> _U64(32)).astype(np.uint32)
    return found


def multiply_high_signed(a: Array, b: Array) -> Array:
    """Upper 32 bits of the signed product."""
    product = a.view(np.int32).astype(np.int64) * b.view(np.int32).astype(np.int64)
    found: Array = (product >> np.int64(32)).astype(np.int32).view(np.uint32)
    return found


def _low24(a: Array) -> Array:
    found: Array = a & _U(0xFFFFFF)
    return found


def _signed24(a: Array) -> Array:
    found: Array = (_low24(a) ^ _U(0x800000)) - _U(0x800000)
    return found


def first_bit_low(a: Array) -> Array:
    """v_ffbl_b32: number of the lowest bit that is set; -1 for zero."""
    return np.where(a == 0, _U(0xFFFFFFFF), _count((a & (~a + _U(1))) - _U(1)))


def first_bit_high(a: Array) -> Array:
    """v_ffbh_u32: zeros above the highest bit that is set; -1 for zero."""
    return first_bit_low(bit_reverse(a))


def _count(a: Array) -> Array:
    a = a - ((a >> _U(1)) & _U(0x55555555))
    a = (a & _U(0x33333333)) + ((a >> _U(2)) & _U(0x33333333))
    a = (a + (a >> _U(4))) & _U(0x0F0F0F0F)
    found: Array = (a * _U(0x01010101)) >> _U(24)
    return found


def add_carry(a: Array, b: Array, carry: Array | None = None) -> tuple[Array, Array]:
    """(sum, carry out)."""
    total = a.astype(_U64) + b.astype(_U64) + (_U64(0) if carry is None else carry.astype(_U64))
    return total.astype(np.uint32), total > _U64(0xFFFFFFFF)


def subtract_borrow(a: Array, b: Array, borrow: Array | None = None) -> tuple[Array, Array]:
    """(a - b - borrow, borrow out)."""
    taken = b.astype(_U64) + (_U64(0) if borrow is None else borrow.astype(_U64))
    return (a.astype(_U64) - taken).astype(np.uint32), taken > a.astype(_U64)


def multiply_add_64(a: Array, b: Array, c: Array) -> tuple[Array, Array]:
    """v_mad_u64_u32: (a * b + c, carry out of 64 bits)."""
    product = a.astype(_U64) * b.astype(_U64)
    total = product + c
    return total, total < product


def _signed(fn: Any) -> Any:
    return lambda *sources: fn(*(source.view(np.int32) for source in sources)).view(np.uint32)


def _median(a: Array, b: Array, c: Array) -> Array:
    found: Array = np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))
    return found


_PLAIN: Table = {
    "v_mov_b32": u32(lambda a: a, 1),
    "v_not_b32": u32(lambda a: ~a, 1),
    "v_bfrev_b32": u32(bit_reverse, 1),
    "v_ffbl_b32": u32(first_bit_low, 1),
    "v_ffbh_u32": u32(first_bit_high, 1),
    "v_add_u32": u32(lambda a, b: a + b),
    "v_sub_u32": u32(lambda a, b: a - b),
    "v_subrev_u32": u32(lambda a, b: b - a),
    "v_and_b32": u32(lambda a, b: a & b),
    "v_or_b32": u32(lambda a, b: a | b),
    "v_xor_b32": u32(lambda a, b: a ^ b),
    "v_xnor_b32": u32(lambda a, b: ~(a ^ b)),
    "v_lshlrev_b32": u32(lambda by, a: shift_left(a, by)),
    "v_lshrrev_b32": u32(lambda by, a: shift_right(a, by)),
    "v_ashrrev_i32": u32(lambda by, a: shift_arithmetic(a, by)),
    "v_max_u32": u32(np.maximum),
    "v_min_u32": u32(np.minimum),
    "v_max_i32": u32(_signed(np.maximum)),
    "v_min_i32": u32(_signed(np.minimum)),
    "v_mul_lo_u32": u32(lambda a, b: a * b),
    "v_mul_hi_u32": u32(multiply_high),
    "v_mul_hi_i32": u32(multiply_high_signed),
    "v_mul_u32_u24": u32(lambda a, b: _low24(a) * _low24(b)),
    "v_mul_i32_i24": u32(lambda a, b: _signed24(a) * _signed24(b)),
    "v_bcnt_u32_b32": u32(lambda a, b: _count(a) + b),
    "v_add3_u32": u32(lambda a, b, c: a + b + c, 3),
    "v_add_lshl_u32": u32(lambda a, b, c: shift_left(a + b, c), 3),
    "v_lshl_add_u32": u32(lambda a, b, c: shift_left(a, b) + c, 3),
    "v_lshl_or_b32": u32(lambda a, b, c: shift_left(a, b) | c, 3),
    "v_and_or_b32": u32(lambda a, b, c: (a & b) | c, 3),
    "v_or3_b32": u32(lambda a, b, c: a | b | c, 3),
    "v_xad_u32": u32(lambda a, b, c: (a ^ b) + c, 3),
    "v_bfe_u32": u32(field_unsigned, 3),
    "v_bfe_i32": u32(field_signed, 3),
    "v_bfi_b32": u32(field_insert, 3),
    "v_alignbit_b32": u32(align_bits, 3),
    "v_alignbyte_b32": u32(lambda a, b, c: align_bits(a, b, (c & _U(3)) << _U(3)), 3),
    "v_perm_b32": u32(permute_bytes, 3),
    "v_mad_u32_u24": u32(lambda a, b, c: _low24(a) * _low24(b) + c, 3),
    "v_mad_i32_i24": u32(lambda a, b, c: _signed24(a) * _signed24(b) + c, 3),
    "v_max3_u32": u32(lambda a, b, c: np.maximum(np.maximum(a, b), c), 3),
    "v_min3_u32": u32(lambda a, b, c: np.minimum(np.minimum(a, b), c), 3),
    "v_med3_u32": u32(_median, 3),
    "v_max3_i32": u32(_signed(lambda a, b, c: np.maximum(np.maximum(a, b), c)), 3),
    "v_min3_i32": u32(_signed(lambda a, b, c: np.minimum(np.minimum(a, b), c)), 3),
    "v_med3_i32": u32(_signed(_median), 3),
}

_WIDE: Table = {
    "v_cndmask_b32": Op(lambda a, b, m: np.where(m, b, a), "u32", ("u32", "u32", "mask")),
    "v_add_co_u32": Op(add_carry, "u32", ("u32", "u32"), second=True),
    "v_sub_co_u32": Op(subtract_borrow, "u32", ("u32", "u32"), second=True),
    "v_subrev_co_u32": Op(lambda a, b: subtract_borrow(b, a), "u32", ("u32", "u32"), second=True),
    "v_addc_co_u32": Op(add_carry, "u32", ("u32", "u32", "mask"), second=True),
    "v_subb_co_u32": Op(subtract_borrow, "u32", ("u32", "u32", "mask"), second=True),
    "v_mad_u64_u32": Op(multiply_add_64, "u64", ("u32", "u32", "u64"), second=True),
    "v_lshlrev_b64": Op(lambda by, a: a << (by & _U(63)).astype(_U64), "u64", ("u32", "u64")),
    "v_lshrrev_b64": Op(lambda by, a: a >> (by & _U(63)).astype(_U64), "u64", ("u32", "u64")),
    "v_ashrrev_i64": Op(lambda by, a: a >> (by & _U(63)).astype(np.int64), "i64", ("u32", "i64")),
    "v_lshl_add_u64": Op(lambda a, by, c: (a << (by & _U(7)).astype(_U64)) + c, "u64", ("u64", "u32", "u64")),
    "v_mov_b64": Op(lambda a: a, "u64", ("u64",)),
}

_HALF: Table = {
    "v_add_u16": Op(lambda a, b: a + b, "u16", ("u16", "u16")),
    "v_sub_u16": Op(lambda a, b: a - b, "u16", ("u16", "u16")),
    "v_mul_lo_u16": Op(lambda a, b: a * b, "u16", ("u16", "u16")),
    "v_lshlrev_b16": Op(lambda by, a: a << (by & np.uint16(15)), "u16", ("u16", "u16")),
    "v_lshrrev_b16": Op(lambda by, a: a >> (by & np.uint16(15)), "u16", ("u16", "u16")),
    "v_max_u16": Op(np.maximum, "u16", ("u16", "u16")),
    "v_min_u16": Op(np.minimum, "u16", ("u16", "u16")),
}

OPS: Table = {**_PLAIN, **_WIDE, **_HALF}
