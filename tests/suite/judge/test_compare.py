"""The comparison: its screen proves nothing that the exact judgement would not, and chunks do not show."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from reference.contract import GEMM_CONTRACTS, NORM_QUANT_CONTRACTS
from reference.formats import FORMATS, code_preimages, decode, encode
from tests.support.child import python
from tests.zoo import all_defects
from validators.calls.buffers import make_buffers
from validators.cases.case import Case
from validators.cases.inputs import build
from validators.cases.recipe import ADD, QUANT
from validators.cases.tensors import GemmOutputs, NormQuantOutputs, Outputs, QuantOutputs
from validators.judge import sets
from validators.judge.codes import screen_tables
from validators.judge.compare import CompareError, admits_all, compare
from validators.judge.tally import runs_in_words, where_in_words
from validators.kernels import emulated
from validators.records.record import Comparison

ROOT = Path(__file__).resolve().parents[3]
presets = pytest.mark.parametrize("name", list(NORM_QUANT_CONTRACTS))


def nothing_proven(y: torch.Tensor, *rest: object) -> torch.Tensor:
    return torch.zeros(y.shape, dtype=torch.bool, device=y.device)


def without_use(found: Comparison) -> Comparison:
    """What the screen must not change; it leaves out the error of elements that it proves, so budget shares differ."""
    return dataclasses.replace(found, use_quantiles={}, worst_use_passing=0.0, worst_use=0.0)


def damaged(outputs: Outputs) -> Outputs:
    """Codes moved by one step here and there, a wrong scale, a wrong residual."""
    assert isinstance(outputs, NormQuantOutputs | QuantOutputs)
    codes = outputs.codes.view(torch.uint8).view(-1, outputs.codes.shape[-1])
    codes[1, ::7] ^= 1
    codes[-1, 3:9] = 0
    outputs.scale.view(-1)[2] *= 1.0 + 2.0**-12
    if isinstance(outputs, NormQuantOutputs) and outputs.residual_out is not None:
        outputs.residual_out.view(torch.int16)[0, 5] ^= 1
    return outputs


@presets
@pytest.mark.parametrize("fp8", ["e4m3fn", "e4m3fnuz"])
@pytest.mark.parametrize("recipe", ["gaussian_gain", "midpoints", "zero_rows", "magnitude_ladder", "nonfinite"])
@pytest.mark.parametrize("op", [ADD, QUANT])
def test_the_screen_changes_no_judgement(
    name: str, fp8: str, recipe: str, op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    contract = NORM_QUANT_CONTRACTS[name]
    inputs = build(Case(op, 8, 136, recipe, fp8=fp8))
    for outputs in (emulated.execute(inputs, None, contract), damaged(emulated.execute(inputs, None, contract))):
        with_screen = compare(inputs, outputs, contract)
        with monkeypatch.context() as patch:
            patch.setattr("validators.judge.codes._screen", nothing_proven)
            resolved = compare(inputs, outputs, contract)
        # As text: the distance of a NaN code is NaN, which equals nothing.
        assert [repr(without_use(c)) for c in with_screen] == [repr(without_use(c)) for c in resolved]
        for screened, full in zip(with_screen, resolved, strict=True):
            assert screened.worst_use == full.worst_use or not screened.violations
            assert screened.worst_use_passing <= full.worst_use_passing


@pytest.mark.parametrize("op", [ADD, QUANT])
@pytest.mark.parametrize("followed", ["eager", "vllm", "unfused", "aiter-hip-gfx942"])
def test_the_question_whether_a_contract_admits_all_is_answered_as_the_comparison_does(op: str, followed: str) -> None:
    answers = []
    for recipe in ("gaussian_gain", "zero_rows", "nonfinite"):
        inputs = build(Case(op, 8, 136, recipe))
        right = emulated.execute(inputs, None, NORM_QUANT_CONTRACTS[followed])
        for outputs in (right, damaged(emulated.execute(inputs, None, NORM_QUANT_CONTRACTS[followed]))):
            for contract in NORM_QUANT_CONTRACTS.values():
                violations = sum(c.violations for c in compare(inputs, outputs, contract))
                answers.append(admits_all(inputs, outputs, contract))
                assert answers[-1] == (violations == 0), (recipe, contract.name)
    assert {True, False} == set(answers)


@pytest.mark.parametrize("op", [ADD, QUANT])
def test_the_screen_is_worth_having(op: str) -> None:
    """It must prove nearly all elements of an ordinary case, or a verdict would cost what the exact judgement costs."""
    inputs: Any = build(Case(op, 64, 1024, "gaussian"))
    contract = NORM_QUANT_CONTRACTS["aiter-hip-gfx950"]
    outputs = emulated.execute(inputs, None, contract)
    asked = []

    def count(tally: object, first: int, row: torch.Tensor, *rest: object) -> None:
        asked.append(row.numel())

    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr("validators.judge.codes.resolve", count)
        compare(inputs, outputs, contract)
    # Half a percent of bf16 values are exact midpoints of some row and always need the exact judgement.
    assert sum(asked) < inputs.x.numel() // 100


@pytest.mark.parametrize("fp8", ["e4m3fn", "e4m3fnuz"])
@pytest.mark.parametrize("overflow", ["saturate", "nan"])
def test_screen_tables_lie_inside_the_preimages(fp8: str, overflow: str) -> None:
    """Every fp32 t that a table admits still rounds to the code after an error of the bound plus the slack."""
    contract = NORM_QUANT_CONTRACTS["vllm"].replace(overflow=overflow)
    fmt, bound = FORMATS[fp8], 9 * 2.0**-24
    low, high = screen_tables(fmt, contract.overflow, bound, torch.device("cpu"))
    outer = code_preimages(fmt, contract.overflow)
    for code in range(256):
        if not bool(low[code] <= high[code]):
            continue
        for end in (low[code], high[code]):
            if not bool(end.isfinite()):
                assert overflow == "saturate"
                continue
            for error in (-bound, bound):
                t = end.double() * (1 + error)
                assert outer[0][code] <= t <= outer[1][code]
                assert float(decode(encode(t[None], fmt, contract.overflow), fmt)) == float(
                    decode(torch.tensor([code], dtype=torch.uint8), fmt)
                )


@pytest.mark.parametrize("rows", [1, 3, 7, 64])
@pytest.mark.parametrize("name", ["aiter-hip-gfx950", "vllm", "eager"])
@pytest.mark.parametrize("op", [ADD, QUANT])
def test_chunks_do_not_show(rows: int, name: str, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    contract = NORM_QUANT_CONTRACTS[name]
    for recipe in ("gaussian_gain", "nonfinite"):
        inputs = build(Case(op, 19, 136, recipe))
        outputs = damaged(emulated.execute(inputs, None, contract))
        whole = compare(inputs, outputs, contract)
        with monkeypatch.context() as patch:
            patch.setattr(sets, "ELEMENTS", {"cpu": rows * inputs.width})
            chunked = compare(inputs, outputs, contract)
        for one, other in zip(whole, chunked, strict=True):
            # Among equally bad elements the ones kept depend on the chunks, and so does the text of what was seen.
            assert dataclasses.replace(one, worst=(), observed="") == dataclasses.replace(other, worst=(), observed="")
            if all(e.budget > 0 for e in one.worst):
                assert [repr(e) for e in one.worst] == [repr(e) for e in other.worst]
            assert len(one.worst) == len(other.worst)


def test_the_worst_elements_come_first_whatever_the_rows() -> None:
    inputs = build(Case(ADD, 12, 136, "gaussian"))
    contract = NORM_QUANT_CONTRACTS["aiter-hip-gfx950"]
    outputs = emulated.execute(inputs, None, contract)
    assert isinstance(outputs, NormQuantOutputs)
    factors = {3: 1.001, 7: 1.5, 1: 1.01, 10: 2.0, 0: 1.1, 5: 1.0001, 8: 1.2}
    for row, factor in factors.items():
        outputs.scale[row] *= factor
    found = {c.output: c for c in compare(inputs, outputs, contract)}["scale"]
    assert [e.row for e in found.worst] == sorted(factors, key=lambda r: -factors[r])[: len(found.worst)]
    assert found.violations == len(factors)
    assert found.where == "7 of 12 rows"
    assert found.worst_use == found.worst[0].err / found.worst[0].budget


def test_rows_without_a_rule_are_counted_and_described_not_judged() -> None:
    inputs = build(Case(ADD, 24, 136, "nonfinite"))
    loose = NORM_QUANT_CONTRACTS["aiter-hip-gfx950"]
    outputs = emulated.execute(inputs, None, loose)
    assert isinstance(outputs, NormQuantOutputs)
    by_output = {c.output: c for c in compare(inputs, outputs, loose)}
    for c in by_output.values():
        assert c.elements == c.judged + c.unspecified
        assert c.violations == 0
    assert by_output["scale"].unspecified > 0
    assert by_output["codes"].unspecified == by_output["scale"].unspecified * 136
    assert "NaN or Inf in the row" in by_output["scale"].observed
    assert "most frequent codes 0x" in by_output["codes"].observed
    strict = NORM_QUANT_CONTRACTS["eager"]
    clean = {c.output: c for c in compare(inputs, emulated.execute(inputs, None, strict), strict)}
    assert clean["codes"].violations == clean["scale"].violations == 0
    # Where NaN must propagate, a kernel that launders it is caught, and the table says what is missing.
    laundered = {c.output: c for c in compare(inputs, outputs, strict)}
    assert laundered["codes"].nonfinite["missing"] > 0
    assert laundered["scale"].nonfinite["missing"] > 0


def test_a_nan_in_one_row_is_one_violation_and_hides_nothing() -> None:
    inputs = build(Case(ADD, 6, 136, "gaussian"))
    contract = NORM_QUANT_CONTRACTS["aiter-hip-gfx950"]
    outputs = emulated.execute(inputs, None, contract)
    assert isinstance(outputs, NormQuantOutputs)
    outputs.scale[2] = math.nan
    outputs.scale[4] *= 3
    outputs.codes.view(torch.uint8)[3, 9] = 0x7F
    found = {c.output: c for c in compare(inputs, outputs, contract)}
    assert found["scale"].violations == 2
    assert {e.row for e in found["scale"].worst} == {2, 4}
    assert found["scale"].nonfinite == {"got_nan": 1, "unexpected": 1}
    assert (found["codes"].violations, found["codes"].worst[0].row, found["codes"].worst[0].col) == (1, 3, 9)


@pytest.mark.parametrize("layout", ["contiguous", "strided", "3d"])
def test_layouts_are_judged_alike(layout: str) -> None:
    inputs = build(Case(ADD, 12, 136, "gaussian_gain", layout=layout))  # type: ignore[arg-type]
    contract = NORM_QUANT_CONTRACTS["aiter-hip-gfx950"]
    outputs = emulated.execute(inputs, make_buffers(inputs, poison=0x7F).outputs, contract)
    found = compare(inputs, outputs, contract)
    assert [(c.violations, c.judged) for c in found] == [(0, 12 * 136), (0, 12), (0, 12 * 136)]


def test_what_does_not_belong_together_is_refused() -> None:
    norm, gemm = build(Case(ADD, 2, 16, "gaussian")), build(Case("ptpc_gemm", 2, 16, "gaussian", k=16))
    out = GemmOutputs(torch.zeros(2, 16, dtype=torch.bfloat16))
    with pytest.raises(CompareError, match="contract 'fp32' does not belong to op add_rmsnorm_quant"):
        compare(norm, out, GEMM_CONTRACTS["fp32"])
    with pytest.raises(CompareError, match="contract 'vllm' does not belong to op ptpc_gemm"):
        compare(gemm, out, NORM_QUANT_CONTRACTS["vllm"])
    with pytest.raises(CompareError, match="outputs of type GemmOutputs do not belong to NormQuantInputs"):
        compare(norm, out, NORM_QUANT_CONTRACTS["vllm"])


def test_where_in_words() -> None:
    def counts(shape: tuple[int, int], points: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        mask = torch.zeros(shape, dtype=torch.int64)
        for point in points:
            mask[point] = 1
        return mask.sum(dim=1), mask.sum(dim=0)

    assert where_in_words(*counts((8, 8), [(3, 5)])).startswith("row 3, column 5")
    assert where_in_words(*counts((8, 4), [(3, c) for c in range(4)])).startswith("row 3, every column")
    assert where_in_words(*counts((8, 8), [(r, 7) for r in range(2, 6)])).startswith("rows 2 to 5, column 7")
    assert where_in_words(*counts((9, 2), [(r, 0) for r in (0, 4, 8)])).startswith("every 4th row from 0, column 0")
    assert runs_in_words([], "row") == ""
    assert runs_in_words([1, 2, 9], "row") == "rows 1, 2, 9"


def test_a_defect_of_every_kind_ends_as_a_violation_of_the_right_output() -> None:
    """Residual, scale and codes are separate comparisons: a defect of one must not be reported as another."""
    expected = {"N04": {"residual_out"}, "N07": {"scale"}, "Q22": {"scale"}, "Q15": {"codes"}, "Q18": {"codes"}}
    for defect in all_defects():
        if defect.id not in expected:
            continue
        inputs = build(Case.parse(defect.reveals[0]))
        outputs = defect.kernel.call(inputs, make_buffers(inputs, poison=0x7F).outputs)
        contract = NORM_QUANT_CONTRACTS[str(defect.kernel.contract)]
        assert {c.output for c in compare(inputs, outputs, contract) if c.violations} == expected[defect.id], defect.id


MEMORY = """
import resource, sys, torch
torch.set_num_threads(1)
from reference.contract import NORM_QUANT_CONTRACTS
from validators.cases.tensors import NormQuantInputs, NormQuantOutputs
from validators.judge.compare import compare
most, n = 2048, 5120
x = torch.randn(256, n).to(torch.bfloat16).repeat(most // 256, 1)
weight, total = torch.ones(n, dtype=torch.bfloat16), x + x
codes, scale = torch.zeros(most, n, dtype=torch.uint8).view(torch.float8_e4m3fn), torch.ones(most, 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for m in (512, most):
    inputs = NormQuantInputs(x[:m], x[:m], weight, 1e-5, torch.float8_e4m3fn)
    found = compare(inputs, NormQuantOutputs(codes[:m], scale[:m], total[:m]), NORM_QUANT_CONTRACTS[sys.argv[1]])
    assert found[1].violations == m
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss counts KiB on Linux only")
@pytest.mark.parametrize("name", ["aiter-hip-gfx950", "vllm"])
def test_extra_memory_stays_flat(name: str) -> None:
    """Peak resident memory of a comparison beyond its operands, for 512 and then 2,048 rows, every one with a wrong
    scale. The peak of a process never falls: what the second adds is what more rows cost."""
    done = python("-c", MEMORY, name)
    assert done.returncode == 0, done.stderr[-2000:]
    extra = [int(line) / 1024 for line in done.stdout.split()]
    assert len(extra) == 2
    assert max(extra) <= 512, f"{extra} MiB"
    # Four times the rows must not cost more than the counters and indices of one chunk and some allocator noise.
    assert extra[1] <= extra[0] + 128, f"{extra} MiB"
