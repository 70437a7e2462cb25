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
from statistics import NormalDist
from typing import Any, NamedTuple

from evals.errors import EvalError
from evals.gsm8k.samples import TokenPair, TokenScore
from evals.stats.gate import Gate
from evals.stats.paired import ALPHA, Interval

MEAN_MARGIN = 0.005
"""Nats a token, a policy: what removing activation quantisation altogether moves (0.006 in the 135M model measured), so
a candidate that loses as much has lost as much as its whole quantisation error. A truncating cast loses 0.029."""
NOISE_ERRORS = 3.0
"""The margin is never below three standard errors of the baseline against itself: less cannot be told from a re-run."""
NOISE_LIMIT = 1.2
"""The candidate's quantisation noise over the baseline's, at a typical token. Both round the same values to the same
codes by the same scales, so a legitimate kernel's ratio is 1, in a model of any depth. (KL between the two arms cannot
say that: as they part from layer to layer it tends to twice the noise; a correct fused kernel lay at 0.9 of it in a 10M
model and at 1.34 in a 135M one.) A policy: a fifth more. Legitimate kernels had 0.96 to 1.0, the mildest defect, a
per-tensor scale, 1.34 in the 135M model."""
MEAN_NOISE_LIMIT = 2.0
"""The same of mean KL, which sees what hits few tokens. These hold most of it, so that its bounds are narrower than
they should be; hence twice, and only ever a no."""
KL_FLOOR = 1e-6
"""Nats. Log-probabilities in float32 are spaced by 1e-6 at the size of ten, so a KL below is rounding."""
NOISE_FACTOR = 20.0
"""Without a higher-precision arm: KL to the baseline over the baseline's own re-run. Wide, since a correct fused kernel
lay at 8; a truncating cast at 94, a neighbour's scale at 320."""
LEAST_QUESTIONS = 20
"""Fewer clusters decide nothing: the normal bound and the bootstrap then cover visibly less than they say (Student's
95 % quantile is 5 % above the normal one at 20, 78 % at 3)."""
RESAMPLES = 2000
"""Of the bootstrap: the 5 % quantile then has a sampling error of half a per cent in probability."""


@dataclass(frozen=True)
class TokenStats:
    """Numbers about pairs of arms on gold solutions.

    mean_dlogp: candidate minus baseline, nats a token, with its question-clustered error. kl_mean, kl_p99: nats, over
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
        return TokenStats(len(pairs), tokens, nan, nan, nan, nan, top1, nan, kinds, False)
    mean, error = _ratio([s.dlogp for s in sums], [s.tokens for s in sums])
    each = [s.dlogp / s.tokens for s in sums]
    middle = math.fsum(each) / len(each)
    spread = math.sqrt(math.fsum((x - middle) ** 2 for x in each) / max(1, len(each) - 1))
    kl = sorted(x for p in pairs for x in p.kl)
    p99 = kl[min(len(kl) - 1, math.ceil(0.99 * len(kl)) - 1)]
    return TokenStats(len(pairs), tokens, mean, error, math.fsum(kl) / tokens, p99, top1, spread, kinds, True)


def _sums(p: TokenPair) -> _Sums:
    dlogp = sum(b - a for a, b in zip(p.logprob_a, p.logprob_b, strict=True))
    return _Sums(len(p.kl), dlogp, sum(p.kl), sum(p.same_top1))


def _ratio(totals: Sequence[float], counts: Sequence[int]) -> tuple[float, float]:
    """Mean a token and its error, questions being clusters: the usual linearisation of a ratio of sums; infinite for
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
    import numpy as np

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
    import numpy as np

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


def _bounds(above: Any, below: Any, alpha: float, seed: int) -> Interval:
    """Bootstrap bounds of sum(above) / sum(below) over questions; numpy vectors of equal length."""
    import numpy as np

    draw = np.random.default_rng(seed).multinomial(len(above), [1 / len(above)] * len(above), size=RESAMPLES)
    under = draw @ below
    # A draw with nothing to divide by bounds nothing from above.
    ratios = np.where(under > 0, (draw @ above) / np.where(under > 0, under, 1.0), np.inf)
    # Order statistics: interpolation between a number and infinity has no meaning.
    low, high = np.quantile(ratios, [alpha, 1 - alpha], method="inverted_cdf")
    return Interval(float(low), float(high))


@dataclass(frozen=True)
class Yardstick:
    """A higher-precision arm against the baseline and against the candidate: its scores are the ``a`` of both."""

    baseline: Sequence[TokenPair]
    candidate: Sequence[TokenPair]


def gates(
    tokens: Sequence[TokenPair],
    noise: Sequence[TokenPair] | None,
    yardstick: Yardstick | None,
    *,
    alpha: float = ALPHA,
    seed: int = 0,
) -> list[Gate]:
    """The token-level gates: finite, mean, noise, and what is reported beside them.

    tokens: baseline against candidate. noise: baseline against its own re-run. A gate is False only where its bound
    shows it, never because the data are few.
    """
    found = statistics(tokens)
    again = statistics(noise) if noise else None
    ruler = statistics(yardstick.baseline) if yardstick else None
    for name, other in (("re-run", again), ("yardstick", ruler)):
        if other is not None and not other.finite:
            raise EvalError(f"the {name}'s token scores are not finite, so nothing can be compared with it")
    if any(not math.isfinite(x) for p in tokens for x in p.logprob_a):
        raise EvalError("the baseline's token scores are not finite, so nothing can be compared with it")
    size = f"{found.tokens:,} tokens of {found.questions:,} gold solutions"
    if found.questions < LEAST_QUESTIONS:
        size += f"; fewer than {LEAST_QUESTIONS} decide nothing"
    if not found.finite:
        return [Gate("finite", False, f"a log-probability of the candidate is not finite ({size})")]
    return [
        Gate("finite", True, f"every log-probability is finite ({size})"),
        _mean_gate(found, again, alpha),
        *_noise_gates(tokens, found, noise, again, yardstick, ruler, alpha, seed),
        _agreement(found, again, ruler),
    ]


