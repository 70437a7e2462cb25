"""Cases of every situation: their rows are those of the recipes that they are taken from, and no recipe is missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.support.case_inputs import ADD, GEMM, QUANT
from validators.cases.case import Case
from validators.cases.codes import FP8_DTYPE, STORAGE
from validators.cases.generator import Block
from validators.cases.inputs import build, digest
from validators.cases.op import op_named
from validators.cases.ops.static_quant import NAME as STATIC
from validators.cases.recipe import GemmRecipe, NormRecipe
from validators.cases.recipes import reasons_impossible, recipe_names
from validators.cases.recipes_gemm_together import TURNS as GEMM_TURNS
from validators.cases.recipes_together import edge_columns, turns_among
from validators.cases.situations import EVERY, LONG, PLACED, Part, Turns
from validators.cases.tensors import GemmInputs


def parts(turns: Turns[Any], case: Case, count: int, width: int, side: str = "") -> list[Part[Any]]:
    return list(turns.parts(Block(case, 0, count, width), count, side))


def turns_of(op: str) -> Turns[NormRecipe]:
    recipes = (recipe for recipe in op_named(op).recipes if not recipe.name.startswith(EVERY))
    return turns_among(tuple(recipe for recipe in recipes if isinstance(recipe, NormRecipe)))


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize(("m", "n"), [(83, 264), (40, 1002), (5, 1)])
@pytest.mark.parametrize(
    ("op", "options"),
    [
        (ADD, {}),
        (ADD, {"residual": False, "dtype": "fp16"}),
        (QUANT, {"seed": 3}),
        (QUANT, {"dtype": "fp16", "fp8": "e4m3fnuz", "layout": "3d"}),
        (STATIC, {}),
    ],
)
def test_rows_are_those_of_the_recipes_that_they_are_taken_from(
    op: str, options: dict[str, Any], m: int, n: int
) -> None:
    case = Case(op, m, n, EVERY, **options)
    built: Any = build(case)
    seen = torch.zeros(m, dtype=torch.int64)
    for part in parts(turns_of(op), case, m, n):
        recipe = part.recipe
        assert isinstance(recipe, NormRecipe)
        own = recipe.values(part.source)
        for name, values in zip(("x", "residual"), own, strict=True):
            stored = getattr(built, name, None)
            if stored is not None:
                assert values is not None
                wanted = values.to(STORAGE[case.dtype].dtype).expand(part.source.stop - part.source.start, n)
                assert torch.equal(bits(stored.reshape(m, n)[part.rows]), bits(wanted[part.places]))
        seen[part.rows] += 1
    assert bool((seen == 1).all())


@pytest.mark.parametrize(("m", "n", "k"), [(41, 60, 176), (1, 7, 33)])
def test_rows_of_both_operands_are_those_of_the_recipes(m: int, n: int, k: int) -> None:
    case = Case(GEMM, m, n, EVERY, k=k, bias=True, seed=2)
    built = build(case)
    assert isinstance(built, GemmInputs)
    assert built.bias is not None
    for side, codes, scale, count in (("a", built.a, built.a_scale, m), ("b", built.b, built.b_scale, n)):
        seen = torch.zeros(count, dtype=torch.int64)
        for part in parts(GEMM_TURNS, case, count, k, side):
            recipe: GemmRecipe = part.recipe
            assert torch.equal(bits(codes)[part.rows], recipe.codes(part.source, side)[part.places])
            assert torch.equal(scale[part.rows], recipe.scales(part.source, side)[part.places])
            if side == "b":
                bias = recipe.bias(part.source)[part.places].flatten().to(built.out_dtype)
                assert torch.equal(built.bias[part.rows], bias)
            seen[part.rows] += 1
        assert bool((seen == 1).all())
    assert built.a.dtype == FP8_DTYPE[case.fp8]


def test_a_row_of_another_recipe_would_be_seen() -> None:
    """The comparison above can fail: no two recipes make the same row."""
    case = Case(QUANT, 80, 264, EVERY)
    (built,) = (v for v in vars(build(case)).values() if isinstance(v, torch.Tensor))
    assert len({bytes(bits(row)) for row in built}) == case.m - len(zero_rows(built)) + min(2, len(zero_rows(built)))


def zero_rows(x: torch.Tensor) -> list[int]:
    return (x == 0).all(dim=1).nonzero().flatten().tolist()


@pytest.mark.parametrize("op", [ADD, QUANT, STATIC])
@pytest.mark.parametrize("options", [{}, {"dtype": "fp16"}])
def test_every_recipe_that_is_possible_has_a_turn_in_few_rows(op: str, options: dict[str, Any]) -> None:
    """Within one round of the turns, and within the seeds of fewer rows: seed s begins where seed s - 1 ended."""
    singles = {r.name for r in op_named(op).recipes if not r.name.startswith(EVERY)}
    wanted = {name for name in singles if reasons_impossible(Case(op, 64, 264, name, **options)) is None}
    for m, seeds in ((40, 1), (8, 5), (1, 40)):
        found = {
            part.recipe.name
            for seed in range(seeds)
            for part in parts(turns_of(op), Case(op, m, 264, EVERY, seed=seed, **options), m, 264)
        }
        assert found == wanted, m


def test_every_recipe_of_a_gemm_has_a_turn_on_both_sides() -> None:
    wanted = set(recipe_names(GEMM)) - {EVERY}
    case = Case(GEMM, 20, 20, EVERY, k=176)
    for side in ("a", "b"):
        assert {part.recipe.name for part in parts(GEMM_TURNS, case, 20, 176, side)} == wanted


def test_the_case_that_a_row_is_taken_from_is_a_case_like_any_other() -> None:
    for part in parts(turns_of(ADD), Case(ADD, 300, 264, EVERY, fp8="e4m3fnuz", gemma=True), 300, 264):
        source = part.source
        assert reasons_impossible(source.case) is None
        assert source.case.m in (PLACED, LONG)
        assert 0 <= source.start < source.stop <= source.case.m
        assert (source.case.fp8, source.case.gemma) == ("e4m3fnuz", True)


@pytest.mark.parametrize("op", [ADD, QUANT])
def test_special_rows_have_ordinary_neighbours(op: str) -> None:
    x: Any = build(Case(op, 400, 264, EVERY))
    sums = x.x.float() if op == QUANT else x.x.float() + x.residual.float()
    open_row = ~sums.isfinite().all(dim=1)
    assert 0 < int(open_row.sum()) < 40
    assert not bool((open_row[1:] & open_row[:-1]).any())


def test_gains_differ_by_the_name_alone() -> None:
    built: dict[str, Any] = {
        name: build(Case(ADD, 40, 264, name, seed=1)) for name in recipe_names(ADD) if name.startswith(EVERY)
    }
    assert len(built) == 7
    weights = {name: inputs.weight.double() for name, inputs in built.items()}
    assert bool((weights[f"{EVERY}_ones"] == 1).all())
    assert set(weights[f"{EVERY}_powers"].tolist()) == {1.0, 0.5, 0.25}
    assert bool((weights[f"{EVERY}_signed"] < 0).any() and (weights[f"{EVERY}_signed"] == 0).any())
    assert weights[f"{EVERY}_checkpoint"].max().item() == 63.25
    assert weights[f"{EVERY}_huge"].min().item() >= 2.0**100
    assert weights[f"{EVERY}_tiny"].max().item() <= 2.0**-120
    assert all(bool(weight.isfinite().all()) for weight in weights.values())
    for dtype in ("bf16", "fp16"):
        inputs: Any = build(Case(ADD, 8, 264, f"{EVERY}_huge", dtype=dtype, gemma=True))
        assert bool(inputs.weight.isfinite().all())


@pytest.mark.parametrize("n", [1, 7, 8, 520, 1002, 5120, 12291])
def test_edge_peaks_are_at_the_ends_and_at_both_sides_of_boundaries(n: int) -> None:
    columns = edge_columns(n)
    assert columns == sorted(set(columns))
    assert {0, n - 1} <= set(columns) <= set(range(n))
    for edge in (8, 64, 1024, 4096, 6144, 8192, 10240):
        if edge < n:
            assert {edge - 1, edge} <= set(columns)
    rows = 2 * len(columns)
    built: Any = build(Case(ADD, rows, n, "edge_peaks"))
    sums = built.x.double() + built.residual.double()
    peak = sums.abs().argmax(dim=1).tolist()
    assert set(peak) == set(columns)
    assert peak[0] == n - 1
    from_residual = built.residual.abs().amax(dim=1) > built.x.abs().amax(dim=1)
    assert from_residual.tolist() == [row >= len(columns) for row in range(rows)]


def test_blocks_of_rows_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    for op in (ADD, QUANT, GEMM):
        case = Case(op, 93, 264, EVERY, k=264 if op == GEMM else 0)
        whole = digest(build(case))
        monkeypatch.setattr("validators.cases.layout.CHUNK", 7 * 264)
        assert digest(build(case)) == whole
        monkeypatch.undo()
