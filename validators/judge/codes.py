"""Compare FP8 codes with their admissible sets: a screen in fp32, and the exact judgement of what it cannot prove.

The screen proves, with a margin for its own rounding, that an element's code is the only admissible one; the few
elements that it cannot prove are resolved in float64. Rows of zeros and of NaN or Inf are judged as whole rows.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from reference import budgets
from reference.add_rmsnorm_quant import NormTruth, rounded_y
from reference.formats import FloatFormat, Overflow, code_preimages, decode
from reference.per_token_quant import QuantTruth
from reference.quantize import Codes, Membership, Row, Scales
from reference.setting import Setting
from validators.judge.tally import Tally
from validators.records.record import Element

SCREEN_SLACK_U = 5.0
"""The screen's own fp32 rounding in units of u: product z*w, factor Q/amax (or 1/s), their product, and twice the
rounding of a table entry to fp32; 4u in all, one more for second order."""
RESOLVE_ON_CPU = 2**13
"""Elements up to which the CPU resolves what a GPU screened. Speed only: no verdict depends on it."""


@lru_cache(maxsize=64)
def screen_tables(
    fmt: FloatFormat, overflow: Overflow, bound: float, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inner ends of each code's preimage for a nominal fp32 t: low, high fp32 [256].

    If low[c] <= t32 <= high[c], then every t within ``bound`` of the exact t rounds to c: the ends are moved
    inwards by bound + SCREEN_SLACK_U * u and rounded inwards to fp32.
    """
    low, high = code_preimages(fmt, overflow, "cpu")
    shrink = bound + SCREEN_SLACK_U * budgets.U
    inner_low, inner_high = low + shrink * low.abs(), high - shrink * high.abs()
    inner_low = torch.where(low.isfinite(), inner_low, low)
    inner_high = torch.where(high.isfinite(), inner_high, high)
    inf = torch.tensor(math.inf)
    low32, high32 = inner_low.float(), inner_high.float()
    low32 = torch.where(low32.double() < inner_low, torch.nextafter(low32, inf), low32)
    high32 = torch.where(high32.double() > inner_high, torch.nextafter(high32, -inf), high32)
    return low32.to(device), high32.to(device)


@lru_cache(maxsize=64)
def survey_tables(setting: Setting, device: torch.device) -> torch.Tensor:
    """Inner ends of each code's preimage for a t known in float64: float64 [3, 2, 256], low and high of three screens.

    The admissible t of an element are those within a relative bound b of a nominal t (or of the two t that y's ends
    give). With L, H a code's preimage, moved inwards by shares c of themselves:

    0. The code is the only admissible one if both t are inside for c = b/(1 - b): t >= L(1 + c) gives t(1 - b) >= L.
    1. It surely is not the only one if a t is outside for c = b/(1 + b): t > H(1 - c) gives t(1 + b) > H, and
       t < L(1 + c) gives t(1 - b) < L.
    2. It holds the nominal t, so that its error is 0, if that is inside for c = 0 (``resolve``).

    budgets.FLOAT64_SLACK makes the first two safe against the handful of float64 operations that form t, and is what
    the third is wider by. Where y is rounded to T, t is y/s with the kernel's own s, and b is the division's alone.
    Where every operation of the division is correctly rounded, both t are known to the bit: c = 0 decides the first
    two, and the nominal t moves by at most b. Where its reciprocal is not, the product still rounds by u, in the worst
    case back, so that b of the second screen is u less than the reciprocal's; and that screen is not valid for an s
    that is a power of two, whose reciprocal is exact (``reference.quantize.t_bounds``).
    """
    slack, contract = budgets.FLOAT64_SLACK, setting.contract
    if not contract.rounds_y:
        b = setting.code_bound
        shares = (b / (1 - b) + slack, b / (1 + b) - slack, -slack)
    else:
        b = setting.division_bound(rounded=False)
        if contract.reciprocal_u <= 1.0:
            shares = (0.0, 0.0, b / (1 - b) + slack)
        else:
            shares = (b / (1 - b) + slack, (contract.reciprocal_u - 1.0) * budgets.U - slack, -slack)
    ends = code_preimages(setting.fp8, contract.overflow, "cpu")
    tables = [
        torch.where(v.isfinite(), v + side * share * v.abs(), v)
        for share in shares
        for v, side in zip(ends, (1.0, -1.0), strict=True)
    ]
    return torch.stack(tables).view(3, 2, 256).to(device)


