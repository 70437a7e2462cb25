"""The reference of norm and quantizer: against exact fractions, sound for legitimate kernels, tight for wrong ones."""

from __future__ import annotations

import dataclasses
import itertools
from fractions import Fraction

import pytest
import torch

from reference import add_rmsnorm_quant, budgets
from reference.contract import NORM_QUANT_CONTRACTS, NormQuantContract
from reference.formats import FORMATS, decode
from reference.per_token_quant import quant_truth
from reference.quantize import Row, scale_of
from reference.setting import Setting
from tests.support import oracle
from tests.support.variants import legitimate_variants
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipe import ADD, QUANT
from validators.cases.recipes import reasons_impossible, recipe_names
from validators.cases.tensors import Inputs, NormQuantInputs, NormQuantOutputs, Outputs, QuantInputs, QuantOutputs
from validators.judge.compare import compare, settled
from validators.kernels import emulated
from validators.records.record import Comparison
from validators.words import DTYPES, FP8_FORMATS

presets = pytest.mark.parametrize("name", list(NORM_QUANT_CONTRACTS))
fp8_formats = pytest.mark.parametrize("fp8", FP8_FORMATS)
storage_types = pytest.mark.parametrize("dtype", DTYPES)


def inputs_of(recipe: str, m: int = 6, n: int = 48, **options: object) -> NormQuantInputs:
    made = build(Case(ADD, m, n, recipe, **options))  # type: ignore[arg-type]
    assert isinstance(made, NormQuantInputs)
    return made


def truth(inputs: NormQuantInputs, contract: NormQuantContract) -> add_rmsnorm_quant.NormTruth:
    return add_rmsnorm_quant.norm_truth(inputs.x, inputs.residual, inputs.weight, Setting.of(inputs, contract))


# ---- against exact arithmetic


@presets
@storage_types
@pytest.mark.parametrize("recipe", ["gaussian", "magnitude_ladder", "crest_ladder", "residual_ties", "cancellation"])
def test_truth_is_exact_arithmetic(name: str, dtype: str, recipe: str) -> None:
    contract = NORM_QUANT_CONTRACTS[name]
    inputs = inputs_of(recipe, dtype=dtype)
    got = truth(inputs, contract)
    assert inputs.residual is not None
    assert got.residuals is not None
    slack = Fraction(budgets.FLOAT64_SLACK)
    for i in range(len(inputs.x)):
        row = oracle.norm_row(
            inputs.x[i],
            inputs.residual[i],
            inputs.weight,
            inputs.eps,
            norm_input=contract.norm_input,
            store=contract.store(dtype),
            storage=dtype,
        )
        assert oracle.exact(got.z[i]) == row.z
        assert oracle.exact(got.residuals.stored[i]) == row.stored
        assert Fraction(float(got.p_max[i])) == row.p_max
        low, high = row.rms
        assert low * (1 - slack) <= Fraction(float(got.rms[i])) <= high * (1 + slack)
        # The interval holds every fp32 number that the budget allows, and none beyond it.
        bound = Fraction(budgets.rms_budget(contract, len(row.z)).bound)
        step = oracle.spacing(low, oracle.GRIDS["fp32"])
        ends = Fraction(float(got.rms_low[i])), Fraction(float(got.rms_high[i]))
        assert low * (1 - bound) - slack * low <= ends[0] <= low * (1 - bound) + step
        assert high * (1 + bound) - step <= ends[1] <= high * (1 + bound) + slack * high


