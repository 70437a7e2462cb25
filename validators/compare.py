"""Compare the outputs of one kernel with the admissible sets of its contract. Data only; no policy.

Two tiers make a full verdict about as cheap as ``assert_close``. A *screen* in fp32 proves, with a margin
for its own rounding, that an element's code is the only admissible one; the few elements that it
cannot prove (about 1e-5 of them, or a wrong code) are *resolved* in float64 against the exact admissible set.
Row chunks keep extra memory flat.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch

from reference import budgets
from reference.add_rmsnorm_quant import (
    MIN_NORMAL,
    NormTruth,
    code_t_bounds,
    element_t_bounds,
    norm_truth,
    order,
    quant_truth,
    truth_of_rows,
)
from reference.contract import GemmContract, NormQuantContract
from reference.formats import (
    FloatFormat,
    Overflow,
    bytes_of,
    code_preimages,
    decode,
    encode,
    format_of,
    key_of,
    order_key,
    ulp,
)
from reference.quantize import Row, ScaleTruth, is_power_of_two, scale_admissible, t_bounds
from validators.cases.tensors import (
    GemmInputs,
    GemmOutputs,
    Inputs,
    NormQuantInputs,
    NormQuantOutputs,
    Outputs,
    QuantInputs,
    QuantOutputs,
)
from validators.records import Comparison, Element
from validators.survey import Surveyor, fits, trust, trusted
from validators.tally import Tally

SCREEN_SLACK_U = 5.0
"""The screen's own fp32 rounding in units of u: product z*w, factor Q/amax (or 1/s), their product, and twice the
rounding of a table entry to fp32; 4u in all, one more for second order."""


RESOLVE_ON_CPU = 2**13


class CompareError(ValueError):
    """Inputs, outputs and contract that do not belong together; one sentence."""


def compare(
    inputs: Inputs,
    outputs: Outputs,
    contract: NormQuantContract | GemmContract,
    *,
    survey: Surveyor | None = None,
) -> list[Comparison]:
    """Comparisons of every output of the op that ``inputs`` belongs to.

    Tensors may lie on any one device; the work is done there. survey: what ``validators.survey.survey_on`` gives for
    the device, to judge in one pass what is in order; the comparisons are the same without it. Raises CompareError if
    the contract is for another op.
    """
    with torch.inference_mode():
        if isinstance(inputs, GemmInputs):
            from validators.compare_gemm import compare_gemm

            if not isinstance(contract, GemmContract) or not isinstance(outputs, GemmOutputs):
                raise CompareError(f"contract {contract.name!r} does not belong to op ptpc_gemm")
            return compare_gemm(inputs, outputs, contract)
        if isinstance(contract, GemmContract):
            raise CompareError(f"contract {contract.name!r} belongs to op ptpc_gemm only")
        if isinstance(inputs, NormQuantInputs) and isinstance(outputs, NormQuantOutputs):
            return compare_norm_quant(inputs, outputs, contract, survey)
        if isinstance(inputs, QuantInputs) and isinstance(outputs, QuantOutputs):
            return compare_quant(inputs, outputs, contract)
        raise CompareError(f"outputs of type {type(outputs).__name__} do not belong to {type(inputs).__name__}")


def rows_per_chunk(cols: int, device: torch.device) -> int:
    """Rows whose temporaries stay in cache on a CPU (2**18 elements, measured fastest) and fill a GPU (2**25)."""
    elements = 2**18 if device.type == "cpu" else 2**25
    return max(1, elements // cols)


def compare_norm_quant(
    inputs: NormQuantInputs, outputs: NormQuantOutputs, contract: NormQuantContract, survey: Surveyor | None = None
) -> list[Comparison]:
    """Residual (bit for bit), scale and codes of ``add_rmsnorm_quant``."""
    n = inputs.x.shape[-1]
    x, residual = inputs.x.reshape(-1, n), None if inputs.residual is None else inputs.residual.reshape(-1, n)
    if survey is None or not fits(x, residual, contract):
        return _norm_quant(inputs, outputs, contract, None)
    key = (contract, inputs.fp8_dtype, n, residual is None, inputs.gemma, inputs.weight.dtype)
    if trusted(key):
        return _norm_quant(inputs, outputs, contract, survey)
    plain = _norm_quant(inputs, outputs, contract, None)
    trust(key, plain, _norm_quant(inputs, outputs, contract, survey))
    return plain


def _norm_quant(
    inputs: NormQuantInputs, outputs: NormQuantOutputs, contract: NormQuantContract, survey: Surveyor | None
) -> list[Comparison]:
    n = inputs.x.shape[-1]
    x, fp8 = inputs.x.reshape(-1, n), format_of(inputs.fp8_dtype)
    residual = None if inputs.residual is None else inputs.residual.reshape(-1, n)
    codes, scale = bytes_of(outputs.codes).reshape(-1, n), outputs.scale.reshape(-1)
    stored = None if outputs.residual_out is None else outputs.residual_out.reshape(-1, n)
    rows, qmax, storage = x.shape[0], contract.qmax(fp8.name), format_of(x.dtype)
    tallies = [Tally("scale", rows, 1), Tally("codes", rows, n)]
    residual_tally = Tally("residual_out", rows, n) if residual is not None else None
    step = rows_per_chunk(n, x.device)
    for first in range(0, rows, step):
        part = slice(first, min(rows, first + step))
        chunk = None if residual is None else residual[part]
        if survey is not None and (residual is None) == (stored is None):
            own_part = None if stored is None else stored[part]
            if _surveyed(
                tallies, first, x[part], chunk, codes[part], own_part, scale[part], inputs, contract, fp8, survey
            ):
                if residual_tally is not None:
                    residual_tally.judged += x[part].numel()
                continue
        truth = norm_truth(x[part], chunk, inputs.weight, inputs.eps, contract, fp8.name, gemma=inputs.gemma)
        if residual_tally is not None and stored is not None and truth.residual is not None:
            _residual(residual_tally, first, truth.residual, stored[part], contract)
        own = _scales(tallies[0], first, scale[part], truth.scale, contract, qmax, truth.grid, truth)
        _norm_codes(tallies[1], first, codes[part], own, truth, contract, qmax, fp8, storage, inputs.gemma)
    found = [t.result() for t in tallies]
    return ([residual_tally.result()] if residual_tally is not None else []) + found


def _surveyed(
    tallies: list[Tally],
    first: int,
    x: torch.Tensor,
    residual: torch.Tensor | None,
    codes: torch.Tensor,
    stored: torch.Tensor | None,
    scale: torch.Tensor,
    inputs: NormQuantInputs,
    contract: NormQuantContract,
    fp8: FloatFormat,
    survey: Surveyor,
) -> bool:
    """Judge scales and codes of a chunk whose residual is right bit for bit and whose rows are all NORMAL, with what
    one pass saw; False, and nothing judged, where it is not such a chunk."""
    qmax = contract.qmax(fp8.name)
    bound = budgets.code_budget(contract, qmax, gemma=inputs.gemma).bound
    tables = screen_tables(fp8, contract.overflow, bound, x.device)
    unrounded = contract.norm_input == "unrounded"
    seen = survey(
        x, residual, inputs.weight, codes, stored, scale, tables, qmax, unrounded=unrounded, gemma=inputs.gemma
    )
    if seen is None:
        return False
    truth = truth_of_rows(
        seen.square_sum, seen.p_max, x, inputs.weight, None, inputs.eps, contract,
        fp8.name, format_of(x.dtype), gemma=inputs.gemma,
    )  # fmt: skip
    if bool((truth.scale.kind != int(Row.NORMAL)).any()):
        return False
    own = _scales(tallies[0], first, seen.scale, truth.scale, contract, qmax, truth.grid, truth)
    tallies[1].judged += x.numel()
    bounds = element_t_bounds(
        truth, seen.row, seen.z, seen.weight, own[seen.row], contract, qmax, format_of(x.dtype), gemma=inputs.gemma
    )
    _resolve(tallies[1], first, seen.row, seen.col, seen.code, bounds, fp8, contract)
    return True


def compare_quant(inputs: QuantInputs, outputs: QuantOutputs, contract: NormQuantContract) -> list[Comparison]:
    """Scale and codes of ``per_token_quant``."""
    n = inputs.x.shape[-1]
    x, fp8 = inputs.x.reshape(-1, n), format_of(inputs.fp8_dtype)
    codes, scale = bytes_of(outputs.codes).reshape(-1, n), outputs.scale.reshape(-1)
    qmax, storage = contract.qmax(fp8.name), format_of(x.dtype)
    tallies = [Tally("scale", x.shape[0], 1), Tally("codes", x.shape[0], n)]
    step = rows_per_chunk(n, x.device)
    for first in range(0, x.shape[0], step):
        part = slice(first, min(x.shape[0], first + step))
        chunk = x[part].float()
        truth = quant_truth(chunk, contract, fp8.name)
        own = _scales(tallies[0], first, scale[part], truth, contract, qmax, storage, None)
        screened = _screen(chunk, (1.0 / own).float(), codes[part], _division_bound(contract), fp8, contract)
        row, col = _suspects(tallies[1], first, screened, codes[part], truth.kind, fp8, contract)
        place = _resolve_on(row)
        y = chunk[row, col].double().to(place)
        scales = own.to(place)[row.to(place)]
        sign = torch.where(torch.signbit(y), -1.0, 1.0).double()
        low, high = t_bounds(y.abs(), y.abs(), scales, scales, contract)
        nominal = torch.minimum(torch.maximum(y.abs() / scales, low), high)
        _resolve(tallies[1], first, row, col, codes[part][row, col], order(nominal, low, high, sign), fp8, contract)
    return [t.result() for t in tallies]


def _residual(tally: Tally, first: int, expected: torch.Tensor, got: torch.Tensor, contract: NormQuantContract) -> None:
    """Bit equality with the contract's store."""
    fmt, want = format_of(got.dtype), expected
    tally.judged += got.numel()
    wrong = want.view(torch.int16) != got.view(torch.int16)
    if not bool(wrong.any()):
        return
    row, col = wrong.nonzero().unbind(1)
    w, g = want[row, col].double().cpu(), got[row, col].double().cpu()
    row, col = row.cpu(), col.cpu()
    fine = w.isnan() & g.isnan()  # any NaN payload is a NaN
    if contract.denormals == "either":
        fine |= (w.abs() < MIN_NORMAL) & (g == 0)
    bad = ~fine
    row, col, w, g = row[bad], col[bad], w[bad], g[bad]
    if row.numel() == 0:
        return
    tally.violation_points(row + first, col)
    _count_nonfinite(tally, g, w)
    steps = (key_of(g, fmt) - key_of(w, fmt)).round()
    tally.step_counts(steps)
    spacing = ulp(w, fmt)
    err = (g - w).abs()
    tally.use(torch.full_like(err, math.inf), torch.ones_like(err, dtype=torch.bool))

    def make(i: int) -> Element:
        value, bits = float(g[i]), got[int(row[i]), int(col[i])].view(torch.int16)
        return Element(
            int(row[i]) + first, int(col[i]), float(w[i]), float(w[i]), float(w[i]), value,
            f"0x{int(bits) & 0xFFFF:04x}", float(err[i]), 0.0, float(steps[i]), {"store (bit-exact)": 0.0},
        )  # fmt: skip

    tally.candidates(err / spacing, err, make)


