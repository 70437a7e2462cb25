"""Compare outputs with sets that an op's oracle gives element by element (``reference.sets``)."""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import Any

import torch

from reference.formats import FloatFormat, bytes_of, decode, format_of, key_of, round_to, ulp
from reference.sets import Sets
from validators.cases.tensors import Inputs, Outputs, named_tensors
from validators.judge.tally import Tally
from validators.records.record import Comparison, Element

ELEMENTS = {"cpu": 2**18, "cuda": 2**25}
"""Elements of a chunk of rows: temporaries stay in cache on a CPU (measured fastest) and fill a GPU."""


def oracle_of(op: str) -> ModuleType:
    """The module of ``reference`` that knows the op."""
    return importlib.import_module(f"reference.{op}")


def values_of(tensor: torch.Tensor) -> tuple[torch.Tensor, FloatFormat]:
    """float64 values of an output, two-dimensional, and its format."""
    fmt, flat = format_of(tensor.dtype), tensor.reshape(-1, tensor.shape[-1])
    return (decode(bytes_of(flat), fmt) if tensor.element_size() == 1 else flat.double()), fmt


def chunks(inputs: Inputs) -> list[slice]:
    """Slices of the flattened rows, so that extra memory stays flat."""
    step = max(1, ELEMENTS[inputs.device.type] // inputs.width)
    return [slice(first, min(first + step, inputs.row_count)) for first in range(0, inputs.row_count, step)]


def compare_sets(inputs: Inputs, outputs: Outputs, contract: Any, tally: type[Tally] = Tally) -> list[Comparison]:
    """Every element of every output against its set."""
    oracle, tensors = oracle_of(inputs.op), named_tensors(outputs)
    tallies = {name: tally(name, inputs.row_count, tensor.shape[-1]) for name, tensor in tensors.items()}
    for rows in chunks(inputs):
        for name, found in oracle.sets(inputs, contract, rows).items():
            flat = tensors[name].reshape(-1, tensors[name].shape[-1])[rows]
            got, fmt = values_of(flat)
            _judge(tallies[name], rows.start, got, flat, found, fmt)
    return [counted.result() for counted in tallies.values()]


def open_rows(inputs: Inputs, contract: Any) -> torch.Tensor:
    """Rows with an open element, bool [m] on the CPU."""
    oracle, found = oracle_of(inputs.op), [torch.zeros(0, dtype=torch.bool)]
    for rows in chunks(inputs):
        parts = [s.open.any(dim=1).cpu() for s in oracle.sets(inputs, contract, rows).values()]
        found.append(torch.stack(parts).any(dim=0))
    return torch.cat(found)


def _judge(tally: Tally, first: int, got: torch.Tensor, raw: torch.Tensor, sets: Sets, fmt: FloatFormat) -> None:
    """One chunk. got: decoded ``raw``."""
    due, judged = sets.exact.isnan(), ~sets.open
    tally.judged += int(judged.sum())
    tally.unspecified += int(sets.open.sum())
    if bool(sets.open.any()):
        tally.note(sets.why, int(sets.open.any(dim=1).sum()))
    finite, bad = judged & ~due, judged & ~sets.admits(got)
    tally.ambiguous += int((finite & (sets.low < sets.high)).sum())
    steps = (key_of(got, fmt) - key_of(round_to(sets.exact, fmt), fmt)).round()
    tally.step_counts(steps[finite])
    err = (got - sets.exact).abs()
    budget = torch.maximum((sets.high - sets.exact).abs(), (sets.low - sets.exact).abs())
    use = torch.where(bad, torch.full_like(err, math.inf), torch.where(budget > 0, err / budget, 0.0))
    tally.use(use[finite], bad[finite])
    if not bool(bad.any()):
        return
    row, col = bad.nonzero().unbind(1)
    tally.violation_points(row + first, col)
    tally.count_nonfinite(got[row, col], sets.exact[row, col])

    def make(i: int) -> Element:
        r, c = int(row[i]), int(col[i])
        at = {name: float(getattr(sets, name)[r, c]) for name in ("exact", "low", "high")}
        size = raw.element_size()
        bits = int(raw[r, c].reshape(1).view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[size])) % 256**size
        half = float(0.5 * ulp(sets.exact[r, c], fmt))
        return Element(
            row=r + first,
            col=c,
            exact=at["exact"],
            low=at["low"],
            high=at["high"],
            got=float(got[r, c]),
            got_bits=f"0x{bits:0{2 * size}x}",
            err=float(err[r, c]),
            budget=float(budget[r, c]),
            err_ulp=float(steps[r, c]),
            terms={"quotient and code": float(budget[r, c]), "half a step of the code": half},
        )

    tally.candidates(steps[row, col].abs().nan_to_num(nan=math.inf), err[row, col].nan_to_num(nan=math.inf), make)
