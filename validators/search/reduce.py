"""A case that fails, reduced to the smallest shape and the fewest features that still fail, and what it needs.

First features go to their usual values one at a time, then the recipe to the first of the op's that still fails, then
sizes shrink by halving and by steps that keep what they are a multiple of. Values around the result say what is
needed: ``n = 6145 fails, n = 6144 passes; bf16 passes``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from validators.cases.case import Case
from validators.cases.recipes import reasons_impossible
from validators.records.record import Record, Status
from validators.search.conditions import Condition, Size, Value, fit, words_of
from validators.search.draw import Space, cost

FAILURES = (Status.FAILED, Status.NONDETERMINISTIC, Status.ERROR)
"""What a search looks for. A case that was too weak (MISTRUSTED) is one of the draw's, and no failure of the kernel."""

CALLS = 600
"""Cases at most that one reduction runs."""
SEEDS = 3
"""Seeds with which a case is tried before it counts as one that passes, until it is known how often a seed fails."""
MOST_SEEDS = 12
"""The same where few seeds fail: a row of ordinary values shows some defects by chance alone."""
CLAIMED = 0.5
"""The share of seeds that must fail before one that passes counts for a condition: below it 12 may pass by chance."""
MISSED = 0.02
"""How often a case may count as passing because none of its seeds happened to fail."""
_SHARE_OF = 6
ROWS = 16
"""Rows that stay while columns and products shrink: the more rows, the less does it depend on chance what fails."""
PROBED = 1 << 20
"""Elements at most of a case around the result, unless the result has more."""
_SMALL = (1, 2, 3, 8, 16, 64, 128)
_BACK = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Finding:
    """record: of the reduced case. first: the id of the case that was drawn. facts: what fails and passes next to it.

    finished: False where calls or time ran out, so that a smaller case may fail too. known: False where what is needed
    could not be found out, because few seeds fail or because it ended before; then the condition is the recipe of the
    case that was drawn, which says what else this finding explains.
    """

    record: Record
    first: str
    conditions: tuple[Condition, ...]
    facts: tuple[str, ...]
    calls: int
    finished: bool
    known: bool = True

    @property
    def case(self) -> str:
        """The id of the reduced case."""
        return self.record.case

    @property
    def key(self) -> tuple[Status, tuple[Condition, ...]]:
        """Equal for findings that say the same."""
        return self.record.status, self.conditions

    def covers(self, case: Case) -> bool:
        """Whether this finding explains that ``case`` fails."""
        return all(condition.holds(case) for condition in self.conditions)

    def confirmed(self, again: Record) -> Finding:
        """With the record of the reduced case once more, which has explanations."""
        if again.status is self.record.status:
            return dataclasses.replace(self, record=again)
        unsteady = f"asked once more it is {again.status.value}"
        return dataclasses.replace(self, facts=(*self.facts, unsteady))

    @property
    def sentence(self) -> str:
        """What is needed, in one sentence."""
        verb = _VERBS[self.record.status]
        needed = [condition.words for condition in self.conditions if condition.words]
        facts = f": {'; '.join(self.facts)}" if self.facts else ""
        if not self.known:
            why = "few seeds show it" if self.finished else "there was no time for it"
            found = f"{verb}, and what it needs is not known, because {why}; seen with {needed[0]}"
        elif needed:
            found = f"{verb} only with {' and '.join(needed)}{facts}"
        else:
            found = f"{verb} without any condition that was found{facts}"
        return found if self.finished else f"{found} (the reduction ended early; a smaller case may fail too)"

    def asdict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "case": self.case,
            "status": self.record.status.value,
            "sentence": self.sentence,
            "first": self.first,
            "calls": self.calls,
            "finished": self.finished,
            "reproduce": self.record.reproduce,
        }


_VERBS = {
    Status.FAILED: "fails",
    Status.ERROR: "ends in ERROR",
    Status.NONDETERMINISTIC: "gives other bits in a second run",
}


