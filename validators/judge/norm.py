"""Judge the outputs of the norm and of the per-token quantizer.

Two tiers make a full verdict about as cheap as ``assert_close``. A *screen* in fp32 proves, with a margin
for its own rounding, that an element's code is the only admissible one; the few elements that it
cannot prove (about 1e-5 of them, or a wrong code) are *resolved* in float64 against the exact admissible set.
Row chunks keep extra memory flat.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from reference import budgets
from reference.add_rmsnorm_quant import (
    NormTruth,
    RowMax,
    element_t_bounds,
    norm_truth,
    quant_truth,
    residual_flushes,
    truth_of_rows,
)
from reference.contract import NormQuantContract
from reference.formats import FloatFormat, bytes_of, format_of, key_of, ulp
from reference.quantize import Row, ScaleTruth, scale_admissible
from validators.cases.tensors import (
    Inputs,
    NormQuantInputs,
    NormQuantOutputs,
    QuantInputs,
    QuantOutputs,
)
from validators.judge.codes import norm_codes, quant_codes, resolve, survey_tables
from validators.judge.gpu.survey import Surveyor, fits, rules_of, trust, trusted
from validators.judge.tally import Tally
from validators.records.record import Comparison, Element


def norm_open(inputs: NormQuantInputs, contract: NormQuantContract) -> torch.Tensor:
    """``compare.open_rows`` of the norm, for a contract that settles every field."""
    n, fp8 = inputs.width, format_of(inputs.fp8_dtype).name
    x = inputs.x.reshape(-1, n)
    r = None if inputs.residual is None else inputs.residual.reshape(-1, n)

    def kinds(part: slice) -> torch.Tensor:
        own = None if r is None else r[part]
        return norm_truth(x[part], own, inputs.weight, inputs.eps, contract, fp8, gemma=inputs.gemma).scale.kind

    return _open(inputs, contract, kinds)


def quant_open(inputs: QuantInputs, contract: NormQuantContract) -> torch.Tensor:
    """The same of the quantizer."""
    x, fp8 = inputs.x.reshape(-1, inputs.width), format_of(inputs.fp8_dtype).name
    return _open(inputs, contract, lambda part: quant_truth(x[part].float(), contract, fp8, format_of(x.dtype)).kind)


def _open(inputs: Inputs, contract: NormQuantContract, kinds: Callable[[slice], torch.Tensor]) -> torch.Tensor:
    found, step = [torch.zeros(0, dtype=torch.bool)], rows_per_chunk(inputs.width, inputs.device)
    nan_is_open = contract.nonfinite == "unspecified"
    with torch.inference_mode():
        for first in range(0, inputs.row_count, step):
            kind = kinds(slice(first, first + step))
            opened = (kind == int(Row.UNSPECIFIED)) | ((kind == int(Row.NONFINITE)) & nan_is_open)
            found.append(opened.cpu())
    return torch.cat(found)


def rows_per_chunk(cols: int, device: torch.device) -> int:
    """Rows whose temporaries stay in cache on a CPU (2**18 elements, measured fastest) and fill a GPU (2**25)."""
    elements = 2**18 if device.type == "cpu" else 2**25
    return max(1, elements // cols)


def compare_norm_quant(
    inputs: NormQuantInputs,
    outputs: NormQuantOutputs,
    contract: NormQuantContract,
    survey: Surveyor | None = None,
    tally: type[Tally] = Tally,
) -> list[Comparison]:
    """Residual (bit for bit), scale and codes of ``add_rmsnorm_quant``."""
    n = inputs.x.shape[-1]
    x, residual = inputs.x.reshape(-1, n), None if inputs.residual is None else inputs.residual.reshape(-1, n)
    if survey is None or not fits(x, residual, contract):
        return _norm_quant(inputs, outputs, contract, None, tally)
    key = (contract, inputs.fp8_dtype, n, x.dtype, residual is None, inputs.gemma, inputs.weight.dtype)
    if trusted(key):
        return _norm_quant(inputs, outputs, contract, survey)
    plain = _norm_quant(inputs, outputs, contract, None)
    trust(key, plain, _norm_quant(inputs, outputs, contract, survey))
    return plain


def _norm_quant(
    inputs: NormQuantInputs,
    outputs: NormQuantOutputs,
    contract: NormQuantContract,
    survey: Surveyor | None,
    tally: type[Tally] = Tally,
) -> list[Comparison]:
    n = inputs.x.shape[-1]
    x, fp8 = inputs.x.reshape(-1, n), format_of(inputs.fp8_dtype)
    residual = None if inputs.residual is None else inputs.residual.reshape(-1, n)
    codes, scale = bytes_of(outputs.codes).reshape(-1, n), outputs.scale.reshape(-1)
    stored = None if outputs.residual_out is None else outputs.residual_out.reshape(-1, n)
    rows, qmax, storage = x.shape[0], contract.qmax(fp8.name), format_of(x.dtype)
    tallies = [tally("scale", rows, 1), tally("codes", rows, n)]
    residual_tally = tally("residual_out", rows, n) if residual is not None else None
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
            assert chunk is not None
            _residual(residual_tally, first, truth.residual, stored[part], contract, x[part], chunk)
        own = _scales(tallies[0], first, scale[part], truth.scale, contract, qmax, truth.grid, storage, truth)
        norm_codes(tallies[1], first, codes[part], own, truth, contract, qmax, fp8, storage, inputs.gemma)
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
    qmax, n, storage = contract.qmax(fp8.name), x.shape[-1], format_of(x.dtype)
    rules = rules_of(contract, n, qmax, inputs.eps, gemma=inputs.gemma, storage=storage.name)
    table = survey_tables(fp8, contract, qmax, inputs.gemma, x.device)
    seen = survey(x, residual, inputs.weight, codes, stored, scale, table, rules)
    if seen is None:
        return False
    row_max = None
    if seen.ends is not None:
        rms, rms_low, rms_high, low, high, nominal = seen.ends.unbind()
        row_max = RowMax(low, high, nominal, rms_low, rms_high, rms)
    truth = truth_of_rows(
        seen.square_sum,
        seen.p_max,
        x,
        inputs.weight,
        None,
        inputs.eps,
        contract,
        fp8.name,
        storage,
        gemma=inputs.gemma,
        row_max=row_max,
    )
    if truth is None or not truth.scale.ordinary:
        return False
    admissible = scale_admissible(seen.scale.double(), truth.scale, contract, qmax, truth.grid)
    # Where y is rounded, the pass held the codes against the kernel's own scales: no evidence where one is wrong.
    if rules.rounds and not bool(admissible.all()):
        return False
    own = _scales(tallies[0], first, seen.scale, truth.scale, contract, qmax, truth.grid, storage, truth, admissible)
    tallies[1].judged += x.numel()
    tallies[1].ambiguous += seen.choices
    if seen.row.numel() == 0:
        return True
    scales = own.to(seen.row.device)[seen.row]
    bounds = element_t_bounds(truth, seen.row, seen.z, seen.weight, scales, contract, qmax, storage, gemma=inputs.gemma)
    resolve(tallies[1], first, seen.row, seen.col, seen.code, bounds, fp8, contract)
    return True


def compare_quant(
    inputs: QuantInputs,
    outputs: QuantOutputs,
    contract: NormQuantContract,
    survey: Surveyor | None,
    tally: type[Tally] = Tally,
) -> list[Comparison]:
    """Scale and codes of ``per_token_quant``."""
    n = inputs.x.shape[-1]
    x, fp8 = inputs.x.reshape(-1, n), format_of(inputs.fp8_dtype)
    codes, scale = bytes_of(outputs.codes).reshape(-1, n), outputs.scale.reshape(-1)
    qmax, storage = contract.qmax(fp8.name), format_of(x.dtype)
    tallies = [tally("scale", x.shape[0], 1), tally("codes", x.shape[0], n)]
    step = rows_per_chunk(n, x.device)
    for first in range(0, x.shape[0], step):
        part = slice(first, min(x.shape[0], first + step))
        chunk = x[part].float()
        truth = quant_truth(chunk, contract, fp8.name, storage)
        own = _scales(tallies[0], first, scale[part], truth, contract, qmax, storage, storage, None)
        quant_codes(tallies[1], first, codes[part], own, chunk, truth.kind, contract, fp8, storage)
    return [t.result() for t in tallies]


def _residual(
    tally: Tally,
    first: int,
    expected: torch.Tensor,
    got: torch.Tensor,
    contract: NormQuantContract,
    x: torch.Tensor,
    residual: torch.Tensor,
) -> None:
    """Bit equality with the contract's store of x + residual, or with what a flush makes of it."""
    fmt, want = format_of(got.dtype), expected
    tally.judged += got.numel()
    wrong = want.view(torch.int16) != got.view(torch.int16)
    if not bool(wrong.any()):
        return
    row, col = wrong.nonzero().unbind(1)
    w, g, a, b = (v[row, col].double().cpu() for v in (want, got, x, residual))
    row, col = row.cpu(), col.cpu()
    fine = w.isnan() & g.isnan()  # any NaN payload is a NaN
    fine |= residual_flushes(g, w, a, b, contract, fmt)
    bad = ~fine
    row, col, w, g = row[bad], col[bad], w[bad], g[bad]
    if row.numel() == 0:
        return
    tally.violation_points(row + first, col)
    tally.count_nonfinite(g, w)
    steps = (key_of(g, fmt) - key_of(w, fmt)).round()
    tally.step_counts(steps)
    spacing = ulp(w, fmt)
    err = (g - w).abs()
    tally.use(torch.full_like(err, math.inf), torch.ones_like(err, dtype=torch.bool))

    def make(i: int) -> Element:
        value, bits = float(g[i]), got[int(row[i]), int(col[i])].view(torch.int16)
        return Element(
            int(row[i]) + first,
            int(col[i]),
            float(w[i]),
            float(w[i]),
            float(w[i]),
            value,
            f"0x{int(bits) & 0xFFFF:04x}",
            float(err[i]),
            0.0,
            float(steps[i]),
            {"store (bit-exact)": 0.0},
        )

    tally.candidates(err / spacing, err, make)