def _screen(y: torch.Tensor, factor: torch.Tensor, codes: torch.Tensor, bound: float, setting: Setting) -> torch.Tensor:
    """Which codes are proven to be the single admissible one, bool [m, n]; y fp32 [m, n], factor fp32 [m]."""
    low, high = screen_tables(setting.fp8, setting.contract.overflow, bound, y.device)
    index = codes.to(torch.int32).flatten()
    t = y * factor.to(y.device)[:, None]
    proven = t >= torch.index_select(low, 0, index).view_as(t)
    proven &= t <= torch.index_select(high, 0, index).view_as(t)
    return proven


def norm_codes(tally: Tally, first: int, codes: torch.Tensor, own: torch.Tensor, truth: NormTruth) -> None:
    """Screen, then resolve, the codes of a chunk of ``add_rmsnorm_quant``; codes uint8 [m, n], own float64 [m]: the
    scale that the codes are judged with."""
    setting = truth.setting
    if setting.contract.rounds_y:
        proven = _screen_rounded(codes, own, truth)
    elif setting.contract.cancels and not setting.contract.round_quotient:
        factor = (setting.qmax / truth.p_max).float()
        proven = _screen(truth.z * truth.weight, factor, codes, setting.code_bound, setting)
    else:
        # Nothing cancels, or t is rounded to T: no preset has that with a y in fp32, so every code is resolved.
        proven = torch.zeros(codes.shape, dtype=torch.bool, device=codes.device)
    _settle(tally, first, codes, own, truth, proven)


def quant_codes(tally: Tally, first: int, codes: torch.Tensor, own: torch.Tensor, truth: QuantTruth) -> None:
    """``norm_codes`` of a chunk of ``per_token_quant``."""
    proven = _screen(truth.x, (1.0 / own).float(), codes, truth.setting.division_bound(), truth.setting)
    _settle(tally, first, codes, own, truth, proven)


def _settle(
    tally: Tally,
    first: int,
    codes: torch.Tensor,
    own: torch.Tensor,
    truth: NormTruth | QuantTruth,
    proven: torch.Tensor,
) -> None:
    """Ask the truth about the codes that the screen has not proven."""
    row, col = _suspects(tally, first, proven, codes, truth.scale)
    # A few elements on the CPU, which a GPU's launches would outlast; many where they are.
    place = row.device if row.numel() > RESOLVE_ON_CPU else torch.device("cpu")
    scales = own.to(place)[row.to(place)]
    resolve(tally, first, row, col, codes[row, col], truth.codes(row, col, scales))


def _screen_rounded(codes: torch.Tensor, own: torch.Tensor, truth: NormTruth) -> torch.Tensor:
    """The screen where y is rounded to T: proven only where both ends of the rms interval round to one y."""
    ends = [
        rounded_y(truth.z, truth.weight, rms[:, None].to(codes.device), truth.setting, direction)
        for rms, direction in ((truth.rms_low, -1.0), (truth.rms_high, 1.0))
    ]
    y = torch.copysign(ends[0], truth.z)
    y = torch.where(torch.signbit(truth.weight), -y, y)
    proven = _screen(y, (1.0 / own).float(), codes, truth.setting.division_bound(), truth.setting)
    proven &= ends[0] == ends[1]
    return proven


