"""Ways to get a wrong kernel signed, each tried: not SIGNED, or SIGNED with what it rests on in the decision itself.

The records of ``test_ruling.path`` are a path that passes everything; each test makes them lie, leaves something out,
or puts something weaker in its place.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.suite.signoff.test_ruling import EXAMPLES, GEMM, KERNELS, NORM, QUANT, TARGET, made, ops, path, whole
from tests.support.made import comparison, moved
from validators.__main__ import main
from validators.records.evidence import Evaluation, Golden, Launches, WalkEvidence
from validators.records.evidence import Limit as Away
from validators.records.provenance import Source
from validators.records.record import Check, Record, Status
from validators.records.store import Sink, load
from validators.signoff import claims, facts, policy
from validators.signoff import html as signoff_html
from validators.signoff import json as signoff_json
from validators.signoff import text as signoff_text
from validators.signoff.decision import decide, under_policy
from validators.signoff.limits import Limit, Limits
from validators.signoff.policy import Policy, Requirement, Waiver
from validators.signoff.ruling import Ruling, rule

CONTRACT = "aiter-hip-gfx950"
EMBEDDED = policy.QUESTION_SETS["embedded"][0]
STRICT = Policy(
    "strict",
    "",
    (
        Requirement("ops", depth="smoke"),
        Requirement("layers", layers="all", margin=0.5, tokens=64),
        Requirement("goldens"),
        Requirement("trace", layers="all"),
        Requirement("parity", margin=1.5, data=("embedded", "gsm8k-test"), questions=1319, tokens=10_000),
    ),
)
WALK = WalkEvidence(
    model="glm-tiny",
    layers=(0, 1, 2, 3),
    of=4,
    tokens=256,
    margin=0.5,
    walk="a1",
    records={NORM: 1, QUANT: 1, GEMM: 1},
)
PARITY = Evaluation(
    rule="non-inferiority",
    margin=1.5,
    alpha=0.05,
    questions=1319,
    data="synthetic held-out",
    data_sha256=EMBEDDED,
    tokens=30_000,
    kernels={op: name for op, (name,) in KERNELS.items()},
)


def with_evidence(r: Record, **changes: Any) -> Record:
    """The record with all that a strict policy asks, but for ``changes``."""
    if r.stage == "layers":
        return dataclasses.replace(r, walk=dataclasses.replace(WALK, **changes))
    if r.stage == "parity":
        return dataclasses.replace(r, evaluation=dataclasses.replace(PARITY, **changes))
    if r.stage == "trace":
        return dataclasses.replace(r, launches=dataclasses.replace(Launches(92), **changes))
    return r


def strong() -> list[Record]:
    return [with_evidence(r) for r in path()]


def ruled(records: list[Record], chosen: Policy = STRICT) -> Ruling:
    return rule(TARGET, chosen, records, "records")


def weaker(lane: str, **changes: Any) -> Ruling:
    return ruled([with_evidence(r, **changes) if r.lane == lane else r for r in strong()])


def why(ruling: Ruling, stage: str) -> str:
    return next(c.why[0] for c in ruling.cells if c.stage == stage and c.why)


def test_strong_records_are_signed() -> None:
    ruling = ruled(strong())
    assert (ruling.decision, ruling.reasons) == ("SIGNED", ())


# ---- 1: records of a whole path that are weaker than the policy asks


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"margin": 30.0}, "margin 30 points (asked: at most 1.5)"),
        ({"margin": math.nan}, "margin unknown (asked: at most 1.5)"),
        ({"margin": None}, "margin unknown"),
        ({"margin": -1.0}, "margin -1 points (asked: at most 1.5)"),
        ({"questions": 300}, "300 questions (asked: at least 1,319)"),
        ({"questions": None}, "questions unknown"),
        ({"data_sha256": "ab" * 32, "data": "gsm8k-test"}, "question set gsm8k-test, sha256 abababababab (asked"),
        ({"data_sha256": ""}, "question set synthetic held-out (asked: embedded or gsm8k-test)"),
        ({"tokens": 0}, "0 scored tokens (asked: at least 10,000)"),
        ({"rule": "mlperf-99"}, "rule mlperf-99 (asked: non-inferiority)"),
        ({"alpha": 0.49}, "error probability 0.49 (asked: at most 0.05)"),
        ({"aa": True}, "a run against itself"),
        ({"kernels": {**PARITY.kernels, GEMM: "other/gemm"}}, "ptpc_gemm by other/gemm (asked: demo/gemm)"),
    ],
)
def test_a_weak_evaluation_does_not_fill_its_cell(changes: dict[str, Any], words: str) -> None:
    ruling = weaker("parity", **changes)
    assert ruling.decision == "UNTESTED"
    assert words in why(ruling, "parity")
    assert words in ruling.reasons[0] or "…" in ruling.reasons[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": (0,), "margin": 5.0}, "layer 0 of 4 (asked: all), margin 5 (asked: at most 0.5)"),
        ({"layers": (0, 1, 2)}, "layers 0 to 2 of 4 (asked: all)"),
        ({"layers": ()}, "unknown layers (asked: all)"),
        ({"of": 0}, "(asked: all)"),
        ({"tokens": 8}, "8 tokens (asked: at least 64)"),
        ({"margin": math.inf}, "margin unknown"),
    ],
)
def test_a_weak_walk_does_not_fill_its_cells(changes: dict[str, Any], words: str) -> None:
    ruling = weaker("layers", **changes)
    assert ruling.decision == "UNTESTED"
    assert [c.stage for c in ruling.untested] == ["layers"] * 3
    assert words in why(ruling, "layers")
    assert words in ruling.reasons[0]


def test_named_layers_must_have_been_walked() -> None:
    some = Policy("some", "", (Requirement("layers", layers=(0, 3)),))
    assert ruled(strong(), some).outcome == "SIGNED"
    short = [with_evidence(r, layers=(0, 1)) if r.stage == "layers" else r for r in strong()]
    assert "layers 0 to 1 of 4 (asked: 0 and 3)" in why(ruled(short, some), "layers")


def test_records_without_evidence_fill_no_cell_that_asks_for_it() -> None:
    ruling = ruled(path())
    assert ruling.decision == "UNTESTED"
    assert {c.stage for c in ruling.untested} == {"layers", "parity", "trace"}


def test_a_trace_that_was_held_to_no_number_of_layers_is_open() -> None:
    ruling = weaker("trace", layers=None)
    assert ruling.decision == "UNTESTED"
    assert "asked: --layers N" in why(ruling, "trace")


def test_a_strong_record_beside_a_weak_one_fills_the_cell_and_a_weak_failure_still_counts() -> None:
    extra = with_evidence(whole("parity", case="parity-2"), margin=30.0)
    assert ruled([*strong(), extra]).decision == "SIGNED"
    lost = with_evidence(whole("parity", Status.FAILED, case="parity-2", reasons=("worse",)), margin=30.0)
    assert ruled([*strong(), lost]).decision == "NOT SIGNED"


def test_an_evaluation_from_nowhere_fills_no_cell() -> None:
    """A comparison of served runs does not know the architecture unless the runs say it."""
    records = [dataclasses.replace(r, arch="unknown", device="unknown") if r.lane == "parity" else r for r in strong()]
    ruling = ruled(records)
    assert ruling.decision == "UNTESTED"
    assert "an unknown architecture (asked: cpu)" in why(ruling, "parity")


# ---- 2: another architecture, and what never ran there


def test_records_of_another_architecture_do_not_count() -> None:
    assert ruled([dataclasses.replace(r, arch="gfx950", device="cuda") for r in strong()]).decision == "UNTESTED"


def test_a_record_that_names_an_architecture_that_its_device_is_not() -> None:
    target = dataclasses.replace(TARGET, arch="gfx950")
    lied = [dataclasses.replace(r, arch="gfx950") for r in strong()]
    ruling = rule(target, STRICT, lied, "records")
    assert ruling.decision == "NOT SIGNED"
    assert "ran on cpu, which is no gfx950" in ruling.reasons[0]


def test_cases_of_an_unknown_architecture_fill_no_lane() -> None:
    records = [dataclasses.replace(r, arch="unknown") if r.lane == "model" else r for r in strong()]
    ruling = ruled(records)
    assert ruling.decision == "UNTESTED"
    assert {c.lane for c in ruling.untested} == {"model"}


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
    assert ruled([*strong(), lied]).decision == "NOT SIGNED"


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

    ruling = ruled([of(r) if r.op == NORM else r for r in strong()])
    assert ruling.decision == "NOT SIGNED"
    assert "come from 2 versions of aiter (" in ruling.reasons[0]
    assert "of 0.1.5; " in ruling.reasons[0]
    assert "--version aiter=PATTERN" in ruling.reasons[0]


def test_a_record_from_before_the_library_was_loaded_is_no_other_kernel() -> None:
    """An adapter may learn a version when its library is imported, which the first case may come before."""

    def of(r: Record) -> Record:
        versions = {"torch": "2.13.0"} if r.lane == "model" else {"torch": "2.13.0", "aiter commit": "abc"}
        return dataclasses.replace(r, provenance=dataclasses.replace(r.provenance, kernel_versions=versions))

    assert ruled([of(r) if r.op == NORM else r for r in strong()]).decision == "SIGNED"


def test_records_of_another_kernel_that_were_given_this_name() -> None:
    other = "python -m validators run --op add_rmsnorm_quant --kernel easy/norm --case {}"
    records = [dataclasses.replace(r, reproduce=other.format(r.case)) if r.lane == "model" else r for r in strong()]
    ruling = ruled(records)
    assert ruling.decision == "NOT SIGNED"
    assert "is reproduced with --kernel easy/norm" in ruling.reasons[0]


# ---- 4: records that say otherwise than their own numbers


def edited(**changes: Any) -> Ruling:
    first = strong()[0]
    return ruled([dataclasses.replace(first, **changes), *strong()[1:]])


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
    ruling = ruled([bad, *copies, *strong()] if first else [*strong(), *copies, bad])
    assert ruling.decision == "NOT SIGNED"
    assert any(reason.startswith("Contradiction") for reason in ruling.reasons)


@pytest.mark.parametrize("date", ["1970-01-01T00:00:00+00:00", "2999-01-01T00:00:00+00:00", "yesterday"])
def test_no_date_makes_one_record_win_over_another(date: str) -> None:
    good = strong()[0]
    bad = dataclasses.replace(good, status=Status.FAILED, reasons=("scale: wrong",), comparisons=())
    later = dataclasses.replace(bad, provenance=dataclasses.replace(bad.provenance, date=date))
    assert ruled([*strong(), later]).decision == "NOT SIGNED"
    assert ruled([later, *strong()]).decision == "NOT SIGNED"


@pytest.mark.parametrize("place", range(0, len(ops()), 7))
def test_a_record_that_was_deleted_leaves_a_hole(place: int) -> None:
    records = strong()
    ruling = ruled(records[:place] + records[place + 1 :])
    assert ruling.decision == "UNTESTED"


def test_a_record_that_was_deleted_from_a_walk_leaves_a_hole() -> None:
    counted = [with_evidence(r, records={NORM: 1, QUANT: 2, GEMM: 1}) if r.lane == "layers" else r for r in strong()]
    ruling = ruled(counted)
    assert ruling.decision == "UNTESTED"
    assert why(ruling, "layers") == "1 of the walk's 2 records of per_token_quant are missing"
    # Nor does a second walk, which lacks another one, fill the first.
    other = [with_evidence(r, records={NORM: 1, QUANT: 2, GEMM: 1}, walk="b2") for r in strong() if r.lane == "layers"]
    assert ruled([*counted, *other]).decision == "UNTESTED"


# ---- 6: cases that are not the suite's, lanes that are not theirs, fewer cases than there are


def test_cases_of_one_lane_do_not_fill_another() -> None:
    other = [moved(r, "model") if r.lane == "random" else r for r in strong() if r.lane != "model"]
    assert ruled(other).decision == "UNTESTED"


def test_cases_that_the_suite_has_not_fill_nothing() -> None:
    easy = [dataclasses.replace(r, case=f"{r.case}9") if r.lane == "model" else r for r in strong()]
    ruling = ruled(easy)
    assert ruling.decision == "UNTESTED"
    assert {c.lane for c in ruling.untested} == {"model"}


def test_goldens_and_layers_do_not_fill_a_lane() -> None:
    other = [moved(r, "goldens") if r.lane == "model" else r for r in strong()]
    assert ruled(other).decision == "UNTESTED"


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
    assert ruled(older).decision == "UNTESTED"


# ---- 7: policies, claims and waivers that ask for little


def test_a_policy_that_asks_nothing_of_an_op_is_in_the_decision() -> None:
    chosen = Policy("merge", "", (Requirement("ops", ops=(QUANT,), depth="smoke"),))
    records = [r for r in ops() if r.op == QUANT]
    assert ruled(records, chosen).decision == (
        "SIGNED with no case of add_rmsnorm_quant required, with no case of ptpc_gemm required"
    )


def test_a_policy_that_leaves_lanes_out_is_in_the_decision() -> None:
    chosen = Policy("merge", "", (Requirement("ops", lanes=("exact", "random"), depth="smoke"),))
    target = dataclasses.replace(TARGET, kernels={QUANT: KERNELS[QUANT]})
    ruling = rule(target, chosen, ops(), "records")
    assert ruling.decision == "SIGNED without lanes adversarial, special, shapes, model of per_token_quant"


def test_a_policy_of_ones_own_is_named_by_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.toml"
    file.write_text('name = "merge"\n[[require]]\nstage = "ops"\ndepth = "smoke"\n')
    here = _write(tmp_path / "r", ops())
    assert main(["signoff", str(here), "--policy", str(file), "--out", str(tmp_path / "out")]) == 0
    assert f"policy merge (of {file})" in capsys.readouterr().out
    assert "policy merge (of " in (tmp_path / "out" / "signoff.md").read_text()


def test_a_waiver_of_everything_that_fails_is_in_the_decision() -> None:
    failing = [dataclasses.replace(r, status=Status.FAILED, reasons=("no",)) if r.op == NORM else r for r in strong()]
    waiver = Waiver("me", "trust me", datetime.date(2999, 1, 1), op=NORM)
    ruling = ruled(failing, dataclasses.replace(STRICT, waivers=(waiver,)))
    assert ruling.decision == "SIGNED with 1 waiver"
    assert "by me: trust me" in ruling.waived[0]


# ---- 8: doubles and emulated kernels


def test_an_emulated_kernel_is_known_by_its_name_too() -> None:
    records = [dataclasses.replace(r, kernel="emulated/x", emulated=False) if r.op in KERNELS else r for r in ops()]
    target = dataclasses.replace(TARGET, kernels=dict.fromkeys(KERNELS, ("emulated/x",)))
    chosen = Policy("smoke", "", (Requirement("ops", depth="smoke"),))
    assert rule(target, chosen, records, "records").decision == "SIGNED in emulation only"
    assert decide(records).decision.startswith("SIGNED in emulation only, at smoke depth")


def test_records_of_doubles_fill_nothing() -> None:
    records = [dataclasses.replace(r, fake=True) if r.lane == "model" else r for r in strong()]
    assert under_policy(records, STRICT, [TARGET]).decision == "UNTESTED"


# ---- 9: checks that nothing was held to


def unjudged(records: list[Record]) -> list[Record]:
    check = Check("batch invariance", None, "not judged, for row 0 alone: the kernel raised", "invariance")
    return [dataclasses.replace(r, checks=(*r.checks, check)) if r.op in KERNELS else r for r in records]


def test_a_check_that_was_judged_in_no_case_is_said_and_can_be_required() -> None:
    ruling = ruled(unjudged(strong()))
    assert ruling.outcome == "SIGNED"
    words = "atch invariance was judged in no case of add_rmsnorm_quant"
    assert any(words in text for text in ruling.facts.caveats)
    decided = under_policy(unjudged(strong()), STRICT, [TARGET])
    assert words in signoff_text.markdown(decided)
    assert words in json.dumps(signoff_json.to_dict(decided))
    pytest.importorskip("jinja2", reason="the page needs jinja2, which is optional")
    assert words in signoff_html.page(decided)
    asking = Policy("asking", "", (Requirement("ops", depth="smoke", checks=("batch invariance",)),))
    for records in (unjudged(strong()), strong()):
        ruling = ruled(records, asking)
        assert ruling.decision == "NOT SIGNED"
        assert "the policy asks for batch invariance, which was judged in no case" in ruling.reasons[0]
    one = dataclasses.replace(strong()[0], checks=(Check("batch invariance", True, "same bits", "invariance"),))
    ruling = ruled([one, *unjudged(strong())[1:]], asking)
    assert not [r for r in ruling.reasons if KERNELS[NORM][0] in r]


# ---- 10: goldens that drifted


def golden(place: int, state: str) -> Record:
    """One of several goldens of one kernel; the case is one that the suite has as well."""
    about = Golden(f"{place}@demo/norm@cpu", state)
    said = Check("golden", True if state == "UNCHANGED" else None, "codes: 3 elements differ", "determinism")
    return made(NORM, f"{NORM}-golden-{place}", "goldens", golden=about, checks=(said,))


def test_drift_is_counted_once_and_alike_everywhere() -> None:
    states = ["DRIFTED"] * 17 + ["UNCHANGED"] * 12 + ["UNTESTED"] * 6
    goldens = [golden(i, state) for i, state in enumerate(states)]
    records = [r for r in strong() if r.lane != "goldens" or r.op != NORM]
    words = "17 DRIFTED, 12 unchanged, 6 UNTESTED"
    decided = under_policy([*records, *goldens], STRICT, [TARGET])
    ruling = decided.rulings[0]
    assert ruling.decision == "NOT SIGNED"
    assert ruling.reasons[0].startswith(f"goldens of {NORM} of demo/norm: {words}. First ")
    (cell,) = [c for c in ruling.cells if c.stage == "goldens" and c.op == NORM]
    assert (cell.state, dict(cell.counts)) == ("FAILED", {"DRIFTED": 17, "UNCHANGED": 12, "UNTESTED": 6})
    assert cell.why[0].startswith(words)
    assert words in signoff_text.markdown(decided)
    (claim,) = [c for c in decided.claims if c.op == NORM]
    assert len(claim.failing) == 17
    found = signoff_json.to_dict(decided)
    assert {"DRIFTED": 17, "UNCHANGED": 12, "UNTESTED": 6} in [c["counts"] for c in found["rulings"][0]["cells"]]
    assert decide([*records, *goldens]).decision == "NOT SIGNED"
    pytest.importorskip("jinja2", reason="the page needs jinja2, which is optional")
    page = signoff_html.page(decided)
    assert "17 of 35" in page
    assert "35 of 35" not in page
    assert page.count(words) >= 3  # the reason, the cell, and the table of goldens
    assert "17 in the way" in page


# ---- the two sign-offs of the table, from the command line


def _write(directory: Path, records: list[Record]) -> Path:
    with Sink(directory) as sink:
        for r in records:
            sink.write(r)
    return directory


def test_an_evaluation_at_thirty_points_on_made_up_questions_leaves_nightly_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """26 of 300 answers lost, which is -8.7 points, with a margin of 30: PARITY, and no evidence for a claim."""
    from evals.__main__ import main as evals
    from evals.gsm8k import store
    from tests.support.eval_arms import BASELINE, CANDIDATE, two_arms

    kernel = {NORM: "aiter_hip/add_rmsnorm_quant"}
    made_up = {"questions": 300, "data": "other:mine.jsonl", "data_sha256": "cd" * 32}
    for name, header, samples in zip(
        "ab", (BASELINE, dataclasses.replace(CANDIDATE, kernels=kernel)), two_arms(300, 280, 26, 0), strict=True
    ):
        store.write(tmp_path / name, dataclasses.replace(header, **made_up), samples)  # type: ignore[arg-type]
    runs, records = [str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "r")
    assert evals(["gsm8k", "compare", *runs, "--margin", "30", "--records", records]) == 0
    (found,) = load(records)
    assert found.status is Status.PASSED
    claim = str(EXAMPLES / "glm47-aiter-gfx950.toml")
    assert main(["signoff", records, "--claim", claim, "--policy", "nightly", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().out.splitlines()[-1].startswith("written: ")
    written = json.loads((tmp_path / "out" / "signoff.json").read_text())
    (cell,) = [c for c in written["rulings"][0]["cells"] if c["stage"] == "parity"]
    assert cell["state"] == "UNTESTED"
    for words in (
        "margin 30 points (asked: at most 1.5)",
        "300 questions (asked: at least 1,319)",
        "question set other:mine.jsonl, sha256 cdcdcdcdcdcd (asked: embedded or gsm8k-test)",
        "an unknown architecture (asked: gfx950)",
    ):
        assert words in cell["why"][0]
    assert "margin 30 points" in (tmp_path / "out" / "signoff.md").read_text()


def test_a_walk_of_one_layer_with_a_margin_of_five_leaves_merge_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = claims.from_file(EXAMPLES / "glm47-emulated-gfx950.toml")
    flags = {NORM: "--kernel-norm", QUANT: "--kernel-quant", GEMM: "--kernel-gemm"}
    kernels = [word for op, flag in flags.items() for word in (flag, target.kernels[op][0])]
    weak = ["--layers", "0-0", "--margin", "5", "--tokens", "64", "--records", str(tmp_path / "r")]
    assert main(["layers", "--model", "glm-tiny", *kernels, *weak]) == 0
    assert {r.status for r in load(tmp_path / "r")} == {Status.PASSED}
    claim = str(EXAMPLES / "glm47-emulated-gfx950.toml")
    assert main(["signoff", str(tmp_path / "r"), "--claim", claim, "--policy", "merge", "--out", str(tmp_path)]) == 2
    printed = capsys.readouterr().out
    assert "layers (weaker than the policy asks: layer 0 of 4 (asked: all), margin 5 (asked: at most 0.5)" in printed
    cells = json.loads((tmp_path / "signoff.json").read_text())["rulings"][0]["cells"]
    assert {c["state"] for c in cells if c["stage"] == "layers"} == {"UNTESTED"}
    assert "layer 0 of 4" in (tmp_path / "signoff.md").read_text()


# ---- limits, and kernels of one's own


def limited(r: Record, reason: str, feature: str = "") -> Record:
    said = (reason,)
    return dataclasses.replace(
        r, status=Status.UNSUPPORTED, reasons=said, comparisons=(), checks=(), limit=Away("declared", feature)
    )


def test_lanes_that_are_declared_away_are_in_the_decision_with_the_models_shapes() -> None:
    """One case of each lane PASSED; every other one is declared away."""
    easy = {(r.op, r.lane): r.case for r in reversed(ops("default"))}
    chosen = Policy("merge", "", (Requirement("ops"),))
    target = dataclasses.replace(TARGET, kernels={NORM: KERNELS[NORM]})
    records = [r if easy[r.op, r.lane] == r.case else limited(r, "n % 16 == 0") for r in ops("default") if r.op == NORM]
    ruling = rule(target, chosen, records, "records")
    assert ruling.decision.startswith("SIGNED within declared limits: n % 16 == 0")
    decided = under_policy(records, chosen, [target])
    assert decided.decision == ruling.decision
    declared = f"demo/norm does not offer {len(records) - 5} of {len(records)} cases of {NORM}"
    assert declared in signoff_text.markdown(decided)
    assert any(declared in text for text in signoff_json.to_dict(decided)["rulings"][0]["facts"]["limits"])
    pytest.importorskip("jinja2", reason="the page needs jinja2, which is optional")
    page = signoff_html.page(decided)
    assert "within declared limits: n % 16 == 0" in page
    assert declared in page


def test_shapes_of_the_model_that_limits_hide_are_in_the_decision() -> None:
    hidden = Limits("k", NORM, 9, 4, (Limit("n <= 8192", 4, ()),), (), ("n = 12288",), 7, machine=2)
    assert facts.limit_words([hidden]) == [
        "within declared limits: n <= 8192",
        "which hide 1 of the model's own shapes (n = 12288)",
        "without 2 cases that the machine cannot hold",
    ]
    many = [dataclasses.replace(hidden, kernel=f"k{i}") for i in range(4)]
    assert facts.limit_words(many)[0] == "within the declared limits of 4 kernels"


def test_features_that_are_not_offered_are_named_in_short() -> None:
    words = 'the kernel does not offer "{}" (its attribute supports, or the default)'
    records = [
        limited(r, words.format("fp16"), "fp16")
        if "-fp16-" in r.case
        else limited(r, words.format("gemma"), "gemma")
        if "-gemma" in r.case
        else r
        for r in ops("default")
        if r.op == NORM
    ]
    chosen = Policy("merge", "", (Requirement("ops"),))
    ruling = rule(dataclasses.replace(TARGET, kernels={NORM: KERNELS[NORM]}), chosen, records, "records")
    assert ruling.decision == "SIGNED within declared limits: no fp16, gain 1 + weight"
    assert decide(records).decision == "SIGNED at default depth, within declared limits: no fp16, gain 1 + weight"


def test_an_own_kernel_is_signed_by_doing_what_the_sign_off_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ``merge``, at smoke depth. No step may be refused, as ``golden propose`` refuses a kernel of one's own."""
    from golden.__main__ import main as golden

    monkeypatch.chdir(tmp_path)
    Path("k.py").write_text(KERNEL.rpartition("quant.contract")[0])
    Path("beside.py").write_text("def rule(t):\n    return t\n")
    Path("own.toml").write_text(
        'name = "own"\n[[require]]\nstage = "ops"\ndepth = "smoke"\n[[require]]\nstage = "goldens"\n'
        '[[require]]\nstage = "layers"\nlayers = "all"\nmargin = 0.5\ntokens = 64\n'
    )
    run = ["run", "--op", QUANT, "--kernel", "k.py:quant", "--contract", CONTRACT, "--depth", "smoke"]
    assert main([*run, "--records", "r"]) == 0
    sign = ["signoff", "r", "--claim", "k.py:quant", "--contract", CONTRACT, "--policy", "own.toml", "--out", "out"]
    capsys.readouterr()
    assert main(sign) == 2
    printed = capsys.readouterr().out
    assert "No golden is asked of k.py:quant" in printed
    steps = [line.split()[2:] for line in printed.splitlines() if line.startswith("      python -m ")]
    assert [words[:2] for words in steps] == [["validators", "layers"]]
    for program, *words in steps:
        assert {"validators": main, "golden": golden}[program](words) == 0
    assert main(sign) == 0
    found = json.loads(Path("out/signoff.json").read_text())
    assert found["outcome"] == "SIGNED"
    assert "within declared limits: no " in found["decision"]


