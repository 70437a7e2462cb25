"""What the suites of all ops share: the other type, and options that represent it."""

from __future__ import annotations

from typing import Any

from validators.words import DTYPES, FP8_FORMATS

ORDINARY = ("exact", "random", "adversarial", "special")
"""Lanes whose recipes run at the shapes of the suite; the other two have shapes of their own."""
OTHER = "other"
"""In options of a case: the other storage type or FP8 format."""


def other(value: str, pair: tuple[str, ...]) -> str:
    """The one of the pair that ``value`` is not."""
    return pair[1] if value == pair[0] else pair[0]


def typed(options: dict[str, Any], dtype: str, fp8: str) -> dict[str, Any]:
    """``options`` with OTHER resolved, and the suite's own types where they say nothing."""
    found = {"dtype": dtype, "fp8": fp8, **options}
    for key, own, pair in (("dtype", dtype, DTYPES), ("fp8", fp8, FP8_FORMATS)):
        if found[key] == OTHER:
            found[key] = other(own, pair)
    return found
