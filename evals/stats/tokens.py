"""Token-level statistics: what two arms think of the right answers, token by token.

Accuracy is the weak instrument: a truncating cast can raise it. On teacher-forced gold solutions a few thousand tokens
show what 1,319 answers do not. Two numbers are needed. The mean difference of log-probabilities has a direction (is the
candidate worse?); the Kullback-Leibler divergence has none and sees what leaves the mean alone, such as a per-tensor
scale. A correct fused kernel moves KL by several times the baseline's own run-to-run noise, so that noise is no
yardstick: the model's own quantisation noise is. KL(higher precision || baseline) measures the baseline's, KL(higher
precision || candidate) the candidate's, and the two must be the same.

Questions are the independent units: every error and every bound is clustered by question.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evals.errors import EvalError
from evals.gsm8k.samples import TokenPair, TokenScore
from evals.stats.paired import ALPHA, Interval

KL_FLOOR = 1e-6
"""Nats. Log-probabilities in float32 are spaced by 1e-6 at the size of ten, so a KL below is rounding."""
RESAMPLES = 2000
"""Of the bootstrap: the 5 % quantile then has a sampling error of half a per cent in probability."""


@dataclass(frozen=True)
class TokenStats:
    """Numbers about pairs of arms on gold solutions.

    mean_dlogp: candidate minus baseline, nats per token, with its question-clustered error. kl_mean, kl_p99: nats, over
    tokens. top1: share of places with the same first choice. dispersion: standard deviation over questions of the
    per-question mean dlogp. finite: False if any logprob or KL is not finite; the numbers are then NaN.
    """

    questions: int
    tokens: int
    mean_dlogp: float
    error: float
    kl_mean: float
    kl_p99: float
    top1: float
    dispersion: float
    kl_kind: str
    finite: bool

    @property
    def t(self) -> float:
        return self.mean_dlogp / self.error if self.error > 0 else 0.0


class _Sums(NamedTuple):
    tokens: int
    dlogp: float
    kl: float
    same: int


def check(pairs: Sequence[TokenPair]) -> None:
    """Raises EvalError where the pairs are none, are ragged, or hold a question twice."""
    if not pairs:
        raise EvalError("token-level statistics need at least one question")
    for p in pairs:
        if not len(p.logprob_a) == len(p.logprob_b) == len(p.kl) == len(p.same_top1):
            raise EvalError(f"question {p.question}: the arms scored different numbers of tokens")
        if not p.logprob_a:
            raise EvalError(f"question {p.question} has no scored token")
    if len({p.question for p in pairs}) != len(pairs):
        raise EvalError("a question occurs twice in the token-level scores")


def statistics(pairs: Sequence[TokenPair]) -> TokenStats:
    """All numbers of ``pairs``; raises EvalError on ragged or empty input."""
    check(pairs)
    kinds = "/".join(sorted({p.kl_kind for p in pairs}))
    sums = [_sums(p) for p in pairs]
    tokens = sum(s.tokens for s in sums)
    top1 = sum(s.same for s in sums) / tokens
    if not all(math.isfinite(s.dlogp) and math.isfinite(s.kl) for s in sums):
        nan = math.nan
        return TokenStats(
            questions=len(pairs),
            tokens=tokens,
            mean_dlogp=nan,
            error=nan,
            kl_mean=nan,
            kl_p99=nan,
            top1=top1,
            dispersion=nan,
            kl_kind=kinds,
            finite=False,
        )
    mean, error = _ratio([s.dlogp for s in sums], [s.tokens for s in sums])
    each = [s.dlogp / s.tokens for s in sums]
    middle = math.fsum(each) / len(each)
    spread = math.sqrt(math.fsum((x - middle) ** 2 for x in each) / max(1, len(each) - 1))
    kl = sorted(x for p in pairs for x in p.kl)
    p99 = kl[min(len(kl) - 1, math.ceil(0.99 * len(kl)) - 1)]
    return TokenStats(
        questions=len(pairs),
        tokens=tokens,
        mean_dlogp=mean,
        error=error,
        kl_mean=math.fsum(kl) / tokens,
        kl_p99=p99,
        top1=top1,
        dispersion=spread,
        kl_kind=kinds,
        finite=True,
    )


def _sums(p: TokenPair) -> _Sums:
    dlogp = sum(b - a for a, b in zip(p.logprob_a, p.logprob_b, strict=True))
    return _Sums(len(p.kl), dlogp, sum(p.kl), sum(p.same_top1))


def _ratio(totals: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Mean per token and its error, questions being clusters: the usual linearisation of a ratio of sums; infinite for
    one question."""
    number, tokens = len(totals), sum(counts)
    mean = math.fsum(totals) / tokens
    if number < 2:
        return mean, math.inf
    squares = math.fsum((t - mean * n) ** 2 for t, n in zip(totals, counts, strict=True))
    return mean, math.sqrt(squares * number / (number - 1)) / tokens


def kl_ratio(
    candidate: Sequence[TokenPair], yardstick: Sequence[TokenPair], *, alpha: float = ALPHA, seed: int = 0
) -> tuple[float, Interval]:
    """Mean KL of the candidate over mean KL of the yardstick, with one-sided bounds at 1 - alpha each.

    Bootstrap over questions, the same draw for both, so that hard questions cancel. Raises EvalError if the two do not
    hold the same questions, or where the yardstick's KL is zero.
    """
    both = _matched(candidate, yardstick)
    above = np.array([sum(a.kl) for a, _ in both])
    below = np.array([sum(b.kl) for _, b in both])
    if not below.sum() > 0:
        raise EvalError("the yardstick arm does not differ from the baseline")
    return float(above.sum() / below.sum()), _bounds(above, below, alpha, seed)


