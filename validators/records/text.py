"""Records in words: the failure report, one line, the summary. Pure text, no tensor and no kernel.

The order is the order in which a reader needs it: verdict, how bad, what kind (non-finite first,
because a NaN swallows every maximum), where, the worst elements with their arithmetic, why, and the
line that reproduces it.
"""

from __future__ import annotations

import math
import os
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence

from validators.records import verdict, wording
from validators.records.command_line import command_line, of_op
from validators.records.record import Check, Comparison, Element, Record, Status
from validators.words import LANES

MAX_LINES = 40
_WIDTH = 160
_HEADLINE = 110
_LABEL = 14


def failure_report(record: Record) -> str:
    """The report of one record, at most ``MAX_LINES`` lines; the first says the verdict.

    Meant for a record that did not pass; for one that did it states how strong the pass is.
    """
    failing = _failing(record)
    lines = [headline(record), f"  {_identity(record)}"]
    lines += _labelled("lane", f"{record.lane}    contract {contract_text(record)}")
    lines += _labelled("reason", *_wrapped(_clip_list(_other_reasons(record), 3)))
    main = failing[0] if failing else None
    if main is not None:
        lines += _comparison_lines(main)
    lines += _labelled("also failed", *_clip_list([_comparison_line(c) for c in failing[1:]], 3))
    failed = [f"{c.name}: {c.detail}" for c in _broken(record)]
    lines += _labelled("check failed", *_clip_list(failed, 3))
    lines += _labelled("explained by", *_clip_list([e.text for e in record.explanations if e.text not in failed], 3))
    lines += _labelled("identified", *_clip_list(record.identified, 2))
    lines += _labelled("printed", *_last_words(record.provenance.worker_output))
    if main is None:
        lines += _labelled("strength", strength_sentence([record]))
    lines += _labelled("provenance", *provenance_lines(record))
    if len(lines) >= MAX_LINES:
        lines[MAX_LINES - 2 :] = [f"  ... {len(lines) - MAX_LINES + 2} more lines: the record has them"]
    # Never clipped: this line is there to be copied.
    lines.append("  " + "reproduce".ljust(_LABEL) + reproduce_line(record))
    return "\n".join(lines)


_STACK = "Current thread "
"""How Python's fault handler begins the calls of the thread that died, the innermost first."""


def _last_words(printed: str) -> list[str]:
    """At most three lines of what a worker printed before it died: where it was, or else the last ones."""
    lines = printed.strip().splitlines()
    begin = next((i for i, line in enumerate(lines) if line.startswith(_STACK)), None)
    return lines[-3:] if begin is None else [line.strip() for line in lines[begin + 1 : begin + 4]]


def headline(record: Record) -> str:
    """The verdict in one line that fits a pytest summary, without kernel and case."""
    failing = _failing(record)
    if record.status is Status.FAILED and failing:
        unstable = any(c.kind == "determinism" for c in _broken(record))
        return f"FAILED {_comparison_line(failing[0])}" + ("; and two runs differ" if unstable else "")
    broken = _broken(record)
    if broken and record.status in (Status.FAILED, Status.NONDETERMINISTIC):
        return _clip(f"{record.status.value} {broken[0].name}: {broken[0].detail}", _HEADLINE)
    if record.reasons:
        return _clip(f"{record.status.value}: {record.reasons[0]}", _HEADLINE)
    return record.status.value if record.status is Status.PASSED else f"{record.status.value}: no reason was recorded"


def one_line(record: Record) -> str:
    """Verdict, kernel and case in one line."""
    return f"{headline(record)}  [{_flat(record.kernel)} {_flat(record.case)}]"


def strength_sentence(records: Sequence[Record]) -> str:
    """How sharp the judgement was: ``97.2 % of elements had exactly one admissible value``."""
    comparisons = [c for r in records for c in r.comparisons]
    judged, single = sum(c.judged for c in comparisons), sum(c.single for c in comparisons)
    unspecified = sum(c.unspecified for c in comparisons)
    if not judged:
        return "no element was judged"
    sentence = f"{share(single, judged)} of {judged:,} judged elements had exactly one admissible value"
    return sentence + (f"; {unspecified:,} more are unspecified by the contract" if unspecified else "")


def reproduce_line(record: Record) -> str:
    """The recorded command, or one built from the record's fields."""
    if record.reproduce:
        return _flat(record.reproduce)
    contract = record.contract if record.contract_from == "given" else None
    kernel = of_op(record.op, record.kernel)
    return command_line("validators", "run", kernel=kernel, case=record.case, device=record.device, contract=contract)


def contract_text(record: Record) -> str:
    """``vllm (declared)``, or ``none`` when none was declared, given or identified."""
    return f"{record.contract} ({record.contract_from})" if record.contract else "none"


