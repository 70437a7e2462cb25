"""The reference of the GEMM: the float64 sum is exact, its certificate holds, its sets are sound and tight."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import ptpc_gemm
from reference.contract import GEMM_CONTRACTS, GemmContract
from reference.formats import FORMATS, decode
from tests.support import oracle
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipe import GEMM
from validators.cases.recipes import reasons_impossible, recipe_names
from validators.cases.tensors import GemmInputs, GemmOutputs
from validators.judge.compare import compare
from validators.judge.gemm import judge_gemm
from validators.kernels import emulated_gemm
from validators.kernels.emulated_gemm import GemmVariant
from validators.records.record import Comparison
from validators.words import DTYPES, FP8_FORMATS

fp8_formats = pytest.mark.parametrize("fp8", FP8_FORMATS)
GRID = {"e4m3fn": 2.0**-18, "e4m3fnuz": 2.0**-20}
EMULATED = ("fp32", "unknown")
VARIANTS = (
    GemmVariant(),
    GemmVariant("short blocks", block=16, scale_order="channel_first"),
    GemmVariant("serial", serial=True, scale_order="product_first"),
)


def codes(rows: int, k: int, fp8: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 256, (rows, k), generator=generator, dtype=torch.uint8)
    return torch.where(decode(raw, FORMATS[fp8]).isnan(), torch.full_like(raw, 1), raw)


@fp8_formats
@pytest.mark.parametrize("k", [1, 2, 33, 128, 4096])
def test_float64_sums_are_exact_integers(fp8: str, k: int) -> None:
    a, b = codes(3, k, fp8, k), codes(4, k, fp8, k + 1)
    exact, magnitude = ptpc_gemm.exact_sums(ptpc_gemm.operand(a, FORMATS[fp8]), ptpc_gemm.operand(b, FORMATS[fp8]))
    for i, row in enumerate(a.tolist()):
        for j, column in enumerate(b.tolist()):
            assert Fraction(float(exact[i, j])) == oracle.dot(row, column, fp8)
            total = oracle.dot([c & 0x7F for c in row], [c & 0x7F for c in column], fp8)
            assert total <= Fraction(float(magnitude[i, j])) <= total * (1 + Fraction(1, 2**10))


@fp8_formats
def test_the_certificate_is_the_largest_k_whose_worst_sum_fits(fp8: str) -> None:
    """K products of max**2 are K * max**2/grid units; exact while that is at most 2**53, and no K beyond is claimed."""
    unit = Fraction(GRID[fp8])
    largest = Fraction(FORMATS[fp8].max) ** 2 / unit
    assert largest.denominator == 1
    k = ptpc_gemm.EXACT_K[fp8]
    assert k * largest <= 2**53 < (k + 1) * largest
    smallest = Fraction(FORMATS[fp8].min_subnormal) ** 2
    assert smallest == unit


@fp8_formats
def test_the_sum_is_exact_at_the_certificate(fp8: str) -> None:
    """The hardest operands at the limit: all largest but one product of the smallest, which a lost bit would show."""
    k = ptpc_gemm.EXACT_K[fp8]
    top, least = FORMATS[fp8].max_code, 1
    a = torch.full((1, k), top, dtype=torch.uint8)
    a[0, k // 3] = least
    b = torch.full((2, k), top, dtype=torch.uint8)
    b[:, k // 3] = least
    b[1, : k // 2] |= 0x80
    exact, _ = ptpc_gemm.exact_sums(ptpc_gemm.operand(a, FORMATS[fp8]), ptpc_gemm.operand(b, FORMATS[fp8]))
    for j in range(2):
        assert Fraction(float(exact[0, j])) == oracle.dot(a[0].tolist(), b[j].tolist(), fp8)


@fp8_formats
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_granularity_divides_every_value(fp8: str, data: st.DataObject) -> None:
    row = data.draw(st.lists(st.integers(0, 255).filter(lambda c: oracle.code_value(c, fp8) is not None), min_size=1))
    values = ptpc_gemm.operand(torch.tensor([row], dtype=torch.uint8), FORMATS[fp8])
    grain = Fraction(float(ptpc_gemm.granularity(values)[0]))
    exact = [oracle.present(oracle.code_value(c, fp8)) for c in row]
    assert all((v / grain).denominator == 1 for v in exact)
    if any(exact):
        assert any((v / grain) % 2 for v in exact)


def test_an_exact_sum_has_no_budget_and_one_product_more_has() -> None:
    """The certificate of exactness per output: sums of 2**24 units are exact in fp32, one unit more is not certain."""
    ones = torch.full((1, 4), 1.0, dtype=torch.float64)
    large = torch.tensor([[256.0, 256.0, 256.0, 2.0**-2]], dtype=torch.float64)
    contract = GEMM_CONTRACTS["fp32"]
    _, magnitude = ptpc_gemm.exact_sums(large, ones)
    assert float(ptpc_gemm.accumulator_error(contract, large, ones, magnitude)[0, 0]) == 0.0
    wide = torch.tensor([[2.0**8, 2.0**8, 2.0**8, 2.0**-9]], dtype=torch.float64)
    steps = torch.tensor([[2.0**8, 2.0**8, 2.0**8, 2.0**-9]], dtype=torch.float64)
    _, magnitude = ptpc_gemm.exact_sums(wide, steps)
    assert float(ptpc_gemm.accumulator_error(contract, wide, steps, magnitude)[0, 0]) > 0.0


def test_a_zero_budget_is_earned_in_every_order() -> None:
    """Where the certificate claims exactness, fp32 sums of permuted products give one value."""
    generator = torch.Generator().manual_seed(5)
    inputs = build(Case(GEMM, 8, 8, "small_integers", k=256))
    assert isinstance(inputs, GemmInputs)
    fmt = FORMATS["e4m3fn"]
    a, b = ptpc_gemm.operand(inputs.a, fmt), ptpc_gemm.operand(inputs.b, fmt)
    exact, magnitude = ptpc_gemm.exact_sums(a, b)
    free = ptpc_gemm.accumulator_error(GEMM_CONTRACTS["fp32"], a, b, magnitude) == 0
    assert bool(free.any())
    for _ in range(5):
        order = torch.randperm(256, generator=generator)
        total = torch.zeros(8, 8)
        for k in order.tolist():
            total = total + a[:, k : k + 1].float() * b[:, k].float()
        assert torch.equal(total.double()[free], exact[free])


# ---- sound


@pytest.mark.parametrize("name", EMULATED)
@fp8_formats
@pytest.mark.parametrize("dtype", DTYPES)
def test_legitimate_executions_of_every_recipe_are_admitted(name: str, fp8: str, dtype: str) -> None:
    contract = GEMM_CONTRACTS[name]
    judged = 0
    for position, recipe in enumerate(recipe_names(GEMM)):
        for bias in (False, True):
            case = Case(GEMM, 9, 20, recipe, k=176, dtype=dtype, fp8=fp8, bias=bias)
            if reasons_impossible(case):
                continue
            inputs = build(case)
            variant = VARIANTS[(position + bias) % len(VARIANTS)]
            found = compare(inputs, emulated_gemm.execute(inputs, None, contract, variant), contract)
            assert found[0].violations == 0, f"{variant.name} on {case.id}: {found[0].where}"
            judged += found[0].judged
    assert judged > 1000


def test_the_order_of_bias_and_store_is_judged_as_declared() -> None:
    """Bias after the store rounds twice: admitted where declared or free, caught where it belongs in the epilogue."""
    inputs = build(Case(GEMM, 64, 128, "gaussian", k=256, bias=True))
    after = GEMM_CONTRACTS["fp32"].replace(bias="after_store")
    outputs = emulated_gemm.execute(inputs, None, after)
    counts = {
        bias: compare(inputs, outputs, after.replace(bias=bias))[0].violations
        for bias in ("after_store", "either", "epilogue")
    }
    assert counts["after_store"] == counts["either"] == 0
    assert counts["epilogue"] > 0


# ---- tight


def judged(inputs: GemmInputs, out: torch.Tensor, contract: GemmContract) -> Comparison:
    return compare(inputs, GemmOutputs(out), contract)[0]


@fp8_formats
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_output_step_beyond_the_set_is_caught_everywhere(fp8: str, dtype: str) -> None:
    contract = GEMM_CONTRACTS["fp32"]
    inputs = build(Case(GEMM, 16, 24, "gaussian", k=128, dtype=dtype, fp8=fp8))
    assert isinstance(inputs, GemmInputs)
    truth = ptpc_gemm.gemm_truth(
        ptpc_gemm.operand(inputs.a, FORMATS[fp8]),
        ptpc_gemm.operand(inputs.b, FORMATS[fp8]),
        inputs.a_scale.flatten(),
        inputs.b_scale.flatten(),
        None,
        FORMATS[dtype],
        contract,
    )
    assert judged(inputs, truth.low.to(inputs.out_dtype), contract).violations == 0
    assert judged(inputs, truth.high.to(inputs.out_dtype), contract).violations == 0
    for end, step in ((truth.high, 1), (truth.low, -1)):
        stored = end.to(inputs.out_dtype).view(torch.int16)
        # Away from zero is one more in sign-magnitude, toward zero one less.
        moved = stored + torch.where(end > 0, step, -step).to(torch.int16)
        out = moved.view(inputs.out_dtype)
        beyond = (out.double() > truth.high) | (out.double() < truth.low)
        found = judged(inputs, out, contract)
        assert bool(beyond.all())
        assert found.violations == found.judged == out.numel()


def test_a_known_violation_is_reported_at_its_place() -> None:
    contract = GEMM_CONTRACTS["fp32"]
    inputs = build(Case(GEMM, 9, 20, "small_integers", k=64))
    assert isinstance(inputs, GemmInputs)
    outputs = emulated_gemm.execute(inputs, None, contract)
    outputs.out[7, 13] = 1234.0
    found = judged(inputs, outputs.out, contract)
    assert (found.violations, found.rows, found.cols) == (1, 1, 1)
    assert (found.worst[0].row, found.worst[0].col, found.worst[0].got) == (7, 13, 1232.0)
    outputs.out[7, 13] = torch.nan
    found = judged(inputs, outputs.out, contract)
    assert found.nonfinite == {"got_nan": 1, "unexpected": 1}


def test_nan_operands_must_give_nan_in_their_rows_only() -> None:
    inputs = build(Case(GEMM, 24, 20, "nan_row", k=64))
    assert isinstance(inputs, GemmInputs)
    contract = GEMM_CONTRACTS["fp32"]
    outputs = emulated_gemm.execute(inputs, None, contract)
    nan_rows = outputs.out.isnan().any(dim=1)
    assert 0 < int(nan_rows.sum()) < len(nan_rows)
    assert judged(inputs, outputs.out, contract).violations == 0
    for row, value in ((int(nan_rows.nonzero()[0]), 0.0), (int((~nan_rows).nonzero()[0]), torch.nan)):
        wrong = outputs.out.clone()
        wrong[row, 3] = value
        assert judged(inputs, wrong, contract).violations == 1


# ---- blocks and bias


@pytest.mark.parametrize("elements", [2**8, 2**10, 2**13])
def test_blocks_do_not_change_the_comparison(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = build(Case(GEMM, 37, 50, "gaussian", k=96))
    assert isinstance(inputs, GemmInputs)
    outputs = emulated_gemm.execute(inputs, None, GEMM_CONTRACTS["unknown"])
    outputs.out[::7, ::11] *= 1.5
    whole, whole_bias = judge_gemm(inputs, outputs, GEMM_CONTRACTS["fp32"])
    assert whole[0].violations > 0
    monkeypatch.setattr("validators.judge.gemm.BLOCK_ELEMENTS", {"cpu": elements})
    monkeypatch.setattr("validators.judge.gemm.OUTPUT_ELEMENTS", {"cpu": elements})
    blocked, blocked_bias = judge_gemm(inputs, outputs, GEMM_CONTRACTS["fp32"])
    assert [{e.row for e in c.worst} for c in blocked] == [{e.row for e in c.worst} for c in whole]
    same = ("violations", "judged", "single", "where", "rows", "cols", "ulp_histogram", "worst_use", "use_quantiles")
    for name in same:
        assert getattr(blocked[0], name) == getattr(whole[0], name), name
    assert blocked_bias.elements == whole_bias.elements


@pytest.mark.parametrize("data", ["gaussian", "late", "integers", "zero", "nan"])
def test_the_screened_granularity_changes_no_answer(data: str) -> None:
    """Leading products that rule exactness out, and those that do not, against looking at every product."""
    draw = torch.Generator().manual_seed(2)
    wide = ptpc_gemm.SCREEN_K + 64
    a, b = (torch.randint(0, 8, (n, wide), generator=draw).double() for n in (5, 7))
    if data == "gaussian":
        a = a + 2.0**-9
    elif data == "late":
        # Only the last product has a fine granularity: the leading ones promise too much.
        a[::2, -1], b[::2, -1] = 2.0**-9, 2.0**-9
    elif data == "zero":
        a[0] = 0
    elif data == "nan":
        a[1, 3] = b[2, -1] = float("nan")
    exact = a @ b.T
    grain = ptpc_gemm.granularity(a)[:, None] * ptpc_gemm.granularity(b)[None, :]
    want = exact.abs() <= 2.0**16 * grain
    got = ptpc_gemm.where_grain_allows(a, b, lambda g: exact.abs() <= 2.0**16 * g)
    assert torch.equal(got, want)
    assert bool(want.any()) == (data not in ("gaussian",))
