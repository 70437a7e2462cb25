"""A sign-off as one self-contained page: no network, no file beside it, readable on a phone.

All numbers are made here, all markup in ``templates/signoff.html.j2`` with autoescape on, so nothing
that a kernel's name or a reason contains can become markup.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from validators import report
from validators.records import Comparison, Record, Status
from validators.signoff import Claim, Signoff, TemplateError
from validators.signoff_text import summary_sentence

MOST_FAILING = 100
"""Failing records shown per claim; beyond that a page helps nobody and signoff.json has the list."""

_BINS = 10
_TEMPLATES = Path(__file__).resolve().parent / "templates"


@dataclass(frozen=True)
class Bar:
    """One bar of a chart. height: 0..1 of the chart's. alarm: drawn as something wrong."""

    label: str
    count: int
    height: float
    alarm: bool = False


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
    lanes = report.lane_order(lane for c in signoff.claims for lane in c.cells)
    return environment.get_template("signoff.html.j2").render(
        signoff=signoff,
        summary=summary_sentence(signoff),
        date=signoff.date.replace("T", " ").replace("+00:00", " UTC"),
        lanes=lanes,
        claims=[_claim(c, i) for i, c in enumerate(signoff.claims, start=1)],
    )


def _claim(c: Claim, number: int) -> dict[str, Any]:
    failing = c.failing
    comparisons = [x for r in c.records for x in r.comparisons]
    judged, single = sum(x.judged for x in comparisons), sum(x.single for x in comparisons)
    return {
        "id": f"claim-{number}",
        "claim": c,
        "signed": c.signed,
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
            }
            for r in failing[:MOST_FAILING]
        ],
        "failing_more": max(0, len(failing) - MOST_FAILING),
        "provenance": provenance_groups(c.records),
    }


def _cell(c: Claim, lane: str) -> dict[str, str]:
    """Text and colour class of one kernel x lane cell."""
    cell = c.cells[lane]
    bad = any(cell[s] for s in Status if s not in (Status.PASSED, Status.UNSUPPORTED, Status.UNTESTED))
    kind = "bad" if bad else ("good" if cell[Status.PASSED] and not cell[Status.UNTESTED] else "open")
    return {"kind": kind, "text": "UNTESTED" if not cell else report.counts_text(cell)}


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
        Bar(label, n, n / top, alarm=i == _BINS and n > 0)
        for i, (label, n) in enumerate(zip(labels, counts, strict=True))
    ]


def step_bars(histograms: Sequence[dict[str, int]]) -> list[Bar]:
    """The histograms added up; log scale, because one stray element in millions is what matters."""
    total: dict[str, int] = {}
    for histogram in histograms:
        for key, n in histogram.items():
            total[key] = total.get(key, 0) + n
    top = math.log1p(max(total.values(), default=0)) or 1.0
    return [Bar(key, total[key], math.log1p(total[key]) / top) for key in report.ulp_keys(total)]


def provenance_groups(records: Sequence[Record]) -> list[tuple[str, int]]:
    """Distinct provenances in words, each with the number of its records."""
    groups: dict[str, int] = {}
    for record in records:
        known = record.provenance
        commit = str(known.get("commit") or "unknown")[:10]
        state = "" if known.get("dirty") is None else (" (dirty)" if known["dirty"] else " (clean)")
        machine = known.get("gpu") or known.get("cpu") or record.device
        versions = known.get("kernel_versions")
        more = [f"{k} {v}" for k, v in versions.items()] if isinstance(versions, dict) else []
        parts = [f"commit {commit}{state}", f"torch {known.get('torch') or 'unknown'}", *more, f"on {machine}"]
        groups[", ".join(parts)] = groups.get(", ".join(parts), 0) + 1
    return list(groups.items())