def provenance_lines(record: Record) -> list[str]:
    """Two lines: the code and when, then the machine."""
    known = record.provenance
    state = "" if known.dirty is None else (" (dirty)" if known.dirty else " (clean)")
    first = [f"commit {known.commit[:10]}{state}" if known.commit else "commit unknown"]
    first += [f"{name} {version}" for name, version in (("torch", known.torch), ("python", known.python)) if version]
    first += [known.date] if known.date else []
    second = [f"device {record.device}", f"arch {record.arch}"]
    second += [text for text in (known.gpu, known.cpu, known.platform) if text]
    second += [text for name, version in known.kernel_versions.items() if (text := f"{name} {version}") not in first]
    second += [f"{name} {value}" for name, value in known.chosen.items()]
    second.append(f"{record.seconds:.2f} s")
    return ["  ".join(first), "  ".join(second)]


def share(part: int, whole: int) -> str:
    """A percentage that says 0 % and 100 % only when they are true."""
    if not whole:
        return "0 %"
    percent = 100.0 * part / whole
    if part not in (0, whole) and (percent < 0.05 or percent >= 99.95):
        return "under 0.1 %" if percent < 0.05 else "over 99.9 %"
    return f"{percent:.0f} %" if part in (0, whole) else f"{percent:.1f} %"


def lane_order(lanes: Iterable[str]) -> list[str]:
    """``lanes`` without repeats, strongest evidence first, unknown ones last."""
    return sorted(set(lanes), key=lambda x: (LANES.index(x) if x in LANES else len(LANES), x))


def counts_text(statuses: Counter[Status]) -> str:
    """``12 PASSED``, or ``10 PASSED, 1 FAILED``; in the order of ``Status``."""
    return ", ".join(f"{statuses[s]} {s.value}" for s in Status if statuses[s]) or "-"


def summary_table(records: Sequence[Record], *, terminal: bool | None = None, width: int = 100) -> str:
    """A kernel x lane matrix of counts, then the totals.

    ``terminal`` None asks stdout. Colours and lines come from rich on a terminal, if it is installed;
    anywhere else the text is plain, so that logs stay readable and comparable.
    """
    lanes = lane_order(r.lane for r in records)
    cells: dict[str, dict[str, Counter[Status]]] = {}
    for record in records:
        name = f"{_flat(record.kernel)} on {record.arch}" + _marks(record)
        cells.setdefault(name, {}).setdefault(record.lane, Counter())[record.status] += 1
    rows = [[name, *(counts_text(by_lane.get(x, Counter())) for x in lanes)] for name, by_lane in cells.items()]
    noun = "record" if len(records) == 1 else "records"
    total = f"{len(records)} {noun}: {counts_text(Counter(r.status for r in records))}"
    if terminal is None:
        terminal = sys.stdout.isatty()
    table = _rich_table(lanes, rows, width) if terminal else None
    return f"{table if table is not None else plain_table(['kernel', *lanes], rows)}\n{total}"


