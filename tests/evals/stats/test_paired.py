"""Paired statistics against published and separately computed values, and against brute force."""

from __future__ import annotations

import itertools
import math
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.errors import EvalError
from evals.stats import paired
from evals.stats.paired import Table, mcnemar, newcombe, noninferiority, planned, tango

# Questions, lost, gained; two-sided p; Tango's 95 % interval and one-sided 95 % lower bound in points.
TOTALS = [
    (1319, 10, 4, 0.18, (-1.12, 0.12), -1.00),
    (1319, 16, 10, 0.33, (-1.29, 0.33), -1.14),
    (1319, 23, 17, 0.43, (-1.45, 0.51), -1.28),
    (1319, 36, 30, 0.54, (-1.70, 0.77), -1.49),
    (1319, 10, 3, 0.092, (-1.19, 0.01), -1.06),
    (200, 3, 2, 1.0, (-3.45, 2.26), -2.83),
    (200, 6, 5, 1.0, (-4.25, 3.15), -3.54),
]


def hundredths(x: float) -> int:
    return round(10_000 * x)


@pytest.mark.parametrize(("count", "lost", "gained", "p", "interval", "low"), TOTALS)
def test_what_the_same_totals_would_mean(
    count: int, lost: int, gained: int, p: float, interval: tuple[float, float], low: float
) -> None:
    assert f"{mcnemar(lost, gained).two_sided:.2g}" == f"{p:.2g}"
    assert [hundredths(x) for x in tango(lost, gained, count)] == [round(100 * x) for x in interval]
    result = noninferiority(lost, gained, count, 0.02)
    assert hundredths(result.low) == round(100 * low)
    assert result.holds == (low > -2)


def test_seven_lost_at_one_per_cent_discordance_is_significant_harm_and_within_two_points() -> None:
    assert round(mcnemar(10, 3).harm, 3) == 0.046
    wide, narrow = (noninferiority(10, 3, 1319, margin) for margin in (0.02, 0.01))
    assert (wide.holds, wide.harm_shown) == (True, False)
    assert (narrow.holds, narrow.harm_shown) == (False, True)


def test_published_intervals() -> None:
    """Tango (1998): 12 against 2 of 50. Newcombe (1998), method 10: (36, 12, 2, 0)."""
    assert [round(x, 4) for x in tango(2, 12, 50)] == [0.0611, 0.3447]
    assert [round(x, 4) for x in newcombe(Table(36, 2, 12, 0))] == [0.0569, 0.3404]
    assert [round(x, 4) for x in newcombe(Table(36, 12, 2, 0))] == [-0.3404, -0.0569]


def test_newcombes_correlation_is_corrected_where_it_is_positive() -> None:
    """(30, 5, 8, 57) by hand: Wilson's roots by their quadratic, phi from ad - bc - n/2 = 1670 - 50."""
    z = 1.959963984540054

    def wilson(p: float) -> tuple[float, float]:
        # Roots of (1 + z^2/n) x^2 - (2p + z^2/n) x + p^2 = 0 with n = 100.
        a, b, c = 1 + z * z / 100, -(2 * p + z * z / 100), p * p
        root = math.sqrt(b * b - 4 * a * c)
        return (-b - root) / (2 * a), (-b + root) / (2 * a)

    (l1, u1), (l2, u2) = wilson(0.38), wilson(0.35)
    phi = 1620 / math.sqrt(38 * 62 * 35 * 65)
    below = math.sqrt((0.38 - l1) ** 2 - 2 * phi * (0.38 - l1) * (u2 - 0.35) + (u2 - 0.35) ** 2)
    above = math.sqrt((u1 - 0.38) ** 2 - 2 * phi * (u1 - 0.38) * (0.35 - l2) + (0.35 - l2) ** 2)
    assert newcombe(Table(30, 5, 8, 57)) == pytest.approx((0.03 - below, 0.03 + above), abs=1e-12)


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_count_of_equally_likely_signs(lost: int, gained: int) -> None:
    total = lost + gained
    below = sum(math.comb(total, k) for k in range(min(lost, gained) + 1))
    assert Fraction(mcnemar(lost, gained).two_sided) == pytest.approx(min(1, 2 * below / 2**total))
    assert mcnemar(lost, gained).harm == pytest.approx(
        sum(math.comb(total, k) for k in range(lost, total + 1)) / 2**total
    )


