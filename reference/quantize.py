"""Admissible scales and codes of a row: the last stage of both quantizing ops.

Everything here is elementwise or per row in float64, broadcasts, and is exact or outward rounded, so a
caller may evaluate whole tensors, row chunks or a handful of gathered elements alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import torch

from reference import budgets
from reference.contract import NormQuantContract
from reference.formats import FloatFormat, code_preimages, decode_table, neighbours, round_fp32, round_to

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

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


@dataclass(frozen=True)
class ScaleTruth:
    """Per row, float64 [m]: nominal scale and the ends of its admissible set, and the row's kind (int8)."""

    kind: torch.Tensor
    nominal: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    amax_low: torch.Tensor
    amax_high: torch.Tensor
    ordinary: bool = False
    """Every row is known to be NORMAL; False says nothing."""


def reciprocal_of(qmax: float) -> float:
    """fl32(1/Q) as a float."""
    return _fp32(1.0 / qmax)


@lru_cache(maxsize=64)
def _fp32(value: float) -> float:
    return float(round_fp32(torch.tensor(value, dtype=torch.float64)))


def scale_of(
    amax: torch.Tensor, contract: NormQuantContract, qmax: float, storage: FloatFormat | None = None
) -> torch.Tensor:
    """The scale that the contract forms from an fp32 amax (float64 in, float64 out, any shape), correctly rounded.

    storage: T, needed where the contract rounds the scale to it or takes its epsilon.
    """
    scale = _plain_scale(amax, contract, qmax)
    if contract.round_scale:
        scale = round_to(scale, _storage(storage, contract))
    if contract.zero_scale is not None:
        scale = torch.where(scale == 0, torch.full_like(scale, zero_scale(contract, storage)), scale)
    return scale


def _storage(storage: FloatFormat | None, contract: NormQuantContract) -> FloatFormat:
    if storage is None:
        raise ValueError(f"contract {contract.name!r} rounds to the storage type, and none was given")
    return storage


def zero_scale(contract: NormQuantContract, storage: FloatFormat | None) -> float:
    """What the contract stores for a scale of 0, as a number."""
    assert contract.zero_scale is not None
    if contract.zero_scale == "eps":
        return 2.0 ** -_storage(storage, contract).mantissa
    return contract.zero_scale


def _plain_scale(amax: torch.Tensor, contract: NormQuantContract, qmax: float) -> torch.Tensor:
    """``scale_of`` in fp32, before it is rounded to T and before the rule for a scale of 0."""
    floored = amax.clamp(min=_fp32(contract.amax_floor))
    if contract.scale_rule == "multiply":
        scale = round_fp32(floored * reciprocal_of(qmax))
    else:
        scale = round_fp32(floored / qmax)
    if contract.scale_floor_divisor is not None:
        scale = scale.clamp(min=_fp32(1.0 / (qmax * contract.scale_floor_divisor)))
    return scale


