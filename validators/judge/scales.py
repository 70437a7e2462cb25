"""Judge the scales of a chunk of rows, of the norm and of the per-token quantizer."""

from __future__ import annotations

import math

import torch

from reference.add_rmsnorm_quant import NormTruth
from reference.per_token_quant import QuantTruth
from reference.quantize import Row
from validators.judge.tally import Tally
from validators.records.record import Element


def judge_scales(
    tally: Tally,
    first: int,
    got32: torch.Tensor,
    truth: NormTruth | QuantTruth,
    admissible: torch.Tensor | None = None,
) -> torch.Tensor:
    """Judge the scales of a chunk; returns the scale that codes are judged with: the kernel's own where it
    is admissible, else the nominal one, so that a wrong scale is reported once and not as wrong codes too.
    admissible: what the truth admits of them, where it was asked already."""
    got32 = got32.cpu()
    got, sets = got32.double(), truth.scale
    ok = sets.admits(got) if admissible is None else admissible
    steps = _fp32_place(got32) - _fp32_place(sets.nominal.float())
    err, budget = (got - sets.nominal).abs(), torch.maximum(sets.high - sets.nominal, sets.nominal - sets.low)
    if sets.ordinary and bool(ok.all()):
        tally.judged += got.numel()
        tally.ambiguous += int((sets.low < sets.high).sum())
        # 0/0 is a hit of the single admissible value.
        tally.use((err / budget).nan_to_num_(nan=0.0), None)
        tally.step_counts(steps)
        return got
    skipped, due_nan = sets.open, sets.due_nan
    judged = ~skipped
    bad, regular = judged & ~ok, judged & ~due_nan
    tally.judged += int(judged.sum())
    tally.unspecified += int(skipped.sum())
    _note_unspecified(tally, got, sets.kind, skipped)
    tally.ambiguous += int((regular & (sets.low < sets.high)).sum())
    # A budget of zero (single admissible value) has use 0 where hit and infinity where missed.
    use = torch.where(bad & (err <= budget), math.inf, err / budget)
    use = torch.where((err == 0) & ~bad, 0.0, use)
    tally.use(use[regular], bad[regular])
    tally.step_counts(steps[regular])
    if bool(bad.any()):
        want = torch.where(due_nan, math.nan, sets.nominal)
        _violations(tally, first, bad.nonzero().flatten(), got32, want, truth, (use, err, budget, steps))
    return torch.where(ok & regular, got, sets.nominal)


def _violations(
    tally: Tally,
    first: int,
    index: torch.Tensor,
    got32: torch.Tensor,
    want: torch.Tensor,
    truth: NormTruth | QuantTruth,
    numbers: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """Count the rows of index; want and numbers (use, err, budget, steps): float64 [m] of the whole chunk."""
    use, err, budget, steps = numbers
    tally.violation_points(index + first, torch.zeros_like(index))
    tally.count_nonfinite(got32[index], want[index])

    def make(i: int) -> Element:
        r = int(index[i])
        return Element(
            row=r + first,
            col=0,
            exact=float(want[r]),
            low=float(truth.scale.low[r]),
            high=float(truth.scale.high[r]),
            got=float(got32[r]),
            got_bits=f"0x{int(got32[r].view(torch.int32)) & 0xFFFFFFFF:08x}",
            err=float(err[r]),
            budget=float(budget[r]),
            err_ulp=float(steps[r]),
            terms=truth.scale_budget.scaled(float(want[r])),
        )

    tally.candidates(use[index], err[index], make)


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
