"""Goldens of the reference and of the input generator: what may move, and that a moved truth is noticed."""

from __future__ import annotations

import math

import pytest
import torch

from golden import sets, truth
from golden.check import check_row
from golden.commit import Entry
from golden.outcome import State
from golden.propose import truth_entry, why_refused
from golden.sets import Marked
from reference import add_rmsnorm_quant, ptpc_gemm, static_quant
from reference.contract import NORM_QUANT_CONTRACTS, presets
from reference.quantize import Codes
from validators.cases.case import Case
from validators.cases.generator import Block
from validators.cases.recipe import ADD
from validators.cases.recipe import GEMM as PTPC
from validators.cases.recipe import QUANT as PER_TOKEN
from validators.cases.recipes import recipe_names
from validators.words import FP8_FORMATS, OPS

STATIC = "static_quant"
NORM, QUANT, GEMM, GIVEN = (
    next(c for c in sets.REFERENCE_CASES if c.startswith(op)) for op in (ADD, PER_TOKEN, PTPC, STATIC)
)


def _golden(case: str, kind: str = "reference") -> Entry:
    return truth_entry(Marked(kind, None, None, case))


def _sentence(golden: Entry) -> str:
    """What a check of the golden says now; empty if it is as accepted."""
    outcome = check_row(golden.row, golden.tensors)
    assert outcome.state is (State.FAILED if outcome.sentence else State.UNCHANGED)
    return outcome.sentence


def test_the_cases_cover_every_op_contract_and_format() -> None:
    cases = [Case.parse(case) for case in sets.REFERENCE_CASES]
    assert {(c.op, c.fp8) for c in cases} == {(op, fp8) for op in OPS for fp8 in FP8_FORMATS}
    judged = {(c.op, name.split("/")[0]) for c in cases for name in truth.compute(c)}
    assert judged == {(op, name) for op in OPS for name in presets(op)}


def test_the_cases_are_narrow_enough_for_the_bound() -> None:
    """The derivation of SUM_ORDER: (n - 1 + 12) 2**-53."""
    assert (truth.WIDEST - 1 + 12) * 2.0**-53 <= truth.SUM_ORDER
    assert all(Case.parse(case).n <= truth.WIDEST for case in sets.REFERENCE_CASES)


