"""Ways to get a wrong kernel signed, each tried: not SIGNED, or SIGNED with what it rests on in the decision itself.

Here: records of another kernel, edited, copied, deleted, and cases that are not the suite's.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from tests.support.made import comparison, moved
from tests.support.signed import GEMM, NORM, QUANT, TARGET, golden, ops, strictly, strong, why, with_evidence
from validators.records.provenance import Source
from validators.records.record import Check, Record, Status
from validators.signoff.decision import decide
from validators.signoff.policy import Policy, Requirement
from validators.signoff.ruling import Ruling, rule

# ---- 3: records of another kernel, or of another version of it, under the same name


def sourced(r: Record, digest: str) -> Record:
    return dataclasses.replace(r, provenance=dataclasses.replace(r.provenance, kernel_source=Source(digest * 64)))


OWN = "k.py:norm"


def own(records: list[Record]) -> list[Record]:
    return [dataclasses.replace(r, kernel=OWN) if r.kernel == "demo/norm" else r for r in records]


def test_five_lanes_of_one_version_and_the_sixth_of_another() -> None:
    target = dataclasses.replace(TARGET, kernels={NORM: (OWN,)})
    chosen = Policy("smoke", "", (Requirement("ops", depth="smoke"),))
    every = own(ops())
    mixed = [sourced(r, "b" if r.lane == "model" else "a") for r in every]
    ruling = rule(target, chosen, mixed, "records")
    assert ruling.decision == "NOT SIGNED"
    assert f"The records of {OWN} come from 2 versions of its source" in ruling.reasons[0]
    assert "aaaaaaaaaaaa" in ruling.reasons[0]
    assert "--source DIGEST" in ruling.reasons[0]
    assert rule(target, chosen, [sourced(r, "a") for r in every], "records").decision == "SIGNED"
    # Which version is meant can be said: then the other's lane is missing, and what failed of it does not count.
    named = dataclasses.replace(target, sources={OWN: "aaaaaaaa"})
    ruling = rule(named, chosen, mixed, "records")
    assert (ruling.decision, [c.lane for c in ruling.untested]) == ("UNTESTED", ["model"])
    assert any("made from source bbbbbbbbbbbb, and the claim says aaaaaaaa" in text for text, _ in ruling.excluded)
    before = [sourced(dataclasses.replace(r, status=Status.FAILED), "b") for r in every[:3]]
    assert rule(named, chosen, [*before, *(sourced(r, "a") for r in every)], "records").decision == "SIGNED"


def test_a_failure_under_another_path_to_the_same_file_counts() -> None:
    target = dataclasses.replace(TARGET, kernels={NORM: (OWN,)})
    chosen = Policy("smoke", "", (Requirement("ops", depth="smoke"),))
    every = [sourced(r, "a") for r in own(ops())]
    bad = dataclasses.replace(every[0], kernel=f"./{OWN}", status=Status.FAILED, reasons=("scale: wrong",))
    ruling = rule(target, chosen, [*every, bad], "records")
    assert ruling.decision == "NOT SIGNED"
    assert f"add_rmsnorm_quant of ./{OWN}: FAILED in 1 of 1 cases" in ruling.reasons[0]
    assert rule(target, chosen, [*every, sourced(bad, "b")], "records").decision == "SIGNED"


def test_a_golden_that_failed_does_not_become_untested_by_its_state() -> None:
    lied = dataclasses.replace(golden(1, "UNTESTED"), status=Status.FAILED, reasons=("codes: wrong",))
    assert strictly([*strong(), lied]).decision == "NOT SIGNED"


def test_some_records_without_a_digest_are_another_version_and_all_without_are_told() -> None:
    target = dataclasses.replace(TARGET, kernels={NORM: (OWN,)})
    chosen = Policy("smoke", "", (Requirement("ops", depth="smoke"),))
    every = own(ops())
    some = [r if r.lane == "model" else sourced(r, "a") for r in every]
    assert rule(target, chosen, some, "records").decision == "NOT SIGNED"
    assert rule(target, chosen, every, "records").decision == f"SIGNED of a source that was not recorded ({OWN})"
    assert decide([r for r in some if r.kernel == OWN]).decision == "NOT SIGNED"


def test_a_kernel_of_two_versions_of_its_library_is_two_kernels() -> None:
    def of(r: Record) -> Record:
        versions = {"aiter": "0.1.6" if r.lane == "model" else "0.1.5"}
        return dataclasses.replace(r, provenance=dataclasses.replace(r.provenance, kernel_versions=versions))

    ruling = strictly([of(r) if r.op == NORM else r for r in strong()])
    assert ruling.decision == "NOT SIGNED"
    assert "come from 2 versions of aiter (" in ruling.reasons[0]
    assert "of 0.1.5; " in ruling.reasons[0]
    assert "--version aiter=PATTERN" in ruling.reasons[0]


def test_a_record_from_before_the_library_was_loaded_is_no_other_kernel() -> None:
    """An adapter may learn a version when its library is imported, which the first case may come before."""

    def of(r: Record) -> Record:
        versions = {"torch": "2.13.0"} if r.lane == "model" else {"torch": "2.13.0", "aiter commit": "abc"}
        return dataclasses.replace(r, provenance=dataclasses.replace(r.provenance, kernel_versions=versions))

    assert strictly([of(r) if r.op == NORM else r for r in strong()]).decision == "SIGNED"


def test_records_of_another_kernel_that_were_given_this_name() -> None:
    other = "python -m validators run --kernel add_rmsnorm_quant=easy/norm --case {}"
    records = [dataclasses.replace(r, reproduce=other.format(r.case)) if r.lane == "model" else r for r in strong()]
    ruling = strictly(records)
    assert ruling.decision == "NOT SIGNED"
    assert "is reproduced with --kernel add_rmsnorm_quant=easy/norm" in ruling.reasons[0]


# ---- 4: records that say otherwise than their own numbers


def edited(**changes: Any) -> Ruling:
    first = strong()[0]
    return strictly([dataclasses.replace(first, **changes), *strong()[1:]])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"comparisons": (comparison("codes", violations=3),)}, "holds 3 violations of codes"),
        ({"checks": (Check("guards", False, "x"),)}, "holds a check that failed (guards)"),
        ({"comparisons": (comparison("codes", vacuous=500),)}, "amount to MISTRUSTED"),
        ({"comparisons": (comparison("codes", single=3),)}, "amount to MISTRUSTED"),
        ({"comparisons": (comparison("scale", judged=0, single=0),)}, "amount to UNSUPPORTED"),
        ({"reasons": ("scale: 3 rows",)}, "gives a reason why it did not (scale: 3 rows)"),
        ({"comparisons": (comparison("codes", violations=-3),)}, "holds counts of codes that cannot be"),
        ({"comparisons": (comparison("codes", single=600),)}, "holds counts of codes that cannot be"),
        ({"comparisons": (comparison("codes", judged=10**9),)}, "holds counts of codes that cannot be"),
        ({"comparisons": (comparison("codes", worst_use=math.nan),)}, "holds a NaN"),
        ({"status": Status.UNSUPPORTED, "reasons": ("no",)}, "says UNSUPPORTED and holds 512 judged elements"),
        (
            {"status": Status.UNSUPPORTED, "reasons": ("no",), "comparisons": (), "checks": (Check("x", False, ""),)},
            "says UNSUPPORTED and holds a check that failed",
        ),
        ({"case": "ptpc_gemm-m1-n1-k1"}, "names a case of another op"),
    ],
)
def test_an_edited_record_is_not_signed(changes: dict[str, Any], words: str) -> None:
    ruling = edited(**changes)
    assert ruling.decision == "NOT SIGNED"
    assert words in ruling.reasons[0]
    assert any(words.split(" and ")[-1] in c.why[0] for c in ruling.cells if c.state == "FAILED")


# ---- 5: duplicates, deletions, dates


@pytest.mark.parametrize("first", [True, False])
def test_a_failure_does_not_vanish_behind_copies_of_a_pass(first: bool) -> None:
    good = strong()[0]
    bad = dataclasses.replace(good, status=Status.FAILED, reasons=("scale: wrong",), comparisons=())
    copies = [good] * 50
    ruling = strictly([bad, *copies, *strong()] if first else [*strong(), *copies, bad])
    assert ruling.decision == "NOT SIGNED"
    assert any(reason.startswith("Contradiction") for reason in ruling.reasons)


@pytest.mark.parametrize("date", ["1970-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00", "yesterday"])
def test_no_date_makes_one_record_win_over_another(date: str) -> None:
    good = strong()[0]
    bad = dataclasses.replace(good, status=Status.FAILED, reasons=("scale: wrong",), comparisons=())
    later = dataclasses.replace(bad, provenance=dataclasses.replace(bad.provenance, date=date))
    assert strictly([*strong(), later]).decision == "NOT SIGNED"
    assert strictly([later, *strong()]).decision == "NOT SIGNED"


@pytest.mark.parametrize("place", range(0, len(ops()), 7))
def test_a_record_that_was_deleted_leaves_a_hole(place: int) -> None:
    records = strong()
    ruling = strictly(records[:place] + records[place + 1 :])
    assert ruling.decision == "UNTESTED"


def test_a_record_that_was_deleted_from_a_walk_leaves_a_hole() -> None:
    counted = [with_evidence(r, records={NORM: 1, QUANT: 2, GEMM: 1}) if r.lane == "layers" else r for r in strong()]
    ruling = strictly(counted)
    assert ruling.decision == "UNTESTED"
    assert why(ruling, "layers") == "1 of the walk's 2 records of per_token_quant are missing"
    # Nor does a second walk, which lacks another one, fill the first.
    other = [with_evidence(r, records={NORM: 1, QUANT: 2, GEMM: 1}, walk="b2") for r in strong() if r.lane == "layers"]
    assert strictly([*counted, *other]).decision == "UNTESTED"


# ---- 6: cases that are not the suite's, lanes that are not theirs, fewer cases than there are


def test_cases_of_one_lane_do_not_fill_another() -> None:
    other = [moved(r, "model") if r.lane == "random" else r for r in strong() if r.lane != "model"]
    assert strictly(other).decision == "UNTESTED"


def test_cases_that_the_suite_has_not_fill_nothing() -> None:
    easy = [dataclasses.replace(r, case=f"{r.case}9") if r.lane == "model" else r for r in strong()]
    ruling = strictly(easy)
    assert ruling.decision == "UNTESTED"
    assert {c.lane for c in ruling.untested} == {"model"}


def test_goldens_and_layers_do_not_fill_a_lane() -> None:
    other = [moved(r, "goldens") if r.lane == "model" else r for r in strong()]
    assert strictly(other).decision == "UNTESTED"


def test_chosen_cases_without_a_policy_say_so_in_the_decision() -> None:
    """``run --case`` of one easy case for each lane."""
    first = {(r.op, r.lane): r for r in reversed(ops()) if r.op == NORM}
    assert decide(list(first.values())).decision == f"SIGNED on {len(first)} chosen cases only"
    smoke = [r for r in ops() if r.op == NORM]
    assert decide(smoke).decision == "SIGNED at smoke depth"
    assert decide([r for r in ops("default") if r.op == NORM]).decision == "SIGNED at default depth"
    assert decide(smoke[1:]).decision == f"SIGNED on {len(smoke) - 1} chosen cases only"


def test_records_of_a_suite_with_fewer_cases_are_not_enough() -> None:
    older = [r for r in strong() if not (r.lane == "adversarial" and "bf16" in r.case and r.op == QUANT)]
    assert strictly(older).decision == "UNTESTED"