def _count_nonfinite(tally: Tally, got: torch.Tensor, expected: torch.Tensor) -> None:
    """Non-finite table over violating elements: what came, what was expected."""
    tally.nonfinite["got_nan"] += int(got.isnan().sum())
    tally.nonfinite["got_inf"] += int(got.isinf().sum())
    tally.nonfinite["unexpected"] += int((~got.isfinite() & expected.isfinite()).sum())
    tally.nonfinite["missing"] += int((got.isfinite() & ~expected.isfinite()).sum())


def _scales(
    tally: Tally,
    first: int,
    got32: torch.Tensor,
    truth: ScaleTruth,
    contract: NormQuantContract,
    qmax: float,
    grid: FloatFormat | None,
    norm: NormTruth | None,
) -> torch.Tensor:
    """Judge the scales of a chunk; returns the scale that codes are judged with: the kernel's own where it
    is admissible, else the nominal one, so that a wrong scale is reported once and not as wrong codes too."""
    got32 = got32.cpu()
    got = got32.double()
    kind = truth.kind
    ok = scale_admissible(got, truth, contract, qmax, grid)
    plain = not bool((kind != int(Row.NORMAL)).any())
    nonfinite, skipped = kind == int(Row.NONFINITE), kind == int(Row.UNSPECIFIED)
    if plain:
        tally.judged += kind.numel()
    else:
        if contract.nonfinite == "propagate":
            ok = torch.where(nonfinite, got.isnan(), ok)
        else:
            skipped = skipped | nonfinite
        tally.judged += int((~skipped).sum())
        tally.unspecified += int(skipped.sum())
        _note_unspecified(tally, got, kind, skipped)
    judged = ~skipped
    bad = judged & ~ok
    err, budget = (got - truth.nominal).abs(), torch.maximum(truth.high - truth.nominal, truth.nominal - truth.low)
    regular = judged & ~nonfinite
    tally.ambiguous += int((regular & (truth.low < truth.high)).sum())
    # A budget of zero (single admissible value) has use 0 where hit and infinity where missed.
    use = torch.where(bad & (err <= budget), math.inf, err / budget)
    use = torch.where((err == 0) & ~bad, 0.0, use)
    tally.use(use if plain else use[regular], bad if plain else bad[regular])
    steps = _fp32_place(got32) - _fp32_place(truth.nominal.float())
    tally.step_counts(steps if plain else steps[regular])
    if bool(bad.any()):
        index = bad.nonzero().flatten()
        tally.violation_points(index + first, torch.zeros_like(index))
        want = torch.where(nonfinite, torch.full_like(got, math.nan), truth.nominal)
        _count_nonfinite(tally, got[index], want[index])

        def make(i: int) -> Element:
            r = int(index[i])
            terms = (
                budgets.rms_budget(contract, norm.z.shape[-1]) + budgets.multiply_budget(contract, gemma=False)
                if norm is not None
                else budgets.Budget(())
            ) + budgets.scale_step_budget(contract, qmax)
            return Element(
                r + first, 0, float(want[r]), float(truth.low[r]), float(truth.high[r]), float(got[r]),
                f"0x{int(got32[r].view(torch.int32)) & 0xFFFFFFFF:08x}", float(err[r]), float(budget[r]),
                float(steps[r]), terms.scaled(float(want[r])),
            )  # fmt: skip

        tally.candidates(use[index], err[index], make)
    return torch.where(ok & regular, got, truth.nominal)