def typical_kl_ratio(
    candidate: Sequence[TokenPair], yardstick: Sequence[TokenPair], *, alpha: float = ALPHA, seed: int = 0
) -> tuple[float, Interval, int]:
    """Geometric mean over tokens of KL(candidate) / KL(yardstick), its one-sided bounds at 1 - alpha, and the number of
    tokens that count.

    A mean KL belongs to its largest few tokens (in a well-trained model one of 15,000 held 46 % of it), so the ratio of
    two means is hardly known. A token's KL is its own sensitivity times the variance of the arm's numerics; in the
    ratio at the same token the sensitivity cancels, and the geometric mean estimates the ratio of the variances.
    Counted are tokens at which either KL exceeds KL_FLOOR (a choice that favours neither), so that rounding is not
    compared with rounding. Ratio 1 and no bounds where there is no such token.
    """
    sums, counts = [], []
    for a, b in _matched(candidate, yardstick):
        kl = np.array([a.kl, b.kl])
        kept = np.maximum(kl[:, kl.max(0) > KL_FLOOR], KL_FLOOR / 100)
        sums.append(float(np.log(kept[0] / kept[1]).sum()))
        counts.append(kept.shape[1])
    if not sum(counts):
        return 1.0, Interval(0.0, math.inf), 0
    low, high = _bounds(np.array(sums), np.array(counts, dtype=float), alpha, seed)
    return math.exp(sum(sums) / sum(counts)), Interval(math.exp(low), math.exp(high)), sum(counts)


def _matched(candidate: Sequence[TokenPair], yardstick: Sequence[TokenPair]) -> list[tuple[TokenPair, TokenPair]]:
    """Both arms' pairs question by question; EvalError if they do not hold the same questions and tokens."""
    check(candidate)
    check(yardstick)
    of = {p.question: p for p in yardstick}
    if set(of) != {p.question for p in candidate}:
        raise EvalError("the yardstick was scored on other questions than the candidate")
    both = [(p, of[p.question]) for p in candidate]
    if any(len(a.kl) != len(b.kl) for a, b in both):
        raise EvalError("the yardstick was scored on other tokens than the candidate")
    return both


def _bounds(above: NDArray[np.float64], below: NDArray[np.float64], alpha: float, seed: int) -> Interval:
    """Bootstrap bounds of sum(above) / sum(below) over questions, each [questions]."""
    draw = np.random.default_rng(seed).multinomial(len(above), [1 / len(above)] * len(above), size=RESAMPLES)
    under = draw @ below
    # A draw with nothing to divide by bounds nothing from above.
    ratios = np.where(under > 0, (draw @ above) / np.where(under > 0, under, 1.0), np.inf)
    # Order statistics: interpolation between a number and infinity has no meaning.
    low, high = np.quantile(ratios, [alpha, 1 - alpha], method="inverted_cdf")
    return Interval(float(low), float(high))


def pair(a: TokenScore, b: TokenScore) -> TokenPair:
    """Two arms' scores of one solution; EvalError if they scored different tokens.

    KL is a lower bound where both give their top k (the distributions are merged outside the ids that both list, which
    can only lower it), and the estimate exp(r) - 1 - r from the gold token, r = logprob_b - logprob_a, where not.
    """
    if a.tokens != b.tokens or not len(a.tokens) == len(a.logprob) == len(b.logprob) == len(a.top1) == len(b.top1):
        raise EvalError(f"question {a.question}: the arms scored different tokens (another tokenizer, or a cut answer)")
    if a.top is not None and b.top is not None and len(a.top) == len(b.top) == len(a.tokens):
        kl, kind = tuple(_merged_kl(p, q) for p, q in zip(a.top, b.top, strict=True)), "top-k"
    else:
        kl, kind = tuple(_k3(q - p) for p, q in zip(a.logprob, b.logprob, strict=True)), "k3"
    same = tuple(p == q for p, q in zip(a.top1, b.top1, strict=True))
    return TokenPair(a.question, a.logprob, b.logprob, kl, same, kind)


def _k3(r: float) -> float:
    try:
        return math.expm1(r) - r
    except OverflowError:
        return math.inf


def _merged_kl(p: dict[int, float], q: dict[int, float]) -> float:
    common = p.keys() & q.keys()
    inside = [(math.exp(p[i]), p[i] - q[i]) for i in common]
    rest_p = max(0.0, 1 - math.fsum(m for m, _ in inside))
    rest_q = max(0.0, 1 - math.fsum(math.exp(q[i]) for i in common))
    kl = math.fsum(m * d for m, d in inside)
    if rest_p > 0 and rest_q > 0:
        kl += rest_p * math.log(rest_p / rest_q)
    # Below zero only by rounding, or where a server's rounded logprobs leave no rest.
    return max(0.0, kl)


def pairs(a: Sequence[TokenScore], b: Sequence[TokenScore]) -> list[TokenPair]:
    """The pairs of all questions that both arms scored, which must be the same questions."""
    of = {s.question: s for s in b}
    missing = [s.question for s in a if s.question not in of]
    if missing or len(of) != len(a):
        name = missing[0] if missing else next(iter(set(of) - {s.question for s in a}))
        raise EvalError(f"token scores of question {name} exist in one arm only")
    return [pair(s, of[s.question]) for s in a]
