"""Empty completions of imported runs: nobody can ask again, so both things that they may be are looked at.

lm-eval and sgl-eval record a failed request as an empty text, and a model may answer nothing. The file does not say
which it was. In this suite's own runs an error blocks the verdict until the run is finished; a file of another harness
cannot be finished here. So the verdict is taken twice: with every empty completion counted against the candidate (right
in the baseline, wrong in the candidate), and for it. What holds both times holds; what does not is open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evals.errors import EvalError
from evals.gsm8k.answers import Extractor, Grade, grade
from evals.gsm8k.samples import EMPTY, FAILED, IMPORTED, Header, Sample
from evals.stats.criterion import Verdict
from evals.stats.gate import Gate


def is_open(sample: Sample) -> bool:
    """Whether the harness recorded no completion, for whatever reason."""
    return sample.error in (EMPTY, FAILED)


def among(headers: tuple[Header, Header] | None, *arms: Sequence[Sample]) -> bool:
    """Whether imported arms hold such samples."""
    if headers is None or any(h.backend not in IMPORTED for h in headers):
        return False
    return any(is_open(s) for arm in arms for s in arm)


def filled(samples: Sequence[Sample], extractor: Extractor, *, right: bool) -> list[Sample]:
    """The samples with a text in place of every empty one: one that is read as the right answer, or none."""
    return [
        replace(s, text=_right(s, extractor) if right else "", error=None, length=0) if is_open(s) else s
        for s in samples
    ]


def _right(sample: Sample, extractor: Extractor) -> str:
    for text in (f"#### {sample.gold}", f"\\boxed{{{sample.gold}}}"):
        if grade(extractor, text, sample.gold) is Grade.RIGHT:
            return text
    raise EvalError(f"extractor {extractor.id} finds no answer in any form, so empty completions cannot be counted")


def gate(headers: tuple[Header, Header], arms: Sequence[Sequence[Sample]], against: Verdict, for_: Verdict) -> Gate:
    """against, for_: the verdict with the empty completions counted in either way."""
    counts = [sum(map(is_open, arm)) for arm in arms]
    there = ", ".join(f"{n:,} in {h.arm}" for n, h in zip(counts, headers, strict=True) if n)
    number = "1 completion is" if sum(counts) == 1 else f"{sum(counts):,} completions are"
    words = f"{number} empty ({there}), an answer of nothing or a failed request"
    if against is for_:
        words += "; counted for the candidate or against it, the verdict is the same"
    elif against is Verdict.PARITY:
        words += "; counted against the candidate"
    else:
        words += (
            f"; counted against the candidate the verdict would be {against.value}, for it {for_.value}: ask that "
            "harness again for these questions"
        )
    return Gate("empty completions", True if against in (for_, Verdict.PARITY) else None, words)
