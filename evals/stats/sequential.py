"""Stopping early by betting: a verdict that stays valid however often one looks.

Each question gives x = right(candidate) - right(baseline) in {-1, 0, 1}. A gambler who bets a share l of his money on
"x is above -margin" at every question, at fair odds if the truth is "worse by the margin or more", multiplies his
capital by 1 + l (x + margin); his expected capital then never grows, so by Ville's inequality it reaches 1/alpha with
probability at most alpha, whenever one stops (Waudby-Smith and Ramdas, 2024). The mirror image bets on harm. Capital is
averaged over several l, so that the discordance need not be known.

Two traps. File order is not random: questions must come in a seeded permutation. With many requests at once the short,
easy answers arrive first: only the contiguous beginning of the permutation may be consumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from evals.errors import EvalError

BETS = tuple(k / 10 for k in range(1, 10))
"""Shares that are bet: the best one is about margin / discordance, between 0.2 and 1 for margins of 1 to 2 points."""


@dataclass
class Race:
    """Two gamblers, one for parity and one for harm; feed it one question after the other.

    margin: of non-inferiority, as a fraction. alpha: error probability of each of the two claims. decided: "", or
    "parity" or "harm" for whichever capital first reached 1/alpha; nothing after that changes it.
    """

    margin: float
    alpha: float = 0.05
    count: int = 0
    decided: str = ""
    decided_after: int = 0
    _parity: list[float] = field(default_factory=lambda: [0.0] * len(BETS))
    _harm: list[float] = field(default_factory=lambda: [0.0] * len(BETS))

    def __post_init__(self) -> None:
        if not 0 < self.margin < 1 or not 0 < self.alpha < 1:
            raise EvalError("margin and alpha must be between 0 and 1")

    @property
    def parity(self) -> float:
        """Capital that was bet on "not worse by the margin"; begins at 1."""
        return _mean_exp(self._parity)

    @property
    def harm(self) -> float:
        """Capital that was bet on "worse"; begins at 1."""
        return _mean_exp(self._harm)

    def feed(self, difference: int) -> str:
        """One question: +1 gained, -1 lost, 0 neither. Returns ``decided``."""
        if difference not in (-1, 0, 1):
            raise EvalError(f"a question's difference is -1, 0 or 1, not {difference}")
        self.count += 1
        for i, bet in enumerate(BETS):
            self._parity[i] += math.log1p(bet * (difference + self.margin))
            self._harm[i] += math.log1p(-bet * difference)
        if not self.decided:
            for name, capital in (("harm", self.harm), ("parity", self.parity)):
                if capital >= 1 / self.alpha:
                    self.decided, self.decided_after = name, self.count
                    break
        return self.decided


def _mean_exp(logs: Sequence[float]) -> float:
    top = max(logs)
    return math.exp(top) * math.fsum(math.exp(x - top) for x in logs) / len(logs)


def watch(differences: Iterable[int], margin: float, alpha: float = 0.05) -> Race:
    """The race after ``differences`` in the order of the permutation, or as soon as it is decided."""
    race = Race(margin, alpha)
    for difference in differences:
        if race.feed(difference):
            break
    return race


def contiguous(orders: Iterable[int]) -> int:
    """Length of the contiguous beginning 0, 1, 2, ... that is in ``orders``."""
    there = set(orders)
    length = 0
    while length in there:
        length += 1
    return length
