"""A sign-off as one self-contained page: no network, no other file, readable on a phone.

All numbers are made here, all markup in ``templates/signoff.html.j2`` with autoescape on, so nothing
that a kernel's name or a reason contains can become markup.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from validators.errors import RunFault
from validators.records import text as report
from validators.records.record import Comparison, Record, Status
from validators.signoff import grid, judged, pictures, stages
from validators.signoff.decision import STAGE_OPS, Claim, Signoff, SignoffError
from validators.signoff.judged import BAD, DRIFTED, UNCHANGED
from validators.signoff.ruling import FAILED, NO_EVIDENCE, PASSED, SIGNED, UNTESTED, WAIVED, Ruling
from validators.signoff.ruling_words import Cell
from validators.signoff.text import summary_sentence
from validators.words import LANES

MOST_FAILING = 100
"""Failing records shown per claim; beyond that a page helps nobody and signoff.json has the list."""

MOST_OPEN = 4
"""Kernels whose pictures are open at first; of more than that each is folded."""

_MOST_IN_BANNER = 3
_BINS = 10
_TEMPLATES = Path(__file__).resolve().parent / "templates"


class TemplateError(SignoffError):
    """The page cannot be rendered here, though the decision holds; its message says what to install."""


@dataclass(frozen=True)
class Bar:
    """One bar of a chart. height: 0..1 of the chart's. alarm: drawn as something wrong. slot: its place, from 0."""

    label: str
    count: int
    height: float
    alarm: bool = False
    slot: int = 0


@dataclass(frozen=True)
class Chart:
    """Two small charts of one output in one lane.

    use: distribution of the largest err/budget of each case, ten bins up to 1 and one beyond.
    steps: elements by distance in steps of the output format from the correctly rounded value, log scale.
    """

    output: str
    cases: int
    use: tuple[Bar, ...]
    steps: tuple[Bar, ...]
    median: str
    worst: str
    single: str


