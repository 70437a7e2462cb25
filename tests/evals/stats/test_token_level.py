"""Token-level gates: a legitimate change passes, each kind of fault is seen by the gate that is meant for it."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.errors import EvalError
from evals.gsm8k.samples import TokenPair, TokenScore
from evals.stats import tokens
from evals.stats.gate import Gate
from evals.stats.token_gates import LEAST_QUESTIONS, MEAN_MARGIN, TokenLevel, Yardstick, gates
from tests.support.token_arms import arms


def yardstick_of(baseline: list[TokenPair], candidate: list[TokenPair]) -> Yardstick:
    """A yardstick by the pairs of the baseline and of the candidate with it."""
    return Yardstick(baseline, candidate)


def gates_of(
    candidate: list[TokenPair], rerun: list[TokenPair] | None, yardstick: Yardstick | None, seed: int = 0
) -> list[Gate]:
    return gates(TokenLevel(candidate, rerun, yardstick), seed=seed)


def by_name(found: list[Gate]) -> dict[str, bool | None]:
    return {g.name: g.ok for g in found}


def test_the_clustered_error_is_that_of_the_bootstrap() -> None:
    pairs = arms(0, 40, spread=0.05)
    # Questions of different lengths, each with a shift of its own: tokens are far from independent.
    generator = random.Random(1)
    pairs = [
        replace(
            p,
            logprob_a=p.logprob_a[:n],
            logprob_b=tuple(x + s for x in p.logprob_b[:n]),
            kl=p.kl[:n],
            same_top1=p.same_top1[:n],
        )
        for p in pairs
        for n, s in [(generator.randint(20, 80), generator.gauss(0, 0.02))]
    ]
    found = tokens.statistics(pairs)
    sums = [(sum(p.logprob_b) - sum(p.logprob_a), len(p.kl)) for p in pairs]
    means = []
    for _ in range(3000):
        drawn = generator.choices(sums, k=len(sums))
        means.append(sum(d for d, _ in drawn) / sum(n for _, n in drawn))
    middle = sum(means) / len(means)
    spread = math.sqrt(sum((m - middle) ** 2 for m in means) / len(means))
    assert found.mean_dlogp == pytest.approx(sum(d for d, _ in sums) / sum(n for _, n in sums))
    assert found.error == pytest.approx(spread, rel=0.08)
    naive = 0.05 / math.sqrt(found.tokens)
    assert found.error > 2 * naive


def test_numbers_of_a_small_example() -> None:
    pairs = [
        TokenPair("a", (-1.0, -2.0), (-1.1, -2.0), (0.01, 0.0), (True, True)),
        TokenPair("b", (-1.0,), (-1.3,), (0.5,), (False,)),
    ]
    found = tokens.statistics(pairs)
    assert (found.questions, found.tokens, found.top1) == (2, 3, pytest.approx(2 / 3))
    assert found.mean_dlogp == pytest.approx(-0.4 / 3)
    assert (found.kl_mean, found.kl_p99) == (pytest.approx(0.17), 0.5)
    # Per-question means -0.05 and -0.3.
    assert found.dispersion == pytest.approx(0.25 / math.sqrt(2))


@pytest.mark.parametrize("seed", range(20))
def test_a_legitimate_change_passes_every_gate(seed: int) -> None:
    """Its noise is the baseline's; how far apart the two are does not matter."""
    ruler = yardstick_of(arms(200 + seed, 150), arms(300 + seed, 150))
    apart = arms(seed, 150, spread=0.03 * math.sqrt(2))
    found = gates_of(apart, arms(100 + seed, 150, spread=0.01), ruler, seed=seed)
    assert by_name(found) == {
        "finite": True,
        "mean dlogp": True,
        "noise": True,
        "mean noise": None,
        "KL": None,
        "first choice": None,
    }


def test_a_truncating_cast_fails_by_the_mean_and_a_per_tensor_scale_by_noise_alone() -> None:
    worse = by_name(gates_of(arms(1, spread=0.1, shift=-0.037), None, yardstick_of(arms(200), arms(300, spread=0.055))))
    assert (worse["mean dlogp"], worse["noise"], worse["mean noise"]) == (False, False, False)
    noisy = yardstick_of(arms(200, 150), arms(300, 150, spread=0.03 * math.sqrt(1.44)))
    coarse = by_name(gates_of(arms(2, 150, spread=0.03 * math.sqrt(1.9)), None, noisy))
    assert (coarse["mean dlogp"], coarse["noise"], coarse["mean noise"]) == (True, False, None)


def test_few_questions_decide_nothing() -> None:
    few = LEAST_QUESTIONS
    for seed in range(3):
        # Neither way: a catastrophe on three questions is no proof either.
        for shift in (0.0, -1.0):
            worse = arms(seed, few - 1, spread=0.3, shift=shift)
            found = by_name(gates_of(worse, None, yardstick_of(arms(6, few - 1), worse)))
            assert (found["mean dlogp"], found["noise"], found["mean noise"]) == (None, None, None)
    own = arms(7, few, spread=0.3, size=5)
    noisy = by_name(gates_of(own, None, yardstick_of(arms(6, few, spread=0.25, size=5), own)))
    assert (noisy["mean dlogp"], noisy["noise"]) == (None, None)
    alone = tokens.statistics(arms(0, 1))
    assert alone.error == math.inf


