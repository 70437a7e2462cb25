"""The picture of what was run: classes of rows and features against classes of columns, of a GEMM of products too.

Numbers in, coordinates out, as in ``pictures``. A square is one pair of levels (``factors``) of the cases of one
kernel: run, failed, not offered or not run. What no case of the depth has is not run either, and is drawn so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from validators.cases.case import Case
from validators.records.record import Record
from validators.signoff import factors, reach
from validators.signoff.factors import Factor
from validators.signoff.pictures import WIDTH, Tick

RUN, FAILED, DECLARED, NOT_RUN = "run", "failed", "declared", "none"
"""Kinds of squares, as the style sheet names them."""
WORDS = {RUN: "run and passed", FAILED: "did not pass", DECLARED: "not offered by the kernel", NOT_RUN: "not run"}
_LEFT, _TOP, _HIGH, _GAP, _BETWEEN = 178, 30, 26, 4, 12
_SHORT = {
    "slices of three dimensions": "3-D slices",
    "three dimensions": "3-D",
    "gain 1 + weight": "1 + weight",
    factors.NO_ROWS: "0",
}
_KILO = 1024


@dataclass(frozen=True)
class Square:
    """x, y: of its upper left corner; wide, high: its size, all in units of the picture. kind: RUN, FAILED, .."""

    x: float
    y: float
    wide: float
    high: float
    kind: str
    words: str


@dataclass(frozen=True)
class Grid:
    """axis: what the columns are classes of. columns, rows: labels at their middles. words: of the picture as text."""

    axis: str
    columns: tuple[Tick, ...]
    rows: tuple[Tick, ...]
    squares: tuple[Square, ...]
    height: float
    words: str


@dataclass(frozen=True)
class Reached:
    """The grids of one op and kernel, and the sentences of the same facts."""

    grids: tuple[Grid, ...]
    sentences: tuple[str, ...]


def reached(records: Iterable[Record]) -> list[Reached]:
    """One for each op and kernel whose cases were run."""
    found = []
    for (op, kernel), group in reach.by_kernel(records).items():
        known = reach.by_case(group)
        if not any(case.m for case in known):
            continue
        _, wanted = reach.asked(op, known, group[0].arch)
        states = {case: _state(own) for case, own in known.items() if case.m}
        cases = [case for case in {**dict.fromkeys(wanted), **states} if case.m]
        axes = [factors.COLUMNS] + ([factors.PRODUCTS] if any(c.k for c in cases) else [])
        (one,) = reach.of_records(group)
        found.append(Reached(tuple(_grid(axis, cases, states, kernel) for axis in axes), tuple(one.sentences())))
    return found


def _state(records: Sequence[Record]) -> str:
    if reach.passes(records):
        return RUN
    return {reach.FAILED: FAILED, reach.DECLARED: DECLARED}.get(reach.cause(records), NOT_RUN)


def _grid(axis: Factor, cases: Sequence[Case], states: dict[Case, str], kernel: str) -> Grid:
    wide = (WIDTH - _LEFT) / len(axis.levels)
    columns = tuple(Tick(_LEFT + (i + 0.5) * wide, _end(level)) for i, level in enumerate(axis.levels))
    rows: list[Tick] = []
    squares: list[Square] = []
    y, counts = float(_TOP), dict.fromkeys(WORDS, 0)
    for group in (
        [(factors.ROWS, level) for level in factors.ROWS.levels],
        [pair for f in factors.OPTIONS for pair in _features(f, cases)],
    ):
        for factor, level in group:
            rows.append(Tick(y + _HIGH / 2, _SHORT.get(level, level.removeprefix("m "))))
            own = [case for case in cases if factor.level(case) == level]
            for i, column in enumerate(axis.levels):
                kind = _kind([states.get(case, NOT_RUN) for case in own if axis.level(case) == column])
                counts[kind] += 1
                words = f"{level}, {column}: {WORDS[kind]}"
                squares.append(Square(_LEFT + i * wide + _GAP / 2, y, wide - _GAP, _HIGH - _GAP, kind, words))
            y += _HIGH
        y += _BETWEEN
    parts = ", ".join(f"{count} {WORDS[kind]}" for kind, count in counts.items() if count)
    words = f"{kernel}: rows and features against classes of {axis.name}; of {len(squares)} pairs {parts}"
    return Grid(f"{axis.levels[0][0]} up to", columns, tuple(rows), tuple(squares), y - _BETWEEN, words)


def _kind(states: Sequence[str]) -> str:
    """A failure is shown whatever else passed; a pass before what was left out."""
    return next((kind for kind in (FAILED, RUN, DECLARED) if kind in states), NOT_RUN)


def _features(factor: Factor, cases: Sequence[Case]) -> list[tuple[Factor, str]]:
    """The levels of an option but the one that most cases have; none where all have the same."""
    counts: dict[str, int] = {}
    for case in cases:
        counts[factor.level(case)] = counts.get(factor.level(case), 0) + 1
    usual = max(counts, key=lambda level: counts[level])
    return [(factor, level) for level in (factor.levels or tuple(sorted(counts))) if level in counts and level != usual]


def _end(level: str) -> str:
    """``n 513 to 1,024`` as ``1K``, its upper end; the last class as ``+``. Few letters, for a telephone."""
    size = int(level.split()[-1].replace(",", ""))
    if " over " in level:
        return "+"
    return f"{size // _KILO}K" if size % _KILO == 0 else f"{size:,}"
