"""The story that this suite exists for: a path is SIGNED, and with any one defect switched on it is not, by name.

The records of a whole path are made once, by the emulated kernels at smoke depth; then one op's records are replaced
by those of a kernel with a defect on the cases that reveal it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pytest

from tests import zoo
from tests.benchmarks.power import CAUGHT, accepted_explanations, cost, first_explanation, well_explained
from validators.cases.case import Case
from validators.cases.suite import cases_for
from validators.kernels.kernel import Kernel
from validators.kernels.registry import find_kernel
from validators.records.record import Record, Status
from validators.run import validate
from validators.signoff.claims import Target
from validators.signoff.policy import Policy, Requirement
from validators.signoff.ruling import Ruling, rule
from validators.words import OPS

KERNELS = {op: f"emulated/{zoo.clean_kernel(op).contract}" for op in OPS}
TARGET = Target("the emulated path", "cpu", {op: (name,) for op, name in KERNELS.items()})
SMOKE = Policy("smoke", "", (Requirement("ops", depth="smoke"),))
DEFECTS = [d.id for d in zoo.all_defects()]


def made(kernel: Kernel, op: str, cases: Iterable[Case]) -> list[Record]:
    """Records of ``kernel`` under the name of the claim's."""
    return [dataclasses.replace(validate(kernel, case), kernel=KERNELS[op]) for case in cases]


@pytest.fixture(scope="module")
def clean() -> list[Record]:
    return [
        record
        for op, name in KERNELS.items()
        for record in made(find_kernel(name, op), op, cases_for(op, depth="smoke"))
    ]


def named(ruling: Ruling, defect: zoo.Defect) -> bool:
    """Whether the first reason names the defect as the first explanation of a case that failed."""
    prefixes = accepted_explanations(defect)
    words = ruling.reasons[0]
    return any(f"explained by {prefix.rstrip(':')}" in words for prefix in prefixes)


def test_the_path_without_a_defect_is_signed(clean: list[Record]) -> None:
    assert rule(TARGET, SMOKE, clean).decision == "SIGNED in emulation only"


@pytest.mark.parametrize("identity", DEFECTS)
def test_any_one_defect_is_caught_and_named_and_not_signed(identity: str, clean: list[Record]) -> None:
    """Caught on a case that reveals it, with its own explanation first; and the sign-off's first reason names it."""
    defect = zoo.find_defect(identity)
    found = made(defect.kernel, defect.op, sorted(map(Case.parse, defect.reveals), key=cost))
    caught = [r for r in found if r.status in CAUGHT]
    assert caught, [(r.case, r.status.value) for r in found]
    assert all(record.reasons for record in caught)
    for record in found:
        assert record.status is not Status.ERROR, record.reasons
    well = [r for r in caught if well_explained(defect, r)]
    assert well, [(r.case, first_explanation(r)[:120]) for r in caught]
    others = [r for r in clean if r.op != defect.op]
    ruling = rule(TARGET, SMOKE, [*others, *found[: found.index(well[0]) + 1]])
    assert ruling.decision == "NOT SIGNED"
    assert ruling.reasons[0].startswith(f"{defect.op} of {KERNELS[defect.op]}: ")
    assert not [reason for reason in ruling.reasons if KERNELS[defect.op] not in reason]
    assert named(ruling, defect), ruling.reasons


@pytest.mark.parametrize("identity", ["N04", "Q04", "G01"])
def test_a_whole_run_with_a_defect_is_one_reason(identity: str, clean: list[Record]) -> None:
    """As a user sees it: every smoke case of the op by the kernel with the defect, none chosen to reveal it."""
    defect = zoo.find_defect(identity)
    others = [r for r in clean if r.op != defect.op]
    wrong = made(defect.kernel, defect.op, cases_for(defect.op, depth="smoke"))
    assert any(r.status in CAUGHT for r in wrong)
    ruling = rule(TARGET, SMOKE, [*others, *wrong])
    assert (ruling.decision, len(ruling.reasons)) == ("NOT SIGNED", 1), ruling.reasons
    assert named(ruling, defect), ruling.reasons
