"""Two arms made comparable, or a sentence why they are not: same questions, prompts, settings; different kernels."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evals.errors import EvalError, NotDecided
from evals.gsm8k.answers import Extractor, Grade, gold_answer, grade_answer
from evals.gsm8k.samples import EMPTY, FAILED, Header, Sample
from evals.stats.paired import first_divergence

VOLATILE = frozenset(
    (
        "time",
        "timestamp",
        "created",
        "started",
        "uptime",
        "date",
        "pid",
        "port",
        "host",
        "hostname",
        "url",
        "seed",
        "throughput",
        "states",
    )
)
"""Words of a fingerprint's key whose value differs whenever a server is started again: no proof of any change."""


@dataclass(frozen=True)
class Pairs:
    """Both arms' samples question by question, in the order of the permutation; repeats follow one another."""

    baseline: tuple[Sample, ...]
    candidate: tuple[Sample, ...]

    @property
    def questions(self) -> int:
        return len({s.question for s in self.baseline})

    @property
    def repeats(self) -> int:
        return len({s.repeat for s in self.baseline})


def align(
    baseline: Sequence[Sample], candidate: Sequence[Sample], *, names: tuple[str, str] = ("baseline", "candidate")
) -> Pairs:
    """The samples of both arms, paired. Raises EvalError for an error that is left, a duplicate, a question that one
    arm lacks, and for a gold answer or a prompt that differs."""
    tables = []
    for name, samples in zip(names, (baseline, candidate), strict=True):
        failed = [s for s in samples if s.error is not None or s.text is None]
        if failed:
            imported = all(s.error in (EMPTY, FAILED) for s in failed)
            way_out = "ask that harness again" if imported else "run it again to finish them"
            raise NotDecided(
                f"{len(failed)} of {len(samples)} questions of {name} ended in an error, so there is no verdict (first "
                f"{failed[0].question}: {failed[0].error or 'no text'}); {way_out}"
            )
        table = {(s.question, s.repeat): s for s in samples}
        if len(table) != len(samples):
            raise EvalError(f"{name} holds a question twice")
        tables.append(table)
    a, b = tables
    if not a or not b:
        raise NotDecided(f"{names[0] if not a else names[1]} holds no answer")
    for here, there, name in ((a, b, names[1]), (b, a, names[0])):
        if missing := [k for k in here if k not in there]:
            raise NotDecided(
                f"{name} lacks {len(missing)} questions that the other arm answered, first {missing[0][0]} (repeat "
                f"{missing[0][1]}), so there is no verdict; run it again to finish them"
            )
    keys = sorted(a, key=lambda k: (a[k].order, k))
    for k in keys:
        if a[k].gold != b[k].gold:
            raise EvalError(f"question {k[0]} has the gold answer {a[k].gold} in one arm and {b[k].gold} in the other")
        if a[k].prompt_sha256 and b[k].prompt_sha256 and a[k].prompt_sha256 != b[k].prompt_sha256:
            raise EvalError(f"question {k[0]} was asked with different prompts")
    repeats = {r for _, r in keys}
    if len(keys) != len(repeats) * len({q for q, _ in keys}):
        raise NotDecided("some questions were repeated more often than others; finish the runs first")
    return Pairs(tuple(a[k] for k in keys), tuple(b[k] for k in keys))


