"""Paired statistics of right and wrong answers: exact where that is possible, with a stated margin.

Two arms answer the same questions. ``lost`` are those that only the baseline has right, ``gained`` those that only the
candidate has right; all else cancels. "Not significantly different" is not parity: parity is a lower bound of the
difference that stays above a margin named beforehand. Differences are candidate minus baseline, as fractions (0.01 is
one point).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import NamedTuple

from evals.errors import EvalError

ALPHA = 0.05
"""One-sided. The usual level; a lower bound at 95 %."""
POWER = 0.8
"""The usual power for planning: a run of the planned size settles the question four times of five."""


@dataclass(frozen=True)
class Table:
    """The paired two-by-two table: questions that both have right, only the baseline, only the candidate, neither."""

    both: int
    lost: int
    gained: int
    neither: int

    def __post_init__(self) -> None:
        if min(self.both, self.lost, self.gained, self.neither) < 0 or self.count < 1:
            raise EvalError("a paired table needs at least one question and no negative count")

    @property
    def count(self) -> int:
        return self.both + self.lost + self.gained + self.neither

    @property
    def difference(self) -> float:
        return (self.gained - self.lost) / self.count

    @property
    def discordance(self) -> float:
        return (self.gained + self.lost) / self.count

    @property
    def baseline(self) -> int:
        return self.both + self.lost

    @property
    def candidate(self) -> int:
        return self.both + self.gained


def table(baseline: Sequence[bool], candidate: Sequence[bool]) -> Table:
    """The table of two equally long sequences of right (True) and not right."""
    pairs = list(zip(baseline, candidate, strict=True))
    both, lost, gained = (pairs.count(cell) for cell in ((True, True), (True, False), (False, True)))
    return Table(both, lost, gained, len(pairs) - both - lost - gained)


class Interval(NamedTuple):
    low: float
    high: float


class McNemar(NamedTuple):
    """Exact p-values: two-sided, and one-sided for harm (more lost than gained)."""

    two_sided: float
    harm: float


def mcnemar(lost: int, gained: int) -> McNemar:
    """Exact McNemar test: given the discordant pairs, ``lost`` is binomial(lost + gained, 1/2) if nothing changed.

    Whole-number arithmetic, so exact for any counts (equal to scipy's ``binomtest``).
    """
    total = lost + gained
    harm = _upper_tail(lost, total)
    smaller = min(harm, _upper_tail(gained, total))
    return McNemar(min(1.0, 2 * smaller), harm)


def _upper_tail(at_least: int, total: int) -> float:
    """P(X >= at_least) for X binomial(total, 1/2)."""
    return float(Fraction(sum(math.comb(total, k) for k in range(at_least, total + 1)), 2**total))


def tango_z(lost: int, gained: int, count: int, difference: float) -> float:
    """Tango's (1998) score statistic of "the true difference is ``difference``", standard normal if it is.

    The nuisance, P(lost), is at its maximum-likelihood value under that difference, a root of a quadratic:
    2N q^2 + B q - C = 0 with B = -(gained + lost) + (2N - gained + lost) D and C = lost D (1 - D).
    """
    d = difference
    b = -(gained + lost) + (2 * count - gained + lost) * d
    c = -lost * d * (1 - d)
    q = (math.sqrt(max(0.0, b * b - 8 * count * c)) - b) / (4 * count)
    variance = count * (2 * q + d * (1 - d))
    score = gained - lost - count * d
    if variance <= 0:
        return 0.0 if score == 0 else math.copysign(math.inf, score)
    return score / math.sqrt(variance)


def tango(lost: int, gained: int, count: int, confidence: float = 0.95) -> Interval:
    """Tango's two-sided score interval of the paired difference; its ends at 90 % are the one-sided 95 % bounds."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (gained - lost) / count

    # The statistic falls in the difference: positive below the estimate, negative above it.
    def bound(inside: float, outside: float, holds: Callable[[float], bool]) -> float:
        for _ in range(80):  # more halvings than a double has bits
            half = (inside + outside) / 2
            inside, outside = (half, outside) if holds(half) else (inside, half)
        return (inside + outside) / 2

    low = bound(middle, -1.0, lambda d: tango_z(lost, gained, count, d) <= z)
    high = bound(middle, 1.0, lambda d: tango_z(lost, gained, count, d) >= -z)
    return Interval(low, high)


def newcombe(t: Table, confidence: float = 0.95) -> Interval:
    """Newcombe's (1998) method 10 for the paired difference: Wilson intervals of both rates, joined with phi; the
    second opinion to Tango's."""
    n, z = t.count, NormalDist().inv_cdf((1 + confidence) / 2)
    b, a = t.baseline / n, t.candidate / n
    (low_a, high_a), (low_b, high_b) = _wilson(t.candidate, n, z), _wilson(t.baseline, n, z)
    margins = t.candidate * (n - t.candidate) * t.baseline * (n - t.baseline)
    cross = t.both * t.neither - t.lost * t.gained
    # The continuity-corrected numerator for positive association only, as published.
    corrected = max(cross - n / 2, 0.0) if cross > 0 else float(cross)
    phi = corrected / math.sqrt(margins) if margins else 0.0
    below = (a - low_a) ** 2 - 2 * phi * (a - low_a) * (high_b - b) + (high_b - b) ** 2
    above = (high_a - a) ** 2 - 2 * phi * (high_a - a) * (b - low_b) + (b - low_b) ** 2
    return Interval(a - b - math.sqrt(max(0.0, below)), a - b + math.sqrt(max(0.0, above)))


def _wilson(successes: int, n: int, z: float) -> Interval:
    p = successes / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n))