@presets
@fp8_formats
def test_scale_interval_is_the_budget_around_the_exact_scale(name: str, fp8: str) -> None:
    """Low and high are no nearer than the named terms demand and no further than one storage step more."""
    contract = NORM_QUANT_CONTRACTS[name]
    inputs = inputs_of("gaussian_gain", fp8=fp8)
    got, qmax = truth(inputs, contract), contract.qmax(fp8)
    terms = budgets.rms_budget(contract, inputs.x.shape[1]) + budgets.multiply_budget(contract, gemma=False)
    terms = terms + budgets.scale_step_budget(contract, qmax)
    rounded = contract.round_after_normalize or contract.round_after_weight
    for i in range(len(inputs.x)):
        exact = got.p_max[i].item() * got.rms[i].item() / qmax
        width = terms.bound + (2.0 * 2.0**-8 if rounded else 0.0)
        low, nominal, high = (float(v[i]) for v in (got.scale.low, got.scale.nominal, got.scale.high))
        assert exact * (1 - width - 2 * budgets.U) <= low <= nominal <= high <= exact * (1 + width + 2 * budgets.U)
        if not rounded:
            inner = budgets.rms_budget(contract, inputs.x.shape[1]).total_u * budgets.U
            assert low <= exact * (1 - inner)
            assert high >= exact * (1 + inner)
        assert int(got.scale.kind[i]) == int(Row.NORMAL)


@presets
@fp8_formats
@pytest.mark.parametrize("storage", ["bf16", "fp16"])
def test_scale_of_is_correct_roundings(name: str, fp8: str, storage: str) -> None:
    contract, grid = NORM_QUANT_CONTRACTS[name], oracle.GRIDS["fp32"]
    setting = Setting(contract, FORMATS[fp8], FORMATS[storage], 1)
    qmax = setting.qmax
    amax = torch.tensor([1.0, 448.0, 3.14159, 1e-3, 7e4, 0.33333334], dtype=torch.float32).double()
    for value, scale in zip(amax.tolist(), scale_of(amax, setting).tolist(), strict=True):
        if contract.scale_rule == "multiply":
            expected = oracle.rne(Fraction(value) * oracle.present(oracle.rne(1 / Fraction(qmax), grid)), grid)
        else:
            expected = oracle.rne(Fraction(value) / Fraction(qmax), grid)
        if contract.scale_floor_divisor is not None:
            least = oracle.rne(1 / (Fraction(qmax) * Fraction(contract.scale_floor_divisor)), grid)
            expected = max(oracle.present(expected), oracle.present(least))
        if contract.round_scale:
            expected = oracle.rne(oracle.present(expected), oracle.GRIDS[storage])
        assert Fraction(scale) == expected


def test_the_exact_maximum_is_found_where_fp32_products_tie() -> None:
    """Four products that round to one fp32 number: the largest of the exact ones must be taken, in any column."""
    step = 2.0**-23
    weight = torch.tensor([1 + step, 1 + 2 * step, 1.0, 1 + 3 * step])
    z = torch.tensor([[1 + 3 * step, 1 + 2 * step, 1 + 4 * step, 1 + step]])
    products = [a * b for a, b in zip(oracle.exact(z[0]), oracle.exact(weight), strict=True)]
    assert len({float(a * b) for a, b in zip(z[0], weight, strict=True)}) == 1
    assert len(set(products)) > 1
    for order in itertools.permutations(range(4)):
        index = torch.tensor(order)
        found = add_rmsnorm_quant.exact_product_max(z[:, index] * -1, weight[index])
        assert Fraction(float(found[0])) == max(products)


def test_the_exact_maximum_of_random_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(200, 33, generator=generator)
    w = torch.randn(33, generator=generator)
    expected = [float(max(abs(a * b) for a, b in zip(oracle.exact(r), oracle.exact(w), strict=True))) for r in z]
    assert add_rmsnorm_quant.exact_product_max(z, w).tolist() == expected


