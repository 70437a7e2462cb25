"""The mutation score: which share of generated wrong kernels fails on the cases that passed, by class of mutant.

``data/mutation.json`` is measured (``python -m tests.benchmarks.mutation --matrix --out FILE``). Each mutant of
``tests.mutants`` was run on every case of default depth whose calls can meet its guard::

    {"schema": 1, "ops": {OP: {FP8 FORMAT: {
        "suite":    digest of the ids of the cases (``suite_digest``),
        "source":   digest of the harness, the emulated kernels and the judge,
        "contract": the preset that the mutants depart from and are judged by,
        "mutants":  {CLASS: [id, ...]},
        "cases":    {CASE: hex, ...}}}}}

CLASS is arithmetic, rounding, movement, state or special. The ids are those of the mutants that are no equivalents:
some output of theirs is outside its set, in a case of the suite or elsewhere. CASE is an id without ``OP-``. Bit i of
its number, from the low end, says whether mutant i fails on it, counted through all classes in the file's order.

A case that passed counts for the mutants that failed on it and for nothing else, so the score of any choice of cases is
known. Without the file, for another suite, or where the contract's sets say less than those of the measurement, there
is no number.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from validators.errors import RunFault
from validators.records.record import Record
from validators.records.text import share
from validators.records.verdict import left_open
from validators.signoff import depths, reach

TABLE = Path(__file__).resolve().parent / "data" / "mutation.json"
SCHEMA = 1
DEPTH = "default"
NOT_MEASURED = "mutation score: not measured for these cases"


class MutationError(RunFault):
    """The table cannot be read; its message is one sentence."""


@dataclass(frozen=True)
class Matrix:
    """Of one op and FP8 format. mutants: class -> ids. kills: case id -> the mutants that fail on it, as bits."""

    suite: str
    source: str
    contract: str
    mutants: Mapping[str, Sequence[str]]
    kills: Mapping[str, int]

    def caught(self, cases: Iterable[str]) -> dict[str, tuple[int, int]]:
        """class -> (mutants that fail on some of ``cases``, mutants of the class)."""
        bits = 0
        for case in cases:
            bits |= self.kills.get(case, 0)
        found = {}
        for name, ids in self.mutants.items():
            found[name] = ((bits & ((1 << len(ids)) - 1)).bit_count(), len(ids))
            bits >>= len(ids)
        return found


Table = Mapping[tuple[str, str], Matrix]
"""(op, FP8 format) -> its matrix."""


def suite_digest(ids: Iterable[str]) -> str:
    """Of the ids of a suite's cases, whatever their order: an id fixes the bits of its case."""
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()[:16]


@lru_cache(maxsize=4)
def load(path: Path = TABLE) -> Table:
    """The recorded matrices, none where there is no file; raises MutationError with one sentence."""
    if not path.exists():
        return {}
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise MutationError(f"{path} has schema {data['schema']}, this version reads {SCHEMA}.")
        return {
            (op, fp8): Matrix(
                found["suite"],
                found["source"],
                found["contract"],
                {name: tuple(ids) for name, ids in found["mutants"].items()},
                {f"{op}-{case}": int(bits, 16) for case, bits in found["cases"].items()},
            )
            for op, formats in data["ops"].items()
            for fp8, found in formats.items()
        }
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise MutationError(
            f"the table of mutants {path} cannot be read ({type(error).__name__}); "
            "python -m tests.benchmarks.mutation --matrix makes it."
        ) from error


@dataclass(frozen=True)
class Score:
    """Of the cases of one op that PASSED. classes: name -> (caught, all), empty where there is no number.

    unmeasured: cases that passed and are not in the matrix; they add nothing. measured, judged: contracts of the
    mutants and of the records.
    """

    op: str
    kernels: tuple[str, ...]
    classes: tuple[tuple[str, tuple[int, int]], ...] = ()
    cases: int = 0
    unmeasured: int = 0
    measured: str = ""
    judged: tuple[str, ...] = ()

    @property
    def total(self) -> tuple[int, int]:
        """(caught, all)."""
        return sum(n for _, (n, _) in self.classes), sum(n for _, (_, n) in self.classes)

    def short(self) -> str:
        """``98.6 % of 2,340 mutants of per_token_quant (arithmetic 612 of 614, rounding 480 of 490, ...)``."""
        caught, total = self.total
        parts = ", ".join(f"{name} {n:,} of {of:,}" for name, (n, of) in self.classes)
        text = f"{share(caught, total)} of {total:,} mutants of {self.op} ({parts})"
        if others := [name for name in self.judged if name != self.measured]:
            text += f", measured under contract {self.measured} and not {' or '.join(others)}"
        return text

    def sentence(self) -> str:
        """``mutation score of these cases: 98.6 % of ...``, or that there is none."""
        if not self.classes:
            return f"{NOT_MEASURED} of {self.op}"
        text = f"mutation score of these cases: {self.short()}"
        if self.unmeasured:
            passed = self.cases + self.unmeasured
            text += f"; {self.unmeasured} of the {passed} cases were not measured and add nothing"
        return text


def measure(records: Iterable[Record], table: Table | None = None) -> list[Score]:
    """One Score for each op and set of kernels whose passing cases are worth the same, in the records' order."""
    table = load() if table is None else table
    found: dict[Score, list[str]] = {}
    for (op, kernel), group in reach.by_kernel(records).items():
        found.setdefault(_score(op, group, table), []).append(kernel)
    return [replace(one, kernels=tuple(kernels)) for one, kernels in found.items()]


def sentences(records: Iterable[Record], table: Table | None = None) -> list[str]:
    """One line for each op; with the kernels' names where they differ in what passed."""
    found = measure(records, table)
    several = {one.op for one in found if sum(other.op == one.op for other in found) > 1}
    return [f"{', '.join(s.kernels)}: {s.sentence()}" if s.op in several else s.sentence() for s in found]


def _score(op: str, records: Sequence[Record], table: Table) -> Score:
    none = Score(op, ())
    known = reach.by_case(records)
    passed = {case: own for case, own in known.items() if reach.passes(own)}
    if not passed:
        return none
    fp8 = reach.format_of(known, records[0].arch)
    matrix = table.get((op, fp8))
    if matrix is None or matrix.suite != _suite(op, fp8):
        return none
    ids = [case.id for case in passed if case.id in matrix.kills]
    used = [r for own in passed.values() for r in own]
    judged = tuple(dict.fromkeys(str(r.contract) for r in used if r.contract))
    # Under a contract with wide sets (a GEMM's unknown) a mutant may pass that failed under the measurement's contract.
    if not ids or (judged != (matrix.contract,) and left_open([c for r in used for c in r.comparisons])):
        return none
    classes = tuple(matrix.caught(ids).items())
    return Score(op, (), classes, len(ids), len(passed) - len(ids), matrix.contract, judged)


@lru_cache(maxsize=16)
def _suite(op: str, fp8: str) -> str:
    return suite_digest(case for ids in depths.lanes(op, DEPTH, fp8).values() for case in ids)
