"""The gates on token-level scores: finite, mean, noise, and what is reported with them.

``evals.stats.tokens`` has the numbers and says what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

from evals.errors import EvalError
from evals.gsm8k.samples import TokenPair
from evals.stats.gate import Gate
from evals.stats.paired import ALPHA
from evals.stats.tokens import KL_FLOOR, TokenStats, kl_ratio, statistics, typical_kl_ratio

MEAN_MARGIN = 0.005
"""Nats per token, a stated choice: what removing activation quantisation altogether moves (0.006 in the 135M model
measured), so a candidate that loses as much has lost as much as its whole quantisation error. A truncating cast loses
0.029."""
NOISE_ERRORS = 3.0
"""The margin is never below three standard errors of the baseline against itself: less cannot be told from a re-run."""
NOISE_LIMIT = 1.2
"""The candidate's quantisation noise over the baseline's, at a typical token. Both round the same values to the same
codes by the same scales, so a legitimate kernel's ratio is 1, in a model of any depth. (KL between the two arms cannot
say that: errors become independent over the layers, so it tends to twice the noise; a correct fused kernel had 0.9 of
it in a 10M model and 1.34 in a 135M one.) A stated choice: a fifth more. Legitimate kernels had 0.96 to 1.0, the
mildest defect, a per-tensor scale, 1.34 in the 135M model."""
MEAN_NOISE_LIMIT = 2.0
"""The same of mean KL, which sees what hits few tokens. These hold most of it, so that its bounds are narrower than
they should be; hence twice, and only ever a no."""
NOISE_FACTOR = 20.0
"""Without a higher-precision arm: KL to the baseline over the baseline's own re-run. Wide, since a correct fused kernel
was at 8; a truncating cast at 94, a neighbour's scale at 320."""
LEAST_QUESTIONS = 20
"""Fewer clusters decide nothing: the normal bound and the bootstrap then cover visibly less than they say (Student's
95 % quantile is 5 % above the normal one at 20, 78 % at 3)."""


@dataclass(frozen=True)
class Yardstick:
    """A higher-precision arm against the baseline and against the candidate: its scores are the ``a`` of both."""

    baseline: Sequence[TokenPair]
    candidate: Sequence[TokenPair]


@dataclass(frozen=True)
class TokenLevel:
    """Token-level pairs of the gold solutions. candidate, rerun: the baseline with the candidate and with its own
    re-run. A comparison that was not made is None."""

    candidate: Sequence[TokenPair]
    rerun: Sequence[TokenPair] | None = None
    yardstick: Yardstick | None = None


class _Numbers(NamedTuple):
    """The statistics of the three comparisons with the baseline, None where one was not made."""

    candidate: TokenStats
    rerun: TokenStats | None
    yardstick: TokenStats | None

    @property
    def enough(self) -> bool:
        return self.candidate.questions >= LEAST_QUESTIONS


def gates(level: TokenLevel, *, alpha: float = ALPHA, seed: int = 0) -> list[Gate]:
    """The token-level gates: finite, mean, noise, and what is reported with them.

    A gate is False only where its bound shows it, never because the data are few. alpha: one-sided error of every
    bound. seed: of the bootstrap. EvalError where the baseline's own scores, its re-run's or the yardstick's are not
    finite.
    """
    numbers = _numbers(level)
    found = numbers.candidate
    size = f"{found.tokens:,} tokens of {found.questions:,} gold solutions"
    if not numbers.enough:
        size += f"; fewer than {LEAST_QUESTIONS} decide nothing"
    if not found.finite:
        return [Gate("finite", False, f"a log-probability of the candidate is not finite ({size})")]
    return [
        Gate("finite", True, f"every log-probability is finite ({size})"),
        _mean_gate(numbers, alpha),
        *_noise_gates(level, numbers, alpha, seed),
        _agreement(numbers),
    ]


def _numbers(level: TokenLevel) -> _Numbers:
    rerun = statistics(level.rerun) if level.rerun else None
    yardstick = statistics(level.yardstick.baseline) if level.yardstick else None
    for name, other in (("re-run", rerun), ("yardstick", yardstick)):
        if other is not None and not other.finite:
            raise EvalError(f"the {name}'s token scores are not finite, so nothing can be compared with it")
    if any(not math.isfinite(x) for p in level.candidate for x in p.logprob_a):
        raise EvalError("the baseline's token scores are not finite, so nothing can be compared with it")
    return _Numbers(statistics(level.candidate), rerun, yardstick)


