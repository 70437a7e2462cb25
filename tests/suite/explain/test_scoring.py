"""The scoring of hypotheses on masks made by hand: what explains, what is contradicted, and in which order."""

from __future__ import annotations

import torch

from validators.explain.scoring import Candidate, Evidence, ranked, same


def mask(count: int, *spans: tuple[int, int]) -> torch.Tensor:
    """bool [count], true in the spans."""
    found = torch.zeros(count, dtype=torch.bool)
    for first, last in spans:
        found[first:last] = True
    return found


WRONG = mask(1000, (0, 100))
EVIDENCE = Evidence({"out": WRONG}, ["out"])
ALL = mask(1000, (0, 1000))


def candidate(name: str, met: torch.Tensor, **fields: object) -> Candidate:
    return Candidate(name, f"it is {name}", {"out": met}, **fields)  # type: ignore[arg-type]


def names(evidence: Evidence, *candidates: Candidate) -> list[str]:
    return [explanation.name for explanation in ranked(evidence, candidates)]


def test_the_largest_share_comes_first_and_is_said() -> None:
    half, whole = candidate("half", mask(1000, (0, 50), (100, 1000))), candidate("whole", ALL)
    found = ranked(EVIDENCE, [half, whole])
    assert [(e.name, e.share, e.kind) for e in found] == [("whole", 1.0, "defect"), ("half", 0.5, "defect")]
    assert found[0].sentence == "every violation vanishes if it is whole"
    assert found[1].sentence == "50 % of the violations vanish if it is half"


def test_what_explains_little_is_not_named() -> None:
    assert names(EVIDENCE, candidate("a third", mask(1000, (0, 31), (100, 1000)))) == ["a third"]
    assert names(EVIDENCE, candidate("less", mask(1000, (0, 30), (100, 1000)))) == []


def test_more_than_one_right_element_to_twenty_explained_contradicts() -> None:
    assert names(EVIDENCE, candidate("just", mask(1000, (0, 100), (105, 1000)))) == ["just"]
    assert names(EVIDENCE, candidate("too many", mask(1000, (0, 100), (106, 1000)))) == []


def test_right_elements_may_be_missed_as_far_as_noise_and_wider_bounds_go() -> None:
    met = mask(1000, (0, 100), (150, 1000))
    assert names(EVIDENCE, candidate("refuted", met)) == []
    assert names(EVIDENCE._replace(noise={"out": 25}), candidate("noisy", met)) == ["noisy"]
    assert names(EVIDENCE, candidate("wide", met, compatible=lambda: {"out": ALL})) == ["wide"]


def test_missed_right_elements_cost_a_share_unless_a_rounding_is_predicted() -> None:
    met = mask(1000, (0, 100), (190, 1000))
    wide = {"compatible": lambda: {"out": ALL}}
    assert ranked(EVIDENCE, [candidate("value", met, **wide)])[0].share == 0.9
    assert ranked(EVIDENCE, [candidate("rounding", met, rounding=True, **wide)])[0].share == 1.0


def test_of_equals_the_nearest_and_then_the_first_given_leads() -> None:
    first, near = candidate("first", ALL, distance=2.0), candidate("near", ALL, distance=1.0)
    assert names(EVIDENCE, first, candidate("second", ALL, distance=2.0), near) == ["near", "first", "second"]
    assert len(names(EVIDENCE, first, first, first, near)) == 3


def test_every_failing_output_has_to_be_explained_and_none_contradicted() -> None:
    evidence = Evidence({"codes": WRONG, "scale": mask(10, (0, 4))}, ["codes", "scale"])
    both = Candidate("both", "", {"codes": ALL, "scale": mask(10, (0, 10))})
    codes = Candidate("codes", "", {"codes": ALL, "scale": mask(10, (4, 10))})
    against = Candidate("against", "", {"codes": ALL, "scale": mask(10, (0, 9))})
    assert names(evidence, codes, against, both) == ["both"]
    assert names(evidence._replace(failing=["codes"]), codes) == ["codes"]


def test_nan_equals_nan() -> None:
    nan = float("nan")
    assert same(torch.tensor([nan, 1.0, nan]), torch.tensor([nan, 1.0, 1.0])).tolist() == [True, True, False]
