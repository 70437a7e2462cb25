"""The questions: GSM8K from a local file or by the ``datasets`` library, its digest checked, its order seeded.

Two known files exist, ``test`` (1,319 lines) and ``train`` (7,473), from openai/grade-school-math. Other questions in
the same form (synthetic ones, gsm8k_platinum) are taken only when asked for, and are named so in the run's header.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypeVar

from evals.errors import EvalError, NotDecided

T = TypeVar("T")

HUB_ID = "openai/gsm8k"
PATH_VARIABLE = "GSM8K_PATH"
SHA256 = {
    "test": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    "train": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
}
"""Digests of the two files as published; both are ASCII JSON lines, so rows from the hub give the same bytes."""


@dataclass(frozen=True)
class Problem:
    """One question.

    id: ``gsm8k-test-17``, the line of its file counted from 0. solution: the worked answer as published, with its
    ``<<3*4=12>>`` annotations and the last line ``#### 12``. answer: what follows ``####`` as an exact decimal in text.
    """

    id: str
    question: str
    solution: str
    answer: str


@dataclass(frozen=True)
class Data:
    """Questions in file order. name: ``gsm8k-test``, or ``other:FILE`` for other data; sha256: of the file's bytes."""

    name: str
    sha256: str
    problems: tuple[Problem, ...]
    source: str


def load(
    path: str | Path | None = None, *, split: str = "test", revision: str | None = None, any_data: bool = False
) -> Data:
    """The questions of ``split`` ("test" or "train").

    path: a JSONL file, or a folder that holds ``test.jsonl`` and ``train.jsonl``; without it ``GSM8K_PATH`` is used,
    and without that the ``datasets`` library (hub id openai/gsm8k at ``revision``). any_data: take a file whose digest
    is not GSM8K's. Raises EvalError.
    """
    if split not in SHA256:
        raise EvalError(f"unknown split {split!r}; known: {', '.join(SHA256)}")
    place = path or os.environ.get(PATH_VARIABLE)
    if place:
        return _from_file(Path(place), split, any_data)
    return _from_hub(split, revision, any_data)


def _from_file(path: Path, split: str, any_data: bool) -> Data:
    file = path / f"{split}.jsonl" if path.is_dir() else path
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise EvalError(f"cannot read the questions in {file} ({error.strerror or error})") from None
    return parse(raw, split=split, source=str(file), any_data=any_data)


def _from_hub(split: str, revision: str | None, any_data: bool) -> Data:
    try:
        import datasets
    except ImportError:
        raise NotDecided(
            f"no GSM8K here: name its JSONL file, set {PATH_VARIABLE}, or install the datasets library"
        ) from None
    try:
        rows = datasets.load_dataset(HUB_ID, "main", split=split, revision=revision)
    except Exception as error:  # the library raises many kinds: offline, no such revision, a broken cache
        first = (str(error).splitlines() or [""])[0]
        raise NotDecided(
            f"the datasets library cannot load {HUB_ID} ({type(error).__name__}: {first}); name a JSONL file, or "
            f"set {PATH_VARIABLE}"
        ) from None
    raw = "".join(json.dumps({"question": row["question"], "answer": row["answer"]}) + "\n" for row in rows)
    at = f"@{revision}" if revision else ""
    return parse(raw.encode(), split=split, source=f"{HUB_ID}{at}", any_data=any_data)


def parse(raw: bytes, *, split: str, source: str, any_data: bool = False) -> Data:
    """The questions in the bytes of a JSONL file, whose digest must be GSM8K's unless ``any_data``."""
    digest = hashlib.sha256(raw).hexdigest()
    known = digest == SHA256[split]
    if not known and not any_data:
        other = next((s for s, value in SHA256.items() if value == digest), None)
        ours = f"has sha256 {digest[:12]}... and not {SHA256[split][:12]}..."
        what = f"is GSM8K's {other} file" if other else ours
        raise EvalError(
            f"{source} is not GSM8K's {split} file: it {what}, and scores on other questions compare with nothing "
            "(--any-data takes them, and says so in the run's header)"
        )
    name = f"gsm8k-{split}" if known else f"other:{Path(source).name}"
    stem = name if known else f"other-{digest[:8]}"
    lines = raw.decode("utf-8", errors="replace").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    problems = tuple(_problem(line, f"{stem}-{i}", f"{source}:{i + 1}") for i, line in enumerate(lines))
    if not problems:
        raise EvalError(f"{source} holds no question")
    return Data(name, digest, problems, source)


def _problem(line: str, name: str, where: str) -> Problem:
    try:
        row: Any = json.loads(line)
        question, solution = row["question"], row["answer"]
    except (ValueError, KeyError, TypeError):
        raise EvalError(f"{where} is no JSON object with a question and an answer") from None
    if not isinstance(question, str) or not isinstance(solution, str):
        raise EvalError(f"{where}: question and answer must be text")
    return Problem(name, question, solution, gold(solution, where))


def gold(solution: str, where: str = "solution") -> str:
    """The right answer as exact decimal text: what follows the last ``####``, without thousands commas."""
    _, mark, last = solution.rpartition("####")
    text = last.strip().replace(",", "")
    try:
        finite = bool(mark) and Decimal(text).is_finite()
    except InvalidOperation:
        finite = False
    if not finite:
        raise EvalError(f"{where}: the solution does not end with '#### number'")
    return text


def permutation(count: int, seed: int) -> list[int]:
    """Indices 0..count-1 in the order of ``seed``; the same on every machine and Python version.

    Sorted by a digest of (seed, index), because the order of ``random.shuffle`` is no promise of Python's. Early stops
    rest on this order being random in what matters, which file order is not.
    """
    return sorted(range(count), key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())


def ordered(items: Sequence[T], seed: int) -> list[T]:
    """``items`` in the order of ``seed``; a sample's ``order`` is its place here."""
    return [items[i] for i in permutation(len(items), seed)]


def draws(count: int, take: int, times: int, seed: int) -> list[list[int]]:
    """``times`` successive draws of ``take`` of ``count`` indices by Python's generator, as lm-eval draws its shots."""
    generator = random.Random(seed)
    return [generator.sample(range(count), take) for _ in range(times)]