def scale_truth(
    amax_low: torch.Tensor,
    amax_high: torch.Tensor,
    amax_nominal: torch.Tensor,
    unspecified: torch.Tensor | None,
    nonfinite: torch.Tensor | None,
    contract: NormQuantContract,
    qmax: float,
    storage: FloatFormat | None = None,
    tiny: torch.Tensor | float = TINY_SCALE,
) -> ScaleTruth:
    """Admissible scales from the interval of the kernel's fp32 amax before any floor; all float64 [m].

    fl32, the floors and the rounding to T (storage) are monotone, so the scale of each end bounds every admissible
    scale. An operation that is only good to ``scale_u`` widens the interval by that and is not rounded to fp32 again.
    unspecified, nonfinite: bool [m], or None where no row is. tiny: scale below which a row is not judged, [m] or one
    for all.
    """
    low, high, nominal = _plain_scale(torch.stack((amax_low, amax_high, amax_nominal)), contract, qmax).unbind()
    floor = max(contract.amax_floor, 1.0 / contract.scale_floor_divisor if contract.scale_floor_divisor else 0.0)
    safe = floor * (1 + 2.0**-20)
    if contract.scale_u > 1.0:
        width = contract.scale_u * budgets.U + budgets.FLOAT64_SLACK
        # A scale that is wholly a constant floor is stored, not computed, where the floor is on the scale itself.
        computed = amax_high >= floor if floor > 0 and contract.scale_floor_divisor else True
        low, high = low * (1 - width * computed), high * (1 + width * computed)
    if contract.round_scale:
        low, high, nominal = round_to(torch.stack((low, high, nominal)), _storage(storage, contract)).unbind()
    if unspecified is None and nonfinite is None and amax_low.numel():
        # Few small operations where all is in order; a NaN fails both comparisons.
        least = float(amax_low.min())
        if least > 0 and least >= safe and bool((low >= 2 * tiny).all()):
            kind = torch.full(amax_low.shape, int(Row.NORMAL), dtype=torch.int8, device=amax_low.device)
            return ScaleTruth(kind, nominal, low, high, amax_low, amax_high, ordinary=True)
    none = torch.zeros(amax_low.shape, dtype=torch.bool, device=amax_low.device)
    unspecified = none if unspecified is None else unspecified
    nonfinite = none if nonfinite is None else nonfinite
    floored = amax_low < safe
    zero = amax_high == 0
    if contract.zero_scale is not None:
        # The rule for a scale of 0 also meets rows whose scale underflows. It is not monotone: both ends are ordered.
        value = zero_scale(contract, storage)
        ends = torch.stack((low, high, nominal))
        floored = floored | (ends == 0).any(dim=0)
        low, high, nominal = torch.where(ends == 0, torch.full_like(ends, value), ends).unbind()
        low, high = torch.minimum(low, high), torch.maximum(low, high)
    kind = torch.full(amax_low.shape, int(Row.NORMAL), dtype=torch.int8, device=amax_low.device)
    kind[floored] = int(Row.FLOORED)
    kind[(low < tiny) | unspecified] = int(Row.UNSPECIFIED)
    has_zero_rule = contract.zero_scale is not None or floor > 0
    kind[zero] = int(Row.ZERO) if has_zero_rule else int(Row.UNSPECIFIED)
    kind[nonfinite] = int(Row.NONFINITE)
    return ScaleTruth(kind, nominal, low, high, amax_low, amax_high)


def scale_admissible(
    scale: torch.Tensor,
    truth: ScaleTruth,
    contract: NormQuantContract,
    qmax: float,
    grid: FloatFormat | None,
    storage: FloatFormat | None = None,
) -> torch.Tensor:
    """Which scales (float64 [m], the kernel's fp32 values) are admissible: bool [m].

    grid: the format that y is rounded to (or that x already has) before amax, None if y stays fp32. With a
    grid the amax is one of few numbers: the one nearest to s*Q must lie in the interval and give s exactly. storage: T,
    needed where the contract rounds the scale to it.

    A scale that is rounded to T lies within half a step of T of its amax/Q. Where it is normal in T, its step times Q
    is at most 1.875 steps of T at amax (Q is 1.75 or 1.875 times a power of two), so amax lies within 0.94 of its steps
    of s*Q: it is the value of T nearest to s*Q or one of that one's two neighbours. Where the scale is subnormal in T,
    its step is the coarser one, and the value nearest to s*Q gives s itself. Clamping to the interval loses none: the
    amax that give one s are consecutive values.
    """
    inside = (scale >= truth.low) & (scale <= truth.high)
    if contract.round_scale:
        t = _storage(storage, contract)
        if grid is None or contract.scale_u > 1.0:
            return inside & (round_to(scale, t) == scale)
        nearest = round_to(scale * qmax, t)
        exact = torch.zeros_like(inside)
        for amax in (nearest, *neighbours(nearest, t)):
            amax = torch.minimum(torch.maximum(amax, truth.amax_low), truth.amax_high)
            exact |= scale_of(amax, contract, qmax, t) == scale
        return inside & (exact | (truth.kind != int(Row.NORMAL)))
    if grid is None or contract.scale_u > 1.0:
        return inside
    # Values of T lie at least 2**-11 of themselves apart and one scale rule moves s*Q by 3u, so the nearest is the only
    # one. The IEEE conversions find it: what is within 3u of a value of T cannot round to another one in two steps.
    amax = (scale * qmax).float().to(_TYPES[grid.name]).double()
    amax = torch.minimum(torch.maximum(amax, truth.amax_low), truth.amax_high)
    exact = scale_of(amax, contract, qmax, storage) == scale
    return inside & (exact | (truth.kind != int(Row.NORMAL)))


