"""Admissible scales and codes of a row: the last stage of both quantizing ops.

Everything here is elementwise or per row in float64, broadcasts, and is exact or outward rounded, so a
caller may evaluate whole tensors, row chunks or a handful of gathered elements alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple, Protocol

import torch

from reference import budgets
from reference.formats import (
    FloatFormat,
    code_preimages,
    decode_table,
    encode,
    neighbours,
    order_key,
    round_fp32,
    round_to,
)
from reference.setting import STORAGE_TYPES, Setting

TINY_SCALE = 2.0**-90
"""Below this scale a result that may be flushed to zero (|y| < 2**-126, or |z*w| < 2**-126 before rms <= 2**20)
could reach a code boundary (2**-11 * s): the row is reported, not judged. Above it, flushed elements have
t = y/s < 2**-106/2**-90 = 2**-16, which rounds to code 0 whether flushed or not."""
HUGE = 2.0**126
"""Products and square sums beyond this may overflow fp32 in one legal order and not in another."""


class Row(IntEnum):
    """How a row is judged."""

    NORMAL = 0
    FLOORED = 1  # amax or scale may be replaced by a floor: nothing cancels, codes follow the kernel's own scale
    ZERO = 2  # every y is exactly zero
    NONFINITE = 3  # holds NaN or Inf
    UNSPECIFIED = 4  # overflow or underflow of an intermediate: reported, not judged


@dataclass(frozen=True, kw_only=True)
class Scales:
    """Admissible scales of m rows, float64 [m]: the nominal one and the ends, each row's kind (int8 [m]), amax's ends.

    grid: the format that y is rounded to (or that x already has) before amax, None if y stays fp32.
    """

    setting: Setting
    grid: FloatFormat | None
    kind: torch.Tensor
    nominal: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    amax_low: torch.Tensor
    amax_high: torch.Tensor
    ordinary: bool = False
    """Every row is known to be NORMAL; False says nothing."""

    @property
    def open(self) -> torch.Tensor:
        """Rows whose scale and codes the contract leaves open, bool [m]."""
        found = self.kind == int(Row.UNSPECIFIED)
        if self.setting.contract.nonfinite == "unspecified":
            found |= self.kind == int(Row.NONFINITE)
        return found

    @property
    def due_nan(self) -> torch.Tensor:
        """Rows whose scale and codes have to be NaN, bool [m]."""
        return (self.kind == int(Row.NONFINITE)) & (self.setting.contract.nonfinite == "propagate")

    @property
    def regular(self) -> torch.Tensor:
        """Rows whose codes are judged one by one, by an interval of t, bool [m]."""
        return (self.kind == int(Row.NORMAL)) | (self.kind == int(Row.FLOORED))

    def due(self, row: int) -> float | None:
        """What every code of a row that is not ``regular`` has to decode to: 0 or NaN; None if the row is open."""
        kind = Row(int(self.kind[row]))
        if kind is Row.ZERO:
            return 0.0
        return math.nan if kind is Row.NONFINITE and self.setting.contract.nonfinite == "propagate" else None

    def admits(self, scale: torch.Tensor) -> torch.Tensor:
        """Which scales (float64 [m], the kernel's fp32 values) are admissible: bool [m]; of open rows it says nothing.

        With a grid the amax is one of few numbers: the one nearest to s*Q must be in the interval and give s exactly.
        """
        inside = (scale >= self.low) & (scale <= self.high)
        if self.setting.contract.round_scale:
            inside &= self._of_storage(scale)
        elif self.grid is not None and self.setting.contract.scale_u <= 1.0:
            # Values of T are at least 2**-11 of themselves apart and one scale rule moves s*Q by 3u, so the nearest is
            # the only one. The IEEE conversions find it: what is within 3u of a value of T cannot round to another one
            # in two steps.
            amax = (scale * self.setting.qmax).float().to(STORAGE_TYPES[self.grid.name]).double()
            inside &= self._given_by(amax, scale) | (self.kind != int(Row.NORMAL))
        return inside if self.ordinary else torch.where(self.due_nan, scale.isnan(), inside)

    def _of_storage(self, scale: torch.Tensor) -> torch.Tensor:
        """Which scales are values of T that an admissible amax gives.

        A scale that is rounded to T is within half a step of T of its amax/Q. Where it is normal in T, its step times
        Q is at most 1.875 steps of T at amax (Q is 1.75 or 1.875 times a power of two), so amax is within 0.94 of its
        steps of s*Q: it is the value of T nearest to s*Q or one of that one's two neighbours. Where the scale is
        subnormal in T, its step is the coarser one, and the value nearest to s*Q gives s itself. Clamping to the
        interval loses none: the amax that give one s are consecutive values.
        """
        t = self.setting.storage
        if self.grid is None or self.setting.contract.scale_u > 1.0:
            return round_to(scale, t) == scale
        nearest = round_to(scale * self.setting.qmax, t)
        exact = self.kind != int(Row.NORMAL)
        for amax in (nearest, *neighbours(nearest, t)):
            exact |= self._given_by(amax, scale)
        return exact

    def _given_by(self, amax: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        amax = torch.minimum(torch.maximum(amax, self.amax_low), self.amax_high)
        return scale_of(amax, self.setting) == scale


def reciprocal_of(qmax: float) -> float:
    """fl32(1/Q) as a float."""
    return _fp32(1.0 / qmax)


@lru_cache(maxsize=64)
def _fp32(value: float) -> float:
    return float(round_fp32(torch.tensor(value, dtype=torch.float64)))


def scale_of(amax: torch.Tensor, setting: Setting) -> torch.Tensor:
    """The scale that the contract forms from an fp32 amax (float64 in, float64 out, any shape), correctly rounded."""
    scale = _plain_scale(amax, setting)
    if setting.contract.round_scale:
        scale = round_to(scale, setting.storage)
    if setting.contract.zero_scale is not None:
        scale = torch.where(scale == 0, torch.full_like(scale, zero_scale(setting)), scale)
    return scale


def zero_scale(setting: Setting) -> float:
    """What the contract stores for a scale of 0, as a number."""
    assert setting.contract.zero_scale is not None
    return 2.0**-setting.storage.mantissa if setting.contract.zero_scale == "eps" else setting.contract.zero_scale


def _plain_scale(amax: torch.Tensor, setting: Setting) -> torch.Tensor:
    """``scale_of`` in fp32, before it is rounded to T and before the rule for a scale of 0."""
    contract, qmax = setting.contract, setting.qmax
    floored = amax.clamp(min=_fp32(contract.amax_floor))
    if contract.scale_rule == "multiply":
        scale = round_fp32(floored * reciprocal_of(qmax))
    else:
        scale = round_fp32(floored / qmax)
    if contract.scale_floor_divisor is not None:
        scale = scale.clamp(min=_fp32(1.0 / (qmax * contract.scale_floor_divisor)))
    return scale


def _scale_ends(
    amax_low: torch.Tensor, amax_high: torch.Tensor, amax_nominal: torch.Tensor, setting: Setting
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(low, high, nominal) of ``scales``, before the rule for a scale of 0."""
    contract, floor = setting.contract, setting.contract.floor
    low, high, nominal = _plain_scale(torch.stack((amax_low, amax_high, amax_nominal)), setting).unbind()
    if contract.scale_u > 1.0:
        width = contract.scale_u * budgets.U + budgets.FLOAT64_SLACK
        # A scale that is wholly a constant floor is stored, not computed, where the floor is on the scale itself.
        computed = amax_high >= floor if floor > 0 and contract.scale_floor_divisor else True
        low, high = low * (1 - width * computed), high * (1 + width * computed)
    if contract.round_scale:
        low, high, nominal = round_to(torch.stack((low, high, nominal)), setting.storage).unbind()
    return low, high, nominal


def scales(
    amax_low: torch.Tensor,
    amax_high: torch.Tensor,
    amax_nominal: torch.Tensor,
    setting: Setting,
    *,
    grid: FloatFormat | None,
    unspecified: torch.Tensor | None = None,
    nonfinite: torch.Tensor | None = None,
    tiny: torch.Tensor | float = TINY_SCALE,
) -> Scales:
    """Admissible scales from the interval of the kernel's fp32 amax before any floor; all float64 [m].

    fl32, the floors and the rounding to T are monotone, so the scale of each end bounds every admissible scale. An
    operation that is only good to ``scale_u`` widens the interval by that and is not rounded to fp32 again.
    unspecified, nonfinite: bool [m], or None where no row is. tiny: scale below which a row is not judged, [m] or one
    for all.
    """
    contract, floor = setting.contract, setting.contract.floor
    low, high, nominal = _scale_ends(amax_low, amax_high, amax_nominal, setting)
    safe = floor * (1 + 2.0**-20)
    kind = torch.full(amax_low.shape, int(Row.NORMAL), dtype=torch.int8, device=amax_low.device)
    ordinary = False
    if unspecified is None and nonfinite is None and amax_low.numel():
        # Few small operations where all is in order; a NaN fails both comparisons.
        least = float(amax_low.min())
        ordinary = least > 0 and least >= safe and bool((low >= 2 * tiny).all())
    if not ordinary:
        floored, zero = amax_low < safe, amax_high == 0
        if contract.zero_scale is not None:
            # The rule for a scale of 0 also meets rows whose scale underflows. It is not monotone: both ends are
            # ordered.
            ends = torch.stack((low, high, nominal))
            floored = floored | (ends == 0).any(dim=0)
            low, high, nominal = torch.where(ends == 0, torch.full_like(ends, zero_scale(setting)), ends).unbind()
            low, high = torch.minimum(low, high), torch.maximum(low, high)
        kind[floored] = int(Row.FLOORED)
        kind[low < tiny if unspecified is None else (low < tiny) | unspecified] = int(Row.UNSPECIFIED)
        kind[zero] = int(Row.ZERO if contract.zero_scale is not None or floor > 0 else Row.UNSPECIFIED)
        if nonfinite is not None:
            kind[nonfinite] = int(Row.NONFINITE)
    return Scales(
        setting=setting,
        grid=grid,
        kind=kind,
        nominal=nominal,
        low=low,
        high=high,
        amax_low=amax_low,
        amax_high=amax_high,
        ordinary=ordinary,
    )


def t_bounds(
    y_low: torch.Tensor, y_high: torch.Tensor, scale: torch.Tensor, setting: Setting
) -> tuple[torch.Tensor, torch.Tensor]:
    """``quotient_ends``, as the contract hands them to the encoder."""
    low, high = quotient_ends(y_low, y_high, scale, setting.contract)
    return in_storage(low, setting), in_storage(high, setting)


def in_storage(t: torch.Tensor, setting: Setting) -> torch.Tensor:
    """t (float64) as the contract hands it to the encoder: rounded to T where it says so, which is monotone."""
    return round_to(t, setting.storage) if setting.contract.round_quotient else t


class Division(Protocol):
    """What a contract says about t = y/s; ``reference.contract`` has the fields' meaning."""

    @property
    def division(self) -> str: ...

    @property
    def reciprocal_u(self) -> float: ...


def quotient_ends(
    y_low: torch.Tensor, y_high: torch.Tensor, scale: torch.Tensor, contract: Division
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends of t = y/s for magnitudes y in [y_low, y_high] (fp32 values) and the row's scale s.

    Float64. A correctly rounded division or reciprocal is evaluated exactly (the set is one value when y is); a
    reciprocal good to k*u is widened by it, except for powers of two, whose reciprocal every declared unit gives
    exactly (AMD ISA, V_RCP_F32 examples; CUDA div.full and rcp likewise). The product of two fp32 numbers is exact in
    float64, so fl32 is applied to the exact product.
    """
    if contract.division == "divide" and contract.reciprocal_u <= 1.0:
        return round_fp32(y_low / scale), round_fp32(y_high / scale)
    width = contract.reciprocal_u * budgets.U + budgets.FLOAT64_SLACK
    if contract.division == "divide":
        low, high = y_low / scale, y_high / scale
        exact = is_power_of_two(scale)
        return torch.where(exact, low, low * (1 - width)), torch.where(exact, high, high * (1 + width))
    inverse = 1.0 / scale
    if contract.reciprocal_u <= 1.0:
        inverse_low = inverse_high = round_fp32(inverse)
    else:
        exact = is_power_of_two(scale)
        inverse_low = torch.where(exact, inverse, inverse * (1 - width))
        inverse_high = torch.where(exact, inverse, inverse * (1 + width))
    return round_fp32(y_low * inverse_low), round_fp32(y_high * inverse_high)


def is_power_of_two(values: torch.Tensor) -> torch.Tensor:
    """Which positive float64 values are powers of two."""
    return torch.frexp(values).mantissa == 0.5


class Membership(NamedTuple):
    """Of e codes: which are admissible, which of them are the only admissible one (bool [e]), and the ends of the t
    that round to each (float64 [e])."""

    admissible: torch.Tensor
    single: torch.Tensor
    least: torch.Tensor
    most: torch.Tensor


@dataclass(frozen=True)
class Codes:
    """Admissible codes of e elements, given by t = y/s before it is encoded: nominal and ends, signed float64 [e].

    RNE is monotone and onto, so the admissible codes are those whose preimage meets it (docs/derivations.md 5).
    """

    setting: Setting
    nominal: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor

    @classmethod
    def signed(
        cls, setting: Setting, nominal: torch.Tensor, low: torch.Tensor, high: torch.Tensor, *, negative: torch.Tensor
    ) -> Codes:
        """From magnitudes and, bool [e], which elements are negative."""
        return cls(
            setting,
            torch.where(negative, -nominal, nominal),
            torch.where(negative, -high, low),
            torch.where(negative, -low, high),
        )

    def admits(self, codes: torch.Tensor) -> Membership:
        """Which codes (uint8 [e], where the bounds are) some t of the interval rounds to.

        -0 and +0 of e4m3fn are one value; 0x80 of e4m3fnuz is NaN and never admissible for a finite t. NaN is
        admissible under overflow "nan" where the interval passes the overflow threshold. A bound that is NaN admits
        nothing.
        """
        fmt, overflow, place = self.setting.fp8, self.setting.contract.overflow, str(codes.device)
        low, high = code_preimages(fmt, overflow, place)
        index = codes.int()
        least, most = low.index_select(0, index), high.index_select(0, index)
        meets = (self.high >= least) & (self.low <= most)
        single = (self.low >= least) & (self.high <= most)
        if overflow == "nan":
            is_nan = decode_table(fmt, place).index_select(0, index).isnan()
            meets |= is_nan & (torch.maximum(self.high.abs(), self.low.abs()) > high[fmt.max_code])
        return Membership(meets, single, least, most)

    def encoded(self, t: torch.Tensor) -> torch.Tensor:
        """The code of each t, uint8."""
        return encode(t, self.setting.fp8, self.setting.contract.overflow)

    def steps(self, codes: torch.Tensor) -> torch.Tensor:
        """Signed distance of codes from the code of the nominal t, in codes, float64 [e]; no NaN codes."""
        return order_key(codes).double() - order_key(self.encoded(self.nominal)).double()

    def part(self, index: torch.Tensor) -> Codes:
        """Some of the elements, by index."""
        return Codes(self.setting, *(v.index_select(0, index) for v in (self.nominal, self.low, self.high)))
