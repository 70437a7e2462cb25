"""Operators on special values: NaN, Inf, zeros and their sign, subnormal numbers, overflow, rows of special form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tests.mutants.operator import PLACES, Operator, in_float, on_place, replacing, stages_of

_INF = float("inf")
_VALUES: tuple[tuple[str, str, Callable[[Tensor], Tensor]], ...] = (
    ("nan-to-zero", "is zero where it is NaN", lambda v: torch.where(v.isnan(), 0.0, v)),
    ("nan-to-one", "is 1 where it is NaN", lambda v: torch.where(v.isnan(), 1.0, v)),
    ("inf-to-largest", "is the largest fp16 where it is Inf", lambda v: torch.where(v.isinf(), v.sign() * 65504, v)),
    ("inf-to-nan", "is NaN where it is Inf", lambda v: torch.where(v.isinf(), float("nan"), v)),
    ("inf-to-zero", "is zero where it is Inf", lambda v: torch.where(v.isinf(), 0.0, v)),
    ("zero-loses-sign", "has no negative zeros", lambda v: torch.where(v == 0, 0.0, v)),
    ("zero-is-negative", "has negative zeros alone", lambda v: torch.where(v == 0, -0.0, v)),
    ("zero-to-tiny", "is 2**-20 where it is zero", lambda v: torch.where(v == 0, 2.0**-20, v)),
    ("zero-to-nan", "is NaN where it is zero", lambda v: torch.where(v == 0, float("nan"), v)),
    ("flushed-fp32", "is flushed below 2**-126", lambda v: torch.where(v.abs() < 2.0**-126, 0.0, v)),
    ("flushed-fp16", "is flushed below 2**-14", lambda v: torch.where(v.abs() < 2.0**-14, 0.0, v)),
    ("flushed-2^-24", "is flushed below 2**-24", lambda v: torch.where(v.abs() < 2.0**-24, 0.0, v)),
    ("flushed-2^-60", "is flushed below 2**-60", lambda v: torch.where(v.abs() < 2.0**-60, 0.0, v)),
    ("held-to-fp16", "is held to 65504", lambda v: v.clamp(-65504.0, 65504.0)),
    (
        "overflows-fp16",
        "is Inf beyond 65504",
        lambda v: torch.where(v.abs() > 65504.0, torch.copysign(torch.tensor(_INF), v), v),
    ),
    ("held-to-448", "is held to 448", lambda v: v.clamp(-448.0, 448.0)),
    ("held-to-1e4", "is held to 10,000", lambda v: v.clamp(-1e4, 1e4)),
    ("negative-to-zero", "is zero where it is negative", lambda v: v.clamp_min(0.0)),
    ("wraps-past-2^15", "wraps past 2**15", lambda v: torch.where(v.abs() > 32768.0, v - 65536.0 * v.sign(), v)),
    ("one-is-zero", "is zero where it is 1", lambda v: torch.where(v == 1.0, 0.0, v)),
)


def _by_row(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda v: change(v) if v.dim() == 2 else v


def _lonely(v: Tensor) -> Tensor:
    """Rows with one number that is not zero lose it."""
    return torch.where((v != 0).sum(-1, keepdim=True) == 1, 0.0, v)


def _equal(v: Tensor) -> Tensor:
    """Rows of equal magnitudes are a little larger."""
    size = v.abs()
    return torch.where(size.amax(-1, keepdim=True) == size.amin(-1, keepdim=True), v * 1.0625, v)


def _with_nan(v: Tensor) -> Tensor:
    """Rows with a NaN are zeros."""
    return torch.where(v.isnan().any(-1, keepdim=True), 0.0, v)


def _negative_peak(v: Tensor) -> Tensor:
    """Rows whose largest magnitude is negative lose that sign."""
    size = v.abs()
    peak = size == size.nan_to_num(0.0, posinf=_INF).amax(-1, keepdim=True)
    return torch.where(peak & (v < 0), -v, v)


def _peak_halved(v: Tensor) -> Tensor:
    """Peaks that are more than 16 times the mean are halved: an outlier is clipped."""
    size = v.abs()
    return torch.where(size > 16 * size.nan_to_num(0.0, posinf=0.0).mean(-1, keepdim=True), v * 0.5, v)


_ROWS = (
    ("lonely-lost", "loses the one number of a row that is not zero", _lonely),
    ("equal-off", "is larger by 1/16 in rows of equal magnitudes", _equal),
    ("nan-rows-zero", "is zero in rows with a NaN", _with_nan),
    ("negative-peak", "loses the sign of a row's negative peak", _negative_peak),
    ("outliers-halved", "halves peaks of more than 16 times the mean", _peak_halved),
)


def operators(op: str) -> Iterator[Operator]:
    """Every operator of the kind."""
    for place in PLACES[op]:
        if place.sort == "codes":
            yield from _codes(op, place)
            continue
        for slug, words, change in _VALUES:
            yield on_place(op, place, slug, "special", words, in_float(change))
        if place.sort in ("matrix", "stored") and place.field != "bias":
            for slug, words, change in _ROWS:
                yield on_place(op, place, slug, "special", words, in_float(_by_row(change)))
    if op != "ptpc_gemm":
        yield from _rows_of_codes(op)


def _codes(op: str, place: Any) -> Iterator[Operator]:
    def where(hit: Callable[[Tensor], Tensor], value: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
        return lambda w, c: torch.where(hit(c), value(c), c)

    changes: tuple[tuple[str, str, Callable[[Any, Tensor], Tensor]], ...] = (
        ("subnormal-flushed", "is zero where it is subnormal", where(lambda c: (c & 0x7F) < 8, lambda c: c & 0x80)),
        (
            "smallest-lost",
            "is zero where it is the smallest code",
            where(lambda c: (c & 0x7F) == 1, lambda c: c & 0x80),
        ),
        ("largest-lowered", "is one lower where it is 0x7E", where(lambda c: (c & 0x7F) == 0x7E, lambda c: c - 1)),
        ("7f-lowered", "is one lower where it is 0x7F", where(lambda c: (c & 0x7F) == 0x7F, lambda c: c - 1)),
        ("sign-lost", "loses its sign", lambda w, c: c & 0x7F),
        ("sign-of-zero-lost", "loses the sign of zeros", where(lambda c: c == 0x80, lambda c: c & 0x7F)),
        ("zero-signed", "is 0x80 where it is zero", where(lambda c: c == 0, lambda c: c | 0x80)),
        ("low-bit-lost", "loses its lowest bit", lambda w, c: c & 0xFE),
        ("low-bit-set", "has its lowest bit set", lambda w, c: c | 1),
        ("one-up", "is one higher below 0x7E", where(lambda c: (c & 0x7F) < 0x7D, lambda c: c + 1)),
        (
            "binade-2^7-lowered",
            "is one lower in the highest binade",
            where(lambda c: (c & 0x7F) >= 0x78, lambda c: c - 1),
        ),
        ("half-is-zero", "is zero where it is 0x30", where(lambda c: c == 0x30, lambda c: c & 0)),
        ("negative-off", "is one lower where it is negative", where(lambda c: c > 0x81, lambda c: c - 1)),
    )
    for slug, words, change in changes:
        yield on_place(op, place, slug, "special", words, change)


def _rows_of_codes(op: str) -> Iterator[Operator]:
    """What becomes of a row of zeros, and of one with a NaN or Inf."""
    clean = stages_of(op)
    for name, value in (("0", 0.0), ("1", 1.0), ("nan", float("nan")), ("1e-12", 1e-12), ("inf", _INF)):

        def zero_rows(w: Any, value: float = value) -> None:
            clean["scale"](w)
            w.scale = torch.where(w.y.abs().amax(-1, keepdim=True) == 0, value, w.scale)

        words = f"The scale of a row of zeros is {name}."
        yield replacing(op, f"scale:zero-rows-{name}", "special", words, {"scale": zero_rows})

        def bad_rows(w: Any, value: float = value) -> None:
            clean["special_rows"](w)
            w.scale = torch.where(w.bad, value, w.scale)

        words = f"The scale of a row with NaN or Inf is {name}."
        yield replacing(op, f"special_rows:bad-rows-{name}", "special", words, {"special_rows": bad_rows})
    for name, code in (("0", 0), ("0x7f", 0x7F), ("0x80", 0x80), ("0x01", 1)):

        def zero_codes(w: Any, code: int = code) -> None:
            clean["special_rows"](w)
            w.codes = w.codes.masked_fill(w.y.abs().amax(-1, keepdim=True) == 0, code)

        words = f"The codes of a row of zeros are {name}."
        yield replacing(op, f"special_rows:zero-codes-{name}", "special", words, {"special_rows": zero_codes})

    def unclamped(w: Any) -> None:
        kept, w.clamp = w.clamp, None
        clean["encode"](w)
        w.clamp = kept

    yield replacing(op, "encode:no-clamp", "special", "Values beyond the largest become NaN.", {"encode": unclamped})
