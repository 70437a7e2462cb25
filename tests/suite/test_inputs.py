"""Inputs: same bits however they are made, layouts, and what each recipe promises to contain.

FP8 bytes are decoded with ml_dtypes, so that the input makers' own tables are not their own witness.
"""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch

from validators.cases import inputs as inputs_module
from validators.cases.case import DTYPES, FP8_FORMATS, Case, CaseError
from validators.cases.codes import QMAX, midpoints, nearest_codes, positive_values
from validators.cases.generator import GAUSSIAN_MAX
from validators.cases.inputs import batch_of, build, describe, digest
from validators.cases.recipes import lane_of, reasons_impossible, recipe_names
from validators.cases.recipes_gemm import integer_limit
from validators.cases.recipes_special import nonfinite_row_numbers, zero_row_numbers
from validators.cases.tensors import OPS, GemmInputs, Inputs, NormQuantInputs, QuantInputs

ADD, QUANT, GEMM = OPS
NP_FP8 = {"e4m3fn": ml_dtypes.float8_e4m3fn, "e4m3fnuz": ml_dtypes.float8_e4m3fnuz}


def decoded_table(fp8: str) -> np.ndarray:
    """float64 [256] values of the bytes, by ml_dtypes."""
    return np.arange(256, dtype=np.uint8).view(NP_FP8[fp8]).astype(np.float64)


def decode(codes: torch.Tensor, fp8: str) -> torch.Tensor:
    return torch.from_numpy(decoded_table(fp8))[codes.view(torch.uint8).long()]


def case_of(op: str, name: str, m: int = 24, n: int = 72, k: int = 200, **options: object) -> Case:
    return Case(op, m, n, name, k=k if op == GEMM else 0, **options)  # type: ignore[arg-type]


def norm_case(name: str, m: int, n: int, **options: object) -> NormQuantInputs:
    built = build(case_of(ADD, name, m, n, **options))
    assert isinstance(built, NormQuantInputs)
    return built


def quant_case(name: str, m: int, n: int, **options: object) -> QuantInputs:
    built = build(case_of(QUANT, name, m, n, **options))
    assert isinstance(built, QuantInputs)
    return built


def gemm_case(name: str, m: int, n: int, k: int, **options: object) -> GemmInputs:
    built = build(case_of(GEMM, name, m, n, k, **options))
    assert isinstance(built, GemmInputs)
    return built


def total(built: NormQuantInputs) -> torch.Tensor:
    """x + residual, exact in float64 for the magnitudes used here."""
    assert built.residual is not None
    return built.x.double() + built.residual.double()


def tensors(built: Inputs) -> list[torch.Tensor]:
    return [value for value in vars(built).values() if isinstance(value, torch.Tensor)]


EVERY = [
    (op, name, dtype, fp8)
    for op in OPS
    for name in recipe_names(op)
    for dtype in DTYPES
    for fp8 in FP8_FORMATS
    if reasons_impossible(case_of(op, name, dtype=dtype, fp8=fp8)) is None
]


@pytest.mark.parametrize(("op", "name", "dtype", "fp8"), EVERY)
def test_every_recipe_builds(op: str, name: str, dtype: str, fp8: str) -> None:
    case = case_of(op, name, dtype=dtype, fp8=fp8)
    built = build(case)
    stored = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    if isinstance(built, GemmInputs):
        assert built.a.shape == (24, 200)
        assert built.b.shape == (72, 200)
        assert built.a.dtype == built.b.dtype
        assert str(built.a.dtype) == f"torch.float8_{fp8}"
        assert built.out_dtype == stored
        assert built.bias is None
        for scale, rows in ((built.a_scale, 24), (built.b_scale, 72)):
            assert scale.shape == (rows, 1)
            assert scale.dtype == torch.float32
            assert bool((scale > 0).all() & scale.isfinite().all())
            assert bool((scale[1:] != scale[:-1]).all())
            mantissa = torch.frexp(scale.double()).mantissa
            if name == "odd_scales":  # exact without powers of two alone: at most 3 bits each
                assert not bool((mantissa == 0.5).all())
                assert bool((mantissa * 8 == (mantissa * 8).round()).all())
            else:
                assert bool(((mantissa == 0.5) == (lane_of(case) == "exact")).all())
        values_a, values_b = decode(built.a, fp8), decode(built.b, fp8)
        assert bool(values_b.isfinite().all())
        assert values_a.isnan().any(1).sum().item() == (1 if name == "nan_row" else 0)
        out = values_a.nan_to_num() @ values_b.T * built.a_scale.double() * built.b_scale.double().T
        assert out.abs().max().item() < torch.finfo(stored).max
        return
    assert isinstance(built, NormQuantInputs | QuantInputs)
    assert built.x.shape == (24, 72)
    assert built.x.dtype == stored
    sums = built.x.float()
    if isinstance(built, NormQuantInputs):
        assert built.residual is not None
        assert built.weight.shape == (72,)
        assert built.weight.dtype == stored
        assert bool(built.weight.isfinite().all())
        assert built.eps == 1e-5
        assert not torch.equal(built.x, built.residual) or name in ("midpoints", "subnormal_codes")
        sums = sums + built.residual.float()
    if name != "nonfinite":
        assert bool(sums.to(stored).isfinite().all())
    assert case.recipe in describe(case)


