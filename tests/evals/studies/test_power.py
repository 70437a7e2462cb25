"""The power of a run against tables that were computed separately."""

from __future__ import annotations

import math

import pytest

from evals.stats.paired import POWER

pytest.importorskip("scipy", reason="the optional package scipy is not installed")

from evals.studies import power

# Smallest drop in points that exact McNemar sees with 80 % power; one-sided, two-sided.
DROPS = [
    (200, 0.05, "4.11", "4.43"),
    (200, 0.10, "5.77", "6.40"),
    (500, 0.02, "1.65", "1.78"),
    (500, 0.08, "3.26", "3.65"),
    (1319, 0.01, "0.72", "0.78"),
    (1319, 0.03, "1.23", "1.38"),
    (1319, 0.10, "2.23", "2.50"),
    (2638, 0.02, "0.71", "0.79"),
]


@pytest.mark.parametrize(("count", "discordance", "one", "two"), DROPS)
def test_the_smallest_drop_that_can_be_seen(count: int, discordance: float, one: str, two: str) -> None:
    found = [power.smallest_drop(count, discordance, sides=sides) for sides in (1, 2)]
    assert [f"{100 * (f or 0):.2f}" for f in found] == [one, two]


def test_at_200_questions_a_discordance_of_two_per_cent_hides_every_drop() -> None:
    assert power.smallest_drop(200, 0.02) is None
    assert math.isnan(power.power_harm(200, 0.01, 0.02))


def test_power_to_see_half_a_point() -> None:
    found = [power.power_harm(1319, d, 0.005) for d in (0.01, 0.02, 0.03, 0.05, 0.08)]
    assert all(abs(100 * f - p) <= 0.6 for f, p in zip(found, (47, 30, 23, 17, 14), strict=True)), found


@pytest.mark.parametrize(
    ("count", "margin", "per_cent"),
    [
        (1319, 0.01, [95, 79, 66, 48, 35]),
        (1319, 0.015, [100, 98, 92, 77, 61]),
        (1319, 0.02, [100, 100, 99, 94, 81]),
        (200, 0.02, [62, 48, 42, 32, 24]),
    ],
)
def test_power_to_declare_parity_when_nothing_changed(count: int, margin: float, per_cent: list[int]) -> None:
    found = [100 * power.power_parity(count, d, margin) for d in (0.01, 0.02, 0.03, 0.05, 0.08)]
    # The reference values are whole per cents.
    assert all(abs(f - p) <= 0.6 for f, p in zip(found, per_cent, strict=True)), found


def test_type_one_error_at_the_margin() -> None:
    assert [round(100 * power.power_parity(1319, 0.03, m, -m), 1) for m in (0.01, 0.02)] == [4.9, 4.6]


def test_the_rule_for_planning_is_the_large_sample_form_of_the_exact_power() -> None:
    assert abs(power.power_parity(1855, 0.03, 0.01) - POWER) < 0.02
