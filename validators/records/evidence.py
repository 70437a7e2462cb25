"""What a record of one stage holds besides its verdict: how much was walked, evaluated or traced, as typed fields.

A walk, an evaluation and a trace can each be made so weak that any kernel passes; a policy holds these fields against
what it asks. None is "not known", which reaches nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

DECLARED, IMPOSSIBLE, MACHINE, BY_CONTRACT = "declared", "impossible", "machine", "contract"


@dataclass(frozen=True)
class Limit:
    """Why a case is UNSUPPORTED.

    kind: DECLARED by the kernel, IMPOSSIBLE for the recipe, MACHINE where its memory is too small, or BY_CONTRACT,
    which leaves every row of the case open. feature: the key of the kernel's ``supports``, "" for a sentence of its
    own.
    """

    kind: str
    feature: str = ""


@dataclass(frozen=True)
class Golden:
    """What became of an accepted set of bits. id: its name. state: UNCHANGED, DRIFTED, FAILED, MISSING or UNTESTED."""

    id: str
    state: str


@dataclass(frozen=True)
class ErrorByDepth:
    """Error of the hidden state against depth. fused, unfused: after each of ``layers`` the median over tokens of the
    relative error; None where it is not finite."""

    layers: tuple[int, ...]
    fused: tuple[float | None, ...] = ()
    unfused: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class WalkEvidence:
    """A walk through the layers of a model, of which the record is one op or the whole.

    walk: the same in all records of one walk. layers: numbers walked; of: layers of the model. margin: the largest
    excess of the fused path's error that was allowed (0.5 is half as much again). records: op -> records of the walk.
    tp: ranks, real where each was a process. stream: path -> SHA-256 of its last hidden state. depth: of the record
    that judges the walk as a whole.
    """

    model: str = ""
    layers: tuple[int, ...] = ()
    of: int | None = None
    tokens: int | None = None
    margin: float | None = None
    walk: str = ""
    records: dict[str, int] = field(default_factory=dict)
    quant_format: str = ""
    tp: int | None = None
    all_reduce: str = ""
    real_ranks: bool | None = None
    stream: dict[str, str] = field(default_factory=dict)
    depth: ErrorByDepth | None = None


@dataclass(frozen=True)
class Evaluation:
    """An end-to-end evaluation of a model with the kernels.

    rule: how it decides; margin: points that may be lost; alpha: one-sided error probability. questions, tokens: how
    many were answered and scored. data, data_sha256: the set of questions. aa: a run against itself. open: gates that
    could not decide. kernels: op -> kernel of the candidate. difference, interval: candidate less baseline and its 95 %
    interval, as fractions of 1. arms: names of the two runs, profile: of their prompts, extractor: of the answers.
    """

    rule: str = ""
    margin: float | None = None
    alpha: float | None = None
    questions: int | None = None
    tokens: int | None = None
    data: str = ""
    data_sha256: str = ""
    aa: bool = False
    any_model: bool = False
    open: tuple[str, ...] = ()
    kernels: dict[str, str] = field(default_factory=dict)
    difference: float | None = None
    interval: tuple[float, ...] = ()
    policy: str = ""
    extractor: str = ""
    arms: tuple[str, ...] = ()
    profile: str = ""


@dataclass(frozen=True)
class Launches:
    """A profiler trace of a serving engine. layers: how many it was held to; sha256: of its file."""

    layers: int | None = None
    sha256: str = ""