# Same bits ---------------------------------------------------------------------------------------

PINNED = {
    "add_rmsnorm_quant-m8-n130-bf16-e4m3fn-gaussian-s0": "319d988dfd7435ce",
    "add_rmsnorm_quant-m8-n130-fp16-e4m3fnuz-double_rounding-s1": "9fc5b002d3261697",
    "add_rmsnorm_quant-m7-n65-bf16-e4m3fn-gaussian_gain-gammafp32-strided-s0": "9d8ec921adb2e6eb",
    "per_token_quant-m8-n130-bf16-e4m3fn-midpoints-s0": "3593c6550b66441a",
    "per_token_quant-m8-n130-bf16-e4m3fn-nonfinite-s0": "9e57aa7c90ef0022",
    "ptpc_gemm-m8-n20-k72-bf16-e4m3fn-gaussian-bias-s0": "ca4546f38aef14a2",
    "ptpc_gemm-m8-n20-k72-fp16-e4m3fnuz-small_integers-s2": "378ede32294003f7",
}


@pytest.mark.parametrize(("case_id", "expected"), PINNED.items())
def test_known_inputs_do_not_change(case_id: str, expected: str) -> None:
    assert digest(build(Case.parse(case_id)))[:16] == expected


@pytest.mark.parametrize("op", OPS)
def test_chunks_equal_whole(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in recipe_names(op):
        case = case_of(op, name, 23, 70)
        whole = digest(build(case))
        monkeypatch.setattr(inputs_module, "CHUNK", 3 * 70)
        assert digest(build(case)) == whole, name
        monkeypatch.undo()


@pytest.mark.parametrize("op", OPS)
def test_global_state_of_torch_is_neither_read_nor_moved(op: str) -> None:
    for name in recipe_names(op):
        case = case_of(op, name)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = digest(build(case))
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        torch.set_default_dtype(torch.bfloat16)
        try:
            assert digest(build(case)) == first, name
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="compares a GPU's bits with the CPU's; this machine has no GPU"
)
@pytest.mark.parametrize("op", OPS)
def test_devices_agree(op: str) -> None:
    for name in recipe_names(op):
        case = case_of(op, name)
        assert digest(build(case, "cuda")) == digest(build(case)), name


def test_seed_and_fields_change_the_bits() -> None:
    digests = {digest(build(case_of(QUANT, "gaussian", seed=seed, fp8=fp8))) for seed in (0, 1) for fp8 in FP8_FORMATS}
    assert len(digests) == 4


def test_digest_sees_values_types_shapes_and_options_but_not_strides() -> None:
    x = torch.arange(12, dtype=torch.bfloat16).view(3, 4)
    base = QuantInputs(x, torch.float8_e4m3fn)
    wide = torch.full((3, 7), float("nan"), dtype=torch.bfloat16)
    wide[:, :4] = x
    assert digest(QuantInputs(wide[:, :4], torch.float8_e4m3fn)) == digest(base)
    changed = x.clone()
    changed[2, 3] = 11.0625
    others = [
        QuantInputs(changed, torch.float8_e4m3fn),
        QuantInputs(x.view(4, 3), torch.float8_e4m3fn),
        QuantInputs(x.view(1, 3, 4), torch.float8_e4m3fn),
        QuantInputs(x.to(torch.float16), torch.float8_e4m3fn),
        QuantInputs(x, torch.float8_e4m3fnuz),
    ]
    assert len({digest(base), *map(digest, others)}) == 1 + len(others)


# Layouts and options -----------------------------------------------------------------------------


