"""What a search has looked at: cases by status, elements, the largest sizes, and which pairs of features met."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from validators.cases.case import Case
from validators.records.record import Record, Status
from validators.search.conditions import words_of
from validators.search.draw import Space

_JUDGED = (Status.PASSED, Status.FAILED, Status.NONDETERMINISTIC, Status.MISTRUSTED)
_ROWS = (("no row", 0), ("one row", 1), ("2 to 16 rows", 16), ("17 to 256 rows", 256), ("up to 65,535 rows", 65_535))
_WIDTHS = (("columns up to 512", 512), ("columns up to 2,048", 2048), ("columns up to 6,144", 6144))
_INNER = (("products up to 256", 256), ("products up to 4,096", 4096))
_CLASSES = {
    "m": (*_ROWS, ("more rows", None)),
    "n": (*_WIDTHS, ("wider", None)),
    "k": (*_INNER, ("more products", None)),
}
"""Classes of each size: name, and the largest that belongs to it."""


def levels(space: Space, case: Case) -> tuple[str, ...]:
    """The class of each size and the value of each option of ``case``, in words."""
    sizes = [_class(name, getattr(case, name)) for name in space.sizes]
    ends = ["whole vectors of 8" if case.n % 8 == 0 else "columns that are no multiple of 8"]
    return (*sizes, *ends, *(words_of(name, getattr(case, name)) for name in space.options))


def _class(name: str, size: int) -> str:
    return next(words for words, most in _CLASSES[name] if most is None or size <= most)


@dataclass
class Tally:
    """Counts of one search. pairs: of levels that a judged case had together."""

    space: Space
    statuses: Counter[str] = field(default_factory=Counter)
    elements: int = 0
    largest: dict[str, int] = field(default_factory=dict)
    pairs: set[tuple[str, str]] = field(default_factory=set)

    def add(self, case: Case, record: Record) -> None:
        """Count a case that was drawn."""
        self.statuses[record.status.value] += 1
        if record.status not in _JUDGED:
            return
        self.elements += sum(comparison.elements for comparison in record.comparisons)
        for name in self.space.sizes:
            self.largest[name] = max(self.largest.get(name, 0), getattr(case, name))
        self.pairs.update(itertools.combinations(levels(self.space, case), 2))

    @property
    def cases(self) -> int:
        """How many were drawn and run."""
        return self.statuses.total()

    @property
    def possible(self) -> int:
        """Pairs of levels that there are."""
        counts = [len(_CLASSES[name]) for name in self.space.sizes]
        counts += [2, *(len(values) for values in self.space.options.values())]
        return sum(one * other for one, other in itertools.combinations(counts, 2))

    def words(self) -> list[str]:
        """Two sentences for the end of a search."""
        by_status = ", ".join(f"{count:,} {name}" for name, count in _ordered(self.statuses))
        largest = ", ".join(f"{name} = {size:,}" for name, size in self.largest.items())
        lines = [f"{self.cases:,} cases: {by_status or 'none'}"]
        if self.largest:
            lines.append(
                f"{self.elements:,} elements of outputs; largest {largest}; "
                f"{len(self.pairs):,} of {self.possible:,} pairs of features met in a case that was judged"
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
