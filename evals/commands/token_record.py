"""The table of ``python -m evals tokens`` as a file: the rows, and what it takes to trust or repeat them.

An object with ``schema`` and ``version``; the model's and the data's digests; every setting; where it ran
(``validators.records.store.provenance``); the command that repeats it; and ``rows``, the re-run and the yardstick
first.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.commands import places
from evals.errors import EvalError

SCHEMA, VERSION = "evals-tokens", 1
CHUNK = 1 << 22


def digest(file: Path) -> str:
    """SHA-256 of a file in hexadecimal; EvalError if it cannot be read."""
    found = hashlib.sha256()
    try:
        with file.open("rb") as handle:
            while chunk := handle.read(CHUNK):
                found.update(chunk)
    except OSError as error:
        raise EvalError(f"cannot read {file} ({error.strerror or error})") from None
    return found.hexdigest()


def reproduce(options: argparse.Namespace, specs: Sequence[str]) -> str:
    """The command that makes the same table again; from ``GSM8K_PATH`` where the data were found there."""
    words = ["--model", options.model, *(["--data", options.data] if options.data else [])]
    words += ["--any-data"] if options.any_data else []
    words += ["--questions", str(options.questions), "--baseline", options.baseline]
    words += [word for spec in specs for word in ("--arm", spec)]
    words += ["--yardstick", options.yardstick, "--batch", str(options.batch), "--seed", str(options.seed)]
    return f"python -m evals tokens {shlex.join([*words, '--device', options.device])}"


def made(
    options: argparse.Namespace, specs: Sequence[str], model: Any, asked: Any, rows: Sequence[Any]
) -> dict[str, Any]:
    """The object. model: ``Loaded``; asked: ``Asked``; rows: ``Row``, all of them over the same tokens."""
    from validators.records.store import provenance

    stats = rows[0].stats
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "model": {"name": model.decoder.name, "sha256": {file.name: digest(file) for file in model.files}},
        "data": {"name": asked.name, "sha256": asked.sha256},
        "questions": stats.questions,
        "tokens": stats.tokens,
        "seed": options.seed,
        "batch": options.batch,
        "device": options.device,
        "baseline": options.baseline,
        "yardstick": options.yardstick,
        "provenance": provenance(options.device),
        "reproduce": reproduce(options, specs),
        "rows": [dataclasses.asdict(row) for row in rows],
    }


def write(file: str, value: dict[str, Any]) -> None:
    """``value`` as strict JSON: a number that is not finite is the text nan, inf or -inf, as in the suite's records."""
    text = json.dumps(_strict(value), indent=1, allow_nan=False)
    places.write_file(file, text + "\n")


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _strict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