def test_code_bounds_hold_the_exact_quotient() -> None:
    """Nominal t of a normal row is z w Q / max|z w|, and the bounds are the code budget around it."""
    contract = NORM_QUANT_CONTRACTS["aiter-hip-gfx950"]
    inputs = inputs_of("gaussian_gain", m=4, n=32)
    got = truth(inputs, contract)
    row, col = torch.meshgrid(torch.arange(4), torch.arange(32), indexing="ij")
    row, col = row.flatten(), col.flatten()
    sets = got.codes(row, col, got.scale.nominal[row])
    nominal, low, high = sets.nominal, sets.low, sets.high
    bound = Fraction(budgets.code_budget(contract, 448.0, gemma=False).bound)
    slack = Fraction(budgets.FLOAT64_SLACK)
    for i, (r, c) in enumerate(zip(row.tolist(), col.tolist(), strict=True)):
        exact = Fraction(float(got.z[r, c])) * Fraction(float(got.weight[c])) * 448 / Fraction(float(got.p_max[r]))
        assert abs(Fraction(float(nominal[i])) - exact) <= slack * abs(exact)
        assert float(low[i]) <= float(nominal[i]) <= float(high[i])
        assert abs(Fraction(float(high[i] - low[i])) - 2 * bound * abs(exact)) <= slack * abs(exact)


# ---- sound: whatever a contract allows is admitted


@presets
@fp8_formats
@storage_types
def test_legitimate_variants_of_every_recipe_are_admitted(name: str, fp8: str, dtype: str) -> None:
    contract, variants = NORM_QUANT_CONTRACTS[name], legitimate_variants(name)
    turn = itertools.cycle(variants)
    options: tuple[dict[str, object], ...] = ({}, {"residual": False}, {"gemma": True}, {"gamma": "fp32"})
    judged = 0
    for op in (ADD, QUANT):
        for position, recipe in enumerate(recipe_names(op)):
            extra = options[position % len(options)] if op == ADD else {}
            case = Case(op, 7, 264, recipe, dtype=dtype, fp8=fp8, **extra)  # type: ignore[arg-type]
            if reasons_impossible(case):
                continue
            inputs = build(case)
            for variant in itertools.islice(turn, 4):
                found = compare(inputs, emulated.execute(inputs, None, contract, variant), contract)
                assert [(c.output, c.where) for c in found if c.violations] == [], f"{variant.name} on {case.id}"
                judged += sum(c.judged for c in found)
    assert judged > 10_000


# ---- tight: the smallest wrong step is caught


def clone(outputs: Outputs) -> Outputs:
    tensors = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in vars(outputs).items()}
    return dataclasses.replace(outputs, **tensors)


def violations(inputs: Inputs, outputs: Outputs, contract: NormQuantContract) -> dict[str, Comparison]:
    return {c.output: c for c in compare(inputs, outputs, contract)}


@presets
@fp8_formats
@storage_types
@pytest.mark.parametrize("op", [ADD, QUANT])
def test_one_code_moved_by_one_step_is_caught_where_it_had_no_choice(name: str, fp8: str, dtype: str, op: str) -> None:
    contract = NORM_QUANT_CONTRACTS[name]
    inputs = build(Case(op, 5, 136, "gaussian_gain", dtype=dtype, fp8=fp8))
    outputs = emulated.execute(inputs, None, contract)
    # Of a contract that leaves something unsettled, the member that these outputs follow; moved codes may be nearer to
    # another.
    contract = settled(inputs, outputs, contract)
    clean = violations(inputs, outputs, contract)["codes"]
    assert clean.violations == 0
    ambiguous = clean.judged - clean.single
    fmt = FORMATS[fp8]
    caught = 0
    for step in (1, -1):
        moved = clone(outputs)
        assert isinstance(moved, NormQuantOutputs | QuantOutputs)
        raw = moved.codes.view(torch.uint8)
        magnitude = (raw & 0x7F).to(torch.int16) + step
        fits = (magnitude <= fmt.max_code) & (magnitude >= 1)
        raw.copy_(torch.where(fits, (magnitude.clamp(0, 127) | (raw & 0x80).to(torch.int16)).to(torch.uint8), raw))
        found = violations(inputs, moved, contract)["codes"]
        caught += found.violations
        assert int(fits.sum()) - ambiguous <= found.violations <= int(fits.sum())
    assert caught > 0


