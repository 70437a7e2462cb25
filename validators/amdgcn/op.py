"""What an entry of the tables of operations is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Op:
    """One operation: a pure function of arrays.

    ins, out: types of its sources and of its result: "u32", "i32", "f32", "f16" and "u16" (the low half of a
    register), "u64", "i64" (pairs), "mask" (bool, a lane mask), "pk32" (two float32, the function is called for each),
    "pk16" (both halves of a register), "word" (16 bits into the half that op_sel names).
    arith: float32 arithmetic, to which MODE's denormal bits apply. nan: its NaN results follow ``floats.settle_nan``.
    context: the function's first argument is the ``State`` (MODE, policy, target). old: its last argument is what the
    destination holds. second: it has a second result, a lane mask. policy: what of the documents it hangs on.
    """

    fn: Callable[..., Any]
    out: str
    ins: tuple[str, ...]
    arith: bool = False
    nan: bool = False
    context: bool = False
    old: bool = False
    second: bool = False
    policy: str = ""


Table = Mapping[str, Op]


def u32(fn: Callable[..., Any], sources: int = 2) -> Op:
    """An operation on 32-bit integers."""
    return Op(fn, "u32", ("u32",) * sources)


def f32(fn: Callable[..., Any], sources: int = 2) -> Op:
    """An operation on float32 numbers."""
    return Op(fn, "f32", ("f32",) * sources, arith=True, nan=True)
