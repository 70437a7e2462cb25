"""Float64 truth of residual add + RMSNorm + per-token FP8 quantization, and its admissible sets.

Rows are independent; every function takes a chunk of rows. What one fp32 operation defines exactly
(fl32(x + r), a product of known fp32 numbers) is evaluated by that IEEE operation; everything else is
float64 with outward bounds from ``budgets``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reference import budgets
from reference.formats import round_to
from reference.quantize import HUGE, TINY_SCALE, Codes, Row, Scales, in_storage, scales, t_bounds
from reference.setting import Setting

MIN_NORMAL = 2.0**-126


@dataclass(frozen=True)
class Residuals:
    """Admissible residuals of x + residual (T [m, n]): what is stored (T [m, n]), or also what a flush makes of it."""

    setting: Setting
    stored: torch.Tensor
    x: torch.Tensor
    residual: torch.Tensor

    def differ(self, got: torch.Tensor) -> torch.Tensor:
        """Which of got, T [m, n], are not the stored values bit for bit: bool [m, n]."""
        return self.stored.view(torch.int16) != got.view(torch.int16)

    def flushed(self, got: torch.Tensor, row: torch.Tensor, col: torch.Tensor) -> torch.Tensor:
        """Which elements, got float64 [e] on the CPU, are what a flushed result or flushed operands give: bool [e].

        A flushed zero has either sign.
        """
        if self.setting.contract.denormals != "either":
            return torch.zeros_like(got, dtype=torch.bool)
        want, x, residual = (v[row, col].double().cpu() for v in (self.stored, self.x, self.residual))
        return ((want.abs() < MIN_NORMAL) & (got == 0)) | (got == flushed_residual(x, residual, self.setting))

    def admits(self, got: torch.Tensor, row: torch.Tensor, col: torch.Tensor) -> torch.Tensor:
        """Which elements that ``differ`` are admissible still: got float64 [e] on the CPU -> bool [e]."""
        both_nan = self.stored[row, col].cpu().isnan() & got.isnan()  # any NaN payload is a NaN
        return both_nan | self.flushed(got, row, col)


@dataclass(frozen=True, kw_only=True)
class NormTruth:
    """Truth of a chunk of m rows by n columns: what is admissible of each output.

    residuals: None without residual. z: fp32 [m, n], the norm's input, exact. weight: fp32 [n], effective gamma. These
    are on the device of x; the rest is float64 [m] on the CPU, because a GPU launches small kernels more slowly than
    a CPU computes them.
    p_max: max|z*w|. rms: 1/sqrt(mean(z^2)+eps). rms_low/high: ends of the kernel's fp32 value.
    """

    setting: Setting
    residuals: Residuals | None
    z: torch.Tensor
    weight: torch.Tensor
    p_max: torch.Tensor
    rms: torch.Tensor
    rms_low: torch.Tensor
    rms_high: torch.Tensor
    scale: Scales

    @property
    def y(self) -> torch.Tensor:
        """Nominal signed y of the whole chunk, float64 [m, n], with the contract's rounding points."""
        rms = self.rms[:, None].to(self.z.device)
        if not self.setting.contract.rounds_y:
            return self.z.double() * self.weight.double() * rms
        size = rounded_y(self.z, self.weight, rms, self.setting, 0.0).double()
        return torch.where(torch.signbit(self.z) ^ torch.signbit(self.weight), -size, size)

    @property
    def cancels(self) -> bool:
        """Whether the kernel's rms cancels in the codes of a NORMAL row."""
        return self.setting.contract.cancels

    @property
    def scale_budget(self) -> budgets.Budget:
        """Of the scale, where y stays fp32."""
        return self.setting.rms_budget + self.setting.y_budget + self.setting.step_budget

    def codes(self, row: torch.Tensor, col: torch.Tensor, scale: torch.Tensor) -> Codes:
        """Admissible codes of gathered elements (row, col); the work is done on the device of scale.

        scale: the kernel's own of each element's row (float64), already replaced by the nominal one where it is not
        admissible. Rows must be NORMAL or FLOORED. In a NORMAL row without rounding points the cancellation theorem
        applies (``budgets.code_budget``) and the kernel's scale does not enter.
        """
        place = scale.device
        return self.codes_of(row.to(place), self.z[row, col].to(place), self.weight[col].to(place), scale)

    def codes_of(self, row: torch.Tensor, z: torch.Tensor, w: torch.Tensor, scale: torch.Tensor) -> Codes:
        """``codes`` of elements whose z and weight (fp32) were gathered already; all on the device of scale."""
        setting, place = self.setting, scale.device
        contract, bound = setting.contract, setting.code_bound
        if self.scale.ordinary and contract.cancels and not contract.round_quotient:
            t = z.double() * w.double() * (setting.qmax / self.p_max).to(place)[row]
            inner, outer = t * (1 - bound), t * (1 + bound)
            return Codes(setting, t, torch.minimum(inner, outer), torch.maximum(inner, outer))
        negative = torch.signbit(z) ^ torch.signbit(w)
        if contract.rounds_y:
            rms = torch.stack((self.rms_low, self.rms_high, self.rms)).to(place)[:, row]
            low_y, high_y, mid_y = rounded_ends(z, w, rms, setting).double().unbind()
            low, high = t_bounds(low_y, high_y, scale, setting)
            # Where the division is exact the ends coincide, and the nominal t is that fp32 number.
            nominal = torch.minimum(torch.maximum(in_storage(mid_y / scale, setting), low), high)
            return Codes.signed(setting, nominal, low, high, negative=negative)
        p = (z.double() * w.double()).abs()
        middle = p * (setting.qmax / self.p_max.to(place)[row])
        nominal, low, high = (in_storage(v, setting) for v in (middle, middle * (1 - bound), middle * (1 + bound)))
        own = self.scale.kind.to(place)[row] == int(Row.FLOORED)
        if not contract.cancels:
            own = torch.ones_like(own)
        if bool(own.any()):
            ends = zip(self._by_own_scale(row, p, scale), (nominal, low, high), strict=True)
            nominal, low, high = (torch.where(own, mine, cancelled) for mine, cancelled in ends)
        return Codes.signed(setting, nominal, low, high, negative=negative)

    def _by_own_scale(self, row: torch.Tensor, p: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(nominal, low, high) of |t| where y stays fp32 and nothing cancels; p = |z*w|."""
        rms_low, rms_high, rms = (v.to(scale.device)[row] for v in (self.rms_low, self.rms_high, self.rms))
        bound = self.setting.y_bound
        ends = t_bounds(rms_low * p * (1 - bound), rms_high * p * (1 + bound), scale, self.setting)
        return in_storage(p * rms / scale, self.setting), *ends


def fp32_ends(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Smallest fp32 >= low and largest fp32 <= high, for non-negative float64 (in and out): the fp32 numbers inside
    [low, high]. NaN stays NaN."""
    up, down = low.to(torch.float32), high.to(torch.float32)
    # The next fp32 number of a non-negative one is the next integer of its bits; above the largest one is infinity.
    up.view(torch.int32).add_((up < low).view(torch.int8))
    down.view(torch.int32).sub_((down > high).view(torch.int8))
    return up.double(), down.double()


def stored_residual(total: torch.Tensor, setting: Setting) -> torch.Tensor:
    """fl32(x + r) (fp32) -> the value that residual_out holds, as fp32.

    RNE of the fp32 sum equals RNE of the exact sum: the sum is inexact in fp32 only where the exponents
    differ by more than 13 (fp16) or 16 (bf16), far from any midpoint of T (docs/derivations.md 2).
    """
    return round_to(total.double(), setting.storage, setting.contract.store(setting.storage.name)).float()


def norm_input(
    x: torch.Tensor, residual: torch.Tensor | None, setting: Setting
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(z, stored residual): fp32 and x's type, [m, n]; x and residual bf16/fp16 [m, n]."""
    if residual is None:
        return x.float(), None
    # A bf16 or fp16 operand is widened exactly before the one fp32 addition.
    total = torch.add(x.float(), residual)
    if setting.storage.name != "bf16":
        stored = stored_residual(total, setting).to(x.dtype)
    elif setting.contract.store("bf16") == "rne":
        # The IEEE conversion; tests hold it against round_to over all ties on every device.
        stored = total.to(torch.bfloat16)
    else:
        bits = total.view(torch.int32)
        # Clearing the low half of the bits truncates toward zero; a NaN keeps its top payload bit.
        stored = torch.where(total.isnan(), total, (bits & -65536).view(torch.float32)).to(torch.bfloat16)
    return (total if setting.contract.norm_input == "unrounded" else stored.float()), stored


def effective_weight(weight: torch.Tensor, gemma: bool) -> torch.Tensor:
    """gamma (T or fp32 [n]) -> fp32 [n]; with gemma fl32(1 + gamma)."""
    return weight.float() + 1.0 if gemma else weight.float()


def norm_truth(x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, setting: Setting) -> NormTruth:
    """Truth of a chunk: x, residual [m, n] bf16/fp16, weight [n]."""
    z, stored = norm_input(x, residual, setting)
    w = effective_weight(weight, setting.gemma)
    root = torch.linalg.vector_norm(z, dim=-1, dtype=torch.float64).cpu()
    p_max = exact_product_max(z, w).cpu()
    residuals = None if stored is None or residual is None else Residuals(setting, stored, x, residual)
    truth = truth_of_rows(root * root, p_max, z, w, setting, residuals=residuals)
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


def rms_ends(square_sum: torch.Tensor, setting: Setting) -> RmsEnds:
    """The reciprocal rms of rows from sums of squares, float64 [m]."""
    mean_square = square_sum / setting.n
    rms = 1.0 / torch.sqrt(mean_square + setting.eps)
    bound = setting.rms_budget.bound
    low, high = fp32_ends(rms * (1 - bound), rms * (1 + bound))
    ordinary = False
    if square_sum.numel():
        least, most = (float(end) for end in torch.aminmax(mean_square))
        # A NaN fails every comparison. rms <= 2**20 follows from the first.
        ordinary = least + setting.eps >= 2.0**-39 and most * setting.n <= HUGE
    return RmsEnds(rms, low, high, mean_square, ordinary)


def truth_of_rows(
    square_sum: torch.Tensor,
    p_max: torch.Tensor,
    z: torch.Tensor,
    w: torch.Tensor,
    setting: Setting,
    *,
    residuals: Residuals | None = None,
    row_max: RowMax | None = None,
) -> NormTruth | None:
    """Truth of m rows from their sums: square_sum of z and p_max = max|z*w|, float64 [m] on the CPU.

    z fp32 [m, n], w fp32 [n] and residuals are kept for the elements; z's values are read here only where the contract
    rounds y to T and row_max is None. square_sum may be off by budgets.FLOAT64_SLACK relative, p_max is exact. None
    where row_max was formed with other ends of the rms interval than these sums give.
    """
    ends = rms_ends(square_sum, setting)
    amax = _amax(z, w, p_max, ends, setting) if row_max is None else _given_amax(row_max, ends)
    if amax is None:
        return None
    unspecified = nonfinite = None
    if not (ends.ordinary and (not p_max.numel() or float(p_max.max()) <= HUGE)):
        nonfinite = ~(ends.mean_square.isfinite() & p_max.isfinite())
        # vector_norm may overflow or hide an Inf of float64 nowhere: |z| < 2**128 squares below 2**256.
        unspecified = (ends.mean_square * setting.n > HUGE) | (p_max > HUGE)
        unspecified |= (ends.mean_square + setting.eps < 2.0**-100) | (ends.rms > 2.0**20)
    return NormTruth(
        setting=setting,
        residuals=residuals,
        z=z,
        weight=w,
        p_max=p_max,
        rms=ends.rms,
        rms_low=ends.low,
        rms_high=ends.high,
        scale=scales(
            *amax,
            setting,
            grid=setting.grid,
            unspecified=unspecified,
            nonfinite=nonfinite,
            tiny=flush_scale(ends.rms, square_sum, w, setting)
            if setting.contract.denormals == "either"
            else TINY_SCALE,
        ),
    )


Ends = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""(low, high, nominal) of the kernel's fp32 amax, float64 [m]."""


def _given_amax(given: RowMax, ends: RmsEnds) -> Ends | None:
    # The nominal y depends on rms only after its rounding to fp32.
    pairs = ((given.rms_low, ends.low), (given.rms_high, ends.high), (given.rms.float(), ends.rms.float()))
    return (given.low, given.high, given.nominal) if all(torch.equal(a, b) for a, b in pairs) else None


def _amax(z: torch.Tensor, w: torch.Tensor, p_max: torch.Tensor, ends: RmsEnds, setting: Setting) -> Ends:
    if setting.contract.rounds_y:
        nominal = rounded_row_max(z, w, ends.rms, ends.rms, setting, widen=False)[0]
        return *rounded_row_max(z, w, ends.low, ends.high, setting), nominal
    bound = setting.rms_budget.bound + setting.y_bound
    nominal = p_max * ends.rms
    low, high = fp32_ends(nominal * (1 - bound), nominal * (1 + bound))
    if not (p_max.numel() and float(p_max.min()) > 0):
        low, high = (torch.where(p_max == 0, torch.zeros_like(p_max), v) for v in (low, high))
    return low, high, nominal


def flush_scale(rms: torch.Tensor, square_sum: torch.Tensor, w: torch.Tensor, setting: Setting) -> torch.Tensor:
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
    against mean square + eps >= 2**-40 (a larger rms is not judged) that is 2**-84, inside ``budgets.FLOAT64_SLACK``.
    """
    top_w, top_z = w.abs().amax().double().cpu(), square_sum.sqrt()
    gain = torch.maximum(top_w, top_z).clamp(min=1.0) * rms.clamp(min=1.0)
    bound = MIN_NORMAL * gain
    if setting.storage.name == "bf16":
        bound = torch.maximum(bound, 2.0**26 * MIN_NORMAL * rms * top_w)
    return (2.0**12 * bound).clamp(min=TINY_SCALE)


def flushed_residual(x: torch.Tensor, residual: torch.Tensor, setting: Setting) -> torch.Tensor:
    """What the contract stores of x + r (values of T) if operands below 2**-126 are flushed: float64."""
    x, residual = (torch.where(v.abs() < MIN_NORMAL, torch.zeros_like(v), v).float() for v in (x, residual))
    return stored_residual(x + residual, setting).double()


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
    setting: Setting,
    *,
    widen: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ends of max|y| per row where y is rounded to T on the way: float64 [m], values of T (or fp32)."""
    ends = []
    for rms, direction in ((rms_low, -1.0), (rms_high, 1.0)):
        y = rounded_y(z, w, rms[:, None].to(z.device), setting, direction if widen else 0.0)
        ends.append(y.amax(dim=-1).double().cpu())
    return ends[0], ends[1]


def rounded_y(z: torch.Tensor, w: torch.Tensor, rms: torch.Tensor, setting: Setting, direction: float) -> torch.Tensor:
    """|y| for a contract with rounding points, at one end of the rms interval: fp32, values after the last rounding.

    z [m, n], w [n] (or both gathered, same shape) fp32, rms float64 broadcastable (fp32 values).
    direction: -1 gives a lower bound, +1 an upper bound, 0 the nominal value.
    With a rounding after the normalisation the kernel's operations are known one by one: fl32(z*rms),
    RNE_T, fl32(h*w), RNE_T; all monotone in rms, so evaluating them at the ends is exact. Without it the
    order of the two products is free, and the end is widened by their budget first. The extra 3u
    there pay for evaluating the product in fp32 (one rounding of z*w, one of the factor, one of the product).
    """
    return _rounded(z, w, rms, *end_factors(setting, direction), setting)


def _rounded(
    z: torch.Tensor,
    w: torch.Tensor,
    rms: torch.Tensor,
    widening: float | torch.Tensor,
    weight: float | torch.Tensor,
    setting: Setting,
) -> torch.Tensor:
    """|y| at ends given by their factors, numbers or tensors (float64 and fp32) that broadcast."""
    if setting.contract.round_after_normalize:
        y = (z.abs() * rms.float()).to(setting.dtype).float() * (w.abs() * weight)
    else:
        y = (z * w).abs() * (rms * widening).float()
    return y.to(setting.dtype).float() if setting.contract.round_after_weight else y


def rounded_ends(z: torch.Tensor, w: torch.Tensor, rms: torch.Tensor, setting: Setting) -> torch.Tensor:
    """``rounded_y`` of gathered elements at the lower end, the upper end and the nominal rms: fp32 [3, e], rms float64
    [3, e] in that order."""
    factors = [end_factors(setting, direction) for direction in (-1.0, 1.0, 0.0)]
    widening = torch.tensor([[f] for f, _ in factors], dtype=torch.float64, device=rms.device)
    weight = torch.tensor([[f] for _, f in factors], dtype=torch.float32, device=w.device)
    return _rounded(z, w, rms, widening, weight, setting)


def end_factors(setting: Setting, direction: float) -> tuple[float, float]:
    """What widens the ends of y: (factor of rms before it is rounded to fp32, factor of |w|); see ``rounded_y``."""
    widening = direction * budgets.U * (1.0 if setting.gemma else 0.0)
    if setting.contract.round_after_normalize:
        return 1.0, 1.0 + 2 * widening
    return 1 + direction * (5 * budgets.U) + widening, 1.0
