"""What a pass is worth: which known defects fail on cases like those that passed.

``data/strength.json`` is measured, not argued: every defect of the zoo was run on small representative cases of the
suite (``python -m tests.benchmarks.strength --write``), and each row of the table names a case and the defects that
failed on it. A case that passed counts for the rows of its own recipe, types and options whose shape it contains:
at least as many rows, columns and products, and every trait (odd n, ragged k, ...) that the row's shape has.
That is an estimate from below: a case may catch more than the table says, and one that resembles no row counts for
nothing. It is about these defects at the shapes at which they were measured, which each sentence names: a defect that
shows at other shapes or features alone is not among them. ``reach`` says what was run, ``mutation`` what generated
defects these cases catch.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from validators.cases.case import Case, CaseError
from validators.errors import RunFault
from validators.records.record import Record, Status
from validators.records.verdict import left_open

TABLE = Path(__file__).resolve().parent / "data" / "strength.json"
SCHEMA = 1
MOST_NAMED = 5
WRAP_ELEMENTS = 1 << 15
"""Elements beyond which the zoo's stand-in for a 32-bit offset wraps; a real one wraps at 2**31 or 2**32."""

DECLARED: Mapping[str, Mapping[str, object]] = {
    "N03": {"norm_input": "stored"},
    "N04": {"residual_store": "truncate"},
    "N15": {"round_after_normalize": True, "round_after_weight": True},
    "Q09": {"amax_floor": 0.0},
    "Q17": {"round_quotient": True},
}
"""Defects that are nothing but another arithmetic, by the fields that they change: under a contract that declares one
of them they are no defects, wholly or in part, and are not counted."""


class StrengthError(RunFault):
    """The table cannot be read; its message is one sentence."""


@dataclass(frozen=True)
class Row:
    """A measured case and the ids of the defects of its op that failed on it."""

    case: Case
    catches: frozenset[str]


@dataclass(frozen=True)
class Table:
    """defects: op -> id -> name. rows: op -> measured cases. contracts: op -> preset that the defects departed from.
    fields: op -> preset -> the fields of ``DECLARED`` that it has, so that a decision needs no contract."""

    defects: Mapping[str, Mapping[str, str]]
    rows: Mapping[str, Sequence[Row]]
    contracts: Mapping[str, str]
    fields: Mapping[str, Mapping[str, Mapping[str, object]]] = field(default_factory=dict)


@lru_cache(maxsize=4)
def load(path: Path = TABLE) -> Table:
    """The recorded table; raises StrengthError with one sentence."""
    try:
        data: Any = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise StrengthError(f"{path} has schema {data['schema']}, this version reads {SCHEMA}.")
        rows = {
            op: [Row(Case.parse(text), frozenset(caught)) for text, caught in found.items()]
            for op, found in data["rows"].items()
        }
        return Table(data["defects"], rows, data["contracts"], data["fields"])
    except StrengthError:
        raise
    except (OSError, ValueError, KeyError, AttributeError, TypeError, CaseError) as error:
        raise StrengthError(
            f"the table of defects {path} cannot be read ({type(error).__name__}); "
            "python -m tests.benchmarks.strength --write makes it."
        ) from error


def traits(case: Case) -> frozenset[str]:
    """Properties of the shape that known defects hide behind; a row counts only for cases that share all of its own."""
    if case.k:
        found = {
            "m % 16": case.m % 16,
            "m odd": case.m % 2,
            "n % 16": case.n % 16,
            "n % 128": case.n % 128,
            "k % 32": case.k % 32,
            "k % 128": case.k % 128,
            "m != n": case.m != case.n,
        }
    else:
        found = {
            "n % 2": case.n % 2,
            "n % 4": case.n % 4,
            "n % 8": case.n % 8,
            "n % 1024": case.n % 1024,
            "m odd": case.m % 2,
            "wraps": case.m * case.n > WRAP_ELEMENTS,
        }
    return frozenset(name for name, present in found.items() if present)


def _family(case: Case) -> tuple[object, ...]:
    return (
        case.op,
        case.recipe,
        case.dtype,
        case.fp8,
        case.residual,
        case.gamma,
        case.gemma,
        case.eps,
        case.layout,
        case.bias,
    )


def stands_for(case: Case, row: Row) -> bool:
    """Whether a pass on ``case`` is worth at least a pass on the measured case of ``row``."""
    measured = row.case
    # The recipe first: most pairs differ in it, and a sign-off asks about a million of them.
    return (
        case.recipe == measured.recipe
        and _family(case) == _family(measured)
        and case.m >= measured.m
        and case.n >= measured.n
        and case.k >= measured.k
        and traits(measured) <= traits(case)
    )


def caught_by(cases: Iterable[Case], table: Table) -> frozenset[str]:
    """Ids of the defects that fail on some of ``cases`` (of one op) as they were measured."""
    found: frozenset[str] = frozenset()
    for case in set(cases):
        for row in table.rows.get(case.op, ()):
            if stands_for(case, row):
                found |= row.catches
    return found