@dataclass(frozen=True)
class NonInferiority:
    """One-sided: ``low`` is the lower bound of the difference at 1 - alpha; holds if it is above -margin.

    harm_shown: the candidate is worse (exact McNemar, one-sided) and not shown to be within the margin.
    """

    low: float
    high: float
    margin: float
    holds: bool
    harm_shown: bool


def noninferiority(lost: int, gained: int, count: int, margin: float, alpha: float = ALPHA) -> NonInferiority:
    """Is the candidate no worse than the baseline less ``margin``? By Tango's score test; type I error about alpha."""
    if not 0 < margin < 1:
        raise EvalError(f"the margin must be between 0 and 100 points, not {100 * margin:g}")
    low, high = tango(lost, gained, count, 1 - 2 * alpha)
    p = mcnemar(lost, gained).harm
    holds = low > -margin
    return NonInferiority(low, high, margin, holds, not holds and p <= alpha)


def planned(discordance: float, margin: float, difference: float = 0.0, *, alpha: float = ALPHA) -> float:
    """Questions that a run needs to show non-inferiority with POWER, if the true difference is ``difference``.

    The difference of accuracies has variance d / N (less its square, which is small), so the lower bound clears -margin
    if (z_alpha + z_power) sqrt(d / N) <= margin + difference: N = 6.18 d / (margin + difference)^2 at 5 % and 80 %.
    Infinite where the true difference is at the margin or below it.
    """
    if margin + difference <= 0:
        return math.inf
    normal = NormalDist()
    z = normal.inv_cdf(1 - alpha) + normal.inv_cdf(POWER)
    return z * z * discordance / (margin + difference) ** 2


class Clustered(NamedTuple):
    """A mean over questions, each question one observation whatever its repeats."""

    mean: float
    error: float
    low: float
    high: float


def clustered(differences: Sequence[float], alpha: float = ALPHA) -> Clustered:
    """Mean of per-question differences with its standard error and one-sided bounds at 1 - alpha (central limit)."""
    count = len(differences)
    if count < 2:
        raise EvalError("a standard error needs at least two questions")
    mean = math.fsum(differences) / count
    error = math.sqrt(math.fsum((x - mean) ** 2 for x in differences) / (count - 1) / count)
    z = NormalDist().inv_cdf(1 - alpha)
    return Clustered(mean, error, mean - z * error, mean + z * error)


@dataclass(frozen=True)
class Excess:
    """Flips of the candidate against the baseline, and of the baseline against itself, on the same questions.

    only_candidate, only_again: questions that flip in one comparison and not in the other. p: exact, one-sided, of "the
    candidate flips no more questions than a re-run does". interval: Tango's, of the excess rate, at 95 %.
    """

    candidate: int
    again: int
    only_candidate: int
    only_again: int
    p: float
    interval: Interval


def excess_flips(candidate: Sequence[bool], again: Sequence[bool]) -> Excess:
    """candidate, again: whether each question changed against the first baseline run."""
    t = table(again, candidate)
    test = mcnemar(t.gained, t.lost)
    return Excess(t.candidate, t.baseline, t.gained, t.lost, test.harm, tango(t.lost, t.gained, t.count))


def first_divergence(a: Sequence[int] | str, b: Sequence[int] | str) -> int | None:
    """Place of the first token (or character) that differs; None if all are equal. A cut-off end is a difference."""
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return None if len(a) == len(b) else min(len(a), len(b))
