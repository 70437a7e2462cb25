"""The cases that hold every pair of levels of the model, and every triple, read from ``data/covering.json``.

The file is written by ``python -m tests.benchmarks.covering --write`` and holds ids, so that a suite's cases
change only when the file does.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from validators.cases.case import Case
from validators.cases.suite_types import other
from validators.errors import RunFault
from validators.words import DTYPES, FP8_FORMATS

TABLE = Path(__file__).resolve().parent / "data" / "covering.json"
SCHEMA = 1
TEMPLATES = {"bf16": "{own}", "fp16": "{other}", "e4m3fn": "{native}", "e4m3fnuz": "{foreign}"}
"""Words that stand for the types of a case in the file: the suite's own and the other one."""
_QUANTIZER = "per_token_quant"


class CoveringError(RunFault):
    """The file cannot be read; its message is one sentence."""


def covered(op: str, depth: str, dtype: str, fp8: str) -> Iterator[Case]:
    """The cases of ``depth`` for a suite of these types. An op that the file does not name is a quantizer."""
    words = dict(zip(TEMPLATES.values(), (*_both(dtype, DTYPES), *_both(fp8, FP8_FORMATS)), strict=True))
    table = _load()
    for text in table.get(op, table[_QUANTIZER])[depth]:
        for word, value in words.items():
            text = text.replace(word, value)
        yield Case.parse(f"{op}-{text}")


def _both(own: str, pair: tuple[str, ...]) -> tuple[str, str]:
    return own, other(own, pair)


@functools.cache
def _load() -> Mapping[str, Mapping[str, list[str]]]:
    try:
        data: Any = json.loads(TABLE.read_text(encoding="utf-8"))
        if data["schema"] != SCHEMA:
            raise CoveringError(f"{TABLE} has schema {data['schema']}, and this suite reads schema {SCHEMA}.")
        cases: Mapping[str, Mapping[str, list[str]]] = data["cases"]
        return cases
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CoveringError(
            f"the table of cases {TABLE} cannot be read ({type(error).__name__}); "
            "python -m tests.benchmarks.covering --write makes it."
        ) from None
