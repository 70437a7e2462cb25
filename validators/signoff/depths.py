"""Which cases a depth of the suite has, from a table, so that a sign-off can ask without torch."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from validators.errors import RunFault
from validators.words import DEPTHS, FP8_FORMATS, native_fp8

TABLE = Path(__file__).resolve().parent / "data" / "depths.json"
SCHEMA = 1


class DepthError(RunFault):
    """The table cannot be read; its message is one sentence."""


def lanes(op: str, depth: str, fp8: str) -> Mapping[str, tuple[str, ...]]:
    """lane -> ids of the bf16 cases of ``op``; empty for an op without cases. Raises DepthError."""
    found = _load().get(op, {}).get(depth, {})
    [other] = [name for name in FP8_FORMATS if name != fp8]
    return {
        lane: tuple(f"{op}-{text}".replace("{fp8}", fp8).replace("{other}", other) for text in ids)
        for lane, ids in found.items()
    }


def reached(op: str, arch: str, cases: Collection[str]) -> str:
    """The deepest depth of which ``cases`` hold every bf16 case of ``op``, or "": then they were chosen otherwise."""
    formats = FP8_FORMATS if arch == "cpu" else (native_fp8(arch),)
    for depth in reversed(DEPTHS):
        for fp8 in formats:
            wanted = [case for ids in lanes(op, depth, fp8).values() for case in ids]
            if wanted and all(case in cases for case in wanted):
                return depth
    return ""


@functools.cache
def _load() -> Mapping[str, Mapping[str, Mapping[str, list[str]]]]:
    try:
        data: Any = json.loads(TABLE.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise DepthError(f"{TABLE} has schema {data['schema']}, and this suite reads schema {SCHEMA}.")
        cases: Mapping[str, Mapping[str, Mapping[str, list[str]]]] = data["cases"]
        return cases
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DepthError(
            f"the table of cases {TABLE} cannot be read ({type(error).__name__}); "
            "python -m tests.benchmarks.depths --write makes it."
        ) from None