def _fp32_place(values: torch.Tensor) -> torch.Tensor:
    """Position of fp32 values in their ordered list, int64: differences are steps of fp32."""
    bits = values.view(torch.int32).long()
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _note_unspecified(tally: Tally, got: torch.Tensor, kind: torch.Tensor, skipped: torch.Tensor) -> None:
    """What the kernel stored where the contract says nothing."""
    for value, what in (
        (Row.NONFINITE, "NaN or Inf in the row"),
        (Row.UNSPECIFIED, "overflow or underflow in the row"),
    ):
        rows = skipped & (kind == int(value))
        if bool(rows.any()):
            seen = got[rows]
            for words, mask in (
                ("scale NaN", seen.isnan()), ("scale Inf", seen.isinf()), ("scale 0", seen == 0),
                ("finite scale", seen.isfinite() & (seen != 0)),
            ):  # fmt: skip
                if bool(mask.any()):
                    tally.note(f"{what}: {words}", int(mask.sum()))


def _division_bound(contract: NormQuantContract) -> float:
    """Relative bound of the division stage alone, for the screen with the kernel's own scale."""
    return budgets.division_budget(contract).bound


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


def _screen(
    y: torch.Tensor,
    factor: torch.Tensor,
    codes: torch.Tensor,
    bound: float,
    fmt: FloatFormat,
    contract: NormQuantContract,
) -> torch.Tensor:
    """Which codes are proven to be the single admissible one, bool [m, n]; y fp32 [m, n], factor fp32 [m]."""
    low, high = screen_tables(fmt, contract.overflow, bound, y.device)
    index = codes.to(torch.int32).flatten()
    t = y * factor.to(y.device)[:, None]
    proven = t >= torch.index_select(low, 0, index).view_as(t)
    proven &= t <= torch.index_select(high, 0, index).view_as(t)
    return proven


