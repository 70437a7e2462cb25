"""What a run of a given size would have seen: exact power of McNemar's test and of the non-inferiority test.

The planning tables of the default margin were computed by it; a verdict needs none of it. Needs scipy.
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from scipy.stats import binom

from evals.stats.paired import ALPHA, POWER, tango_z


def power_harm(count: int, discordance: float, drop: float, *, alpha: float = ALPHA, sides: int = 1) -> float:
    """Probability that exact McNemar rejects, at ``alpha`` (one- or two-sided), if accuracy truly fell by ``drop``."""
    if drop > discordance:
        return math.nan
    share = (discordance + drop) / (2 * discordance)
    total = 0.0
    for pairs, weight in _discordant(count, discordance):
        least = _critical(pairs, alpha / sides)
        if least <= pairs:
            total += weight * float(binom.sf(least - 1, pairs, share))
        if sides == 2 and least <= pairs:
            total += weight * float(binom.cdf(pairs - least, pairs, share))
    return total


def smallest_drop(count: int, discordance: float, *, alpha: float = ALPHA, sides: int = 1) -> float | None:
    """The smallest true drop that exact McNemar sees with POWER; None where even losses alone would not do."""

    def seen(drop: float) -> bool:
        return power_harm(count, discordance, drop, alpha=alpha, sides=sides) >= POWER

    low, high = 0.0, discordance
    if not seen(high):
        return None
    for _ in range(20):
        half = (low + high) / 2
        low, high = (low, half) if seen(half) else (half, high)
    return high


def power_parity(
    count: int, discordance: float, margin: float, difference: float = 0.0, *, alpha: float = ALPHA
) -> float:
    """Probability that non-inferiority is declared if the true difference is ``difference``; exact sum over tables."""
    share = (discordance - difference) / (2 * discordance)
    z = NormalDist().inv_cdf(1 - alpha)
    total = 0.0
    for pairs, weight in _discordant(count, discordance):
        # The more are lost, the less it holds: bisect for the largest loss that still passes.
        low, high = -1, pairs
        while low < high:
            half = (low + high + 1) // 2
            low, high = (half, high) if tango_z(half, pairs - half, count, -margin) > z else (low, half - 1)
        if low >= 0:
            total += weight * float(binom.cdf(low, pairs, share))
    return total


def _discordant(count: int, discordance: float) -> list[tuple[int, float]]:
    """(pairs, probability) of the number of discordant pairs, what is left out sums to below 1e-9."""
    weights = binom.pmf(np.arange(count + 1), count, discordance)
    return [(k, float(w)) for k, w in enumerate(weights) if w > 1e-9 / (count + 1)]


def _critical(pairs: int, alpha: float) -> int:
    """The smallest loss out of ``pairs`` that is significant; pairs + 1 if none is."""
    tails = binom.sf(np.arange(pairs + 1) - 1, pairs, 0.5)
    return pairs + 1 - int((tails <= alpha * (1 + 1e-12)).sum())
