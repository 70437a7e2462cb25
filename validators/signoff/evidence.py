"""What of a policy the record of a whole path falls short of.

A walk through the layers, an end-to-end evaluation and a trace can each be made so weak that any kernel passes: one
layer of four, a margin of 30 points, 300 questions of one's own. A record that is weaker than a policy asks does not
fill its cell.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from validators.records.evidence import Evaluation, Launches, WalkEvidence
from validators.records.record import Record, Status
from validators.signoff.claims import Target
from validators.signoff.policy import QUESTION_SETS, Requirement

ALPHA = 0.05
"""Largest one-sided error of an end-to-end evaluation that a policy's margin is read with: that of ``evals``."""
RULE = "non-inferiority"


def shortfalls(requirement: Requirement, target: Target, record: Record) -> list[str]:
    """What of ``requirement`` the record does not reach, each as ``margin 30 points (asked: at most 1.5)``."""
    found: list[str] = []
    if requirement.stage == "layers":
        found = _layers(requirement, record.walk or WalkEvidence())
    elif requirement.stage == "parity":
        found = _parity(requirement, target, record.evaluation or Evaluation())
    elif requirement.stage == "trace":
        found = _trace(requirement, record.launches or Launches())
    if record.arch in ("", "unknown") and requirement.stage != "ops":
        found.append(f"an unknown architecture (asked: {target.arch})")
    return found


def sentence(requirement: Requirement, target: Target, records: Sequence[Record]) -> str:
    """Why none of ``records`` fills its cell, by the one that falls short of least; "" if there are none."""
    told = [(r, shortfalls(requirement, target, r)) for r in records]
    told = [(r, short) for r, short in told if short]
    if not told:
        return ""
    record, short = min(told, key=lambda pair: len(pair[1]))
    more = f"; {len(told) - 1} more records are too weak as well" if len(told) > 1 else ""
    return f"weaker than the policy asks: {', '.join(short)} ({record.case}){more}"


def missing_of_walk(op: str, records: Sequence[Record]) -> str:
    """A sentence where records of ``op`` are missing from every walk of ``records`` that says how many it wrote."""
    walks = {r.walk.walk: r.walk for r in records if r.walk and r.walk.walk}
    found = Counter(r.walk.walk for r in records if r.walk and r.op == op and r.subject == "kernel")
    short = []
    for name, walk in walks.items():
        total = walk.records.get(op, 0)
        if found[name] >= total:
            return ""
        short.append(f"{total - found[name]} of the walk's {total} records of {op} are missing")
    return short[0] if short else ""


def _layers(requirement: Requirement, about: WalkEvidence) -> list[str]:
    found = []
    if requirement.layers:
        own = set(about.layers) if about.of is not None else set()
        wanted = set(range(about.of or 0)) if requirement.layers == "all" else set(_listed(requirement))
        if not wanted or not wanted <= own:
            asked = "all" if requirement.layers == "all" else runs(_listed(requirement))
            found.append(f"{layers_text(sorted(own), about.of)} (asked: {asked})")
    if requirement.margin is not None:
        found += _at_most("margin", about.margin, requirement.margin, "")
    if requirement.tokens:
        found += _at_least("tokens", about.tokens, requirement.tokens)
    return found


def _listed(requirement: Requirement) -> tuple[int, ...]:
    return requirement.layers if isinstance(requirement.layers, tuple) else ()


def layers_text(walked: Sequence[int], total: int | None) -> str:
    """``layer 0 of 4``, ``layers 0 to 2 of 4``, ``unknown layers``."""
    if not walked or total is None:
        return "unknown layers"
    return f"layer{'s' if len(walked) > 1 else ''} {runs(walked)} of {total}"


def runs(numbers: Sequence[int]) -> str:
    """``0 to 3``, ``0``, ``0, 2 and 5``."""
    ordered = sorted(numbers)
    if len(ordered) > 1 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]} to {ordered[-1]}"
    words = [str(x) for x in ordered]
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def _parity(requirement: Requirement, target: Target, about: Evaluation) -> list[str]:
    found = []
    if requirement.margin is not None:
        found += _at_most("margin", about.margin, requirement.margin, " points")
        if about.rule not in ("", RULE):
            found.append(f"rule {about.rule} (asked: {RULE})")
        if about.alpha is not None and not about.alpha <= ALPHA:
            found.append(f"error probability {_shown(about.alpha)} (asked: at most {ALPHA:g})")
    if about.aa:
        found.append("a run against itself (asked: the candidate against the baseline)")
    if requirement.questions:
        found += _at_least("questions", about.questions, requirement.questions)
    if requirement.tokens:
        found += _at_least("scored tokens", about.tokens, requirement.tokens)
    if requirement.data and about.data_sha256 not in [
        digest for name in requirement.data for digest in QUESTION_SETS.get(name, (name,))
    ]:
        named = f"{about.data or 'unknown'}{f', sha256 {about.data_sha256[:12]}' if about.data_sha256 else ''}"
        asked = " or ".join(name if name in QUESTION_SETS else f"sha256 {name[:12]}" for name in requirement.data)
        found.append(f"question set {named} (asked: {asked})")
    return found + _kernels(target, about)


def _kernels(target: Target, about: Evaluation) -> list[str]:
    """A path with other kernels than the claim's is another path."""
    if not target.one_path:
        return []
    pairs = [(op, about.kernels.get(op), own[0]) for op, own in target.kernels.items()]
    return [f"{op} by {got} (asked: {own})" for op, got, own in pairs if got is not None and got != own]


def _trace(requirement: Requirement, about: Launches) -> list[str]:
    if not requirement.layers:
        return []
    if about.layers is None or about.layers < 1:
        return ["not held to a number of layers (asked: --layers N)"]
    wanted = len(_listed(requirement))
    return [f"{about.layers} layers (asked: {wanted})"] if wanted and about.layers < wanted else []


def _shown(value: float | None) -> str:
    return "unknown" if value is None or not math.isfinite(value) else f"{value:g}"


def _at_most(name: str, value: float | None, limit: float, unit: str) -> list[str]:
    """A value that is no finite number reaches nothing. Points are fractions times 100: a last bit is free."""
    if value is not None and 0 <= value <= limit * (1 + 1e-12):
        return []
    shown = _shown(value)
    return [f"{name} {shown}{unit if shown != 'unknown' else ''} (asked: at most {limit:g})"]


def _at_least(name: str, value: int | None, least: int) -> list[str]:
    if value is not None and value >= least:
        return []
    words = f"{name} unknown" if value is None else f"{value:,} {name}"
    return [f"{words} (asked: at least {least:,})"]


def weak_and_strong(
    requirement: Requirement, target: Target, records: Sequence[Record]
) -> tuple[list[Record], list[Record]]:
    """(records that are too weak to fill the cell, the others). What went wrong counts however weak it is."""
    weak = [r for r in records if r.status is Status.PASSED and shortfalls(requirement, target, r)]
    own = {id(r) for r in weak}
    return weak, [r for r in records if id(r) not in own]
