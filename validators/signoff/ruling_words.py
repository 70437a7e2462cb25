"""A ruling in words: its cells by name, the shortest list of reasons why a claim is not signed, what is UNTESTED."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from validators.records.record import Explanation, Record, Status
from validators.records.text import headline, lane_order
from validators.signoff import judged
from validators.signoff.judged import contradictions, inconsistency
from validators.signoff.policy import Waiver
from validators.signoff.stages import is_truth
from validators.words import OPS

_MOST_CAUSES = 2
_MOST_QUOTED = 240  # characters; the page has the whole sentence
_MOST_TOLD = 200


@dataclass(frozen=True)
class Cell:
    """One thing that a policy requires and what the records say. why: sentences, empty for PASSED.

    op, kernel and lane are "" where they do not apply: parity and trace belong to the whole path.
    """

    stage: str
    op: str
    kernel: str
    lane: str
    state: str
    counts: Counter[str]
    why: tuple[str, ...] = ()
    depth: str = ""
    waiver: Waiver | None = None


# ---- the shortest list of reasons


def reasons(cells: Sequence[Cell], mine: Sequence[Record]) -> list[str]:
    """One sentence a cause: two kernels under one name, then what failed, by kernel, contradictions, no evidence."""
    waived = {(c.stage, c.op, c.kernel, c.lane) for c in cells if c.waiver}

    def counts(record: Record) -> bool:
        stage = record.stage
        op, lane = (record.op if record.op in OPS else ""), (record.lane if stage == "ops" else "")
        return not any((stage, op, kernel, lane) in waived for kernel in (record.kernel, ""))

    found = [said for kernel in dict.fromkeys(r.kernel for r in mine) if (said := _sources(kernel, mine))]
    wrong: dict[tuple[str, str, bool], list[Record]] = {}
    for record in mine:
        if counts(record) and judged.in_the_way(record):
            wrong.setdefault((record.op, record.kernel, _only_drifted(record)), []).append(record)
    found += [_failure(op, kernel, group, mine) for (op, kernel, drift), group in wrong.items() if not drift]
    found += [_drift(op, kernel, group, mine) for (op, kernel, drift), group in wrong.items() if drift]
    clashes = contradictions([r for r in mine if counts(r) and not is_truth(r)])
    found += clashes[:1]
    if len(clashes) > 1:
        found[-1] = f"{clashes[0]} {len(clashes) - 1} more cases contradict each other."
    for cell in cells:
        if cell.state == "NO EVIDENCE":
            found.append(f"{cell_name(cell)}: {cell.why[0].rstrip('.')}.")
    return found


def _sources(kernel: str, mine: Sequence[Record]) -> str | None:
    return judged.two_kernels(kernel, [r for r in mine if r.kernel == kernel])


def _only_drifted(record: Record) -> bool:
    return judged.label(record) == judged.DRIFTED and inconsistency(record) is None


def _drift(op: str, kernel: str, group: Sequence[Record], mine: Sequence[Record]) -> str:
    """``goldens of per_token_quant of K: 17 DRIFTED, 12 unchanged, 6 UNTESTED. First CASE: ...``."""
    every = [r for r in mine if (r.op, r.kernel) == (op, kernel) and r.stage == "goldens"]
    counts = judged.counts_text(judged.counts_of(every))
    return f"goldens of {op} of {kernel}: {counts}. First {group[0].case}: {said(group[0])}."


def _failure(op: str, kernel: str, group: Sequence[Record], mine: Sequence[Record]) -> str:
    """``add_rmsnorm_quant of K: FAILED in 12 of 60 cases (ops: random, shapes; layers). Explained by NAME: ...``."""
    every = {(r.stage, r.case) for r in mine if (r.op, r.kernel) == (op, kernel)}
    cases = {(r.stage, r.case) for r in group}
    lanes_hit: dict[str, dict[str, None]] = {}
    for r in group:
        lanes_hit.setdefault(r.stage, {})[r.lane] = None
    places = [f"ops: {', '.join(lane_order(names))}" if stage == "ops" else stage for stage, names in lanes_hit.items()]
    ordered = sorted(group, key=lambda r: list(Status).index(r.status))
    names = (f"{r.status.value} against its own record" if inconsistency(r) else r.status.value for r in ordered)
    statuses = " and ".join(dict.fromkeys(names))
    of = f"{op if op in OPS else group[0].stage} of {kernel}"
    text = f"{of}: {statuses} in {len(cases)} of {len(every)} cases ({'; '.join(places)})."
    honest = [r for r in group if inconsistency(r) is None]
    causes = Counter(cause for r in honest if (cause := cause_of(r)))
    for cause, count in causes.most_common(_MOST_CAUSES):
        sentence = next(e.sentence for r in honest if (e := _cause(r)) and e.title == cause).rstrip(".")
        text += f" {count if count < len(group) else 'All'} explained by {cause}: {sentence}."
    if liar := next((r for r in group if inconsistency(r) is not None), None):
        text += f" The record of {liar.case} says {liar.status.value} and {inconsistency(liar)}."
    elif not causes:
        text += f" First {group[0].case}: {said(group[0])}."
    return text


def cause_of(record: Record) -> str:
    """The name of the record's first explanation (``tail-not-in-amax``, ``poison``), or of the check that failed."""
    cause = _cause(record)
    return cause.title if cause else ""


def _cause(record: Record) -> Explanation | None:
    if record.op not in OPS:
        return None
    if record.explanations:
        return record.explanations[0] if record.explanations[0].name else None
    # A kernel whose two runs differ has no explanation: the check that shows it is one.
    violated = any(c.violations for c in record.comparisons)
    broken = (Explanation(c.name, c.detail, kind="check") for c in record.checks if c.ok is False)
    return None if violated else next(broken, None)


def said(record: Record) -> str:
    """What is wrong with the record, without a full stop."""
    if _only_drifted(record):
        check = next((c for c in record.checks if c.name == "golden"), None)
        return check.detail.rstrip(".") if check else "other bits than accepted"
    if record.reasons and not record.comparisons:
        return _clipped(record.reasons[0].rstrip("."), _MOST_QUOTED)
    return headline(record).rstrip(".")


def cell_name(cell: Cell) -> str:
    """``ops random of K``, ``parity``."""
    return " ".join(x for x in (cell.stage, cell.lane, f"of {cell.kernel}" if cell.kernel else cell.op) if x)


def _clipped(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def untested(cells: Sequence[Cell]) -> str:
    """``ops of A (every lane) and of B (model); layers (weaker than the policy asks: ...); parity``."""
    words: list[str] = []
    for stage in dict.fromkeys(cell.stage for cell in cells):
        here = [c for c in cells if c.stage == stage]
        left = [c for c in here if c.state == "UNTESTED"]
        if not left:
            continue
        if stage != "ops":
            why = list(dict.fromkeys(w for c in left for w in c.why if w != "nothing ran"))
            words.append(f"{stage} ({_clipped(why[0], _MOST_TOLD)})" if why else stage)
            continue
        if len(left) == len(here):
            words.append(stage)
            continue
        parts = []
        for key in dict.fromkeys((c.op, c.kernel) for c in left):
            names = [c.lane for c in left if (c.op, c.kernel) == key]
            every = len(names) == sum((c.op, c.kernel) == key for c in here)
            parts.append(f"of {key[1]} ({'every lane' if every else ', '.join(names)})")
        words.append(f"ops {' and '.join(parts)}")
    return "; ".join(words)
