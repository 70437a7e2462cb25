"""Every pair of levels is in a case of the default depth and every triple in one of the deep depth: counted here."""

from __future__ import annotations

import functools
import itertools
import json
from pathlib import Path

import pytest

from tests.support.case_inputs import ADD, GEMM, QUANT
from validators.cases import covered as covered_module
from validators.cases import shapes
from validators.cases.case import Case
from validators.cases.covered import CoveringError, covered
from validators.cases.model import LIMITS, Factor, Model, model_of, size
from validators.cases.situations import EVERY
from validators.cases.suite import cases_for
from validators.words import DEPTHS, OPS

Combination = tuple[tuple[str, str], ...]


def levels_of(model: Model, cases: list[Case]) -> list[dict[str, str]]:
    """The levels of each case with a row; by the values of its fields, of which there are few."""
    known: dict[tuple[str, object], str] = {}

    def level(factor: Factor, case: Case) -> str:
        at = (factor.name, getattr(case, factor.field))
        if at not in known:
            known[at] = factor.level(case)
        return known[at]

    return [{factor.name: level(factor, case) for factor in model.factors} for case in cases if case.m]


def held(model: Model, cases: list[Case], strength: int) -> set[Combination]:
    """Combinations of ``strength`` levels that a case has which departs in nothing else from what all kernels offer."""
    found: set[Combination] = set()
    shape = [factor.name for factor in model.shape]
    ordinary = {factor.name for factor in model.options}
    alike: dict[frozenset[str], list[dict[str, str]]] = {}
    for levels in levels_of(model, cases):
        alike.setdefault(frozenset(model.options_of(levels)), []).append(levels)
    for departs, rows in alike.items():
        rest = [*shape, *sorted(ordinary - departs)]
        for names in itertools.combinations(rest, strength - len(departs)) if len(departs) <= strength else ():
            ordered = sorted((*names, *departs))
            # By columns: one pass of zip in place of a loop over cases, of which there are 100,000.
            together = set(zip(*([levels[name] for levels in rows] for name in ordered), strict=True))
            found |= {tuple(zip(ordered, values, strict=True)) for values in together}
    return found


@functools.cache
def possible(op: str, strength: int, limit: int) -> frozenset[Combination]:
    """Combinations that some case within ``limit`` has: by trying the values of the levels."""
    model = model_of(op)
    cases = [case for options in model.departures(strength) for case in model.smallest(options, limit)]
    return frozenset(held(model, cases, strength))


def suite(model: Model, depth: str) -> list[Case]:
    """The cases of a depth that the limit does not leave out, every recipe with its levels of the shape."""
    cases = cases_for(model.op, depth=depth)
    gains = "gain" in model.by_name
    return [case for case in cases if size(case) <= LIMITS[depth] and (case.recipe.startswith(EVERY) or not gains)]


@pytest.mark.parametrize("op", [ADD, QUANT, GEMM])
def test_every_pair_that_is_possible_is_in_a_case_of_the_default_depth(op: str) -> None:
    model = model_of(op)
    wanted = possible(op, 2, LIMITS["default"])
    assert len(wanted) > 300
    assert wanted <= held(model, suite(model, "default"), 2)


@pytest.mark.parametrize("op", [QUANT, GEMM])
def test_what_no_case_can_have_is_said(op: str) -> None:
    """Every pair is either possible or has a sentence; the sentences are few, and each is looked at here."""
    model = model_of(op)
    wanted = possible(op, 2, LIMITS["default"])
    reasons = {}
    for factors in itertools.combinations(model.factors, 2):
        for pair in itertools.product(*([(f.name, level.name) for level in f.levels] for f in factors)):
            if tuple(sorted(pair)) not in wanted:
                reasons[pair] = model.impossible(dict(pair), LIMITS["default"])
    assert all(reasons.values())
    large = {pair for pair, reason in reasons.items() if reason and reason.startswith("the smallest case")}
    # Too many rows for the width, or columns for the products; everything else is arithmetic: one row is odd, a row of
    # less than a vector holds no switch.
    many, wide = {"1,025 to 65,535", "65,536 and more"}, {("columns", "1,025 and more"), ("products", "8,193 and more")}
    assert all(dict(pair).get("rows") in many or set(pair) == wide for pair in large), reasons
    rest = {frozenset(dict(pair)) for pair in reasons.keys() - large}
    assert rest == (
        {frozenset({"rows", "odd rows"}), frozenset({"width", "end of a row"})}
        if op == QUANT
        else {frozenset({"rows", "end of the rows"}), frozenset({"columns", "end of the columns"})}
        | {frozenset({"products", "end of the products"})}
    )


