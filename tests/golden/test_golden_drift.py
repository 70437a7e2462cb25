"""Drift: how far outputs are from the accepted ones, and what the store keeps of large ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from golden import kernel as one
from golden.store import GoldenError, Row
from golden.tensors import WHOLE_BYTES, drift_of, rows_of, sample, stored_outputs
from validators.calls.call import run_kernel
from validators.cases.inputs import digest
from validators.cases.op import op_named
from validators.kernels import registry
from validators.records.record import Status
from validators.words import OPS


def test_drift_is_counted_by_row_and_step() -> None:
    codes = torch.arange(64, dtype=torch.uint8).view(4, 16).view(torch.float8_e4m3fn)
    output, stored = sample("codes", codes, whole=False)
    assert output.rows is None
    now = codes.clone()
    raw = now.view(torch.uint8)
    raw[1, 2] += 1
    raw[1, 3] -= 2
    raw[3, 0] += 40
    raw[3, 1] = 0x7F
    raw[0, 0] = 0x80
    drift = drift_of("codes", output, stored, now)
    assert drift is not None
    assert (drift.differing, drift.rows, drift.elements) == (5, 3, 64)
    assert drift.ulp_histogram == {"-2": 1, "0": 1, "1": 1, ">=5": 1, "NaN": 1}
    assert drift_of("codes", output, stored, codes.clone()) is None
    with pytest.raises(GoldenError, match=r"float8_e4m3fnuz \[4, 16\] now and was float8_e4m3fn"):
        drift_of("codes", output, stored, raw.view(torch.float8_e4m3fnuz))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_steps_of_other_types_cross_binades(dtype: torch.dtype) -> None:
    before = torch.tensor([[1.0, -2.0, 0.0, 3.0]], dtype=dtype)
    integers = {2: torch.int16, 4: torch.int32}[before.itemsize]
    now = before.clone()
    now.view(integers)[0, 0] -= 1  # below a power of two the steps are half as wide
    now.view(integers)[0, 1] += 3  # away from zero
    drift = drift_of("out", *sample("out", before, whole=True), now)
    assert drift is not None
    assert drift.ulp_histogram == {"-3": 1, "-1": 1}


def test_large_outputs_are_stored_as_rows_with_the_digest_of_the_whole() -> None:
    big = torch.arange(2 * WHOLE_BYTES, dtype=torch.int32).to(torch.uint8).view(torch.float8_e4m3fn).view(2, 128, -1)
    output, stored = sample("codes", big, whole=False)
    assert output.rows == (0, 85, 170, 255)
    assert stored.shape == (4, 512)
    assert output.shape == (2, 128, 512)
    now = big.clone()
    rows_of(now)[85, 9] ^= 1
    drift = drift_of("codes", output, stored, now)
    assert drift is not None
    assert (drift.where.startswith("row 85"), drift.differing, drift.sampled) == (True, 1, True)


@pytest.mark.parametrize("op", OPS)
def test_outputs_of_every_op_can_be_judged_from_the_store(op: str) -> None:
    """Those of an emulated kernel as they are, and with every bit changed."""
    kernel = next(k for k in registry.all_kernels() if k.name.startswith("emulated/") and k.op == op)
    case = op_named(op).small("gaussian")
    claim = run_kernel(kernel, case, "cpu")
    held = {name: sample(name, t, whole=True) for name, t in stored_outputs(claim.outputs).items()}
    row = Row(
        id=f"{case.id}@{kernel.name}@cpu",
        kind="kernel",
        case=case.id,
        op=op,
        inputs=digest(claim.inputs),
        kernel=kernel.name,
        arch="cpu",
        contract=str(kernel.contract),
        outputs={name: output for name, (output, _) in held.items()},
        versions={},
        reason="first",
    )
    stored = {name: tensor for name, (_, tensor) in held.items()}
    assert one.judge_stored(row, stored)[0] is Status.PASSED
    wrong = {n: dataclasses.replace(t, data=bytes(255 - byte for byte in t.data)) for n, t in stored.items()}
    assert one.judge_stored(row, wrong)[0] is Status.FAILED