@presets
@fp8_formats
@pytest.mark.parametrize("op", [ADD, QUANT])
def test_a_scale_beyond_its_end_by_two_ulps_is_caught(name: str, fp8: str, op: str) -> None:
    contract = NORM_QUANT_CONTRACTS[name]
    inputs = build(Case(op, 6, 136, "gaussian_gain", fp8=fp8))
    outputs = emulated.execute(inputs, None, contract)
    assert isinstance(outputs, NormQuantOutputs | QuantOutputs)
    if isinstance(inputs, NormQuantInputs):
        ends = truth(inputs, contract).scale
    else:
        assert isinstance(inputs, QuantInputs)
        ends = quant_truth(inputs.x, Setting.of(inputs, contract)).scale
    inf = torch.tensor(torch.inf)
    for end, toward in ((ends.low, -inf), (ends.high, inf)):
        outside = end.float()
        for _ in range(2):
            outside = torch.nextafter(outside, toward)
        moved = clone(outputs)
        assert isinstance(moved, NormQuantOutputs | QuantOutputs)
        moved.scale.copy_(outside.view_as(moved.scale))
        found = violations(inputs, moved, contract)
        assert found["scale"].violations == len(outside)
        # A wrong scale is reported once: the codes are then judged with the nominal one.
        assert found["codes"].violations <= outputs.codes.numel() // 50
    for row in range(len(inputs.x)):
        moved = clone(outputs)
        assert isinstance(moved, NormQuantOutputs | QuantOutputs)
        moved.scale[row] *= 1 + 2.0**-7
        one = violations(inputs, moved, contract)["scale"]
        assert (one.violations, one.worst[0].row) == (1, row)


@pytest.mark.parametrize("name", ["vllm", "eager", "unfused"])
def test_a_scale_between_the_steps_of_a_rounded_amax_is_caught(name: str) -> None:
    """Where y has the values of T, so has amax: one fp32 ulp from the scale that it gives is no scale at all."""
    contract = NORM_QUANT_CONTRACTS[name]
    inputs = build(Case(ADD, 6, 264, "gaussian_gain"))
    assert isinstance(inputs, NormQuantInputs)
    outputs = emulated.execute(inputs, None, contract)
    for step in (1, -1):
        moved = clone(outputs)
        assert isinstance(moved, NormQuantOutputs)
        moved.scale.view(torch.int32).add_(step)
        assert violations(inputs, moved, contract)["scale"].violations == len(inputs.x)


@presets
@storage_types
def test_one_residual_moved_by_one_ulp_is_caught(name: str, dtype: str) -> None:
    contract = NORM_QUANT_CONTRACTS[name]
    inputs = inputs_of("residual_ties", m=4, n=64, dtype=dtype)
    outputs = emulated.execute(inputs, None, contract)
    for step in (1, -1):
        for at in ((0, 0), (3, 63), (1, 17)):
            moved = clone(outputs)
            assert isinstance(moved, NormQuantOutputs)
            assert moved.residual_out is not None
            moved.residual_out.view(torch.int16)[at] += step
            found = violations(inputs, moved, contract)["residual_out"]
            assert found.violations == 1
            assert (found.worst[0].row, found.worst[0].col) == at


