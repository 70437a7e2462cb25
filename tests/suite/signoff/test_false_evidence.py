"""Ways to get a wrong kernel signed, each tried: not SIGNED, or SIGNED with what it rests on in the decision itself.

Here: walks, evaluations and traces that are weaker than a policy asks, and other architectures.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from tests.support.signed import (
    GEMM,
    PARITY,
    STRICT,
    TARGET,
    path,
    strictly,
    strong,
    weaker,
    whole,
    why,
    with_evidence,
)
from validators.records.record import Status
from validators.signoff.policy import Policy, Requirement
from validators.signoff.ruling import rule


def test_strong_records_are_signed() -> None:
    ruling = strictly(strong())
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
    assert strictly(strong(), some).outcome == "SIGNED"
    short = [with_evidence(r, layers=(0, 1)) if r.stage == "layers" else r for r in strong()]
    assert "layers 0 to 1 of 4 (asked: 0 and 3)" in why(strictly(short, some), "layers")


def test_records_without_evidence_fill_no_cell_that_asks_for_it() -> None:
    ruling = strictly(path())
    assert ruling.decision == "UNTESTED"
    assert {c.stage for c in ruling.untested} == {"layers", "parity", "trace"}


def test_a_trace_that_was_held_to_no_number_of_layers_is_open() -> None:
    ruling = weaker("trace", layers=None)
    assert ruling.decision == "UNTESTED"
    assert "asked: --layers N" in why(ruling, "trace")


def test_a_strong_record_beside_a_weak_one_fills_the_cell_and_a_weak_failure_still_counts() -> None:
    extra = with_evidence(whole("parity", case="parity-2"), margin=30.0)
    assert strictly([*strong(), extra]).decision == "SIGNED"
    lost = with_evidence(whole("parity", Status.FAILED, case="parity-2", reasons=("worse",)), margin=30.0)
    assert strictly([*strong(), lost]).decision == "NOT SIGNED"


def test_an_evaluation_from_nowhere_fills_no_cell() -> None:
    """A comparison of served runs does not know the architecture unless the runs say it."""
    records = [dataclasses.replace(r, arch="unknown", device="unknown") if r.lane == "parity" else r for r in strong()]
    ruling = strictly(records)
    assert ruling.decision == "UNTESTED"
    assert "an unknown architecture (asked: cpu)" in why(ruling, "parity")


# ---- 2: another architecture, and what never ran there


def test_records_of_another_architecture_do_not_count() -> None:
    assert strictly([dataclasses.replace(r, arch="gfx950", device="cuda") for r in strong()]).decision == "UNTESTED"


def test_a_record_that_names_an_architecture_that_its_device_is_not() -> None:
    target = dataclasses.replace(TARGET, arch="gfx950")
    lied = [dataclasses.replace(r, arch="gfx950") for r in strong()]
    ruling = rule(target, STRICT, lied, "records")
    assert ruling.decision == "NOT SIGNED"
    assert "ran on cpu, which is no gfx950" in ruling.reasons[0]


def test_cases_of_an_unknown_architecture_fill_no_lane() -> None:
    records = [dataclasses.replace(r, arch="unknown") if r.lane == "model" else r for r in strong()]
    ruling = strictly(records)
    assert ruling.decision == "UNTESTED"
    assert {c.lane for c in ruling.untested} == {"model"}