def _mean_gate(numbers: _Numbers, alpha: float) -> Gate:
    found, rerun = numbers.candidate, numbers.rerun
    z = NormalDist().inv_cdf(1 - alpha)
    floor = NOISE_ERRORS * rerun.error if rerun is not None and math.isfinite(rerun.error) else 0.0
    margin = max(MEAN_MARGIN, floor)
    low, high = found.mean_dlogp - z * found.error, found.mean_dlogp + z * found.error
    ok = True if low > -margin else False if high < -margin else None
    return Gate(
        "mean dlogp",
        ok if numbers.enough else None,
        f"the candidate's log-probability of the right tokens differs by {found.mean_dlogp:+.5f} nats per token "
        f"(error {found.error:.5f}, t = {found.t:+.1f}; between {low:+.5f} and {high:+.5f}, each with "
        f"{100 * (1 - alpha):g} %); allowed is a loss of {margin:.4g}",
    )


def _noise_gates(level: TokenLevel, numbers: _Numbers, alpha: float, seed: int) -> list[Gate]:
    """With a yardstick the typical noise decides, the mean noise can say no, and KL between the arms is reported."""
    found = numbers.candidate
    words = f"KL(baseline || candidate) is {found.kl_mean:.3g} nats per token ({found.kl_kind}; p99 {found.kl_p99:.3g})"
    if found.kl_mean == 0:
        return [Gate("KL", True, f"{words}: the two arms have the same distributions")]
    if level.yardstick and numbers.yardstick is not None and numbers.yardstick.kl_mean > 0:
        return _by_yardstick(level.candidate, level.yardstick, numbers.enough, words, alpha, seed)
    if level.rerun and numbers.rerun is not None and numbers.rerun.kl_mean > 0:
        _same_kind(level.candidate, level.rerun)
        value, (low, high) = kl_ratio(level.candidate, level.rerun, alpha=alpha, seed=seed)
        return [
            Gate(
                "KL",
                _within(low, high, NOISE_FACTOR) if numbers.enough else None,
                f"{words}, {value:.3g} of the baseline's own re-run (no higher-precision arm was given; between "
                f"{low:.3g} and {high:.3g}, each with {100 * (1 - alpha):g} %); allowed {NOISE_FACTOR:g}",
            )
        ]
    reason = "there is neither a higher-precision arm nor a re-run that differs to measure it by"
    return [Gate("KL", None, f"{words}; not judged, because {reason}", decides=False)]


def _by_yardstick(
    candidate: Sequence[TokenPair], yardstick: Yardstick, enough: bool, words: str, alpha: float, seed: int
) -> list[Gate]:
    """candidate: baseline against candidate. words: what KL between the two is."""
    _same_kind(candidate, yardstick.baseline)
    _same_kind(yardstick.candidate, yardstick.baseline)
    value, (low, high), counted = typical_kl_ratio(yardstick.candidate, yardstick.baseline, alpha=alpha, seed=seed)
    if not counted:
        return [Gate("noise", True, f"{words}: neither arm differs from the yardstick by more than {KL_FLOOR:g}")]
    typical = Gate(
        "noise",
        _within(low, high, NOISE_LIMIT) if enough else None,
        f"at a typical token the candidate's quantisation noise, KL(yardstick || arm), is {value:.3g} of the "
        f"baseline's (between {low:.3g} and {high:.3g}, each with {100 * (1 - alpha):g} %; {counted:,} tokens above "
        f"{KL_FLOOR:g} nats); allowed {NOISE_LIMIT:g}",
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
    apart, _, _ = typical_kl_ratio(candidate, yardstick.baseline, alpha=alpha, seed=seed)
    between = Gate(
        "KL",
        None,
        f"{words}, {apart:.3g} of the baseline's noise at a typical token; two arms with that noise "
        "that have nothing in common but the model differ by 2",
        decides=False,
    )
    return [typical, mean, between]


def _within(low: float, high: float, factor: float) -> bool | None:
    return True if high <= factor else False if low > factor else None


def _same_kind(a: Sequence[TokenPair], b: Sequence[TokenPair]) -> None:
    if {p.kl_kind for p in a} != {p.kl_kind for p in b}:
        raise EvalError("the KL of candidate and yardstick were estimated in different ways and cannot be compared")


def _agreement(numbers: _Numbers) -> Gate:
    found, rerun, yardstick = numbers
    parts = [f"same first choice at {100 * found.top1:.4g} % of places"]
    if rerun is not None:
        parts.append(f"{100 * rerun.top1:.4g} % on a re-run (KL {rerun.kl_mean:.3g})")
    if yardstick is not None:
        parts.append(f"{100 * yardstick.top1:.4g} % against the higher-precision arm (KL {yardstick.kl_mean:.3g})")
    parts.append(f"per-question mean dlogp spreads by {found.dispersion:.3g}")
    return Gate("first choice", None, "; ".join(parts), decides=False)