def _suspects(
    tally: Tally, first: int, proven: torch.Tensor, codes: torch.Tensor, scales: Scales
) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, col) of the elements to resolve. Rows of other kinds are settled here, whole rows at a time."""
    regular, normal = scales.regular, scales.kind == int(Row.NORMAL)
    tally.judged += int(regular.sum()) * codes.shape[1]
    if scales.ordinary or bool(normal.all()):
        suspect = ~proven
    else:
        suspect = ~(proven & normal.to(codes.device)[:, None]) & regular.to(codes.device)[:, None]
        for r in (~regular).nonzero().flatten().tolist():
            _special_row(tally, first, r, codes[r].cpu(), scales)
    row, col = suspect.nonzero().unbind(1)
    return row, col


def _special_row(tally: Tally, first: int, r: int, codes: torch.Tensor, scales: Scales) -> None:
    """A row of zeros must decode to zeros; a non-finite row must be NaN where the contract propagates."""
    kind, due = Row(int(scales.kind[r])), scales.due(r)
    if due is None:
        tally.unspecified += codes.numel()
        common = torch.bincount(codes.long(), minlength=256).topk(2)
        words = ", ".join(f"0x{int(c):02x} x {int(k)}" for k, c in zip(*(v.tolist() for v in common), strict=True) if k)
        tally.note(f"{kind.name.lower()} row: most frequent codes {words}")
        return
    values = decode(codes, scales.setting.fp8)
    tally.judged += codes.numel()
    col = (~values.isnan() if math.isnan(due) else values != due).nonzero().flatten()
    if not col.numel():
        return
    tally.violation_points(torch.full_like(col, r + first), col)
    tally.count_nonfinite(values[col], torch.full_like(values[col], due))

    def make(i: int) -> Element:
        c = int(col[i])
        return Element(
            row=r + first,
            col=c,
            exact=due,
            low=due,
            high=due,
            got=float(values[c]),
            got_bits=f"0x{int(codes[c]):02x}",
            err=abs(float(values[c]) - due),
            budget=0.0,
            err_ulp=math.nan,
            terms={"zero row" if kind is Row.ZERO else "NaN row": 0.0},
        )

    tally.candidates(values[col].abs(), values[col], make)


def resolve(tally: Tally, first: int, row: torch.Tensor, col: torch.Tensor, code: torch.Tensor, codes: Codes) -> None:
    """Judge gathered elements (row, col), code uint8 [e], in float64 by membership of codes."""
    if row.numel() == 0:
        return
    place = codes.nominal.device
    code, row, col = code.to(place), row.to(place), col.to(place)
    found = codes.admits(code)
    # A code that is the only admissible one has error 0 and step 0, and so has an admissible one that holds the exact
    # t: there is no more to say of them. An exact t on a tie may be evaluated on either side of it, which is not the
    # kernel's error. (A bound that is not a number proves nothing.)
    slack = budgets.FLOAT64_SLACK * codes.nominal.abs()
    holds = found.admissible & (codes.nominal + slack >= found.least) & (codes.nominal - slack <= found.most)
    tally.ambiguous += row.numel() - int(found.single.sum())
    off = (~holds).nonzero().flatten()
    if off.numel() == 0:
        return
    if off.numel() < row.numel():
        codes, row, col, code = (codes.part(off), *(v.index_select(0, off) for v in (row, col, code)))
        found = Membership(*(v.index_select(0, off) for v in found))
    _tally_off(tally, row.long() + first, col.long(), code, codes, found)


def _tally_off(
    tally: Tally, row: torch.Tensor, col: torch.Tensor, code: torch.Tensor, codes: Codes, found: Membership
) -> None:
    """Count gathered codes that are not the nominal one; row: of the whole output."""
    bad = ~found.admissible
    violating = bool(bad.any())
    tally.ambiguous -= int(bad.sum()) if violating else 0
    nominal, values = codes.nominal, decode(code, codes.setting.fp8)
    # err: how far the exact t is outside the code's preimage; budget: how far the contract lets t move.
    err = torch.maximum(found.least - nominal, nominal - found.most).clamp(min=0.0)
    # Where y is rounded to T the nominal t is not rounded to fp32 like the ends are, hence the clamps.
    budget = torch.where(nominal < found.least, codes.high - nominal, nominal - codes.low).clamp(min=0.0)
    use = torch.where(err > 0, err / budget, 0.0)
    use = torch.where(bad, use, use.nan_to_num(nan=0.0, posinf=1.0).clamp(max=1.0))
    tally.use(use, bad if violating else None)
    steps = torch.where(values.isnan(), math.nan, codes.steps(code))
    tally.step_counts(steps)
    if not violating:
        return
    wrong = bad.nonzero().flatten()
    # In row order, whatever the order in which the elements were gathered.
    wrong = wrong[(row[wrong] * tally.cols + col[wrong]).argsort()]
    tally.violation_points(row[wrong], col[wrong])
    tally.count_nonfinite(values[wrong], nominal[wrong])

    def make(i: int) -> Element:
        e = wrong[i]
        ends = sorted(decode(codes.encoded(torch.stack((codes.low[e], codes.high[e]))), codes.setting.fp8).tolist())
        return Element(
            row=int(row[e]),
            col=int(col[e]),
            exact=float(nominal[e]),
            low=ends[0],
            high=ends[1],
            got=float(values[e]),
            got_bits=f"0x{int(code[e]):02x}",
            err=float(err[e]),
            budget=float(budget[e]),
            err_ulp=float(steps[e]),
        )

    tally.candidates(use[wrong], err[wrong], make)