def _norm_codes(
    tally: Tally,
    first: int,
    codes: torch.Tensor,
    own: torch.Tensor,
    truth: NormTruth,
    contract: NormQuantContract,
    qmax: float,
    fp8: FloatFormat,
    storage: FloatFormat,
    gemma: bool,
) -> None:
    """Screen, then resolve, the codes of a chunk of ``add_rmsnorm_quant``."""
    if contract.round_after_normalize or contract.round_after_weight:
        proven = _screen_rounded(codes, own, truth, contract, fp8, storage, gemma)
    else:
        factor = (qmax / truth.p_max).float()
        proven = _screen(truth.z * truth.weight, factor, codes, truth.code_bound, fp8, contract)
    row, col = _suspects(tally, first, proven, codes, truth.scale.kind, fp8, contract)
    scales = own.to(_resolve_on(row))[row.to(_resolve_on(row))]
    bounds = code_t_bounds(truth, row, col, scales, contract, qmax, storage, gemma=gemma)
    _resolve(tally, first, row, col, codes[row, col], bounds, fp8, contract)


def _screen_rounded(
    codes: torch.Tensor,
    own: torch.Tensor,
    truth: NormTruth,
    contract: NormQuantContract,
    fp8: FloatFormat,
    storage: FloatFormat,
    gemma: bool,
) -> torch.Tensor:
    """The screen where y is rounded to T: proven only where both ends of the rms interval round to one y."""
    from reference.add_rmsnorm_quant import rounded_y

    ends = [
        rounded_y(truth.z, truth.weight, rms[:, None].to(codes.device), contract, storage, direction, gemma)
        for rms, direction in ((truth.rms_low, -1.0), (truth.rms_high, 1.0))
    ]
    y = torch.copysign(ends[0], truth.z)
    y = torch.where(torch.signbit(truth.weight), -y, y)
    proven = _screen(y, (1.0 / own).float(), codes, _division_bound(contract), fp8, contract)
    proven &= ends[0] == ends[1]
    return proven