@fp8_formats
def test_special_rows_follow_the_contract(fp8: str) -> None:
    """A zero row under each of the four rules, and a NaN row where it must propagate."""
    for name in ("aiter-hip-gfx950", "aiter-triton", "vllm", "torch-compile"):
        contract = NORM_QUANT_CONTRACTS[name]
        x = torch.zeros(2, 16, dtype=torch.bfloat16)
        x[1] = 1.0
        inputs = NormQuantInputs(x, torch.zeros_like(x), torch.ones(16, dtype=torch.bfloat16), 1e-5, codes_dtype(fp8))
        got = truth(inputs, contract)
        assert int(got.scale.kind[0]) == int(Row.ZERO)
        assert float(got.scale.low[0]) <= float(got.scale.nominal[0]) <= float(got.scale.high[0])
        assert float(got.scale.nominal[0]) > 0
        outputs = emulated.execute(inputs, None, contract)
        assert all(c.violations == 0 for c in compare(inputs, outputs, contract))
        wrong = clone(outputs)
        assert isinstance(wrong, NormQuantOutputs)
        wrong.codes.view(torch.uint8)[0, 5] = 1
        wrong.scale[0] *= 2
        found = violations(inputs, wrong, contract)
        assert (found["codes"].violations, found["scale"].violations) == (1, 1)
    unfused = NORM_QUANT_CONTRACTS["unfused"]
    zero = quant_truth(torch.zeros(1, 8), Setting(unfused, FORMATS[fp8], FORMATS["bf16"], 8)).scale
    assert int(zero.kind[0]) == int(Row.UNSPECIFIED)
    eager = NORM_QUANT_CONTRACTS["eager"]
    x = torch.tensor([[1.0, torch.nan], [1.0, torch.inf]])
    nan = quant_truth(x, Setting(eager, FORMATS[fp8], FORMATS["bf16"], 2)).scale
    # NaN propagates by contract; Inf/Inf in the cast is settled by no source.
    assert nan.kind.tolist() == [int(Row.NONFINITE), int(Row.UNSPECIFIED)]


def codes_dtype(fp8: str) -> torch.dtype:
    return torch.float8_e4m3fn if fp8 == "e4m3fn" else torch.float8_e4m3fnuz


@fp8_formats
def test_the_largest_element_of_a_row_decodes_to_q(fp8: str) -> None:
    """Joint invariant of scale and codes: t of the row maximum rounds to the largest code under every variant."""
    for name, contract in NORM_QUANT_CONTRACTS.items():
        inputs = inputs_of("gaussian_gain", m=5, n=264, fp8=fp8)
        for variant in legitimate_variants(name)[::5]:
            outputs = emulated.execute(inputs, None, contract, variant)
            top = decode(outputs.codes, FORMATS[fp8]).abs().amax(dim=1)
            assert torch.equal(top, torch.full_like(top, contract.qmax(fp8)))


@presets
@pytest.mark.parametrize("gemma", [False, True])
@storage_types
def test_the_three_ends_of_y_are_those_that_are_formed_one_by_one(name: str, gemma: bool, dtype: str) -> None:
    setting = Setting(NORM_QUANT_CONTRACTS[name], FORMATS["e4m3fn"], FORMATS[dtype], 4096, gemma=gemma)
    draw = torch.Generator().manual_seed(3)
    z, w = torch.randn(2, 4096, generator=draw)
    rms = torch.rand(3, 4096, generator=draw).double()
    ends = add_rmsnorm_quant.rounded_ends(z, w, rms, setting)
    for row, direction in zip(range(3), (-1.0, 1.0, 0.0), strict=True):
        one = add_rmsnorm_quant.rounded_y(z, w, rms[row], setting, direction)
        assert torch.equal(ends[row], one)


def test_row_maxima_formed_with_another_rms_are_not_taken() -> None:
    contract = NORM_QUANT_CONTRACTS["vllm"]
    inputs = inputs_of("gaussian")
    own = truth(inputs, contract)
    square_sum = own.z.double().square().sum(-1)
    low, high = add_rmsnorm_quant.rounded_row_max(own.z, own.weight, own.rms_low, own.rms_high, own.setting)
    given = add_rmsnorm_quant.RowMax(low, high, own.scale.amax_low, own.rms_low, own.rms_high, own.rms)

    def with_rows(row_max: add_rmsnorm_quant.RowMax) -> add_rmsnorm_quant.NormTruth | None:
        return add_rmsnorm_quant.truth_of_rows(square_sum, own.p_max, own.z, own.weight, own.setting, row_max=row_max)

    same = with_rows(given)
    assert same is not None
    assert torch.equal(same.scale.low, own.scale.low)
    assert torch.equal(same.scale.high, own.scale.high)
    assert with_rows(dataclasses.replace(given, rms_low=own.rms_low * (1 - 2.0**-23))) is None
