"""What a failure needs, as data: conditions on the fields of a case, fitted to which sizes fail and which pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from validators.cases.case import Case

PERIODS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""Of which a size may have to be a multiple, or must not be one."""

_WORDS: dict[str, dict[Any, str]] = {
    "residual": {True: "a residual", False: "no residual"},
    "gamma": {"T": "a weight of the storage type", "fp32": "an fp32 weight"},
    "gemma": {True: "1 + weight", False: "a plain weight"},
    "bias": {True: "a bias", False: "no bias"},
    "layout": {name: f"{name} layout" for name in ("contiguous", "strided", "3d", "3dstrided")},
}


def words_of(field: str, value: Any) -> str:
    """``fp16``, ``no residual``, ``eps 1e-6``."""
    if field in _WORDS:
        return _WORDS[field][value]
    return f"{field} {value}" if field in ("eps", "recipe") else str(value)


@dataclass(frozen=True)
class Value:
    """The field has this value."""

    field: str
    value: Any

    def holds(self, case: Case) -> bool:
        """Whether ``case`` is one of those that fail."""
        return bool(getattr(case, self.field) == self.value)

    @property
    def words(self) -> str:
        return words_of(self.field, self.value)


@dataclass(frozen=True)
class Size:
    """above < size <= most, and the size is a multiple of ``period`` (or none of its multiples).

    partial: the sizes that were tried fit no such condition; only the lower bound is known.
    """

    field: str
    above: int = 0
    most: int | None = None
    period: int = 1
    multiple: bool = True
    partial: bool = False

    def fits(self, size: int) -> bool:
        """Whether the condition on multiples holds."""
        return (size % self.period == 0) is self.multiple

    def holds(self, case: Case) -> bool:
        """Whether ``case`` is one of those that fail."""
        size = getattr(case, self.field)
        return self.fits(size) and self.above < size and (self.most is None or size <= self.most)

    @property
    def parts(self) -> tuple[str, ...]:
        """Each part in words; none where every size fails."""
        name = self.field
        if self.most == 0:
            return (f"{name} = 0",)
        if self.most is not None:
            inside = [size for size in range(self.above + 1, min(self.most, self.above + 2048) + 1) if self.fits(size)]
            if len(inside) == 1:
                return (f"{name} = {inside[0]}",)
        found = []
        if self.above and self.most is not None:
            found.append(f"{self.above} < {name} <= {self.most}")
        elif self.above:
            found.append(f"{'some ' * self.partial}{name} > {self.above}")
        elif self.most is not None:
            found.append(f"{name} <= {self.most}")
        if self.period > 1:
            found.append(f"{name} % {self.period} {'=' if self.multiple else '>'} 0")
        return tuple(found)

    @property
    def words(self) -> str:
        return " and ".join(self.parts)


Condition = Size | Value


def fit(field: str, seen: Mapping[int, bool]) -> Size:
    """The condition with the fewest parts that agrees with every size in ``seen`` (size -> does it fail).

    At least one size fails.
    """
    candidates = [Size(field)]
    candidates += [Size(field, period=period, multiple=multiple) for period in PERIODS for multiple in (True, False)]
    fitted = [found for each in candidates if (found := _bounded(each, seen))]
    if fitted:
        return min(fitted, key=lambda size: len(size.parts))
    least = min(size for size, fails in seen.items() if fails)
    return Size(
        field, above=max((size for size, fails in seen.items() if size < least and not fails), default=0), partial=True
    )


def _bounded(form: Size, seen: Mapping[int, bool]) -> Size | None:
    """``form`` with the bounds that ``seen`` asks for; None where it contradicts ``seen``."""
    failing = [size for size, fails in seen.items() if fails]
    passing = [size for size, fails in seen.items() if not fails and form.fits(size)]
    least, largest = min(failing), max(failing)
    if not all(map(form.fits, failing)) or any(least < size < largest for size in passing):
        return None
    above = max((size for size in passing if size < least), default=0)
    most = largest if any(size > largest for size in passing) else None
    return Size(form.field, above, most, form.period, form.multiple)
