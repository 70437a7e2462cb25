"""Policy: from comparisons and checks to one status with reasons. Pure functions of data."""

from __future__ import annotations

from collections.abc import Sequence

from validators.records.record import Check, Comparison, Status
from validators.records.wording import WIDE, worst

MISTRUSTED_SHARE = 0.5
"""A pass is no evidence where more than half of an output's judged elements had a vacuous budget, or more than half of
the codes had a choice. A majority, not a tuned number: below it most elements were held to one value."""


def decide(comparisons: Sequence[Comparison], checks: Sequence[Check]) -> tuple[Status, tuple[str, ...]]:
    """The status and its reasons, worst first. FAILED before NONDETERMINISTIC before MISTRUSTED before PASSED.

    Where two runs on the same inputs differ, a row that differs alone or in another layout says nothing new: it fails
    nothing, and comes after.
    """
    failed = {
        kind: [f"{c.name}: {c.detail}" for c in checks if c.ok is False and c.kind == kind]
        for kind in dict.fromkeys(c.kind for c in checks)
    }
    unstable, varying = failed.pop("determinism", []), failed.pop("invariance", [])
    failures = [violation_sentence(c) for c in comparisons if c.violations] + [
        s for kind in failed.values() for s in kind
    ]
    if failures or (varying and not unstable):
        return Status.FAILED, (*failures, *unstable, *varying)
    if unstable:
        return Status.NONDETERMINISTIC, (*unstable, *varying)
    if not comparisons:
        return Status.MISTRUSTED, ("no output was compared",)
    if all(c.elements == 0 for c in comparisons):
        # Zero rows: the outputs exist, with the right shapes and types, which the integrity checks have looked at.
        return Status.PASSED, ()
    if all(c.judged == 0 for c in comparisons):
        if wide := [c for c in comparisons if c.wide]:
            return Status.MISTRUSTED, tuple(f"{c.output}: {WIDE}, so that no element could be judged" for c in wide)
        seen = "; ".join(f"{c.output}: {c.observed}" for c in comparisons if c.observed)
        return Status.UNSUPPORTED, (
            f"the contract leaves every row of this case unspecified; seen: {seen or 'nothing'}",
        )
    doubts = [doubt for c in comparisons if (doubt := mistrust(c))]
    if doubts:
        return Status.MISTRUSTED, tuple(doubts)
    return Status.PASSED, ()


def violation_sentence(c: Comparison) -> str:
    """How many, how bad, where: the first line of a report."""
    what = "rows" if c.output == "scale" else "elements"
    share = 100.0 * c.violations / max(1, c.judged)
    return (
        f"{c.output}: {c.violations:,} of {c.judged:,} {what} outside their admissible set ({share:.3g} %), "
        f"{worst(c)}; {c.where}"
    )


def mistrust(c: Comparison) -> str | None:
    """Why a pass on this output would be no evidence, or None."""
    if c.judged == 0 and c.unspecified == 0:
        return f"{c.output}: no element was judged"
    if c.vacuous > MISTRUSTED_SHARE * c.judged:
        return f"{c.output}: the sets of {c.vacuous:,} of {c.judged:,} elements say nothing about the output"
    if c.output == "codes" and c.judged - c.single > MISTRUSTED_SHARE * c.judged:
        return f"{c.output}: {c.judged - c.single:,} of {c.judged:,} elements had more than one admissible code"
    return None


def left_open(comparisons: Sequence[Comparison]) -> bool:
    """Whether most judged elements had several admissible values: the contract said little about this case."""
    return 2 * sum(c.single for c in comparisons) < sum(c.judged for c in comparisons)


def strength(comparisons: Sequence[Comparison]) -> dict[str, float]:
    """How strong a pass is: judged elements, and the share of them with exactly one admissible value, by output."""
    found: dict[str, float] = {"judged": float(sum(c.judged for c in comparisons))}
    single = sum(c.single for c in comparisons)
    if found["judged"]:
        found["single_share"] = single / found["judged"]
    for c in comparisons:
        if c.judged:
            found[f"single_share_{c.output}"] = c.single / c.judged
    return found
