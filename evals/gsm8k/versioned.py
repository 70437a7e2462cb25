"""Rules that have a name and a version: an arm's header names both, and a run is read by the rule that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from evals.errors import EvalError


@dataclass(frozen=True, kw_only=True)
class Versioned:
    """name, version: of the rule; one that changes gets a new version."""

    name: str
    version: int = 1

    @property
    def id(self) -> str:
        """``sglang-5shot/1``, as headers have it."""
        return f"{self.name}/{self.version}"


V = TypeVar("V", bound=Versioned)


def find(what: str, known: Mapping[str, V], name: str) -> V:
    """The rule ``name`` or ``name/version`` of ``known``; EvalError for one that is not known."""
    stem, _, version = name.partition("/")
    found = known.get(stem)
    if found is None:
        raise EvalError(f"unknown {what} {name!r}; known: {', '.join(known)}")
    if version and version != str(found.version):
        raise EvalError(f"{what} {stem} is at version {found.version} here, not {version}")
    return found
