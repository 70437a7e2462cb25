"""This project's Triton kernel as machine code of both targets, from fixtures: verdicts, records, planted faults."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from tests.support.amdgcn_edit import FP8, edited, judged, kernel_of, text_of
from validators.cases.case import Case
from validators.records.record import Record, Status
from validators.run import validate
from validators.signoff import judged as evidence

TARGETS = ("gfx942", "gfx950")


def _failed(record: Record) -> str:
    return "; ".join(check.detail for check in record.checks if check.ok is False)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("text", "case"),
    [
        ("any", "m33-n1002-bf16-{fp8}-gaussian-s0"),
        ("any", "m17-n1002-bf16-{fp8}-midpoints-s0"),
        ("any", "m3-n1001-bf16-{fp8}-uniform_bytes-s0"),
        ("any", "m5-n2-bf16-{fp8}-gaussian-s0"),
        ("any", "m9-n1002-bf16-{fp8}-nonfinite-s0"),
        ("any", "m33-n1002-bf16-{fp8}-gaussian-strided-s0"),
        ("vector", "m64-n1024-bf16-{fp8}-gaussian-s0"),
        ("vector", "m32-n1024-bf16-{fp8}-zero_rows-s0"),
        ("vector", "m34-n1024-bf16-{fp8}-subnormal_rows-s0"),
        ("vector", "m1-n512-bf16-{fp8}-gaussian-s0"),
    ],
)
def test_the_machine_code_is_admissible(target: str, text: str, case: str) -> None:
    record = judged(text_of(target, text), target, case)
    assert record.status is Status.PASSED, record.reasons
    assert record.arch == target


@pytest.mark.parametrize("target", TARGETS)
def test_the_record_says_what_was_interpreted(target: str) -> None:
    record = judged(text_of(target, "any"), target)
    chosen = record.provenance.chosen
    assert record.emulated
    assert record.device == f"amdgcn:{target}"
    assert (chosen["interpreter"], chosen["target"], chosen["policy"]) == ("amdgcn, on a CPU", target, "nearest")
    ran, count = map(int, re.findall(r"\d+", chosen["instructions executed"]))
    assert 0.9 * count < ran <= count
    assert "v_cvt" in chosen["operations"]
    assert f"--device amdgcn:{target}" in record.reproduce


@pytest.mark.parametrize("target", TARGETS)
def test_the_verdict_is_given_under_every_policy_that_the_run_touches(target: str) -> None:
    record = judged(text_of(target, "any"), target)
    (check,) = (check for check in record.checks if check.name == "open points")
    assert check.ok
    assert check.detail.startswith("the same verdict under ulp-up, ulp-down; other bits under")
    assert record.provenance.chosen["other policies"] == "ulp-up ulp-down"
    record = judged(text_of(target, "any"), target, "m9-n1002-bf16-{fp8}-nonfinite-s0")
    assert record.status is Status.PASSED


def test_a_verdict_that_hangs_on_a_policy_is_undetermined() -> None:
    kernel = kernel_of(text_of("gfx942", "any"))

    def for_device(device: str) -> dict[str, Any]:
        here = dict(kernel.for_device(device))

        def with_another_scale(inputs: Any, buffers: Any) -> Any:
            outputs = here["call"](inputs, buffers)
            outputs.scale.mul_(2)
            return outputs

        return {**here, "readings": lambda: {"ulp-up": here["call"], "scale-doubled": with_another_scale}}

    case = Case.parse("add_rmsnorm_quant-m3-n1002-bf16-e4m3fnuz-gaussian-s0")
    record = validate(dataclasses.replace(kernel, for_device=for_device), case, device="amdgcn:gfx942")
    assert record.status is Status.FAILED
    assert "undetermined by the instruction set: PASSED as read first, FAILED under scale-doubled" in _failed(record)


@pytest.mark.parametrize("target", TARGETS)
def test_no_record_of_it_counts_as_hardware(target: str) -> None:
    record = judged(text_of(target, "any"), target)
    assert "interpreted" in (evidence._wrong_device(record) or "")


def test_a_target_has_one_fp8_format() -> None:
    case = Case.parse("add_rmsnorm_quant-m3-n1002-bf16-e4m3fn-gaussian-s0")
    record = validate(kernel_of(text_of("gfx942", "any")), case, device="amdgcn:gfx942")
    assert record.status is Status.UNSUPPORTED
    assert record.reasons == ("gfx942 converts to e4m3fnuz only",)


FAULTS = {
    "a wait left out": (r"\ts_waitcnt vmcnt\(0\)\n", "", Status.ERROR, "is used before an s_waitcnt vmcnt"),
    "a barrier left out": (r"\ts_barrier\n", "", Status.FAILED, "LDS race"),
    "half of the sum dropped": (r"row_bcast:15 row_mask:0xa", "row_bcast:15 row_mask:0x2", Status.FAILED, "scale"),
    "the wrong row is summed": (r"row_shr:8", "row_shr:7", Status.FAILED, "scale"),
    "codes stored a byte further": (
        r"(buffer_store_byte v\d+, v\d+, s\[\d+:\d+\], 0 offen)\n",
        r"\1 offset:1\n",
        Status.FAILED,
        "codes",
    ),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(target: str, name: str) -> None:
    old, new, status, words = FAULTS[name]
    record = judged(edited(text_of(target, "any"), old, new), target)
    assert record.status is status, (record.status, record.reasons)
    assert words in " ".join([*record.reasons, _failed(record)])


@pytest.mark.parametrize("target", TARGETS)
def test_a_store_far_outside_is_a_fault_with_its_place(target: str) -> None:
    text = edited(
        text_of(target, "any"), r"global_store_dword (v\d+, v\d+, s\[\d+:\d+\])", r"global_store_dword \1 offset:4095"
    )
    record = judged(text, target)
    said = " ".join([*record.reasons, _failed(record)])
    assert record.status in (Status.ERROR, Status.FAILED)
    assert "global_store_dword" in said or "scale" in said


@pytest.mark.parametrize("target", TARGETS)
def test_two_workgroups_on_one_byte_are_named(target: str) -> None:
    # The row's number is not added to the address of the scale: every workgroup writes the first one.
    text = edited(text_of(target, "any"), r"\ts_lshl_b64 (s\[\d+:\d+\]), s\[\d+:\d+\], 2\n", r"\ts_mov_b64 \1, 0\n")
    record = judged(text, target)
    assert record.status is Status.FAILED
    assert "double writer" in _failed(record)
    assert "of scale is written by workgroups 0 and 1" in _failed(record)


def test_the_end_to_end_fixtures_are_of_both_targets() -> None:
    assert set(FP8) == set(TARGETS)
