"""Records of schema 1 are read, with every fact that they state in words as a field, and decided as they were.

``tests/support/records-version1.jsonl`` was written by the suite when schema 1 was its own.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from validators.records.evidence import ErrorByDepth, Evaluation, Golden, Launches, Limit, WalkEvidence
from validators.records.record import Explanation, Record, Status
from validators.records.store import StoreError, from_json, to_json
from validators.signoff.decision import decide

LINES = (Path(__file__).resolve().parents[2] / "support" / "records-version1.jsonl").read_text("utf-8").splitlines()
OLD: list[dict[str, Any]] = [json.loads(line) for line in LINES]


@pytest.fixture(scope="module")
def read() -> list[Record]:
    return [from_json(line) for line in LINES]


def one(read: list[Record], **fields: Any) -> Record:
    return next(r for r in read if all(getattr(r, name) == value for name, value in fields.items()))


def changed(old: dict[str, Any], **changes: Any) -> Record:
    return from_json(json.dumps({**old, **changes}))


def test_what_had_a_field_is_kept(read: list[Record]) -> None:
    assert {old["schema"] for old in OLD} == {1}
    for old, new in zip(OLD, read, strict=True):
        assert new.schema == 2
        for name in ("kernel", "op", "case", "lane", "device", "arch", "seconds", "reproduce", "emulated", "fake"):
            assert getattr(new, name) == old[name]
        assert (new.status.value, list(new.reasons)) == (old["status"], old["reasons"])
        assert [c.detail for c in new.checks] == [c["detail"] for c in old["checks"]]
        assert [c.judged for c in new.comparisons] == [c["judged"] for c in old["comparisons"]]
        assert (new.provenance.torch, new.provenance.date) == (old["provenance"]["torch"], old["provenance"]["date"])
        assert new.provenance.kernel_versions == old["provenance"]["kernel_versions"]
        assert repr(from_json(to_json(new))) == repr(new)


def test_explanations_keep_their_words_and_get_name_share_and_kind(read: list[Record]) -> None:
    for old, new in zip(OLD, read, strict=True):
        assert [e.text for e in new.explanations] == old["explanations"]
    first, second, *_ = one(read, status=Status.FAILED).explanations
    assert (first.name, first.share, first.kind) == ("scale_floor_divisor=1e+12", 1.0, "defect")
    assert (second.name, second.share, second.kind) == ("eager", 1.0, "contract")
    failed = next(old for old in OLD if old["status"] == "FAILED")
    texts = [
        "tail-not-in-amax: 60 % of the violations vanish if the tail counts",
        "outputs are low",
        "the bits show: x",
    ]
    found = changed(failed, explanations=texts).explanations
    assert found[0] == Explanation("tail-not-in-amax", "60 % of the violations vanish if the tail counts", 0.6)
    assert found[1] == Explanation("", "outputs are low", None, "observation")
    assert found[2] == Explanation("the bits show", "x", None, "observation")


def test_stage_and_subject(read: list[Record]) -> None:
    stages = Counter((r.stage, r.subject) for r in read)
    ops = len(read) - 3
    assert stages == {("ops", "kernel"): ops, ("layers", "path"): 1, ("layers", "kernel"): 1, ("goldens", "kernel"): 1}
    truth = changed(OLD[0], op="goldens", lane="goldens")
    assert (truth.stage, truth.subject) == ("goldens", "truth")


def test_limits_and_faults(read: list[Record]) -> None:
    away = [r.limit for r in read if r.status is Status.UNSUPPORTED]
    assert away == [Limit("declared"), Limit("declared", "strided"), Limit("declared", "3d")]
    assert [r.fault for r in read if r.status is Status.ERROR] == ["raised"]
    old = next(old for old in OLD if old["status"] == "UNSUPPORTED")
    assert changed(old, provenance={}).limit == Limit("declared"), "of before the mark was kept"
    assert changed(old, provenance={"limit": "machine"}).limit == Limit("machine")
    assert changed(old, comparisons=OLD[0]["comparisons"]).limit == Limit("contract")
    died = changed(next(o for o in OLD if o["status"] == "ERROR"), reasons=["worker died with signal 11"])
    assert died.fault == ""
    assert changed(OLD[0], contract="identify").contract is None


@pytest.mark.parametrize(
    ("detail", "why"),
    [
        ("not judged, for row 0 alone: the kernel raised ValueError", "raised"),
        ("the case has one row, so there is no other batch", "nothing"),
        ("row 0 alone: 3 elements differ", ""),
    ],
)
def test_why_a_check_was_not_judged(detail: str, why: str) -> None:
    check = {"name": "batch invariance", "ok": None, "detail": detail, "kind": "invariance"}
    assert changed(OLD[0], checks=[check]).checks[0].unjudged == why


def test_a_walk(read: list[Record]) -> None:
    whole, op = one(read, stage="layers", subject="path"), one(read, stage="layers", subject="kernel")
    assert whole.walk is not None
    assert op.walk is not None
    assert (whole.walk.model, whole.walk.layers, whole.walk.of, whole.walk.tokens) == ("glm-tiny", (0, 1), 4, 64)
    assert (whole.walk.margin, whole.walk.tp, whole.walk.walk) == (0.5, 1, op.walk.walk)
    assert sum(whole.walk.records.values()) > 10
    assert set(whole.walk.stream) == {"fused", "unfused"}
    assert op.walk.depth is None
    assert isinstance(whole.walk.depth, ErrorByDepth)
    assert (len(whole.walk.depth.layers), len(whole.walk.depth.fused)) == (2, 2)


def test_a_golden(read: list[Record]) -> None:
    golden = one(read, stage="goldens").golden
    assert golden == Golden("add_rmsnorm_quant-m16-n5120-bf16-e4m3fn-model-s0@emulated/aiter-triton@cpu", "UNCHANGED")


EVIDENCE: dict[str, Any] = {
    "rule": "non-inferiority",
    "margin": 1.5,
    "alpha": 0.05,
    "questions": 1319,
    "data": "x",
    "tokens": 9,
}


def of_stage(lane: str, evidence: Any, **provenance: Any) -> Record:
    about = {**OLD[0]["provenance"], "evidence": evidence, **provenance}
    op = {"parity": "gsm8k_parity"}.get(lane, lane)
    return changed(OLD[0], op=op, lane=lane, case=f"{lane}-1", comparisons=[], provenance=about)


def test_an_evaluation_and_a_trace() -> None:
    parity = {"difference": -0.004, "interval_95": [-0.011, 0.003]}
    record = of_stage("parity", EVIDENCE, parity=parity, arms=["unfused", "fused"], profile="p/1")
    assert (record.stage, record.subject) == ("parity", "path")
    assert record.evaluation == Evaluation(
        **EVIDENCE, arms=("unfused", "fused"), profile="p/1", difference=-0.004, interval=(-0.011, 0.003)
    )
    trace = of_stage("trace", {"layers": 92}, trace_sha256="ab")
    assert (trace.launches, trace.subject) == (Launches(92, "ab"), "path")


@pytest.mark.parametrize(
    ("evidence", "field", "value"),
    [
        ({"margin": "1.5"}, "margin", None),
        ({"questions": True}, "questions", None),
        ({"rule": 5}, "rule", "5"),
        ({"alpha": None}, "alpha", None),
        ({"aa": 1}, "aa", True),
        ("nothing", "margin", None),
    ],
)
def test_what_is_stated_wrongly_is_not_known(evidence: Any, field: str, value: object) -> None:
    found = of_stage("parity", {**EVIDENCE, **evidence} if isinstance(evidence, dict) else evidence).evaluation
    assert getattr(found, field) == value
    walk = of_stage("layers", {"layers": "all", "of": "4", "tokens": 2.5, "margin": [1], "records": 3}).walk
    assert walk == WalkEvidence()


def test_an_error_probability_that_is_no_number_is_not_taken_for_the_usual_one() -> None:
    found = of_stage("parity", {**EVIDENCE, "alpha": "small"}).evaluation
    assert found is not None
    assert found.alpha is not None
    assert math.isnan(found.alpha)


@pytest.mark.parametrize("change", [{"explanations": "text"}, {"explanations": [3]}, {"checks": [5]}, {"colour": 1}])
def test_a_record_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(StoreError):
        changed(OLD[0], **change)


def test_the_decisions_are_those_of_then(read: list[Record]) -> None:
    smoke = [r for r in read if r.kernel == "torch_native/eager"]
    passed = [r for r in smoke if r.contract == "eager"]
    # They were the smoke depth of their day, which holds more cases by now.
    assert decide(passed).decision == "SIGNED on 16 chosen cases only"
    assert decide(smoke).decision == "NOT SIGNED"
    raised = decide([r for r in read if r.kernel == "k.py:raises"])
    assert (raised.decision, raised.claims[0].cells["random"]) == ("NOT SIGNED", {"ERROR": 1})
    limited = decide([r for r in read if r.kernel == "k.py:limited"]).claims[0].facts.limits
    assert limited == (
        "k.py:limited does not offer 3 of 3 cases of per_token_quant: bf16 (3); e4m3fn (3); padded rows (1); "
        "three dimensions (1); rows of 16 only (1)",
    )
