"""What one arm of a comparison left behind: a run directory of JSON lines, written as it happens and read later.

``RUN/header.json`` says what ran (one ``Header``), ``RUN/samples.jsonl`` holds one ``Sample`` per question, and
``RUN/tokens.jsonl``, where teacher-forced scores exist, one ``TokenScore`` per question. Nothing here imports anything
of ours, so runs can be judged elsewhere, and years later. An error is stored as an error: it is never a wrong answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA_VERSION = 1
ANSWER, SCORE = "answer", "score"
IMPORTED = ("lm-eval", "sgl-eval")
"""Backends whose runs are files of another harness: nothing of them can be asked again here."""
EMPTY = "the harness recorded an empty completion, which is also how it records a failed request"
FAILED = "the harness recorded a failed request"


@dataclass(frozen=True)
class Header:
    """What was run.

    arm: the name that the user gave it (``unfused``). model, backend: as served, and by what (``openai``,
    ``in-process``, ``lm-eval``, ``sgl-eval``). profile: prompt profile with its version (``sglang-5shot/1``).
    data, data_sha256: name and digest of the questions. seed: of the permutation. kernels: op -> kernel name where
    known. fingerprint: what the server says of itself; JSON values. settings: max_tokens, temperature, stop, ...
    """

    arm: str
    model: str
    backend: str
    profile: str
    data: str
    data_sha256: str
    questions: int
    seed: int = 0
    kernels: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    fingerprint: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION


@dataclass(frozen=True)
class Sample:
    """One question of one arm.

    question: id, ``gsm8k-test-17``; repeat: 0 unless a question is asked several times. order: place in the seeded
    permutation. text: the completion, None where there is an ``error`` (a sentence; infrastructure, never scored).
    gold: the right answer as an exact decimal in text. finish: ``stop``, ``length`` or what the server said.
    tokens: ids of the completion where the backend gives them, for the first divergence; length: their number.
    what: ``answer``, or ``score`` for a gold solution whose log-probabilities could not be got: always an error.
    """

    question: str
    order: int
    gold: str
    text: str | None
    finish: str | None = None
    error: str | None = None
    tokens: tuple[int, ...] | None = None
    length: int | None = None
    prompt_sha256: str = ""
    repeat: int = 0
    attempts: int = 1
    seconds: float = 0.0
    what: str = ANSWER


@dataclass(frozen=True)
class TokenScore:
    """Teacher-forced scores of one gold solution in one arm; one entry per scored token.

    tokens: ids of the solution. logprob: natural logarithm of the probability of each. top1: the arm's own first
    choice at each place. top: where the backend gives them, the k most probable ids with their logprob.
    """

    question: str
    tokens: tuple[int, ...]
    logprob: tuple[float, ...]
    top1: tuple[int, ...]
    top: tuple[dict[int, float], ...] | None = None


@dataclass(frozen=True)
class TokenPair:
    """Two arms on one gold solution, token by token: what the token-level statistics take.

    logprob_a, logprob_b: of the gold token. kl: KL(a || b) at each place in nats. same_top1: whether the first choices
    agree. kl_kind: ``full`` distribution, ``top-k`` (a lower bound), or ``k3`` (an estimate from the gold token alone).
    """

    question: str
    logprob_a: tuple[float, ...]
    logprob_b: tuple[float, ...]
    kl: tuple[float, ...]
    same_top1: tuple[bool, ...]
    kl_kind: str = "full"


@dataclass(frozen=True)
class TeacherForced:
    """One question, teacher-forced: the scores by pass, and by name the pair with what the pass is compared with.

    pairs: KL over the whole vocabulary. flat: the same with ``flat_divergence`` in the place of KL. noise, flat_noise:
    the same of every pass that is compared with the baseline, and of the baseline (by the empty name), with the
    yardstick, whose scores come first; empty without a yardstick.
    """

    place: int
    baseline: TokenScore
    scores: Mapping[str, TokenScore]
    pairs: Mapping[str, TokenPair]
    flat: Mapping[str, TokenPair]
    noise: Mapping[str, TokenPair]
    flat_noise: Mapping[str, TokenPair]