def _rich_table(lanes: list[str], rows: list[list[str]], width: int) -> str | None:
    try:
        import io

        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return None
    table = Table()
    for name in ("kernel", *lanes):
        table.add_column(name)
    for row in rows:
        bad = [any(word in cell for word in ("FAILED", "ERROR", "NONDET", "MISTRUSTED")) for cell in row[1:]]
        styles = ["", *("red" if b else ("dim" if c == "-" else "green") for b, c in zip(bad, row[1:], strict=True))]
        table.add_row(*(Text(cell, style=style) for cell, style in zip(row, styles, strict=True)))
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, no_color="NO_COLOR" in os.environ)
    console.print(table)
    return stream.getvalue().rstrip("\n")


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Columns aligned with spaces."""
    table = [header, *rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    padded = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in table)
    return "\n".join((indent + line).rstrip() for line in padded)


def _identity(record: Record) -> str:
    return f"kernel  {_flat(record.kernel)}{_marks(record)}    case  {_flat(record.case)}"


def _marks(record: Record) -> str:
    return (" (emulated)" if record.emulated else "") + (" (fake)" if record.fake else "")


def _failing(record: Record) -> list[Comparison]:
    """Comparisons with violations, the one with the largest share first."""
    found = [c for c in record.comparisons if c.violations]
    return sorted(found, key=lambda c: -c.violations / max(c.judged, 1))


def _broken(record: Record) -> list[Check]:
    return [c for c in record.checks if c.ok is False]


def _other_reasons(record: Record) -> list[str]:
    """Reasons that the first line and the comparisons below it do not already say."""
    below = {verdict.violation_sentence(c) for c in record.comparisons if c.violations}
    below |= {f"{c.name}: {c.detail}" for c in _broken(record)}
    said = headline(record)
    return [r for r in record.reasons if _flat(r) not in said and r not in below]


def _comparison_line(c: Comparison) -> str:
    noun = "rows" if c.output == "scale" else "elements"
    return f"{c.output}: {c.violations:,} of {c.judged:,} {noun} outside their admissible set, {wording.worst(c)}"


def _comparison_lines(c: Comparison) -> list[str]:
    n = c.nonfinite
    lines: list[str] = []
    lines += _labelled(
        "non-finite",
        f"got {n.get('got_nan', 0):,} NaN, {n.get('got_inf', 0):,} Inf    "
        f"not admissible there {n.get('unexpected', 0):,}    missing {n.get('missing', 0):,}",
    )
    lines += _labelled("where", c.where or f"rows {c.rows:,}, columns {c.cols:,} hold a violation")
    quantiles = "  ".join(f"{name} {use_text(value)}" for name, value in c.use_quantiles.items())
    quantiles = quantiles or f"max {use_text(c.worst_use)}"
    within = f"worst among admissible {use_text(c.worst_use_passing)}"
    lines += _labelled("err/budget", f"{quantiles}  (all {c.judged:,} judged); {within}")
    lines += _element_table(c.worst[:5])
    lines += _labelled("ulp steps", ulp_line(c.ulp_histogram)) if c.ulp_histogram else []
    single = f"{share(c.single, c.judged)} of judged elements had exactly one admissible value"
    lines += _labelled("strength", single + (f"; {c.unspecified:,} unspecified" if c.unspecified else ""))
    return lines + (_labelled("observed", c.observed) if c.observed else [])


def ulp_line(histogram: dict[str, int]) -> str:
    """``-1: 12   0: 5,000   >=5: 510``: steps from the correctly rounded value, from low to high."""
    return "   ".join(f"{k}: {histogram[k]:,}" for k in ulp_keys(histogram))


def ulp_keys(histogram: Iterable[str]) -> list[str]:
    """Histogram keys from low to high; open ends such as ``<=-5`` and ``>=5`` sort outside."""

    def place(key: str) -> tuple[float, float]:
        number = re.search(r"-?\d+", key)
        value = float(number.group()) if number else math.inf
        return value, -0.5 if key.startswith("<") else (0.5 if key.startswith(">") else 0.0)

    return sorted(histogram, key=place)


def _element_table(worst: Sequence[Element]) -> list[str]:
    if not worst:
        return []
    terms = list(dict.fromkeys(name for e in worst for name in e.terms))[:4]
    header = ["index", "exact", "admissible", "got", "bits", "|err|", "budget", "ratio", "ulp", *terms]
    rows = [
        [
            f"({e.row}, {e.col})",
            _value(e.exact),
            admissible_text(e),
            _value(e.got),
            e.got_bits,
            _small(e.err),
            _small(e.budget),
            wording.short_times(e.err / e.budget if e.budget else (math.inf if e.err else 0.0)),
            f"{e.err_ulp:.4g}",
            *(_small(e.terms[t]) if t in e.terms else "-" for t in terms),
        ]
        for e in worst
    ]
    return plain_table(header, rows, "  ").split("\n")


def admissible_text(e: Element) -> str:
    """The admissible set of one element: one value, or its two ends."""
    low, high = _value(e.low), _value(e.high)
    return low if low == high else f"[{low}, {high}]"


def _value(x: float) -> str:
    return "NaN" if math.isnan(x) else f"{x:.9g}"


def _small(x: float) -> str:
    return "NaN" if math.isnan(x) else f"{x:.4g}"


def use_text(x: float) -> str:
    """An err/budget ratio: ``0.93``, ``1892``, ``>1e6``, ``NaN``."""
    if wording.BEYOND < x < math.inf:
        return ">1e6"
    return "NaN" if math.isnan(x) else (f"{x:.2f}" if x < 10 else f"{x:.4g}")


def _flat(text: str) -> str:
    """One line: what a kernel or a user wrote must not break the layout or move a terminal's cursor."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+", " ", text).strip()


def _clip(text: str, width: int = _WIDTH) -> str:
    flat = _flat(text)
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def _wrapped(texts: Sequence[str]) -> list[str]:
    """Each text over as many lines as it needs: the advice of an ERROR is at its end."""
    return [line for text in texts for line in textwrap.wrap(_flat(text), _WIDTH)]


def _clip_list(texts: Sequence[str], most: int) -> list[str]:
    more = len(texts) - most
    return [*texts[:most], *([f"and {more} more"] if more > 0 else [])]


def _labelled(label: str, *texts: str) -> list[str]:
    return ["  " + (label if i == 0 else "").ljust(_LABEL) + _clip(t, _WIDTH) for i, t in enumerate(texts)]