def page(signoff: Signoff) -> str:
    """The HTML text; raises TemplateError with one sentence if jinja2 is not installed."""
    try:
        import jinja2
    except ImportError:
        raise TemplateError(
            "signoff.html needs jinja2, which is not installed; install it with: python -m pip install jinja2"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code_parts"] = code_parts
    lanes = report.lane_order(lane for c in signoff.claims for lane in c.cells)
    every = list({id(r): r for c in signoff.claims for r in c.records}.values())
    return environment.get_template("signoff.html.j2").render(
        signoff=signoff,
        summary=summary_sentence(signoff),
        date=signoff.date.replace("T", " ").replace("+00:00", " UTC"),
        lanes=lanes,
        rulings=[_ruling(r, i) for i, r in enumerate(signoff.rulings, start=1)],
        claims=[_claim(c, i, bool(signoff.rulings)) for i, c in enumerate(signoff.claims, start=1) if _shown(c)],
        folded=sum(map(_shown, signoff.claims)) > MOST_OPEN,
        walks=pictures.walks(every),
        parities=pictures.parities(every),
        traces=[r for r in every if r.lane == "trace"],
        goldens=_goldens(every),
        facts=_facts(signoff),
        stamp={"good": "good", "open": "open"}.get(_tone(signoff.outcome), "bad"),
    )


def _facts(signoff: Signoff) -> list[tuple[str, list[tuple[str, str]]]]:
    """(whose, rows of label and text) for the banner: what a reader needs to know of the decision at once."""
    named = [(r.target.name, r.facts) for r in signoff.rulings]
    named = named or [(c.kernel, c.facts) for c in signoff.claims if _shown(c)]
    shown = named[:_MOST_IN_BANNER]
    return [(name if len(named) > 1 else "", facts.rows()) for name, facts in shown]


def code_parts(text: str) -> list[tuple[bool, str]]:
    """(whether it is between backticks, text): a page shows code as code, and no backtick."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        return [(False, text)]
    return [(bool(i % 2), part) for i, part in enumerate(parts) if part]


def _shown(c: Claim) -> bool:
    """Stages of a whole path have sections of their own."""
    return c.op not in STAGE_OPS


def _tone(outcome: str) -> str:
    return {SIGNED: "good", UNTESTED: "open"}.get(outcome, "bad")


_STATES = {
    PASSED: ("good", "✓"),
    FAILED: ("bad", "✗"),
    NO_EVIDENCE: ("bad", "∅"),
    WAIVED: ("open", "~"),
    UNTESTED: ("open", "○"),
}
"""State of a cell: its colour class, and a sign for those who do not see colours."""


def _ruling(ruling: Ruling, number: int) -> dict[str, Any]:
    """Rows (op, kernel) by columns (lanes, then stages), and the stages of the whole path."""
    rows: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    path: list[dict[str, str]] = []
    columns: dict[str, None] = {}
    for cell in ruling.cells:
        shown = _shown_cell(cell)
        if not cell.op:
            path.append(shown)
            continue
        column = cell.lane if cell.stage == "ops" else cell.stage
        columns[column] = None
        rows.setdefault((cell.op, cell.kernel or "any"), {})[column] = shown
    order = report.lane_order(c for c in columns if c in LANES) + [c for c in columns if c not in LANES]
    grouped = sorted(rows.items(), key=lambda row: (list(ruling.target.kernels).index(row[0][0]), row[0][1] == "any"))
    machine = stages.machine(ruling.target.arch)
    return {
        "id": f"ruling-{number}",
        "ruling": ruling,
        "tone": _tone(ruling.outcome),
        "columns": order,
        "rows": [{"op": op, "kernel": kernel, "cells": cells} for (op, kernel), cells in grouped],
        "path": path,
        "machine": "a CPU" if machine == "any machine" else machine,
        "elsewhere": [] if ruling.target.arch == "cpu" else list(ruling.steps),
    }


def _shown_cell(cell: Cell) -> dict[str, str]:
    kind, sign = _STATES[cell.state]
    passed, total = cell.counts[Status.PASSED.value] + cell.counts[UNCHANGED], sum(cell.counts.values())
    bad = sum(cell.counts[s] for s in (*BAD, DRIFTED))
    text = {PASSED: f"{passed:,}", FAILED: f"{bad:,} of {total:,}" if bad else "at odds"}.get(cell.state, "")
    words = f"{cell.state}: {judged.counts_text(cell.counts)}" if total else cell.state
    if cell.why:
        words += f"; {cell.why[0]}"
    if cell.waiver:
        words += f"; {cell.waiver.sentence()}"
    return {"kind": kind, "sign": sign, "text": text, "words": words, "stage": cell.stage, "state": cell.state}


def _goldens(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each kernel and architecture: how many goldens are in which state."""
    found: dict[tuple[str, str], list[Record]] = {}
    for r in records:
        if r.golden:
            found.setdefault((r.kernel, r.arch), []).append(r)
    rows = []
    for (kernel, arch), group in found.items():
        counts = judged.counts_of(group)
        bad = any(counts[s] for s in (*BAD, DRIFTED))
        kind = "bad" if bad else "good" if counts[UNCHANGED] + counts[Status.PASSED.value] else "open"
        rows.append({"kernel": kernel, "arch": arch, "words": judged.counts_text(counts), "kind": kind})
    return rows


def _claim(c: Claim, number: int, under_policy: bool) -> dict[str, Any]:
    failing = c.failing
    own = [cell for lane, cell in c.cells.items() if lane in LANES]
    passed, ran = sum(cell[Status.PASSED.value] for cell in own), sum(sum(cell.values()) for cell in own)
    worst = [x.worst_use_passing for r in c.records for x in r.comparisons if math.isfinite(x.worst_use_passing)]
    zoo = pictures.zoo(c.records)
    comparisons = [x for r in c.records for x in r.comparisons]
    judged, single = sum(x.judged for x in comparisons), sum(x.single for x in comparisons)
    return {
        "id": f"claim-{number}",
        "claim": c,
        "signed": not failing if under_policy else c.signed,
        "tag": (f"{len(failing)} in the way" if failing else f"{passed:,} PASSED") if under_policy else c.decision,
        "passed": f"{passed:,} of {ran:,}",
        "judged": f"{judged:,}",
        "single_text": report.share(single, judged) if judged else "-",
        "closest": report.use_text(max(worst)) if worst else "-",
        "zoo": zoo,
        "reached": _reached(c.records),
        "sets": pictures.admissible_sets(comparisons),
        "cells": {lane: _cell(c, lane) for lane in c.cells},
        "strength": report.strength_sentence(c.records),
        "single": single / judged if judged else 0.0,
        "charts": {lane: found for lane in c.cells if (found := charts([r for r in c.records if r.lane == lane]))},
        "outputs": list(dict.fromkeys(x.output for x in comparisons)),
        "failing": [
            {
                "status": r.status.value,
                "case": r.case,
                "headline": report.headline(r),
                "report": report.failure_report(r),
                "reproduce": report.reproduce_line(r),
                "elements": pictures.opened(r),
                "explained": r.explanations[0].text if r.explanations else "",
            }
            for r in failing[:MOST_FAILING]
        ],
        "failing_more": max(0, len(failing) - MOST_FAILING),
        "provenance": provenance_groups(c.records),
    }


def _reached(records: Sequence[Record]) -> list[grid.Reached]:
    """What was run, drawn; nothing where the table of depths cannot be read, without which the decision holds."""
    try:
        return grid.reached(r for r in records if r.lane in LANES)
    except RunFault:
        return []


def _cell(c: Claim, lane: str) -> dict[str, str]:
    """Text and colour class of one kernel x lane cell."""
    cell = c.cells[lane]
    bad = any(cell[s] for s in (*BAD, DRIFTED))
    good = cell[Status.PASSED.value] + cell[UNCHANGED]
    kind = "bad" if bad else ("good" if good and (lane == "goldens" or not cell[Status.UNTESTED.value]) else "open")
    return {"kind": kind, "text": "UNTESTED" if not cell else judged.counts_text(cell)}


def charts(records: Sequence[Record]) -> dict[str, Chart]:
    """One Chart per output that ``records`` (of one lane) compared, by output."""
    by_output: dict[str, list[Comparison]] = {}
    for record in records:
        for c in record.comparisons:
            if c.judged:
                by_output.setdefault(c.output, []).append(c)
    return {output: _chart(output, group) for output, group in by_output.items()}


def _chart(output: str, group: list[Comparison]) -> Chart:
    largest = [c.use_quantiles.get("max", c.worst_use) for c in group]
    middle = [c.use_quantiles["p50"] for c in group if math.isfinite(c.use_quantiles.get("p50", math.nan))]
    return Chart(
        output=output,
        cases=len(group),
        use=tuple(use_bars(largest)),
        steps=tuple(step_bars([c.ulp_histogram for c in group])),
        median=f"{statistics.median(middle):.2f}" if middle else "-",
        worst="beyond" if any(not math.isfinite(x) for x in largest) else report.use_text(max(largest)),
        single=report.share(sum(c.single for c in group), sum(c.judged for c in group)),
    )


def use_bars(values: Sequence[float]) -> list[Bar]:
    """Ten bins over 0..1 and one beyond the budget, which takes NaN and Inf too."""
    counts = [0] * (_BINS + 1)
    for x in values:
        counts[min(_BINS - 1, max(0, int(x * _BINS))) if x <= 1.0 else _BINS] += 1
    top = max(counts, default=0) or 1
    labels = [f"{i / _BINS:.1f} to {(i + 1) / _BINS:.1f}" for i in range(_BINS)] + ["beyond 1"]
    return [
        Bar(label, n, n / top, alarm=i == _BINS and n > 0, slot=i)
        for i, (label, n) in enumerate(zip(labels, counts, strict=True))
    ]


def step_bars(histograms: Sequence[dict[str, int]]) -> list[Bar]:
    """The histograms added up; log scale, because one stray element in millions is what matters."""
    total: dict[str, int] = {}
    for histogram in histograms:
        for key, n in histogram.items():
            total[key] = total.get(key, 0) + n
    top = math.log1p(max(total.values(), default=0)) or 1.0
    return [Bar(key, total[key], math.log1p(total[key]) / top, slot=_slot(key)) for key in report.ulp_keys(total)]


def _slot(key: str) -> int:
    """0 for five steps or more below, 5 for the correctly rounded value, 10 for five steps or more above."""
    number = re.search(r"-?\d+", key)
    return 5 + max(-5, min(5, int(number.group()))) if number else 5


def provenance_groups(records: Sequence[Record]) -> list[tuple[str, int]]:
    """Distinct provenances in words, each with the number of its records."""
    groups: dict[str, int] = {}
    for record in records:
        known = record.provenance
        commit = (known.commit or "unknown")[:10]
        state = "" if known.dirty is None else (" (dirty)" if known.dirty else " (clean)")
        machine = known.gpu or known.cpu or record.device
        more = [f"{k} {v}" for k, v in known.kernel_versions.items()]
        parts = [f"commit {commit}{state}", f"torch {known.torch or 'unknown'}", *more, f"on {machine}"]
        groups[", ".join(parts)] = groups.get(", ".join(parts), 0) + 1
    return list(groups.items())
