"""Cases: ids, recipes, shapes and the suites built from them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from validators.cases import shapes
from validators.cases.case import Case, CaseError
from validators.cases.inputs import describe
from validators.cases.recipe import ADD, GEMM, QUANT
from validators.cases.recipes import lane_of, reasons_impossible, recipe_info, recipe_names
from validators.cases.suite import cases_for, find
from validators.words import DEPTHS, DTYPES, FP8_FORMATS, LANES, OPS


@st.composite
def cases(draw: st.DrawFn) -> Case:
    op = draw(st.sampled_from(OPS))
    size, rows = st.integers(1, 1 << 20), st.integers(0, 1 << 20)
    options: dict[str, object] = {}
    if op == ADD:
        options = {
            "residual": draw(st.booleans()),
            "gamma": draw(st.sampled_from(["T", "fp32"])),
            "gemma": draw(st.booleans()),
            "eps": draw(st.sampled_from(["1e-5", "1e-6", "0", "1.5e-12", "0.001"])),
        }
    if op == GEMM:
        options = {"k": draw(size), "bias": draw(st.booleans())}
    return Case(
        op,
        draw(rows),
        draw(size),
        draw(st.sampled_from(recipe_names(op))),
        dtype=draw(st.sampled_from(DTYPES)),
        fp8=draw(st.sampled_from(FP8_FORMATS)),
        seed=draw(st.integers(0, 1 << 30)),
        layout=draw(st.sampled_from(["contiguous", "strided", "3d", "3dstrided"])),
        **options,  # type: ignore[arg-type]
    )


@given(cases())
@settings(max_examples=200, deadline=None)
def test_id_parses_back_to_its_case(case: Case) -> None:
    assert Case.parse(case.id) == case


@given(cases(), cases())
@settings(max_examples=200, deadline=None)
def test_different_cases_have_different_ids(one: Case, other: Case) -> None:
    assert (one.id == other.id) == (one == other)


@pytest.mark.parametrize(
    "text", ["", "gaussian", "per_token_quant-m4-n8-bf16-e4m3fn-gaussian", "x-m1-n1-bf16-e4m3fn-a-s0"]
)
def test_text_that_is_no_id_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(CaseError) as caught:
        find([text])
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize("op", OPS)
def test_every_recipe_states_lane_and_defects(op: str) -> None:
    lanes = set()
    for name in recipe_names(op):
        info = recipe_info(name, op)
        assert info.name == name
        assert op in info.ops
        assert info.lane in LANES
        assert len(info.reveals.split()) >= 3
        lanes.add(info.lane)
    # A norm has no input whose every intermediate is exact, so only the fused op lacks the exact lane.
    assert lanes == set(LANES) - ({"exact"} if op == ADD else set())


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (Case(ADD, 8, 64, "overflow_sum", dtype="fp16"), "bf16"),
        (Case(ADD, 8, 64, "residual_ties", residual=False), "residual"),
        (Case(ADD, 8, 64, "scale_underflow", gemma=True), "gain"),
        (Case(ADD, 6, 64, "nonfinite"), "7 rows"),
        (Case(ADD, 8, 64, "gaussian", bias=True), "no bias"),
        (Case(QUANT, 8, 64, "gaussian", gemma=True), "weight"),
        (Case(QUANT, 8, 64, "gaussian", eps="1e-6"), "eps"),
        (Case(GEMM, 8, 64, "gaussian", k=64, layout="3d"), "two-dimensional"),
        (Case(GEMM, 8, 64, "tiny_integers", k=16385), "16384"),
        (Case(GEMM, 1, 64, "nan_row", k=64), "2 rows"),
    ],
)
def test_impossible_cases_say_why(case: Case, words: str) -> None:
    reason = reasons_impossible(case)
    assert reason is not None
    assert words in reason
    with pytest.raises(CaseError, match="cannot be built"):
        find([case.id])


def test_find_returns_the_cases_in_order_and_names_unknown_recipes() -> None:
    ids = [case.id for case in cases_for(QUANT, depth="smoke")][::-1]
    assert [case.id for case in find(ids)] == ids
    with pytest.raises(CaseError, match="unknown recipe 'energy_walk' for op per_token_quant; known: gaussian"):
        find(["per_token_quant-m8-n64-bf16-e4m3fn-energy_walk-s0"])
    with pytest.raises(CaseError, match="write per_token_quant-m8-n64-bf16-e4m3fn-gaussian-s0"):
        find(["per_token_quant-m08-n64-bf16-e4m3fn-gaussian-s0"])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fp8", FP8_FORMATS)
def test_suites_hold_unique_possible_cases(op: str, depth: str, dtype: str, fp8: str) -> None:
    found = cases_for(op, depth=depth, dtype=dtype, fp8=fp8)
    assert len({case.id for case in found}) == len(found)
    for case in found:
        assert Case.parse(case.id) == case
        assert reasons_impossible(case) is None
        assert case.recipe in describe(case)
    asked = sum(case.dtype == dtype and case.fp8 == fp8 for case in found)
    assert asked >= 0.75 * len(found)


@pytest.mark.parametrize("op", OPS)
def test_depths_grow_and_stay_within_their_size(op: str) -> None:
    def size(case: Case) -> int:
        return case.m * case.n * max(1, case.k)

    smoke, default, deep = (cases_for(op, depth=depth) for depth in DEPTHS)
    assert 12 <= len(smoke) <= 40
    assert 60 <= len(default) <= 500
    assert {case.id for case in default} < {case.id for case in deep}
    total = [sum(size(case) for case in found) for found in (smoke, default, deep)]
    assert total[0] <= (10**8 if op == GEMM else 3 * 10**6)
    assert total[1] <= (15 * 10**9 if op == GEMM else 110 * 10**6)
    assert total[2] > 3 * total[1]
    assert any(case.m == 4096 and lane_of(case) == "model" for case in deep)


@pytest.mark.parametrize("op", OPS)
def test_default_suite_covers_recipes_boundaries_and_options(op: str) -> None:
    found = cases_for(op)
    assert {case.recipe for case in found} == set(recipe_names(op))
    assert {case.m for case in found} >= set(shapes.BOUNDARY_M)
    if op == GEMM:
        assert {case.n for case in found} >= set(shapes.GEMM_BOUNDARY_N)
        assert {case.k for case in found} >= set(shapes.GEMM_BOUNDARY_K)
        assert {case.bias for case in found} == {True, False}
    else:
        assert {case.n for case in found} >= set(shapes.BOUNDARY_N)
        assert {case.layout for case in found} == {"contiguous", "strided", "3d", "3dstrided"}
    if op == ADD:
        for name, values in (("residual", 2), ("gamma", 2), ("gemma", 2), ("eps", 2)):
            assert len({getattr(case, name) for case in found}) == values
    assert {case.dtype for case in found} == set(DTYPES)
    assert {case.fp8 for case in found} == set(FP8_FORMATS)


@pytest.mark.parametrize("lane", LANES)
def test_lanes_select(lane: str) -> None:
    whole = cases_for(GEMM)
    chosen = cases_for(GEMM, lanes=[lane])
    assert chosen == [case for case in whole if lane_of(case) == lane]
    assert chosen
    assert bool(cases_for(ADD, lanes=[lane])) == (lane != "exact")


@pytest.mark.parametrize(
    ("op", "options", "words"),
    [
        ("rmsnorm", {}, "unknown op 'rmsnorm'"),
        (ADD, {"depth": "full"}, "unknown depth 'full'"),
        (ADD, {"lanes": ["fast"]}, "unknown lane 'fast'"),
        (ADD, {"dtype": "fp32"}, "unknown dtype 'fp32'"),
        (ADD, {"fp8": "e5m2"}, "unknown FP8 format 'e5m2'"),
    ],
)
def test_wrong_requests_are_refused(op: str, options: dict, words: str) -> None:
    with pytest.raises(CaseError, match=words):
        cases_for(op, **options)


def test_glm_shapes_split_what_tensor_parallelism_splits() -> None:
    whole = {shape.layer: shape for shape in shapes.glm_gemm_shapes(1)}
    assert (whole["qkv"].n, whole["qkv"].k) == ((96 + 2 * 8) * 128, 5120)
    assert (whole["o"].n, whole["o"].k) == (5120, 96 * 128)
    assert (whole["gate_up"].n, whole["down"].k) == (2 * 12288, 12288)
    for tp in shapes.TENSOR_PARALLEL:
        for shape in shapes.glm_gemm_shapes(tp):
            full = whole[shape.layer]
            assert shape.n * shape.k * tp == full.n * full.k
    with pytest.raises(ValueError, match="degree 3"):
        shapes.glm_gemm_shapes(3)
