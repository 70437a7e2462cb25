"""What a search has looked at: cases by status, elements, the largest sizes, and which pairs of levels met.

The levels are those in which a sign-off counts what was run (``validators.signoff.factors``).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from validators.cases.case import Case
from validators.records.record import Record, Status
from validators.search.draw import Space
from validators.signoff import factors

_JUDGED = (Status.PASSED, Status.FAILED, Status.NONDETERMINISTIC, Status.MISTRUSTED)


@dataclass
class Tally:
    """Counts of one search. levels: of each factor, those that a judged case had. pairs: two that one case had."""

    space: Space
    statuses: Counter[str] = field(default_factory=Counter)
    elements: int = 0
    largest: dict[str, int] = field(default_factory=dict)
    levels: dict[str, set[str]] = field(default_factory=dict)
    pairs: set[factors.Pair] = field(default_factory=set)

    def add(self, case: Case, record: Record) -> None:
        """Count a case that was drawn."""
        self.statuses[record.status.value] += 1
        if record.status not in _JUDGED:
            return
        self.elements += sum(comparison.elements for comparison in record.comparisons)
        for name in self.space.sizes:
            self.largest[name] = max(self.largest.get(name, 0), getattr(case, name))
        own = [each for each in factors.FACTORS if self._varies(each)]
        for factor, level in zip(own, factors.levels(case, own), strict=False):
            if case.m:
                self.levels.setdefault(factor.name, set()).add(level)
        self.pairs |= factors.pairs(case, own)

    def _varies(self, factor: factors.Factor) -> bool:
        """Whether the op has cases of more than one level; judged by what is drawn."""
        facts = self.space.options
        fields = {"type": "dtype", "format": "fp8", "weight": "gamma", "gain": "gemma"}
        if factor.option:
            return fields.get(factor.name, factor.name) in facts
        return "k" in self.space.sizes or factor.name not in ("products", "end of k")

    @property
    def cases(self) -> int:
        """How many were drawn and run."""
        return self.statuses.total()

    @property
    def possible(self) -> int:
        """Pairs that the levels make."""
        counts = [len(names) for names in self.levels.values()]
        return sum(one * other for one, other in itertools.combinations(counts, 2))

    def words(self) -> list[str]:
        """Two sentences for the end of a search."""
        by_status = ", ".join(f"{count:,} {name}" for name, count in _ordered(self.statuses))
        largest = ", ".join(f"{name} = {size:,}" for name, size in self.largest.items())
        lines = [f"{self.cases:,} case{'s' * (self.cases != 1)}: {by_status or 'none'}"]
        if self.largest:
            lines.append(
                f"{self.elements:,} elements of outputs; largest {largest}; "
                f"{len(self.pairs):,} of the {self.possible:,} pairs that their size classes and features make"
            )
        return lines

    def asdict(self) -> dict[str, object]:
        """JSON values."""
        return {
            "cases": self.cases,
            "statuses": dict(_ordered(self.statuses)),
            "elements": self.elements,
            "largest": self.largest,
            "pairs": sorted(map(list, self.pairs)),
            "pairs_possible": self.possible,
        }


def _ordered(counts: Counter[str]) -> Iterable[tuple[str, int]]:
    return [(status.value, counts[status.value]) for status in Status if counts[status.value]]