def test_without_a_yardstick_kl_is_gated_widely_by_the_re_run() -> None:
    again = arms(9, spread=0.01)
    within, beyond = (by_name(gates_of(arms(1, spread=s), again, None))["KL"] for s in (0.03, 0.06))
    assert (within, beyond) == (True, False)
    nothing = gates_of(arms(1), None, None)[2]
    assert (nothing.ok, nothing.decides) == (None, False)
    assert "neither a higher-precision arm nor a re-run" in nothing.sentence
    silent = [replace(p, logprob_b=p.logprob_a, kl=(0.0,) * len(p.kl)) for p in again]
    assert not gates_of(arms(1), silent, None)[2].decides
    same = gates_of(silent, None, None)[2]
    assert (same.ok, same.decides) == (True, True)


def test_the_margin_never_lies_below_three_errors_of_the_re_run() -> None:
    noisy = [
        replace(p, logprob_b=tuple(x + s for x in p.logprob_b))
        for p, s in zip(arms(1), (0.1 * math.sin(i) for i in range(60)), strict=True)
    ]
    error = tokens.statistics(noisy).error
    assert 3 * error > MEAN_MARGIN
    gate = gates_of(arms(2), noisy, None)[1]
    assert f"allowed is a loss of {3 * error:.4g}" in gate.sentence


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_fails_alone(bad: float) -> None:
    pairs = arms(0, 5)
    broken = [*pairs[:4], replace(pairs[4], logprob_b=(bad, *pairs[4].logprob_b[1:]))]
    assert [(g.name, g.ok) for g in gates_of(broken, None, None)] == [("finite", False)]
    with pytest.raises(EvalError, match="baseline's token scores are not finite"):
        gates_of([replace(pairs[0], logprob_a=(bad, *pairs[0].logprob_a[1:]))], None, None)
    with pytest.raises(EvalError, match="the yardstick's token scores are not finite"):
        gates_of(pairs, None, yardstick_of(broken, pairs))


def test_ragged_missing_and_mixed_input_is_one_sentence() -> None:
    pairs = arms(0, 3)
    with pytest.raises(EvalError, match="scored different numbers of tokens"):
        tokens.statistics([replace(pairs[0], kl=pairs[0].kl[:-1])])
    with pytest.raises(EvalError, match="at least one question"):
        tokens.statistics([])
    with pytest.raises(EvalError, match="occurs twice"):
        tokens.statistics([pairs[0], pairs[0]])
    with pytest.raises(EvalError, match="on other questions"):
        gates_of(pairs, None, yardstick_of(pairs, pairs[:2]))
    for other in (
        yardstick_of([replace(p, kl_kind="k3") for p in pairs], pairs),
        yardstick_of(pairs, [replace(p, kl_kind="k3") for p in pairs]),
    ):
        with pytest.raises(EvalError, match="estimated in different ways"):
            gates_of(pairs, None, other)


def test_the_bounds_of_the_ratio_cover_it() -> None:
    """True ratio 1.44; each one-sided bound is wrong with 5 %: of 24 draws at most 5 are, with 99.8 %."""
    wrong = [0, 0]
    for seed in range(24):
        _, (low, high) = tokens.kl_ratio(arms(seed, 80, spread=0.036), arms(1000 + seed, 80), seed=seed)
        wrong[0] += low > 1.44
        wrong[1] += high < 1.44
    assert max(wrong) <= 5


def heavy(pairs: list[TokenPair], seed: int) -> list[TokenPair]:
    """Tokens as sensitive as in a trained model: most are certain, one in thousands holds half of the mean KL."""
    generator = random.Random(seed)
    dice = random.Random(99)  # a token is as sensitive in every arm
    made = []
    for p in pairs:
        own = [math.exp(dice.gauss(-6, 4)) * (10.0 ** generator.choice([0, 0, 0, 1])) for _ in p.kl]
        made.append(replace(p, kl=tuple(k * s for k, s in zip(p.kl, own, strict=True))))
    return made


@pytest.mark.parametrize("seed", range(8))
def test_the_typical_kl_decides_where_a_few_tokens_hold_the_mean(seed: int) -> None:
    ruler = heavy(arms(200 + seed, 150), seed)
    for factor, wanted in ((0.9, True), (2.9, False)):
        own = heavy(arms(seed, 150, spread=0.03 * math.sqrt(factor)), 50 + seed)
        found = {g.name: g for g in gates_of(own, None, yardstick_of(ruler, own), seed=seed)}
        assert found["noise"].ok is wanted, found["noise"].sentence
        _, mean = tokens.kl_ratio(own, ruler)
        _, typical, _ = tokens.typical_kl_ratio(own, ruler)
        assert mean.high / mean.low > 2 * typical.high / typical.low
        assert found["mean noise"].decides == (found["mean noise"].ok is False)


