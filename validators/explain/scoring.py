"""Which hypotheses explain the violations: one scoring and one ranking for every op.

An op supplies candidates: what each known defect predicts of every output. A candidate has to meet the elements that
are to be explained, and must not be contradicted by the right ones. Diagnosis only: no verdict depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from validators.records.record import Explanation
from validators.records.wording import LEAST, MOST, vanishes

MOST_DEFECTS = 3
"""Defects that are named."""

Masks = Mapping[str, Tensor]
"""Elements by output, bool of the shape of the sample."""


class Evidence(NamedTuple):
    """A sample of a kernel's outputs. wrong: elements to explain. failing: outputs that have violations.

    noise: right elements, by output, that even the contract's own nominal values miss.
    """

    wrong: Masks
    failing: Sequence[str]
    noise: Mapping[str, int] = {}


class Candidate(NamedTuple):
    """What one hypothesis predicts. met: elements that are as it says, all outputs of the evidence.

    compatible(): elements that do not contradict it, if these are more than ``met``; it is called for candidates that
    explain something, since wide bounds cost more. rounding: the prediction is of a rounding error, which right elements may miss. distance: of two
    that meet the same elements the one with the smaller distance comes first. kind: of the explanation.
    """

    name: str
    sentence: str
    met: Masks
    compatible: Callable[[], Masks] | None = None
    rounding: bool = False
    distance: float = 0.0
    kind: str = "defect"


def same(got: Tensor, values: Tensor) -> Tensor:
    """Which elements are equal, bool; NaN equals NaN."""
    return (got == values) | (got.isnan() & values.isnan())


def ranked(evidence: Evidence, candidates: Iterable[Candidate]) -> list[Explanation]:
    """The candidates that nothing contradicts, best first.

    Best is the largest share explained, then the fewest right elements missed, then the distance, then the order given.
    """
    scored = []
    for position, candidate in enumerate(candidates):
        share, broken = _score(evidence, candidate)
        if share > LEAST:
            scored.append((-share, broken, candidate.distance, position, candidate))
    kept: list[Explanation] = []
    for share, *_, candidate in sorted(scored, key=lambda item: item[:4]):
        if len(kept) < MOST_DEFECTS and not _contradicted(evidence, candidate):
            kept.append(vanishes(candidate.name, candidate.sentence, -share, kind=candidate.kind))
    return kept


def _score(evidence: Evidence, candidate: Candidate) -> tuple[float, float]:
    """(share of the wrong elements that it meets, share of the right ones that it misses).

    The first is the smallest over the failing outputs, less what it misses of any output.
    """
    shares, broken = [], 0.0
    for output, wrong in evidence.wrong.items():
        met = candidate.met[output]
        missed, kept = int(wrong.sum()), int((~wrong).sum())
        if output in evidence.failing and missed:
            shares.append(int((met & wrong).sum()) / missed)
        if kept and not candidate.rounding:
            broken = max(broken, int((~met & ~wrong).sum()) / kept)
    return round(max(0.0, min(shares, default=0.0) - broken), 3), round(broken, 4)


def _contradicted(evidence: Evidence, candidate: Candidate) -> bool:
    """Whether right elements speak against it: more than noise can, and more than one to twenty that it explains (the
    other side of ``MOST``)."""
    compatible = candidate.compatible() if candidate.compatible else candidate.met
    for output, wrong in evidence.wrong.items():
        against = int((~compatible[output] & ~wrong).sum())
        explained = int((candidate.met[output] & wrong).sum())
        if against > max(2 * evidence.noise.get(output, 0), (1 - MOST) * explained):
            return True
    return False
