"""Scalar operations: pure functions of uint32 or uint64 [waves]; most also say what SCC becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from validators.amdgcn.alu_integer import (
    _count,
    add_carry,
    bit_reverse,
    field_signed,
    field_unsigned,
    first_bit_high,
    first_bit_low,
    multiply_high,
    multiply_high_signed,
    subtract_borrow,
)
from validators.amdgcn.floats import Array

_U, _U64, _I = np.uint32, np.uint64, np.int32


@dataclass(frozen=True)
class ScalarOp:
    """ins, out: widths in bits. scc: "" (kept), "nonzero" (of the result) or "second" (the function's second result).
    reads_scc: SCC, bool [waves], is the last argument."""

    fn: Callable[..., Any]
    out: int
    ins: tuple[int, ...]
    scc: str = ""
    reads_scc: bool = False


def _overflow_add(a: Array, b: Array) -> tuple[Array, Array]:
    total = a + b
    return total, ((a ^ total) & (b ^ total) & _U(0x80000000)) != 0


def _overflow_subtract(a: Array, b: Array) -> tuple[Array, Array]:
    total = a - b
    return total, ((a ^ b) & (a ^ total) & _U(0x80000000)) != 0


def _shifted_add(by: int) -> Callable[[Array, Array], tuple[Array, Array]]:
    def add(a: Array, b: Array) -> tuple[Array, Array]:
        total = (a.astype(_U64) << _U64(by)) + b
        return total.astype(np.uint32), total > _U64(0xFFFFFFFF)

    return add


def _extreme(signed: bool, larger: bool) -> Callable[[Array, Array], tuple[Array, Array]]:
    def choose(a: Array, b: Array) -> tuple[Array, Array]:
        x, y = (a.view(_I), b.view(_I)) if signed else (a, b)
        first = x > y if larger else x < y
        return np.where(first, a, b), first

    return choose


def _field(a: Array, where: Array) -> tuple[Array, Array]:
    return where & _U(31), (where >> _U(16)) & _U(0x7F)


def _bfe_unsigned(a: Array, where: Array) -> Array:
    offset, width = _field(a, where)
    return np.where(width >= 32, a >> offset, field_unsigned(a, offset, width))


def _bfe_signed(a: Array, where: Array) -> Array:
    offset, width = _field(a, where)
    return np.where(width >= 32, (a.view(_I) >> offset.view(_I)).view(_U), field_signed(a, offset, width))


def _count64(a: Array) -> Array:
    found: Array = _count(a.astype(_U)) + _count((a >> _U64(32)).astype(_U))
    return found


def _lowest64(a: Array) -> Array:
    low, high = a.astype(_U), (a >> _U64(32)).astype(_U)
    upper = first_bit_low(high)
    return np.where(low != 0, first_bit_low(low), np.where(high != 0, upper + _U(32), _U(0xFFFFFFFF)))


def _highest64(a: Array) -> Array:
    low, high = a.astype(_U), (a >> _U64(32)).astype(_U)
    lower = first_bit_high(low)
    return np.where(high != 0, first_bit_high(high), np.where(low != 0, lower + _U(32), _U(0xFFFFFFFF)))


def _sign_extend(width: int) -> Callable[[Array], Array]:
    sign = _U(1 << (width - 1))
    return lambda a: ((a & _U((1 << width) - 1)) ^ sign) - sign


_BITWISE: dict[str, Callable[[Array, Array], Array]] = {
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "andn2": lambda a, b: a & ~b,
    "orn2": lambda a, b: a | ~b,
    "nand": lambda a, b: ~(a & b),
    "nor": lambda a, b: ~(a | b),
    "xnor": lambda a, b: ~(a ^ b),
}
_PAIR = (32, 32)

OPS: dict[str, ScalarOp] = {
    **{f"s_{name}_b32": ScalarOp(fn, 32, _PAIR, "nonzero") for name, fn in _BITWISE.items()},
    **{f"s_{name}_b64": ScalarOp(fn, 64, (64, 64), "nonzero") for name, fn in _BITWISE.items()},
    "s_mov_b32": ScalarOp(lambda a: a, 32, (32,)),
    "s_mov_b64": ScalarOp(lambda a: a, 64, (64,)),
    "s_movk_i32": ScalarOp(lambda a: a, 32, (16,)),
    "s_not_b32": ScalarOp(lambda a: ~a, 32, (32,), "nonzero"),
    "s_not_b64": ScalarOp(lambda a: ~a, 64, (64,), "nonzero"),
    "s_brev_b32": ScalarOp(bit_reverse, 32, (32,)),
    "s_bcnt1_i32_b32": ScalarOp(_count, 32, (32,), "nonzero"),
    "s_bcnt1_i32_b64": ScalarOp(_count64, 32, (64,), "nonzero"),
    "s_ff1_i32_b32": ScalarOp(first_bit_low, 32, (32,)),
    "s_ff1_i32_b64": ScalarOp(_lowest64, 32, (64,)),
    "s_flbit_i32_b32": ScalarOp(first_bit_high, 32, (32,)),
    "s_flbit_i32_b64": ScalarOp(_highest64, 32, (64,)),
    "s_sext_i32_i8": ScalarOp(_sign_extend(8), 32, (32,)),
    "s_sext_i32_i16": ScalarOp(_sign_extend(16), 32, (32,)),
    "s_abs_i32": ScalarOp(lambda a: np.where(a.view(_I) < 0, ~a + _U(1), a), 32, (32,), "nonzero"),
    "s_add_u32": ScalarOp(add_carry, 32, _PAIR, "second"),
    "s_sub_u32": ScalarOp(subtract_borrow, 32, _PAIR, "second"),
    "s_addc_u32": ScalarOp(add_carry, 32, _PAIR, "second", reads_scc=True),
    "s_subb_u32": ScalarOp(subtract_borrow, 32, _PAIR, "second", reads_scc=True),
    "s_add_i32": ScalarOp(_overflow_add, 32, _PAIR, "second"),
    "s_sub_i32": ScalarOp(_overflow_subtract, 32, _PAIR, "second"),
    "s_addk_i32": ScalarOp(_overflow_add, 32, (32, 16), "second"),
    "s_mulk_i32": ScalarOp(lambda a, b: a * b, 32, (32, 16)),
    "s_mul_i32": ScalarOp(lambda a, b: a * b, 32, _PAIR),
    "s_mul_hi_u32": ScalarOp(multiply_high, 32, _PAIR),
    "s_mul_hi_i32": ScalarOp(multiply_high_signed, 32, _PAIR),
    "s_min_i32": ScalarOp(_extreme(True, False), 32, _PAIR, "second"),
    "s_min_u32": ScalarOp(_extreme(False, False), 32, _PAIR, "second"),
    "s_max_i32": ScalarOp(_extreme(True, True), 32, _PAIR, "second"),
    "s_max_u32": ScalarOp(_extreme(False, True), 32, _PAIR, "second"),
    "s_cselect_b32": ScalarOp(lambda a, b, c: np.where(c, a, b), 32, _PAIR, reads_scc=True),
    "s_cselect_b64": ScalarOp(lambda a, b, c: np.where(c, a, b), 64, (64, 64), reads_scc=True),
    "s_lshl_b32": ScalarOp(lambda a, b: a << (b & _U(31)), 32, _PAIR, "nonzero"),
    "s_lshr_b32": ScalarOp(lambda a, b: a >> (b & _U(31)), 32, _PAIR, "nonzero"),
    "s_ashr_i32": ScalarOp(lambda a, b: (a.view(_I) >> (b & _U(31)).view(_I)).view(_U), 32, _PAIR, "nonzero"),
    "s_lshl_b64": ScalarOp(lambda a, b: a << (b & _U(63)).astype(_U64), 64, (64, 32), "nonzero"),
    "s_lshr_b64": ScalarOp(lambda a, b: a >> (b & _U(63)).astype(_U64), 64, (64, 32), "nonzero"),
    "s_ashr_i64": ScalarOp(
        lambda a, b: (a.view(np.int64) >> (b & _U(63)).astype(np.int64)).view(_U64), 64, (64, 32), "nonzero"
    ),
    "s_bfm_b32": ScalarOp(lambda a, b: ((_U(1) << (a & _U(31))) - _U(1)) << (b & _U(31)), 32, _PAIR),
    "s_bfe_u32": ScalarOp(_bfe_unsigned, 32, _PAIR, "nonzero"),
    "s_bfe_i32": ScalarOp(_bfe_signed, 32, _PAIR, "nonzero"),
    **{f"s_lshl{by}_add_u32": ScalarOp(_shifted_add(by), 32, _PAIR, "second") for by in (1, 2, 3, 4)},
    "s_pack_ll_b32_b16": ScalarOp(lambda a, b: (a & _U(0xFFFF)) | (b << _U(16)), 32, _PAIR),
    "s_pack_lh_b32_b16": ScalarOp(lambda a, b: (a & _U(0xFFFF)) | (b & _U(0xFFFF0000)), 32, _PAIR),
    "s_pack_hh_b32_b16": ScalarOp(lambda a, b: (a >> _U(16)) | (b & _U(0xFFFF0000)), 32, _PAIR),
}

_RELATIONS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "lg": np.not_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lt": np.less,
    "le": np.less_equal,
}


def _compared(fn: Callable[[Array, Array], Array], signed: bool) -> Callable[[Array, Array], Array]:
    return (lambda a, b: fn(a.view(_I), b.view(_I))) if signed else fn


COMPARES: dict[str, ScalarOp] = {
    **{
        f"s_cmp{k}_{name}_{kind}": ScalarOp(_compared(fn, kind == "i32"), 0, (32, 16 if k else 32))
        for name, fn in _RELATIONS.items()
        for kind in ("i32", "u32")
        for k in ("", "k")
    },
    "s_cmp_eq_u64": ScalarOp(np.equal, 0, (64, 64)),
    "s_cmp_lg_u64": ScalarOp(np.not_equal, 0, (64, 64)),
    "s_bitcmp0_b32": ScalarOp(lambda a, b: ((a >> (b & _U(31))) & _U(1)) == 0, 0, _PAIR),
    "s_bitcmp1_b32": ScalarOp(lambda a, b: ((a >> (b & _U(31))) & _U(1)) == 1, 0, _PAIR),
}

SAVE_EXEC = {f"s_{name}_saveexec_b64": fn for name, fn in _BITWISE.items()}
"""Destination = EXEC; EXEC = f(source, EXEC); SCC = EXEC is not zero."""