def not_defects(op: str, contract: str | None, table: Table) -> frozenset[str]:
    """Ids of the table's defects that contract ``contract`` declares as its arithmetic."""
    if contract is None:
        return frozenset()
    # ``preset+field=value``, as ``reference.notation`` writes it; a plus sign may belong to an exponent.
    preset, *changes = re.split(r"\+(?!\d)", contract)
    declared = dict(table.fields.get(op, {}).get(preset, {}))
    declared |= {field: _value(text) for field, _, text in (change.partition("=") for change in changes)}
    return frozenset(
        identity
        for identity, fields in DECLARED.items()
        if identity in table.defects.get(op, {}) and any(_declares(declared, k, v) for k, v in fields.items())
    )


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _declares(declared: Mapping[str, object], field: str, value: object) -> bool:
    """Whether the contract has the value; one that truncates in bf16 alone truncates where the defects are measured."""
    own = declared.get(field)
    return own == value or (value == "truncate" and own == "truncate_bf16")


@dataclass(frozen=True)
class Strength:
    """caught, missed: ids of the defects of ``op``. names: id -> name. passed: cases; unmeasured: resembling no row.

    shapes: of the measured cases that count, ``18 to 24 rows, n 264 to 769``: a defect that shows at other shapes alone
    is none of these. weak: cases that passed under another contract than that of the table, which left most of their
    elements several values: the defects failed under a sharper one.
    """

    op: str
    kernels: tuple[str, ...]
    caught: tuple[str, ...]
    missed: tuple[str, ...]
    names: Mapping[str, str] = field(hash=False)
    passed: int
    unmeasured: int
    shapes: str = ""
    weak: int = 0

    def short(self) -> str:
        """``34 of 36 of add_rmsnorm_quant (measured at 18 to 24 rows, n 264 to 769)``."""
        total = len(self.caught) + len(self.missed)
        return f"{len(self.caught)} of {total} of {self.op}" + (f" (measured at {self.shapes})" if self.shapes else "")

    def sentence(self) -> str:
        """``34 of 36 known defects of add_rmsnorm_quant fail on such cases (measured at 18 to 24 rows, n 264 to 769,
        with the same features); this says nothing of defects that show elsewhere; not covered: ...``."""
        total = len(self.caught) + len(self.missed)
        if not self.passed:
            return f"{', '.join(self.kernels)}: no case of {self.op} passed, so none shows a known defect"
        text = f"{len(self.caught)} of {total} known defects of {self.op} fail on such cases"
        if self.shapes:
            text += f" (measured at {self.shapes}, with the same features), which says nothing of defects elsewhere"
        if self.missed:
            named = [f"{identity} {self.names[identity]}" for identity in self.missed[:MOST_NAMED]]
            more = len(self.missed) - len(named)
            text += f"; not covered: {', '.join(named)}" + (f" and {more} more" if more else "")
        if self.unmeasured:
            text += (
                f"; {self.unmeasured} of the {self.passed} cases add nothing to this, because no defect was "
                "measured at a shape like theirs"
            )
        if self.weak:
            cases, its, count = ("case", "its", "counts") if self.weak == 1 else ("cases", "their", "count")
            text += f"; {self.weak} more {cases} passed under a contract that admits several values for most of {its} "
            text += f"elements, and {count} for nothing"
        return text


def shapes_text(cases: Sequence[Case]) -> str:
    """``1 to 512 rows, n 32 to 8,192``, of a GEMM with ``k 32 to 5,120`` as well; "" for no case."""
    if not cases:
        return ""

    def ends(values: list[int]) -> str:
        low, high = min(values), max(values)
        return f"{low:,}" if low == high else f"{low:,} to {high:,}"

    text = f"{ends([c.m for c in cases])} rows, n {ends([c.n for c in cases])}"
    return text + (f", k {ends([c.k for c in cases])}" if any(c.k for c in cases) else "")


def measure(records: Iterable[Record], table: Table | None = None) -> list[Strength]:
    """One Strength for each op and set of kernels whose passing cases are worth the same, in the records' order."""
    table = load() if table is None else table
    passed: dict[tuple[str, str, str | None], list[Case]] = {}
    weak: Counter[tuple[str, str]] = Counter()
    for record in records:
        cases = passed.setdefault((record.op, record.kernel, record.contract or None), [])
        if record.status is not Status.PASSED:
            continue
        if record.contract != table.contracts.get(record.op) and left_open(record.comparisons):
            weak[record.op, record.kernel] += 1
        else:
            cases.append(Case.parse(record.case))
    # A kernel may have records without a contract (UNSUPPORTED); they make no second kernel of it.
    judged = {(op, kernel) for (op, kernel, _), cases in passed.items() if cases}
    groups: dict[Strength, list[str]] = {}
    for (op, kernel, contract), cases in passed.items():
        if op not in table.defects or (not cases and (op, kernel) in judged):
            continue
        known = set(table.defects[op]) - not_defects(op, contract, table)
        caught = caught_by(cases, table) & known
        used = {case: [row.case for row in table.rows.get(op, ()) if stands_for(case, row)] for case in set(cases)}
        left = sum(not used[case] for case in cases)
        shapes = shapes_text([case for found in used.values() for case in found])
        ids = tuple(sorted(caught)), tuple(sorted(known - caught))
        key = Strength(op, (), *ids, table.defects[op], len(cases), left, shapes, weak[op, kernel])
        if kernel not in groups.setdefault(key, []):
            groups[key].append(kernel)
    return [replace(one, kernels=tuple(kernels)) for one, kernels in groups.items()]


def sentences(records: Iterable[Record], table: Table | None = None) -> list[str]:
    """One line for each op; with the kernels' names where kernels of one op differ in what passed."""
    found = measure(records, table)
    several = {s.op for s in found if sum(other.op == s.op for other in found) > 1}
    return [f"{', '.join(s.kernels)}: {s.sentence()}" if s.op in several and s.passed else s.sentence() for s in found]