def _suspects(
    tally: Tally,
    first: int,
    proven: torch.Tensor,
    codes: torch.Tensor,
    kind: torch.Tensor,
    fmt: FloatFormat,
    contract: NormQuantContract,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(row, col) of the elements to resolve. Rows of other kinds are settled here, whole rows at a time."""
    regular = (kind == int(Row.NORMAL)) | (kind == int(Row.FLOORED))
    tally.judged += int(regular.sum()) * codes.shape[1]
    if bool((kind != int(Row.NORMAL)).any()):
        proven = proven & (kind == int(Row.NORMAL)).to(codes.device)[:, None]
        suspect = ~proven & regular.to(codes.device)[:, None]
        for r in (~regular).nonzero().flatten().tolist():
            _special_row(tally, first, r, codes[r].cpu(), Row(int(kind[r])), fmt, contract)
    else:
        suspect = ~proven
    row, col = suspect.nonzero().unbind(1)
    return row, col


def _special_row(
    tally: Tally, first: int, r: int, codes: torch.Tensor, kind: Row, fmt: FloatFormat, contract: NormQuantContract
) -> None:
    """A row of zeros must decode to zeros; a non-finite row must be NaN where the contract propagates."""
    values = decode(codes, fmt)
    if kind is Row.ZERO:
        bad, expected = values != 0, 0.0
    elif kind is Row.NONFINITE and contract.nonfinite == "propagate":
        bad, expected = ~values.isnan(), math.nan
    else:
        tally.unspecified += codes.numel()
        common = torch.bincount(codes.long(), minlength=256).topk(2)
        words = ", ".join(f"0x{int(c):02x} x {int(k)}" for k, c in zip(*(v.tolist() for v in common), strict=True) if k)
        tally.note(f"{kind.name.lower()} row: most frequent codes {words}")
        return
    tally.judged += codes.numel()
    if bool(bad.any()):
        col = bad.nonzero().flatten()
        tally.violation_points(torch.full_like(col, r + first), col)
        _count_nonfinite(tally, values[col], torch.full_like(values[col], expected))

        def make(i: int) -> Element:
            c = int(col[i])
            return Element(
                r + first, c, expected, expected, expected, float(values[c]), f"0x{int(codes[c]):02x}",
                abs(float(values[c]) - expected), 0.0, math.nan, {"zero row" if kind is Row.ZERO else "NaN row": 0.0},
            )  # fmt: skip

        tally.candidates(values[col].abs(), values[col], make)


def _resolve_on(row: torch.Tensor) -> torch.device:
    """Where to resolve: a few elements on the CPU, which a GPU's launches would outlast; many where they are."""
    return row.device if row.numel() > RESOLVE_ON_CPU else torch.device("cpu")


def _resolve(
    tally: Tally,
    first: int,
    row: torch.Tensor,
    col: torch.Tensor,
    code: torch.Tensor,
    bounds: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    fmt: FloatFormat,
    contract: NormQuantContract,
) -> None:
    """Judge gathered elements, code uint8 [e], in float64 by exact set membership."""
    if row.numel() == 0:
        return
    nominal, low, high = bounds
    place = nominal.device
    code, row, col = code.to(place), row.to(place), col.to(place)
    lowest, highest = code_preimages(fmt, contract.overflow, str(place))
    index = code.long()
    least, most = lowest[index], highest[index]
    admissible = (high >= least) & (low <= most)
    single = (low >= least) & (high <= most)
    values = decode(code, fmt)
    if contract.overflow == "nan":
        admissible |= values.isnan() & (torch.maximum(high.abs(), low.abs()) > highest[fmt.max_code])
    tally.ambiguous += int((admissible & ~single).sum())
    bad = ~admissible
    # err: how far the exact t lies outside the code's preimage; budget: how far the contract lets t move.
    err = torch.maximum(least - nominal, nominal - most).clamp(min=0.0)
    # Where y is rounded to T the nominal t is not rounded to fp32 like the ends are, hence the clamps.
    budget = torch.where(nominal < least, high - nominal, nominal - low).clamp(min=0.0)
    use = torch.where(err > 0, err / budget, 0.0)
    use = torch.where(bad, use, use.nan_to_num(nan=0.0, posinf=1.0).clamp(max=1.0))
    tally.use(use, bad)
    steps = order_key(code).double() - order_key(encode(nominal, fmt, contract.overflow)).double()
    steps = torch.where(values.isnan(), math.nan, steps)
    tally.step_counts(steps)
    if not bool(bad.any()):
        return
    wrong = bad.nonzero().flatten()
    tally.violation_points(row[wrong] + first, col[wrong])
    _count_nonfinite(tally, values[wrong], nominal[wrong])

    def make(i: int) -> Element:
        e = int(wrong[i])
        low_code, high_code = encode(torch.stack((low[e], high[e])), fmt, contract.overflow)
        ends = sorted((float(decode(low_code, fmt)), float(decode(high_code, fmt))))
        return Element(
            int(row[e]) + first, int(col[e]), float(nominal[e]), ends[0], ends[1], float(values[e]),
            f"0x{int(code[e]):02x}", float(err[e]), float(budget[e]), float(steps[e]), {},
        )  # fmt: skip

    tally.candidates(use[wrong], err[wrong], make)


__all__ = ["CompareError", "compare", "is_power_of_two", "rows_per_chunk", "screen_tables"]
