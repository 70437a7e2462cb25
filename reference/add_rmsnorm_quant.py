"""Float64 truth of residual add + RMSNorm + per-token FP8 quantization, and its admissible sets.

Rows are independent; every function takes a chunk of rows. What one fp32 operation defines exactly
(fl32(x + r), a product of known fp32 numbers) is evaluated by that IEEE operation; everything else is
float64 with outward bounds from ``budgets``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reference import budgets
from reference.contract import NormQuantContract
from reference.formats import FloatFormat, format_of, round_to
from reference.quantize import HUGE, TINY_SCALE, Row, ScaleTruth, in_storage, scale_truth, t_bounds

MIN_NORMAL = 2.0**-126


@dataclass(frozen=True)
class NormTruth:
    """Truth of a chunk of m rows by n columns.

    residual: of x's type [m, n], what the contract stores, None without residual. z: fp32 [m, n], the norm's input,
    exact. weight: fp32 [n], effective gamma. These lie where x does; the rest is float64 [m] on the CPU, because a GPU
    launches small kernels more slowly than a CPU computes them.
    p_max: max|z*w|. rms: 1/sqrt(mean(z^2)+eps). rms_low/high: ends of the kernel's fp32 value.
    scale: admissible scales and the kind of every row. grid: format of y before the quantizer, or None.
    """

    residual: torch.Tensor | None
    z: torch.Tensor
    weight: torch.Tensor
    p_max: torch.Tensor
    rms: torch.Tensor
    rms_low: torch.Tensor
    rms_high: torch.Tensor
    scale: ScaleTruth
    grid: FloatFormat | None
    code_bound: float
    y_bound: float


def fp32_ends(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest fp32 >= low and largest fp32 <= high, for non-negative float64 (in and out): the fp32 numbers inside
    [low, high]. NaN stays NaN."""
    up, down = low.to(torch.float32), high.to(torch.float32)
    # The next fp32 number of a non-negative one is the next integer of its bits; above the largest one lies infinity.
    up.view(torch.int32).add_((up < low).view(torch.int8))
    down.view(torch.int32).sub_((down > high).view(torch.int8))
    return up.double(), down.double()


def stored_residual(total: torch.Tensor, fmt: FloatFormat, contract: NormQuantContract) -> torch.Tensor:
    """fl32(x + r) (fp32) -> the value that residual_out holds, as fp32.

    RNE of the fp32 sum equals RNE of the exact sum: the sum is inexact in fp32 only where the exponents
    differ by more than 13 (fp16) or 16 (bf16), far from any midpoint of T (docs/derivations.md 2).
    """
    return round_to(total.double(), fmt, contract.store(fmt.name)).float()