def _scales(
    tally: Tally,
    first: int,
    got32: torch.Tensor,
    truth: ScaleTruth,
    contract: NormQuantContract,
    qmax: float,
    grid: FloatFormat | None,
    storage: FloatFormat,
    norm: NormTruth | None,
    admissible: torch.Tensor | None = None,
) -> torch.Tensor:
    """Judge the scales of a chunk; returns the scale that codes are judged with: the kernel's own where it
    is admissible, else the nominal one, so that a wrong scale is reported once and not as wrong codes too.
    admissible: of ``scale_admissible`` where it is known already."""
    got32 = got32.cpu()
    got = got32.double()
    kind = truth.kind
    ok = scale_admissible(got, truth, contract, qmax, grid, storage) if admissible is None else admissible
    steps = _fp32_place(got32) - _fp32_place(truth.nominal.float())
    err, budget = (got - truth.nominal).abs(), torch.maximum(truth.high - truth.nominal, truth.nominal - truth.low)
    if truth.ordinary and bool(ok.all()):
        tally.judged += kind.numel()
        tally.ambiguous += int((truth.low < truth.high).sum())
        # 0/0 is a hit of the single admissible value.
        tally.use((err / budget).nan_to_num_(nan=0.0), None)
        tally.step_counts(steps)
        return got
    nonfinite, skipped = kind == int(Row.NONFINITE), kind == int(Row.UNSPECIFIED)
    if contract.nonfinite == "propagate":
        ok = torch.where(nonfinite, got.isnan(), ok)
    else:
        skipped = skipped | nonfinite
    tally.judged += int((~skipped).sum())
    tally.unspecified += int(skipped.sum())
    _note_unspecified(tally, got, kind, skipped)
    judged = ~skipped
    bad = judged & ~ok
    regular = judged & ~nonfinite
    tally.ambiguous += int((regular & (truth.low < truth.high)).sum())
    # A budget of zero (single admissible value) has use 0 where hit and infinity where missed.
    use = torch.where(bad & (err <= budget), math.inf, err / budget)
    use = torch.where((err == 0) & ~bad, 0.0, use)
    tally.use(use[regular], bad[regular])
    tally.step_counts(steps[regular])
    if bool(bad.any()):
        index = bad.nonzero().flatten()
        tally.violation_points(index + first, torch.zeros_like(index))
        want = torch.where(nonfinite, torch.full_like(got, math.nan), truth.nominal)
        tally.count_nonfinite(got[index], want[index])

        def make(i: int) -> Element:
            r = int(index[i])
            terms = (
                budgets.rms_budget(contract, norm.z.shape[-1]) + budgets.multiply_budget(contract, gemma=False)
                if norm is not None
                else budgets.Budget(())
            ) + budgets.scale_step_budget(contract, qmax)
            return Element(
                r + first,
                0,
                float(want[r]),
                float(truth.low[r]),
                float(truth.high[r]),
                float(got[r]),
                f"0x{int(got32[r].view(torch.int32)) & 0xFFFFFFFF:08x}",
                float(err[r]),
                float(budget[r]),
                float(steps[r]),
                terms.scaled(float(want[r])),
            )

        tally.candidates(use[index], err[index], make)
    return torch.where(ok & regular, got, truth.nominal)


def _fp32_place(values: torch.Tensor) -> torch.Tensor:
    """Position of fp32 values in their ordered list, int64: differences are steps of fp32."""
    bits = values.view(torch.int32).long()
    if not bool(torch.signbit(values).any()):
        return bits
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
                ("scale NaN", seen.isnan()),
                ("scale Inf", seen.isinf()),
                ("scale 0", seen == 0),
                ("finite scale", seen.isfinite() & (seen != 0)),
            ):
                if bool(mask.any()):
                    tally.note(f"{what}: {words}", int(mask.sum()))
