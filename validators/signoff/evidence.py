"""How much a record of a whole path shows, as data, and what of a policy it falls short of.

A walk through the layers, an end-to-end evaluation and a trace can each be made so weak that any kernel passes: one
layer of four, a margin of 30 points, 300 questions of one's own. Their records carry what they covered in
``provenance["evidence"]``, and a record that is weaker than a policy asks does not fill its cell.

Layers: ``model``, ``layers`` (numbers walked), ``of`` (layers of the model), ``margin`` (allowed excess of the fused
path's error), ``tokens``, ``walk`` (the same in all records of one walk) and ``records`` (op -> records of the walk).
Parity: ``rule``, ``margin`` (points), ``alpha``, ``questions``, ``data`` and ``data_sha256``, ``tokens`` (scored),
``aa`` (a run against itself), ``kernels`` (op -> kernel of the candidate). Trace: ``layers`` (that were asked for).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from validators.records.record import Record, Status
from validators.signoff.claims import Target
from validators.signoff.policy import QUESTION_SETS, Requirement

ALPHA = 0.05
"""Largest one-sided error of an end-to-end evaluation that a policy's margin is read with: that of ``evals``."""
RULE = "non-inferiority"


def of(record: Record) -> Mapping[str, Any]:
    """The record's evidence; empty where it says nothing."""
    found = record.provenance.get("evidence")
    return found if isinstance(found, dict) else {}


def shortfalls(requirement: Requirement, target: Target, record: Record) -> list[str]:
    """What of ``requirement`` the record does not reach, each as ``margin 30 points (asked: at most 1.5)``."""
    found = {"layers": _layers, "parity": _parity, "trace": _trace}.get(requirement.stage, _nothing)(
        requirement, target, of(record)
    )
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
    wanted = {str(of(r).get("walk")): of(r).get("records") for r in records if of(r).get("walk")}
    found = Counter(str(of(r).get("walk")) for r in records if r.op == op and not is_trajectory(r))
    short = []
    for walk, counts in wanted.items():
        total = counts.get(op, 0) if isinstance(counts, dict) else 0
        if found[walk] >= total:
            return ""
        short.append(f"{total - found[walk]} of the walk's {total} records of {op} are missing")
    return short[0] if short else ""


def is_trajectory(record: Record) -> bool:
    """Whether the record judges a walk as a whole; it is written last."""
    return record.case.startswith("layers-") and record.case.endswith("-trajectory")


def _nothing(requirement: Requirement, target: Target, about: Mapping[str, Any]) -> list[str]:
    return []


def _layers(requirement: Requirement, target: Target, about: Mapping[str, Any]) -> list[str]:
    found = []
    walked, total = about.get("layers"), about.get("of")
    if requirement.layers:
        known = isinstance(walked, list) and isinstance(total, int) and all(isinstance(x, int) for x in walked)
        own = set(walked) if known and walked else set()
        wanted = set(range(total)) if requirement.layers == "all" and known and total else set(_listed(requirement))
        if not known or not wanted or not wanted <= own:
            asked = "all" if requirement.layers == "all" else runs(_listed(requirement))
            found.append(f"{layers_text(sorted(own), total)} (asked: {asked})")
    if requirement.margin is not None:
        found += _at_most("margin", about.get("margin"), requirement.margin, "")
    if requirement.tokens:
        found += _at_least("tokens", about.get("tokens"), requirement.tokens)
    return found


def _listed(requirement: Requirement) -> tuple[int, ...]:
    return requirement.layers if isinstance(requirement.layers, tuple) else ()


def layers_text(walked: Sequence[int], total: object) -> str:
    """``layer 0 of 4``, ``layers 0 to 2 of 4``, ``unknown layers``."""
    if not walked or not isinstance(total, int):
        return "unknown layers"
    return f"layer{'s' if len(walked) > 1 else ''} {runs(walked)} of {total}"


def runs(numbers: Sequence[int]) -> str:
    """``0 to 3``, ``0``, ``0, 2 and 5``."""
    ordered = sorted(numbers)
    if len(ordered) > 1 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        return f"{ordered[0]} to {ordered[-1]}"
    words = [str(x) for x in ordered]
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def _parity(requirement: Requirement, target: Target, about: Mapping[str, Any]) -> list[str]:
    found = []
    if requirement.margin is not None:
        found += _at_most("margin", about.get("margin"), requirement.margin, " points")
        if about.get("rule", RULE) != RULE:
            found.append(f"rule {about['rule']} (asked: {RULE})")
        alpha = about.get("alpha", ALPHA)
        if not _number(alpha) or alpha > ALPHA:
            found.append(f"error probability {_shown(alpha)} (asked: at most {ALPHA:g})")
    if about.get("aa"):
        found.append("a run against itself (asked: the candidate against the baseline)")
    if requirement.questions:
        found += _at_least("questions", about.get("questions"), requirement.questions)
    if requirement.tokens:
        found += _at_least("scored tokens", about.get("tokens"), requirement.tokens)
    if requirement.data:
        digest = str(about.get("data_sha256") or "")
        if digest not in [d for name in requirement.data for d in QUESTION_SETS.get(name, (name,))]:
            named = f"{about.get('data') or 'unknown'}{f', sha256 {digest[:12]}' if digest else ''}"
            asked = " or ".join(name if name in QUESTION_SETS else f"sha256 {name[:12]}" for name in requirement.data)
            found.append(f"question set {named} (asked: {asked})")
    return found + _kernels(target, about)


def _kernels(target: Target, about: Mapping[str, Any]) -> list[str]:
    """A path with other kernels than the claim's is another path."""
    ran = about.get("kernels")
    if not target.one_path or not isinstance(ran, dict):
        return []
    pairs = [(op, ran.get(op), own[0]) for op, own in target.kernels.items()]
    return [f"{op} by {got} (asked: {own})" for op, got, own in pairs if got is not None and got != own]


def _trace(requirement: Requirement, target: Target, about: Mapping[str, Any]) -> list[str]:
    if not requirement.layers:
        return []
    held = about.get("layers")
    if not isinstance(held, int) or held < 1:
        return ["not held to a number of layers (asked: --layers N)"]
    wanted = len(_listed(requirement))
    return [f"{held} layers (asked: {wanted})"] if wanted and held < wanted else []


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: object) -> str:
    return f"{value:g}" if _number(value) and isinstance(value, int | float) else "unknown"


def _at_most(name: str, value: object, limit: float, unit: str) -> list[str]:
    """A value that is no finite number reaches nothing. Points are fractions times 100: a last bit is free."""
    if isinstance(value, int | float) and _number(value) and 0 <= value <= limit * (1 + 1e-12):
        return []
    return [f"{name} {_shown(value)}{unit if _number(value) else ''} (asked: at most {limit:g})"]


def _at_least(name: str, value: object, least: int) -> list[str]:
    if isinstance(value, int | float) and _number(value) and value >= least:
        return []
    words = f"{int(value):,} {name}" if isinstance(value, int | float) and _number(value) else f"{name} unknown"
    return [f"{words} (asked: at least {least:,})"]


def weak_and_strong(
    requirement: Requirement, target: Target, records: Sequence[Record]
) -> tuple[list[Record], list[Record]]:
    """(records that are too weak to fill the cell, the others). What went wrong counts however weak it is."""
    weak = [r for r in records if r.status is Status.PASSED and shortfalls(requirement, target, r)]
    own = {id(r) for r in weak}
    return weak, [r for r in records if id(r) not in own]
