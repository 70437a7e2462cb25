"""Operators that round an intermediate: to fewer bits, in another direction, or in an accumulator of few bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.mutants.operator import PLACES, Operator, hashed, in_float, on_place, replacing, stages_of

MODES = ("RNE", "RNA", "RTZ", "RTP", "stochastic")
"""To nearest even, to nearest with ties away from zero, toward zero, toward plus infinity, and up with the probability
of the part that is cut off."""


@dataclass(frozen=True)
class Format:
    """bits: significant bits, the hidden one included. least: exponent of the smallest normal number; largest: the
    largest finite number. Formats with the exponents of fp32 have neither."""

    name: str
    bits: int
    least: int | None = None
    largest: float = 0.0


FORMATS = (Format("tf32", 11), Format("bf16", 8), Format("fp16", 11, -14, 65504.0), Format("e5m2", 3, -14, 57344.0))


def _cut(value: Tensor, bits: int, mode: str) -> Tensor:
    """fp32 rounded to ``bits`` significant bits, by its bit pattern; not finite numbers stay."""
    drop = 24 - bits
    if drop <= 0:
        return value
    mask, pattern = (1 << drop) - 1, value.contiguous().view(torch.int32)
    if mode == "RNE":
        moved = pattern + ((pattern >> drop & 1) + (mask >> 1))
    elif mode == "RNA":
        moved = pattern + ((mask + 1) >> 1)
    elif mode == "RTZ":
        moved = pattern
    elif mode == "RTP":
        moved = pattern + (pattern >= 0).to(torch.int32) * mask
    else:
        moved = pattern + ((hashed(value.shape, 1) ^ (pattern >> drop) * 40503) & mask)
    return torch.where(value.isfinite(), (moved & ~mask).view(torch.float32), value)


def _on_grid(value: Tensor, step: float, mode: str) -> Tensor:
    """fp32 rounded to a multiple of ``step``, a power of two."""
    exact = value.double() / step
    size = exact.abs()
    if mode == "RNE":
        whole = exact.round()
    elif mode == "RNA":
        whole = torch.copysign((size + 0.5).floor(), exact)
    elif mode == "RTZ":
        whole = exact.trunc()
    elif mode == "RTP":
        whole = exact.ceil()
    else:
        whole = torch.copysign((size + hashed(value.shape, 2).double() / (1 << 23)).floor(), exact)
    return (whole * step).float()


def rounded(value: Tensor, fmt: Format, mode: str) -> Tensor:
    """fp32 ``value`` (any shape) as the format holds it, in fp32."""
    found = _cut(value, fmt.bits, mode)
    if fmt.least is None:
        return found
    small = value.abs() < 2.0**fmt.least
    found = torch.where(small, _on_grid(value, 2.0 ** (fmt.least - fmt.bits + 1), mode), found)
    over = found.abs() > fmt.largest
    held = torch.where((value < 0) | (mode == "RTZ"), torch.copysign(torch.full_like(value, fmt.largest), value), found)
    beyond = held if mode in ("RTZ", "RTP") else torch.copysign(torch.full_like(value, float("inf")), value)
    return torch.where(over & ~value.isnan(), beyond, found)


def _bits(bits: int, mode: str) -> Callable[[Tensor], Tensor]:
    return lambda value: _cut(value, bits, mode)


def _to(fmt: Format, mode: str) -> Callable[[Tensor], Tensor]:
    return lambda value: rounded(value, fmt, mode)


def _chained(bits: int, mode: str, chain: int) -> Callable[[Any], None]:
    """A sum of squares in ``chain`` steps with an accumulator of ``bits`` bits."""

    def square_sum(w: Any) -> None:
        z = torch.nn.functional.pad(w.z, (0, -w.z.shape[-1] % chain))
        total = torch.zeros_like(z[:, :1])
        for part in z.split(z.shape[-1] // chain, -1):
            total = _cut(total + (part * part).sum(-1, keepdim=True), bits, mode)
        w.square_sum = total

    return square_sum


def _few_bits(bits: int, promote: int, mode: str) -> Callable[[Any], None]:
    """Products of 32 k summed, then added in an accumulator of ``bits`` bits; every ``promote`` k (0: never) that one
    is added to an fp32 sum and starts at zero."""

    def accumulate(w: Any) -> None:
        a, b = w.a_value.double(), w.b_value.double().t()
        total = torch.zeros(len(a), b.shape[1], dtype=torch.float32)
        part = torch.zeros_like(total)
        for k in range(0, a.shape[1], 32):
            part = _cut((a[:, k : k + 32] @ b[k : k + 32] + part).float(), bits, mode)
            if promote and (k + 32) % promote == 0:
                total, part = total + part, torch.zeros_like(part)
        w.accumulator = total + part

    return accumulate


def _split(slices: int, fmt: Format, mode: str) -> Callable[[Any], None]:
    """K in slices whose partial sums are stored in a format, then added in fp32."""

    def accumulate(w: Any) -> None:
        k = w.a_value.shape[1]
        width, total = -(-k // slices), None
        for start in range(0, k, width):
            part = rounded(w.a_value[:, start : start + width] @ w.b_value[:, start : start + width].t(), fmt, mode)
            total = part if total is None else total + part
        w.accumulator = total

    return accumulate


def operators(op: str) -> Iterator[Operator]:
    """Every operator of the kind."""
    for place in PLACES[op]:
        if place.sort == "codes":
            continue
        for fmt in FORMATS:
            for mode in MODES:
                # The other modes and formats keep most numbers of T as they are.
                if place.sort == "stored" and (mode not in ("RNE", "RTZ") or fmt.name in ("tf32", "bf16")):
                    continue
                words = f"is rounded to {fmt.name} ({mode})"
                yield on_place(op, place, f"{fmt.name}-{mode}", "rounding", words, in_float(_to(fmt, mode)))
        # The last bits of fp32: what a compiler's fast arithmetic gives away.
        for bits in (23, 22, 20, 18, 16, 14):
            if place.sort != "stored":
                words = f"keeps {bits} significant bits (RTZ)"
                yield on_place(op, place, f"bits{bits}", "rounding", words, in_float(_bits(bits, "RTZ")))
    if op == "add_rmsnorm_quant":
        for bits in range(10, 24):
            for mode in ("RNE", "RTZ"):
                words = f"Squares are added in 16 steps in an accumulator of {bits} bits ({mode})."
                stage = _chained(bits, mode, 16)
                yield replacing(op, f"square_sum:accumulator{bits}-{mode}", "rounding", words, {"square_sum": stage})
    if op == "ptpc_gemm":
        yield from _gemm_operators(op)
    else:
        yield from _encoders(op)


def _gemm_operators(op: str) -> Iterator[Operator]:
    for bits in range(10, 24):
        for promote in (0, 128, 512, 2048):
            for mode in ("RTZ", "RNE"):
                when = f"promoted every {promote} k" if promote else "never promoted"
                words = f"Products are added in an accumulator of {bits} bits ({mode}), {when}."
                slug = f"accumulate:bits{bits}-{mode}-promote{promote}"
                yield replacing(op, slug, "rounding", words, {"accumulate": _few_bits(bits, promote, mode)})
    for slices in (2, 3, 4, 8):
        for fmt in FORMATS:
            words = f"K is split in {slices} slices, whose sums are stored in {fmt.name}."
            yield replacing(
                op,
                f"accumulate:split{slices}-{fmt.name}",
                "rounding",
                words,
                {"accumulate": _split(slices, fmt, "RNE")},
            )
    half = {"bf16": Format("bf16", 8), "fp16": FORMATS[2]}
    for mode in MODES[1:]:

        def store(w: Any, mode: str = mode) -> None:
            stages_of(op)["store"](w)
            name = "fp16" if w.out.dtype == torch.float16 else "bf16"
            if w.out.dtype != torch.float32:
                w.stored = rounded(w.value, half[name], mode).to(w.out.dtype)

        yield replacing(op, f"store:{mode}", "rounding", f"The output is stored with {mode}.", {"store": store})


def _encoders(op: str) -> Iterator[Operator]:
    """Codes, and the stored residual, in another direction than to nearest even."""
    clean = stages_of(op)
    for mode in MODES[1:]:

        def encode(w: Any, mode: str = mode) -> None:
            kept, least = w.scaled, -6 if w.fp8 == "e4m3fn" else -7
            held = kept if w.clamp is None else kept.clamp(-w.clamp, w.clamp)
            w.scaled = rounded(held, Format("e4m3", 4, least, 448.0), mode)
            clean["encode"](w)

        yield replacing(op, f"encode:{mode}", "rounding", f"Codes are rounded with {mode}.", {"encode": encode})
        if op != "add_rmsnorm_quant":
            continue

        def store(w: Any, mode: str = mode) -> None:
            clean["store_residual"](w)
            if w.residual is not None:
                fmt = FORMATS[2] if w.x.dtype == torch.float16 else FORMATS[1]
                w.stored = rounded(w.total, fmt, mode).to(w.x.dtype)

        words = f"The residual is stored with {mode}."
        yield replacing(op, f"store_residual:{mode}", "rounding", words, {"store_residual": store})
    for fmt in FORMATS[:3]:

        def twice(w: Any, fmt: Format = fmt) -> None:
            held = w.scaled if w.clamp is None else w.scaled.clamp(-w.clamp, w.clamp)
            w.scaled = rounded(held, fmt, "RNE")
            clean["encode"](w)

        words = f"Clamped values are rounded to {fmt.name} before they become codes."
        yield replacing(op, f"encode:twice-{fmt.name}", "rounding", words, {"encode": twice})
