"""The table of ``python -m evals tokens`` as a file: the rows, and what it takes to trust or repeat them.

An object with ``schema`` and ``version``; the model's and the data's digests; every setting; where it ran
(``validators.records.provenance``); the command that repeats it; and ``rows``, the re-run and the yardstick
first.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.commands.report import strict_json
from evals.errors import EvalError
from evals.offline.models import TextModel
from evals.offline.questions import GoldSolutions
from evals.offline.token_table import Table
from validators.records import files
from validators.records.codec import encode
from validators.records.command_line import command_line
from validators.records.provenance import provenance

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
    return command_line(
        "evals",
        "tokens",
        model=options.model,
        data=options.data,
        any_data=options.any_data,
        questions=options.questions,
        baseline=options.baseline,
        arm=specs,
        yardstick_arm=options.yardstick_arm,
        batch=options.batch,
        seed=options.seed,
        device=options.device,
    )


def contents(
    options: argparse.Namespace, specs: Sequence[str], model: TextModel, gold: GoldSolutions, table: Table
) -> dict[str, Any]:
    """The object, as JSON values. specs: of the arms under test; all rows are over the same tokens."""
    stats = table.rows[0].stats
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "model": {"name": model.decoder.name, "sha256": {file.name: digest(file) for file in model.files}},
        "data": {"name": gold.name, "sha256": gold.sha256},
        "questions": stats.questions,
        "tokens": stats.tokens,
        "seed": options.seed,
        "batch": options.batch,
        "device": options.device,
        "baseline": options.baseline,
        "yardstick": options.yardstick_arm,
        "provenance": encode(provenance(options.device)),
        "reproduce": reproduce(options, specs),
        "rows": encode([*table.floor, *table.rows]),
    }


def write(file: str, value: dict[str, Any]) -> None:
    """``value`` as strict JSON: a number that is not finite is the text nan, inf or -inf, as in the suite's records."""
    files.write_json(file, strict_json(value))