@pytest.mark.parametrize("n", [64, 769])
def test_strided_rows_are_apart_and_the_gap_is_nan(n: int) -> None:
    built = norm_case("gaussian", 6, n, layout="strided")
    assert built.residual is not None
    assert built.x.stride(0) != built.residual.stride(0)
    for tensor in (built.x, built.residual):
        stride = tensor.stride(0)
        assert tensor.stride(1) == 1
        assert stride > n
        assert stride * tensor.element_size() % 16 == 0
        everything = tensor.as_strided((6, stride), (stride, 1))
        assert bool(everything[:, n:].isnan().all())
        assert bool(everything[:, :n].isfinite().all())


@pytest.mark.parametrize("fp8", FP8_FORMATS)
def test_strided_operands_are_apart_and_the_gap_is_nan(fp8: str) -> None:
    built = gemm_case("gaussian", 6, 10, 50, layout="strided", fp8=fp8)
    assert built.a.stride(0) != built.b.stride(0)
    for tensor, rows in ((built.a, 6), (built.b, 10)):
        stride = tensor.stride(0)
        everything = decode(tensor.view(torch.uint8).as_strided((rows, stride), (stride, 1)), fp8)
        assert bool(everything[:, 50:].isnan().all())
        assert bool(everything[:, :50].isfinite().all())


def test_three_dimensional_layout() -> None:
    assert [batch_of(m) for m in (1, 2, 6, 9, 11, 35)] == [1, 1, 2, 3, 1, 5]
    built = norm_case("gaussian", 6, 64, layout="3d")
    assert built.x.shape == (2, 3, 64)
    assert built.residual is not None
    assert built.residual.shape == (2, 3, 64)


def test_weight_options() -> None:
    fp32 = norm_case("gaussian", 2, 512, gamma="fp32").weight
    assert fp32.dtype == torch.float32
    assert bool((fp32 != fp32.bfloat16().float()).float().mean() > 0.9)
    gemma = norm_case("gaussian", 2, 512, gemma=True)
    assert gemma.gemma
    assert gemma.weight.abs().max().item() <= GAUSSIAN_MAX / 8
    assert norm_case("gaussian", 2, 8, eps="1e-6").eps == 1e-6
    assert norm_case("gaussian", 2, 8, residual=False).residual is None
    signed = norm_case("gaussian_gain", 2, 512).weight
    assert bool((signed < 0).any() & (signed > 0).any() & (signed == 0).any())
    assert bool(((signed != 0) & (signed.abs() < 2.0**-10)).any())


def test_bias_has_the_output_type_and_an_exact_one_stays_on_the_grid() -> None:
    built = gemm_case("gaussian", 4, 40, 64, bias=True, dtype="fp16")
    assert built.bias is not None
    assert built.bias.dtype == torch.float16
    assert built.bias.shape == (40,)
    assert built.bias.unique().numel() > 30
    for name in ("small_integers", "tiny_integers"):
        exact = gemm_case(name, 4, 40, 64, bias=True)
        assert exact.bias is not None
        steps = exact.bias.double().view(1, -1) / (exact.a_scale.double() * exact.b_scale.double().T)
        assert torch.equal(steps, steps.round())
        assert steps.abs().max().item() <= 512


def test_impossible_cases_are_refused() -> None:
    with pytest.raises(CaseError, match="cannot be built: overflow_sum needs bf16"):
        build(case_of(ADD, "overflow_sum", dtype="fp16"))


# What recipes promise ----------------------------------------------------------------------------


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
    built = build(case_of(op, "double_rounding", 8, 512, dtype=dtype, fp8=fp8))
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


@pytest.mark.parametrize("fp8", FP8_FORMATS)
@pytest.mark.parametrize("k", [64, 512, 5120, 16384])
def test_small_integers_fill_the_accumulator_and_never_pass_it(k: int, fp8: str) -> None:
    built = gemm_case("small_integers", 6, 6, k, fp8=fp8)
    a, b = decode(built.a, fp8), decode(built.b, fp8)
    for values in (a, b):
        assert torch.equal(values, values.round())
        assert bool((values.abs() >= 1).all())
    worst = int(a.abs().max().item() * b.abs().max().item()) * k
    assert worst + 512 < 2**24
    assert integer_limit(k, fp8) in positive_values(fp8)
    sums = a @ b.T
    if k > 64:  # at 64 the largest code, not the accumulator, is the limit
        assert sums.abs().max().item() > 2**21
    backward = torch.zeros(6, 6, dtype=torch.float32)
    for index in range(k - 1, -1, -1):
        backward += (a[:, index, None] * b[None, :, index]).float()
    assert torch.equal(backward.double(), sums)