def check_headers(a: Header, b: Header, *, any_model: bool = False, same_arm: bool = False) -> str:
    """How the two arms differ, in words. Raises EvalError where they cannot be compared, and where nothing differs
    (unless ``same_arm``: a baseline and its own re-run, which must not differ in kernels)."""
    if a.questions != b.questions:
        # First, since the digests differ as well, and say nothing to a reader.
        raise EvalError(
            f"{a.questions:,} questions in one arm, {b.questions:,} in the other: give both the same questions (a "
            f"--limit on one arm only?)"
        )
    for name in ("profile", "data_sha256", "seed", "settings", "backend"):
        ours, theirs = getattr(a, name), getattr(b, name)
        if ours != theirs:
            if isinstance(ours, dict):
                key = next(k for k in sorted({*ours, *theirs}) if ours.get(k) != theirs.get(k))
                name, ours, theirs = f"setting {key}", ours.get(key), theirs.get(key)
            raise EvalError(f"the arms differ in more than the kernels: {name} is {ours!r} in one and {theirs!r}")
    if a.model != b.model and not any_model:
        raise EvalError(
            f"the arms served different models, {a.model!r} and {b.model!r} (--any-model compares them all the same)"
        )
    named = {op: (a.kernels.get(op), b.kernels.get(op)) for op in sorted({*a.kernels, *b.kernels})}
    proof = [_apart(f"{op} by", ours, theirs) for op, (ours, theirs) in named.items() if ours != theirs]
    if same_arm:
        if proof:
            raise EvalError(f"the re-run is no re-run of the baseline: {proof[0]}")
        return "the same arm twice"
    ours, theirs = dict(_flat(a.fingerprint)), dict(_flat(b.fingerprint))
    steady = [k for k in sorted({*ours, *theirs}) if not VOLATILE.intersection(re.split(r"[^a-z0-9]+", k.lower()))]
    proof += [_apart(k, ours.get(k), theirs.get(k)) for k in steady if ours.get(k) != theirs.get(k)]
    if proof:
        return "; ".join(proof[:4])
    if a.kernels or b.kernels or a.fingerprint or b.fingerprint:
        raise EvalError(
            "both runs name the same kernels and the same server, so a run would be compared with itself "
            "(--aa does that on purpose)"
        )
    return ""


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything in nested objects."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _apart(name: str, ours: object, theirs: object) -> str:
    """``commit abc and def``; ``commit def in the candidate alone`` where the baseline does not say."""
    if ours is None or theirs is None:
        alone = "candidate" if ours is None else "baseline"
        return f"{name} {_short(theirs if ours is None else ours)} in the {alone} alone"
    return f"{name} {_short(ours)} and {_short(theirs)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


@dataclass(frozen=True)
class Graded:
    """Outcomes by one extractor, in the order of the pairs. changed: the extracted answers differ, right or wrong."""

    baseline: tuple[Grade, ...]
    candidate: tuple[Grade, ...]
    changed: tuple[bool, ...]

    def right(self, arm: str) -> list[bool]:
        grades = self.baseline if arm == "baseline" else self.candidate
        return [g is Grade.RIGHT for g in grades]

    def invalid(self, arm: str) -> int:
        return (self.baseline if arm == "baseline" else self.candidate).count(Grade.INVALID)


def graded(pairs: Pairs, extractor: Extractor) -> Graded:
    """Both arms graded; ``align`` has made sure that every sample has a text."""
    a, b, changed = [], [], []
    for x, y in zip(pairs.baseline, pairs.candidate, strict=True):
        right = gold_answer(extractor, x.gold)
        first = extractor.find(x.text or "")
        # Most completions of two arms are the same text.
        second = first if x.text == y.text else extractor.find(y.text or "")
        a.append(grade_answer(first, right))
        b.append(grade_answer(second, right))
        changed.append(first != second)
    return Graded(tuple(a), tuple(b), tuple(changed))


@dataclass(frozen=True)
class Texts:
    """How the completions compare. unit: ``tokens`` where both arms give them, else ``characters``.

    identical: completions equal in text. divergence: median place of the first difference where they differ, None if
    none does. ratio: mean length of the candidate over the baseline's. stopped: cut by the limit, in each arm.
    """

    identical: int
    divergence: float | None
    ratio: float
    stopped: tuple[int, int]
    unit: str


def texts(pairs: Pairs) -> Texts:
    both = list(zip(pairs.baseline, pairs.candidate, strict=True))
    with_ids = all(a.tokens is not None and b.tokens is not None for a, b in both)
    places = [
        first_divergence(a.tokens, b.tokens)
        if with_ids and a.tokens is not None and b.tokens is not None
        else first_divergence(a.text or "", b.text or "")
        for a, b in both
    ]
    differ = [p for p in places if p is not None]
    counted = all(s.length is not None for pair in both for s in pair)
    lengths = [[(s.length or 0) if counted else len(s.text or "") for s in arm] for arm in zip(*both, strict=True)]
    below = sum(lengths[0])
    ratio = sum(lengths[1]) / below if below else (1.0 if not sum(lengths[1]) else float("inf"))
    stopped = (sum(a.finish == "length" for a, _ in both), sum(b.finish == "length" for _, b in both))
    return Texts(
        sum(a.text == b.text for a, b in both),
        statistics.median(differ) if differ else None,
        ratio,
        stopped,
        "tokens" if with_ids else "characters",
    )