def test_a_combination_that_no_case_can_have_has_a_reason() -> None:
    model, limit = model_of(ADD), LIMITS["default"]
    assert model.impossible({"rows": "one", "odd rows": "even"}, limit) == "no case has rows one and odd rows even"
    assert model.impossible({"gain": "tiny", "1 + weight": "1 + weight"}, limit) is not None
    reason = model.impossible({"rows": "1,025 to 65,535", "width": "6,145 to 8,192"}, limit)
    assert reason == "the smallest case of rows 1,025 to 65,535 and width 6,145 to 8,192 has 6,298,625 elements"
    assert model.impossible({"rows": "one", "layout": "3dstrided"}, limit) is None


@pytest.mark.parametrize("op", [ADD, QUANT, GEMM])
def test_every_triple_that_is_possible_is_in_a_case_of_the_deep_depth(op: str) -> None:
    model = model_of(op)
    wanted = possible(op, 3, LIMITS["deep"])
    assert len(wanted) > 3000
    assert wanted <= held(model, suite(model, "deep"), 3)


@pytest.mark.parametrize("op", [ADD, QUANT, GEMM])
def test_a_missing_case_would_be_seen(op: str) -> None:
    """The counts above can fail: without one of the cases that the file adds, some pair is not held."""
    model = model_of(op)
    cases = suite(model, "default")
    every = held(model, cases, 2)
    alone = list(covered(op, "default", "bf16", "e4m3fn"))[::9]
    assert any(held(model, [c for c in cases if c != case], 2) < every for case in alone)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("fp8", ["e4m3fn", "e4m3fnuz"])
def test_the_cases_are_those_of_the_types_asked_for(op: str, fp8: str) -> None:
    for depth in DEPTHS:
        cases = list(covered(op, depth, "fp16", fp8))
        assert len({case.id for case in cases}) == len(cases)
        assert sum(case.fp8 == fp8 and case.dtype == "fp16" for case in cases) > len(cases) / 2
        assert {case.recipe for case in cases} <= {case.recipe for case in cases_for(op)}


@pytest.mark.parametrize("op", [ADD, QUANT])
def test_every_width_of_the_model_meets_every_class_of_input(op: str) -> None:
    listed = {(c.m, c.n) for c in cases_for(op) if c.recipe == EVERY and c.layout == "contiguous"}
    assert {(80, n) for n in shapes.model_widths(op)} <= listed


@pytest.mark.parametrize("op", [ADD, QUANT, GEMM])
def test_every_range_of_sizes_that_is_a_half_long_has_a_case(op: str) -> None:
    cases = [case for case in cases_for(op) if case.recipe.startswith(EVERY) or op == GEMM]
    for field in ("m", "n", "k") if op == GEMM else ("m", "n"):
        sizes = sorted({getattr(case, field) for case in cases if case.m and getattr(case, field) <= 8192} - {0})
        for low, high in itertools.pairwise(value for value in sizes if value >= 9):
            assert high <= -(-low * 3 // 2), (field, low, high)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 9, "cases": {}}'])
def test_a_file_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "covering.json"
    path.write_text(content)
    monkeypatch.setattr(covered_module, "TABLE", path)
    covered_module._load.cache_clear()
    try:
        with pytest.raises(CoveringError) as error:
            list(covered(QUANT, "default", "bf16", "e4m3fn"))
    finally:
        covered_module._load.cache_clear()
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_file_holds_ids_that_parse_back() -> None:
    data = json.loads(covered_module.TABLE.read_text())
    assert set(data["cases"]) == {ADD, QUANT, GEMM}
    for op, depths in data["cases"].items():
        assert set(depths) == set(DEPTHS)
        assert set(depths["smoke"]) <= set(depths["default"])
        for case in covered(op, "deep", "bf16", "e4m3fn"):
            assert Case.parse(case.id) == case
