"""Geometry of the page's pictures: numbers in, coordinates out. The markup is the template's, so that it escapes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from validators.cases.case import CaseError
from validators.records import text
from validators.records.command_line import command_line, of_op
from validators.records.evidence import ErrorByDepth, Evaluation, WalkEvidence
from validators.records.record import Check, Comparison, Element, Record, Status
from validators.signoff import strength
from validators.words import LANES

WIDTH, HEIGHT = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 30


@dataclass(frozen=True)
class Tick:
    """at: pixels. label: text."""

    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """name: of the series. points: ``x,y x,y``. dots: (x, y, words)."""

    name: str
    points: str
    dots: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Walk:
    """Error of the hidden state against depth, of one walk. x, y: ticks. sentence: the verdict on the trajectories."""

    title: str
    status: str
    sentence: str
    lines: tuple[Line, ...]
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    checks: tuple[tuple[str, str], ...]
    ops: str


def walks(records: Sequence[Record]) -> list[Walk]:
    """A picture for each trajectory record that holds its medians; without numbers only its sentences."""
    walked = [r for r in records if r.stage == "layers"]
    whole = [r for r in walked if r.subject == "path"]
    ops = [r for r in walked if r.subject == "kernel"]
    return [_walk(r, ops) for r in whole]


def _walk(record: Record, ops: Sequence[Record]) -> Walk:
    walk = record.walk or WalkEvidence()
    layers, series = _series(walk.depth)
    own = [r for r in ops if r.walk and r.walk.model == walk.model and r.arch == record.arch]
    passed = sum(r.status is Status.PASSED for r in own)
    title = f"{walk.model}, {record.arch}" + (f", {walk.tokens} tokens" if walk.tokens else "") + f": {record.kernel}"
    words = f"{passed:,} of {len(own):,} ops PASSED, each on the activations and weights that it met"
    compared = next((c.detail for c in record.checks if c.name == "fused against unfused"), "")
    checks = tuple((c.name, c.detail) for c in record.checks if c.name != "fused against unfused")
    values = [v for points in series.values() for v in points if v]
    lines: list[Line] = []
    x: tuple[Tick, ...] = ()
    y: tuple[Tick, ...] = ()
    if values and layers:
        low, high = _decades(values)
        first, last = min(layers), max(*layers, min(layers) + 1)
        for name, points in series.items():
            dots = tuple(
                (_x(layer, first, last), _y(math.log10(v), low, high), f"layer {layer}: {name} {v:.3g}")
                for layer, v in zip(layers, points, strict=False)
                if v
            )
            lines.append(Line(name, " ".join(f"{px:.1f},{py:.1f}" for px, py, _ in dots), dots))
        step = max(1, (last - first) // 8)
        x = tuple(Tick(_x(n, first, last), str(n)) for n in range(first, last + 1, step))
        y = tuple(Tick(_y(math.log10(v), low, high), f"{v:g}") for v in _nice(low, high))
    return Walk(title, record.status.value, compared or "; ".join(record.reasons), tuple(lines), x, y, checks, words)


def _series(depth: ErrorByDepth | None) -> tuple[list[int], dict[str, list[float]]]:
    """Layers and the finite positive medians by path; what is not finite or positive is 0."""
    if depth is None:
        return [], {}
    found = {
        name: [v if v is not None and math.isfinite(v) and v > 0 else 0.0 for v in values]
        for name, values in (("fused", depth.fused), ("unfused", depth.unfused))
        if len(values) == len(depth.layers)
    }
    return list(depth.layers), found


def _decades(values: Sequence[float]) -> tuple[float, float]:
    """Ends of the logarithmic axis: the data with a little air, at least half a decade."""
    low, high = math.log10(min(values)), math.log10(max(values))
    air = max(0.08 * (high - low), (0.5 - (high - low)) / 2, 0.04)
    return low - air, high + air


def _nice(low: float, high: float) -> list[float]:
    """Round values between the ends: as few a decade as leave three on the axis."""
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7), tuple(n / 4 for n in range(4, 40))):
        found = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in steps]
        inside = [v for v in found if low <= math.log10(v) <= high]
        if len(inside) >= 3:
            break
    return inside


def _x(value: float, first: float, last: float) -> float:
    return _LEFT + (value - first) / (last - first) * (WIDTH - _LEFT - _RIGHT)


def _y(value: float, low: float, high: float) -> float:
    return _TOP + (high - value) / (high - low) * (HEIGHT - _TOP - _BOTTOM)


# ---- parity


@dataclass(frozen=True)
class Interval:
    """A difference with its interval on an axis in points; all at pixels of 0..640. low, high: None without interval.

    margin: place of the loss that would be accepted, None if the record does not say.
    """

    low: float | None
    high: float | None
    middle: float
    zero: float
    margin: float | None
    ticks: tuple[Tick, ...]
    words: str


@dataclass(frozen=True)
class Parity:
    """One end-to-end evaluation. gates: (name, good, bad, open or plain, sentence). interval: None without numbers."""

    title: str
    status: str
    reasons: tuple[str, ...]
    gates: tuple[tuple[str, str, str], ...]
    interval: Interval | None
    reproduce: str


def _gate(check: Check, undecided: Sequence[str]) -> str:
    """A gate that has not decided is open; one that never decides is reported."""
    if check.ok is None:
        return "open" if check.name in undecided else "plain"
    return "good" if check.ok else "bad"


def parities(records: Sequence[Record]) -> list[Parity]:
    """One for each parity record."""
    found = []
    for r in records:
        if r.stage == "parity":
            undecided = r.evaluation.open if r.evaluation else ()
            gates = tuple((c.name, _gate(c, undecided), c.detail) for c in r.checks)
            title = f"{r.case} on {r.arch}: {r.kernel}"
            said, again = (*r.reasons, *(e.text for e in r.explanations)), text.reproduce_line(r)
            found.append(Parity(title, r.status.value, said, gates, _interval(r), again))
    return found


def _interval(record: Record) -> Interval | None:
    known, about = record.strength, record.evaluation or Evaluation()
    low: float | None = None
    high: float | None = None
    numbers = [about.difference, *about.interval]
    if len(numbers) == 3 and all(v is not None and math.isfinite(v) for v in numbers):
        difference, low, high = (100 * v for v in numbers if v is not None)
    elif known.get("questions") and "lost" in known and "gained" in known:
        difference = 100 * (known["gained"] - known["lost"]) / known["questions"]
    else:
        return None
    margin = -about.margin if about.margin is not None and math.isfinite(about.margin) else None
    ends = [difference, 0.0, *(v for v in (low, high, margin) if v is not None)]
    least, most = min(ends), max(ends)
    air = 0.1 * (most - least) or 0.5
    least, most = least - air, most + air

    def at(value: float) -> float:
        return 14 + (value - least) / (most - least) * (WIDTH - 28)

    step = next((s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0) if (most - least) / s <= 8), 50.0)
    marks = [n * step for n in range(math.ceil(least / step), math.floor(most / step) + 1)]
    words = f"difference {difference:+.2f} points"
    words += f", interval {low:+.2f} to {high:+.2f}" if low is not None and high is not None else ""
    words += f", margin {margin:g}" if margin is not None else ""
    return Interval(
        None if low is None else at(low),
        None if high is None else at(high),
        at(difference),
        at(0.0),
        None if margin is None else at(margin),
        tuple(Tick(at(v), f"{v:+g}" if v else "0") for v in marks),
        words,
    )


# ---- admissible sets


@dataclass(frozen=True)
class Sets:
    """Shares of an output's elements, in percent of a bar: one admissible value, several, held to little, unjudged."""

    output: str
    parts: tuple[tuple[str, float, str], ...]
    words: str


