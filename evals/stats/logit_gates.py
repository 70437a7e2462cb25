"""Gates on a model that runs in process: whole distributions are known there, and every token counts.

A model that is sure of nearly every token hides from KL what happens to its logits. The variance of the logits' change
(KL at high temperature, ``inprocess.flat_divergence``) weighs every token alike. With it the candidate's quantisation
noise is held against the baseline's, and the candidate against itself in other batches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from evals.gsm8k.samples import TeacherForced, TokenPair
from evals.stats.gate import Gate
from evals.stats.token_gates import LEAST_QUESTIONS, MEAN_NOISE_LIMIT, NOISE_LIMIT, TokenLevel, Yardstick
from evals.stats.tokens import kl_ratio, statistics, typical_kl_ratio


@dataclass(frozen=True)
class InProcessPairs:
    """Token-level pairs by comparison: ``candidate``, ``re-run``, ``yardstick`` (each with the baseline), and
    ``candidate again`` (with the candidate). full: with KL; flat: with the flat divergence. noise, flat_noise: of
    ``baseline`` and ``candidate`` with the yardstick, whose scores come first."""

    flat: dict[str, list[TokenPair]]
    full: dict[str, list[TokenPair]]
    noise: dict[str, list[TokenPair]]
    flat_noise: dict[str, list[TokenPair]]

    @property
    def token_level(self) -> TokenLevel:
        """The pairs with KL, as the gates of the token level take them."""
        yardstick = Yardstick(self.noise["baseline"], self.noise["candidate"])
        return TokenLevel(self.full["candidate"], self.full["re-run"], yardstick)


def collected(scored: Sequence[TeacherForced], names: dict[str, str]) -> InProcessPairs:
    """The pairs of ``scored`` by comparison. names: comparison -> name of its pass."""
    noise = {"baseline": "", "candidate": names["candidate"]}
    return InProcessPairs(
        flat={n: [s.flat[own] for s in scored] for n, own in names.items()},
        full={n: [s.pairs[own] for s in scored] for n, own in names.items()},
        noise={n: [s.noise[own] for s in scored] for n, own in noise.items()},
        flat_noise={n: [s.flat_noise[own] for s in scored] for n, own in noise.items()},
    )


REBATCH_FACTOR = 0.5
"""How far the candidate may move when its batches are cut otherwise, over the model's own quantisation noise. A stated
choice: a kernel whose rows do not know of each other moves by the environment's order of sums alone (measured 0.00004
in the embedded model, 0.02 in a 135M one), one whose scale spans the batch quantizes again (0.7); one half is
between the two."""


def rebatching(pairs: InProcessPairs, seed: int) -> Gate:
    """The gate on the candidate's dependence on its batch: a row's result must not depend on its neighbours."""
    value, low, high = _typical(pairs.flat["candidate again"], pairs.flat["yardstick"], seed)
    words = (
        f"cut into other batches, the candidate's logits differ from its own by {value:.2g} of the model's own "
        f"quantisation noise (between {low:.2g} and {high:.2g}); allowed {REBATCH_FACTOR:g}"
    )
    return Gate("batch", _within(low, high, REBATCH_FACTOR, pairs), words)


def change(pairs: InProcessPairs, seed: int) -> Gate:
    """The gate on the candidate's quantisation noise: as ``evals.stats.tokens`` on KL, here on the flat divergence,
    where every token counts."""
    noise = pairs.flat_noise
    value, low, high = _typical(noise["candidate"], noise["baseline"], seed)
    apart, _, _ = _typical(pairs.flat["candidate"], pairs.flat["yardstick"], seed)
    ok = _within(low, high, NOISE_LIMIT, pairs)
    return Gate(
        "logits",
        ok,
        f"at a typical token the candidate's quantisation noise, the variance of its logits' distance from the "
        f"yardstick, is {value:.3g} of the baseline's (between {low:.3g} and {high:.3g}); allowed {NOISE_LIMIT:g}. "
        f"The distance between the arms is {apart:.3g} of it",
    )


def mean_change(pairs: InProcessPairs, seed: int) -> Gate:
    """The same on the mean, which sees what hits few tokens; it can only say no."""
    noise = pairs.flat_noise
    value, low, high = math.nan, math.nan, math.nan
    if statistics(noise["candidate"]).finite:
        value, (low, high) = kl_ratio(noise["candidate"], noise["baseline"], seed=seed)
    beyond = low > MEAN_NOISE_LIMIT and len(noise["candidate"]) >= LEAST_QUESTIONS
    return Gate(
        "mean logits",
        False if beyond else None,
        f"on the mean it is {value:.3g} of the baseline's (between {low:.3g} and {high:.3g}); no above "
        f"{MEAN_NOISE_LIMIT:g}",
        decides=beyond,
    )


def _within(low: float, high: float, limit: float, pairs: InProcessPairs) -> bool | None:
    """Yes or no where the bounds show it, on no fewer questions than the token level asks for."""
    if len(pairs.full["candidate"]) < LEAST_QUESTIONS:
        return None
    return True if high <= limit else False if low > limit else None


def _typical(pairs: list[TokenPair], yardstick: list[TokenPair], seed: int) -> tuple[float, float, float]:
    """Ratio at a typical token with its bounds; NaN, which no gate calls a yes, where scores are not finite."""
    if not statistics(pairs).finite:
        return math.nan, math.nan, math.nan
    value, (low, high), _ = typical_kl_ratio(pairs, yardstick, seed=seed)
    return value, low, high


def only_reported(gate: Gate) -> Gate:
    """KL as a number that decides nothing here: a model may be so sure of its tokens that KL exceeds fp32's rounding at
    one in twenty (the embedded one is). ``change`` judges the same question on every token."""
    if gate.name not in ("KL", "noise", "mean noise"):
        return gate
    words = f"{gate.sentence}; reported only, the gate on the logits judges it at every token"
    return dataclasses.replace(gate, ok=None, sentence=words, decides=False)


def gates(pairs: InProcessPairs, seed: int) -> list[Gate]:
    """All gates of this module that ``pairs`` has the pairs for."""
    made = [change(pairs, seed), mean_change(pairs, seed)]
    return [*made, rebatching(pairs, seed)] if "candidate again" in pairs.flat else made
