"""A gate: one question that a verdict asks, with its answer as data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Gate:
    """name: ``accuracy``, ``mean dlogp``. ok: True or False where it is shown either way, None where the data do not
    decide. sentence: what was found, with the numbers. decides: False where the number is reported and not judged."""

    name: str
    ok: bool | None
    sentence: str
    decides: bool = True
    """A reported number that decides nothing has ok None."""