def norm_input(
    x: torch.Tensor, residual: torch.Tensor | None, contract: NormQuantContract
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(z, stored residual): fp32 and x's type, [m, n]; x and residual bf16/fp16 [m, n]."""
    if residual is None:
        return x.float(), None
    # A bf16 or fp16 operand is widened exactly before the one fp32 addition.
    total = torch.add(x.float(), residual)
    if format_of(x.dtype).name == "bf16" and contract.store("bf16") == "rne":
        # The IEEE conversion; tests hold it against round_to over all ties on every device.
        stored = total.to(torch.bfloat16)
    elif format_of(x.dtype).name == "bf16":
        bits = total.view(torch.int32)
        # Clearing the low half of the bits truncates toward zero; a NaN keeps its top payload bit.
        stored = torch.where(total.isnan(), total, (bits & -65536).view(torch.float32)).to(torch.bfloat16)
    else:
        stored = stored_residual(total, format_of(x.dtype), contract).to(x.dtype)
    return (total if contract.norm_input == "unrounded" else stored.float()), stored


def effective_weight(weight: torch.Tensor, gemma: bool) -> torch.Tensor:
    """gamma (T or fp32 [n]) -> fp32 [n]; with gemma fl32(1 + gamma)."""
    return weight.float() + 1.0 if gemma else weight.float()


def norm_truth(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    contract: NormQuantContract,
    fp8: str,
    *,
    gemma: bool = False,
) -> NormTruth:
    """Truth of a chunk: x, residual [m, n] bf16/fp16, weight [n], fp8 the name of the code format."""
    z, stored = norm_input(x, residual, contract)
    w = effective_weight(weight, gemma)
    root = torch.linalg.vector_norm(z, dim=-1, dtype=torch.float64).cpu()
    fmt = format_of(x.dtype)
    p_max = exact_product_max(z, w).cpu()
    truth = truth_of_rows(root * root, p_max, z, w, stored, eps, contract, fp8, fmt, gemma=gemma)
    assert truth is not None  # only with a row_max
    return truth


@dataclass(frozen=True)
class RowMax:
    """max|y| of m rows where y is rounded to T on the way, float64 [m] on the CPU: at both ends of the rms interval and
    at the nominal rms, as ``rounded_row_max`` gives them. rms_low, rms_high, rms: the numbers it was formed with."""

    low: torch.Tensor
    high: torch.Tensor
    nominal: torch.Tensor
    rms_low: torch.Tensor
    rms_high: torch.Tensor
    rms: torch.Tensor


@dataclass(frozen=True)
class RmsEnds:
    """rms float64 [m], and the ends of the kernel's fp32 value of it; ordinary: all of it is known to be harmless."""

    rms: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    mean_square: torch.Tensor
    ordinary: bool


def rms_ends(square_sum: torch.Tensor, eps: float, contract: NormQuantContract, n: int) -> RmsEnds:
    """The reciprocal rms of rows of n elements from sums of squares, float64 [m]."""
    mean_square = square_sum / n
    rms = 1.0 / torch.sqrt(mean_square + eps)
    bound = budgets.rms_budget(contract, n).bound
    low, high = fp32_ends(rms * (1 - bound), rms * (1 + bound))
    ordinary = False
    if square_sum.numel():
        least, most = (float(end) for end in torch.aminmax(mean_square))
        # A NaN fails every comparison. rms <= 2**20 follows from the first.
        ordinary = least + eps >= 2.0**-39 and most * n <= HUGE
    return RmsEnds(rms, low, high, mean_square, ordinary)


def truth_of_rows(
    square_sum: torch.Tensor,
    p_max: torch.Tensor,
    z: torch.Tensor,
    w: torch.Tensor,
    stored: torch.Tensor | None,
    eps: float,
    contract: NormQuantContract,
    fp8: str,
    fmt: FloatFormat,
    *,
    gemma: bool,
    row_max: RowMax | None = None,
) -> NormTruth | None:
    """Truth of m rows from their sums: square_sum of z and p_max = max|z*w|, float64 [m] on the CPU.

    z fp32 [m, n], w fp32 [n] and stored are kept for the elements; z's values are read here only where the contract
    rounds y to T (fmt is T) and row_max is None. square_sum may be off by budgets.FLOAT64_SLACK relative, p_max is
    exact. None where row_max was formed with other ends of the rms interval than these sums give.
    """
    n = z.shape[-1]
    qmax = contract.qmax(fp8)
    ends = rms_ends(square_sum, eps, contract, n)
    rms, rms_low, rms_high, mean_square = ends.rms, ends.low, ends.high, ends.mean_square
    y_budget = budgets.multiply_budget(contract, gemma=gemma)
    grid = fmt if contract.round_after_weight else None
    least, most = (float(end) for end in torch.aminmax(p_max)) if p_max.numel() else (0.0, 0.0)
    unspecified = nonfinite = None
    if not (ends.ordinary and most <= HUGE):
        nonfinite = ~(mean_square.isfinite() & p_max.isfinite())
        # vector_norm may overflow or hide an Inf of float64 nowhere: |z| < 2**128 squares below 2**256.
        unspecified = (mean_square * n > HUGE) | (p_max > HUGE) | (mean_square + eps < 2.0**-100) | (rms > 2.0**20)
    if row_max is not None:
        # The nominal y depends on rms only after its rounding to fp32.
        pairs = ((row_max.rms_low, rms_low), (row_max.rms_high, rms_high), (row_max.rms.float(), rms.float()))
        if not all(torch.equal(a, b) for a, b in pairs):
            return None
        low, high, nominal = row_max.low, row_max.high, row_max.nominal
    elif contract.rounds_y:
        low, high = rounded_row_max(z, w, rms_low, rms_high, contract, fmt, gemma)
        nominal = rounded_row_max(z, w, rms, rms, contract, fmt, gemma, widen=False)[0]
    else:
        bound = budgets.rms_budget(contract, n).bound + y_budget.bound
        nominal = p_max * rms
        low, high = fp32_ends(nominal * (1 - bound), nominal * (1 + bound))
        if not least > 0:
            low, high = (torch.where(p_max == 0, torch.zeros_like(p_max), v) for v in (low, high))
    tiny = flush_scale(rms, square_sum, w, fmt) if contract.denormals == "either" else TINY_SCALE
    scale = scale_truth(low, high, nominal, unspecified, nonfinite, contract, qmax, fmt, tiny)
    return NormTruth(
        residual=stored,
        z=z,
        weight=w,
        p_max=p_max,
        rms=rms,
        rms_low=rms_low,
        rms_high=rms_high,
        scale=scale,
        grid=grid,
        code_bound=budgets.code_budget(contract, qmax, gemma=gemma).bound,
        y_bound=y_budget.bound,
    )


def flush_scale(rms: torch.Tensor, square_sum: torch.Tensor, w: torch.Tensor, fmt: FloatFormat) -> torch.Tensor:
    """Scale below which a row is not judged where operands and results below 2**-126 may be flushed: float64 [m].

    Let m = 2**-126, W = max|w|, Z = max|z| <= sqrt(square_sum). A flush changes an element in two ways only.

    1. Its product vanishes, because z, w, z*w, z*rms, rms*w or y is below m: |y| <= m * G, where G is the largest of
       W*rms, Z*rms, rms, W, Z and 1.
    2. z = fl32(x + r) reads a flushed x or r, both bf16 (an fp16 number is never below m). Where the other one is at
       least 2**25 m, the flushed one is less than half a step of the sum, which is the other one either way. So
       |z| <= 2**25 m + m, and |y| <= 2**26 m * rms * W; the same for a z that is rounded to T before it is read.

    With B the larger bound, a row whose scale is at least 2**12 B has |t| < 2**-12 * (1 + 2**-20) for such an element,
    and code 0 with and without the flush (codes begin at 2**-11). None of them is the row's maximum, which is near Q*s.
    The sum of squares moves by at most 2**-199 n by the second way and by 2n * m by flushed squares and partial sums:
    beside mean square + eps >= 2**-40 (a larger rms is not judged) that is 2**-84, inside ``budgets.FLOAT64_SLACK``.
    """
    top_w, top_z = w.abs().amax().double().cpu(), square_sum.sqrt()
    gain = torch.maximum(top_w, top_z).clamp(min=1.0) * rms.clamp(min=1.0)
    bound = MIN_NORMAL * gain
    if fmt.name == "bf16":
        bound = torch.maximum(bound, 2.0**26 * MIN_NORMAL * rms * top_w)
    return (2.0**12 * bound).clamp(min=TINY_SCALE)


def flushed_residual(
    x: torch.Tensor, residual: torch.Tensor, contract: NormQuantContract, fmt: FloatFormat
) -> torch.Tensor:
    """What the contract stores of x + r (values of T) if operands below 2**-126 are flushed: float64."""
    x, residual = (torch.where(v.abs() < MIN_NORMAL, torch.zeros_like(v), v).float() for v in (x, residual))
    return stored_residual(x + residual, fmt, contract).double()


def residual_flushes(
    got: torch.Tensor,
    want: torch.Tensor,
    x: torch.Tensor,
    residual: torch.Tensor,
    contract: NormQuantContract,
    fmt: FloatFormat,
) -> torch.Tensor:
    """Which stored values (float64, like all here) are what a flushed result or flushed operands give: bool.

    want: what is stored without a flush. A flushed zero has either sign.
    """
    if contract.denormals != "either":
        return torch.zeros_like(got, dtype=torch.bool)
    return ((want.abs() < MIN_NORMAL) & (got == 0)) | (got == flushed_residual(x, residual, contract, fmt))


def exact_product_max(z: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """max over columns of |z*w|, exact: fp32 z [m, n] and w [n] -> float64 [m].

    Products of 24-bit numbers are exact in float64.
    """
    largest: torch.Tensor = torch.linalg.vector_norm(z * w.double(), ord=float("inf"), dim=-1)
    return largest


def rounded_row_max(
    z: torch.Tensor,
    w: torch.Tensor,
    rms_low: torch.Tensor,
    rms_high: torch.Tensor,
    contract: NormQuantContract,
    fmt: FloatFormat,
    gemma: bool,
    *,
    widen: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends of max|y| per row where y is rounded to T on the way: float64 [m], values of T (or fp32)."""
    ends = []
    for rms, direction in ((rms_low, -1.0), (rms_high, 1.0)):
        y = rounded_y(z, w, rms[:, None].to(z.device), contract, fmt, direction if widen else 0.0, gemma)
        ends.append(y.amax(dim=-1).double().cpu())
    return ends[0], ends[1]


def rounded_y(
    z: torch.Tensor,
    w: torch.Tensor,
    rms: torch.Tensor,
    contract: NormQuantContract,
    fmt: FloatFormat,
    direction: float,
    gemma: bool,
) -> torch.Tensor:
    """|y| for a contract with rounding points, at one end of the rms interval: fp32, values after the last rounding.

    z [m, n], w [n] (or both gathered, same shape) fp32, rms float64 broadcastable (fp32 values).
    direction: -1 gives a lower bound, +1 an upper bound, 0 the nominal value.
    With a rounding after the normalisation the kernel's operations are known one by one: fl32(z*rms),
    RNE_T, fl32(h*w), RNE_T; all monotone in rms, so evaluating them at the ends is exact. Without it the
    order of the two products is free, and the end is widened by their budget first. The extra 3u
    there pay for evaluating the product in fp32 (one rounding of z*w, one of the factor, one of the product).
    """
    return _rounded(z, w, rms, *end_factors(contract, direction, gemma), contract, fmt)


def _rounded(
    z: torch.Tensor,
    w: torch.Tensor,
    rms: torch.Tensor,
    widening: float | torch.Tensor,
    weight: float | torch.Tensor,
    contract: NormQuantContract,
    fmt: FloatFormat,
) -> torch.Tensor:
    """|y| at ends given by their factors, numbers or tensors (float64 and fp32) that broadcast."""
    cast = {"bf16": torch.bfloat16, "fp16": torch.float16}[fmt.name]
    if contract.round_after_normalize:
        y = (z.abs() * rms.float()).to(cast).float() * (w.abs() * weight)
    else:
        y = (z * w).abs() * (rms * widening).float()
    return y.to(cast).float() if contract.round_after_weight else y


def rounded_ends(
    z: torch.Tensor, w: torch.Tensor, rms: torch.Tensor, contract: NormQuantContract, fmt: FloatFormat, gemma: bool
) -> torch.Tensor:
    """``rounded_y`` of gathered elements at the lower end, the upper end and the nominal rms: fp32 [3, e], rms float64
    [3, e] in that order."""
    factors = [end_factors(contract, direction, gemma) for direction in (-1.0, 1.0, 0.0)]
    widening = torch.tensor([[f] for f, _ in factors], dtype=torch.float64, device=rms.device)
    weight = torch.tensor([[f] for _, f in factors], dtype=torch.float32, device=w.device)
    return _rounded(z, w, rms, widening, weight, contract, fmt)


def end_factors(contract: NormQuantContract, direction: float, gemma: bool) -> tuple[float, float]:
    """What widens the ends of y: (factor of rms before it is rounded to fp32, factor of |w|); see ``rounded_y``."""
    widening = direction * budgets.U * (1.0 if gemma else 0.0)
    if contract.round_after_normalize:
        return 1.0, 1.0 + 2 * widening
    return 1 + direction * (5 * budgets.U) + widening, 1.0


def code_t_bounds(
    truth: NormTruth,
    row: torch.Tensor,
    col: torch.Tensor,
    scale: torch.Tensor,
    contract: NormQuantContract,
    qmax: float,
    fmt: FloatFormat,
    *,
    gemma: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(nominal, low, high) of the signed t = y/s of gathered elements (row, col): float64, shaped like row.

    The work is done where scale lies. scale: the kernel's own of each element's row (float64), already replaced by the
    nominal one where it is not admissible. Rows must be NORMAL or FLOORED. In a NORMAL row without rounding points the
    cancellation theorem applies (``budgets.code_budget``) and the kernel's scale does not enter.
    """
    place = scale.device
    z, w = truth.z[row, col].to(place), truth.weight[col].to(place)
    return element_t_bounds(truth, row.to(place), z, w, scale, contract, qmax, fmt, gemma=gemma)


def element_t_bounds(
    truth: NormTruth,
    row: torch.Tensor,
    z: torch.Tensor,
    w: torch.Tensor,
    scale: torch.Tensor,
    contract: NormQuantContract,
    qmax: float,
    fmt: FloatFormat,
    *,
    gemma: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``code_t_bounds`` of elements whose z and weight (fp32) were gathered already; all lie where scale does."""
    place = scale.device
    if truth.scale.ordinary and contract.cancels and not contract.round_quotient:
        t = z.double() * w.double() * (qmax / truth.p_max).to(place)[row]
        inner, outer = t * (1 - truth.code_bound), t * (1 + truth.code_bound)
        return t, torch.minimum(inner, outer), torch.maximum(inner, outer)
    sign = torch.where(torch.signbit(z) ^ torch.signbit(w), -1.0, 1.0).to(torch.float64)
    if contract.rounds_y:
        rms = torch.stack((truth.rms_low, truth.rms_high, truth.rms)).to(place)[:, row]
        low_y, high_y, mid_y = rounded_ends(z, w, rms, contract, fmt, gemma).double().unbind()
        low, high = t_bounds(low_y, high_y, scale, scale, contract, fmt)
        # Where the division is exact the ends coincide, and the nominal t is that fp32 number.
        nominal = in_storage(mid_y / scale, contract, fmt)
        return order(torch.minimum(torch.maximum(nominal, low), high), low, high, sign)
    p = (z.double() * w.double()).abs()
    cancelled = p * (qmax / truth.p_max.to(place)[row])
    floored = truth.scale.kind.to(place)[row] == int(Row.FLOORED)
    if not contract.cancels:
        floored = torch.ones_like(floored)
    ends = (cancelled, cancelled * (1 - truth.code_bound), cancelled * (1 + truth.code_bound))
    cancelled, low_cancelled, high_cancelled = (in_storage(v, contract, fmt) for v in ends)
    if not bool(floored.any()):
        return order(cancelled, low_cancelled, high_cancelled, sign)
    rms_low, rms_high, rms = (v.to(place)[row] for v in (truth.rms_low, truth.rms_high, truth.rms))
    own = p * rms
    bound = truth.y_bound
    rms_width_low, rms_width_high = rms_low * p * (1 - bound), rms_high * p * (1 + bound)
    low_own, high_own = t_bounds(rms_width_low, rms_width_high, scale, scale, contract, fmt)
    nominal = torch.where(floored, in_storage(own / scale, contract, fmt), cancelled)
    low = torch.where(floored, low_own, low_cancelled)
    high = torch.where(floored, high_own, high_cancelled)
    return order(nominal, low, high, sign)


def order(
    nominal: torch.Tensor, low: torch.Tensor, high: torch.Tensor, sign: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Magnitude bounds and a sign (+-1) -> signed (nominal, low, high) with low <= high."""
    return nominal * sign, torch.where(sign > 0, low, -high), torch.where(sign > 0, high, -low)


def y_nominal(truth: NormTruth, contract: NormQuantContract, fmt: FloatFormat, *, gemma: bool = False) -> torch.Tensor:
    """Nominal signed y of the whole chunk, float64 [m, n], with the contract's rounding points."""
    sign = torch.where(torch.signbit(truth.z) ^ torch.signbit(truth.weight), -1.0, 1.0).double()
    if contract.rounds_y:
        rms = truth.rms[:, None].to(truth.z.device)
        return rounded_y(truth.z, truth.weight, rms, contract, fmt, 0.0, gemma).double() * sign
    return truth.z.double() * truth.weight.double() * truth.rms[:, None].to(truth.z.device)


def quant_truth(
    x: torch.Tensor, contract: NormQuantContract, fp8: str, storage: FloatFormat | None = None
) -> ScaleTruth:
    """Truth of ``per_token_quant`` for a chunk x [m, n]: amax is exact, so the scale is one value (or scale_u wide).

    x may have been widened to fp32; storage is its own type then.
    """
    amax = x.abs().amax(dim=-1).double().cpu()
    # amax propagates NaN. A row with Inf and no NaN has scale Inf, and Inf/Inf in the cast: no source settles it.
    return scale_truth(amax, amax, amax, amax > HUGE, amax.isnan(), contract, contract.qmax(fp8), storage)
