"""Matrix units bit for bit: what an FP8 matrix instruction leaves in its fp32 accumulator.

Where the arithmetic of a unit is known, the admissible set of a GEMM output has one member. Each unit
states in ``Unit.source`` how well it is known; docs/derivations.md 8b.

Notation. A code is x = (-1)^s * m * 2^(e-3) with m in 0..15; e = field - bias, 1 - bias for subnormals (never
renormalised). A product has m = m_a*m_b <= 225, e = e_a + e_b and |p| = m * 2^(e-6) < 2^(e+2); its exponent is not
renormalised either. NONE represents the exponent of a zero product, below every other.

Why float64 is exact here. All quantities are integers times powers of two:
  aligned    p/q with q = 2^(E-F), E >= e: |p/q| < 2^(F+2); 32 of them and |c/q| < 2^(F+1) sum to less than 2^(F+8)
             before and after truncation; F <= 25 leaves 33 bits.
  mfma       half sums of 8: below 2^(24+5) units of 2^(E_h-24); dot below 2^30; in units of 2^(E-32) below 2^38, plus c
             below 2^(25+8): 39 bits. The last floor leaves 32 bits, and float64 -> fp32 is one RNE, subnormals kept.
  exact-rne  32 products are integers times 2^-20 below 2^41; adding any fp32 c is done with round-to-odd, so that the
             conversion to fp32 rounds once (Boldo & Melquiond 2008: 53 >= 24 + 2 bits).
  serial     an 8-bit product plus an fp32 number is one fp32 addition.
Scaling by 2^k is exact because every exponent stays within +-600.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from reference.formats import FloatFormat, bytes_of, decode_table, exponent_of, pow2

NONE = -400
"""Exponent of a zero product: below every real one (at least -149), and 2^(33-NONE) is still a float64."""
LOWEST = -126
"""Smallest normal exponent of fp32."""
CANONICAL_NAN = 0x7FFFFFFF
SPLIT_MULTIPLE = 128
"""Split-K slices are whole multiples of this many products (the K tile of the usual kernels) but for the last."""


class AccumulatorError(ValueError):
    """A unit, a k-map or operands that cannot be emulated; the message is one sentence."""


@dataclass(frozen=True)
class Unit:
    """A matrix unit and how a GEMM chains it.

    kind: "aligned" (products and c truncated to ``fraction`` bits below the largest exponent, summed, truncated to
    ``kept`` fraction bits), "mfma" (CDNA3), "exact-rne" (exact sum and c, one RNE) or "serial" (one fp32 FMA a
    product). group: products that one step takes. floor: lowest exponent of the alignment. promote: products after
    which the chain is added to an fp32 main accumulator and restarts from zero; None for one chain over all K.
    source: where the model comes from and how certain it is.
    """

    name: str
    kind: Literal["aligned", "mfma", "exact-rne", "serial"]
    group: int
    fraction: int = 24
    kept: int = 23
    floor: int = -133
    promote: int | None = None
    source: str = ""

    def replace(self, **changes: object) -> Unit:
        """The same unit with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


_HOPPER = Unit(
    "hopper-fast",
    "aligned",
    32,
    13,
    13,
    -133,
    source="wgmma e4m3: 5000 of 5000 recorded H100 and H200 vectors, 48 of 48 GEMMs on an H200",
)

UNITS: dict[str, Unit] = {
    u.name: u
    for u in (
        _HOPPER,
        _HOPPER.replace(name="hopper-promote128", promote=128),
        Unit(
            "ada",
            "aligned",
            16,
            13,
            13,
            -132,
            source="mma.sync m16n8k32 e4m3: 5000 of 5000 recorded Ada vectors, c != 0",
        ),
        Unit(
            "cdna3-mfma",
            "mfma",
            16,
            source="v_mfma_f32_16x16x32_fp8_fp8: two public models agree, no silicon record",
        ),
        Unit(
            "blackwell-mma",
            "exact-rne",
            32,
            source="mma.sync e4m3 on B200: 5000 of 5000 recorded vectors; another path than tcgen05",
        ),
        Unit(
            "blackwell-tcgen05",
            "aligned",
            32,
            25,
            23,
            -133,
            source="tcgen05 e4m3: MMA-Sim's model only, not checked against silicon",
        ),
        Unit("fp32-serial", "serial", 1, source="one fp32 FMA a product, in order of k"),
    )
}


