"""Every defect of the zoo is caught and named: behind guards, and by the suite's own cases.

On the cases that reveal it: tests/suite/signoff/test_signed_story.py, which also holds the sign-off to it.
"""

from __future__ import annotations

import functools

import pytest

from tests import zoo
from tests.benchmarks.power import (
    Finding,
    accepted_explanations,
    cost,
    measure,
    suite_cases,
    summary,
    try_defect,
)
from tests.benchmarks.strength import catches
from validators.cases.case import Case
from validators.cases.recipes import recipe_info
from validators.records.record import Status
from validators.run import validate

DEFECTS = zoo.all_defects()
SMOKE_SHARE = 0.95
SMOKE_EXPLAINED_SHARE = 0.9

# A few defects of each kind behind each guard; the benchmark tries them all.
_GUARDED = {
    "m>256": ("N05", "N07", "N15", "Q04", "Q14", "G04", "G07"),
    "n%8": ("N02", "N12", "Q01", "Q17", "G01", "G12"),
    "m odd": ("N01", "N10", "Q11", "Q13", "G03", "G19"),
    "second call": ("N03", "N17", "Q05", "Q22", "G08", "G09"),
    "k%128": ("G01", "G07"),
    "one block": ("N01", "Q01", "G12"),
}


@pytest.mark.parametrize(
    ("guard", "identity"), [(guard, identity) for guard, chosen in _GUARDED.items() for identity in chosen]
)
def test_a_guarded_defect_is_caught(guard: str, identity: str) -> None:
    """Real bugs hide behind a condition; the cases that meet it must still show them."""
    cases = sorted(map(Case.parse, zoo.guarded(zoo.find_defect(identity), guard).reveals), key=cost)
    assert cases
    # "second call" counts the calls of one kernel, so every case gets its own.
    assert any(catches(zoo.guarded(zoo.find_defect(identity), guard), case) for case in cases), cases


# Behind a limit of shapes: a few defects that need no other recipe than those that the suite has beyond the limit.
_BEYOND = {
    "n>6144": ("N01", "N06", "Q01"),
    "n>10240": ("N02", "Q01", "N18"),
    "m=1": ("N01", "Q01", "G01"),
    "one vector": ("N01", "Q01"),
    "model's decode": ("G01", "G04"),
    "model's prefill": ("G01", "G04"),
    "m>65535": ("Q01", "G01"),
}


@pytest.mark.parametrize(
    ("guard", "identity"), [(guard, identity) for guard, chosen in _BEYOND.items() for identity in chosen]
)
def test_a_defect_beyond_a_limit_of_shapes_is_caught_by_the_default_suite(guard: str, identity: str) -> None:
    """No case that a defect names is used: the suite's own cases beyond the limit show it; elsewhere it is clean."""
    defect = zoo.guarded(zoo.find_defect(identity), guard)
    listed = {case.id for case in suite_cases(defect.op, "default")}
    assert defect.reveals
    assert set(defect.reveals) <= listed
    assert any(catches(defect, Case.parse(text)) for text in defect.reveals)


def test_beyond_every_limit_of_shapes_the_suite_has_cases() -> None:
    assert set(_BEYOND) == set(zoo.SHAPE_GUARDS)
    for guard in zoo.SHAPE_GUARDS:
        for op in ("add_rmsnorm_quant", "per_token_quant", "ptpc_gemm"):
            if not zoo.concerns(guard, op):
                continue
            defect = zoo.guarded(next(d for d in DEFECTS if d.op == op), guard)
            assert len(defect.reveals) >= 2, (guard, op)


@pytest.mark.parametrize("op", ["add_rmsnorm_quant", "per_token_quant", "ptpc_gemm"])
def test_the_kernel_that_defects_depart_from_passes(op: str) -> None:
    """The same cases, the same pipeline, no defect: whatever fails above fails because of the defect."""
    clean = zoo.clean_kernel(op)
    ids = sorted({text for d in DEFECTS if d.op == op for text in d.reveals})
    assert ids
    for text in ids:
        record = validate(clean, Case.parse(text))
        assert record.status in (Status.PASSED, Status.UNSUPPORTED), (text, record.status, record.reasons)


def test_the_catalogue_names_every_defect_once_and_says_how_it_is_recognised() -> None:
    assert len(DEFECTS) >= 60
    assert len({d.id for d in DEFECTS}) == len({(d.op, d.name) for d in DEFECTS}) == len(DEFECTS)
    for defect in DEFECTS:
        assert all(prefix for prefix in accepted_explanations(defect))
        for text in defect.reveals:
            assert recipe_info(Case.parse(text).recipe, defect.op)
    shown = zoo.guarded(DEFECTS[0], "m odd")
    assert accepted_explanations(shown) == accepted_explanations(DEFECTS[0])


@functools.cache
def smoke_findings() -> list[Finding]:
    return measure("smoke", echo=False)


def test_the_smoke_suite_alone_catches_nearly_all() -> None:
    """Measured power: no case that a defect names is used, only what a user runs."""
    findings = smoke_findings()
    numbers = summary(findings, "smoke", 0.0)
    assert len(findings) == len(DEFECTS)
    caught = [f for f in findings if f.caught]
    assert len(caught) >= SMOKE_SHARE * len(findings), numbers["missed"]
    # A case of 24 rows need not tell two defects apart; most of the time it does.
    assert sum(f.explained for f in caught) >= SMOKE_EXPLAINED_SHARE * len(caught), numbers["unexplained"]


def test_what_smoke_misses_the_default_suite_catches() -> None:
    missed = [f.defect for f in smoke_findings() if not f.caught]
    for identity in missed:
        defect = zoo.find_defect(identity)
        assert try_defect(defect, suite_cases(defect.op, "default")).caught, identity


def test_a_clean_kernel_is_never_reported_as_caught() -> None:
    """The measurement itself must be able to say no."""
    defect = zoo.find_defect("G01")
    harmless = zoo.Defect("X00", "harmless", defect.op, zoo.clean_kernel(defect.op), defect.reveals, "", "")
    finding = try_defect(harmless, suite_cases(defect.op, "smoke")[:6])
    assert (finding.caught, finding.tried) == (False, 6)