class _Ended(Exception):
    """Calls or time ran out."""


@dataclass
class Reduction:
    """judge(case) -> its record. failed: the record to reduce. more(): False where time is up."""

    space: Space
    judge: Callable[[Case], Record]
    failed: Record
    more: Callable[[], bool] = lambda: True
    calls: int = 0
    seeds: int = SEEDS
    _records: dict[str, Record] = field(default_factory=dict)
    _seen: dict[Case, bool | None] = field(default_factory=dict)
    _said: list[tuple[Condition, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._claimed = False
        self.steady = False
        """Whether a smaller case is taken only where every seed fails, so that its neighbours say what is needed."""
        self.best = Case.parse(self.failed.case)
        self._records[self.best.id] = self.failed

    def run(self) -> Finding:
        """The finding; never raises for what a kernel does."""
        finished = True
        try:
            self.steady = self._share(self.best, SEEDS) == 1
            self._options()
            self._recipe()
            self._fewer_rows()
            inner = [name for name in reversed(self.space.sizes) if name != "m"]
            for name in inner:
                self._smallest(name)
            self._options()
            self._recipe()
            if self._weigh() >= CLAIMED:
                for name in inner:
                    self._around(name)
                    self._say_size(name, self._sizes(name))
                self._say_options()
                self._claimed = True
            self.steady = False
            for name in inner:
                self._smallest(name)
            self._rows()
        except _Ended:
            finished = False
        record = self._records[self.best.id]
        if not self._claimed:
            recipe = Value("recipe", Case.parse(self.failed.case).recipe)
            return Finding(record, self.failed.case, (recipe,), (), self.calls, finished, known=False)
        said = sorted(self._said, key=lambda pair: isinstance(pair[0], Value))
        conditions, facts = tuple(condition for condition, _ in said), tuple(fact for _, fact in said)
        return Finding(record, self.failed.case, conditions, facts, self.calls, finished)

    # ---- one case

    def _fails(self, case: Case) -> bool | None:
        """Whether ``case`` fails with some seed, as the one that was drawn does; None where it cannot be said."""
        plain = dataclasses.replace(case, seed=0)
        if plain not in self._seen:
            self._seen[plain] = self._asked(case)
        return self._seen[plain]

    def _asked(self, case: Case) -> bool | None:
        if reasons_impossible(case) is not None:
            return None
        found: bool | None = None
        for again in self._seeded(case, self.seeds):
            status = self._status(again)
            if status is self.failed.status:
                return True
            if status is not Status.PASSED:
                return found
            found = False
        return found

    def _passes(self, case: Case) -> bool:
        """Whether it passes with every one of more seeds than usual: each option is asked about only once."""
        if reasons_impossible(case) is not None:
            return False
        seeds = max(self.seeds, _SHARE_OF)
        return all(self._status(one) is Status.PASSED for one in self._seeded(case, seeds))

    def _seeded(self, case: Case, count: int) -> list[Case]:
        """The case with its own seed, then with others: ``count`` in all."""
        seeds = list(dict.fromkeys((case.seed, *range(count))))[:count]
        return [dataclasses.replace(case, seed=seed) for seed in seeds]

    def _status(self, case: Case) -> Status:
        if case.id not in self._records:
            if self.calls >= CALLS or not self.more():
                raise _Ended
            self.calls += 1
            self._records[case.id] = self.judge(case)
        return self._records[case.id].status

    def _share(self, case: Case, count: int) -> float:
        """The share of ``count`` seeds with which the case fails; 0 where the first one does not."""
        each = self._seeded(case, count)
        if self._status(each[0]) is not self.failed.status:
            return 0.0
        return sum(self._status(one) is self.failed.status for one in each) / len(each)

    def _take(self, **fields: Any) -> bool:
        """Whether the best case fails with these fields too; then it is the best one."""
        case = dataclasses.replace(self.best, **fields)
        if case == self.best:
            return False
        if self.steady:
            if reasons_impossible(case) is not None or self._share(case, SEEDS) < 1:
                return False
            self.best = case
            return True
        if not self._fails(case):
            return False
        known = [one for one in self._seeded(case, self.seeds) if one.id in self._records]
        failing = [one for one in known if self._records[one.id].status is self.failed.status]
        self.best = failing[0] if failing else self.best
        return bool(failing)

    # ---- smaller

    def _options(self) -> None:
        for name, values in self.space.options.items():
            for value in values[: values.index(getattr(self.best, name))]:
                if self._take(**{name: value}):
                    break

    def _recipe(self) -> None:
        for name in self.space.recipes:
            if name == self.best.recipe or self._take(recipe=name):
                return

    def _fewer_rows(self) -> None:
        """Halve the rows as long as it fails."""
        while self.best.m >= 2 * ROWS and self._take(m=self.best.m // 2):
            pass

    def _weigh(self) -> float:
        """The share of seeds with which the best case fails, which says how many it takes to say that one passes."""
        share = self._share(self.best, _SHARE_OF)
        self.seeds = SEEDS if share == 1 else min(MOST_SEEDS, math.ceil(math.log(MISSED) / math.log(1 - share)))
        return share

    def _smallest(self, name: str) -> None:
        """Make the size as small as it fails, if what fails is above a bound, or in steps of a power of two."""
        low = 0
        for small in _SMALL:
            if small < getattr(self.best, name):
                if self._take(**{name: small}):
                    break
                low = small
        while (high := getattr(self.best, name)) - low > 1:
            middle = (low + high) // 2
            if not any(self._take(**{name: size}) for size in _snapped(low, middle, high)):
                low = middle
        while any(
            self._take(**{name: getattr(self.best, name) - step}) for step in _BACK if self._at_least(name, step)
        ):
            pass

    def _at_least(self, name: str, step: int) -> bool:
        return bool(getattr(self.best, name) > step)

    # ---- what is needed

    def _around(self, name: str) -> None:
        """Ask about sizes around the best one, and where the failing ones end."""
        for size in _probes(getattr(self.best, name)):
            self._probe(name, size)
        while (between := self._between(name)) is not None:
            if self._probe(name, between) is None:
                break
        if fit(name, self._sizes(name)).partial and self.seeds < _SHARE_OF:
            # Some of the sizes that pass may do so by chance: they are asked again, with more seeds.
            self.seeds = _SHARE_OF
            self._seen = {case: fails for case, fails in self._seen.items() if fails is not False}
            self._around(name)

    def _probe(self, name: str, size: int) -> bool | None:
        changed: dict[str, Any] = {name: size}
        case = dataclasses.replace(self.best, **changed)
        return self._fails(case) if cost(case) <= max(PROBED, 2 * cost(self.best)) else None

    def _between(self, name: str) -> int | None:
        """A size between one that passes and the next that fails, below or above those that fail; or None."""
        seen = self._sizes(name)
        found = fit(name, seen)
        if found.partial:
            return None
        low, high = found.above, min(size for size, fails in seen.items() if fails)
        if not (low and any(found.fits(size) and size not in seen for size in range(low + 1, high))):
            if found.most is None:
                return None
            low = found.most
            passing = [size for size, fails in seen.items() if not fails and size > low and found.fits(size)]
            if not passing:
                return None
            high = min(passing)
        inside = [size for size in _near((low + high) // 2, low, high) if found.fits(size) and size not in seen]
        return inside[0] if inside else None

    def _sizes(self, name: str) -> dict[int, bool]:
        """Sizes of cases that are the best one otherwise, and whether they fail."""
        other = dataclasses.replace(self.best, seed=0)
        return {
            getattr(case, name): fails
            for case, fails in self._seen.items()
            if fails is not None and dataclasses.replace(case, **{name: getattr(other, name)}) == other
        } | {getattr(other, name): True}

    def _rows(self) -> None:
        """The fewest rows, and what is needed of them, said where every seed fails.

        Fewer rows show a defect of few rows less often, which is no bound of the kernel.
        """
        self._smallest("m")
        self._around("m")
        seen = self._sizes("m")
        if self._share(self.best, SEEDS) < 1:
            least = min(size for size, fails in seen.items() if fails)
            seen = {size: fails for size, fails in seen.items() if size >= least}
        self._say_size("m", seen)

    def _say_size(self, name: str, seen: dict[int, bool]) -> None:
        found = fit(name, seen)
        if found.parts and not (found.partial and not found.above):
            self._said.append((found, _size_facts(found, seen, getattr(self.best, name))))

    def _say_options(self) -> None:
        """Which options are needed: those without which it passes. And the recipe, where simpler ones pass."""
        changed: dict[str, Any]
        for name, values in self.space.options.items():
            own, passing = getattr(self.best, name), []
            for value in values:
                changed = {name: value}
                if value != own and self._passes(dataclasses.replace(self.best, **changed)):
                    passing.append(value)
            if passing:
                words = _together([words_of(name, value) for value in passing])
                self._said.append((Value(name, own), f"{words} {_pass(passing)}"))
        simpler = self.space.recipes[: self.space.recipes.index(self.best.recipe)]
        passing = [name for name in simpler if self._passes(dataclasses.replace(self.best, recipe=name))]
        if passing:
            self._said.append((Value("recipe", self.best.recipe), f"recipe {passing[0]} passes"))


def _snapped(low: int, middle: int, high: int) -> Iterator[int]:
    """``middle``, then sizes between low and high that differ from ``high`` by a multiple of 8, of 128, of 1024."""
    yield middle
    for period in (8, 128, 1024):
        size = high - (high - middle + period - 1) // period * period
        size = size if size > low else size + period
        if low < size < high and size != middle:
            yield size


def _probes(size: int) -> list[int]:
    """Sizes around ``size``: steps of one to 16, the next multiples of powers of two, and far larger ones."""
    octave = 1 << size.bit_length()
    found = [size // 2, size // 8, 1, 64, size - 1, size - 8, *(size + step for step in (1, 2, 4, 8, 16))]
    found += [(size // period + 1) * period for period in (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)]
    found += [(size // period + 1) * period + 1 for period in (64, 256, 1024)]
    found += [2 * size, 3 * size, 2 * octave, 16 * octave]
    return [each for each in dict.fromkeys(found) if each > 0]


def _near(middle: int, low: int, high: int) -> Iterator[int]:
    """Sizes from the middle outwards, between low and high."""
    for step in range(0, 1025):
        for size in (middle - step, middle + step):
            if low < size < high:
                yield size


def _together(words: Sequence[str]) -> str:
    return " and ".join(words) if len(words) < 3 else f"{', '.join(words[:-1])} and {words[-1]}"


def _pass(each: Sequence[Any]) -> str:
    return "passes" if len(each) == 1 else "pass"


def _size_facts(found: Size, seen: dict[int, bool], own: int) -> str:
    """``n = 6145 fails, n = 6144 passes``: next to each bound, and next to the size where multiples matter."""
    name = found.field
    passing = [size for size, fails in seen.items() if not fails]
    named: list[int] = []
    if found.above in passing:
        named.append(found.above)
    if found.most is not None:
        named.append(min(size for size in passing if size > found.most and found.fits(size)))
    if found.period > 1:
        named.append(min((size for size in passing if not found.fits(size)), key=lambda size: (abs(size - own), size)))
    failing = list(dict.fromkeys((own, found.most or own)))
    named = list(dict.fromkeys(named))
    fails, passes = (_together([f"{name} = {size}" for size in sizes]) for sizes in (failing, named))
    return f"{fails} {'fails' if len(failing) == 1 else 'fail'}, {passes} {_pass(named)}"