def t_bounds(
    y_low: torch.Tensor,
    y_high: torch.Tensor,
    scale_low: torch.Tensor,
    scale_high: torch.Tensor,
    contract: NormQuantContract,
    storage: FloatFormat | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends of t = y/s for magnitudes y in [y_low, y_high] (fp32 values) and s in [scale_low, scale_high].

    Float64. A correctly rounded division or reciprocal is evaluated exactly (the set is one value when y
    and s are); a reciprocal good to k*u is widened by it, except for powers of two, whose reciprocal every
    declared unit gives exactly (AMD ISA, V_RCP_F32 examples; CUDA div.full and rcp likewise).
    The product of two fp32 numbers is exact in float64, so fl32 is applied to the exact product. storage: T, needed
    where the contract rounds the quotient to it, which is monotone.
    """
    low, high = _quotients(y_low, y_high, scale_low, scale_high, contract)
    return in_storage(low, contract, storage), in_storage(high, contract, storage)


def in_storage(t: torch.Tensor, contract: NormQuantContract, storage: FloatFormat | None) -> torch.Tensor:
    """t (float64) as the contract hands it to the encoder: rounded to T where it says so."""
    return round_to(t, _storage(storage, contract)) if contract.round_quotient else t


def _quotients(
    y_low: torch.Tensor,
    y_high: torch.Tensor,
    scale_low: torch.Tensor,
    scale_high: torch.Tensor,
    contract: NormQuantContract,
) -> tuple[torch.Tensor, torch.Tensor]:
    if contract.division == "divide" and contract.reciprocal_u <= 1.0:
        return round_fp32(y_low / scale_high), round_fp32(y_high / scale_low)
    width = contract.reciprocal_u * budgets.U + budgets.FLOAT64_SLACK
    if contract.division == "divide":
        low, high = y_low / scale_high, y_high / scale_low
        exact = is_power_of_two(scale_low) & (scale_low == scale_high)
        return torch.where(exact, low, low * (1 - width)), torch.where(exact, high, high * (1 + width))
    inverse_low, inverse_high = 1.0 / scale_high, 1.0 / scale_low
    if contract.reciprocal_u <= 1.0:
        inverse_high = round_fp32(inverse_high)
        inverse_low = inverse_high if scale_low is scale_high else round_fp32(inverse_low)
    else:
        inverse_low = torch.where(is_power_of_two(scale_high), inverse_low, inverse_low * (1 - width))
        inverse_high = torch.where(is_power_of_two(scale_low), inverse_high, inverse_high * (1 + width))
    return round_fp32(y_low * inverse_low), round_fp32(y_high * inverse_high)


def is_power_of_two(values: torch.Tensor) -> torch.Tensor:
    """Which positive float64 values are powers of two."""
    return torch.frexp(values).mantissa == 0.5


def codes_admissible(
    codes: torch.Tensor, t_low: torch.Tensor, t_high: torch.Tensor, fmt: FloatFormat, contract: NormQuantContract
) -> tuple[torch.Tensor, torch.Tensor]:
    """(admissible, single): is each code (uint8) one that some t in [t_low, t_high] rounds to, and the only one?

    t_low <= t_high signed float64. RNE is monotone and onto, so the admissible codes are those whose
    preimage meets the interval (docs/derivations.md 5). -0 and +0 of e4m3fn are one value; 0x80 of e4m3fnuz
    is NaN and never admissible for a finite t. NaN is admissible under overflow "nan" where the interval
    passes the overflow threshold.
    """
    low, high = code_preimages(fmt, contract.overflow, str(codes.device))
    index = codes.long()
    meets = (t_high >= low[index]) & (t_low <= high[index])
    inside = (t_low >= low[index]) & (t_high <= high[index])
    if contract.overflow == "nan":
        top = float(high[fmt.max_code])
        is_nan = decode_table(fmt, str(codes.device))[index].isnan()
        meets = meets | (is_nan & (torch.maximum(t_high.abs(), t_low.abs()) > top))
    return meets, inside & meets
