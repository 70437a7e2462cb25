"""Judge the outputs of the norm and of the per-token quantizer.

Two tiers make a full verdict about as cheap as ``assert_close``. A *screen* in fp32 proves, with a margin
for its own rounding, that an element's code is the only admissible one; the few elements that it
cannot prove (about 1e-5 of them, or a wrong code) are *resolved* in float64 against the exact admissible set.
Row chunks keep extra memory flat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from reference.add_rmsnorm_quant import NormTruth, Residuals, RowMax, norm_truth, truth_of_rows
from reference.contract import NormQuantContract
from reference.formats import bytes_of, key_of, ulp
from reference.per_token_quant import QuantTruth, quant_truth
from reference.setting import Setting
from validators.cases.tensors import Inputs, NormQuantInputs, NormQuantOutputs, QuantInputs, QuantOutputs
from validators.judge.codes import norm_codes, quant_codes, resolve, survey_tables
from validators.judge.gpu.survey import Surveyor, fits, rules_of, trust, trusted
from validators.judge.scales import judge_scales
from validators.judge.sets import chunks
from validators.judge.tally import Tally
from validators.records.record import Comparison, Element

Truth = NormTruth | QuantTruth


def truth_of(inputs: Inputs, setting: Setting, rows: slice = slice(None)) -> Truth:
    """What is admissible of some rows of the flattened inputs of the norm or the quantizer."""
    return _TRUTHS[inputs.op](inputs, setting, rows)


def _norm_truth(inputs: NormQuantInputs, setting: Setting, rows: slice) -> NormTruth:
    n, residual = inputs.width, inputs.residual
    return norm_truth(
        inputs.x.reshape(-1, n)[rows],
        None if residual is None else residual.reshape(-1, n)[rows],
        inputs.weight,
        setting,
    )


def _quant_truth(inputs: QuantInputs, setting: Setting, rows: slice) -> QuantTruth:
    return quant_truth(inputs.x.reshape(-1, inputs.width)[rows], setting)


_TRUTHS: dict[str, Callable[[Any, Setting, slice], Truth]] = {
    "add_rmsnorm_quant": _norm_truth,
    "per_token_quant": _quant_truth,
}


def open_rows(inputs: NormQuantInputs | QuantInputs, contract: NormQuantContract) -> torch.Tensor:
    """``compare.open_rows`` of both ops, for a contract that settles every field."""
    setting, found = Setting.of(inputs, contract), [torch.zeros(0, dtype=torch.bool)]
    with torch.inference_mode():
        found += [truth_of(inputs, setting, part).scale.open for part in chunks(inputs)]
    return torch.cat(found)


@dataclass(frozen=True)
class _Arrays:
    """Inputs and outputs of the norm as matrices: x, residual and stored T [m, n], codes uint8 [m, n], scale fp32 [m].

    first: the row of the whole output that their row 0 is."""

    first: int
    x: torch.Tensor
    residual: torch.Tensor | None
    weight: torch.Tensor
    codes: torch.Tensor
    stored: torch.Tensor | None
    scale: torch.Tensor

    @classmethod
    def of(cls, inputs: NormQuantInputs, outputs: NormQuantOutputs) -> _Arrays:
        n = inputs.width
        residual, stored = (None if t is None else t.reshape(-1, n) for t in (inputs.residual, outputs.residual_out))
        codes, scale = bytes_of(outputs.codes).reshape(-1, n), outputs.scale.reshape(-1)
        return cls(0, inputs.x.reshape(-1, n), residual, inputs.weight, codes, stored, scale)

    def part(self, rows: slice) -> _Arrays:
        residual, stored = (None if t is None else t[rows] for t in (self.residual, self.stored))
        return _Arrays(rows.start, self.x[rows], residual, self.weight, self.codes[rows], stored, self.scale[rows])


@dataclass(frozen=True)
class _Tallies:
    residual: Tally | None
    scale: Tally
    codes: Tally

    def results(self) -> list[Comparison]:
        return [t.result() for t in (self.residual, self.scale, self.codes) if t is not None]


def compare_norm_quant(
    inputs: NormQuantInputs,
    outputs: NormQuantOutputs,
    contract: NormQuantContract,
    survey: Surveyor | None = None,
    tally: type[Tally] = Tally,
) -> list[Comparison]:
    """Residual (bit for bit), scale and codes of ``add_rmsnorm_quant``."""
    arrays, setting = _Arrays.of(inputs, outputs), Setting.of(inputs, contract)
    parts = chunks(inputs)
    if survey is None or not fits(arrays.x, arrays.residual, contract):
        return _norm_quant(arrays, parts, setting, None, tally)
    key = (
        arrays.x.device,
        contract,
        inputs.fp8_dtype,
        setting.n,
        inputs.x.dtype,
        inputs.residual is None,
        setting.gemma,
        inputs.weight.dtype,
    )
    if trusted(key):
        return _norm_quant(arrays, parts, setting, survey)
    plain = _norm_quant(arrays, parts, setting, None)
    trust(key, plain, _norm_quant(arrays, parts, setting, survey))
    return plain


def _norm_quant(
    arrays: _Arrays, parts: list[slice], setting: Setting, survey: Surveyor | None, tally: type[Tally] = Tally
) -> list[Comparison]:
    rows, n = arrays.x.shape
    residual = tally("residual_out", rows, n) if arrays.residual is not None else None
    tallies = _Tallies(residual, tally("scale", rows, 1), tally("codes", rows, n))
    for rows_of in parts:
        part = arrays.part(rows_of)
        paired = (part.residual is None) == (part.stored is None)
        if survey is not None and paired and _surveyed(tallies, part, setting, survey):
            continue
        truth = norm_truth(part.x, part.residual, part.weight, setting)
        if tallies.residual is not None and part.stored is not None and truth.residuals is not None:
            _residual(tallies.residual, part.first, truth.residuals, part.stored)
        own = judge_scales(tallies.scale, part.first, part.scale, truth)
        norm_codes(tallies.codes, part.first, part.codes, own, truth)
    return tallies.results()


def _surveyed(tallies: _Tallies, part: _Arrays, setting: Setting, survey: Surveyor) -> bool:
    """Judge scales and codes of a chunk whose residual is right bit for bit and whose rows are all NORMAL, with what
    one pass saw; False, and nothing judged, where it is not such a chunk."""
    table, rules = survey_tables(setting, part.x.device), rules_of(setting)
    seen = survey(part.x, part.residual, part.weight, part.codes, part.stored, part.scale, table, rules)
    if seen is None:
        return False
    row_max = None
    if seen.ends is not None:
        rms, rms_low, rms_high, low, high, nominal = seen.ends.unbind()
        row_max = RowMax(low, high, nominal, rms_low, rms_high, rms)
    truth = truth_of_rows(seen.square_sum, seen.p_max, part.x, part.weight, setting, row_max=row_max)
    if truth is None or not truth.scale.ordinary:
        return False
    admissible = truth.scale.admits(seen.scale.double())
    # Where y is rounded, the pass held the codes against the kernel's own scales: no evidence where one is wrong.
    if rules.rounds and not bool(admissible.all()):
        return False
    own = judge_scales(tallies.scale, part.first, seen.scale, truth, admissible)
    tallies.codes.judged += part.x.numel()
    tallies.codes.ambiguous += seen.choices
    if tallies.residual is not None:
        tallies.residual.judged += part.x.numel()
    if seen.row.numel():
        codes = truth.codes_of(seen.row, seen.z, seen.weight, own.to(seen.row.device)[seen.row])
        resolve(tallies.codes, part.first, seen.row, seen.col, seen.code, codes)
    return True


def compare_quant(
    inputs: QuantInputs,
    outputs: QuantOutputs,
    contract: NormQuantContract,
    survey: Surveyor | None,
    tally: type[Tally] = Tally,
) -> list[Comparison]:
    """Scale and codes of ``per_token_quant``."""
    setting, rows, n = Setting.of(inputs, contract), inputs.row_count, inputs.width
    codes, scale = bytes_of(outputs.codes).reshape(-1, n), outputs.scale.reshape(-1)
    tallies = _Tallies(None, tally("scale", rows, 1), tally("codes", rows, n))
    for part in chunks(inputs):
        truth = _quant_truth(inputs, setting, part)
        own = judge_scales(tallies.scale, part.start, scale[part], truth)
        quant_codes(tallies.codes, part.start, codes[part], own, truth)
    return tallies.results()


def _residual(tally: Tally, first: int, sets: Residuals, got: torch.Tensor) -> None:
    """Bit equality with the contract's store of x + residual, or with what a flush makes of it."""
    fmt = sets.setting.storage
    tally.judged += got.numel()
    wrong = sets.differ(got)
    if not bool(wrong.any()):
        return
    row, col = wrong.nonzero().unbind(1)
    g, w = (v[row, col].double().cpu() for v in (got, sets.stored))
    bad = ~sets.admits(g, row, col)
    row, col, w, g = row.cpu()[bad], col.cpu()[bad], w[bad], g[bad]
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
        bits, want = got[int(row[i]), int(col[i])].view(torch.int16), float(w[i])
        return Element(
            row=int(row[i]) + first,
            col=int(col[i]),
            exact=want,
            low=want,
            high=want,
            got=float(g[i]),
            got_bits=f"0x{int(bits) & 0xFFFF:04x}",
            err=float(err[i]),
            budget=0.0,
            err_ulp=float(steps[i]),
            terms={"store (bit-exact)": 0.0},
        )

    tally.candidates(err / spacing, err, make)
