"""A stated contract with wide sets is said with the decision, and so is the stricter one that the outputs follow."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.made import comparison, record
from validators.__main__ import main
from validators.cases.case import Case
from validators.cases.recipe import GEMM
from validators.cases.suite import cases_for
from validators.cases.tensors import GemmInputs, GemmOutputs
from validators.kernels.kernel import Kernel
from validators.kernels.registry import find_kernel
from validators.records.record import Record, Status
from validators.records.store import from_json, to_json
from validators.records.verdict import left_open
from validators.run import validate, with_stricter
from validators.signoff import facts, strength

GAUSSIAN = Case(GEMM, 24, 48, "gaussian", k=176)
PROVEN = Case(GEMM, 24, 48, "tiny_integers", k=176)


def of(case: Case, **changes: object) -> Record:
    wide = (comparison("out", elements=1000, judged=1000, single=1),)
    fields: dict[str, Any] = {"op": GEMM, "lane": "random", "contract": "unknown", "comparisons": wide}
    return record(case=case.id, **{**fields, **changes})


def asked(kernel: Kernel, case: Case, contract: str | None = None) -> Record:
    """As a worker process makes the record."""
    return with_stricter(kernel, case, validate(kernel, case, contract=contract))


def test_most_elements_with_several_values_is_a_majority() -> None:
    def out(single: int) -> bool:
        return left_open([comparison("out", judged=100, elements=100, single=single)])

    assert (out(49), out(50), out(100), left_open([])) == (True, False, False, False)


def test_a_kernel_that_states_less_than_it_does_follows_the_stricter_contract() -> None:
    kernel = find_kernel("emulated/unknown", GEMM)
    wide = asked(kernel, GAUSSIAN)
    assert (wide.status, wide.contract, wide.contract_from) == (Status.PASSED, "unknown", "declared")
    assert wide.follows not in ("", "unknown")
    strict = validate(kernel, GAUSSIAN, contract=wide.follows)
    assert strict.status is Status.PASSED
    assert sum(c.single for c in strict.comparisons) > sum(c.single for c in wide.comparisons)
    assert from_json(to_json(wide)) == wide


def test_it_is_looked_for_where_the_stated_contract_says_little() -> None:
    assert asked(find_kernel("emulated/unknown", GEMM), PROVEN).follows == "", "one value for most elements"
    assert asked(find_kernel("emulated/fp32", GEMM), GAUSSIAN).follows == ""
    identified = asked(find_kernel("emulated/unknown", GEMM), GAUSSIAN, contract="identify")
    assert identified.follows == "", "the strictest is what it was judged by"


def test_a_kernel_that_follows_nothing_stricter_has_no_other_contract_named() -> None:
    """Partial sums of eight bits: inside the sets of ``unknown`` on ordinary data, and inside no stricter ones."""

    def call(inputs: GemmInputs, buffers: object) -> GemmOutputs:
        return GemmOutputs(split_in_bf16(inputs))

    found = asked(Kernel("demo/splits", GEMM, "unknown", call), dataclasses.replace(GAUSSIAN, k=2048))
    assert found.follows == ""


def split_in_bf16(inputs: GemmInputs) -> torch.Tensor:
    """Four slices of K, each stored in bf16 before they are added."""
    k = inputs.a.shape[1]
    parts = [inputs.a[:, i : i + k // 4].float() @ inputs.b[:, i : i + k // 4].float().T for i in range(0, k, k // 4)]
    total = torch.stack([part.bfloat16().float() for part in parts]).sum(0)
    return (total * inputs.a_scale.view(-1, 1) * inputs.b_scale.view(1, -1)).to(inputs.out_dtype)


def test_partial_sums_in_bf16_fail_under_unknown_at_default_depth() -> None:
    """Where products cancel the sets of ``unknown`` are about the output itself, and a case of the suite shows it."""

    def call(inputs: GemmInputs, buffers: object) -> GemmOutputs:
        return GemmOutputs(split_in_bf16(inputs))

    kernel = Kernel("demo/splits", GEMM, "unknown", call)
    case = min(
        (c for c in cases_for(GEMM) if c.k >= 5120 and c.recipe == "cancelling_integers"), key=lambda c: c.m * c.n
    )
    found = validate(kernel, case)
    assert found.status is Status.FAILED
    assert "outside their admissible set" in found.reasons[0]


def test_the_decision_says_both() -> None:
    said = facts.of([of(GAUSSIAN, contract_from="declared", follows="cdna3-mfma")])
    assert said.qualifiers == ("declared unknown, where the stricter cdna3-mfma fits too",)
    words = f"Contract unknown admits several values for most elements of {GEMM} in lane random."
    assert words in said.caveats
    sharp = (comparison("out", elements=1000, judged=1000, single=900),)
    assert facts.of([of(GAUSSIAN, comparisons=sharp)]).qualifiers == ()
    assert words not in facts.of([of(GAUSSIAN, comparisons=sharp)]).caveats
    both = [of(GAUSSIAN), of(GAUSSIAN, lane="model")]
    assert any(text.endswith("in lanes random and model.") for text in facts.of(both).caveats)


def test_known_defects_do_not_count_for_a_case_that_said_little() -> None:
    (one,) = strength.measure([of(GAUSSIAN), of(PROVEN, comparisons=())])
    assert (one.passed, one.weak) == (1, 1)
    assert one.sentence().endswith(
        "; 1 more case passed under a contract that admits several values for most of its elements, "
        "and counts for nothing"
    )
    (own,) = strength.measure([of(GAUSSIAN, contract="fp32")])
    assert (own.passed, own.weak) == (1, 0), "the table was measured under fp32"


def test_signed_under_unknown_names_what_the_outputs_follow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--kernel", f"{GEMM}=emulated/unknown", "--device", "cpu", "--records", str(tmp_path / "r")]
    assert main(["run", *options, "--case", GAUSSIAN.id]) == 0
    main(["signoff", str(tmp_path / "r"), "--out", str(tmp_path / "s")])
    capsys.readouterr()
    written = json.loads((tmp_path / "s" / "signoff.json").read_text())
    said = written["claims"][0]["facts"]["qualifiers"]
    assert said[0].startswith("declared unknown, where the stricter ")
