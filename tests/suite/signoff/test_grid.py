"""The picture of what was run: each square is what the records of its cases say, and no text leaves its place."""

from __future__ import annotations

import itertools

import pytest

from tests.suite.signoff.test_reach import QUANT, declared, of, suite
from validators.cases.case import Case
from validators.cases.suite import cases_for
from validators.records.record import Record, Status
from validators.signoff import factors, grid, html
from validators.signoff.decision import decide
from validators.signoff.pictures import WIDTH
from validators.words import OPS


def kinds(records: list[Record], which: int = 0) -> dict[str, str]:
    """``fp16, n 65 to 512`` -> kind of the square."""
    (one,) = grid.reached(records)
    return {s.words.split(":")[0]: s.kind for s in one.grids[which].squares}


def test_a_square_is_what_its_records_say() -> None:
    runs, wide = Case(QUANT, 24, 520, "gaussian"), Case(QUANT, 24, 8200, "gaussian")
    found = kinds([of(runs), of(wide, Status.FAILED), declared(Case(QUANT, 24, 4096, "gaussian", dtype="fp16"))])
    assert found["m 17 to 64, n 513 to 1,024"] == grid.RUN
    assert found["m 17 to 64, n 8,193 to 10,240"] == grid.FAILED
    assert found["m 17 to 64, n 2,049 to 4,096"] == found["fp16, n 2,049 to 4,096"] == grid.DECLARED
    assert found["m 1, n 513 to 1,024"] == grid.NOT_RUN, "the depth has it, and it was not run"
    assert found["m over 65,535, n over 12,288"] == grid.NOT_RUN, "no case of the depth has it"


def test_a_failure_is_shown_whatever_else_passed_and_a_pass_before_a_limit() -> None:
    same = [Case(QUANT, 24, 520, recipe) for recipe in ("gaussian", "spike_walk", "midpoints")]
    pair = "m 17 to 64, n 513 to 1,024"
    assert kinds([of(same[0]), declared(same[1])])[pair] == grid.RUN
    assert kinds([of(same[0]), declared(same[1]), of(same[2], Status.NONDETERMINISTIC)])[pair] == grid.FAILED


@pytest.mark.parametrize("op", OPS)
def test_every_class_is_drawn_once_inside_the_picture(op: str) -> None:
    (one,) = grid.reached(suite(op))
    assert len(one.grids) == (2 if any(case.k for case in cases_for(op)) else 1)
    for drawn in one.grids:
        assert len({s.words for s in drawn.squares}) == len(drawn.squares) == len(drawn.columns) * len(drawn.rows)
        assert len({(s.x, s.y) for s in drawn.squares}) == len(drawn.squares)
        assert max(s.x + s.wide for s in drawn.squares) <= WIDTH
        assert max(s.y + s.high for s in drawn.squares) <= drawn.height
        assert [t.label for t in drawn.rows][: len(factors.ROWS.levels)][:2] == ["1", "2 to 16"]
        assert {s.kind for s in drawn.squares} == {grid.RUN, grid.NOT_RUN}


@pytest.mark.parametrize("op", OPS)
def test_labels_fit_on_a_telephone(op: str) -> None:
    """Letters are 20 units high there; a character of the page's font is at most 0.62 of that wide on average."""
    (one,) = grid.reached(suite(op))
    for drawn in one.grids:
        columns = [(t.at, len(t.label) * 12.4) for t in drawn.columns]
        for (left, wide), (right, other) in itertools.pairwise(columns):
            assert left + wide / 2 <= right - other / 2, drawn.columns
        assert max(len(t.label) for t in drawn.rows) * 11.2 <= 168
        assert min(b.at - a.at for a, b in itertools.pairwise(drawn.rows)) >= 24


def test_the_page_has_the_picture_with_its_words() -> None:
    records = suite(QUANT, lambda case: case.dtype == "fp16")
    text = html.page(decide(records))
    (one,) = grid.reached(records)
    assert f'aria-label="{one.grids[0].words}"' in text
    assert "not offered by the kernel" in one.grids[0].words
    assert f"<li>{QUANT}, not offered: fp16</li>" in text
    assert text.count('<svg class="grid"') == 1
    assert "<b>Mutation score</b>: not measured for these cases" in text


def test_there_is_no_picture_without_a_case_with_rows() -> None:
    assert grid.reached([of(Case(QUANT, 0, 520, "gaussian"))]) == []