def test_mcnemar_by_scipy() -> None:
    scipy = pytest.importorskip("scipy.stats", reason="scipy is not installed; brute force covers the same")
    for lost, gained in itertools.product((0, 1, 7, 23, 429), (0, 3, 11, 17)):
        if lost + gained:
            mine = mcnemar(lost, gained)
            assert mine.two_sided == pytest.approx(scipy.binomtest(lost, lost + gained).pvalue)
            assert mine.harm == pytest.approx(scipy.binomtest(lost, lost + gained, alternative="greater").pvalue)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.data())
def test_tango_is_symmetric_and_holds_the_estimate(count: int, data: st.DataObject) -> None:
    lost = data.draw(st.integers(0, count))
    gained = data.draw(st.integers(0, count - lost))
    low, high = tango(lost, gained, count)
    assert -1 <= low <= (gained - lost) / count <= high <= 1
    mirrored = tango(gained, lost, count)
    assert (low, high) == pytest.approx((-mirrored.high, -mirrored.low), abs=1e-9)
    wider = tango(lost, gained, count, 0.99)
    assert wider.low <= low + 1e-12
    assert wider.high >= high - 1e-12


def test_tangos_nuisance_is_the_maximum_of_the_likelihood() -> None:
    """By a fine search over P(lost) under the difference, in place of the quadratic's root."""
    for lost, gained, count, difference in ((23, 17, 1319, -0.01), (2, 12, 50, 0.1), (6, 5, 200, -0.02)):

        def likelihood(
            q: float, lost: int = lost, gained: int = gained, n: int = count, d: float = difference
        ) -> float:
            return lost * math.log(q) + gained * math.log(q + d) + (n - lost - gained) * math.log(1 - 2 * q - d)

        least = max(0.0, -difference)
        grid = [least + (0.5 - difference / 2 - least) * i / 200_000 for i in range(1, 100_000)]
        best = max(grid, key=likelihood)
        variance = count * (2 * best + difference - difference**2)
        z = (gained - lost - count * difference) / math.sqrt(variance)
        assert paired.tango_z(lost, gained, count, difference) == pytest.approx(z, rel=1e-4)


def test_no_discordant_pair_bounds_the_rate() -> None:
    low, high = tango(0, 0, 1319)
    assert low == pytest.approx(-high)
    assert 0.001 < high < 0.004
    assert mcnemar(0, 0).two_sided == 1
    assert noninferiority(0, 0, 1319, 0.01).holds


def test_how_many_questions_would_settle_it() -> None:
    assert [round(planned(0.03, m)) for m in (0.01, 0.02)] == [1855, 464]
    assert planned(0.03, 0.01) * 0.01**2 / 0.03 == pytest.approx(6.18, abs=0.005)
    assert planned(0.03, 0.01, -0.01) == math.inf


def test_the_table_of_two_arms() -> None:
    t = paired.table([True, True, False, False, True], [True, False, True, False, True])
    assert (t.both, t.lost, t.gained, t.neither) == (2, 1, 1, 1)
    assert (t.baseline, t.candidate, t.discordance) == (3, 3, 0.4)
    with pytest.raises(ValueError, match="zip"):
        paired.table([True], [])
    with pytest.raises(EvalError, match="at least one question"):
        paired.table([], [])
    with pytest.raises(EvalError, match="margin must be"):
        noninferiority(1, 1, 10, 0.0)


def test_excess_flips_are_paired() -> None:
    flips, again = [True] * 30 + [False] * 970, [False] * 25 + [True] * 10 + [False] * 965
    excess = paired.excess_flips(flips, again)
    assert (excess.candidate, excess.again, excess.only_candidate, excess.only_again) == (30, 10, 25, 5)
    assert excess.p == pytest.approx(sum(math.comb(30, k) for k in range(25, 31)) / 2**30)
    assert excess.interval.low > 0


def test_repeats_are_no_further_questions() -> None:
    """The error comes from the questions: repeating each ten times leaves it where it was."""
    generator = random.Random(0)
    each = [generator.choice([-1, 0, 0, 0, 1]) for _ in range(300)]
    once = paired.clustered(each)
    mean = sum(each) / 300
    assert once.error == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in each) / 299 / 300))
    assert once.high - once.low == pytest.approx(2 * 1.6448536 * once.error)


def test_first_divergence() -> None:
    assert paired.first_divergence((1, 2, 3), (1, 2, 3)) is None
    assert paired.first_divergence((1, 2, 3), (1, 9, 3)) == 1
    assert paired.first_divergence("ab", "abc") == 2