def test_another_order_of_the_sum_of_squares_is_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another BLAS does: the float64 sum of squares from the other end."""
    goldens = [_golden(case) for case in sets.REFERENCE_CASES if case.startswith("add_rmsnorm_quant")]

    forwards = torch.linalg.vector_norm

    def backwards(z: torch.Tensor, ord: float = 2, dim: int = -1, dtype: torch.dtype | None = None) -> torch.Tensor:
        if ord != 2 or dtype is None:
            return forwards(z, ord=ord, dim=dim, dtype=dtype)
        total = torch.zeros(z.shape[0], dtype=dtype)
        for column in z.to(dtype).flip(dim).unbind(dim):
            total = total + column * column
        return total.sqrt()

    before = [golden.tensors["vllm/rms"].data for golden in goldens]
    monkeypatch.setattr(torch.linalg, "vector_norm", backwards)
    after = [_golden(golden.row.case).tensors["vllm/rms"].data for golden in goldens]
    assert before != after, "the other order gave the same bits, so this shows nothing"
    assert [_sentence(golden) for golden in goldens] == [""] * len(goldens)


@pytest.mark.parametrize(
    ("name", "module", "function", "change"),
    [
        ("rms", add_rmsnorm_quant, "norm_truth", lambda t: t.rms.mul_(1 + 2.0**-45)),
        ("p_max", add_rmsnorm_quant, "norm_truth", lambda t: t.p_max.mul_(1 + 2.0**-45)),
        ("scale_low", add_rmsnorm_quant, "norm_truth", lambda t: t.scale.low.mul_(1 - 2.0**-52)),
        ("kind", add_rmsnorm_quant, "norm_truth", lambda t: t.scale.kind.add_(1)),
        ("residual", add_rmsnorm_quant, "norm_truth", lambda t: t.residuals.stored.neg_()),
        ("sum", ptpc_gemm, "truth_of", lambda t: t.accumulator.mul_(1 + 2.0**-52)),
        ("high", ptpc_gemm, "truth_of", lambda t: t.high.mul_(1 + 2.0**-8)),
        ("declared_magnitude", ptpc_gemm, "truth_of", lambda t: t.magnitude.mul_(1 + 2.0**-9)),
        ("declared_magnitude", ptpc_gemm, "truth_of", lambda t: t.magnitude.mul_(1 - 2.0**-14)),
    ],
)
def test_a_moved_value_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, module: object, function: str, change: object
) -> None:
    golden = _golden(NORM if function == "norm_truth" else GEMM)
    assert _sentence(golden) == ""
    original = getattr(truth, function)

    def moved(*args: object, **kwargs: object) -> object:
        found = original(*args, **kwargs)
        change(found)  # type: ignore[operator]
        return found

    monkeypatch.setattr(truth, function, moved)
    assert f"/{name}: " in _sentence(golden)
    assert getattr(module, function) is original


@pytest.mark.parametrize("case", [NORM, QUANT])
def test_a_moved_end_of_the_admissible_codes_is_named(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    golden = _golden(case)
    encoded = Codes.encoded

    def up(sets: Codes, t: torch.Tensor) -> torch.Tensor:
        codes = encoded(sets, t)
        codes[3] ^= 1
        return codes

    monkeypatch.setattr(Codes, "encoded", up)
    assert "/codes_low: 1 of 1,152 values moved, the first at (0, 3)" in _sentence(golden)


def test_a_moved_set_of_the_static_quantizer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = _golden(GIVEN)
    assert _sentence(golden) == ""
    quotients = static_quant.quotients

    def up(x: torch.Tensor, scale: float, contract: object) -> tuple[torch.Tensor, ...]:
        return tuple(t * (1 + 2.0**-24) for t in quotients(x, scale, contract))  # type: ignore[arg-type]

    monkeypatch.setattr(static_quant, "quotients", up)
    assert "vllm-native/codes_high: 110 of 1,152 values moved" in _sentence(golden)
    monkeypatch.setattr(static_quant, "quotients", quotients)
    monkeypatch.setattr(static_quant, "SCALES", (2.0**-100, 1.0))
    assert "vllm/unspecified: 1,152 of 1,152 values moved" in _sentence(golden)


def test_a_reference_that_raises_fails_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = _golden(GEMM)

    def broken(*args: object) -> None:
        raise KeyError("no such unit")

    monkeypatch.setattr(truth, "truth_of", broken)
    assert _sentence(golden) == "the reference raised KeyError: 'no such unit'"
    assert why_refused(golden.row, golden.tensors) == "the reference raised KeyError: 'no such unit'"


def test_a_contract_that_came_or_went_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = _golden(QUANT)
    fewer = {name: c for name, c in NORM_QUANT_CONTRACTS.items() if name != "vllm"}
    monkeypatch.setattr(truth, "presets", lambda op: fewer)
    assert "vllm/scale is no longer computed" in _sentence(golden)
    monkeypatch.setattr(truth, "presets", lambda op: {**NORM_QUANT_CONTRACTS, "x": CONTRACT})
    assert "x/scale is new" in _sentence(golden)


CONTRACT = NORM_QUANT_CONTRACTS["eager"].replace(name="x")


@pytest.mark.parametrize(
    ("before", "after", "close", "exact"),
    [
        (1.0, 1.0 + 2.0**-47, False, True),
        (1.0, 1.0 + 2.0**-46, True, True),
        (math.nan, math.nan, False, False),
        (math.nan, 1.0, True, True),
        (math.inf, math.inf, False, False),
        (math.inf, 1e308, True, True),
        (0.0, -0.0, False, True),
        (0.0, 5e-324, True, True),
    ],
)
def test_what_counts_as_moved(before: float, after: float, close: bool, exact: bool) -> None:
    pair = torch.tensor([before], dtype=torch.float64), torch.tensor([after], dtype=torch.float64)
    assert bool(truth._moved(*pair, exact=False)) is close
    assert bool(truth._moved(*pair, exact=True)) is exact


def test_the_input_goldens_cover_every_recipe() -> None:
    cases = [Case.parse(m.case) for m in sets.marked_truth() if m.kind == "inputs"]
    assert {(case.op, case.recipe) for case in cases} == {(op, name) for op in OPS for name in recipe_names(op)}
    assert {case.layout for case in cases} == {"contiguous", "strided", "3d"}
    assert {(case.dtype, case.fp8) for case in cases} == {("bf16", "e4m3fn"), ("fp16", "e4m3fnuz")}


def test_one_changed_bit_of_the_generator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    golden = _golden("per_token_quant-m24-n520-bf16-e4m3fn-gaussian-s0", kind="inputs")
    assert _sentence(golden) == ""
    gaussian = Block.gaussian

    def changed(self: Block, *args: object, **kwargs: object) -> torch.Tensor:
        values = gaussian(self, *args, **kwargs).clone()  # type: ignore[arg-type]
        # One unit of bf16 in one element: fp32's low bits would be rounded away.
        values.view(-1).view(torch.int32)[17] ^= 1 << 16
        return values

    monkeypatch.setattr(Block, "gaussian", changed)
    assert "the input generator makes other bits" in _sentence(golden)
