"""Betting: the error probability holds whenever one looks, and the documented behaviour is that of the code."""

from __future__ import annotations

import itertools
import random
import statistics

import pytest

from evals.errors import EvalError
from evals.stats.sequential import BETS, Race, contiguous, watch


def simulate(margin: float, discordance: float, difference: float, runs: int, seed: int) -> list[Race]:
    generator = random.Random(seed)
    lost = (discordance - difference) / 2

    def one() -> int:
        u = generator.random()
        return -1 if u < lost else 1 if u < discordance else 0

    return [watch((one() for _ in range(1319)), margin) for _ in range(runs)]


def share(races: list[Race], decided: str) -> float:
    return sum(r.decided == decided for r in races) / len(races)


def test_capital_is_the_average_of_products() -> None:
    race = Race(0.02)
    path = [0, -1, 1, 0, 1]
    for x in path:
        race.feed(x)
    parity, harm = [1.0] * len(BETS), [1.0] * len(BETS)
    for x in path:
        parity = [p * (1 + b * (x + 0.02)) for p, b in zip(parity, BETS, strict=True)]
        harm = [h * (1 - b * x) for h, b in zip(harm, BETS, strict=True)]
    assert race.parity == pytest.approx(sum(parity) / len(BETS))
    assert race.harm == pytest.approx(sum(harm) / len(BETS))


def test_the_bets_are_fair_at_the_edge_of_the_hypothesis() -> None:
    """Exact expectation over all paths of six questions whose true difference is -margin: capital stays 1."""
    margin, discordance = 0.25, 0.5
    weight = {-1: (discordance + margin) / 2, 1: (discordance - margin) / 2, 0: 1 - discordance}
    mean_parity = mean_harm = 0.0
    for path in itertools.product((-1, 0, 1), repeat=6):
        race, w, fair = Race(margin, alpha=1e-9), 1.0, 1.0
        for x in path:
            race.feed(x)
            w *= weight[x]
            fair *= {-1: discordance / 2, 1: discordance / 2, 0: 1 - discordance}[x]
        mean_parity += w * race.parity
        mean_harm += fair * race.harm
    assert mean_parity == pytest.approx(1)
    assert mean_harm == pytest.approx(1)


def test_parity_is_declared_early_and_seldom_wrongly() -> None:
    same = simulate(0.02, 0.02, 0.0, 100, 1)
    assert share(same, "parity") > 0.9
    assert 300 < statistics.median(r.count for r in same) < 550
    at_margin = simulate(0.02, 0.03, -0.02, 100, 2)
    # At most alpha = 5 % in truth; 12 of 100 has probability 0.4 % then.
    assert share(at_margin, "parity") <= 0.11
    assert share(at_margin, "harm") > 0.85


def test_a_large_loss_stops_early() -> None:
    worse = simulate(0.015, 0.03, -0.03, 60, 3)
    assert share(worse, "harm") == 1
    assert statistics.median(r.count for r in worse) < 400


def test_a_decision_stays() -> None:
    race = watch([0] * 3000, 0.02)
    assert (race.decided, race.count) == ("parity", race.decided_after)
    for _ in range(200):
        race.feed(-1)
    assert race.decided == "parity"


def test_only_the_contiguous_beginning_counts() -> None:
    assert contiguous([0, 1, 2, 5, 6]) == 3
    assert contiguous([1, 2]) == 0
    assert contiguous([]) == 0


def test_bad_input() -> None:
    with pytest.raises(EvalError, match="must be between"):
        Race(0.0)
    with pytest.raises(EvalError, match="is -1, 0 or 1"):
        Race(0.02).feed(2)
