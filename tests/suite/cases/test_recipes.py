"""What each recipe promises to contain is in the inputs that it makes."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.support.case_inputs import (
    ADD,
    NP_FP8,
    QUANT,
    case_of,
    decoded_table,
    norm_case,
    quant_case,
    total,
)
from validators.cases import shapes
from validators.cases.case import Case
from validators.cases.codes import QMAX, midpoints, nearest_codes, positive_values
from validators.cases.generator import Block
from validators.cases.inputs import build
from validators.cases.recipes_shapes import VECTOR, peak_column
from validators.cases.recipes_special import nonfinite_row_numbers, zero_row_numbers
from validators.cases.tensors import NormQuantInputs, QuantInputs
from validators.words import DTYPES, FP8_FORMATS


@pytest.mark.parametrize("fp8", FP8_FORMATS)
def test_own_tables_agree_with_ml_dtypes(fp8: str) -> None:
    table = decoded_table(fp8)
    positive = np.sort(table[:128][np.isfinite(table[:128])])
    assert list(positive_values(fp8)) == positive.tolist()
    values = np.linspace(-QMAX[fp8], QMAX[fp8], 4001).astype(np.float32)
    values = values[~np.isin(np.abs(values), midpoints(fp8))]
    own = nearest_codes(torch.from_numpy(values), fp8).numpy()
    assert np.array_equal(table[own], values.astype(NP_FP8[fp8]).astype(np.float64))


@pytest.mark.parametrize("fp8", FP8_FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_midpoints_holds_all_midpoints_codes_and_neighbours(fp8: str, dtype: str) -> None:
    stored = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16}[dtype]
    qmax = QMAX[fp8]
    x = quant_case("midpoints", 12, 264, fp8=fp8, dtype=dtype).x.double().numpy()
    seen: set[float] = set()
    exponents = set()
    for row, values in enumerate(x):
        top = np.abs(values).max()
        q = 224.0 if fp8 == "e4m3fnuz" and row % 4 == 3 else qmax
        for scale in (np.float32(top) * (np.float32(1) / np.float32(q)), np.float32(top) / np.float32(q)):
            assert math.frexp(float(scale))[0] == 0.5
        exponents.add(float(scale))
        if q == qmax:
            seen |= set((values / float(scale)).tolist())
    assert len(exponents) > 3
    table = decoded_table(fp8)
    positive = np.sort(table[:128][np.isfinite(table[:128])])
    middles = (positive[1:] + positive[:-1]) / 2
    assert len(middles) == {"e4m3fn": 126, "e4m3fnuz": 127}[fp8]
    up = np.nextafter(middles.astype(stored), stored(np.inf)).astype(np.float64)
    down = np.nextafter(middles.astype(stored), stored(-np.inf)).astype(np.float64)
    assert bool((up > middles).all() and (down < middles).all())
    for wanted in (positive, middles, up, down):
        assert set(wanted.tolist()) <= seen
        assert set((-wanted).tolist()) <= seen


def test_midpoints_in_the_fused_op_are_exact_sums_and_residual_ties() -> None:
    built = norm_case("midpoints", 16, 1100)
    sums = total(built)
    target = sums.bfloat16().double()
    assert torch.equal(built.weight, torch.ones_like(built.weight))
    assert 0.3 < (sums == target).double().mean().item() < 0.7
    peak = sums.abs().amax(1)
    assert torch.equal(torch.frexp(peak / 448).mantissa, torch.full_like(peak, 0.5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_residual_ties_of_both_parities_and_signs(dtype: str) -> None:
    built = norm_case("residual_ties", 8, 256, dtype=dtype)
    sums = total(built)
    stored = built.x.dtype
    toward = sums.float().to(stored)
    # For a tie the sum is as far from x as from x's neighbour on the other side.
    word = built.x.view(torch.int16)
    away = torch.where(sums.abs() > built.x.double().abs(), word + 1, word - 1).view(stored)
    tie = (sums - built.x.double()).abs() == (away.double() - sums).abs()
    assert 0.4 < tie.double().mean().item() < 0.6
    even = (word & 1) == 0
    for parity in (even, ~even):
        for sign in (sums > 0, sums < 0):
            for grows in (sums.abs() > built.x.double().abs(), sums.abs() < built.x.double().abs()):
                assert bool((tie & parity & sign & grows).any())
                assert bool((~tie & parity & sign & grows).any())
    # Rounding to even: an even x wins its ties, an odd one loses them.
    assert bool((toward == built.x)[tie & even].all())
    assert not bool((toward == built.x)[tie & ~even].any())


def fp8_nearest(t: np.ndarray, fp8: str) -> np.ndarray:
    """Round to nearest, ties to the even code, by exact midpoints: float64 values."""
    table = decoded_table(fp8)
    positive = np.sort(table[:128][np.isfinite(table[:128])])
    middles = (positive[1:] + positive[:-1]) / 2
    low = np.searchsorted(middles, np.abs(t), side="left")
    high = np.searchsorted(middles, np.abs(t), side="right")
    return np.sign(t) * positive[np.where(low % 2 == 0, low, high)]


@pytest.mark.parametrize("fp8", FP8_FORMATS)
@pytest.mark.parametrize(
    ("op", "dtype", "through", "share"),
    [
        (QUANT, "bf16", ml_dtypes.bfloat16, 0.25),
        (QUANT, "fp16", np.float16, 0.25),
        (ADD, "bf16", ml_dtypes.bfloat16, 0.25),
        (ADD, "bf16", np.float16, 0.1),
        (ADD, "fp16", np.float16, 0.1),
    ],
)
def test_double_rounding_changes_codes(op: str, dtype: str, through: type, share: float, fp8: str) -> None:
    built: Any = build(case_of(op, "double_rounding", 8, 512, dtype=dtype, fp8=fp8))
    y = total(built) * built.weight.double() if isinstance(built, NormQuantInputs) else built.x.double()
    t = (y / y.abs().amax(1, keepdim=True) * QMAX[fp8]).numpy()
    twice = fp8_nearest(t.astype(np.float32).astype(through).astype(np.float64), fp8)
    assert (fp8_nearest(t, fp8) != twice).mean() > share


def test_spike_walk_visits_ends_tail_and_upper_lanes_with_both_signs() -> None:
    x = quant_case("spike_walk", 192, 1002).x.double()
    column = x.abs().argmax(1).tolist()
    assert {0, 1001, *range(1000, 1002)} <= set(column)
    assert len({c % 64 for c in column if c % 64 >= 32}) == 32
    assert len({c // 8 % 64 for c in column if c // 8 % 64 >= 32}) == 32
    assert x.amin(1)[1::2].abs().min().item() == 1.0
    assert x.amax(1)[::2].min().item() == 1.0
    tail_signs = {row % 2 for row, c in enumerate(column) if c >= 1000}
    assert tail_signs == {0, 1}


def test_energy_walk_visits_every_block_the_partial_one_first() -> None:
    sums = total(norm_case("energy_walk", 20, 1002))
    energy = torch.nn.functional.pad(sums**2, (0, 64 * 16 - 1002)).view(20, 16, 64).sum(2)
    block = energy.argmax(1).tolist()
    assert block[0] == 15
    assert set(block) == set(range(16))
    assert bool((energy.amax(1) / energy.sum(1) > 0.999).all())


def test_crest_ladder_tells_neighbouring_rows_apart() -> None:
    sums = total(norm_case("crest_ladder", 33, 512))
    crest = sums.abs().amax(1) / sums.pow(2).mean(1).sqrt()
    ratio = crest[1:] / crest[:-1]
    assert bool((torch.maximum(ratio, 1 / ratio) > 1.5).all())


@pytest.mark.parametrize(("dtype", "rungs"), [("bf16", 48), ("fp16", 21)])
def test_magnitude_ladder_reaches_its_last_rung(dtype: str, rungs: int) -> None:
    peak = quant_case("magnitude_ladder", 48, 256, dtype=dtype).x.double().abs().amax(1)
    found = {round(math.log2(value) - math.log2(peak.max().item())) for value in peak.tolist()}
    assert min(found) == -(rungs - 1)
    assert len(found) >= rungs - 2


@pytest.mark.parametrize("fp8", FP8_FORMATS)
def test_subnormal_codes_has_subnormals_and_negative_underflow(fp8: str) -> None:
    x = quant_case("subnormal_codes", 16, 256, fp8=fp8).x.double()
    t = x / x.abs().amax(1, keepdim=True) * QMAX[fp8]
    middles = midpoints(fp8)
    subnormal = (t.abs() > middles[0]) & (t.abs() < middles[7])
    assert subnormal.double().mean().item() > 0.1
    assert ((t < 0) & (t > -middles[0])).double().mean().item() > 0.05


def test_cancellation_loses_most_of_x() -> None:
    built = norm_case("cancellation", 8, 256)
    assert (total(built).pow(2).mean() / built.x.double().pow(2).mean()).sqrt().item() < 2.0**-5


def test_zero_rows_are_zero_and_others_are_not() -> None:
    for residual in (True, False):
        built = norm_case("zero_rows", 18, 64, residual=residual)
        sums = total(built) if residual else built.x.double()
        zero = set((sums == 0).all(1).nonzero().flatten().tolist())
        assert zero == set(zero_row_numbers(18)) | ({3, 10, 17} if residual else set())
        assert bool(torch.signbit(built.x[9]).any())
    opposite = norm_case("zero_rows", 18, 64)
    assert bool((opposite.x[3] != 0).any())


@pytest.mark.parametrize("residual", [True, False])
def test_nonfinite_rows(residual: bool) -> None:
    built = norm_case("nonfinite", 12, 64, residual=residual)
    sums = total(built) if residual else built.x.double()
    all_nan, plus, minus, difference, one_nan = nonfinite_row_numbers(12)
    assert bool(sums[all_nan].isnan().all())
    assert (sums[plus] == math.inf).sum().item() == 1
    assert (sums[minus] == -math.inf).sum().item() == 1
    assert sums[one_nan].isnan().sum().item() == 1
    assert not bool(sums[difference].isfinite().all())
    assert bool(sums[difference].isnan().any()) == residual
    assert set((~sums.isfinite()).any(1).nonzero().flatten().tolist()) == {all_nan, plus, minus, difference, one_nan}
    words = built.x.view(torch.int16)[built.x.isnan()]
    assert words.unique().tolist() == [0x7FC0]


def test_overflow_sum_overflows_in_fp32_only() -> None:
    sums = total(norm_case("overflow_sum", 12, 64))
    squares = sums.float().pow(2).sum(1)
    assert bool(sums.float().isfinite().all())
    assert squares.isinf().tolist() == [row % 3 != 0 for row in range(12)]


def test_subnormal_rows_and_underflowing_scales() -> None:
    x = quant_case("subnormal_rows", 6, 64).x.double()
    tiny = torch.finfo(torch.bfloat16).tiny
    assert bool((x[::3].abs() < tiny).all() & (x[::3] != 0).any())
    assert bool((x[1::3].abs().amax(1) < 2.0**-97).all() & (x[1::3].abs().amax(1) > tiny).all())
    peak = quant_case("scale_underflow", 12, 64).x.double().abs().amax(1)
    assert ((peak / 240) < 2.0**-126).tolist() == [row % 3 != 0 for row in range(12)]
    assert bool((peak > 2.0**-126).all())
    weight = norm_case("scale_underflow", 2, 64).weight.double()
    assert weight.max().item() * 3.5 / 240 < 2.0**-126


def test_reciprocals_of_qmax_round_back_to_one() -> None:
    """Why midpoints may rely on Q * fl32(1/Q) = 1: the reciprocal is off by less than half an ulp of 1."""
    for q in (448, 240, 224):
        off = Fraction(float(np.float32(1) / np.float32(q))) * q - 1
        assert abs(off) < Fraction(1, 1 << 24)


# What deployments reach ---------------------------------------------------------------------------


@pytest.mark.parametrize("n", [*shapes.model_widths(QUANT), 1002, 8192])
def test_vector_peaks_peak_in_every_vector_once(n: int) -> None:
    """ceil(n / 8) rows: each vector of 8 columns holds one row's maximum, far above everything else in the row."""
    vectors = -(-n // VECTOR)
    block = Block(Case(QUANT, vectors, n, "vector_peaks"), 0, vectors, n)
    column = peak_column(block).flatten()
    assert sorted((column // VECTOR).tolist()) == list(range(vectors))
    if n % VECTOR == 0:
        counts = torch.bincount(column % VECTOR, minlength=VECTOR)
        assert counts.min().item() >= min(1, vectors // 64), "every lane of a vector has its turn"


@pytest.mark.parametrize("op", [ADD, QUANT])
def test_vector_peaks_leave_no_doubt_about_the_maximum(op: str) -> None:
    built = build(Case(op, 65, 520, "vector_peaks"))
    assert isinstance(built, NormQuantInputs | QuantInputs)
    x = built.x.float()
    peak = x.abs().argmax(dim=1)
    assert sorted((peak // VECTOR).tolist()) == list(range(65))
    assert torch.equal(x.gather(1, peak[:, None]).flatten(), 1.0 - 2.0 * (torch.arange(65) % 2).float())
    assert x.abs().topk(2, dim=1).values[:, 1].max().item() < 1 / 16


@pytest.mark.parametrize("n", [520, 5120])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("gemma", [False, True])
def test_checkpoint_gain_has_rows_above_the_bound_that_engines_put_on_a_scale(n: int, dtype: str, gemma: bool) -> None:
    built = norm_case("checkpoint_gain", 24, n, dtype=dtype, gemma=gemma)
    gain = built.weight.double() + gemma
    assert gain.max().item() == 63.25
    assert {15.8125, 31.625, 63.25} <= set(gain.tolist()) or n == 520
    z = total(built)
    y = z * (z.square().mean(dim=1, keepdim=True) + 1e-5).rsqrt() * gain
    amax = y.abs().amax(dim=1)
    assert amax[1::2].min().item() > 1200
    assert amax[::2].max().item() < 400


@pytest.mark.parametrize("op", [ADD, QUANT])
def test_degenerate_rows(op: str) -> None:
    built = build(Case(op, 24, 520, "degenerate_rows"))
    assert isinstance(built, NormQuantInputs | QuantInputs)
    x = built.x.float() if isinstance(built, QuantInputs) else total(built)
    assert (x[::3] != 0).sum(dim=1).unique().tolist() == [1]
    flat = x[1::3]
    assert flat.abs().unique().numel() == 1
    assert bool((flat > 0).any(dim=1).all())
    assert bool((flat < 0).any(dim=1).all())
    assert x[2::3].abs().unique().numel() > 100
