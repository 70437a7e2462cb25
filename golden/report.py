"""What a person wants to see of a check: one table, then each golden that is not as accepted; and a line of history."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from golden.outcome import Outcome, State, exit_code
from golden.store import Row
from validators.process.guard import Exit
from validators.records.files import append_whole
from validators.records.provenance import Provenance

_COLUMNS = tuple(State)
Table = tuple[tuple[str, ...], list[tuple[str, ...]]]
"""Header and rows."""


def table(outcomes: Sequence[Outcome]) -> Table:
    """Header, then one line per kernel and architecture: name, arch, goldens, and how many are in each state."""
    counts: dict[tuple[str, str], Counter[State]] = {}
    for outcome in outcomes:
        counts.setdefault((outcome.name, outcome.arch), Counter())[outcome.state] += 1
    header = ("golden of", "arch", "goldens", *(state.value for state in _COLUMNS))
    lines = []
    for (name, arch), count in sorted(counts.items()):
        numbers = (str(count[state] or "") for state in _COLUMNS)
        lines.append((name, arch, str(sum(count.values())), *numbers))
    return header, lines


def headline(outcomes: Sequence[Outcome]) -> str:
    """One sentence: is everything as accepted?"""
    states = Counter(outcome.state for outcome in outcomes)
    counted = ", ".join(f"{states[s]:,} {s.value}" for s in _COLUMNS if states[s])
    words = {
        Exit.YES: "As accepted.",
        Exit.NO: "NOT as accepted." if states[State.FAILED] else "Bits have drifted; all of them are admissible.",
        Exit.NO_DECISION: "Nothing was checked.",
    }[exit_code(outcomes)]
    return f"{words} {len(outcomes):,} goldens: {counted or 'none'}."


def details(outcomes: Sequence[Outcome]) -> list[str]:
    """A line for every golden that is not UNCHANGED; those of one kernel with one sentence share it."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for outcome in outcomes:
        if outcome.state is not State.UNCHANGED:
            same = outcome.name if outcome.state is State.MISSING else outcome.id
            found.setdefault((outcome.state.value, same, outcome.sentence), []).append(outcome.id)
    order = [State.FAILED.value, State.DRIFTED.value, State.UNTESTED.value, State.MISSING.value]
    return [
        f"{state} {same}{f' ({len(ids)} goldens)' if len(ids) > 1 else ''}: {sentence}"
        for (state, same, sentence), ids in sorted(found.items(), key=lambda item: order.index(item[0][0]))
    ]


def markdown(outcomes: Sequence[Outcome]) -> str:
    """Headline, table, details; for a workflow's summary page."""
    header, lines = table(outcomes)
    rows = ["| " + " | ".join(line) + " |" for line in (header, *lines)]
    rows.insert(1, "|---|---|" + "---:|" * (len(header) - 2))
    more = details(outcomes)
    notes = ["", *(f"- {line.replace('|', chr(92) + '|')}" for line in more)] if more else []
    return "\n".join([f"### {headline(outcomes)}", "", *rows, *notes, ""])


def append_history(path: str | Path, outcomes: Sequence[Outcome], where: Provenance) -> None:
    """One JSON line at the end of ``path``: date, where, counts, and what is not as accepted. Raises FileError."""
    states = Counter(outcome.state.value for outcome in outcomes)
    line = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "exit": exit_code(outcomes),
        "states": dict(sorted(states.items())),
        "not_unchanged": {o.id: o.state.value for o in outcomes if o.state is not State.UNCHANGED},
        **{name: getattr(where, name) for name in ("commit", "dirty", "torch", "gpu", "cpu", "host")},
    }
    append_whole(path, json.dumps(line, sort_keys=True) + "\n")


def listing(rows: Sequence[Row]) -> Table:
    """Header and one line per golden for ``list``: id, contract, date, torch, earlier rows, reason."""
    header = ("golden", "contract", "isa", "accepted", "torch", "earlier", "reason")
    return header, [
        tuple(
            cell or "-"
            for cell in (r.id, r.contract, r.isa, r.date[:10], r.versions.get("torch"), str(len(r.history)), r.reason)
        )
        for r in rows
    ]