def _mean_gate(found: TokenStats, again: TokenStats | None, alpha: float) -> Gate:
    z = NormalDist().inv_cdf(1 - alpha)
    floor = NOISE_ERRORS * again.error if again is not None and math.isfinite(again.error) else 0.0
    margin = max(MEAN_MARGIN, floor)
    low, high = found.mean_dlogp - z * found.error, found.mean_dlogp + z * found.error
    ok = True if low > -margin else False if high < -margin else None
    return Gate(
        "mean dlogp",
        ok if found.questions >= LEAST_QUESTIONS else None,
        f"the candidate's log-probability of the right tokens differs by {found.mean_dlogp:+.5f} nats a token "
        f"(error {found.error:.5f}, t = {found.t:+.1f}; between {low:+.5f} and {high:+.5f}, each with "
        f"{100 * (1 - alpha):g} %); allowed is a loss of {margin:.4g}",
    )


def _noise_gates(
    tokens: Sequence[TokenPair],
    found: TokenStats,
    noise: Sequence[TokenPair] | None,
    again: TokenStats | None,
    yardstick: Yardstick | None,
    ruler: TokenStats | None,
    alpha: float,
    seed: int,
) -> list[Gate]:
    """With a yardstick the typical noise decides, the mean noise can say no, and KL between the arms is reported."""
    words = f"KL(baseline || candidate) is {found.kl_mean:.3g} nats a token ({found.kl_kind}; p99 {found.kl_p99:.3g})"
    if found.kl_mean == 0:
        return [Gate("KL", True, f"{words}: the two arms have the same distributions")]
    enough = found.questions >= LEAST_QUESTIONS
    sure = f"each with {100 * (1 - alpha):g} %"
    if yardstick and ruler is not None and ruler.kl_mean > 0:
        _same_kind(tokens, yardstick.baseline)
        _same_kind(yardstick.candidate, yardstick.baseline)
        value, (low, high), counted = typical_kl_ratio(yardstick.candidate, yardstick.baseline, alpha=alpha, seed=seed)
        if not counted:
            return [Gate("noise", True, f"{words}: neither arm differs from the yardstick by more than {KL_FLOOR:g}")]
        ok = _within(low, high, NOISE_LIMIT)
        typical = Gate(
            "noise",
            ok if enough else None,
            f"at a typical token the candidate's quantisation noise, KL(yardstick || arm), is {value:.3g} of the "
            f"baseline's (between {low:.3g} and {high:.3g}, {sure}; {counted:,} tokens above {KL_FLOOR:g} nats); "
            f"allowed {NOISE_LIMIT:g}",
        )
        value, (low, high) = kl_ratio(yardstick.candidate, yardstick.baseline, alpha=alpha, seed=seed)
        beyond = enough and low > MEAN_NOISE_LIMIT
        mean = Gate(
            "mean noise",
            False if beyond else None,
            f"on the mean it is {value:.3g} of the baseline's (between {low:.3g} and {high:.3g}); no above "
            f"{MEAN_NOISE_LIMIT:g}, since a few tokens hold most of it",
            decides=beyond,
        )
        apart, _, _ = typical_kl_ratio(tokens, yardstick.baseline, alpha=alpha, seed=seed)
        between = Gate(
            "KL",
            None,
            f"{words}, {apart:.3g} of the baseline's noise at a typical token; two arms with that noise "
            "that have nothing in common but the model differ by 2",
            decides=False,
        )
        return [typical, mean, between]
    if noise and again is not None and again.kl_mean > 0:
        _same_kind(tokens, noise)
        value, (low, high) = kl_ratio(tokens, noise, alpha=alpha, seed=seed)
        return [
            Gate(
                "KL",
                _within(low, high, NOISE_FACTOR) if enough else None,
                f"{words}, {value:.3g} of the baseline's own re-run (no higher-precision arm was given; between "
                f"{low:.3g} and {high:.3g}, {sure}); allowed {NOISE_FACTOR:g}",
            )
        ]
    return [
        Gate(
            "KL",
            None,
            f"{words}; not judged, because there is neither a higher-precision arm nor a re-run that differs "
            "to measure it by",
            decides=False,
        )
    ]


def _within(low: float, high: float, factor: float) -> bool | None:
    return True if high <= factor else False if low > factor else None


def _same_kind(a: Sequence[TokenPair], b: Sequence[TokenPair]) -> None:
    if {p.kl_kind for p in a} != {p.kl_kind for p in b}:
        raise EvalError("the KL of candidate and yardstick were estimated in different ways and cannot be compared")


def _agreement(found: TokenStats, again: TokenStats | None, ruler: TokenStats | None) -> Gate:
    parts = [f"same first choice at {100 * found.top1:.4g} % of places"]
    if again is not None:
        parts.append(f"{100 * again.top1:.4g} % on a re-run (KL {again.kl_mean:.3g})")
    if ruler is not None:
        parts.append(f"{100 * ruler.top1:.4g} % against the higher-precision arm (KL {ruler.kl_mean:.3g})")
    parts.append(f"per-question mean dlogp spreads by {found.dispersion:.3g}")
    return Gate("first choice", None, "; ".join(parts), decides=False)


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
