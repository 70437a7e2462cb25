"""Ways to get a wrong kernel signed, each tried: not SIGNED, or SIGNED with what it rests on in the decision itself.

Here: policies and waivers that ask for little, doubles, checks that nothing was held to, goldens that drifted.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path

import pytest

from tests.support.signed import KERNELS, NORM, QUANT, STRICT, TARGET, golden, ops, strictly, strong, write_records
from validators.__main__ import main
from validators.records.record import Check, Record, Status
from validators.signoff import html as signoff_html
from validators.signoff.decision import decide, under_policy
from validators.signoff.json import to_dict
from validators.signoff.policy import Policy, Requirement, Waiver
from validators.signoff.ruling import rule
from validators.signoff.text import markdown

# ---- 7: policies, claims and waivers that ask for little


def test_a_policy_that_asks_nothing_of_an_op_is_in_the_decision() -> None:
    chosen = Policy("merge", "", (Requirement("ops", ops=(QUANT,), depth="smoke"),))
    records = [r for r in ops() if r.op == QUANT]
    assert strictly(records, chosen).decision == (
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
    here = write_records(tmp_path / "r", ops())
    assert main(["signoff", str(here), "--policy", str(file), "--out", str(tmp_path / "out")]) == 0
    assert f"policy merge (of {file})" in capsys.readouterr().out
    assert "policy merge (of " in (tmp_path / "out" / "signoff.md").read_text()


def test_a_waiver_of_everything_that_fails_is_in_the_decision() -> None:
    failing = [dataclasses.replace(r, status=Status.FAILED, reasons=("no",)) if r.op == NORM else r for r in strong()]
    waiver = Waiver("me", "trust me", datetime.date(2999, 1, 1), op=NORM)
    ruling = strictly(failing, dataclasses.replace(STRICT, waivers=(waiver,)))
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
    ruling = strictly(unjudged(strong()))
    assert ruling.outcome == "SIGNED"
    words = "atch invariance was judged in no case of add_rmsnorm_quant"
    assert any(words in text for text in ruling.facts.caveats)
    decided = under_policy(unjudged(strong()), STRICT, [TARGET])
    assert words in markdown(decided)
    assert words in json.dumps(to_dict(decided))
    pytest.importorskip("jinja2", reason="the page needs jinja2, which is optional")
    assert words in signoff_html.page(decided)
    asking = Policy("asking", "", (Requirement("ops", depth="smoke", checks=("batch invariance",)),))
    for records in (unjudged(strong()), strong()):
        ruling = strictly(records, asking)
        assert ruling.decision == "NOT SIGNED"
        assert "the policy asks for batch invariance, which was judged in no case" in ruling.reasons[0]
    one = dataclasses.replace(strong()[0], checks=(Check("batch invariance", True, "same bits", "invariance"),))
    ruling = strictly([one, *unjudged(strong())[1:]], asking)
    assert not [r for r in ruling.reasons if KERNELS[NORM][0] in r]


# ---- 10: goldens that drifted


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
    assert words in markdown(decided)
    (claim,) = [c for c in decided.claims if c.op == NORM]
    assert len(claim.failing) == 17
    found = to_dict(decided)
    assert {"DRIFTED": 17, "UNCHANGED": 12, "UNTESTED": 6} in [c["counts"] for c in found["rulings"][0]["cells"]]
    assert decide([*records, *goldens]).decision == "NOT SIGNED"
    pytest.importorskip("jinja2", reason="the page needs jinja2, which is optional")
    page = signoff_html.page(decided)
    assert "17 of 35" in page
    assert "35 of 35" not in page
    assert page.count(words) >= 3  # the reason, the cell, and the table of goldens
    assert "17 in the way" in page
