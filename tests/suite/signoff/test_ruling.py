"""Claims under policies: what signs, what is missing and how to fill it, versions, and several machines."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support.made import record
from tests.support.signed import (
    EVERY,
    GEMM,
    KERNELS,
    LATER,
    NORM,
    QUANT,
    SMOKE,
    TARGET,
    made,
    ops,
    path,
    ruled,
    whole,
)
from validators.records.evidence import Golden
from validators.records.provenance import Provenance
from validators.records.record import Check, Explanation, Record, Status
from validators.signoff import decision, depths
from validators.signoff.claims import Target
from validators.signoff.decision import under_policy
from validators.signoff.policy import Policy, Requirement, Waiver
from validators.signoff.ruling import rule
from validators.signoff.text import markdown
from validators.words import STAGES


def test_every_cell_passed_is_signed() -> None:
    ruling = ruled(path())
    assert (ruling.decision, ruling.reasons, ruling.steps) == ("SIGNED", (), ())
    assert {cell.state for cell in ruling.cells} == {"PASSED"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_nobody_ran_is_untested_with_a_command(stage: str) -> None:
    left = [r for r in path() if (r.lane if r.lane in STAGES else "ops") != stage]
    ruling = ruled(left)
    assert (ruling.decision, ruling.reasons) == ("UNTESTED", (f"UNTESTED: {stage}.",))
    words = {"ops": "validators run --kernel", "goldens": "golden check", "parity": "evals parity"}
    commands = [c for step in ruling.steps for c in step.commands]
    assert any(words.get(stage, f"validators {stage}") in c for c in commands)
    assert len(ruling.steps) == (3 if stage == "ops" else 1)


def test_one_missing_lane_is_named_with_its_command() -> None:
    ruling = ruled([r for r in path() if not (r.op == NORM and r.lane == "model")])
    assert ruling.reasons == ("UNTESTED: ops of demo/norm (model).",)
    (step,) = ruling.steps
    assert step.commands == (
        "python -m validators run --kernel add_rmsnorm_quant=demo/norm --lane model --depth smoke --device cpu "
        "--records records",
    )


def test_one_case_less_than_the_depth_has_is_untested() -> None:
    first = ops()[0]
    ruling = ruled(ops()[1:], SMOKE)
    assert ruling.decision == "UNTESTED"
    (cell,) = ruling.untested
    assert (cell.kernel, cell.lane) == (first.kernel, first.lane)
    assert first.case in cell.why[0]


def test_a_deeper_run_is_enough_and_a_shallower_one_is_not() -> None:
    assert ruled(ops("default"), SMOKE).decision == "SIGNED"
    deep = Policy("deep", "", (Requirement("ops", depth="deep"),))
    assert ruled(ops("default"), deep).decision == "UNTESTED"


@pytest.mark.parametrize("status", [Status.FAILED, Status.NONDETERMINISTIC, Status.MISTRUSTED, Status.ERROR])
def test_one_bad_record_in_any_stage_is_not_signed(status: Status) -> None:
    for bad in (
        made(NORM, "add_rmsnorm_quant-one-more", "random", status, reasons=("because",)),
        made(GEMM, "layers-glm-tiny-l01", "layers", status, reasons=("because",)),
        whole("parity", status, case="parity-2", reasons=("because",)),
        whole("trace", status, case="trace-2", reasons=("because",)),
    ):
        ruling = ruled([*path(), bad])
        assert ruling.decision == "NOT SIGNED"
        (reason,) = ruling.reasons
        assert status.value in reason
        assert "because" in reason


def test_a_failure_of_a_stage_that_is_not_required_counts_too() -> None:
    ruling = ruled([*ops(), whole("parity", Status.FAILED, reasons=("worse",))], SMOKE)
    assert ruling.decision == "NOT SIGNED"


def test_many_failures_of_one_cause_are_one_reason_that_names_it() -> None:
    def broken(r: Record) -> Record:
        why = (Explanation("tail-not-in-amax", "every violation vanishes if the tail is left out", 1.0),)
        return dataclasses.replace(r, status=Status.FAILED, reasons=("scale: wrong",), explanations=why)

    records = [broken(r) if r.op == NORM else r for r in path()]
    (reason,) = ruled(records).reasons
    cases = sum(r.op == NORM for r in records)
    assert reason.startswith(f"add_rmsnorm_quant of demo/norm: FAILED in {cases} of {cases} cases (ops: random, ")
    assert "All explained by tail-not-in-amax: every violation vanishes if the tail is left out." in reason


def test_a_regression_is_quoted_as_the_evaluation_says_it() -> None:
    said = "REGRESSION: fused against unfused: accuracy: 91 % -> 80 %."
    worse = whole("parity", Status.FAILED, case="parity-tiny-glm-n1319-margin1.5-s0", reasons=(said,))
    (reason,) = ruled([r for r in path() if r.lane != "parity"] + [worse]).reasons
    assert reason == (
        "parity of demo/norm: FAILED in 1 of 1 cases (parity). First parity-tiny-glm-n1319-margin1.5-s0: " + said
    )


def test_drifted_goldens_wait_for_a_person() -> None:
    drift = made(
        NORM,
        "g",
        "goldens",
        golden=Golden("", "DRIFTED"),
        checks=(Check("golden", None, "codes: 3 elements differ", "determinism"),),
    )
    ruling = ruled([*path(), drift])
    assert ruling.decision == "NOT SIGNED"
    assert ruling.reasons[0].startswith(f"goldens of {NORM} of demo/norm: 1 DRIFTED, 1 unchanged. First g: ")
    assert "codes: 3 elements differ" in ruling.reasons[0]


def test_goldens_of_another_cpu_and_a_walk_without_its_end_show_nothing() -> None:
    def other_isa(r: Record) -> Record:
        return dataclasses.replace(r, golden=Golden("", "UNTESTED")) if r.lane == "goldens" else r

    assert ruled([other_isa(r) for r in path()]).reasons == ("UNTESTED: goldens.",)
    ruling = ruled([r for r in path() if not r.case.endswith("-trajectory")])
    assert ruling.reasons == ("UNTESTED: layers (the error against depth was not judged).",)
    assert ruling.untested[0].why == ("the error against depth was not judged",)


def test_goldens_that_belong_to_another_cpu_do_not_stand_in_the_way_where_others_are_unchanged() -> None:
    elsewhere = [
        made(op, f"{op}-other", "goldens", golden=Golden("", state))
        for op, state in zip(KERNELS, ("UNTESTED", "MISSING", "UNTESTED"), strict=True)
    ]
    ruling = ruled([*path(), *elsewhere])
    assert (ruling.decision, ruling.reasons) == ("SIGNED", ())
    [cell] = [c for c in ruling.cells if c.stage == "goldens" and c.op == NORM]
    assert cell.counts == {"UNCHANGED": 1, "UNTESTED": 1}


HOSTILE = "<script>alert(1)</script>|`x`\n## SIGNED @everyone"


def test_a_claim_cannot_write_markup() -> None:
    signoff_html = pytest.importorskip("validators.signoff.html")
    pytest.importorskip("jinja2", reason="the page needs jinja2, which is optional")
    target = dataclasses.replace(TARGET, name=HOSTILE, about=HOSTILE, contracts={NORM: HOSTILE})
    chosen = dataclasses.replace(EVERY, name=HOSTILE, about=HOSTILE, waivers=(Waiver(HOSTILE, HOSTILE, LATER, "ops"),))
    decided = under_policy(ops(contract=HOSTILE)[1:], chosen, [target])
    assert "<script>alert" not in signoff_html.page(decided)
    text = markdown(decided)
    prose = "\n".join(line for line in text.split("\n") if not line.startswith("    "))  # commands are code
    assert "<script" not in prose
    assert "@everyone" not in prose
    assert "\n## SIGNED" not in text


def test_a_truth_that_moved_stands_in_the_way_of_everybody() -> None:
    moved = record(
        Status.FAILED,
        op="goldens",
        lane="goldens",
        kernel="golden/reference",
        arch="any",
        case="r",
        reasons=("other float64 values",),
    )
    ruling = ruled([*path(), moved])
    assert ruling.decision == "NOT SIGNED"
    assert "golden/reference" in ruling.reasons[0]


def test_contradicting_machines_are_shown() -> None:
    first = ops()[0]
    other = dataclasses.replace(
        first, status=Status.FAILED, reasons=("scale: wrong",), provenance=Provenance(commit="fff", host="other")
    )
    ruling = ruled([*path(), other])
    assert ruling.decision == "NOT SIGNED"
    (clash,) = [r for r in ruling.reasons if r.startswith("Contradiction")]
    assert first.case in clash
    assert "commit fff on other" in clash


def test_contract_architecture_and_version_must_be_those_of_the_claim() -> None:
    for records, words in (
        (ops(contract="eager"), "judged under contract eager, and the claim says vllm"),
        (ops(provenance=Provenance(torch="2.11.0")), "with torch 2.11.0, and the claim says 2.13.*"),
        (ops(provenance=Provenance()), "without the version of torch"),
    ):
        target = dataclasses.replace(TARGET, contracts=dict.fromkeys(KERNELS, "vllm"), versions={"torch": "2.13.*"})
        ruling = ruled(records, SMOKE, target)
        assert ruling.decision == "UNTESTED"
        assert ruling.records == ()
        assert any(words in why for why, _ in ruling.excluded)
    assert ruled(ops(arch="gfx942"), SMOKE).decision == "UNTESTED"
    matching = dataclasses.replace(TARGET, contracts=dict.fromkeys(KERNELS, "vllm"), versions={"torch": "2.13.*"})
    assert ruled(ops(), SMOKE, matching).decision == "SIGNED"


def test_a_crash_before_the_contract_was_known_counts() -> None:
    target = dataclasses.replace(TARGET, contracts=dict.fromkeys(KERNELS, "vllm"))
    crash = made(NORM, "x", "random", Status.ERROR, contract=None, arch="unknown", reasons=("died",))
    assert ruled([*ops(), crash], SMOKE, target).decision == "NOT SIGNED"


def test_emulated_kernels_sign_in_emulation_only() -> None:
    assert ruled(ops(emulated=True), SMOKE).decision == "SIGNED in emulation only"


def test_a_case_without_a_row_fills_no_lane_alone() -> None:
    """Limits may declare away all but m = 0; empty outputs are no evidence of any value."""
    policy = Policy("shapes", "", (Requirement("ops", ops=(QUANT,), lanes=("shapes",), depth="default"),))
    target = Target("one op", "cpu", {QUANT: KERNELS[QUANT]})
    empty = tuple(dataclasses.replace(c, elements=0, judged=0, single=0) for c in made(QUANT, "", "shapes").comparisons)
    cases = depths.lanes(QUANT, "default", "e4m3fn")["shapes"]
    assert any("-m0-" in case for case in cases)

    def records(*judged: str) -> list[Record]:
        return [
            made(QUANT, case, "shapes", comparisons=empty)
            if "-m0-" in case
            else made(QUANT, case, "shapes")
            if case in judged
            else made(QUANT, case, "shapes", Status.UNSUPPORTED, reasons=("no",), comparisons=(), checks=())
            for case in cases
        ]

    found = rule(target, policy, records())
    assert found.decision == "NOT SIGNED"
    assert "only cases without a row PASSED" in found.cells[0].why[0]
    assert rule(target, policy, records(cases[0])).outcome == "SIGNED"
    reasons = decision.decide(records()).claims[0].reasons
    assert any(
        r.startswith("ops shapes of demo/quant: only cases without a row PASSED (1 PASSED, ") for r in reasons
    ), reasons
    assert not any("without a row" in r for r in decision.decide(records(cases[0])).claims[0].reasons)


def test_a_contract_of_changed_fields_is_said_to_have_no_source() -> None:
    words = "No source is known for eager+amax_floor=10: a preset but for the fields that are named."
    assert words in rule(TARGET, SMOKE, ops(contract="eager+amax_floor=10")).facts.caveats
    assert not any("No source" in text for text in rule(TARGET, SMOKE, ops(contract="eager")).facts.caveats)
