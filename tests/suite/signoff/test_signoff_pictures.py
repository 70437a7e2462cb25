"""The page's pictures are drawn from the numbers, and from nothing where there are none."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from tests.support.made import comparison, failed, record
from validators.records.evidence import ErrorByDepth, Evaluation, WalkEvidence
from validators.records.record import Record
from validators.signoff import pictures


def trajectory(known: ErrorByDepth | None, **changes: Any) -> Record:
    walk = WalkEvidence("glm-tiny", depth=known)
    fields: dict[str, Any] = {"lane": "layers", "case": "layers-glm-tiny-trajectory", "walk": walk}
    return record(**{**fields, **changes})


def test_a_walk_is_drawn_from_its_medians() -> None:
    known = ErrorByDepth((0, 1, 2), (0.01, 0.02, 0.04), (0.01, 0.02, None))
    (walk,) = pictures.walks([trajectory(known)])
    fused, unfused = walk.lines
    assert [len(line.dots) for line in (fused, unfused)] == [3, 2], "what is not finite has no dot"
    heights = [y for _, y, _ in fused.dots]
    assert heights == sorted(heights, reverse=True), "a larger error is higher"
    assert fused.dots[0][:2] == unfused.dots[0][:2]
    assert len(walk.y) >= 3
    assert [t.label for t in walk.x] == ["0", "1", "2"]
    assert "layer 2: fused 0.04" in fused.dots[2][2]


@pytest.mark.parametrize(
    "known", [None, ErrorByDepth(()), ErrorByDepth((0,), (math.nan,)), ErrorByDepth((0, 1), (1.0,))]
)
def test_a_walk_without_numbers_has_words_and_no_picture(known: ErrorByDepth | None) -> None:
    (walk,) = pictures.walks([trajectory(known)])
    assert walk.lines == ()


def parity(evaluation: Evaluation, **changes: Any) -> Record:
    fields: dict[str, Any] = {"op": "gsm8k_parity", "lane": "parity", "case": "parity-tiny-glm-n1319-margin1.5-s0"}
    return record(**{**fields, "evaluation": evaluation, **changes})


def test_an_interval_lies_between_margin_and_zero_as_its_numbers_do() -> None:
    (one,) = pictures.parities([parity(Evaluation(margin=1.5, difference=-0.004, interval=(-0.011, 0.003)))])
    i = one.interval
    assert i is not None
    assert i.margin is not None
    assert i.low is not None
    assert i.high is not None
    assert i.margin < i.low < i.middle < i.zero < i.high
    assert i.words == "difference -0.40 points, interval -1.10 to +0.30, margin -1.5"
    assert len(i.ticks) >= 3


def test_parity_without_an_interval_shows_the_difference_alone_or_nothing() -> None:
    counts = {"questions": 1000.0, "lost": 6.0, "gained": 2.0}
    (one,) = pictures.parities([parity(Evaluation(margin=1.5), strength=counts)])
    assert one.interval is not None
    assert one.interval.low is None
    assert one.interval.words == "difference -0.40 points, margin -1.5"
    (none,) = pictures.parities([parity(Evaluation())])
    assert none.interval is None


def test_admissible_sets_add_up_to_the_whole_bar() -> None:
    (scale, codes) = pictures.admissible_sets(
        [comparison("scale", single=100, vacuous=12), comparison("codes", elements=600, unspecified=88)]
    )
    for sets in (scale, codes):
        assert sum(share for _, share, _ in sets.parts) == pytest.approx(100.0, abs=0.0, rel=2**-40)
    assert [kind for kind, _, _ in scale.parts] == ["one", "some", "vague"]
    assert [kind for kind, _, _ in codes.parts] == ["one", "some", "none"]


def test_an_element_opens_down_to_its_terms_and_the_command() -> None:
    first, *_ = pictures.opened(failed())
    facts = dict(first.facts)
    assert facts["exact, float64"] == "0.0123456789"
    assert "3cca4588" in facts["kernel gave"]
    assert [t.name for t in first.terms] == ["reduction", "scale"]
    assert sum(t.share for t in first.terms) == pytest.approx(100.0, abs=0.0, rel=2**-40)
    assert "--row 9 --col 0 --output scale --device cpu" in first.explain
    assert first.band is not None
    assert first.band[1] - first.band[0] >= 4, "a set too narrow to see is drawn all the same"
    assert first.got is not None
    assert first.band[1] < first.got


def test_an_element_that_is_no_number_has_no_mark_and_a_walks_op_no_explain() -> None:
    nan = pictures.opened(failed())[1]
    assert nan.got is None
    assert "not comparable" in nan.title
    walked = pictures.opened(failed(lane="layers", case="layers-glm-tiny-l00"))
    assert {e.explain for e in walked} == {""}


def test_infinite_ends_draw_no_line() -> None:
    e = dataclasses.replace(comparison("out", violations=1).worst[0], low=1.0, high=float("inf"))
    broken = failed(comparisons=(dataclasses.replace(comparison("out", violations=1), worst=(e,)),))
    assert pictures.opened(broken)[0].band is None


def test_the_zoo_shows_every_known_defect_of_the_op() -> None:
    case = "per_token_quant-m64-n512-bf16-e4m3fn-gaussian-s0"
    found = pictures.zoo([record(op="per_token_quant", case=case, lane="random", contract="aiter-hip-gfx950")])
    assert found is not None
    assert len(found.defects) == 9
    assert {identity[0] for identity, _, _ in found.defects} == {"Q"}
    assert pictures.zoo([record(lane="layers", case="layers-x")]) is None