def get_unit(name: str) -> Unit:
    """The unit ``name``; ``<unit>-promote<N>`` restarts the chain of a known unit every N products.

    Raises AccumulatorError with the known names.
    """
    if name in UNITS:
        return UNITS[name]
    found = re.fullmatch(r"(?P<base>.+?)-promote(?P<interval>\d+)", name)
    if found:
        base = {"hopper": "hopper-fast", "cdna3": "cdna3-mfma"}.get(found["base"], found["base"])
        interval = int(found["interval"])
        if base in UNITS and interval and interval % UNITS[base].group == 0:
            return UNITS[base].replace(name=name, promote=interval)
    raise AccumulatorError(
        f"unknown matrix unit {name!r}; known: {', '.join(UNITS)}, and <unit>-promote<N> with N a multiple of its group"
    )


def _lanes(k: int, width: int, groups: int) -> Tensor:
    """k-map of a tile of ``k`` products in which each lane loads ``width`` consecutive bytes and feeds 8 at a time.

    Instruction i multiplies bytes 8i..8i+7 of every lane group g: physical (i, g, j) is logical (g, 8i + j).
    """
    return torch.arange(k).view(groups, width // 8, 8).permute(1, 0, 2).reshape(-1)


K_MAPS: dict[str, Tensor] = {
    "identity": torch.arange(1),
    # shuffle_weight(16, 16) stores 16 consecutive k a row; 64 lanes of 16 bytes span 16 rows and 64 k, 4 lane groups.
    "lane16-16x16x32": _lanes(64, 16, 4),
    # the same loads feeding v_mfma_f32_32x32x16_fp8_fp8: 2 lane groups of 32 rows.
    "lane16-32x32x16": _lanes(32, 16, 2),
}
"""Which logical k each physical k holds, for every consecutive ``len(map)`` products. Identity is certain for what it
says; the lane maps are derived from the layout of the pre-shuffled weight under the assumption that both
operands are loaded 16 bytes per lane and fed 8 bytes per instruction, low bytes first. Not checked on silicon."""


def arrange(codes: Tensor, k_map: Tensor | None, multiple: int) -> Tensor:
    """Codes [r, K] -> uint8 [r, K'] in physical order, padded with zero codes to whole maps and whole ``multiple``s.

    k_map: int64 [L], a permutation of range(L), applied to every L consecutive k; None is the identity.
    """
    raw = bytes_of(codes)
    length = 1 if k_map is None else len(k_map)
    whole = math.lcm(length, multiple)
    raw = torch.nn.functional.pad(raw, (0, -raw.shape[1] % whole))
    if k_map is None or length == 1:
        return raw
    if not torch.equal(k_map.cpu().sort().values, torch.arange(length)):
        raise AccumulatorError(f"a k-map of length {length} must be a permutation of 0..{length - 1}")
    return raw.view(raw.shape[0], -1, length)[:, :, k_map.to(raw.device)].reshape(raw.shape)


@dataclass(frozen=True)
class Operand:
    """Decoded codes, k first. value: float64 [K, r], NaN codes as 0. exponent: int16 [K, r], NONE for a zero."""

    value: Tensor
    exponent: Tensor

    def part(self, first: int, last: int) -> Operand:
        """Products first..last-1."""
        return Operand(self.value[first:last], self.exponent[first:last])


def decode_operand(codes: Tensor, fmt: FloatFormat) -> Operand:
    """uint8 codes [r, K] -> Operand with K first."""
    value, exponent = _tables(fmt, str(codes.device))
    index = codes.t().contiguous().int()
    return Operand(value[index], exponent[index])


@lru_cache(maxsize=8)
def _tables(fmt: FloatFormat, device: str) -> tuple[Tensor, Tensor]:
    value = decode_table(fmt, device).nan_to_num(0.0)
    field = (torch.arange(256, device=device, dtype=torch.int16) >> 3) & 15
    return value, torch.where(value == 0, NONE, field.clamp(min=1) - fmt.bias).to(torch.int16)


TOGETHER = 2**24
"""Products of a group up to which a GPU forms them all at once: below, launching costs more than their memory does."""


def _together(a: Operand, b: Operand) -> bool:
    return a.value.is_cuda and a.value.numel() * b.value.shape[1] <= TOGETHER


def largest_exponent(a: Operand, b: Operand) -> Tensor:
    """max over k of e_a + e_b over nonzero products, int64 [m, n]; NONE where every product is zero."""
    if _together(a, b):
        return (a.exponent[:, :, None] + b.exponent[:, None, :]).amax(0).long()
    shape = (a.value.shape[1], b.value.shape[1])
    top = torch.full(shape, NONE, dtype=torch.int16, device=a.value.device)
    sums = torch.empty_like(top)
    for ea, eb in zip(a.exponent, b.exponent, strict=True):
        torch.add(ea[:, None], eb[None, :], out=sums)
        torch.maximum(top, sums, out=top)
    return top.long()


def truncate(x: Tensor) -> Tensor:
    """float64 |x| < 2^63 toward zero, by way of int64: torch's own trunc forks its threads for 2,048 elements."""
    return x.to(torch.int64).to(torch.float64)


def floor(x: Tensor) -> Tensor:
    """float64 |x| < 2^53 toward minus infinity; see ``truncate``."""
    whole = truncate(x)
    return whole - (whole > x).to(torch.float64)


def _truncated_sum(a: Operand, b: Operand, scale: Tensor, fraction: int) -> Tensor:
    """sum_k trunc(a*b*scale), float64 [m, n], |a*b*scale| < 2^(fraction+2). The conversion to integers truncates."""
    room = fraction + 2 + len(a.value).bit_length()
    whole_type = torch.int32 if room < 32 else torch.int64
    if _together(a, b):
        # Integers: the order of the sum changes nothing.
        terms = (a.value[:, :, None] * b.value[:, None, :]).mul_(scale).to(whole_type)
        return terms.sum(0, dtype=whole_type).to(torch.float64)
    total = torch.zeros(scale.shape, dtype=whole_type, device=scale.device)
    term, whole = torch.empty_like(scale), torch.empty_like(total)
    for va, vb in zip(a.value, b.value, strict=True):
        torch.mul(va[:, None], vb[None, :], out=term)
        total.add_(whole.copy_(term.mul_(scale)))
    return total.to(torch.float64)


def _aligned(a: Operand, b: Operand, c: Tensor, unit: Unit) -> Tensor:
    e_c = torch.where(c == 0, NONE, exponent_of(c).clamp(min=LOWEST))
    top = torch.maximum(largest_exponent(a, b), e_c).clamp(min=unit.floor)
    scale = pow2(unit.fraction - top)
    total = truncate(c * scale) + _truncated_sum(a, b, scale, unit.fraction)
    value = total * pow2(top - unit.fraction)
    e = exponent_of(value).clamp(min=LOWEST)
    return truncate(value * pow2(unit.kept - e)) * pow2(e - unit.kept)


def _mfma(a: Operand, b: Operand, c: Tensor, unit: Unit) -> Tensor:
    tops, sums = [], []
    for half in (0, 1):
        part_a, part_b = (Operand(x.value[half::2], x.exponent[half::2]) for x in (a, b))
        top = largest_exponent(part_a, part_b)
        tops.append(top)
        scale = pow2(24 - top)
        sums.append(_truncated_sum(part_a, part_b, scale, 24) * pow2(top - 24))
    e_d = torch.maximum(*tops)
    dot = sum((floor(s * pow2(24 - e_d)) for s in sums), torch.zeros_like(c)) * pow2(e_d - 24)
    e_c = exponent_of(c).clamp(min=LOWEST)
    e = torch.maximum(e_d, e_c)
    x = floor(dot * pow2(32 - e))
    y = floor(c * pow2(24 - e)) * 256.0
    # A negative c far below the rest would otherwise leave -1.
    y = torch.where(e_c < e - 25, torch.zeros_like(y), y)
    t = (x + y) * pow2(e - 32)
    e_t = exponent_of(t).clamp(min=LOWEST)
    t = floor(t * pow2(31 - e_t)) * pow2(e_t - 31)
    return t.float().double() + 0.0


def _exact_rne(a: Operand, b: Operand, c: Tensor, unit: Unit) -> Tensor:
    return add_to_odd(a.value.t() @ b.value, c).float().double() + 0.0


def _serial(a: Operand, b: Operand, c: Tensor, unit: Unit) -> Tensor:
    total = c.float()
    for va, vb in zip(a.value.float(), b.value.float(), strict=True):
        total = total + va[:, None] * vb[None, :]
    return total.double()


def add_to_odd(x: Tensor, y: Tensor) -> Tensor:
    """x + y rounded to odd in float64: truncated, last bit set if anything was lost. Finite float64, no overflow."""
    total = x + y
    other = total - x
    lost = (x - (total - other)) + (y - other)
    bits = total.view(torch.int64)
    away = torch.where((lost > 0) == (total > 0), bits + 1, bits - 1)
    return torch.where((lost != 0) & (bits & 1 == 0), away, bits).view(torch.float64)


_STEPS: dict[str, Callable[[Operand, Operand, Tensor, Unit], Tensor]] = {
    "aligned": _aligned,
    "mfma": _mfma,
    "exact-rne": _exact_rne,
    "serial": _serial,
}


def step(a: Operand, b: Operand, c: Tensor, unit: Unit) -> Tensor:
    """One step: a, b with ``unit.group`` products, c float64 [m, n] holding finite fp32 values -> D likewise."""
    return _STEPS[unit.kind](a, b, c, unit)


def chain(a: Operand, b: Operand, unit: Unit) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Steps of one GEMM accumulation: (products done, chain, main), both float64 [m, n] holding fp32 values.

    ``main`` has the promoted chains before this step; the result after the last step is fl32(main + chain). K must be
    a multiple of the group.
    """
    shape = (a.value.shape[1], b.value.shape[1])
    c = torch.zeros(shape, dtype=torch.float64, device=a.value.device)
    main = torch.zeros_like(c)
    for first in range(0, a.value.shape[0], unit.group):
        if unit.promote and first and first % unit.promote == 0:
            main, c = promoted(main, c), torch.zeros_like(c)
        c = step(a.part(first, first + unit.group), b.part(first, first + unit.group), c, unit)
        yield first + unit.group, c, main


def promoted(main: Tensor, c: Tensor) -> Tensor:
    """fl32(main + c) for float64 tensors that hold fp32 values."""
    return (main.float() + c.float()).double()


def slices(k: int, splits: int) -> list[tuple[int, int]]:
    """(first, last) of the split-K slices of K products: equal whole multiples of SPLIT_MULTIPLE but for the last."""
    length = math.ceil(math.ceil(k / SPLIT_MULTIPLE) / splits) * SPLIT_MULTIPLE
    return [(first, min(k, first + length)) for first in range(0, k, length)]


def emulate(
    a: Tensor,
    b: Tensor,
    fmt: FloatFormat,
    unit: str | Unit,
    *,
    k_map: Tensor | None = None,
    splits: int = 1,
    tile: int | None = None,
) -> Tensor:
    """The accumulator of a GEMM, bit for bit: codes a [m, K], b [n, K] (uint8 or FP8 dtype) -> float32 [m, n].

    fmt: of both operands. unit: a name of ``UNITS`` (or ``<unit>-promote<N>``) or a Unit. k_map: int64 [L], see
    ``arrange``. splits: slices along K (``slices``), each accumulated from zero, added in order in fp32. tile: output
    elements at a time; memory is about 60 bytes per tile element plus the decoded operands of the tile. A NaN code
    anywhere makes its row or column the canonical NaN 0x7FFFFFFF (NVIDIA's; the payload of other units is not known).
    Runs where the codes are. Raises AccumulatorError for operands that do not fit together or an unknown unit.
    """
    u = get_unit(unit) if isinstance(unit, str) else unit
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise AccumulatorError(f"operands {tuple(a.shape)} and {tuple(b.shape)} are not [m, K] and [n, K]")
    if splits < 1:
        raise AccumulatorError(f"a GEMM has at least one slice along K, not {splits}")
    if splits > 1 and k_map is not None and SPLIT_MULTIPLE % len(k_map):
        raise AccumulatorError(f"with split-K a k-map's length divides {SPLIT_MULTIPLE}; this one has {len(k_map)}")
    if a.shape[1] == 0:
        raise AccumulatorError("a GEMM without products has no accumulator")
    out = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float32, device=a.device)
    # On a CPU a tile fits the cache and stays below the 32,768 elements from which torch splits an operation over
    # threads: at this size waiting for them costs several times what they gain.
    size = tile or (1 << 22 if a.is_cuda else 31 << 10)
    cols = max(1, min(b.shape[0], size // min(a.shape[0], 128)))
    rows = max(1, size // cols)
    for number, (first, last) in enumerate(slices(a.shape[1], splits)):
        # The k-map describes how a kernel loads its tiles, so it starts again in each slice (a multiple of 128).
        left, right = (arrange(x[:, first:last], k_map, u.group) for x in (a, b))
        for c in range(0, b.shape[0], cols):
            col = decode_operand(right[c : c + cols], fmt)
            for r in range(0, a.shape[0], rows):
                partial = _accumulate(decode_operand(left[r : r + rows], fmt), col, u)
                block = out[r : r + rows, c : c + cols]
                block.copy_(block + partial if number else partial)
    nan = torch.isin(bytes_of(a), _nans(fmt, a)).any(1)[:, None] | torch.isin(bytes_of(b), _nans(fmt, b)).any(1)[None]
    bits = out.view(torch.int32)
    return torch.where(nan, torch.full_like(bits, CANONICAL_NAN), bits).view(torch.float32)


def _nans(fmt: FloatFormat, like: Tensor) -> Tensor:
    return torch.tensor(fmt.nan_codes, dtype=torch.uint8, device=like.device)


def _accumulate(a: Operand, b: Operand, unit: Unit) -> Tensor:
    _, c, main = deque(chain(a, b, unit), maxlen=1)[0]
    return (main.float() + c.float()) if unit.promote else c.float()
