"""What is claimed and by which rule: criteria, and the three verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from evals.errors import EvalError
from evals.stats.gate import Gate
from evals.stats.paired import ALPHA


class Verdict(str, Enum):
    PARITY = "PARITY"
    REGRESSION = "REGRESSION"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True)
class Criterion:
    """What is claimed, stated before the data are seen.

    margin: the loss of accuracy that would be accepted, as a fraction; 1.5 points gives 92 % power at 1,319 questions
    of which 3 % change. alpha: one-sided error. ratio: MLPerf's rule in place of the bound (see ``CRITERIA``).
    extractor: how answers are found; empty for the one of the runs' profile. early_stop: judge the contiguous
    beginning of the permutation by betting. aa: compare a run with its own re-run on purpose.
    """

    name: str = "non-inferiority"
    margin: float = 0.015
    alpha: float = ALPHA
    ratio: float | None = None
    extractor: str = ""
    early_stop: bool = False
    any_model: bool = False
    aa: bool = False
    seed: int = 0


CRITERIA = {
    "non-inferiority": Criterion(),
    "mlperf-99": Criterion("mlperf-99", ratio=0.99),
    "mlperf-99.9": Criterion("mlperf-99.9", ratio=0.999),
}
"""MLPerf inference asks for 99 %, for some models 99.9 %, of the reference accuracy. That rule has no error bar, so a
pass by it may be luck; it is offered because submissions are held to it, and the interval is always printed with it."""


def find_criterion(name: str) -> Criterion:
    if name not in CRITERIA:
        raise EvalError(f"unknown criterion {name!r}; known: {', '.join(CRITERIA)}")
    return CRITERIA[name]


def verdict_of(gates: Sequence[Gate]) -> Verdict:
    """False anywhere is a regression, else anything open is inconclusive; gates that decide nothing do not count."""
    deciding = [g.ok for g in gates if g.decides]
    if False in deciding:
        return Verdict.REGRESSION
    return Verdict.INCONCLUSIVE if None in deciding else Verdict.PARITY