def test_the_typical_ratio_of_a_small_example() -> None:
    def pair_of(question: str, *kl: float) -> TokenPair:
        return TokenPair(question, (-1.0,) * len(kl), (-1.0,) * len(kl), kl, (True,) * len(kl))

    own = [pair_of("a", 4e-4, 1e-7, 0.0), pair_of("b", 2e-3, 1e-4)]
    ruler = [pair_of("b", 1e-3, 5e-8), pair_of("a", 1e-4, 2e-7, 1e-5)]
    value, _, counted = tokens.typical_kl_ratio(own, ruler)
    # Ratios 4, 2 and 2000; one token is rounding in both arms; zero counts as a hundredth of the floor.
    assert (counted, value) == (4, pytest.approx((4 * 2 * 1e-3 * 2000) ** (1 / 4)))
    nothing = [pair_of("a", 1e-9)] * 1
    assert tokens.typical_kl_ratio(nothing, nothing)[2] == 0


def test_a_candidate_that_cannot_be_told_from_the_baseline_passes() -> None:
    tiny = [replace(p, kl=(1e-8,) * len(p.kl)) for p in arms(0)]
    gate = next(g for g in gates_of(tiny, None, yardstick_of(tiny, tiny)) if g.name == "noise")
    assert gate.ok is True
    assert "neither arm differs from the yardstick by more than 1e-06" in gate.sentence


def test_what_hits_few_tokens_is_seen_by_the_mean() -> None:
    """One row in a hundred computed wrong: at a typical token nothing happens."""
    base, own = arms(200, 150), arms(300, 150)
    dice = random.Random(4)
    hit = [replace(p, kl=tuple(k * (1e4 if dice.random() < 0.01 else 1.0) for k in p.kl)) for p in own]
    found = {g.name: g for g in gates_of(arms(2, 150), None, yardstick_of(base, hit))}
    assert (found["noise"].ok, found["mean noise"].ok, found["mean noise"].decides) == (True, False, True)


def test_both_bounds_of_the_typical_ratio_cover_it() -> None:
    wrong = [0, 0]
    for seed in range(24):
        _, (low, high), _ = tokens.typical_kl_ratio(arms(seed, 60, spread=0.036), arms(1000 + seed, 60), seed=seed)
        wrong[0] += low > 1.44
        wrong[1] += high < 1.44
    assert max(wrong) <= 5


def score(question: str, logprob: float, top: dict[int, float] | None) -> TokenScore:
    return TokenScore(question, (1,), (logprob,), (1,), None if top is None else (top,))


def test_pairs_from_top_k_bound_kl_from_below_and_k3_estimates_it() -> None:
    p, q = [0.7, 0.2, 0.05, 0.05], [0.6, 0.2, 0.15, 0.05]
    full = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    logs = [{i: math.log(v) for i, v in enumerate(d)} for d in (p, q)]
    [whole] = tokens.pairs([score("q", math.log(0.2), logs[0])], [score("q", math.log(0.2), logs[1])])
    assert whole.kl_kind == "top-k"
    assert whole.kl[0] == pytest.approx(full)
    cut = [{i: d[i] for i in (0, 1)} for d in logs]
    [bound] = tokens.pairs([score("q", math.log(0.2), cut[0])], [score("q", math.log(0.2), cut[1])])
    assert 0 < bound.kl[0] < full
    [k3] = tokens.pairs([score("q", -1.0, None)], [score("q", -1.2, None)])
    assert (k3.kl_kind, k3.kl[0]) == ("k3", pytest.approx(math.exp(-0.2) - 1 + 0.2))


@settings(deadline=None)
@given(
    st.lists(st.floats(0.01, 1), min_size=3, max_size=8),
    st.lists(st.floats(0.01, 1), min_size=8, max_size=8),
    st.integers(1, 8),
)
def test_merged_kl_never_exceeds_the_true_one(p: list[float], q: list[float], k: int) -> None:
    q = q[: len(p)]
    p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
    full = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
    tops = [dict(sorted(((i, math.log(v)) for i, v in enumerate(d)), key=lambda e: -e[1])[:k]) for d in (p, q)]
    [pair] = tokens.pairs([score("q", -1.0, tops[0])], [score("q", -1.0, tops[1])])
    assert 0 <= pair.kl[0] <= full + 1e-12


def test_arms_that_scored_different_tokens_or_questions() -> None:
    with pytest.raises(EvalError, match="scored different tokens"):
        tokens.pair(score("q", -1.0, None), replace(score("q", -1.0, None), tokens=(2,)))
    with pytest.raises(EvalError, match="question r exist in one arm only"):
        tokens.pairs([score("r", -1.0, None)], [score("q", -1.0, None)])
    with pytest.raises(EvalError, match="question z exist in one arm only"):
        tokens.pairs([score("q", -1.0, None)], [score("q", -1.0, None), score("z", -1.0, None)])
