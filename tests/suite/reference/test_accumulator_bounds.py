"""The error bounds hold on a million emulated outputs, are not idle, and leave CDNA3 outputs a single bf16 value."""

from __future__ import annotations

import pytest
import torch

from reference.accumulators import K_MAPS, emulate
from reference.formats import E4M3FN, E4M3FNUZ, decode
from tests.benchmarks.bounds import KINDS, UNITS, Score, codes, format_for, main, score
from tests.support.accumulator_bounds import a_priori_bound, running_bound

SIDE = 192


@pytest.mark.parametrize("unit", UNITS)
def test_no_output_exceeds_its_bounds(unit: str) -> None:
    """7 units x 5 kinds of data x 36,864 outputs: 1.3 million. K = 72 ends inside a group."""
    total = Score()
    for seed, kind in enumerate(KINDS):
        score(unit, kind, SIDE, SIDE, 72, seed, total)
    assert (total.outputs, total.violations, total.a_priori_violations) == (5 * SIDE**2, 0, 0)
    # Nearly attained somewhere (the chain of fp32 additions: sequentially, a worst case is far from typical).
    assert total.worst > (0.1 if unit == "fp32-serial" else 0.3)
    assert 0 < total.worst_a_priori <= 1


@pytest.mark.parametrize("unit", ["hopper-fast", "hopper-promote128", "cdna3-mfma"])
def test_bounds_hold_for_long_sums_splits_and_k_maps(unit: str) -> None:
    fmt, g = format_for(unit), torch.Generator().manual_seed(9)
    k_map = K_MAPS["lane16-16x16x32"] if unit == "cdna3-mfma" else None
    for kind in ("mean1", "wide"):
        a, b = codes(kind, (12, 1500), fmt, g), codes(kind, (12, 1500), fmt, g)
        error = (emulate(a, b, fmt, unit, splits=3, k_map=k_map).double() - decode(a, fmt) @ decode(b, fmt).t()).abs()
        running = running_bound(a, b, fmt, unit, splits=3, k_map=k_map)
        assert bool((error <= running).all())
        assert bool((error <= a_priori_bound(a, b, fmt, unit, splits=3)).all())


def test_the_bound_of_a_better_unit_is_broken_by_a_worse_one() -> None:
    """A bound that no wrong accumulator breaks would judge nothing."""
    g = torch.Generator().manual_seed(2)
    a, b = codes("mean1", (16, 1024), E4M3FN, g), codes("mean1", (16, 1024), E4M3FN, g)
    exact = decode(a, E4M3FN) @ decode(b, E4M3FN).t()
    fast = (emulate(a, b, E4M3FN, "hopper-fast").double() - exact).abs()
    promoted = (emulate(a, b, E4M3FN, "hopper-promote128").double() - exact).abs()
    assert bool((fast > running_bound(a, b, E4M3FN, "hopper-promote128")).any())
    assert bool((promoted > running_bound(a, b, E4M3FN, "cdna3-mfma")).all())
    assert bool((promoted > a_priori_bound(a, b, E4M3FN, "cdna3-mfma")).any())


def test_what_cannot_round_has_a_bound_of_zero() -> None:
    """Powers of two that fit every alignment: the running bound itself proves that the sum is exact."""
    a = torch.full((2, 64), 0x38, dtype=torch.uint8)  # 1.0 in e4m3fn
    for unit in UNITS:
        assert float(running_bound(a, a, E4M3FN, unit).max()) == 0.0
    zero = torch.zeros(2, 64, dtype=torch.uint8)
    for unit in UNITS:
        assert float(running_bound(zero, zero, E4M3FN, unit).max()) == 0.0
        assert float(a_priori_bound(zero, zero, E4M3FN, unit).max()) == 0.0


def test_cdna3_outputs_have_a_single_admissible_bf16_value_at_k_5120() -> None:
    """97 % at least, on gaussian data with scales that are no powers of two."""
    total = score("cdna3-mfma", "gaussian", 24, 48, 5120, 1, Score())
    assert total.violations == 0
    assert total.single >= 0.97 * total.outputs


def test_fnuz_bounds_use_the_lower_exponents_of_the_format() -> None:
    a = torch.tensor([[0x01, 0x7F] * 32], dtype=torch.uint8)
    error = (emulate(a, a, E4M3FNUZ, "cdna3-mfma").double() - decode(a, E4M3FNUZ) @ decode(a, E4M3FNUZ).t()).abs()
    assert bool((error <= running_bound(a, a, E4M3FNUZ, "cdna3-mfma")).all())


def test_the_benchmark_prints_one_line_for_each_unit_and_kind(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bounds", "--outputs", "64", "--k", "40", "--units", "ada", "--kinds", "wide"])
    assert main() == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].split()[:4] == ["ada", "wide", "64", "0"]
    assert printed[-1].startswith("64 outputs of K = 40, 0 violations")
