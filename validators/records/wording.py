"""Figures as words where they say nothing as figures, and the sentences of explanations: one rule in one place.

A ratio of 141,677,498 to a budget says no more than "beyond a million times", an error of 4,200 % no more than "wrong",
and a missing NaN has no distance at all.
"""

from __future__ import annotations

import math

from validators.records.record import Comparison, Explanation

MOST = 0.95
"""A hypothesis is offered as *the* explanation if it meets this share of the violations; some elements near a rounding
boundary go either way under any hypothesis. Wording only: no verdict depends on it."""
WIDE = "sets as wide as an output"
"""What is noted of elements that are not judged because their set says nothing (``reference.ptpc_gemm``)."""
LEAST = 0.3
"""A defect that would explain less than this share of the violations is not named."""
BEYOND = 1e6
"""Ratios and distances above this are words: nobody compares two of them."""


def vanishes(name: str, sentence: str, share: float = 1.0, *, note: str = "", kind: str = "defect") -> Explanation:
    """``NAME: every violation vanishes if SENTENCE`` or ``NAME: 60 % of the violations vanish if SENTENCE``."""
    how_many = "every violation vanishes" if share >= MOST else f"{100 * share:.0f} % of the violations vanish"
    return Explanation(name, f"{how_many} if {sentence}{note}", share, kind)


def times(ratio: float) -> str:
    """A ratio to a budget: ``12.3x``, ``just over 1x``, ``beyond a million times the budget``."""
    if math.isnan(ratio):
        return "not comparable"
    if math.isinf(ratio):
        return "beyond any budget"
    if ratio > BEYOND:
        return "beyond a million times the budget"
    if 1.0 < ratio < 1.005:
        return "just over 1x"  # "1x" would read as if it were within its budget
    return f"{ratio:.0f}x" if ratio >= 100 else f"{ratio:.3g}x"


def short_times(ratio: float) -> str:
    """The same for a column of a table: ``12.3x``, ``>1e6x``, ``inf``, ``NaN``."""
    if math.isnan(ratio):
        return "NaN"
    if math.isinf(ratio):
        return "inf"
    return ">1e6x" if ratio > BEYOND else times(ratio)


def worst(c: Comparison) -> str:
    """``worst 12x``, ``worst 5 ulp away``, ``worst: NaN missing``: how bad the worst violation of an output is."""
    if c.worst and not math.isfinite(c.worst[0].got) and math.isfinite(c.worst[0].exact):
        return f"worst: {'NaN' if math.isnan(c.worst[0].got) else 'Inf'} where a number is due"
    if c.worst and math.isnan(c.worst[0].exact):
        return "worst: NaN missing"
    steps = max((abs(e.err_ulp) for e in c.worst if math.isfinite(e.err_ulp)), default=0.0)
    # Where one value is admissible the budget is zero and the ratio infinite: the distance says more.
    if math.isinf(c.worst_use) and steps > BEYOND:
        return "worst: beyond a million ulp"
    if math.isinf(c.worst_use) and steps >= 1:
        return f"worst {steps:,.0f} ulp away"
    return f"worst {times(c.worst_use)}"


def percent_low(share: float) -> str | None:
    """``4.2 %`` for a share of 0.042 by which outputs are too small; None where no output keeps any of its value."""
    return f"{100 * share:.2g} %" if 0.0 < share < 1.0 else None


def how_to_declare(kernel: str, text: str | None = None) -> str:
    """``if that is a limit, declare it: fused.unsupported = lambda case: "why" if case.n % 16 else None``."""
    if ":" not in kernel:
        return "if that is a limit, the adapter's unsupported(case) says so with a sentence"
    name = kernel.rpartition(":")[2]
    return f'if that is a limit, declare it: {name}.unsupported = lambda case: "why" if {text or "..."} else None'
