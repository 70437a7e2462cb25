"""The verdict on a walk: bounds of the median, the trajectory, and the divergence of the logits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch

from validators.layers.result import Depth, Judged, Result
from validators.layers.verdict import CONFIDENCE, divergence, median_bounds, trajectory
from validators.records.record import Status

# ---- verdict


@pytest.mark.parametrize("count", [5, 8, 21, 64])
def test_the_bounds_of_the_median_are_the_tightest_that_hold(count: int) -> None:
    bounds = median_bounds([float(i) for i in range(count)])

    def below(at_least: int) -> float:
        return sum(math.comb(count, k) for k in range(at_least, count + 1)) / 2**count

    place = int(bounds.high)
    assert below(place + 1) <= 1 - CONFIDENCE < below(place)
    assert bounds.low == count - 1 - place


def test_few_tokens_have_no_bounds_and_decide_nothing() -> None:
    bounds = median_bounds([1.0] * 4)
    assert (bounds.low, bounds.high) == (-math.inf, math.inf)
    assert trajectory(_result([0.1] * 4, [0.1] * 4), 0.5)[0] is Status.MISTRUSTED


@pytest.mark.parametrize(
    ("fused", "status"), [(0.1, Status.PASSED), (0.14, Status.PASSED), (0.16, Status.FAILED), (math.nan, Status.FAILED)]
)
def test_the_trajectory_is_held_to_the_margin(fused: float, status: Status) -> None:
    found, reasons, checks = trajectory(_result([fused] * 20, [0.1] * 20), 0.5)
    assert found is status
    assert bool(reasons) == (status is not Status.PASSED)
    assert [c.name for c in checks] == ["finite", "fused against unfused", "router"]


def test_a_wrong_bf16_norm_fails_the_trajectory() -> None:
    result = _result([0.1] * 20, [0.1] * 20)
    norm = Judged("unfused", 0, "input_layernorm", "add_rmsnorm_quant", "any", Status.PASSED, ())
    right = dataclasses.replace(norm, own_norm=True)
    result.judged = [right]
    assert trajectory(result, 0.5)[0] is Status.PASSED
    result.judged.append(dataclasses.replace(right, layer=3, status=Status.FAILED, reasons=("codes: 5 of 9",)))
    status, reasons, _ = trajectory(result, 0.5)
    assert status is Status.FAILED
    assert "1 of 2" in reasons[0]
    assert "layer 3" in reasons[0]
    # Whose norm it is, is a field: a contract's name says nothing.
    named = dataclasses.replace(norm, contract="bf16 norm, then eager", status=Status.FAILED)
    result.judged = [right, named]
    assert trajectory(result, 0.5)[0] is Status.PASSED


def test_a_wide_spread_around_the_margin_is_undecided() -> None:
    status, reasons, _ = trajectory(_result([0.05, 0.3] * 5, [0.1] * 10), 0.5)
    assert status is Status.MISTRUSTED
    assert "more tokens" in reasons[0]


def test_a_stopped_walk_is_an_error() -> None:
    assert trajectory(Result(stopped="layer 1, qkv_proj, fused path: it raised"), 0.5)[0] is Status.ERROR
    assert trajectory(Result(), 0.5)[0] is Status.ERROR


def test_divergence_is_zero_for_shifted_logits_and_counts_first_choices() -> None:
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0]], dtype=torch.float64)
    kl, same = divergence(logits, logits + 8.0)
    assert abs(kl) < 2.0**-45
    assert same == 1.0
    assert divergence(logits, logits.flip(1))[1] == 0.0
    assert divergence(logits, logits.flip(1))[0] > 0.5


def _result(fused: Sequence[float], unfused: Sequence[float]) -> Result:
    error = {"fused": torch.tensor(fused, dtype=torch.float64), "unfused": torch.tensor(unfused, dtype=torch.float64)}
    return Result(depths=[Depth(0, error, 1.0, {"fused": 1, "unfused": 0})])


def test_paths_that_lost_the_model_are_judged_before_they_did() -> None:
    near, far = _result([0.1] * 20, [0.1] * 20), _result([0.9] * 20, [0.9] * 20)
    lost = dataclasses.replace(far.depths[0], layer=1)
    status, _, checks = trajectory(Result(depths=[near.depths[0], lost]), 0.5)
    assert status is Status.PASSED
    assert "after layer 0 the fused" in checks[1].detail
    assert "after layer 1 and on" in next(c.detail for c in checks if c.name == "depth")
    status, reasons, _ = trajectory(far, 0.5)
    assert status is Status.MISTRUSTED
    assert "the errors of the two paths cannot be compared" in reasons[0]
    # A path that is wrong where the other is not yet lost fails, however alike they are at the end.
    wrong = _result([0.3] * 20, [0.1] * 20)
    assert trajectory(Result(depths=[wrong.depths[0], lost]), 0.5)[0] is Status.FAILED