def test_tiny_integers_stay_within_fourteen_bits() -> None:
    built = gemm_case("tiny_integers", 4, 4, 16384)
    a, b = decode(built.a, "e4m3fn"), decode(built.b, "e4m3fn")
    assert set(a.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert (a.abs() @ b.abs().T).max().item() <= 2**14


def test_one_hot_k_walks_all_of_k_or_its_tail() -> None:
    a = decode(gemm_case("one_hot_k", 300, 8, 144).a, "e4m3fn")
    assert bool(((a != 0).sum(1) == 1).all())
    assert set((a != 0).nonzero()[:, 1].tolist()) == set(range(144))
    few = gemm_case("one_hot_k", 40, 8, 144)
    columns = (decode(few.a, "e4m3fn") != 0).nonzero()[:, 1].tolist()
    assert set(range(128, 144)) <= set(columns)
    assert len(set(columns)) > 30
    b = few.b.view(torch.uint8)
    assert bool((decode(few.b, "e4m3fn") != 0).all())
    assert bool((b[:, 1:] != b[:, :-1]).all())
    columnwise = decode(gemm_case("one_hot_n", 8, 300, 144).b, "e4m3fn")
    assert set((columnwise != 0).nonzero()[:, 1].tolist()) == set(range(144))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_hot_results_are_exact_in_the_output_type(dtype: str) -> None:
    built = gemm_case("one_hot_k", 32, 32, 160, dtype=dtype)
    out = decode(built.a, "e4m3fn") @ decode(built.b, "e4m3fn").T * built.a_scale.double() * built.b_scale.double().T
    assert torch.equal(out.to(built.out_dtype).double(), out)
    assert bool((out != 0).all())


def test_adversarial_gemm_recipes_are_as_described() -> None:
    def product(name: str, **options: object) -> tuple[torch.Tensor, torch.Tensor]:
        built = gemm_case(name, 8, 12, 512, **options)
        a, b = decode(built.a, "e4m3fn"), decode(built.b, "e4m3fn")
        return a @ b.T, a.abs() @ b.abs().T

    sums, magnitudes = product("positive_mean")
    assert torch.equal(sums, magnitudes)
    sums, magnitudes = product("cancellation")
    assert (sums.abs() / magnitudes).max().item() < 2.0**-8
    assert bool((sums != 0).all())
    ladder = gemm_case("scale_ladder", 40, 40, 64)
    for scale in (ladder.a_scale, ladder.b_scale):
        assert scale.max().item() > 2.0**9
        assert scale.min().item() < 2.0**-9
        ratio = scale[1:] / scale[:-1]
        assert torch.maximum(ratio, 1 / ratio).min().item() > 2.0**6


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_scales_come_near_overflow(dtype: str) -> None:
    built = gemm_case("huge_scales", 8, 12, 512, dtype=dtype)
    out = decode(built.a, "e4m3fn") @ decode(built.b, "e4m3fn").T * built.a_scale.double() * built.b_scale.double().T
    largest = torch.finfo(built.out_dtype).max
    assert largest / 2.0**7 < out.abs().min().item()
    assert out.abs().max().item() < largest


@pytest.mark.parametrize("fp8", FP8_FORMATS)
def test_byte_recipes_use_every_finite_code(fp8: str) -> None:
    codes = gemm_case("random_bytes", 32, 8, 512, fp8=fp8).a.view(torch.uint8)
    finite = np.isfinite(decoded_table(fp8)).nonzero()[0]
    assert codes.unique().tolist() == finite.tolist()
    words = quant_case("uniform_bytes", 256, 512).x.view(torch.int16).int() >> 7 & 0xFF
    assert words.unique().numel() > 100


def test_special_gemm_rows() -> None:
    nan = decode(gemm_case("nan_row", 9, 4, 64).a, "e4m3fn")
    assert nan.isnan().nonzero().tolist() == [[4, 32]]
    built = gemm_case("zero_rows", 9, 7, 64)
    zero = (decode(built.a, "e4m3fn") == 0).all(1).nonzero().flatten().tolist()
    assert zero == [0, 4, 8]
    assert (decode(built.b, "e4m3fn") == 0).all(1).nonzero().flatten().tolist() == [3]


def test_reciprocals_of_qmax_round_back_to_one() -> None:
    """Why midpoints may rely on Q * fl32(1/Q) = 1: the reciprocal is off by less than half an ulp of 1."""
    for q in (448, 240, 224):
        off = Fraction(float(np.float32(1) / np.float32(q))) * q - 1
        assert abs(off) < Fraction(1, 1 << 24)