def admissible_sets(comparisons: Sequence[Comparison]) -> list[Sets]:
    """For each output, how many elements had exactly one admissible value, several, or none declared."""
    found = []
    for output in dict.fromkeys(c.output for c in comparisons):
        own = [c for c in comparisons if c.output == output]
        total = sum(c.judged + c.unspecified for c in own)
        if not total:
            continue
        single, vacuous = sum(c.single for c in own), sum(c.vacuous for c in own)
        judged, open_ = sum(c.judged for c in own), sum(c.unspecified for c in own)
        parts = (
            ("one", single, "exactly one admissible value"),
            ("some", max(0, judged - single - vacuous), "a few admissible values"),
            ("vague", vacuous, "a budget too wide to say much"),
            ("none", open_, "left open by the contract"),
        )
        drawn = tuple(
            (kind, 100 * n / total, f"{text.share(n, total)}: {words} ({n:,})") for kind, n, words in parts if n
        )
        words = f"{text.share(single, judged)} of {judged:,} held to one value"
        found.append(Sets(output, drawn, words))
    return found


# ---- one element


@dataclass(frozen=True)
class Term:
    """A term of the budget and its share in percent."""

    name: str
    value: str
    share: float


@dataclass(frozen=True)
class Opened:
    """One failing element with its arithmetic. band, exact, got: pixels on a line of 640.

    explain: the command that prints the whole arithmetic, "" where the case is none of the suite's.
    """

    title: str
    facts: tuple[tuple[str, str], ...]
    terms: tuple[Term, ...]
    band: tuple[float, float] | None
    exact: float
    got: float | None
    explain: str
    picture: str = field(default="")