def test_a_whole_machine_with_an_own_kernel_is_not_told_to_propose_its_goldens() -> None:
    target = dataclasses.replace(TARGET, kernels={QUANT: ("k.py:quant", "demo/quant")}, one_path=False)
    ruling = rule(target, Policy("merge", "", (Requirement("goldens"),)), [], "records")
    commands = [command for step in ruling.steps for command in step.commands]
    assert commands
    assert not [command for command in commands if "k.py" in command]


KERNEL = """import torch
from beside import rule


def quant(x, fp8_dtype):
    top = torch.finfo(fp8_dtype).max
    y = x.float()
    scale = y.abs().amax(dim=-1, keepdim=True).clamp(min=1e-10) * (1.0 / top)
    return rule(y * (1.0 / scale)).clamp(-top, top).to(fp8_dtype), scale


quant.contract = "aiter-hip-gfx950"
"""


def test_a_file_beside_the_kernel_that_is_edited_between_lanes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("k.py").write_text(KERNEL)
    Path("beside.py").write_text("def rule(t):\n    return t\n")
    run = ["run", "--op", QUANT, "--kernel", "k.py:quant", "--depth", "smoke", "--records", "r", "--lane"]
    main([*run, "shapes"])
    first = [r for r in load("r") if r.status is not Status.UNTESTED]
    digests = {r.provenance.kernel_source.sha256 for r in first}
    assert len(digests) == 1
    assert set(first[0].provenance.kernel_source.files) == {"k.py", "beside.py"}
    Path("beside.py").write_text("def rule(t):\n    return t + 0\n")
    main([*run, "model"])
    assert len({r.provenance.kernel_source.sha256 for r in load("r")}) == 2
    capsys.readouterr()
    assert main(["signoff", "r"]) == 1
    assert "come from 2 versions of its source" in capsys.readouterr().out