def opened(record: Record, most: int = 5) -> list[Opened]:
    """The worst elements of the output with the largest share of violations, then of the others, at most ``most``."""
    failing = sorted((c for c in record.comparisons if c.violations), key=lambda c: -c.violations / max(c.judged, 1))
    return [_element(record, c.output, e) for c in failing for e in c.worst][:most]


def _element(record: Record, output: str, e: Element) -> Opened:
    ratio = math.nan if math.isnan(e.err) else (e.err / e.budget if e.budget else math.inf)
    away = (
        "not comparable"
        if math.isnan(ratio)
        else (f"{e.err_ulp:,.0f} steps of the format" if math.isinf(ratio) else f"{_factor(ratio)} x its budget")
    )
    unit = " (in units of t = y / s)" if output == "codes" else ""
    facts = (
        ("exact, float64", f"{e.exact:.12g}{unit}"),
        ("admissible", text.admissible_text(e)),
        ("kernel gave", f"{e.got:.9g}  (bits {e.got_bits})"),
        ("|error|", f"{e.err:.6g}"),
        ("budget", f"{e.budget:.6g}" if e.budget else "0: one value is admissible"),
        ("error / budget", _factor(ratio) if math.isfinite(ratio) else away),
        ("steps of the format", f"{e.err_ulp:,.4g}"),
    )
    total = sum(abs(v) for v in e.terms.values() if math.isfinite(v))
    terms = tuple(
        Term(name, f"{v:.4g}", 100 * abs(v) / total if total and math.isfinite(v) else 0.0)
        for name, v in e.terms.items()
    )
    band, exact, got = _number_line(e)
    title = f"{output}[{e.row}, {e.col}]: {away}"
    words = f"admissible {text.admissible_text(e)}, exact {e.exact:.9g}, kernel gave {e.got:.9g}"
    return Opened(title, facts, terms, band, exact, got, _explain(record, output, e), words)


def _factor(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"


def _number_line(e: Element) -> tuple[tuple[float, float] | None, float, float | None]:
    """The line spans the admissible set and the kernel's value; a set that is too narrow to see keeps four pixels."""
    ends = [v for v in (e.low, e.high, e.exact, e.got) if math.isfinite(v)]
    if not ends or not (math.isfinite(e.low) and math.isfinite(e.high) and math.isfinite(e.exact)):
        return None, WIDTH / 2, None
    least, most = min(ends), max(ends)
    span = (most - least) or abs(most) or 1.0

    def at(value: float) -> float:
        return 40 + (value - least) / span * (WIDTH - 80)

    low, high = at(e.low), at(e.high)
    if high - low < 4:
        low, high = (low + high) / 2 - 2, (low + high) / 2 + 2
    return (low, high), at(e.exact), at(e.got) if math.isfinite(e.got) else None


def _explain(record: Record, output: str, e: Element) -> str:
    if record.stage == "layers" or not record.case.startswith(f"{record.op}-"):
        return ""
    return command_line(
        "validators",
        "explain",
        record.case,
        kernel=of_op(record.op, record.kernel),
        row=e.row,
        col=e.col,
        output=output,
        device=record.device,
        contract=record.contract if record.contract_from == "given" else None,
    )


# ---- zoo


@dataclass(frozen=True)
class Zoo:
    """Which known defects fail on cases like those that passed: (id, name, caught)."""

    sentence: str
    defects: tuple[tuple[str, str, bool], ...]


def zoo(records: Sequence[Record]) -> Zoo | None:
    """The strength of one kernel's passing cases; None where none of the suite's passed or no table can be read."""
    own = [r for r in records if r.lane in LANES]
    try:
        found = [s for s in strength.measure(own) if s.passed]
    except (strength.StrengthError, CaseError):
        return None
    if not found:
        return None
    best: Mapping[str, str] = found[0].names
    caught = {identity for s in found for identity in s.caught}
    every = sorted(caught | {identity for s in found for identity in s.missed})
    return Zoo(found[0].sentence(), tuple((i, best.get(i, ""), i in caught) for i in every))
